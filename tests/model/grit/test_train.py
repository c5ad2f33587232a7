"""Registration and fit: what goes in, what is refused, what never changes."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from cellsmith._errors import CellsmithWarning, DataWarning, NotTrainedError, SetupError
from cellsmith.math import graph
from cellsmith.model import GRIT

Cells = Callable[..., AnnData]
Fitted = Callable[..., GRIT]


def accuracy(labels: Any, adata: AnnData) -> float:
    return float((np.asarray(labels, dtype=object) == adata.obs["truth"].to_numpy(dtype=object)).mean())


def test_refinement_repairs_noise_and_says_how(cells: Cells, fit: Fitted) -> None:
    adata = cells()
    model = fit(adata)
    raw = np.array(adata.uns["scores"]["classes"])[adata.obsm["scores"].argmax(axis=1)]
    assert accuracy(model.predict(), adata) > accuracy(raw, adata) + 0.15
    history = {name: table.iloc[:, 0].tolist() for name, table in model.history_.items()}
    assert history["scores/space"] == [0]
    assert history["graph/isolated"] == [0]
    assert history["certify/uncertified"] == [0]
    assert history["calibrate/n"] == [0]
    assert model.summary_["solve"]["solver"] == "lu"
    assert model.summary_["cross_edges"]["refined"] < model.summary_["cross_edges"]["raw"]
    assert model.summary_["flow"].sum() == adata.n_obs


def test_a_named_graph_is_taken_as_scanpy_writes_it(cells: Cells, fit: Fitted) -> None:
    adata = cells()
    adata.obsp["connectivities"] = graph.fuzzy_union(*graph.knn_table(adata.obsm["X_pca"], 14, seed=0))
    adata.uns["neighbors"] = {"connectivities_key": "connectivities", "params": {"n_neighbors": 15}}
    own, given = fit(adata), fit(adata, setup={"neighbors_key": "neighbors"})
    assert own.summary_["graph"]["fingerprint"] == given.summary_["graph"]["fingerprint"]
    np.testing.assert_array_equal(own.get_latent(), given.get_latent())
    assert given.summary_["graph"]["key"] == "connectivities"
    assert own.summary_["graph"]["key"] == ""


def test_a_graph_that_nobody_named_is_not_used(cells: Cells, fit: Fitted) -> None:
    adata = cells()
    expected = fit(adata).get_latent()
    adata.obsp["connectivities"] = sp.eye(adata.n_obs, format="csr")
    adata.uns["neighbors"] = {"connectivities_key": "connectivities", "params": {}}
    np.testing.assert_array_equal(fit(adata).get_latent(), expected)


def test_names_of_graphs(cells: Cells, fit: Fitted) -> None:
    adata = cells()
    adata.obsp["bbknn_connectivities"] = adata.obsp["wnn"] = graph.fuzzy_union(
        *graph.knn_table(adata.obsm["X_pca"], 14, seed=0)
    )
    one, two = (fit(adata, setup={"neighbors_key": key}).get_latent() for key in ("bbknn", "wnn"))
    np.testing.assert_array_equal(one, two)
    with pytest.raises(SetupError, match=r"neighbors_key='wn'.*'wnn'"):
        GRIT.setup_anndata(adata, scores_key="scores", neighbors_key="wn")


def test_a_cell_without_scores_is_filled_by_its_neighbours(cells: Cells, fit: Fitted) -> None:
    adata = cells()
    adata.obsm["scores"][7] = np.nan
    model = fit(adata)
    assert list(model.summary_["filled"]["cells"]) == [7]
    assert model.summary_["filled"]["source"] == "neighbours"
    assert model.predict().notna().all()
    assert model.results().obs["{k}_raw"].isna().sum() == 1
    assert model.predict().iloc[7] == adata.obs["truth"].iloc[7]


def test_a_component_without_scores_stays_missing(cells: Cells, fit: Fitted) -> None:
    adata = cells()
    adata.obsp["g"] = sp.block_diag([np.ones((150, 150)), np.ones((10, 10))]).tocsr()
    adata.obsm["scores"][150:] = np.nan
    with pytest.warns(DataWarning, match=r"10 cells lie in components.*'cell150'"):
        model = fit(adata, setup={"neighbors_key": "g"})
    assert model.predict().iloc[150:].isna().all()
    assert list(model.summary_["missing"]) == list(range(150, 160))
    assert np.isnan(model.results().obs["{k}_confidence"][150:]).all()


@pytest.mark.parametrize("form", ["float16", "int", "bool", "sparse", "frame", "lazy", "categorical", "object"])
def test_every_form_of_scores(form: str, cells: Cells, fit: Fitted) -> None:
    adata = cells()
    hard = np.eye(4)[adata.obsm["scores"].argmax(axis=1)]
    adata.obsm["scores"] = hard
    expected = fit(adata).get_latent()
    frame = pd.DataFrame(hard, index=adata.obs_names, columns=["B", "NK", "T", "mono"])

    class Lazy:
        """What a dask array offers, as far as scores are concerned."""

        shape, ndim, dtype = hard.shape, 2, hard.dtype

        def compute(self) -> np.ndarray:
            return hard

    if form == "lazy":
        from cellsmith.model.grit.inputs import dense

        np.testing.assert_array_equal(dense(Lazy(), where="scores"), hard)
        return
    adata.obsm["scores"] = {
        "float16": hard.astype(np.float16),
        "int": hard.astype(np.int8),
        "bool": hard.astype(bool),
        "sparse": sp.csr_matrix(hard),
        "frame": frame,
        "categorical": frame.astype(int).astype("category"),
        "object": frame.astype(object),
    }[form]
    if form not in ("float16", "int", "bool", "sparse"):
        del adata.uns["scores"]
    np.testing.assert_allclose(fit(adata).get_latent(), expected, atol=1e-6)
    assert fit(adata, dtype="float32").module.solution.dtype.is_floating_point


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.uns.pop("scores"), r"no class names.*classes="),
        (lambda a: a.uns["scores"].update(classes=["a", "b"]), r"2 class names.*4 columns"),
        (lambda a: a.uns["scores"].update(classes=["a", "b", "a", "c"]), r"3 distinct"),
        (lambda a: a.obsm.pop("scores"), r"scores_key='scores'.*not in .obsm"),
        (lambda a: a.obsm.pop("X_pca"), r"use_rep='X_pca'.*sc\.pp\.pca"),
    ],
)
def test_registration_refuses(change: Callable[[AnnData], Any], message: str, cells: Cells) -> None:
    adata = cells()
    change(adata)
    with pytest.raises(SetupError, match=message):
        GRIT.setup_anndata(adata, scores_key="scores")
    assert "_scvi_uuid" not in adata.uns


def test_nearest_columns_are_named(cells: Cells) -> None:
    with pytest.raises(SetupError, match=r"labels_key='thruth'.*Did you mean 'truth'"):
        GRIT.setup_anndata(cells(), scores_key="scores", labels_key="thruth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.obsm["scores"].__setitem__((3, 1), np.nan), r"cell 'cell3', class 'NK' is nan"),
        (lambda a: a.obsm["scores"].__setitem__((5, 0), np.inf), r"cell 'cell5', class 'B' is inf"),
        (lambda a: a.obsm["scores"].__setitem__(slice(None), np.nan), r"nothing but NaN"),
        (lambda a: a.obsm["X_pca"].__setitem__((0, 0), np.nan), r"non-finite rows"),
    ],
)
def test_values_that_are_refused(change: Callable[[AnnData], Any], message: str, cells: Cells, fit: Fitted) -> None:
    adata = cells()
    change(adata)
    with pytest.raises(SetupError, match=message):
        fit(adata)


@pytest.mark.parametrize(
    ("entry", "message"), [(-1.0, "negative"), (np.nan, "not finite"), (None, r"shape \(5, 5\), expected \(160, 160\)")]
)
def test_graphs_that_are_refused(entry: float | None, message: str, cells: Cells) -> None:
    from cellsmith.model.grit.inputs import read_graph

    g = sp.random(160, 160, 0.1, random_state=np.random.default_rng(0), format="csr")
    if entry is None:
        g = sp.eye(5, format="csr")
    else:
        g.data[0] = entry
    with pytest.raises(SetupError, match=message):
        read_graph(g, 160, where="graph")


def test_directed_graphs_and_self_loops_are_mended_with_a_note(cells: Cells, fit: Fitted) -> None:
    adata = cells()
    directed = sp.random(160, 160, 0.1, random_state=np.random.default_rng(0), format="csr") + sp.eye(160)
    adata.obsp["g"] = directed.tocsr()
    before = adata.obsp["g"].copy()
    with pytest.warns(DataWarning, match="directed; the mean"):
        model = fit(adata, setup={"neighbors_key": "g"})
    assert model.summary_["graph"]["directed"]
    assert any("self-loops" in note for note in model.notes_)
    assert (adata.obsp["g"] != before).nnz == 0


def test_similarities_need_a_temperature(cells: Cells, fit: Fitted) -> None:
    adata = cells()
    adata.obsm["scores"] = 2 * adata.obsm["scores"] - 1
    with pytest.raises(SetupError, match=r"score_temperature=0\.05"):
        fit(adata)
    with pytest.warns(DataWarning, match="space='similarity', which was inferred"):
        model = fit(adata, score_temperature=0.05)
    assert model.space_ == "similarity"
    assert fit(adata, space="similarity", score_temperature=1.0).space_ == "similarity"  # typed, so it was meant


def test_named_space_must_fit(cells: Cells, fit: Fitted) -> None:
    adata = cells()
    adata.obsm["scores"] = 5 * adata.obsm["scores"]
    with pytest.raises(SetupError, match=r"space='prob' expects \[0, 1\]"):
        fit(adata, space="prob")


def test_independent_probabilities_are_smoothed_as_they_are(cells: Cells, fit: Fitted) -> None:
    adata = cells()
    adata.obsm["scores"] = 0.2 * adata.obsm["scores"]
    model = fit(adata, space="ovr", laplacian="rw")
    np.testing.assert_allclose(model.get_latent().sum(axis=1), 0.2, atol=1e-5)
    # small stays small, for a threshold too: what is missing from one belongs to none of the classes
    np.testing.assert_allclose(model.results().obs["{k}_confidence"], model.get_latent().max(axis=1), rtol=1e-6)


def test_one_class(cells: Cells, fit: Fitted) -> None:
    adata = cells()
    adata.obsm["scores"], adata.uns["scores"] = np.ones((160, 1)), {"classes": ["T"]}
    with pytest.warns(CellsmithWarning, match="one class, 'T'"):
        model = fit(adata)
    obs = model.results().obs
    assert (obs["{k}_confidence"] == 1).all()
    assert (obs["{k}_entropy"] == 0).all()
    assert set(model.predict()) == {"T"}


def test_a_class_that_is_empty_everywhere(cells: Cells, fit: Fitted) -> None:
    adata = cells()
    adata.obsm["scores"] = np.c_[adata.obsm["scores"], np.zeros(160)]
    adata.uns["scores"] = {"classes": ["B", "NK", "T", "mono", "ghost"]}
    model = fit(adata)
    assert not model.get_latent()[:, 4].any()
    assert model.history_["scores/dropped"].iloc[0, 0] == 1
    assert list(model.predict().cat.categories) == ["B", "NK", "T", "mono", "ghost"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smoothness_weight": -1.0}, "smoothness_weight=-1"),
        ({"smoothness_weight": np.nan}, "smoothness_weight=nan"),
        ({"variant": "paper"}, "no default smoothness_weight"),
        ({"laplacian": "symm"}, "Did you mean 'sym'"),
        ({"solver": "gmres"}, "Valid: 'auto'"),
        ({"score_temperature": 0.0}, "> 0"),
        ({"protect": 1.5}, r"in \[0, 1\)"),
        ({"n_neighbors": 1}, "the cell itself counts"),
        ({"prior_correction": "em"}, r"Valid: '?None'?, 'half'"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], message: str, cells: Cells) -> None:
    adata = cells()
    GRIT.setup_anndata(adata, scores_key="scores")
    with pytest.raises(SetupError, match=message):
        GRIT(adata, **options)


def test_paper_variant_is_the_closed_form(cells: Cells, fit: Fitted) -> None:
    adata = cells()
    adata.obsm["scores"] = np.log(adata.obsm["scores"])
    model = fit(adata, variant="paper", smoothness_weight=0.1)
    a = graph.fuzzy_union(*graph.knn_table(adata.obsm["X_pca"], 14, seed=0))
    expected = np.linalg.solve(np.eye(160) + 0.1 * graph.laplacian(a, "comb").toarray(), adata.obsm["scores"])
    np.testing.assert_allclose(model.get_latent(), expected, atol=1e-4)
    assert (model.predict().cat.codes == expected.argmax(axis=1)).all()
    assert model.space_ == "raw"


@pytest.mark.parametrize("bad", ["missing", [1.0, 2.0], -np.ones(160), np.zeros(160)])
def test_fidelity_that_is_refused(bad: Any, cells: Cells, fit: Fitted) -> None:
    with pytest.raises(SetupError, match=r"fidelity|Valid"):
        fit(cells(), fidelity=bad)


def test_fidelity_from_a_column(cells: Cells, fit: Fitted) -> None:
    adata = cells()
    adata.obs["trust"] = np.linspace(0.1, 3, 160)
    column, array = fit(adata, fidelity="trust"), fit(adata, fidelity=np.linspace(0.1, 3, 160))
    np.testing.assert_array_equal(column.get_latent(), array.get_latent())
    assert np.abs(column.get_latent() - fit(adata).get_latent()).max() > 0.05
    assert np.abs(fit(adata, fidelity="confidence").get_latent() - fit(adata).get_latent()).max() > 0.01


def test_shuffled_labels_change_nothing_unless_registered(cells: Cells, fit: Fitted) -> None:
    adata, other = cells(), cells()
    other.obs["truth"] = np.random.default_rng(0).permutation(other.obs["truth"])
    np.testing.assert_array_equal(fit(adata).get_latent(), fit(other).get_latent())
    held = [fit(a, setup={"labels_key": "truth"}, anchors="clamp").get_latent() for a in (adata, other)]
    assert np.abs(held[0] - held[1]).max() > 0.5


def test_anchors(cells: Cells, fit: Fitted) -> None:
    adata = cells()
    known = np.arange(160) % 2 == 0
    adata.obs["anchor"] = np.where(known, adata.obs["truth"], "unknown")
    split = fit(adata, setup={"labels_key": "anchor"})
    block = split.summary_["calibration"]
    assert len(block["anchors"]) == len(block["clamped"]) == 40
    assert not set(block["anchors"]) & set(block["clamped"])
    assert known[block["anchors"]].all()
    np.testing.assert_allclose(split.get_latent()[block["clamped"]].max(axis=1), 1.0)
    again = fit(adata, setup={"labels_key": "anchor"}, train={"seed": 1}).summary_["calibration"]
    assert set(again["anchors"]) != set(block["anchors"])
    whole = fit(adata, setup={"labels_key": "anchor"}, anchors="calibrate")
    assert whole.summary_["calibration"]["source"] == "anchors"
    assert 0.05 <= whole.summary_["calibration"]["temperature"] <= 5
    np.testing.assert_array_equal(whole.get_latent(), fit(adata).get_latent())


def test_few_anchors_are_all_clamped_with_a_note(cells: Cells, fit: Fitted) -> None:
    adata = cells()
    adata.obs["anchor"] = np.where(np.arange(160) < 20, adata.obs["truth"], "unknown")
    with pytest.warns(CellsmithWarning, match="20 anchors are clamped and none calibrates"):
        model = fit(adata, setup={"labels_key": "anchor"})
    assert len(model.summary_["calibration"]["clamped"]) == 20


def test_labels_outside_the_classes(cells: Cells, fit: Fitted) -> None:
    adata = cells()
    adata.obs["anchor"] = np.where(np.arange(160) < 20, "platelet", adata.obs["truth"])
    with pytest.raises(SetupError, match=r"20 anchors.*\['platelet'\]"):
        fit(adata, setup={"labels_key": "anchor"}, anchors="clamp")
    model = fit(adata, setup={"labels_key": "anchor"})
    assert not set(model.summary_["calibration"]["clamped"]) & set(range(20))
    assert fit(adata, setup={"labels_key": "anchor"}, anchors="calibrate").is_trained


def test_batches_are_reported(cells: Cells, fit: Fitted) -> None:
    adata = cells()
    block = fit(adata, setup={"batch_key": "batch"}).summary_["batches"]
    assert list(block["names"]) == ["a", "b"]
    assert block["n_cells"].sum() == 160
    assert block["flow"].shape == (2, 4, 4)
    np.testing.assert_array_equal(block["flow"].sum(axis=0), fit(adata).summary_["flow"])


def test_nothing_of_the_input_changes_and_nothing_is_printed(cells: Cells, fit: Fitted) -> None:
    adata = cells()
    scores, rep = adata.obsm["scores"].copy(), adata.obsm["X_pca"].copy()
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        model = fit(adata, setup={"batch_key": "batch"})
        model.path((1, 5))
    assert said.getvalue() == ""
    np.testing.assert_array_equal(adata.obsm["scores"], scores)
    np.testing.assert_array_equal(adata.obsm["X_pca"], rep)
    assert set(adata.obsm) == {"scores", "X_pca"}
    assert not [c for c in adata.obs if c.startswith("grit")]


def test_same_seed_same_bits(cells: Cells, fit: Fitted) -> None:
    one, two = (fit(cells(), solver="cg") for _ in range(2))
    np.testing.assert_array_equal(one.get_latent(), two.get_latent())


def test_queries_need_a_fit(cells: Cells) -> None:
    adata = cells()
    GRIT.setup_anndata(adata, scores_key="scores")
    model = GRIT(adata)
    for query in (model.predict, model.get_latent, model.reject, model.write, model.results):
        with pytest.raises(NotTrainedError, match=r"train\(\)"):
            query()
