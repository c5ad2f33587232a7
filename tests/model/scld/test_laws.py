"""Laws that need a trained model: genes have no order, depth goes with the state, zeros are as frequent as observed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import scvi
import torch
from anndata import AnnData
from scvi.criticism import PosteriorPredictiveCheck

from cellsmith._rng import Streams, isolated
from cellsmith.datasets import kang_pbmc
from cellsmith.model import SCLD

Make = Callable[..., AnnData]
Build = Callable[..., SCLD]
QUIET: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False}


# --- genes have no order ---------------------------------------------------------------------------------------------


def permuted(weights: dict[str, torch.Tensor], order: np.ndarray, *, n_batch: int) -> dict[str, torch.Tensor]:
    """Weights of a model whose genes come in another order; columns of the batch follow those of the genes."""
    genes = torch.from_numpy(order)
    with_batch = torch.cat([genes, len(order) + torch.arange(n_batch)])
    out = {}
    for name, value in weights.items():
        for dim, size in enumerate(value.shape):
            if name.startswith("autoencoder") and size in (len(order), len(order) + n_batch):
                value = value.index_select(dim, genes if size == len(order) else with_batch)
        out[name] = value.clone()
    return out


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_permuted_genes_with_permuted_weights_give_the_same_cells_permuted(
    likelihood: str, make: Make, built: Build, trained_for_a_moment: Build
) -> None:
    adata, order = make(120, 37), np.random.default_rng(0).permutation(37)
    # Without dropout: its mask has a place for every gene, and would fall on others.
    first, second = (built(a, dropout_rate=0.0, gene_likelihood=likelihood) for a in (adata, adata[:, order].copy()))
    with isolated(Streams(0).integer("init")):
        first._draw_weights()
    start = {k: v.clone() for k, v in first.module.state_dict().items()}
    second._draw_weights = lambda: second.module.load_state_dict(permuted(start, order, n_batch=2))
    for model in (first, second):
        trained_for_a_moment(model, epochs=3, steps=20)
    end, other = (m.module.state_dict() for m in (first, second))
    moved = max(float((end[k] - start[k]).abs().max()) for k in end if k.startswith("autoencoder"))
    assert moved > 1e-2, "trained at all"
    np.testing.assert_allclose(second.get_latent(), first.get_latent(), atol=1e-4)
    expected = permuted(dict(end), order, n_batch=2)
    for name, value in other.items():
        torch.testing.assert_close(value, expected[name], atol=1e-3, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
    a, b = (m.generate(50, output="mean") for m in (first, second))
    assert list(b.var_names) == list(a.var_names[order])
    np.testing.assert_allclose(b.obsm["X_scld"], a.obsm["X_scld"], atol=1e-3)
    np.testing.assert_allclose(b.X, a.X[:, order], rtol=1e-2)
    assert not np.allclose(b.X, a.X, rtol=1e-2)


# --- real cells ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def blood() -> AnnData:
    """700 of the embedded cells and the 200 genes that vary most."""
    adata = kang_pbmc()
    adata = adata[np.sort(np.random.default_rng(0).choice(adata.n_obs, 700, replace=False))]
    spread = log_normalised(adata.X).var(axis=0)
    adata = adata[:, np.sort(np.argsort(-spread)[:200])]
    # scvi-tools' own check fails on sparse floats.
    adata = adata[np.asarray(adata.X.sum(axis=1)).ravel() >= 20].copy()
    adata.X = adata.X.astype(np.int32)
    return adata


@pytest.fixture(scope="module")
def trained(blood: AnnData) -> SCLD:
    adata = blood.copy()
    SCLD.setup_anndata(adata, batch_key="condition", labels_key="cell_type")
    model = SCLD(adata, n_latent=10, n_denoiser_hidden=64, n_denoiser_layers=2, n_diffusion_steps=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(max_epochs={"autoencode": 50}, **QUIET)
    return model


def log_normalised(x: Any) -> np.ndarray:
    dense = np.asarray(x.todense() if scipy.sparse.issparse(x) else x, dtype=float)
    return np.log1p(1e4 * dense / dense.sum(axis=1, keepdims=True))


@pytest.mark.slow
def test_depth_goes_with_the_state_as_in_real_cells(blood: AnnData, trained: SCLD) -> None:
    from sklearn.decomposition import PCA

    pca = PCA(5, random_state=0).fit(log_normalised(blood.X))

    def correlations(x: Any) -> np.ndarray:
        depth, scores = np.log(np.asarray(x.sum(axis=1)).ravel()), pca.transform(log_normalised(x))
        return np.array([np.corrcoef(depth, s)[0, 1] for s in scores.T])

    real, made = correlations(blood.X), correlations(trained.generate(2800).X)
    assert np.abs(real).max() > 0.5, "there is something to keep"
    assert np.abs(made - real).max() <= 0.10


@pytest.mark.slow
def test_zeros_are_predicted_no_worse_than_by_scvi(
    blood: AnnData, trained: SCLD, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scvi.settings, "_seed", None)
    scvi.settings.seed = 0
    adata = blood.copy()
    scvi.model.SCVI.setup_anndata(adata, batch_key="condition", labels_key="cell_type")
    peers = {name: scvi.model.SCVI(adata, n_latent=10, gene_likelihood=name) for name in ("nb", "zinb")}
    for peer in peers.values():
        peer.train(max_epochs=50, **QUIET)
    check = PosteriorPredictiveCheck(blood, {"SCLD": trained, **peers}, n_samples=2)
    check.zero_fraction()
    found = check.metrics["zero_fraction"]
    errors = {name: float(np.abs(found[name] - found["Raw"]).mean()) for name in ("SCLD", *peers)}
    assert errors["SCLD"] <= min(errors["nb"], errors["zinb"])
    assert errors["SCLD"] < 0.03
