from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from cellsmith._errors import SetupError
from cellsmith.math import graph
from cellsmith.nn import propagation as prop

BACKENDS = [
    "edge_list",
    "csr",
    pytest.param("pyg", marks=pytest.mark.skipif(importlib.util.find_spec("torch_geometric") is None, reason="no PyG")),
]


def _graph(n=40, m=8, d=3, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, d))
    pairs = [torch.from_numpy(part) for part in graph.pair_list(graph.candidate_table(x, m, seed=0))]
    generator = torch.Generator().manual_seed(seed)
    weight = torch.rand(len(pairs[0]), generator=generator, dtype=torch.float64)
    return pairs, weight, prop.pair_pattern(pairs[0], pairs[1], n_cells=n), generator


def _dense(pairs, weight, n):
    zero = torch.zeros(n, n, dtype=weight.dtype)
    half = zero.index_put((pairs[0], pairs[1]), weight)
    return half + half.T


@pytest.mark.parametrize("backend", BACKENDS)
def test_impulse_on_a_path_reaches_three_hops(backend):
    pattern = prop.pair_pattern(torch.tensor([0, 1, 2]), torch.tensor([1, 2, 3]), n_cells=4)
    impulse = torch.tensor([[1.0], [0], [0], [0]])
    z = prop.hop_filter(impulse, torch.ones(3), pattern, hop_weights=torch.ones(4, 1, 1), backend=backend)
    assert z.reshape(-1).tolist() == [2, 3, 1, 1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_filter_equals_the_sum_of_dense_powers(backend):
    pairs, weight, pattern, generator = _graph()
    h = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    hop_weights = torch.randn(4, 6, 2, generator=generator, dtype=torch.float64)
    bias = torch.tensor([1.0, -1.0], dtype=torch.float64)
    dense = _dense(pairs, weight, 40)
    direct = sum(torch.linalg.matrix_power(dense, k) @ h @ hop_weights[k] for k in range(4)) + bias
    z = prop.hop_filter(h, weight, pattern, hop_weights=hop_weights, bias=bias, backend=backend)
    torch.testing.assert_close(z, direct, rtol=1e-9, atol=1e-9)


def test_no_hop_is_a_linear_layer():
    _, weight, pattern, generator = _graph()
    h, w = torch.randn(40, 6, generator=generator), torch.randn(1, 6, 2, generator=generator)
    torch.testing.assert_close(prop.hop_filter(h, weight.float(), pattern, hop_weights=w), h @ w[0])


@pytest.mark.parametrize("backend", ["edge_list", BACKENDS[2]])
def test_gradient_equals_that_of_the_dense_matrix(backend):
    pairs, weight, pattern, generator = _graph()
    h = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    hop_weights = torch.randn(4, 5, 2, generator=generator, dtype=torch.float64)
    found = []
    for dense in (True, False):
        leaves = [t.clone().requires_grad_() for t in (h, weight, hop_weights)]
        if dense:
            matrix = _dense(pairs, leaves[1], 40)
            z = sum(torch.linalg.matrix_power(matrix, k) @ leaves[0] @ leaves[2][k] for k in range(4))
        else:
            z = prop.hop_filter(leaves[0], leaves[1], pattern, hop_weights=leaves[2], backend=backend)
        (z.sin() ** 2).sum().backward()
        found.append([leaf.grad for leaf in leaves])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_no_array_of_cells_by_cells_appears():
    n = 2000
    row = torch.arange(n).repeat_interleave(3)
    col = (row + torch.tensor([1, 2, 3]).repeat(n)) % n
    pattern = prop.pair_pattern(row, col, n_cells=n)
    weight, h = torch.rand(3 * n, requires_grad=True), torch.randn(n, 4, requires_grad=True)
    with torch.profiler.profile(profile_memory=True) as seen:
        prop.hop_filter(h, weight, pattern, hop_weights=torch.ones(3, 4, 2)).sum().backward()
    assert max(event.cpu_memory_usage for event in seen.events()) < n * n


@pytest.mark.parametrize("everything", [True, False])
def test_batch_with_exact_tables_equals_the_full_pass(everything):
    pairs, weight, pattern, generator = _graph()
    h = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    hop_weights = torch.randn(4, 5, 2, generator=generator, dtype=torch.float64)
    bias = torch.ones(2, dtype=torch.float64)
    dense = _dense(pairs, weight, 40)
    tables = [h @ hop_weights[3]]
    for hop in (2, 1):
        tables.insert(0, h @ hop_weights[hop] + dense @ tables[0])
    stored = torch.stack(tables)
    batch = torch.randperm(40, generator=generator) if everything else torch.tensor([7, 3, 21, 11])
    row, col = torch.nonzero(dense[batch], as_tuple=True)
    inner, outside = prop.batch_pattern(row, col, batch=batch, n_cells=40)
    assert len(outside) == 0 if everything else not set(outside.tolist()) & set(batch.tolist())
    leaf = h.clone().requires_grad_()
    z, fresh = prop.batch_hops(
        leaf[batch],
        dense[batch][row, col],
        inner,
        hop_weights=hop_weights,
        bias=bias,
        outside=outside,
        stored=torch.zeros_like(stored) if everything else stored,  # never read where all cells are in the batch
    )
    whole = h.clone().requires_grad_()
    full = prop.hop_filter(whole, weight, pattern, hop_weights=hop_weights, bias=bias)
    torch.testing.assert_close(z, full[batch])
    torch.testing.assert_close(fresh, stored[:, batch])
    if everything:
        (grad,) = torch.autograd.grad(z.cos().sum(), leaf)
        (expected,) = torch.autograd.grad(full.cos().sum(), whole)
        torch.testing.assert_close(grad, expected)


def test_one_stale_row_changes_only_its_neighbours():
    pairs, weight, _, generator = _graph()
    dense = _dense(pairs, weight, 40)
    batch = torch.arange(20)
    row, col = torch.nonzero(dense[batch], as_tuple=True)
    pattern, outside = prop.batch_pattern(row, col, batch=batch, n_cells=40)
    h = torch.randn(20, 5, generator=generator, dtype=torch.float64)
    w = torch.randn(2, 5, 2, generator=generator, dtype=torch.float64)
    stored = torch.randn(1, 40, 2, generator=generator, dtype=torch.float64)
    stale = stored.clone()
    stale[0, outside[0]] += 1
    z, again = (
        prop.batch_hops(h, dense[batch][row, col], pattern, hop_weights=w, outside=outside, stored=s)[0]
        for s in (stored, stale)
    )
    changed = (z != again).any(dim=1)
    assert torch.equal(changed, dense[batch, outside[0]] > 0)
    assert 0 < changed.sum() < 20


def test_unknown_backend_is_named():
    _, weight, pattern, _ = _graph()
    with pytest.raises(SetupError, match="edge_list"):
        prop.propagate(torch.ones(40, 1), weight.float(), pattern, backend="edges")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_sums_on_cuda_are_the_same_every_time():
    _, weight, _, _ = _graph(n=500, m=20)
    pairs = _graph(n=500, m=20)[0]
    pattern = prop.pair_pattern(pairs[0].cuda(), pairs[1].cuda(), n_cells=500)
    x = torch.randn(500, 15, device="cuda", requires_grad=True)
    w = weight.float().cuda().requires_grad_()
    runs = []
    for _ in range(5):
        y = prop.propagate(x, w, pattern)
        runs.append((y.detach(), *torch.autograd.grad(y.square().sum(), (x, w))))
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))
    cpu = prop.pair_pattern(pairs[0], pairs[1], n_cells=500)
    torch.testing.assert_close(runs[0][0].cpu(), prop.propagate(x.detach().cpu(), w.detach().cpu(), cpu))
