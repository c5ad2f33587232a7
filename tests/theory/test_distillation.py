"""Laws behind the distillation: the response of an ideal denoiser, invariances of profiles, a toy with known truth."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import sparse

from cellsmith.math import edm, matching
from cellsmith.model import SCDD
from cellsmith.model.scdd import equations as eq
from cellsmith.nn.denoiser import Denoiser

TAU = 0.8
SIGMAS = (0.1, 0.2, 0.4, 0.7, 1.0, 2.0, 5.0, 10.0)


@pytest.fixture(scope="module")
def gaussian_denoiser() -> Denoiser:
    """A denoiser trained on N(m, TAU^2 I) in two dimensions."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Denoiser(2, n_hidden=32, n_layers=2)
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 800)
        for _ in range(800):
            z = torch.tensor([0.5, -1.0]) + TAU * torch.randn(256, 2)
            sigma = torch.exp(torch.empty(256).uniform_(np.log(0.05), np.log(20.0)))
            loss = edm.denoising_loss(network, z, sigma, noise=torch.randn(256, 2)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network


def test_trained_denoiser_answers_as_the_ideal_one(gaussian_denoiser: Denoiser) -> None:
    generator = torch.Generator().manual_seed(1)
    jacobians, spreads = [], []
    for sigma in SIGMAS:
        clean = torch.tensor([0.5, -1.0]) + TAU * torch.randn(2_000, 2, generator=generator)
        z = (clean + sigma * torch.randn(2_000, 2, generator=generator)).requires_grad_(True)
        out = edm.denoise(gaussian_denoiser, z, sigma)
        rows = [torch.autograd.grad(out[:, j].sum(), z, retain_graph=True)[0][:, j].mean() for j in range(2)]
        jacobians.append(float(sum(rows) / 2))
        spreads.append(float(out.detach().std(dim=0).mean()))
        ideal = [float(v) for v in eq.ideal_response(TAU, sigma)]
        assert (jacobians[-1], spreads[-1]) == pytest.approx(ideal, abs=0.05)
    assert np.all(np.diff(jacobians) < 0)
    assert np.all(np.diff(spreads) < 0)


@pytest.mark.parametrize("summary", ["sum", "mean_log"])
def test_profiles_follow_permutations_of_cells_and_genes(summary: str) -> None:
    generator = np.random.default_rng(0)
    x, groups = generator.poisson(2.0, size=(40, 12)) + 1.0, generator.permutation(np.arange(40) % 5)
    p, total = matching.group_profiles(sparse.csr_matrix(x), groups, summary=summary, scale=1e3)
    cells, genes = generator.permutation(40), generator.permutation(12)
    q, same = matching.group_profiles(x[cells][:, genes], groups[cells], summary=summary, scale=1e3)
    np.testing.assert_allclose(q, p[:, genes], rtol=1e-12)
    np.testing.assert_array_equal(same, total)


def planted(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Poisson counts of four classes, one of them at 1 %, and the rates that made them."""
    rates = np.random.default_rng(7).gamma(1.0, 0.45, size=(4, 60))
    generator = np.random.default_rng(seed)
    labels = generator.choice(4, n, p=[0.5, 0.3, 0.19, 0.01])
    labels[:8] = 3
    x = generator.poisson(rates[labels]).astype(float)
    x[x.sum(axis=1) == 0, 0] = 1.0
    return x, labels, rates


def read(profiles: np.ndarray, labels: np.ndarray, phi: np.ndarray) -> np.ndarray:
    squared = ((phi[:, None] - profiles[None]) ** 2).sum(axis=2)
    return labels[squared.argmin(axis=1)]


def test_one_profile_a_class_reads_like_the_true_rule_and_one_cell_does_not() -> None:
    x, labels, _ = planted(400, 0)
    adata = AnnData(sparse.csr_matrix(x), obs=pd.DataFrame({"y": pd.Categorical(labels.astype(str))}))
    adata.obs_names = adata.obs_names.astype(str)
    SCDD.setup_anndata(adata, labels_key="y")
    model = SCDD(adata, n_latent=4, n_hidden=16, n_layers=1, n_denoiser_hidden=16, n_denoiser_layers=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(max_epochs=2, accelerator="cpu", enable_progress_bar=False)
    small = model.distill(1, objective="readers", max_steps=25)
    new, truth, rates = planted(2_000, 1)
    phi = np.log1p(1e3 * new / new.sum(axis=1, keepdims=True))
    bayes = (new @ np.log(rates.T) - rates.sum(axis=1)).argmax(axis=1)
    found = read(small.layers["scdd_log"], small.obs["y"].astype(int).to_numpy(), phi)
    generator, own = np.random.default_rng(0), np.log1p(1e3 * x / x.sum(axis=1, keepdims=True))
    cells = [generator.choice(np.flatnonzero(labels == k)) for k in range(4)]
    random = read(own[cells], np.arange(4), phi)
    best = (bayes == truth).mean()
    assert (found == truth).mean() >= best - 0.01
    assert (random == truth).mean() < best - 0.01
