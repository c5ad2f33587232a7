"""``distill``: step 0, variants, allocation, identity of seeds, provenance of source cells."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import anndata
import numpy as np
import pytest
import scvi
import torch
from anndata import AnnData

from cellsmith import tl
from cellsmith._errors import DataWarning, NotTrainedError, SetupError, SizeError
from cellsmith._rng import Streams
from cellsmith.math import matching
from cellsmith.model import SCDD
from cellsmith.model.scdd import distillation
from cellsmith.model.scdd.judging import READERS

Cells = Callable[..., AnnData]
Fit = Callable[..., SCDD]


def codes(adata: AnnData) -> np.ndarray:
    return adata.obs["cell_type"].cat.codes.to_numpy()


@pytest.mark.parametrize("profile", ["mean_log", "sum"])
def test_step_zero_is_the_metacell(model: SCDD, profile: str) -> None:
    source = model.adata
    made = model.distill(3, max_steps=0, library_size="sum", profile=profile)
    scale = matching.target_sum(source.n_vars)
    groups = matching.metacell_groups(source.X, codes(source), [3, 3, 3], scale=scale, streams=Streams(0))
    p, total = matching.group_profiles(source.X, groups, summary=profile, scale=scale)
    np.testing.assert_array_equal(made.X.toarray(), matching.round_profiles(p * total[:, None]))
    np.testing.assert_array_equal(made.uns["scdd"]["assignment"], groups)
    if profile == "sum":
        np.testing.assert_array_equal(made.X.toarray(), matching.metacell_sums(source.X, groups).toarray())
        for k in range(3):
            rows = made.X.toarray()[codes(made) == k]
            np.testing.assert_array_equal(rows.sum(axis=0), source.X.toarray()[codes(source) == k].sum(axis=0))
    else:
        means = matching.metacell_log_means(source.X, groups, scale=scale).toarray()
        np.testing.assert_allclose(made.layers["scdd_log"], means, atol=1e-5)
        share = made.layers["scdd_expected"] / made.obs["scdd_library"].to_numpy()[:, None]
        np.testing.assert_allclose(np.log1p(scale * share), means, atol=1e-4)
        assert np.all(share.sum(axis=1) <= 1.0)


@pytest.mark.parametrize("summary", ["mean_log", "sum"])
def test_step_zero_is_what_sketch_makes(model: SCDD, summary: str) -> None:
    made = model.distill(2, max_steps=0, library_size="sum", profile=summary)
    sketch = tl.sketch(model.adata, "cell_type", 2, method="metacell", rng=0, method_kwargs={"summary": summary})
    np.testing.assert_array_equal(made.X.toarray(), sketch.X.toarray())


def test_default_never_falls_behind_its_step_zero_on_held_out_cells(model: SCDD) -> None:
    made = model.distill(1, objective="readers", max_steps=50)
    selection = made.uns["scdd"]["selection"]
    position = selection["step"].tolist().index(made.uns["scdd"]["selected_step"])
    for reader in READERS:
        assert selection[f"{reader}_errors"][position] <= selection[f"{reader}_errors"][0]
    if position == 0:
        np.testing.assert_array_equal(made.X.toarray(), model.distill(1, max_steps=0).X.toarray())


def test_optimisation_moves_profiles(model: SCDD, small: AnnData) -> None:
    last = model.distill(2, objective="readers", max_steps=25, selection="last")
    start = model.distill(2, max_steps=0)
    assert last.uns["scdd"]["selected_step"] == 25
    assert np.abs(last.layers["scdd_log"] - start.layers["scdd_log"]).max() > 1e-3
    part = model.distill(2, objective="gradient", max_steps=25, refit=False)
    assert part.uns["scdd"]["selected_step"] in (0, 25)


def test_nothing_is_optimised_unless_asked_for(model: SCDD) -> None:
    made = model.distill(2)
    block = made.uns["scdd"]
    assert (block["selected_step"], len(block["params"]["objective"]), block["params"]["max_steps"]) == (0, 0, 0)
    assert "selection" not in block
    np.testing.assert_array_equal(made.X.toarray(), model.distill(2, objective="readers", max_steps=0).X.toarray())


def test_readers_lose_less_with_every_part_of_the_run(model: SCDD) -> None:
    made = model.distill(1, objective="readers", max_steps=50, selection="last")
    loss = made.uns["scdd"]["loss"]
    assert set(loss) == {"readers", "penalty"}
    assert loss["readers"][1] < loss["readers"][0]


def test_paper_variant_keeps_the_outline(model: SCDD) -> None:
    made = model.distill(2, variant="paper", max_steps=5)
    block = made.uns["scdd"]
    assert block["codes_only"]
    assert block["variant"] == "paper"
    assert "selection" not in block
    assert block["selected_step"] == 5
    assert set(np.unique(made.obsm["scdd_proba"])) == {0.0, 1.0}
    params = block["params"]
    assert (params["init"], params["selection"], params["residual"]) == ("random", "last", False)
    assert list(params["objective"]) == ["gradient", "distribution"]
    mixed = model.distill(2, variant="paper", residual=True, max_steps=0)
    assert not mixed.uns["scdd"]["codes_only"]


@pytest.mark.parametrize("init", ["real", "random"])
@pytest.mark.parametrize("residual", [True, False])
def test_other_starts_give_finite_profiles(model: SCDD, init: str, residual: bool) -> None:
    made = model.distill(2, init=init, residual=residual, objective="readers", max_steps=3, selection="last")
    assert np.isfinite(made.layers["scdd_log"]).all()
    assert made.X.sum() > 0


def test_codes_only_profiles_are_those_of_the_generator(model: SCDD) -> None:
    made = model.distill(2, residual=False, max_steps=0, soft_labels=False)
    shares = made.layers["scdd_expected"] / made.layers["scdd_expected"].sum(axis=1, keepdims=True)
    batch = [model.batches[b] for b in (0, 1)]
    decoded = np.stack([model.decode(made.obsm["X_scdd"], batch=b) for b in batch])
    gap = np.abs(decoded - shares[None]).max(axis=2).min(axis=0)
    assert gap.max() < 1e-5


def test_equal_seeds_give_equal_counts_and_global_generators_stay(model: SCDD, small: AnnData) -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    again = model.distill(2, objective="readers", max_steps=25, weights={"residual_weight": 0.0})
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert (again.X != small.X).nnz == 0
    np.testing.assert_array_equal(again.obsm["scdd_code"], small.obsm["scdd_code"])
    other = model.distill(2, max_steps=0, seed=1)
    assert (other.X != model.distill(2, max_steps=0).X).nnz > 0


def test_weights_count_all_cells_and_assignment_covers_them(model: SCDD, small: AnnData) -> None:
    source, block = model.adata, small.uns["scdd"]
    assert small.obs["scdd_weight"].sum() == pytest.approx(source.n_obs)
    assert int(small.obs["scdd_n_source_cells"].sum()) == source.n_obs
    assert block["assignment"].dtype == np.int32
    np.testing.assert_array_equal(codes(small)[block["assignment"]], codes(source))
    nearest = block["source_index"]
    assert nearest.shape == (6, 5)
    np.testing.assert_array_equal(codes(source)[nearest], np.repeat(codes(small)[:, None], 5, axis=1))


def test_source_is_not_touched(model: SCDD) -> None:
    before = model.adata.copy()
    model.distill(1, max_steps=0)
    assert list(before.obs) == list(model.adata.obs)
    assert set(before.uns) == set(model.adata.uns)
    assert set(before.obsm) == set(model.adata.obsm)
    assert (before.X != model.adata.X).nnz == 0
    assert all(p.requires_grad for p in model.module.parameters())


def test_shape_types_and_columns(model: SCDD, small: AnnData) -> None:
    source = model.adata
    assert small.X.dtype == np.int32
    assert small.var_names.equals(source.var_names)
    assert small.obs["cell_type"].cat.categories.tolist() == source.obs["cell_type"].cat.categories.tolist()
    assert "batch" not in small.obs
    np.testing.assert_array_equal(small.uns["cell_type_colors"], source.uns["cell_type_colors"])
    assert (small.layers["counts"] != small.X).nnz == 0
    np.testing.assert_allclose(small.obsm["scdd_proba"].sum(axis=1), 1.0)
    own = small.obsm["scdd_proba"][np.arange(6), codes(small)]
    np.testing.assert_allclose(small.obs["scdd_confidence"], own)
    assert np.all(small.obs["is_synthetic"])
    residue = np.abs(small.X.toarray() - small.layers["scdd_expected"])
    assert residue.max() < 1 + 1e-3


def test_within_batch_makes_strata_and_skips_empty_ones(cells: Cells, fitted: Fit) -> None:
    adata = cells(120)
    adata = adata[~((adata.obs["cell_type"] == "type_2") & (adata.obs["batch"] == "batch_1"))].copy()
    made = fitted(adata).distill(2, within_batch=True, max_steps=0)
    table = made.obs.groupby(["cell_type", "batch"], observed=False).size()
    assert table[("type_0", "batch_1")] == 2
    assert table[("type_2", "batch_1")] == 0
    np.testing.assert_array_equal(
        made.obs["batch"].to_numpy()[made.uns["scdd"]["assignment"]], adata.obs["batch"].to_numpy()
    )
    assert made.uns["scdd"]["empty_strata"]["batch"].tolist() == ["batch_1"]
    assert made.obs["scdd_weight"].sum() == pytest.approx(adata.n_obs)


def test_unlabelled_cells_train_the_autoencoder_and_stand_in_no_profile(cells: Cells, fitted: Fit) -> None:
    adata = cells(120)
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.add_categories(["unknown"])
    adata.obs.loc[adata.obs_names[:7], "cell_type"] = np.nan
    adata.obs.loc[adata.obs_names[7:10], "cell_type"] = "unknown"
    made = fitted(adata, setup={"unlabeled_category": "unknown"}).distill(1, max_steps=0)
    assert made.uns["scdd"]["assignment"][:10].tolist() == [-1] * 10
    assert made.uns["scdd"]["n_unlabelled"] == 10
    assert int(made.obs["scdd_n_source_cells"].sum()) == 110


def test_class_of_one_cell_is_that_cell_and_large_requests_are_capped(cells: Cells, fitted: Fit) -> None:
    adata = cells(120)
    names = adata.obs["cell_type"].astype(str).to_numpy()
    names[5] = "rare"
    adata.obs["cell_type"] = names
    model = fitted(adata)
    with pytest.warns(DataWarning, match=r"'rare' with 1 cells for 2 profiles"):
        made = model.distill(2, objective="readers", max_steps=2, library_size="sum", profile="sum")
    rare = made[made.obs["cell_type"] == "rare"]
    assert rare.n_obs == 1
    np.testing.assert_array_equal(rare.uns["scdd"]["capped"]["class"], ["rare"])
    start = model.distill({"rare": 1, "type_0": 1}, max_steps=0, library_size="sum", profile="sum")
    assert start.obs["cell_type"].tolist() == ["rare", "type_0"]
    np.testing.assert_array_equal(start.X.toarray()[0], adata.X.toarray()[5])
    others = np.isin(names, ["type_1", "type_2"])
    assert set(start.uns["scdd"]["assignment"][others]) == {-1}


@pytest.mark.parametrize("allocation", ["equal", "proportional", "sqrt"])
def test_ratio_is_met_exactly(model: SCDD, allocation: str) -> None:
    made = model.distill(None, ratio=0.1, allocation=allocation, max_steps=0, soft_labels=False)
    assert made.n_obs == 12
    sizes = made.obs["cell_type"].value_counts(sort=False).to_numpy()
    assert (np.ptp(sizes) == 0) == (allocation == "equal")


def test_test_split_and_permuted_test_labels_do_not_reach_the_result(cells: Cells, fitted: Fit) -> None:
    made = []
    for shuffle in (False, True):
        adata = cells(120)
        model = fitted(adata, train={"max_epochs": 1, "train_size": 0.7, "validation_size": 0.1})
        test = model.test_indices
        if shuffle:
            values = adata.obs["cell_type"].to_numpy().copy()
            values[test] = np.roll(values[test], 1)
            fresh = cells(120)
            fresh.obs["cell_type"] = values
            fresh.obs["cell_type"] = fresh.obs["cell_type"].astype(adata.obs["cell_type"].dtype)
            model = fitted(fresh, train={"max_epochs": 1, "train_size": 0.7, "validation_size": 0.1})
            np.testing.assert_array_equal(model.test_indices, test)
        made.append(model.distill(2, objective=("gradient", "distribution"), max_steps=3))
    assert set(made[0].uns["scdd"]["assignment"][test]) == {-1}
    assert (made[0].X != made[1].X).nnz == 0
    np.testing.assert_array_equal(made[0].obsm["scdd_code"], made[1].obsm["scdd_code"])


def test_renaming_classes_changes_names_alone(model: SCDD, cells: Cells, fitted: Fit) -> None:
    adata = cells()
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories(["x", "y", "z"])
    other = fitted(adata, setup={"layer": "counts"}, train={"max_epochs": {"autoencoder": 20, "generator": 40}})
    a, b = (m.distill(2, objective="readers", max_steps=3) for m in (model, other))
    assert (a.X != b.X).nnz == 0
    assert set(b.obs["cell_type"]) == {"x", "y", "z"}


def test_changed_training_labels_do_change_the_result(model: SCDD, cells: Cells, fitted: Fit) -> None:
    adata = cells()
    adata.obs["cell_type"] = np.random.default_rng(0).permutation(adata.obs["cell_type"].to_numpy())
    shuffled = fitted(adata).distill(1, max_steps=0)
    real = model.distill(1, max_steps=0)
    spread = lambda a: np.std(a.layers["scdd_log"], axis=0).mean()
    assert spread(shuffled) < 0.5 * spread(real)


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_result_survives_a_file(form: str, small: AnnData, tmp_path: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        getattr(small, f"write_{form}")(tmp_path / f"a.{form}")
        back = getattr(anndata, f"read_{form}")(tmp_path / f"a.{form}")
    assert (back.X != small.X).nnz == 0
    assert set(back.uns["scdd"]) == set(small.uns["scdd"])
    for name in ("source_index", "assignment", "inversion"):
        np.testing.assert_array_equal(back.uns["scdd"][name], small.uns["scdd"][name])
    for name in small.obsm:
        np.testing.assert_array_equal(back.obsm[name], small.obsm[name])
    assert back.obs["cell_type"].tolist() == small.obs["cell_type"].tolist()


def test_scanpy_runs_on_the_result(model: SCDD) -> None:
    import scanpy as sc

    made = model.distill(6, max_steps=0)
    sc.pp.normalize_total(made)
    sc.pp.log1p(made)
    sc.pp.pca(made, n_comps=5)
    sc.tl.rank_genes_groups(made, "cell_type", method="wilcoxon")
    assert "rank_genes_groups" in made.uns
    scvi.model.SCVI.setup_anndata(model.distill(2, max_steps=0), layer="counts", labels_key="cell_type")


def test_profiles_that_would_not_fit_are_refused_with_their_size(model: SCDD, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distillation, "MAX_ENTRIES", 100)
    with pytest.raises(SizeError, match="6 profiles x 30 genes"):
        model.distill(2, max_steps=0)


def test_every_objective_and_space_runs_and_several_generator_steps(model: SCDD) -> None:
    for kwargs in (
        {"objective": "gradient"},
        {"objective": ("distribution",), "n_generator_steps": 2},
        {"objective": ("readers", "gradient", "distribution"), "prototype_space": "latent", "network_queue": 2},
    ):
        made = model.distill(2, max_steps=2, selection="last", **kwargs)
        assert np.isfinite(made.layers["scdd_log"]).all()
    assert set(made.uns["scdd"]["loss"]) >= {"readers", "gradient", "distribution", "queue", "separation", "penalty"}


def test_distilling_needs_training_and_cells(cells: Cells) -> None:
    adata = cells(60)
    SCDD.setup_anndata(adata, labels_key="cell_type")
    model = SCDD(adata, n_latent=4, n_hidden=16, n_denoiser_hidden=16)
    for query in (model.distill, model.generate, model.get_generator_response, model.get_latent):
        with pytest.raises(NotTrainedError, match="train"):
            query()


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"ratio": 0.1}, "both are given"),
        ({"n_per_class": None}, "neither is given"),
        ({"n_per_class": None, "ratio": 1.5}, "at most 1"),
        ({"n_per_class": 0}, "positive numbers"),
        ({"n_per_class": {"type_9": 1}}, "Did you mean"),
        ({"weights": {"gradient_wieght": 1}}, "gradient_weight"),
        ({"objective": ("gradients",)}, "gradient"),
        ({"objective": "reader"}, "readers"),
        ({"max_steps": 5}, "without an objective"),
        ({"variant": "papers"}, "paper"),
        ({"init": "prototypes"}, "prototype"),
        ({"profile": "mean"}, "mean_log"),
        ({"allocation": "squrt"}, "sqrt"),
        ({"library_size": "deeep"}, "deep"),
        ({"library_size": [10.0, 10.0]}, "expected one number or 3"),
        ({"library_size": -1}, "positive finite"),
        ({"sigma_star": 0}, "from 0.02 to 20"),
        ({"key_added": "a/b"}, "slash"),
    ],
)
def test_impossible_requests_are_refused(model: SCDD, kwargs: dict[str, Any], match: str) -> None:
    with pytest.raises(SetupError, match=match):
        model.distill(**{"n_per_class": 1, **kwargs})


def test_cells_in_a_file_are_read_block_by_block(cells: Cells, fitted: Fit, tmp_path, monkeypatch) -> None:
    """The same profiles as from memory; unlabelled cells lie between, and no read takes more than a block."""
    from cellsmith.math.counts import validation
    from cellsmith.math.matching import grouping
    from cellsmith.model.scdd.profiles import StoredRows

    adata = cells(150, 20)
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(object)
    adata.obs.loc[adata.obs_names[::7], "cell_type"] = np.nan
    adata.write_h5ad(tmp_path / "cells.h5ad")
    kept, read = StoredRows.__getitem__, []

    def watched(self, part):
        rows = kept(self, part)
        read.append(rows.shape[0])
        return rows

    monkeypatch.setattr(StoredRows, "__getitem__", watched)
    monkeypatch.setattr(grouping, "WHOLE_CELLS", 50)
    monkeypatch.setattr(grouping, "ROWS_AT_ONCE", 40)
    monkeypatch.setattr(validation, "_BLOCK", 40 * 20)
    made = [fitted(x).distill(3) for x in (adata, anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r"))]
    assert 0 < max(read) <= 40
    np.testing.assert_array_equal(made[0].X.toarray(), made[1].X.toarray())
    np.testing.assert_allclose(made[0].obsm["scdd_proba"], made[1].obsm["scdd_proba"], atol=1e-6)
    np.testing.assert_array_equal(made[0].uns["scdd"]["assignment"], made[1].uns["scdd"]["assignment"])
