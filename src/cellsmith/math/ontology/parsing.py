"""Read an ontology from the text of an OBO or an obograph JSON file."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cellsmith._errors import SetupError
from cellsmith.math.ontology.terms import Ontology, term_id

__all__ = ["parse_ontology"]

_PART_OF = {"part_of", "BFO:0000050"}
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"\s*(\w*)')
_FOLDER = re.compile(r".*[/#]")
_ESCAPE = re.compile(r"\\(.)")
_BLANKS = {"n": "\n", "t": "\t", "W": " "}


@dataclass
class _Term:
    name: str = ""
    definition: str = ""
    synonyms: list[str] = field(default_factory=list)
    alternatives: list[str] = field(default_factory=list)
    is_a: list[str] = field(default_factory=list)
    part_of: list[str] = field(default_factory=list)
    obsolete: bool = False
    replaced_by: str = ""


def parse_ontology(text: str) -> Ontology:
    """Parse an ontology; the format is recognised from the text.

    Read are names, definitions, exact synonyms, is_a, part_of, merged and replaced identifiers, obsolescence and the
    version. A parent that the text does not define is left out.

    Parameters
    ----------
    text
        Content of an ``.obo`` file or of an obograph ``.json`` file.

    Returns
    -------
    The ontology, with the SHA-256 of ``text``.

    Raises
    ------
    SetupError
        If the text is neither format, holds no term, or a relation runs in a circle (the message names it).
    """
    body = text.lstrip("\ufeff \t\r\n")
    if body.startswith("{"):
        version, terms = _read_json(body)
    elif "[Term]" in body:
        version, terms = _read_obo(body)
    else:
        raise SetupError(
            f"Found text that starts with {body[:40]!r}, expected an OBO file (with [Term] stanzas) or obograph JSON "
            "(an object with 'graphs'). OWL files are not read: convert with 'robot convert --format obo'."
        )
    return _assemble(version, hashlib.sha256(text.encode("utf-8")).hexdigest(), terms)


def _assemble(version: str, digest: str, terms: dict[str, _Term]) -> Ontology:
    alive = {name: term for name, term in terms.items() if not term.obsolete}
    if not alive:
        raise SetupError(f"Found {len(terms)} terms of which all are obsolete, expected at least one usable term.")
    alternatives = {other: name for name, term in alive.items() for other in term.alternatives if other not in alive}
    alternatives |= {name: t.replaced_by for name, t in terms.items() if t.obsolete and t.replaced_by in alive}
    parents: dict[str, dict[str, tuple[str, ...]]] = {}
    for relation in ("is_a", "part_of"):
        found = {n: tuple(sorted({p for p in getattr(t, relation) if p in alive})) for n, t in alive.items()}
        parents[relation] = {name: above for name, above in found.items() if above}
    return Ontology(
        version=version,
        digest=digest,
        names={name: term.name for name, term in alive.items()},
        is_a=parents["is_a"],
        part_of=parents["part_of"],
        synonyms={n: tuple(dict.fromkeys(t.synonyms)) for n, t in alive.items() if t.synonyms},
        definitions={n: t.definition for n, t in alive.items() if t.definition},
        alternatives=alternatives,
    )


def _tags(body: str) -> Iterator[tuple[str, str, str]]:
    """Yield (stanza, tag, value) of an OBO file; the header's stanza is empty, a new stanza yields an empty tag."""
    stanza = ""
    for line in body.splitlines():
        line = line.strip()
        if line.startswith("[") and line.endswith("]"):
            stanza = line[1:-1]
            yield stanza, "", ""
        elif line and not line.startswith("!"):
            tag, _, value = line.partition(":")
            yield stanza, tag.strip(), value.strip()


def _bare(value: str) -> str:
    """Return a value without its comment and trailing modifiers."""
    return value.split(" !")[0].split(" {")[0].strip()


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda found: _BLANKS.get(found[1], found[1]), text)


def _read_obo(body: str) -> tuple[str, dict[str, _Term]]:
    version, terms, term = "", {}, _Term()
    for stanza, tag, value in _tags(body):
        if not stanza:
            version = value if tag == "data-version" else version
        elif stanza == "Term" and not tag:
            term = _Term()
        elif stanza == "Term" and tag == "id":
            terms[term_id(_bare(value))] = term
        elif stanza == "Term":
            _put_tag(term, tag, value)
    return version, terms


def _put_tag(term: _Term, tag: str, value: str) -> None:
    quoted = _QUOTED.match(value)
    if tag == "name":
        term.name = _unescaped(value)
    elif tag == "def" and quoted:
        term.definition = _unescaped(quoted[1])
    elif tag == "synonym" and quoted and quoted[2] == "EXACT":
        term.synonyms.append(_unescaped(quoted[1]))
    elif tag == "is_a":
        term.is_a.append(term_id(_bare(value)))
    elif tag == "relationship" and 'all_only="true"' not in value:  # "if at all, then of": no parent
        relation, _, target = _bare(value).partition(" ")
        if _is_part_of(relation):
            term.part_of.append(term_id(target))
    elif tag == "alt_id":
        term.alternatives.append(term_id(_bare(value)))
    elif tag == "is_obsolete":
        term.obsolete = _bare(value) == "true"
    elif tag == "replaced_by":
        term.replaced_by = term_id(_bare(value))


def _read_json(body: str) -> tuple[str, dict[str, _Term]]:
    try:
        graphs = json.loads(body)["graphs"]
        version = next((v for g in graphs if (v := _json_version(g.get("meta") or {}))), "")
        terms = {term_id(n["id"]): _json_term(n) for g in graphs for n in g.get("nodes", ()) if _is_class(n)}
        edges = [(term_id(e["sub"]), e["pred"], term_id(e["obj"])) for g in graphs for e in g.get("edges", ())]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SetupError(
            f"Found JSON that is no obograph ({type(error).__name__}: {error}), expected an object with 'graphs', each "
            "with 'nodes' (id, lbl) and 'edges' (sub, pred, obj)."
        ) from error
    for child, relation, parent in edges:
        if child in terms and relation == "is_a":
            terms[child].is_a.append(parent)
        elif child in terms and _is_part_of(relation):
            terms[child].part_of.append(parent)
    return version, terms


def _is_part_of(relation: str) -> bool:
    return _FOLDER.sub("", term_id(relation)) in _PART_OF


def _is_class(node: dict[str, Any]) -> bool:
    return str(node.get("type") or "CLASS") == "CLASS"


def _json_version(meta: dict[str, Any]) -> str:
    stated = [p["val"] for p in meta.get("basicPropertyValues") or () if str(p.get("pred", "")).endswith("versionInfo")]
    return str(meta.get("version") or (stated[0] if stated else ""))


def _json_term(node: dict[str, Any]) -> _Term:
    meta = node.get("meta") or {}
    values = [(str(p.get("pred", "")), str(p.get("val", ""))) for p in meta.get("basicPropertyValues") or ()]
    replaced = [v for pred, v in values if pred.endswith(("IAO_0100001", "replaced_by"))]
    return _Term(
        name=str(node.get("lbl") or ""),
        definition=str((meta.get("definition") or {}).get("val") or ""),
        synonyms=[str(s["val"]) for s in meta.get("synonyms") or () if s.get("pred") == "hasExactSynonym"],
        alternatives=[term_id(v) for pred, v in values if pred.endswith(("hasAlternativeId", "alternative_term"))],
        obsolete=bool(meta.get("deprecated", False)),
        replaced_by=term_id(replaced[0]) if replaced else "",
    )
