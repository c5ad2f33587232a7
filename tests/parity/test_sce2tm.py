"""scE2TM's losses against a second implementation, written densely from the published formulas, draws held fixed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scvi import REGISTRY_KEYS

from cellsmith.math import topics
from cellsmith.model.sce2tm import equations as eq
from cellsmith.model.sce2tm import module as names
from cellsmith.model.sce2tm.module import SCE2TMModule

N, V, K, H, L, E = 24, 30, 5, 16, 12, 7
EPS_BN = 1e-5
Weights = dict[str, torch.Tensor]


def dense_batch_norm(x: torch.Tensor, w: Weights, name: str) -> torch.Tensor:
    """Standardise columns by the batch's own mean and biased variance, then scale and shift."""
    mean = x.mean(0)
    spread = ((x - mean) ** 2).mean(0)
    return (x - mean) / torch.sqrt(spread + EPS_BN) * w[f"{name}.weight"] + w[f"{name}.bias"]


def dense_encoder(x: torch.Tensor, w: Weights) -> tuple[torch.Tensor, torch.Tensor]:
    hidden = dense_batch_norm(x @ w["encoder.first.weight"].T, w, "encoder.norm").tanh() @ w["encoder.second.weight"].T
    mean = dense_batch_norm(hidden @ w["encoder.mean.weight"].T, w, "encoder.mean_norm")
    log_variance = dense_batch_norm(hidden @ w["encoder.log_variance.weight"].T, w, "encoder.log_variance_norm")
    return mean, log_variance


def dense_distances(w: Weights) -> torch.Tensor:
    return ((w["topic_table"][:, None, :] - w["gene_table"][None, :, :]) ** 2).sum(-1)


def dense_beta(distances: torch.Tensor, temperature: float = 0.2) -> torch.Tensor:
    kernel = torch.exp(-distances / temperature)
    return kernel / kernel.sum(0, keepdim=True)


def kernel_transport(distances: torch.Tensor, n_sweeps: int, alpha: float = 20.0) -> torch.Tensor:
    """Sinkhorn on the kernel exp(-alpha D), as published, without logarithms."""
    kernel = torch.exp(-alpha * distances)
    a, b = kernel.new_full((K,), 1 / K), kernel.new_full((V,), 1 / V)
    u = a / (kernel @ torch.ones_like(b))
    for _ in range(n_sweeps):
        v = b / (kernel.T @ u)
        u = a / (kernel @ v)
    plan = u[:, None] * kernel * v[None, :]
    return (plan * distances).sum()


def dense_kl(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """KL to the Laplace approximation of Dirichlet(1): prior mean 0, prior variance 1 - 1/K."""
    prior = torch.full((K,), 1 - 1 / K).to(mean)
    variance = log_variance.exp()
    return (0.5 * ((variance / prior + mean**2 / prior + prior.log() - log_variance).sum(1) - K)).mean()


def dense_contrast(a: torch.Tensor, b: torch.Tensor, temperature: float = 0.5) -> torch.Tensor:
    """The 2K columns as vectors; cross-entropy of each with its partner among the other 2K - 1."""
    columns = torch.cat([a.T, b.T])
    columns = columns / columns.norm(dim=1, keepdim=True)
    scores = columns @ columns.T / temperature
    loss = 0.0
    for i in range(2 * K):
        partner = (i + K) % (2 * K)
        others = [j for j in range(2 * K) if j != i]
        loss = loss + torch.logsumexp(scores[i, others], 0) - scores[i, partner]
    return loss / (2 * K)


def dense_entropy(p: torch.Tensor) -> torch.Tensor:
    mean = p.mean(0)
    return -(mean * mean.log()).sum()


def dense_head(view: torch.Tensor, w: Weights) -> torch.Tensor:
    hidden = dense_batch_norm(view @ w["head.first.weight"].T, w, "head.norm").tanh()
    return torch.softmax(hidden @ w["head.last.weight"].T + w["head.last.bias"], 1)


def build(dtype: torch.dtype) -> tuple[SCE2TMModule, dict[str, torch.Tensor]]:
    torch.set_default_dtype(torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = SCE2TMModule(
            V, n_all_genes=V, n_view=E, n_topics=K, n_hidden=H, n_embedding=L, ecr_gradient="unrolled"
        ).to(dtype)
        for parameter in module.parameters():  # off the special points at which training starts
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    module.view_weight.fill_(1.0)
    generator = torch.Generator().manual_seed(1)
    counts = torch.poisson(torch.rand(2, N, V, generator=generator) * 3, generator=generator).to(dtype)
    totals = counts.sum(2, keepdim=True) + 5
    view = torch.randn(2, N, E, generator=generator, dtype=torch.float64).to(dtype)
    batch = {
        REGISTRY_KEYS.X_KEY: counts[0],
        names.TOTALS_KEY: totals[0],
        names.CODES_KEY: torch.zeros(N, 0, dtype=torch.long),
        names.ROWS_KEY: torch.arange(N),
        names.NEIGHBOR_KEY: counts[1],
        names.NEIGHBOR_TOTALS_KEY: totals[1],
        names.VIEW_KEY: view[0],
        names.VIEW_NEIGHBOR_KEY: view[1],
    }
    return module.train(), batch


def second_implementation(
    batch: dict[str, torch.Tensor], w: Weights, noise: torch.Tensor, *, n_sweeps: int
) -> dict[str, torch.Tensor]:
    first, second = (
        torch.log(1 + 1e4 * batch[c] / batch[t])
        for c, t in ((REGISTRY_KEYS.X_KEY, names.TOTALS_KEY), (names.NEIGHBOR_KEY, names.NEIGHBOR_TOTALS_KEY))
    )
    mean, log_variance = dense_encoder(torch.cat([first, second]), w)
    z = mean + torch.exp(log_variance / 2) * noise
    p, p_neighbor = torch.softmax(z, 1)[:N], torch.softmax(z, 1)[N:]
    distances = dense_distances(w)
    logits = dense_batch_norm(p @ dense_beta(distances), w, "decoder_norm")
    shares = torch.softmax(logits, 1)
    r = dense_head(torch.cat([batch[names.VIEW_KEY], batch[names.VIEW_NEIGHBOR_KEY]]), w)
    r, r_neighbor = r[:N], r[N:]
    cross = dense_contrast(r, p_neighbor) + dense_contrast(p, r_neighbor)
    cross = cross - torch.log((p * r).sum(1)).mean() - 5.0 * (dense_entropy(p) + dense_entropy(r))
    return {
        "reconstruction": -(first * shares.log()).sum(1).mean(),
        "kl": dense_kl(mean[:N], log_variance[:N]),
        "ecr": kernel_transport(distances, n_sweeps),
        "cross": cross,
    }


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
def test_every_term_and_its_gradients(dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    module, batch = build(dtype)
    noise = torch.randn(2 * N, K, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)

    def held(mean: torch.Tensor, log_variance: torch.Tensor, **_: Any) -> torch.Tensor:
        return mean + torch.exp(0.5 * log_variance) * noise

    monkeypatch.setattr(eq, "draw_topics", held)
    weights = {"ecr": 100.0, "cross": 20.0}
    out = module.loss_guide(batch, weights=weights)
    out.loss.backward()
    # the second implementation always runs in float64, so that what is measured is ours
    w = {k: v.detach().double().requires_grad_(v.is_floating_point()) for k, v in module.named_parameters()}
    same = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
    terms = second_implementation(same, w, noise.double(), n_sweeps=module.n_sweeps)
    total = sum(value * weights.get(name, 1.0) for name, value in terms.items())
    total.backward()
    for name, value in terms.items():
        np.testing.assert_allclose(float(out.extra_metrics[name]), float(value), rtol=tolerance, err_msg=name)
    np.testing.assert_allclose(float(out.loss), float(total), rtol=tolerance)
    for name, parameter in module.named_parameters():
        expected = w[name].grad
        scale = float(expected.abs().max())
        assert scale > 0, name
        np.testing.assert_allclose(parameter.grad.double() / scale, expected / scale, atol=tolerance, err_msg=name)


def test_transport_term_in_the_log_domain_equals_the_kernel_form() -> None:
    """At the start exp(-20 D) = 4e-18 lies below the guard 1e-16 of the public code; both forms agree in float64."""
    w = {"topic_table": eq.start_table(K, L).double(), "gene_table": eq.start_table(V, L).double()}
    distances = dense_distances(w)
    loss, plan = topics.ecr(distances, epsilon=0.05, gradient="unrolled")
    np.testing.assert_allclose(float(loss), float(kernel_transport(distances, plan.n_sweeps)), rtol=1e-9)
    np.testing.assert_allclose(float(loss), float(kernel_transport(distances, 2000)), rtol=2e-2)
