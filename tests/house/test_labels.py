"""Labels that are registered as a condition leave everything that is learned without them bit-identical."""

from __future__ import annotations

import numpy as np

import cellsmith


def latent_of(order: np.ndarray) -> np.ndarray:
    adata = cellsmith.datasets.toy_counts(150, 40, n_types=3, rng=0)
    adata.obs["cell_type"] = adata.obs["cell_type"].to_numpy()[order]
    cellsmith.model.SCLD.setup_anndata(adata, labels_key="cell_type")
    model = cellsmith.model.SCLD(adata, n_hidden=16, n_latent=4)
    model.train(max_epochs=2, seed=0)
    return model.get_latent_representation()


def test_shuffled_labels_leave_the_latents_of_scld_bit_identical() -> None:
    same = np.arange(150)
    shuffled = np.random.default_rng(0).permutation(150)
    latent = latent_of(same)
    assert np.isfinite(latent).all()
    np.testing.assert_array_equal(latent, latent_of(shuffled))


def test_counts_do_change_the_latents() -> None:
    """The planted breach: a comparison that could not fail would pass here too."""
    adata = cellsmith.datasets.toy_counts(150, 40, n_types=3, rng=1)
    cellsmith.model.SCLD.setup_anndata(adata, labels_key="cell_type")
    model = cellsmith.model.SCLD(adata, n_hidden=16, n_latent=4)
    model.train(max_epochs=2, seed=0)
    assert not np.array_equal(model.get_latent_representation(), latent_of(np.arange(150)))
