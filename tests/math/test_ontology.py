"""Both file formats give the same ontology; roll-up never counts mass twice; circles are named."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from cellsmith._errors import SetupError
from cellsmith.math.ontology import Ontology, parse_ontology, roll_up, term_id

OBO = r"""format-version: 1.2
data-version: releases/2024-01-04
ontology: cl

[Term]
id: CL:0000000
name: cell
def: "A unit,\nthe \"unit\"." [PMID:1]
relationship: BFO:0000050 CL:0000000 {all_only="true"} ! part of

[Term]
id: CL:0000542
name: lymphocyte
is_a: CL:0000000 ! cell

[Term]
id: CL:0000084
name: T cell
alt_id: CL:0000804
synonym: "T-cell" EXACT []
synonym: "T lymphocyte" EXACT OMO:0003004 [GOC:x]
synonym: "lymphoid thing" RELATED []
is_a: CL:0000542 {source="x"} ! lymphocyte

[Term]
id: CL:0000911
name: effector cell
is_a: CL:0000000 ! cell

[Term]
id: CL:0000910
name: cytotoxic T cell
is_a: CL:0000084 ! T cell
is_a: CL:0000911 ! effector cell
relationship: develops_from CL:0000542 ! lymphocyte

[Term]
id: CL:0000236
name: B cell
synonym: "shared" EXACT []
is_a: CL:0000542 ! lymphocyte
is_a: PR:000001 ! not in this file

[Term]
id: CL:0000233
name: platelet
synonym: "shared" EXACT []
is_a: CL:0000000 ! cell
relationship: part_of CL:0000081 ! blood cell {all="yes"}

[Term]
id: CL:0000081
name: blood cell
is_a: CL:0000000 ! cell

[Term]
id: CL:0000001
name: old T cell
is_obsolete: true
replaced_by: CL:0000084

[Typedef]
id: part_of
name: part of
is_a: CL:0000000
"""


def as_json(ontology: Ontology, **change) -> str:
    """The same terms as an obograph."""
    iri = "http://purl.obolibrary.org/obo/{}".format
    nodes, edges = [], []
    for term, name in ontology.names.items():
        synonyms = [{"pred": "hasExactSynonym", "val": s} for s in ontology.synonyms.get(term, ())]
        synonyms.append({"pred": "hasRelatedSynonym", "val": "lymphoid thing"})
        other = [k for k, v in ontology.alternatives.items() if v == term and k != "CL:0000001"]
        alt = "http://www.geneontology.org/formats/oboInOwl#hasAlternativeId"
        meta = {"synonyms": synonyms, "basicPropertyValues": [{"pred": alt, "val": o} for o in other]}
        if term in ontology.definitions:
            meta["definition"] = {"val": ontology.definitions[term]}
        nodes.append({"id": iri(term.replace(":", "_")), "lbl": name, "type": "CLASS", "meta": meta})
    replaced = {"pred": "http://purl.obolibrary.org/obo/IAO_0100001", "val": iri("CL_0000084")}
    old = {"deprecated": True, "basicPropertyValues": [replaced]}
    nodes.append({"id": iri("CL_0000001"), "lbl": "old T cell", "type": "CLASS", "meta": old})
    nodes.append({"id": iri("BFO_0000050"), "lbl": "part of", "type": "PROPERTY"})
    for pred, parents in (("is_a", ontology.is_a), (iri("BFO_0000050"), ontology.part_of)):
        for child, above in parents.items():
            edges += [
                {"sub": iri(child.replace(":", "_")), "pred": pred, "obj": iri(p.replace(":", "_"))} for p in above
            ]
    graph = {"id": iri("cl.json"), "meta": {"version": ontology.version}, "nodes": nodes, "edges": edges}
    return json.dumps({"graphs": [graph | change]})


@pytest.fixture(scope="module")
def ontology() -> Ontology:
    return parse_ontology(OBO)


def test_obo_is_read(ontology):
    """Among others: a relation that only restricts ("all_only", which released files put on a term itself) is none."""
    assert ontology.version == "releases/2024-01-04"
    assert ontology.digest == hashlib.sha256(OBO.encode()).hexdigest()
    assert len(ontology) == 8
    assert "CL:0000001" not in ontology
    assert ontology.names["CL:0000084"] == "T cell"
    assert ontology.definitions == {"CL:0000000": 'A unit,\nthe "unit".'}
    assert ontology.synonyms["CL:0000084"] == ("T-cell", "T lymphocyte")
    assert ontology.is_a["CL:0000910"] == ("CL:0000084", "CL:0000911")
    assert ontology.is_a["CL:0000236"] == ("CL:0000542",)
    assert ontology.part_of == {"CL:0000233": ("CL:0000081",)}
    with pytest.raises(FrozenInstanceError):
        ontology.version = "other"


def test_json_says_the_same(ontology):
    text = as_json(ontology)
    other = parse_ontology("\ufeff" + text)
    for name in ("version", "names", "is_a", "part_of", "synonyms", "definitions", "alternatives"):
        assert getattr(other, name) == getattr(ontology, name), name
    assert other != ontology
    assert parse_ontology(text) == parse_ontology(text)


@pytest.mark.parametrize(
    ("name", "term"),
    [
        ("CL:0000084", "CL:0000084"),
        ("CL_0000084", "CL:0000084"),
        ("http://purl.obolibrary.org/obo/CL_0000084", "CL:0000084"),
        ("CL:0000804", "CL:0000084"),  # merged
        ("CL:0000001", "CL:0000084"),  # replaced
        ("T cell", "CL:0000084"),
        ("T-cell", "CL:0000084"),
        ("lymphoid thing", None),  # related, not exact
        ("t cell", None),
        ("shared", None),  # two terms claim it
        ("CL:9999999", None),
    ],
)
def test_classes_are_found_by_id_name_and_exact_synonym_only(ontology, name, term):
    assert ontology.find(name) == term


def test_a_name_wins_over_a_synonym():
    found = Ontology("", "", {"A:1": "x", "A:2": "y"}, {}, synonyms={"A:2": ("x",)})
    assert found.find("x") == "A:1"


def test_ancestors_and_depth(ontology):
    assert ontology.ancestors("CL:0000910") == {"CL:0000910", "CL:0000084", "CL:0000911", "CL:0000542", "CL:0000000"}
    assert ontology.depth("CL:0000910") == 3  # the longest of two paths
    assert ontology.ancestors("CL:0000233") == {"CL:0000233", "CL:0000000"}
    assert "CL:0000081" in ontology.ancestors("CL:0000233", part_of=True)
    assert (ontology.depth("CL:0000233"), ontology.depth("CL:0000233", part_of=True)) == (1, 2)
    with pytest.raises(SetupError, match=r"no term 'CL:0000085'.*Did you mean 'CL:0000084'"):
        ontology.ancestors("CL:0000085")


def test_identifiers_are_short():
    assert term_id("http://purl.obolibrary.org/obo/UBERON_0000061") == "UBERON:0000061"
    assert term_id("NCIT_C12345") == "NCIT:C12345"
    assert term_id("CD4_T") == "CD4_T"
    assert term_id("http://x.org/part#part_of") == "http://x.org/part#part_of"


@pytest.mark.parametrize(
    ("lines", "relation"),
    [("is_a: A:3", "is_a"), ("relationship: part_of A:3", "part_of")],
)
def test_a_circle_is_an_error_that_names_it(lines, relation):
    stanza = "[Term]\nid: A:{}\nname: {}\n{}\n\n".format
    text = (
        stanza(1, "one", lines)
        + stanza(2, "two", lines.replace("3", "1"))
        + stanza(3, "three", lines.replace("3", "2"))
    )
    with pytest.raises(SetupError, match=f"circle in {relation}: .*expected that no term is its own ancestor") as error:
        parse_ontology(text)
    circle = str(error.value).split(": ", 1)[1].split(";")[0].split(" -> ")
    assert circle[0] == circle[-1]
    assert set(circle) == {"A:1 (one)", "A:2 (two)", "A:3 (three)"}
    above = {"A:1 (one)": "A:3 (three)", "A:2 (two)": "A:1 (one)", "A:3 (three)": "A:2 (two)"}
    assert all(above[child] == parent for child, parent in itertools.pairwise(circle))


def test_a_circle_of_two_relations_matters_only_where_both_are_asked_for():
    found = Ontology("", "", {"A:1": "one", "A:2": "two"}, {"A:1": ("A:2",)}, part_of={"A:2": ("A:1",)})
    assert roll_up([[1.0]], ["one"], found).ids.tolist() == ["A:1"]
    with pytest.raises(SetupError, match="circle in is_a and part_of together"):
        roll_up([[1.0]], ["one"], found, part_of=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<rdf:RDF>", "starts with '<rdf:RDF>'.*robot convert"),
        ("", "expected an OBO file"),
        ("{]", "no obograph"),
        ('{"nodes": []}', "no obograph .KeyError"),
        ('{"graphs": [{"nodes": [{"lbl": "x"}]}]}', "no obograph .KeyError"),
        ('{"graphs": []}', "0 terms"),
        ("[Term]\nid: A:1\nname: x\nis_obsolete: true\n", "1 terms of which all are obsolete"),
    ],
)
def test_other_text_is_refused(text, message):
    with pytest.raises(SetupError, match=message):
        parse_ontology(text)


# -------------------------------------------------------------------- roll-up


def test_a_diamond_counts_a_leaf_once():
    names = {"A:0": "root", "A:1": "left", "A:2": "right", "A:3": "leaf", "A:4": "other"}
    diamond = Ontology("", "", names, {"A:1": ("A:0",), "A:2": ("A:0",), "A:3": ("A:1", "A:2"), "A:4": ("A:2",)})
    out = roll_up([[0.6, 0.4], [0.9, 0.1], [0.4, 0.6]], ["leaf", "other"], diamond, mass=0.8)
    assert out.ids.tolist() == ["A:2", "A:3", "A:2"]
    np.testing.assert_allclose(out.mass, [1.0, 0.9, 1.0])
    assert out.depth.tolist() == [1, 2, 1]
    assert out.leaf.tolist() == ["leaf", "leaf", "other"]
    # at most 1, whatever the number of paths to the root
    top = roll_up([[0.6, 0.2, 0.2]], ["leaf", "other", "left"], diamond, mass=0.99)
    assert top.ids.tolist() == ["A:0"]
    assert top.mass.tolist() == pytest.approx([1.0])


def test_roll_up_equals_the_definition_on_random_graphs():
    rng = np.random.default_rng(0)
    for _ in range(20):
        n = 14
        names = {f"A:{i:02d}": f"t{i}" for i in range(n)}
        parents = {
            f"A:{i:02d}": tuple(sorted(f"A:{j:02d}" for j in rng.choice(i, min(i, 2), replace=False)))
            for i in range(1, n)
        }
        graph = Ontology("", "", names, parents)
        classes = [f"t{i}" for i in rng.choice(n, 6, replace=False)]
        p = rng.dirichlet(np.full(6, 0.5), 15)
        out = roll_up(p, classes, graph, mass=0.7)
        above = [graph.ancestors(graph.find(c)) for c in classes]
        for i, row in enumerate(p):
            held = {t: sum(x for x, a in zip(row, above, strict=True) if t in a) for t in names}
            best = min((t for t in names if held[t] >= 0.7), key=lambda t: (-graph.depth(t), -round(held[t], 9), t))
            assert out.ids[i] == best
            assert out.mass[i] == pytest.approx(held[best])
            below = [t for t in names if t != best and best in graph.ancestors(t)]
            assert not any(held[t] >= 0.7 for t in below)


def test_ties_go_to_the_mass_then_to_the_id():
    flat = Ontology("", "", {f"A:{i}": f"t{i}" for i in range(4)}, {f"A:{i}": ("A:0",) for i in (1, 2, 3)})
    out = roll_up([[0.4, 0.4, 0.2], [0.35, 0.45, 0.2]], ["t2", "t1", "t3"], flat, mass=0.3)
    assert out.ids.tolist() == ["A:1", "A:1"]
    assert roll_up([[0.45, 0.35, 0.2]], ["t2", "t1", "t3"], flat, mass=0.3).ids.tolist() == ["A:2"]


def test_part_of_counts_on_request(ontology):
    p, classes = [[0.5, 0.5]], ["platelet", "blood cell"]
    assert roll_up(p, classes, ontology).labels.tolist() == ["cell"]
    assert roll_up(p, classes, ontology, part_of=True).labels.tolist() == ["blood cell"]


def test_unmapped_classes_are_listed_and_keep_their_name(ontology):
    p = [[0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.3, 0.5, 0.2], [0.5, 0.3, 0.2], [np.nan] * 3, [0.0] * 3]
    out = roll_up(p, ["T-cell", "my type", "B cell"], ontology)
    assert out.unmapped == ("my type",)
    assert out.mapped == {"T-cell": "CL:0000084", "B cell": "CL:0000236"}
    assert out.labels.tolist() == ["T cell", "my type", "my type", "", "", ""]
    assert out.ids.tolist() == ["CL:0000084", "", "", "", "", ""]
    assert out.depth.tolist() == [2, -1, -1, -1, -1, -1]
    assert out.leaf.tolist() == ["T-cell", "my type", "my type", "T-cell", "", ""]
    np.testing.assert_allclose(out.mass, [0.9, 0.9, 0.5, np.nan, np.nan, np.nan])
    assert (out.version, out.digest) == (ontology.version, ontology.digest)


def test_rows_are_normalised_and_rounding_does_not_cost_a_term(ontology):
    p = np.array([[0.8, 0.2], [0.4, 0.1]], dtype=np.float32)
    assert roll_up(p, ["T cell", "platelet"], ontology, mass=0.8).labels.tolist() == ["T cell", "T cell"]


def test_many_cells_come_in_chunks(ontology, monkeypatch):
    p = np.random.default_rng(0).dirichlet(np.ones(3), 50)
    classes = ["cytotoxic T cell", "B cell", "platelet"]
    whole = roll_up(p, classes, ontology)
    monkeypatch.setattr("cellsmith.math.ontology.rollup._ROWS", 7)
    assert roll_up(p, classes, ontology).ids.tolist() == whole.ids.tolist()
    assert roll_up(np.empty((0, 3)), classes, ontology).labels.shape == (0,)


@pytest.mark.parametrize(
    ("p", "classes", "mass", "message"),
    [
        ([[1.0, 0.0]], ["T cell"], 0.8, r"shape \(1, 2\) and 1 classes"),
        ([[1.0, 0.0]], ["T cell", "T cell"], 0.8, "1 distinct"),
        ([[1.0]], ["T cell"], 1.5, r"mass=1.5, expected a share in \(0, 1\]"),
        ([[1.0]], ["alpha"], 0.8, "none of the 1 classes .'alpha'."),
    ],
)
def test_bad_roll_ups_are_refused(ontology, p, classes, mass, message):
    with pytest.raises(SetupError, match=message):
        roll_up(p, classes, ontology, mass=mass)
