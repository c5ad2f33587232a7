"""Labels that are registered as a condition leave everything that is learned without them bit-identical."""

from __future__ import annotations

import numpy as np
import pytest

import cellsmith


def latent_of(order: np.ndarray, *, rng: int = 0) -> np.ndarray:
    adata = cellsmith.datasets.toy_counts(150, 40, n_types=3, rng=rng)
    adata.obs["cell_type"] = adata.obs["cell_type"].to_numpy()[order]
    cellsmith.model.SCLD.setup_anndata(adata, labels_key="cell_type")
    model = cellsmith.model.SCLD(adata, n_hidden=16, n_latent=4, n_diffusion_steps=4)
    model.train(max_epochs=2, seed=0)
    return model.get_latent_representation()


@pytest.fixture(scope="module")
def latent() -> np.ndarray:
    return latent_of(np.arange(150))


def test_shuffled_labels_leave_the_latents_of_scld_bit_identical(latent: np.ndarray) -> None:
    assert np.isfinite(latent).all()
    np.testing.assert_array_equal(latent, latent_of(np.random.default_rng(0).permutation(150)))


def test_other_counts_do_change_the_latents(latent: np.ndarray) -> None:
    """The comparison can fail."""
    assert not np.array_equal(latent, latent_of(np.arange(150), rng=1))
