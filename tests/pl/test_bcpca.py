"""The picture shows BC-PCA and its baselines, with the numbers that compare them."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

mpl.use("Agg")

import matplotlib.pyplot as plt
from anndata import AnnData
from matplotlib.collections import PathCollection

from cellsmith import _record, pl
from cellsmith._errors import SetupError


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def result(*, baselines: bool = True, k: int = 3) -> AnnData:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(50, k)).astype(np.float32)
    adata = AnnData(generator.normal(size=(50, 6)).astype(np.float32))
    adata.obs["kind"] = pd.Categorical(np.where(np.arange(50) < 20, "a", "b"))
    slots = {"X_{k}": x}
    if baselines:
        slots |= {"X_{k}_mean": x + 1, "X_{k}_pairwise": x + 2}
    table = {"name": ["bc", "mean", "pairwise"], "sin_theta": [0, 0.31, 0.12], "heldout_error": [1.5, 1.75, np.nan]}
    block = {"baselines": {k: np.array(v) for k, v in table.items()} if baselines else {}}
    observed = {"{k}_observed_rate": generator.random(50)}
    _record.write(adata, "bcpca", _record.Result(method="bcpca", obs=observed, obsm=slots, uns=block))
    return adata


def test_panels_show_the_three_embeddings_and_what_compares_them() -> None:
    adata = result()
    axes = pl.bcpca_baselines(adata)
    assert [ax.get_title(loc="left") for ax in axes] == [
        "BC-PCA\nheld-out error 1.500",
        "mean imputation\nsin-theta to BC 0.31, held-out error 1.750",
        "pairwise complete\nsin-theta to BC 0.12",
    ]
    for ax, slot in zip(axes, ("X_bcpca", "X_bcpca_mean", "X_bcpca_pairwise"), strict=True):
        cloud = next(c for c in ax.collections if isinstance(c, PathCollection))
        np.testing.assert_allclose(np.asarray(cloud.get_offsets()), adata.obsm[slot][:, :2], rtol=1e-6)
        np.testing.assert_allclose(cloud.get_array(), adata.obs["bcpca_observed_rate"])


def test_categories_have_one_legend() -> None:
    axes = pl.bcpca_baselines(result(), color="kind")
    assert axes[0].get_legend() is None
    assert [t.get_text() for t in axes[-1].get_legend().get_texts()] == ["a", "b"]
    assert sum(len(c.get_offsets()) for c in axes[1].collections) == 50


def test_one_component_and_given_axes() -> None:
    given = plt.subplots(1, 3)[1]
    axes = pl.bcpca_baselines(result(k=1), ax=given)
    assert list(axes) == list(given)


def test_refusals() -> None:
    with pytest.raises(SetupError, match="no baselines"):
        pl.bcpca_baselines(result(baselines=False))
    with pytest.raises(SetupError, match="Did you mean 'kind'"):
        pl.bcpca_baselines(result(), color="kinds")
    with pytest.raises(SetupError, match="does not exist"):
        pl.bcpca_baselines(result(), "other")
