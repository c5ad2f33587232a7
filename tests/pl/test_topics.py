"""Pictures of topics show the numbers that they were given, in the right place."""

from __future__ import annotations

from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

mpl.use("Agg")

import matplotlib.pyplot as plt
from anndata import AnnData

from cellsmith import _record, pl
from cellsmith._errors import SetupError

N, V, K = 40, 12, 4
NAMES = [f"Topic_{k}" for k in range(K)]


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.fixture
def adata() -> AnnData:
    generator = np.random.default_rng(0)
    adata = AnnData(generator.poisson(2.0, size=(N, V)).astype(np.float32))
    adata.var_names = [f"HLA-{j}.1" for j in range(V)]
    adata.obs["kind"] = pd.Categorical(np.where(np.arange(N) < 15, "a", "b"), categories=["a", "b", "absent"])
    theta = generator.dirichlet(np.ones(K), N).astype(np.float32)
    beta = generator.dirichlet(np.full(K, 0.3), V).astype(np.float32)
    result = _record.Result(
        method="sce2tm", obsm={"X_{k}": theta}, varm={"{k}_loadings": beta}, uns={"classes": NAMES, "params": {}}
    )
    _record.write(adata, "sce2tm", result)
    return adata


def test_heatmap_holds_the_mean_share_of_every_group(adata: AnnData) -> None:
    axes = pl.topic_heatmap(adata, "kind")
    theta = adata.obsm["X_sce2tm"]
    means = np.stack([theta[:15].mean(axis=0), theta[15:].mean(axis=0)])
    shown = [int(t.get_text()) for t in axes.get_xticklabels()]
    assert sorted(shown) == list(range(K))
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a", "b"]
    np.testing.assert_allclose(axes.collections[0].get_array().reshape(2, K), means[:, shown], rtol=1e-6)
    largest = means.argmax(axis=0)[shown]
    assert (np.diff(largest) >= 0).all()  # topics of one group stand together


def test_genes_are_written_by_falling_loading(adata: AnnData) -> None:
    axes = pl.topic_genes(adata, n_genes=3, topics=["Topic_2", "Topic_0"])
    beta = adata.varm["sce2tm_loadings"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["2", "0"]
    written = [t.get_text() for t in axes.texts]
    expected = [adata.var_names[j] for k in (2, 0) for j in np.argsort(-beta[:, k], kind="stable")[:3]]
    assert written == expected
    twice = {name for name in written if written.count(name) > 1}
    assert all((t.get_style() == "italic") == (t.get_text() in twice) for t in axes.texts)


def edit(selected: tuple[int, ...] = (1, 3)) -> tuple[SimpleNamespace, pd.DataFrame]:
    """A perturbation as the model returns it, and the selection that it came from."""
    generator = np.random.default_rng(0)
    before = pd.DataFrame(generator.dirichlet(np.ones(K), N), columns=NAMES)
    after = before * np.where(np.isin(range(K), selected), 3.0, 1.0)
    table = pd.DataFrame({"effect": [0.1, 2.0, -0.3, -1.5], "fdr": [0.9, 1e-8, 0.01, 1e-320]}, index=NAMES)
    selection = table.iloc[list(selected)].copy()
    tested = {"topic": NAMES, "effect": table["effect"].tolist(), "fdr": table["fdr"].tolist()}
    selection.attrs = {"tested": tested, "group": "STIM", "reference": "CTRL", "fdr": 0.05, "min_effect": 1.0}
    selection.attrs["unit"] = "sample"
    fold = pd.DataFrame([[1.0, -2.0, 0.5], [3.0, 0.1, 0.5]], index=["B", "NK"], columns=["MX1", "CD4", "NKX2-2"])
    answer = SimpleNamespace(
        logfc=fold,
        theta_before=before,
        theta_after=after.div(after.sum(axis=1), axis=0),
        topics=pd.DataFrame(1.0, index=fold.index, columns=[NAMES[k] for k in selected]),
        params={"op": "add", "strength": 1.0},
    )
    return answer, selection


def test_perturbation_shows_volcano_shift_and_genes() -> None:
    answer, selection = edit()
    volcano, shift, genes = pl.topic_perturbation(answer, selection=selection, group="B", n_genes=2)
    tested, kept = (np.asarray(c.get_offsets()) for c in volcano.collections)
    np.testing.assert_allclose(tested[:, 0], [0.1, -0.3])
    np.testing.assert_allclose(kept, [[2.0, 8.0], [-1.5, 300.0]], rtol=1e-6)
    assert [t.get_text() for t in volcano.texts] == ["1", "3"]
    before, after = (np.asarray(c.get_offsets())[:, 0] for c in shift.collections)
    order = [NAMES[int(t.get_text())] for t in shift.get_yticklabels()]
    assert order[:2] == ["Topic_1", "Topic_3"]
    np.testing.assert_allclose(before, answer.theta_before.mean()[order])
    np.testing.assert_allclose(after, answer.theta_after.mean()[order])
    assert [t.get_text() for t in genes.get_yticklabels()] == ["CD4", "MX1"]
    np.testing.assert_allclose([bar.get_width() for bar in genes.patches], [-2.0, 1.0])


def test_perturbation_without_a_selection_or_group() -> None:
    answer, _ = edit()
    axes = pl.topic_perturbation(answer, ax=plt.subplots(1, 2)[1])
    np.testing.assert_allclose(sorted(bar.get_width() for bar in axes[1].patches), [-0.95, 0.5, 2.0])
    with pytest.raises(SetupError, match="Did you mean 'NK'"):
        pl.topic_perturbation(answer, group="NKK")
    with pytest.raises(SetupError, match="carries no table"):
        pl.topic_perturbation(answer, selection=pd.DataFrame())


def curve() -> AnnData:
    adata = AnnData(np.ones((3, 2), dtype=np.float32))
    summary = {
        "n_topics": np.array([10, 20]),
        "perplexity": np.array([900.0, 850.0]),
        "perplexity_error": np.array([4.0, 8.0]),
        "npmi": np.array([0.1, 0.2]),
        "diversity": np.array([0.9, 0.8]),
        "redundancy": np.array([0.0, 0.1]),
        "stability": np.array([0.8, 0.7]),
    }
    runs = {name: np.repeat(values, 2) for name, values in summary.items() if name != "stability"}
    block = {"summary": summary, "runs": runs, "proposal": 20, "reached": True}
    _record.write(adata, "sce2tm_n_topics", _record.Result(method="sce2tm_n_topics", uns=block))
    return adata


def test_curve_has_a_panel_a_score_and_marks_the_proposal() -> None:
    axes = pl.n_topics_curve(curve())
    assert len(axes) == 5
    for ax in axes:
        (line,) = [line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_marker() == "o"]
        np.testing.assert_array_equal(line.get_xdata(), [10, 20])
        assert any(set(other.get_xdata()) == {20.0} for other in ax.lines)
    bounds = {float(other.get_ydata()[0]) for ax in axes[3:] for other in ax.lines if other.get_linestyle() == ":"}
    assert bounds == {0.2, 0.6}


def test_map_puts_topics_among_their_genes() -> None:
    generator = np.random.default_rng(0)
    topics = pd.DataFrame(generator.normal(size=(K, 7)), index=NAMES)
    genes = pd.DataFrame(np.repeat(topics.to_numpy(), 5, axis=0), index=[f"g{j}" for j in range(5 * K)])
    genes += 0.01 * generator.normal(size=genes.shape)
    lists = pd.DataFrame({name: [f"g{5 * k}", f"g{5 * k + 3}"] for k, name in enumerate(NAMES)})
    model = SimpleNamespace(
        get_gene_embedding=lambda: genes, get_topic_embedding=lambda: topics, get_top_genes=lambda n: lists[:n]
    )
    axes = pl.topic_map(model, n_genes=2)
    dots, discs = (np.asarray(c.get_offsets()) for c in axes.collections)
    apart = ((dots[:, None] - discs[None]) ** 2).sum(axis=2)
    np.testing.assert_array_equal(apart.argmin(axis=1), np.repeat(np.arange(K), 5))
    named = [t.get_text() for t in axes.texts if t.get_text().startswith("g")]
    assert named == [gene for name in NAMES for gene in lists[name]]
    assert not [t for t in pl.topic_map(model, n_genes=0).texts if t.get_text().startswith("g")]


def enriched(adata: AnnData, rows: list[tuple]) -> AnnData:
    names = ("topic", "term", "overlap", "p_value", "fdr")
    columns = dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else dict.fromkeys(names, ())
    table = {name: np.array(c, dtype=object if name in ("topic", "term") else float) for name, c in columns.items()}
    _record.write(adata, "sce2tm_enrich", _record.Result(method="sce2tm_enrich", uns={"table": table}))
    return adata


def test_enrichment_shows_the_best_sets_of_every_topic(adata: AnnData) -> None:
    rows = [
        ("Topic_1", "A/B", 4, 1e-6, 1e-5),
        ("Topic_1", "C", 3, 1e-4, 1e-3),
        ("Topic_1", "not drawn", 2, 0.01, 0.04),
        ("Topic_3", "C", 2, 1e-3, 1e-2),
        ("Topic_3", "weak", 1, 0.1, 0.5),
    ]
    axes = pl.topic_enrichment(enriched(adata, rows), n_terms=2)
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1", "3"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["A/B", "C"]
    (dots,) = axes.collections
    np.testing.assert_allclose(dots.get_offsets(), [[0, 0], [0, 1], [1, 1]])
    np.testing.assert_allclose(dots.get_array(), [5, 3, 2])
    assert np.argmax(dots.get_sizes()) == 0


def test_nothing_enriched_says_so(adata: AnnData) -> None:
    axes = pl.topic_enrichment(enriched(adata, []))
    assert axes.texts[0].get_text() == "no gene set with an adjusted p-value up to 0.05"


def test_refusals_say_what_to_type(adata: AnnData) -> None:
    with pytest.raises(SetupError, match="Did you mean 'kind'"):
        pl.topic_heatmap(adata, "kinds")
    with pytest.raises(SetupError, match="Did you mean 'Topic_1'"):
        pl.topic_genes(adata, topics=["topic_1"])
    with pytest.raises(SetupError, match="does not exist"):
        pl.topic_heatmap(adata, "kind", "other")
    with pytest.raises(SetupError, match="holds no curve"):
        pl.n_topics_curve(adata, "sce2tm")
    with pytest.raises(SetupError, match="expected a trained"):
        pl.topic_map(adata)
