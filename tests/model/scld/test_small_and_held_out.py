"""Cells that were set aside stay aside, and a small category keeps its own cells."""

from __future__ import annotations

import numpy as np
import pytest

from cellsmith._errors import SetupError
from cellsmith.datasets import toy_counts
from cellsmith.model import SCLD


@pytest.fixture(scope="module")
def adata():
    cells = toy_counts(n_cells=200, n_genes=40, n_types=2, rng=0)
    labels = np.array(["common"] * 200, dtype=object)
    labels[:60] = "other"
    labels[60:64] = "rare"
    cells.obs["kind"] = labels
    # The rare cells exist in one batch only, so that asking for the other one needs a neighbour.
    cells.obs["lane"] = np.where(np.arange(200) % 2 == 0, "a", "b")
    cells.obs.loc[cells.obs_names[60:64], "lane"] = "a"
    return cells


@pytest.fixture(scope="module")
def model(adata) -> SCLD:
    cells = adata.copy()
    SCLD.setup_anndata(cells, labels_key="kind", batch_key="lane")
    trained = SCLD(cells, n_diffusion_steps=100)
    trained.train(max_epochs=1, train_size=0.7, validation_size=0.1, enable_progress_bar=False, accelerator="cpu")
    return trained


def test_cells_of_the_test_split_take_part_in_nothing_that_generation_reads(model: SCLD) -> None:
    kept = 200 - len(model.test_indices)
    assert len(model.test_indices) > 30
    assert {len(v) for v in model.training_rows_.values()} == {kept}
    assert len(model.training_states()["w"]) == kept
    assert model.generate().n_obs == kept


def test_small_category_is_perturbed_from_its_own_cells(model: SCLD) -> None:
    states = model.training_states()
    k = model.covariates.position("kind")
    rare = states["w"][states["codes"][:, k] == model.covariates.code("kind", "rare")]
    new = model.generate(30, condition={"kind": "rare", "lane": "b"}, on_small="neighbors")
    assert new.obs["scld_fallback"].all()
    centre, scale = model.module.latent_centre.numpy(), model.module.latent_scale.numpy()
    w = (new.obsm["X_scld"] - centre) / scale
    nearest = np.abs(w[:, None] - rare[:, : w.shape[1]].numpy()[None]).mean(axis=2).min(axis=1)
    assert nearest.max() < 0.2, "noise of 0.1 around a rare cell's own state"


def test_only_what_was_asked_for_is_refused(model: SCLD) -> None:
    assert model.generate(50, condition={"lane": "a"}).n_obs == 50
    with pytest.raises(SetupError, match="kind='rare' has"):
        model.generate(5, condition={"kind": "rare"})
