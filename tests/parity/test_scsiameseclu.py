"""The operators and the transport of scSiameseClu against PyTorch Geometric and POT."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from cellsmith.math import graph
from cellsmith.model.scsiameseclu import equations as eq


def unweighted(n: int, *, seed: int) -> sp.csr_matrix:
    upper = sp.triu(sp.random(n, n, density=0.06, random_state=seed, format="csr"), k=1)
    a = sp.csr_matrix(upper + upper.T)
    a.data[:] = 1.0
    return a


def test_pagerank_is_that_of_pytorch_geometric_on_unweighted_graphs() -> None:
    ppr = pytest.importorskip("torch_geometric.utils.ppr")
    pytest.importorskip("numba")
    looped = graph.self_loops(unweighted(120, seed=0))
    rows = torch.from_numpy(np.stack(looped.nonzero()).astype(np.int64))
    edges, values = ppr.get_ppr(rows, alpha=0.3, eps=1e-7, num_nodes=120)
    theirs = np.zeros((120, 120))
    theirs[edges[0].numpy(), edges[1].numpy()] = values.numpy()
    ours = graph.ppr_push(looped, np.arange(120), teleport=0.3, tol=1e-7).toarray()
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_a_step_over_the_graph_is_a_graph_convolution() -> None:
    nn = pytest.importorskip("torch_geometric.nn")
    a = unweighted(50, seed=1)
    layer = nn.GCNConv(6, 4, bias=False)
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    edges = torch.from_numpy(np.stack(a.nonzero()).astype(np.int64))
    ours = torch.from_numpy(graph.symmetric_walk(a).toarray()).float() @ layer.lin(x)
    torch.testing.assert_close(layer(x, edges), ours, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["uniform", "relaxed"])
def test_plans_are_those_of_pot(kind: str) -> None:
    ot = pytest.importorskip("ot")
    generator = torch.Generator().manual_seed(0)
    log_q = torch.log_softmax(torch.randn(40, 5, generator=generator, dtype=torch.float64), dim=1)
    sizes = torch.full((5,), 0.2, dtype=torch.float64)
    plan = eq.transport_targets(log_q, sizes, kind=kind, temperature=0.5, balance=0.3).plan
    row, cost = np.full(40, 1 / 40), -log_q.numpy()
    if kind == "uniform":
        expected = ot.sinkhorn(row, sizes.numpy(), cost, 0.5, stopThr=1e-12, numItermax=5000)
    else:
        # POT's default reg_type is the entropy relative to the product of the masses, another problem
        expected = ot.unbalanced.sinkhorn_unbalanced(
            row, sizes.numpy(), cost, 0.5, (np.inf, 0.3), reg_type="entropy", stopThr=1e-12, numItermax=5000
        )
    np.testing.assert_allclose(plan.numpy(), expected, atol=1e-5)
