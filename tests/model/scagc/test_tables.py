"""The graph while it is trained: hops, historical rows, gradients, allocation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cellsmith.math.graph import candidate_table, gumbel_noise
from cellsmith.model.scagc.module import SCAGCModule
from cellsmith.model.scagc.tables import GraphTables, Rule

RULE = Rule(n_neighbors=4, edge_temperature=0.2, hub_penalty=0.5, relaxation_temperature=0.5)


def tables_of(
    n: int = 40, m: int = 10, d: int = 3, *, n_hops: int = 3, seed: int = 0, noisy: bool = True
) -> GraphTables:
    """Random latents, their candidates, and a drawn graph."""
    z = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    tables = GraphTables(candidate_table(z, m, seed=0), torch.from_numpy(z), rule=RULE, n_hops=n_hops, n_latent=d)
    noise = tuple(gumbel_noise((n, m), generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    tables.select(1.0 if noisy else 0.0, noise if noisy else (None, None))
    return tables


def weights_of(n_hidden: int = 6, d: int = 3, *, n_hops: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {"hop_weights": torch.randn(n_hops + 1, n_hidden, d), "bias": torch.randn(d)}


def dense_operator(tables: GraphTables, own: Tensor | None = None) -> Tensor:
    """A~ (n, n) from the selection, formed the plain way."""
    n = tables.n_cells
    w = tables.selected[0].float() if own is None else own
    rows = torch.arange(n)[:, None].expand_as(tables.candidates)
    directed = torch.zeros(n, n).index_put((rows, tables.candidates.long()), w)
    a = directed + directed.T - directed * directed.T
    root = a.sum(1).clamp(min=1e-8).rsqrt()
    return root[:, None] * a * root


def test_impulse_on_a_path_reaches_three_hops() -> None:
    """E9: [2, 3, 1, 1]; one hop repeated would give [1, 3, 0, 0]."""
    path = torch.diag(torch.ones(3), 1) + torch.diag(torch.ones(3), -1)
    tables = GraphTables(
        np.array([[1], [0], [1], [2]]), torch.zeros(4, 1), rule=RULE._replace(n_neighbors=1), n_hops=3, n_latent=1
    )
    tables.selected[:] = True  # edges 0-1, 1-2, 2-3
    h, ones = torch.tensor([[1.0], [0], [0], [0]]), torch.ones(4, 1, 1)
    rows = torch.arange(4)
    edges = tables.batch_edges(rows, only_selected=True)
    found, _ = tables.filter_rows(rows, edges, torch.ones(len(edges.row)), h=h, hop_weights=ones, bias=torch.zeros(1))
    np.testing.assert_allclose(found.ravel(), [2, 3, 1, 1])
    np.testing.assert_allclose(sum(torch.linalg.matrix_power(path, k) @ h for k in range(4)).ravel(), [2, 3, 1, 1])


def test_exact_pass_is_the_sum_over_powers_of_the_dense_graph() -> None:
    tables, weights = tables_of(), weights_of()
    h = torch.randn(40, 6)
    tables.recompute(h, **weights)
    a = dense_operator(tables)
    wanted = sum(torch.linalg.matrix_power(a, k) @ h @ weights["hop_weights"][k] for k in range(4)) + weights["bias"]
    torch.testing.assert_close(tables.z, wanted, atol=1e-5, rtol=1e-5)


def test_a_batch_of_all_cells_equals_the_exact_pass_in_value_and_gradient() -> None:
    tables, weights = tables_of(), weights_of()
    h = torch.randn(40, 6, requires_grad=True)
    rows = torch.randperm(40)
    own, hard = tables.draw_rows(rows, tables.alone[rows], which=0)
    edges = tables.batch_edges(rows, only_selected=False)
    values, degree = tables.batch_weights(rows, edges, own=own)
    z, _ = tables.filter_rows(rows, edges, values, h=h[rows], **weights)
    a = dense_operator(tables)
    wanted = sum(torch.linalg.matrix_power(a, k) @ h @ weights["hop_weights"][k] for k in range(4)) + weights["bias"]
    torch.testing.assert_close(z, wanted[rows], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(degree, tables.degree[0, rows])
    assert torch.equal(hard.bool(), tables.selected[0, rows])
    ours, theirs = (torch.autograd.grad(out.square().sum(), h)[0] for out in (z, wanted))
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


def test_gradient_to_the_edges_is_the_dense_one() -> None:
    tables, weights = tables_of(), weights_of()
    h, rows = torch.randn(40, 6), torch.arange(40)
    own = tables.selected[0].float().requires_grad_(True)
    edges = tables.batch_edges(rows, only_selected=False)
    z, _ = tables.filter_rows(rows, edges, tables.batch_weights(rows, edges, own=own)[0], h=h, **weights)
    dense = dense_operator(tables, own)
    wanted = sum(torch.linalg.matrix_power(dense, k) @ h @ weights["hop_weights"][k] for k in range(4))
    ours, theirs = (torch.autograd.grad(out.square().sum(), own)[0] for out in (z - weights["bias"], wanted))
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-3)
    assert (ours[tables.selected[0].logical_not()] != 0).any()  # edges that are not selected are told as well


def test_a_batch_with_fresh_tables_gives_its_rows_of_the_exact_pass() -> None:
    tables, weights = tables_of(), weights_of()
    h = torch.randn(40, 6)
    tables.recompute(h, **weights)
    rows = torch.tensor([3, 17, 30])
    edges = tables.batch_edges(rows, only_selected=True)
    z, hops = tables.filter_rows(rows, edges, tables.batch_weights(rows, edges)[0], h=h[rows], **weights)
    torch.testing.assert_close(z, tables.z[rows], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(hops, tables.hops[:, rows], atol=1e-5, rtol=1e-5)


def test_one_stale_row_changes_only_its_neighbours() -> None:
    tables, weights = tables_of(), weights_of()
    h = torch.randn(40, 6)
    tables.recompute(h, **weights)
    stale = 11
    tables.hops[:, stale] += 5.0
    neighbours = dense_operator(tables)[stale] > 0
    for cell in range(40):
        if cell == stale:
            continue
        rows = torch.tensor([cell])
        edges = tables.batch_edges(rows, only_selected=True)
        z, _ = tables.filter_rows(rows, edges, tables.batch_weights(rows, edges)[0], h=h[rows], **weights)
        assert torch.allclose(z, tables.z[rows], atol=1e-4) != bool(neighbours[cell])


def test_temperature_follows_the_gaps_between_cells() -> None:
    """Contracted latents would else be drawn from at random."""
    tables = tables_of()
    tables.scale_temperature()
    assert tables.temperature == pytest.approx(RULE.edge_temperature)
    tables.alone = tables.alone + 100.0 * torch.tensor([1.0, 0.0, 0.0])  # a cone, before centring
    tables.center = torch.zeros(3)
    tables.scale_temperature()
    assert tables.temperature < 0.01 * RULE.edge_temperature


def test_cells_choose_by_what_they_are_alone_and_not_by_smoothed_latents() -> None:
    tables, weights = tables_of(), weights_of()
    tables.recompute(torch.randn(40, 6), **weights)
    before = tables.logits()
    tables.z = torch.randn_like(tables.z)
    torch.testing.assert_close(tables.logits(), before)


def test_degree_spread_does_not_rise_with_the_penalty_on_hubs() -> None:
    spreads = []
    for penalty in (0.0, 0.5, 2.0):
        tables = tables_of(200, 30, 6, noisy=False)
        tables.rule = RULE._replace(hub_penalty=penalty)
        for _ in range(40):
            tables.select()
            tables.move_in_degree()
        found = tables.counted_in_degree()
        spreads.append(float(found.std() / found.mean()))
    assert spreads[0] > spreads[1] > spreads[2]


class LargestTensor(TorchDispatchMode):
    """Remember the largest number of elements that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for part in out if isinstance(out, tuple | list) else [out]:
            if isinstance(part, Tensor) and part.layout is torch.strided:
                self.largest = max(self.largest, part.numel())
        return out


@pytest.mark.parametrize("n", [6_000])
def test_a_training_step_forms_no_array_of_cells_by_cells(n: int) -> None:
    generator = np.random.default_rng(0)
    table = (np.arange(n)[:, None] + 1 + np.arange(20)) % n
    module = SCAGCModule(30, n_hidden=8, n_latent=3)
    module.tables = GraphTables(
        table, torch.from_numpy(generator.standard_normal((n, 3)).astype(np.float32)), rule=RULE, n_hops=3, n_latent=3
    )
    module.negatives = torch.Generator().manual_seed(0)
    with LargestTensor() as seen:
        noise = tuple(gumbel_noise((n, 20), generator=torch.Generator().manual_seed(k)) for k in (0, 1))
        module.tables.select(1.0, noise)
        module.tables.recompute(torch.randn(n, 8), hop_weights=module.hop_weights, bias=module.hop_bias)
        rows = torch.from_numpy(generator.choice(n, 256, replace=False))
        counts = torch.poisson(torch.full((256, 30), 2.0))
        batch = {"X": counts, "seen": (counts / 2).floor(), "rows": rows, "batch": torch.zeros(256, 1)}
        module.loss_learned(batch, weights={"graph": 0.3, "contrast": 0.1}).loss.backward()
    assert 0 < seen.largest < n * n / 20
