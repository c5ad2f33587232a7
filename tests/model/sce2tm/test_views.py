"""The external view: its gate, its neighbours, what a guided step does, and that a useless view changes nothing."""

from __future__ import annotations

import warnings
from typing import Any

import mudata
import numpy as np
import pytest
import torch
from anndata import AnnData
from scipy import sparse

from cellsmith._errors import DataWarning, SetupError, SizeError
from cellsmith.datasets import toy_counts
from cellsmith.model import SCE2TM
from cellsmith.model.sce2tm import views

SMALL = {"n_topics": 4, "n_hidden": 16, "n_embedding": 8}
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


@pytest.fixture(scope="module")
def cells() -> AnnData:
    """260 cells with views that know the type, half of it, nothing, and that some cells lack."""
    adata = toy_counts(260, 50, n_types=3)
    generator = np.random.default_rng(0)
    types = adata.obs["cell_type"].cat.codes.to_numpy()
    good = (np.eye(3)[types] + 0.1 * generator.normal(size=(260, 3))).astype(np.float32)
    adata.obsm["good"] = good
    adata.obsm["permuted"] = good[generator.permutation(260)]
    adata.obsm["noise"] = generator.normal(size=(260, 6)).astype(np.float32)
    adata.obsm["half"] = np.where((types == 0)[:, None], generator.normal(size=(260, 3)), good).astype(np.float32)
    adata.obsm["gaps"] = np.where((np.arange(260) % 8 == 0)[:, None], np.nan, good).astype(np.float32)
    adata.obsm["sparse"] = sparse.csr_matrix(np.abs(good))
    adata.obsm["wide"] = np.tile(good, (1, 240))[:, :700]
    adata.obsm["constant"] = np.ones((260, 3), dtype=np.float32)
    return adata


def build(adata: Any, view: str | None, **options: Any) -> SCE2TM:
    SCE2TM.setup_anndata(adata, external_obsm_key=view)
    return SCE2TM(adata, **{**SMALL, **options})


def train(model: SCE2TM, *, epochs: Any = 2, **options: Any) -> SCE2TM:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(max_epochs=epochs, **{**QUIET, "batch_size": 64, **options})
    return model


@pytest.fixture(scope="module")
def unguided(cells: AnnData) -> SCE2TM:
    return train(build(cells, None), epochs=3)


@pytest.fixture(scope="module")
def guided(cells: AnnData) -> SCE2TM:
    return train(build(cells, "good"), epochs=3)


# --- the gate --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", ["noise", "permuted", "constant"])
def test_a_view_of_noise_is_bit_equal_to_no_view(view: str, cells: AnnData, unguided: SCE2TM) -> None:
    model = train(build(cells, view), epochs=3)
    assert model.get_view_quality()["q"] == 0.0
    assert model.module.head is None
    assert [s.name for s in model.stages()] == ["index", "topics", "order"]
    own, other = model.module.state_dict(), unguided.module.state_dict()
    assert own.keys() == other.keys()
    assert all(torch.equal(own[k], other[k]) for k in own)
    assert np.array_equal(model.get_latent(), unguided.get_latent())


def test_a_view_that_knows_the_types_gets_a_weight_and_half_of_one_less(cells: AnnData, guided: SCE2TM) -> None:
    good = guided.get_view_quality()
    half = train(build(cells, "half"), epochs=1).get_view_quality()
    assert good["q"] > 0.4
    assert 0 < half["q"] < good["q"]
    assert good["null"] < good["explained"] <= 1
    assert good["ceiling"] > good["null"] + 3 * good["null_sd"]
    assert {"topics/train_loss", "guide/train_cross"} <= set(guided.history_)


@pytest.mark.parametrize(("gate", "q"), [("off", 1.0), (0.3, 0.3), (0.0, 0.0)])
def test_a_gate_may_be_given(gate: Any, q: float, cells: AnnData) -> None:
    model = train(build(cells, "good", view_gate=gate), epochs=1)
    assert model.get_view_quality()["q"] == q
    assert (model.module.head is None) == (q == 0.0)


def test_overlap_is_the_other_gate(cells: AnnData) -> None:
    q = {v: train(build(cells, v, view_gate="overlap"), epochs=1).get_view_quality() for v in ("good", "noise")}
    assert q["good"]["q"] == q["good"]["overlap"] > 0
    assert q["noise"]["q"] == 0.0


def test_cells_without_a_view_keep_every_other_term(cells: AnnData) -> None:
    model = train(build(cells, "gaps"), epochs=2)
    assert model.get_view_quality()["n_cells"] < len(model.train_indices)
    assert 0 < model.get_view_quality()["q"] <= 1
    assert np.isfinite(model.get_latent()).all()
    assert any("no external view" in note for note in model.notes_)


@pytest.mark.parametrize("view", ["sparse", "wide", "good"])
@pytest.mark.parametrize("variant", ["default", "paper"])
def test_views_of_any_width_and_form_train(view: str, variant: str, cells: AnnData) -> None:
    """F5: three columns and seven hundred."""
    model = train(build(cells, view, variant=variant), epochs=1)
    assert model.module.head.first.weight.shape[1] == cells.obsm[view].shape[1]
    assert np.isfinite(model.get_latent()).all()


def test_the_guard_halves_a_view_that_costs_reconstruction() -> None:
    with torch.random.fork_rng():
        module = SCE2TM._module_cls(20, n_all_genes=20, n_topics=3, n_hidden=4, n_embedding=4, n_view=2)
    module.view_weight.fill_(0.8)
    module.reference_loss.fill_(100.0)
    for _ in range(4):
        module.guard_view({"reconstruction": 102.0})
    module.guard_view({"reconstruction": 100.5})  # within 1 %: the count starts anew
    assert float(module.view_weight) == pytest.approx(0.8)
    seen = []
    for _ in range(25):
        module.guard_view({"reconstruction": 102.0})
        seen.append(float(module.view_weight))
    assert seen[4::5] == pytest.approx([0.4, 0.2, 0.1, 0.0, 0.0])
    assert len(module.halvings) == 4


# --- neighbours ------------------------------------------------------------------------------------------------------


def tables(model: SCE2TM, how: str) -> tuple[np.ndarray, np.ndarray]:
    from cellsmith._rng import Streams
    from cellsmith.data.splits import CellReader

    model._reader = CellReader(model.adata_manager)
    cells, rows = model._cut_cells(), model.train_indices
    view = np.asarray(model.adata.obsm["good"])
    found = views._Tables(cells, rows, rows, view, n_neighbors=15, streams=Streams(0))
    model._reader = None
    return getattr(found, how)()


def test_neighbors_are_other_cells_and_the_published_lists_keep_the_cell(guided: SCE2TM) -> None:
    inside = np.zeros(260, dtype=bool)
    inside[guided.train_indices] = True
    for table in tables(guided, "mutual"):
        assert (table != np.arange(260)[:, None]).all()
        assert (table[~inside] == -1).all()
        assert ((table[inside] >= 0).sum(axis=1) >= 3).all()
        assert inside[table[table >= 0]].all()
    for table in tables(guided, "published"):
        assert (table[inside, 0] == np.flatnonzero(inside)).all()


def test_scores_are_those_of_a_dense_decomposition() -> None:
    generator = np.random.default_rng(0)
    x = sparse.random(60, 20, density=0.4, random_state=0, format="csr", dtype=np.float64)
    groups = generator.integers(2, size=60)
    dense = x.toarray()
    for level in (0, 1):
        dense[groups == level] -= dense[groups == level].mean(axis=0)
    u, s, _ = np.linalg.svd(dense, full_matrices=False)
    scores = views.pca_scores(x, 5, groups=groups)
    np.testing.assert_allclose(np.abs(scores), np.abs(u[:, :5] * s[:5]), atol=1e-8)


# --- a guided step ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "view", "passes"), [("default", None, 1), ("default", "good", 1), ("paper", "good", 3)]
)
def test_passes_of_a_step(variant: str, view: str | None, passes: int, cells: AnnData) -> None:
    """One call of the encoder a step, over cells and neighbours together; the public code makes three."""
    model, rows = build(cells, view, variant=variant), []
    model_class = type(model.module.encoder)
    own = model_class.forward

    def spy(encoder: Any, x: torch.Tensor) -> Any:
        if encoder.training:
            rows.append(len(x))
        return own(encoder, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_class, "forward", spy)
        train(model, epochs=1, train_size=1.0, batch_size=260)
    last = rows[-passes:]
    assert last == {None: [260], "good": [520] if variant == "default" else [260, 260, 260]}[view]
    assert len(rows) == passes * (2 if (variant, view) == ("default", "good") else 1)


def test_cross_view_weight_counts_once(guided: SCE2TM) -> None:
    """F5: the term enters with its weight and the gate, and the monitor leaves it out."""
    module = guided.module
    batch = _pairs(guided)
    module.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = module.loss_guide(batch, weights={"cross": 1.0})
        torch.manual_seed(0)
        double = module.loss_guide(batch, weights={"cross": 2.0})
    torch.testing.assert_close(double.loss - base.loss, base.extra_metrics["cross"], rtol=1e-3, atol=1e-3)
    module.eval()
    assert "cross" not in module.loss_guide(batch, weights={}).extra_metrics


def _pairs(model: SCE2TM) -> dict[str, torch.Tensor]:
    from cellsmith.data.splits import CellReader
    from cellsmith.model.sce2tm.cells import Neighbors

    model._reader = CellReader(model.adata_manager)
    cells = model._cut_cells()
    model._reader = None
    own, other = tables(model, "mutual")
    view = np.asarray(model.adata.obsm["good"])
    cells.neighbors = Neighbors(own, other, view=view, generator=np.random.default_rng(0))
    return cells[model.train_indices[:80]]


def test_queries_need_no_view(guided: SCE2TM, cells: AnnData, tmp_path: Any) -> None:
    """F15: neighbours and the view are read in training only."""
    plain = AnnData(cells.X.copy(), obs=cells.obs[[]].copy(), var=cells.var.copy())
    np.testing.assert_allclose(guided.get_latent(plain), guided.get_latent(), atol=1e-6)
    guided.save(tmp_path / "model", overwrite=True)
    loaded = SCE2TM.load(tmp_path / "model", adata=cells)
    assert np.array_equal(loaded.get_latent(), guided.get_latent())
    assert loaded.get_view_quality().equals(guided.get_view_quality())
    without = SCE2TM.load(tmp_path / "model", adata=plain)
    np.testing.assert_allclose(without.get_latent(), guided.get_latent(), atol=1e-6)
    few = SCE2TM.load(tmp_path / "model", adata=plain[:3].copy())
    np.testing.assert_allclose(few.get_latent(), guided.get_latent()[:3], atol=1e-6)
    with pytest.raises(SetupError, match=r"is not in .obsm"):
        without.train(max_epochs=1, **QUIET)


def test_a_view_that_is_worth_nothing_at_a_second_training_leaves_a_model_that_loads(
    cells: AnnData, tmp_path: Any
) -> None:
    adata = AnnData(cells.X.copy(), obs=cells.obs[[]].copy(), var=cells.var.copy(), obsm={"v": cells.obsm["good"]})
    model = train(build(adata, "v", view_gate=1.0), epochs=1)
    assert model.module.head is not None
    adata.obsm["v"] = np.ones_like(adata.obsm["v"])
    train(model, epochs=1)
    model.save(tmp_path / "model")
    loaded = SCE2TM.load(tmp_path / "model", adata=adata)
    assert np.array_equal(loaded.get_latent(), model.get_latent())


# --- what is refused -------------------------------------------------------------------------------------------------


def refused(adata: AnnData, change: Any, error: type[Exception], words: str) -> None:
    broken = AnnData(adata.X, obs=adata.obs, var=adata.var)
    broken.obsm["v"] = change(np.array(adata.obsm["good"]))
    with pytest.raises(error, match=words):
        SCE2TM.setup_anndata(broken, external_obsm_key="v")
    assert "_scvi_uuid" not in broken.uns


def test_views_that_cannot_guide_are_refused(cells: AnnData) -> None:
    with pytest.raises(SetupError, match=r"'god' is not in .obsm. Did you mean 'good'"):
        build(cells, "god")
    refused(cells, lambda v: np.where(v == v[0, 0], np.inf, v), SetupError, "infinite")
    refused(cells, lambda v: v * np.nan, SetupError, "0 of 260 cells have the external view")
    refused(cells, lambda v: np.where(np.arange(260)[:, None] < 100, np.nan, v), SetupError, "160 of 260.*at least 200")


def test_a_constant_view_is_named(cells: AnnData) -> None:
    with pytest.warns(DataWarning, match="same for all cells"):
        build(cells, "constant").train(max_epochs=1, **QUIET)


@pytest.mark.parametrize("key", ["embedding", "X"])
def test_another_modality_may_be_the_view(key: str, cells: AnnData) -> None:
    protein = AnnData(np.array(cells.obsm["good"]), obs=cells.obs[[]].copy())
    protein.obsm["embedding"] = np.array(cells.obsm["good"])
    rna = AnnData(cells.X.copy(), obs=cells.obs[[]].copy(), var=cells.var[[]].copy())
    mdata = mudata.MuData({"rna": rna, "protein": protein})
    place = {"layer": "rna", "external_obsm_key": "protein"}
    SCE2TM.setup_mudata(mdata, external_obsm_key=key, modalities=place)
    model = train(SCE2TM(mdata, **SMALL), epochs=1)
    assert model.get_view_quality()["q"] > 0.4
    model.write()
    assert mdata.mod["rna"].obsm["X_sce2tm"].shape == (260, 4)
    assert "X_sce2tm" not in mdata.mod["protein"].obsm
    with pytest.raises(SetupError, match="modalities=None"):
        SCE2TM.setup_mudata(mdata)
    with pytest.raises(SetupError, match="lacks 'layer'"):
        SCE2TM.setup_mudata(mdata, modalities={})


def test_a_modality_too_wide_names_its_size(cells: AnnData) -> None:
    wide = AnnData(sparse.csr_matrix((260, 2001), dtype=np.float32), obs=cells.obs[[]].copy())
    rna = AnnData(cells.X.copy(), obs=cells.obs[[]].copy(), var=cells.var[[]].copy())
    mdata = mudata.MuData({"rna": rna, "wide": wide})
    with pytest.raises(SizeError, match=r"260 x 2,001 numbers \(2,081,040 bytes\)"):
        SCE2TM.setup_mudata(mdata, external_obsm_key="X", modalities={"layer": "rna", "external_obsm_key": "wide"})
