"""Values and gradients of the likelihoods against scvi.distributions."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from cellsmith.math.likelihood import count_entries, nb_log_prob, nb_log_prob_softmax, zinb_log_prob

scvi_distributions = pytest.importorskip("scvi.distributions")

N, G = 24, 60
CASES = [(theta, zeros) for theta in ((0.05, 1.0), (0.5, 50.0), (50.0, 1000.0)) for zeros in (0.0, 0.5, 0.95)]


def problem(theta_range: tuple[float, float], zeros: float, *, per_cell: bool = False, seed: int = 0):
    """Draw (x, mean, theta, dropout logits) in float64; means in [1e-6, 1e3], counts with the asked share of zeros."""
    rng = np.random.default_rng(seed)
    mean = 10 ** rng.uniform(-6, 3, (N, G))
    x = np.maximum(rng.poisson(mean), 1) * (rng.random((N, G)) >= zeros)
    theta = np.exp(rng.uniform(*np.log(theta_range), (N, G) if per_cell else G))
    logits = rng.normal(0, 2, (N, G))
    return [torch.tensor(np.asarray(a, dtype=np.float64)) for a in (x, mean, theta, logits)]


def reference(kind: str, x, mean, theta, logits, weight):
    """Value and gradients by scvi in float64, summed over genes, pulled back by ``weight``."""
    mean, theta, logits = (t.double().clone().requires_grad_() for t in (mean, theta, logits))
    if kind == "nb":
        law = scvi_distributions.NegativeBinomial(mu=mean, theta=theta)
    else:
        law = scvi_distributions.ZeroInflatedNegativeBinomial(mu=mean, theta=theta, zi_logits=logits)
    value = law.log_prob(x.double()).sum(1)
    value.backward(weight.double())
    return value.detach(), mean.grad, theta.grad, logits.grad


def distance(a, b) -> float:
    """Largest difference relative to the largest reference entry."""
    return float((a.double() - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("layout", ["dense", "csr", "entries"])
@pytest.mark.parametrize("per_cell", [False, True], ids=["theta_gene", "theta_cell"])
@pytest.mark.parametrize(("theta_range", "zeros"), CASES)
@pytest.mark.parametrize("kind", ["nb", "zinb"])
def test_float32_agrees_with_scvi(kind, theta_range, zeros, per_cell, layout):
    x, mean, theta, logits = problem(theta_range, zeros, per_cell=per_cell)
    weight = torch.linspace(0.5, 2.0, N)
    expected = reference(kind, x, mean.float(), theta.float(), logits.float(), weight)
    mean, theta, logits = (t.float().requires_grad_() for t in (mean, theta, logits))
    x = {"dense": x.float(), "csr": x.float().to_sparse_csr(), "entries": count_entries(x.float())}[layout]
    value = nb_log_prob(x, mean, theta) if kind == "nb" else zinb_log_prob(x, mean, theta, dropout_logits=logits)
    value.backward(weight)
    assert value.dtype == torch.float32
    assert distance(value.detach(), expected[0]) <= 1e-5
    assert distance(mean.grad, expected[1]) <= 1e-5
    assert distance(theta.grad, expected[2]) <= 1e-5
    if kind == "zinb":
        assert distance(logits.grad, expected[3]) <= 1e-5


@pytest.mark.parametrize(("theta_range", "zeros"), CASES)
def test_softmax_form_equals_scvi_through_autograd(theta_range, zeros):
    x, _, theta, logits = problem(theta_range, zeros)
    theta, logits = theta.float(), logits.float()
    library = x.sum(1).clamp_min(1.0).float()
    weight = torch.linspace(0.5, 2.0, N)
    wide = [t.double().clone().requires_grad_() for t in (logits, theta, library)]
    law = scvi_distributions.NegativeBinomial(mu=wide[2][:, None] * torch.softmax(wide[0], 1), theta=wide[1])
    expected = law.log_prob(x).sum(1)
    expected.backward(weight.double())
    ours = [t.clone().requires_grad_() for t in (logits, theta, library)]
    value = nb_log_prob_softmax(x.float(), ours[0], ours[1], library=ours[2])
    value.backward(weight)
    assert distance(value.detach(), expected.detach()) <= 1e-5
    for mine, theirs in zip(ours, wide, strict=True):
        assert distance(mine.grad, theirs.grad) <= 1e-5


@pytest.mark.slow
def test_forward_and_backward_cost_at_most_a_third_of_scvi():
    rng = np.random.default_rng(0)
    n, n_genes = 128, 2_000
    x = torch.tensor(rng.poisson(rng.gamma(0.15, 1.0, (n, n_genes))), dtype=torch.float32)
    assert 0.85 < (x == 0).float().mean() < 0.95
    mean, theta, logits = torch.rand(n, n_genes) + 0.01, torch.rand(n_genes) + 0.5, torch.randn(n, n_genes)
    library = x.sum(1).clamp_min(1)

    def theirs(m, t, _):
        return scvi_distributions.NegativeBinomial(mu=m, theta=t).log_prob(x).sum(1)

    ways = {
        "scvi": theirs,
        "mean": lambda m, t, _: nb_log_prob(x, m, t),
        "softmax": lambda _, t, f: nb_log_prob_softmax(x, f, t, library=library),
    }
    spent: dict[str, list[float]] = {name: [] for name in ways}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(30):
        for name, way in ways.items():
            leaves = [t.clone().requires_grad_() for t in (mean, theta, logits)]
            start = time.process_time()
            way(*leaves).mean().backward()
            spent[name].append(time.process_time() - start)
    torch.set_num_threads(threads)
    for name in ("mean", "softmax"):
        assert np.median(np.divide(spent[name], spent["scvi"])[5:]) <= 0.35
