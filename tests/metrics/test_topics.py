"""The report of topics: hand examples, planted structure, and independence of names and of what is not asked."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cellsmith import _record
from cellsmith._errors import DataWarning, SetupError
from cellsmith.math import topics
from cellsmith.math.enrichment import benjamini_hochberg, over_representation
from cellsmith.metrics import TopicReport, topic_report, topic_stability

N_TOPICS, N_GENES = 4, 60


def planted(n_cells=160, seed=0):
    """Cells of four types; topic k is large in type k and owns 12 genes; the last 12 genes are not modelled."""
    rng = np.random.default_rng(seed)
    kind = np.arange(n_cells) % N_TOPICS
    owner = np.arange(N_GENES) // 12
    rate = np.where(owner == kind[:, None], 1.5, 0.1)
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(rate).astype(np.float32)))
    adata.var_names = [f"HLA-{g}" for g in range(N_GENES)]
    adata.obs["cell_type"] = pd.Categorical([f"type {k}" for k in kind])
    beta = rng.uniform(0.1, 1, (N_TOPICS, N_GENES)) + 5 * (owner == np.arange(N_TOPICS)[:, None])
    beta = np.where(owner < N_TOPICS, beta / beta.sum(axis=0), 0.0)
    theta = np.full((n_cells, N_TOPICS), 0.1)
    theta[np.arange(n_cells), kind] = 0.7
    uns = {"classes": [f"Topic_{k}" for k in range(N_TOPICS)]}
    result = _record.Result(method="sce2tm", obsm={"X_{k}": theta}, varm={"{k}_loadings": beta.T}, uns=uns)
    _record.write(adata, "sce2tm", result)
    return adata


@pytest.fixture
def adata():
    return planted()


SETS = {"own/1": [f"HLA-{g}" for g in range(12, 24)], "own/3": [f"HLA-{g}" for g in range(36, 48)]}
SETS |= {"mixed": [f"HLA-{g}" for g in range(0, 60, 5)], "elsewhere": ["X1", "X2", "X3"]}


def test_diversity_coherence_and_quality_of_planted_topics(adata):
    report = topic_report(adata)
    rows = topics.top_genes(adata.varm["sce2tm_loadings"].T, 10)
    assert isinstance(report, TopicReport)
    assert report["td_once"] == report["td_unique"] == report["td_bound"] == 1.0
    assert report["redundancy"] == 0.0
    coherence = topics.data_npmi(adata.X, rows)
    np.testing.assert_allclose(report.per_topic["data_npmi"], coherence)
    assert coherence.min() > 0.1
    assert report["topic_quality"] == pytest.approx(coherence.mean())
    assert report.per_topic["genes"][1].split(", ") == [f"HLA-{g}" for g in rows[1]]
    assert report.per_topic["n_cells"].tolist() == [40] * 4
    assert report.per_topic["share"].sum() == pytest.approx(1.0)
    assert "set_npmi" not in set(report.table["metric"])
    assert len(report.per_type) == 0
    with pytest.raises(KeyError):
        report["purity"]


def test_bound_is_that_of_the_modelled_genes(adata):
    with pytest.warns(DataWarning):
        assert topic_report(adata, n_genes=40)["td_bound"] == 48 / 160


def test_repeated_topics_warn(adata):
    adata.varm["sce2tm_loadings"][:, 1] = adata.varm["sce2tm_loadings"][:, 0]
    with pytest.warns(DataWarning, match="50% of the topics have more than half"):
        report = topic_report(adata, gene_sets=SETS)
    assert report["published_quality"] == pytest.approx(0.5 * report["set_npmi"])
    assert report["redundancy"] == 0.5
    assert report["td_once"] == 0.5
    assert report["td_unique"] == 0.75
    assert report.per_topic["redundant"].tolist() == [True, True, False, False]


def test_gene_sets(adata, tmp_path):
    report = topic_report(adata, gene_sets=SETS)
    lists = [row.split(", ") for row in report.per_topic["genes"]]
    for column, form in [("set_npmi", "published"), ("set_npmi_strict", "strict")]:
        found = topics.set_npmi(lists, SETS, form=form)
        np.testing.assert_allclose(report.per_topic[column], found.per_topic)
        assert report[column] == pytest.approx(np.nanmean(found.per_topic))
    assert report["published_quality"] == pytest.approx(report["td_once"] * report["set_npmi"])
    kept = {name: SETS[name] for name in ("own/1", "own/3", "mixed")}
    called = benjamini_hochberg(over_representation(lists, kept, [f"HLA-{g}" for g in range(48)]).p) <= 0.01
    assert (report["ora_n_enriched"], report["ora_n_unique"]) == (called.sum(), 2)
    assert report["ora_unique_ratio"] == 2 / called.sum()
    assert report.settings["n_outside"] == sum(
        g not in {x for s in SETS.values() for x in s} for row in lists for g in row
    )
    path = tmp_path / "sets.gmt"
    path.write_text("".join("\t".join([name, "", *genes]) + "\n" for name, genes in SETS.items()), encoding="utf-8")
    pd.testing.assert_frame_equal(topic_report(adata, gene_sets=path).table, report.table)


def test_the_triple_of_a_stored_gsea(adata):
    table = {"topic": ["Topic_0", "Topic_1", "Topic_1"], "term": ["a", "a", "b"], "fdr": [0.005, 0.0, 0.2]}
    _record.write(adata, "sce2tm_gsea", _record.Result(method="sce2tm_gsea", uns={"table": table}))
    report = topic_report(adata)
    assert [report[f"gsea_{n}"] for n in ("n_enriched", "n_unique", "unique_ratio")] == [2, 1, 0.5]


def test_labels(adata):
    """One cell of type 0 lies in topic 2: recall and precision by hand."""
    adata.obsm["X_sce2tm"][0] = [0.1, 0.1, 0.7, 0.1]
    adata.obs.loc[adata.obs_names[[1, 5]], "cell_type"] = np.nan
    report = topic_report(adata, labels_key="cell_type")
    assert report["purity"] == pytest.approx(157 / 158)
    types = report.per_type.set_index("label")
    assert types.loc["type 0", "recall"] == pytest.approx(39 / 40)
    assert types.loc["type 0", "precision"] == 1.0
    assert types.loc["type 2", "precision"] == pytest.approx(40 / 41)
    assert types.loc["type 2", "topic"] == "Topic_2"
    assert types.loc["type 1", "n_cells"] == 38
    assert report["capture_f1"] == pytest.approx(types["f1"].mean())
    assert report["ari"] > 0.95
    assert report["nmi"] > 0.95
    assert report.settings["n_unlabelled"] == 2


def test_labels_change_no_other_number(adata):
    plain = topic_report(adata, gene_sets=SETS).table
    for seed in range(2):
        adata.obs["cell_type"] = np.random.default_rng(seed).permutation(adata.obs["cell_type"])
        pd.testing.assert_frame_equal(
            topic_report(adata, gene_sets=SETS, labels_key="cell_type").table.iloc[: len(plain)], plain
        )


def test_one_to_one_renaming_changes_no_number(adata):
    """F8: names are compared whole; hyphens, dots and single letters are part of them."""
    plain = topic_report(adata, gene_sets=SETS)
    new = {f"HLA-{g}": chr(65 + g) if g < 26 else f"RP11-{g}.A" for g in range(N_GENES)}
    adata.var_names = [new[name] for name in adata.var_names]
    again = topic_report(adata, gene_sets={n: [new.get(g, g) for g in genes] for n, genes in SETS.items()})
    pd.testing.assert_frame_equal(plain.table, again.table)


def test_nothing_is_written_and_the_report_prints(adata):
    before = adata.copy()
    report = topic_report(adata, gene_sets=SETS, labels_key="cell_type")
    assert list(adata.uns) == list(before.uns)
    assert list(adata.obs) == list(before.obs)
    assert "4 topics of 48 genes" in str(report)
    assert "td_unique" in repr(report)
    assert "<table" in report._repr_html_()


def test_layers_and_dense_counts(adata):
    adata.layers["counts"] = adata.X.toarray()
    expected = topic_report(adata).table
    adata.X = adata.layers["counts"] - adata.layers["counts"].mean(axis=0)
    pd.testing.assert_frame_equal(topic_report(adata, layer="counts").table, expected)
    with pytest.raises(SetupError, match=r"values go down to -.*layer="):
        topic_report(adata)
    with pytest.raises(SetupError, match="no layer 'count'"):
        topic_report(adata, layer="count")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"key": "other"}, "does not exist"),
        ({"n_genes": 1}, "expected at least 2 genes a topic"),
        ({"n_genes": 49}, "expected 1 to 48"),
        ({"labels_key": "cell_tipe"}, "Did you mean 'cell_type'"),
        ({"gene_sets": {}}, "at least one set"),
        ({"gene_sets": "absent.gmt"}, "'absent.gmt' is no file"),
        ({"gene_sets": {"a": ["X1", "X2", "X3"]}}, "None of 1 gene sets"),
    ],
)
def test_what_cannot_be_scored_says_why(adata, arguments, message):
    with pytest.raises(SetupError, match=message):
        topic_report(adata, **arguments)


def test_missing_slots_are_named(adata):
    del adata.varm["sce2tm_loadings"]
    with pytest.raises(SetupError, match=r"\.varm\['sce2tm_loadings'\] does not exist"):
        topic_report(adata)


# stability


def test_stability_is_one_for_the_same_topics_in_another_order():
    rng = np.random.default_rng(0)
    first = rng.dirichlet(np.full(40, 0.1), size=6).T
    other = rng.dirichlet(np.full(40, 0.1), size=6).T
    table = topic_stability([first, first[:, rng.permutation(6)], other])
    assert table[["first", "second"]].to_numpy().tolist() == [[0, 1], [0, 2], [1, 2]]
    assert table["cosine"][0] == pytest.approx(1.0)
    assert table["cosine"][1] == pytest.approx(table["cosine"][2])
    assert 0 < table["cosine"][1] < 0.7
    # what is even, or what all topics repeat, agrees with nothing
    flat = [np.full((40, 6), 1 / 6) + 1e-3 * rng.normal(size=(40, 6)) for _ in range(2)]
    assert topic_stability(flat)["cosine"][0] < 0.5
    np.testing.assert_allclose(topic_stability([first + 1, other + 5])["cosine"], table["cosine"][1:2])
    assert (table["lowest"] <= table["cosine"] + 1e-12).all()


def test_stability_needs_two_tables_of_the_same_genes():
    table = pd.DataFrame(np.eye(3), index=list("abc"))
    with pytest.raises(SetupError, match="at least two"):
        topic_stability([table])
    with pytest.raises(SetupError, match="the same index"):
        topic_stability([table, table.loc[list("cab")]])
    with pytest.raises(SetupError, match="the same genes"):
        topic_stability([np.eye(3), np.eye(4)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert topic_stability([table, table])["cosine"][0] == pytest.approx(1.0)
