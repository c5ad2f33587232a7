"""The patterns that say which entries were observed."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from cellsmith import pp
from cellsmith._errors import SetupError
from cellsmith.datasets import toy_counts
from cellsmith.math import missing


def with_holes(n: int = 30, d: int = 12, share: float = 0.3, *, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    x = generator.normal(1.0, 1.0, (n, d)).astype(np.float32)
    x[generator.random((n, d)) < share] = np.nan
    return x


def weights(adata: AnnData, name: str) -> np.ndarray:
    """The mask as a dense matrix of weights, whichever way it is stored."""
    stored = adata.layers[name].toarray().astype(float)
    return stored if adata.uns[name]["marks"] == "observed" else 1.0 - stored


def test_nan_writes_the_sparser_pattern() -> None:
    for share, name in ((0.3, "missing"), (0.8, "observed")):
        adata = AnnData(with_holes(share=share))
        before = adata.X.copy()
        assert pp.missing_mask(adata) is None
        assert [key for key in adata.layers if key] == [name]  # anndata 0.13 lists X too, as None
        assert adata.layers[name].dtype == np.uint8
        np.testing.assert_array_equal(weights(adata, name), ~np.isnan(before))
        np.testing.assert_array_equal(adata.X, before)
        assert adata.uns[name]["observed_rate"] == pytest.approx(1 - np.isnan(before).mean())


def test_nan_is_read_in_masked_arrays_and_csr() -> None:
    x = with_holes()
    known = ~np.isnan(x)
    stored = sp.csr_matrix(np.where(np.isnan(x), 7.0, x))
    stored.data[stored.data == 7.0] = np.nan
    for form in (np.ma.masked_array(np.nan_to_num(x), ~known), stored):
        adata = AnnData(form)
        pp.missing_mask(adata, key_added="mask")
        np.testing.assert_array_equal(weights(adata, "mask"), known)


def test_zero_treats_stored_and_absent_zeros_alike() -> None:
    adata = toy_counts(40, 20)
    dense = adata.X.toarray()
    adata.X.data[:5] = 0.0  # explicit
    dense.flat[np.flatnonzero(dense)[:5]] = 0.0
    pp.missing_mask(adata, method="zero", key_added="mask")
    np.testing.assert_array_equal(weights(adata, "mask"), dense != 0)
    with pytest.raises(SetupError, match='method="zero" found NaN in row'):
        pp.missing_mask(AnnData(with_holes()), method="zero")


def brute_consensus(x: np.ndarray, columns: list[np.ndarray], threshold: float) -> np.ndarray:
    votes = np.zeros(x.shape, int)
    for labels in columns:
        for label in np.unique(labels):
            own = labels == label
            votes[own] += (x[own] == 0).mean(axis=0) >= threshold - 1e-9
    return (x != 0) | (2 * votes > len(columns))


def test_consensus_is_the_majority_over_clusterings() -> None:
    adata = toy_counts(120, 30, n_types=3, n_batches=2)
    adata.X = adata.X.multiply(np.random.default_rng(0).random(adata.shape) < 0.4).tocsr()
    adata.obs["third"] = pd.Categorical(np.arange(120) % 3)
    columns = ["cell_type", "batch", "third"]
    for threshold in (0.6, 0.9):
        pp.missing_mask(adata, method="consensus", threshold=threshold, n_clusters=columns, key_added="mask")
        expected = brute_consensus(adata.X.toarray(), [adata.obs[c].to_numpy() for c in columns], threshold)
        np.testing.assert_array_equal(weights(adata, "mask"), expected)
    assert 0.3 < adata.uns["mask"]["observed_rate"] < 1.0


def test_options_reach_the_clusterer(monkeypatch: pytest.MonkeyPatch) -> None:
    import sklearn.cluster

    asked: list[int] = []
    original = sklearn.cluster.KMeans

    def spy(k: int, **kwargs: Any) -> Any:
        asked.append(k)
        return original(k, **kwargs)

    monkeypatch.setattr(sklearn.cluster, "KMeans", spy)
    adata = toy_counts(60, 30)
    pp.missing_mask(adata, method="consensus", n_clusters=(2, 5), key_added="a")
    assert asked == [2, 5]
    adata.obsm["X_own"] = np.repeat([0.0, 50.0], 30)[:, None] + np.random.default_rng(0).normal(size=(60, 2))
    pp.missing_mask(adata, method="consensus", n_clusters=(2,), use_rep="X_own", key_added="b")
    halves = brute_consensus(adata.X.toarray(), [np.repeat([0, 1], 30)], 0.9)
    np.testing.assert_array_equal(weights(adata, "b"), halves)


def test_consensus_costs_at_most_three_times_the_matrix() -> None:
    x = sp.random(3000, 1200, density=0.3, format="csr", dtype=np.float32, rng=np.random.default_rng(0))
    small = AnnData(x[:60].copy())
    pp.missing_mask(small, method="consensus", n_clusters=(2,))  # imports are not counted
    adata = AnnData(x)
    size = x.data.nbytes + x.indices.nbytes + x.indptr.nbytes
    tracemalloc.start()
    pp.missing_mask(adata, method="consensus", n_clusters=(4, 6, 8), threshold=0.7)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 3 * size, f"{peak / size:.2f} times the matrix"


def test_michaelis_menten_recovers_its_constant() -> None:
    means = np.geomspace(0.05, 30, 400)
    assert missing.fit_michaelis_menten(means, 3.0 / (3.0 + means)) == pytest.approx(3.0, rel=1e-3)
    adata = toy_counts(80, 40)
    pp.missing_mask(adata, method="michaelis-menten", key_added="mask")
    m, x = weights(adata, "mask"), adata.X.toarray()
    assert adata.layers["mask"].dtype == np.float32
    assert adata.uns["mask"]["marks"] == "missing"
    assert (m[x != 0] == 1).all()
    assert ((m[x == 0] > 0) & (m[x == 0] < 1)).all()
    depth = x.sum(axis=1) / x.sum(axis=1).mean()
    mean = np.outer(depth, x.mean(axis=0))
    k = adata.uns["mask"]["constant"]
    np.testing.assert_allclose(m[x == 0], (mean / (k + mean))[x == 0], rtol=1e-5)


def test_nb_finds_dropouts_where_there_are_some() -> None:
    adata = toy_counts(400, 30, n_types=1)
    generator = np.random.default_rng(1)
    lost = generator.random(adata.shape) < np.where(np.arange(30) < 15, 0.5, 0.0)
    adata.X = sp.csr_matrix(np.where(lost, 0, adata.X.toarray()))
    pp.missing_mask(adata, method="nb", key_added="mask")
    m, zero = weights(adata, "mask"), adata.X.toarray() == 0
    with_dropout = m[:, :15][zero[:, :15]].mean()
    without = m[:, 15:][zero[:, 15:]].mean()
    assert with_dropout < without - 0.2
    adata.X = adata.X * 0.5
    with pytest.raises(SetupError, match='method="nb" reads counts'):
        pp.missing_mask(adata, method="nb", key_added="mask")


class Zinb:
    """What a trained model of scvi-tools answers."""

    is_trained = True

    class module:
        gene_likelihood = "zinb"

    def get_likelihood_parameters(self, adata: AnnData, *, indices: np.ndarray, n_samples: int) -> dict[str, Any]:
        shape = (len(indices), adata.n_vars)
        return {
            "mean": np.full(shape, 2.0),
            "dispersions": np.full(shape, 1.0),
            "dropout": np.full(shape, 0.25),
        }


def test_scvi_weighs_zeros_by_a_trained_model() -> None:
    adata = toy_counts(40, 20)
    pp.missing_mask(adata, method="scvi", model=Zinb(), key_added="mask")
    zero = adata.X.toarray() == 0
    counted = 0.75 / 3  # NB with mean 2 and inverse dispersion 1: 1 / 3
    np.testing.assert_allclose(weights(adata, "mask")[zero], counted / (0.25 + counted), rtol=1e-6)
    for wrong in (None, object()):
        with pytest.raises(SetupError, match=r"scvi\.model\.SCVI"):
            pp.missing_mask(adata, method="scvi", model=wrong)
    untrained = Zinb()
    untrained.is_trained = False
    with pytest.raises(SetupError, match="is not trained"):
        pp.missing_mask(adata, method="scvi", model=untrained)


def test_copy_names_and_reruns() -> None:
    adata = AnnData(with_holes())
    made = pp.missing_mask(adata, copy=True)
    assert not adata.layers
    assert "missing" in made.layers
    pp.missing_mask(made, key_added="missing")
    made.layers["mine"] = np.ones(made.shape)
    with pytest.raises(SetupError, match="already exists"):
        pp.missing_mask(made, key_added="mine")


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_survives_a_file(form: str, tmp_path: Path) -> None:
    adata = AnnData(with_holes())
    pp.missing_mask(adata, method="nan")
    getattr(adata, f"write_{form}")(tmp_path / f"a.{form}")
    back = getattr(anndata, f"read_{form}")(tmp_path / f"a.{form}")
    np.testing.assert_array_equal(weights(back, "missing"), weights(adata, "missing"))


def test_seed_decides_the_clusters() -> None:
    adata = toy_counts(80, 30)
    a, b, c = (
        pp.missing_mask(adata, method="consensus", key_added="m", copy=True, **how).layers["m"].toarray()
        for how in ({"rng": 3}, {"random_state": 3}, {"rng": np.random.default_rng(0)})
    )
    np.testing.assert_array_equal(a, b)
    assert a.shape == c.shape


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"method": "consensu"}, "Did you mean 'consensus'"),
        ({"layer": "counts"}, "layer='counts' is not in .layers"),
        ({"method": "consensus", "threshold": 1.5}, "threshold=1.5"),
        ({"method": "consensus", "n_clusters": 4}, "expected a sequence"),
        ({"method": "consensus", "n_clusters": ("leiden",)}, "not a column of .obs"),
        ({"method": "consensus", "n_clusters": (400,)}, "400 clusters for 40 cells"),
        ({"method": "consensus", "use_rep": "X_pca"}, "not in .obsm"),
        ({"key_added": "a/b"}, "slash"),
    ],
)
def test_refusals(kwargs: dict[str, Any], text: str) -> None:
    adata = toy_counts(40, 20)
    with pytest.raises(SetupError, match=text):
        pp.missing_mask(adata, **kwargs)
    assert not adata.layers.keys() - {"mean", None}
