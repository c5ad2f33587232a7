"""DPDCAN from set-up to a released file: budget, refusals, outputs, hygiene."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch

import cellsmith
from cellsmith._errors import NotTrainedError, PrivacyError, PrivacyWarning, SetupError
from cellsmith.math import privacy
from cellsmith.model import DPDCAN
from cellsmith.model.dpdcan.stepping import PrivateStep

SMALL: dict[str, Any] = {
    "n_clusters": 3,
    "n_components": 8,
    "n_latent": 4,
    "n_hidden": 8,
    "n_steps": 8,
    "dp_pca_fraction": 0.7,
    "unsafe_reproducible": True,
}
QUIET: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False}

pytestmark = pytest.mark.filterwarnings("ignore::cellsmith._errors.PrivacyWarning")


# --- budget -----------------------------------------------------------------------------------------------------------


def test_ledger_holds_what_was_executed_and_fits_the_budget(trained: DPDCAN) -> None:
    said = trained.privacy_report()
    kinds = [(e.stage, e.kind, e.steps) for e in said.events]
    assert kinds == [
        ("pca", "gaussian", 1),
        ("intercept", "gaussian", 1),
        ("instance", "sampled_gaussian", 8),
    ]
    assert said.valid
    assert said.wiring_checked
    assert 4 - 1e-3 <= said.epsilon <= 4
    assert trained.privacy_spent == (said.epsilon, 1e-5)
    assert privacy.compose(said.events, 1e-5) == said.epsilon


def test_an_epoch_is_one_over_the_rate(adata: ad.AnnData, fit: Any) -> None:
    model = fit(adata.copy(), train={"max_epochs": 1})
    assert model.privacy_report().events[-1].steps == 5  # 1 / 0.2


def test_a_second_training_is_refused(trained: DPDCAN) -> None:
    with pytest.raises(PrivacyError, match=r"budget is spent: epsilon 3\.99"):
        trained.train(**QUIET)
    assert trained.is_trained_


def test_an_interrupted_run_keeps_what_it_spent(monkeypatch: pytest.MonkeyPatch, fit: Any, make: Any) -> None:
    true, seen = PrivateStep.__call__, []

    def stops(self, batch):
        if len(seen) == 3:
            raise RuntimeError("power cut")
        seen.append(1)
        true(self, batch)

    monkeypatch.setattr(PrivateStep, "__call__", stops)
    model = None
    original = DPDCAN.__init__

    def keep(self, *args, **kwargs):
        nonlocal model
        original(self, *args, **kwargs)
        model = self

    monkeypatch.setattr(DPDCAN, "__init__", keep)
    with pytest.raises(RuntimeError, match="power cut"):
        fit(make())
    assert [(e.stage, e.steps) for e in model.ledger_.events] == [("pca", 1), ("intercept", 1), ("instance", 3)]
    spent = model.privacy_spent[0]
    assert 0 < spent < 4
    monkeypatch.undo()
    # The rest of the budget may be used; the axes are not paid for a second time.
    model.train(**QUIET)
    assert [e.stage for e in model.ledger_.events] == ["pca", "intercept", "instance", "instance"]
    assert spent < model.privacy_spent[0] <= 4


def test_an_empty_batch_is_a_step_like_any_other(fit: Any, make: Any) -> None:
    model = fit(make())
    ledger = privacy.Ledger(100.0, 1e-5)
    model.privacy_plan.ledger = ledger
    names = [n for n, _ in model.module.named_parameters()]
    step = PrivateStep(
        model.module,
        names,
        plan=model.privacy_plan,
        stage="instance",
        weights={"reconstruction": 0.8, "instance": 0.2},
        noise=np.random.default_rng(0),
        views=torch.Generator(),
    )
    step({"x": torch.zeros(0, 60), "batch": torch.zeros(0, dtype=torch.int64)})
    assert [e.steps for e in ledger.events] == [1]
    gradients = torch.cat([p.grad.flatten() for p in model.module.parameters()])
    plan = model.privacy_plan
    expected = plan.noise_multiplier * plan.clip_norm / (plan.sample_rate * plan.n_units)
    assert float(gradients.std()) == pytest.approx(expected, rel=0.15)


def test_the_model_starts_as_private_pca(monkeypatch: pytest.MonkeyPatch, fit: Any, make: Any) -> None:
    monkeypatch.setattr(PrivateStep, "__call__", lambda self, batch: [p.requires_grad_() for p in ()])
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self, closure=None: None)
    model = fit(make(), n_components=4, n_latent=4)
    oracle = cellsmith.tl.dp_pca(make(), epsilon=0.7 * 4, n_components=4, unsafe_reproducible=True, copy=True)
    np.testing.assert_allclose(model.get_latent_representation(), oracle.obsm["X_dp_pca"], atol=1e-6)


def test_all_of_the_budget_may_go_into_the_axes(fit: Any, make: Any) -> None:
    model = fit(make(), dp_pca_fraction=1.0)
    said = model.privacy_report()
    assert [e.stage for e in said.events] == ["pca"]
    assert said.accountant == "exact"
    assert 4 - 1e-3 <= said.epsilon <= 4
    np.testing.assert_allclose(
        model.get_latent_representation(),
        cellsmith.tl.dp_pca(make(), epsilon=4.0, n_components=4, unsafe_reproducible=True, copy=True).obsm["X_dp_pca"],
        atol=1e-6,
    )


@pytest.mark.parametrize("given", [{"mode": "whole"}, {"mode": "whole", "moments": "dp"}, {"mode": "frozen_decoder"}])
def test_other_sound_modes_fit_their_budget(given: dict, fit: Any, make: Any) -> None:
    model = fit(make(), **given)
    said = model.privacy_report()
    assert said.valid
    assert 4 - 1e-3 <= said.epsilon <= 4
    assert np.isfinite(model.get_latent_representation()).all()


def test_public_cells_cost_nothing(fit: Any, make: Any) -> None:
    public = make()
    model = fit(make(), mode="frozen_decoder", public_adata=public, moments="public", train={"max_epochs": 2})
    assert {e.stage for e in model.privacy_report().events} == {"instance"}


def test_donors_are_units(fit: Any, make: Any) -> None:
    model = fit(make(), setup={"privacy_unit_key": "donor"}, sample_rate=0.5)
    said = model.privacy_report()
    assert said.unit == "donor"
    assert said.n_units == 40
    assert said.adjacency == "add or remove one donor"


def test_private_runs_differ_and_simulations_do_not(trained: DPDCAN, fit: Any, make: Any) -> None:
    np.testing.assert_array_equal(fit(make()).get_latent(), trained.get_latent())
    one, other = (fit(make(), unsafe_reproducible=False, dp_pca_fraction=1.0).get_latent() for _ in range(2))
    assert not np.array_equal(one, other)


def test_cells_and_genes_in_another_order_give_the_same(monkeypatch: pytest.MonkeyPatch, fit: Any, make: Any) -> None:
    from cellsmith.math.privacy import moments

    monkeypatch.setattr(moments, "symmetric_noise", lambda n, sd, generator: np.zeros((n, n)))
    plain = fit(make(), dp_pca_fraction=1.0).get_latent()
    turned = make()[::-1, ::-1].copy()
    np.testing.assert_allclose(fit(turned, dp_pca_fraction=1.0).get_latent()[::-1], plain, atol=1e-5)


class Silent:
    """A generator whose noise is zero, and that draws every unit."""

    def __init__(self) -> None:
        self._numbers = np.random.default_rng(0)

    def standard_normal(self, size: Any = None) -> Any:
        return np.zeros(size if size is not None else ())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._numbers, name)


@pytest.mark.parametrize("given", [{}, {"mode": "whole"}, {"mode": "frozen_decoder"}])
def test_trained_modes_ignore_the_order_of_cells_and_of_genes(
    monkeypatch: pytest.MonkeyPatch, given: dict, fit: Any, make: Any
) -> None:
    monkeypatch.setattr(privacy, "secret_generator", Silent)
    panel = list(make().var_names[3:58])
    settings = {**given, "unsafe_reproducible": False, "sample_rate": 1.0, "mask_rate": 0.0}
    plain, turned = (
        fit(cells, setup={"gene_panel": panel}, **settings).get_latent()
        for cells in (make(), make()[::-1, ::-1].copy())
    )
    np.testing.assert_allclose(turned[::-1], plain, atol=1e-5)


def test_modes_without_a_promise_say_so(fit: Any, make: Any) -> None:
    for mode in ("none", "reference"):
        model = fit(make(), mode=mode, train={"max_epochs": 1})
        said = model.privacy_report()
        assert not said.valid
        assert said.epsilon is None
        assert "No privacy guarantee" in str(said)
        model.write()
        block = model.adata.uns["dpdcan"]["privacy"]
        assert "epsilon" not in block
        assert not block["valid"]
        assert model.privacy_spent == (float("inf"), 1.0)
    assert said.nominal_epsilon > 0  # of the executed steps, for comparison only


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ({"early_stopping": True}, "stopping early looks at private cells"),
        ({"train_size": 0.9}, "validation split"),
        ({"validation_size": 0.1}, "validation split"),
        ({"batch_size": 64}, "the rate is sample_rate"),
        ({"devices": 2}, "one object"),
    ],
)
def test_options_of_training_that_cost_privacy(adata: ad.AnnData, option: dict[str, Any], text: str, fit: Any) -> None:
    DPDCAN.setup_anndata(adata.copy())
    with pytest.raises(PrivacyError, match=text):
        fit(adata.copy(), train=option)


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"target_epsilon": -1.0}, PrivacyError, "expected a number above 0"),
        ({"target_delta": 0.1}, PrivacyError, "at most 0.004"),
        ({"mode": "wholly"}, SetupError, "Did you mean 'whole'"),
        ({"sample_rate": 0.05}, PrivacyError, r"batches of 7\.5.*sample_rate to 0\.11"),
        ({"n_latent": 9}, SetupError, "above n_components=8"),
        ({"n_clusters": None, "cluster_head": "dp"}, PrivacyError, "needs n_clusters"),
        ({"mode": "none", "cluster_head": "dp"}, PrivacyError, "promises nothing"),
        ({"mode": "whole", "moments": "public"}, PrivacyError, "needs public_adata"),
        ({"dp_pca_fraction": 0.999999}, PrivacyError, "too little for this stage"),
        ({"clip_norm": 0.0}, SetupError, "expected a positive number"),
    ],
)
def test_settings_that_keep_no_promise(
    adata: ad.AnnData, given: dict[str, Any], error: type, text: str, fit: Any
) -> None:
    with pytest.raises(error, match=text):
        fit(adata.copy(), **given)


def test_set_up_refuses_before_anything_is_spent(adata: ad.AnnData) -> None:
    picked = adata.copy()
    picked.var["highly_variable"] = True
    with pytest.raises(PrivacyError, match="panel_is_public=True"):
        DPDCAN.setup_anndata(picked)
    lost = adata.copy()
    lost.obs["donor"] = lost.obs["donor"].where(np.arange(150) != 3)
    with pytest.raises(SetupError, match="empty for 1 cells"):
        DPDCAN.setup_anndata(lost, privacy_unit_key="donor")
    with pytest.raises(SetupError, match="2 names more than once"):
        DPDCAN.setup_anndata(adata.copy(), gene_panel=[*adata.var_names, *adata.var_names[:2]])
    with pytest.warns(PrivacyWarning, match="k times epsilon"):
        DPDCAN.setup_anndata(adata.copy())


def test_missing_accountant_is_said_before_data_are_read(monkeypatch: pytest.MonkeyPatch, fit: Any, make: Any) -> None:
    import sys

    from cellsmith._errors import MissingExtraError
    from cellsmith.math.privacy.accounting import _one_step

    _one_step.cache_clear()
    monkeypatch.setitem(sys.modules, "opacus.accountants.analysis.rdp", None)
    with pytest.raises(MissingExtraError, match=r"cellsmith\[privacy\]"):
        fit(make())
    fit(make(), dp_pca_fraction=1.0)  # needs none


# --- outputs ----------------------------------------------------------------------------------------------------------


def test_what_is_written_and_survives_files(trained: DPDCAN, tmp_path: Path) -> None:
    trained.write()
    out = trained.adata
    assert out.obsm["X_dpdcan"].shape == (150, 4)
    assert out.obsm["X_dpdcan"].dtype == np.float32
    np.testing.assert_allclose(out.obsm["dpdcan_proba"].sum(axis=1), 1, rtol=1e-5)
    assert list(out.obs["dpdcan"].cat.categories) == ["0", "1", "2"]
    block = out.uns["dpdcan"]
    assert block["release"] == "local"
    assert not any("loss" in name for name in str(block["provenance"]["histories"]).split("'"))
    out.write_h5ad(tmp_path / "a.h5ad")
    out.write_zarr(tmp_path / "a.zarr")
    for back in (ad.read_h5ad(tmp_path / "a.h5ad"), ad.read_zarr(tmp_path / "a.zarr")):
        assert back.uns["dpdcan"]["privacy"]["statement"] == block["privacy"]["statement"]
        assert back.uns["dpdcan"]["privacy"]["ledger"]["steps"].tolist() == [1, 1, 8]
        assert back.uns["dpdcan"]["privacy"]["valid"]


def test_the_door_writes_the_same(make: Any) -> None:
    adata = make()
    kwargs = {k: v for k, v in SMALL.items() if k != "n_clusters"} | {"gene_panel": 55}
    out = cellsmith.tl.dpdcan(adata, n_clusters=3, model_kwargs=kwargs, train_kwargs=QUIET, copy=True)
    assert out.uns["dpdcan"]["privacy"]["panel_source"].startswith("55 of the var_names")
    with pytest.warns(PrivacyWarning, match=r"bounded by epsilon (5|4\.99)"):
        cellsmith.tl.dp_pca(out, epsilon=1.0)


def test_earlier_results_on_the_same_cells_are_added_up(make: Any) -> None:
    adata = make()
    cellsmith.tl.dp_pca(adata, epsilon=2.0)
    DPDCAN.setup_anndata(adata)
    with pytest.warns(PrivacyWarning, match=r"bounded by epsilon 6 and delta 2e-05"):
        DPDCAN(adata, **SMALL)


def test_labels_cannot_steer_anything(trained: DPDCAN, tmp_path: Path, fit: Any, make: Any) -> None:
    shuffled, without = make(), make()
    shuffled.obs["cell_type"] = shuffled.obs["cell_type"].to_numpy()[::-1]
    del without.obs["cell_type"]
    files = []
    for i, adata in enumerate((make(), shuffled, without)):
        model = fit(adata)
        np.testing.assert_array_equal(model.get_latent(), trained.get_latent())
        model.save(str(tmp_path / str(i)))
        files.append((tmp_path / str(i) / "model.pt").read_bytes())
    assert files[0] == files[1] == files[2]


def test_empty_cells_stay_in_place(fit: Any, make: Any) -> None:
    adata = make()
    x = adata.X.toarray()
    x[7] = 0
    adata.X = x
    model = fit(adata, dp_pca_fraction=1.0)
    model.write()
    np.testing.assert_array_equal(adata.obsm["X_dpdcan"][7], 0)
    assert adata.obs["dpdcan_confidence"].iloc[7] == 0


def test_leiden_where_no_number_of_clusters_is_given(fit: Any, make: Any) -> None:
    model = fit(make(), n_clusters=None, dp_pca_fraction=1.0)
    assert model.predict().notna().all()
    assert model.predict(soft=True).shape[1] == len(model.predict().cat.categories)


def test_centres_that_are_released_are_paid_for(released: DPDCAN, trained: DPDCAN) -> None:
    stages = [e.stage for e in released.privacy_report().events]
    assert stages == ["count", "pca", "intercept", "instance", "kmeans", "kmeans", "cluster", "density"]
    assert 4 - 1e-3 <= released.privacy_spent[0] <= 4
    assert released.cluster_centers().shape == (3, 4)
    with pytest.raises(PrivacyError, match="centres are local"):
        trained.cluster_centers()
    assert trained.cluster_centers(release="local").shape == (3, 4)
    with pytest.raises(PrivacyError, match="not released"):
        trained.get_latent_representation(release="dp")


def test_bought_centres_lie_in_the_axes_above_the_noise(fit: Any, make: Any) -> None:
    model = fit(make(), dp_pca_fraction=1.0, cluster_head="dp", target_epsilon=8.0)
    n_axes = max(2, model.n_above_edge_)
    centers = model.cluster_centers()
    assert n_axes < centers.shape[1]
    np.testing.assert_array_equal(centers[:, n_axes:], 0)
    assert (centers[:, :n_axes] != 0).all()
    assert 8 - 1e-3 <= model.privacy_spent[0] <= 8


def test_clusters_are_promised_only_where_their_centres_were_paid_for(released: DPDCAN, trained: DPDCAN) -> None:
    said = [{g.output: g.guarantee for g in m.privacy_report().guarantees} for m in (released, trained)]
    assert [g["clusters, probabilities of these cells"] for g in said] == ["joint", "local only"]
    assert [g["embeddings of these cells"] for g in said] == ["joint", "joint"]
    before = released.predict(soft=True)
    local, released._local = released._local, None
    try:
        # Nothing local takes part in what is promised.
        np.testing.assert_array_equal(released.predict(soft=True), before)
    finally:
        released._local = local


def test_cells_are_made_from_what_was_paid_for(released: DPDCAN, trained: DPDCAN) -> None:
    out = released.generate(30, library_size=500, batch_size=8)
    assert out.shape == (30, 60)
    assert out.X.dtype.kind == "i"
    assert 100 < float(out.X.sum(axis=1).mean()) < 2000
    assert out.obs["is_synthetic"].all()
    assert out.uns["dpdcan"]["privacy"]["valid"]
    again = released.generate(30, library_size=500, batch_size=8)
    assert (again.X != out.X).nnz == 0
    with pytest.raises(PrivacyError, match="latent_density='gaussian'"):
        trained.generate(3)
    with pytest.raises(SetupError, match="condition names 'cell_type'"):
        released.generate(3, condition={"cell_type": "a"})


def test_the_true_number_of_cells_is_hidden_where_it_was_released(released: DPDCAN, tmp_path: Path) -> None:
    released.save(str(tmp_path / "m"))
    saved = torch.load(tmp_path / "m" / "model.pt", weights_only=False)["attr_dict"]
    assert saved["facts_"]["n_units"] == released.n_units_
    sizes = [f["summary_stats"] for f in saved["registry_"]["field_registries"].values()]
    assert all(150 not in stats.values() for stats in sizes)
    released.write(overwrite=True)
    block = released.adata.uns["dpdcan"]
    assert block["privacy"]["n_units"] != 150
    assert block["privacy"]["n_units"] == pytest.approx(150, abs=120)
    assert block["provenance"]["n_obs"] == round(block["privacy"]["n_units"])


# --- hygiene ----------------------------------------------------------------------------------------------------------


def test_a_saved_file_holds_nothing_private(tmp_path: Path, fit: Any, make: Any) -> None:
    adata = make()
    adata.obs_names = [f"secretcell{i}" for i in range(150)]
    adata.obs["cell_type"] = [f"secretlabel{i % 3}" for i in range(150)]
    x = adata.X.toarray()
    x[11, 13] = 54321
    adata.X = x
    model = fit(adata, setup={"privacy_unit_key": "donor"}, sample_rate=0.5)
    model.save(str(tmp_path / "released"))
    assert sorted(p.name for p in (tmp_path / "released").iterdir()) == ["model.pt"]
    raw = (tmp_path / "released" / "model.pt").read_bytes()
    for marker in (b"secretcell", b"secretlabel", b"donor-1"):
        assert marker not in raw
    for number in (np.float32(54321), np.float64(54321), np.int64(54321), np.int32(54321)):
        assert number.tobytes() not in raw
    saved = torch.load(tmp_path / "released" / "model.pt", weights_only=False)
    assert not {"history_", "local_head_", "train_indices_", "notes_"} & saved["attr_dict"].keys()
    assert saved["attr_dict"].get("train_indices") is None
    # the search can fail
    model.save(str(tmp_path / "kept"), include_local=True, save_anndata=True)
    assert (tmp_path / "kept" / "LOCAL_ONLY").exists()
    assert b"secretcell" in (tmp_path / "kept" / "adata.h5ad").read_bytes()


def test_a_released_model_serves_new_cells_only(trained: DPDCAN, adata: ad.AnnData, tmp_path: Path) -> None:
    trained.save(str(tmp_path / "m"))
    loaded = DPDCAN.load(str(tmp_path / "m"), adata=adata.copy())
    np.testing.assert_allclose(loaded.get_latent(), trained.get_latent(), atol=1e-6)
    with pytest.raises(NotTrainedError, match="stripped"):
        loaded.predict()
    assert loaded.privacy_report().epsilon == trained.privacy_report().epsilon
    assert loaded.privacy_report().valid
    with pytest.raises(PrivacyError, match="budget is spent"):
        loaded.train(**QUIET)
    with pytest.raises(PrivacyError, match="include_local=True as well"):
        trained.save(str(tmp_path / "n"), save_anndata=True)
    trained.save(str(tmp_path / "l"), include_local=True)
    local = DPDCAN.load(str(tmp_path / "l"), adata=adata.copy())
    assert (local.predict() == trained.predict()).all()


def test_an_untrained_model_saves_and_loads(adata: ad.AnnData, tmp_path: Path) -> None:
    data = adata.copy()
    DPDCAN.setup_anndata(data)
    model = DPDCAN(data, **SMALL)
    model.save(str(tmp_path / "m"))
    DPDCAN.load(str(tmp_path / "m"), adata=adata.copy())
    with pytest.raises(NotTrainedError):
        model.get_latent()


def test_mudata_is_read_by_modality(fit: Any, make: Any) -> None:
    import mudata

    mdata = mudata.MuData({"rna": make(), "other": make(150, 70)})
    with pytest.raises(SetupError, match="modalities"):
        DPDCAN.setup_mudata(mdata)
    DPDCAN.setup_mudata(mdata, modalities={"layer": "rna"})
    model = DPDCAN(mdata, **{**SMALL, "dp_pca_fraction": 1.0})
    model.train(**QUIET)
    model.write()
    assert "X_dpdcan" in mdata.mod["rna"].obsm
    np.testing.assert_allclose(model.get_latent(), fit(make(), dp_pca_fraction=1.0).get_latent(), atol=1e-6)
