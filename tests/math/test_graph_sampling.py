"""Graphs that are drawn from candidates: laws of the draw, union, normalisation, export, number of communities."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.stats import chisquare

from cellsmith._errors import SetupError
from cellsmith.math import graph


def _blobs(n=60, k=3, d=5, seed=0, spread=8.0):
    rng = np.random.default_rng(seed)
    x = np.concatenate([rng.normal(size=(n, d)) + spread * rng.normal(size=d) for _ in range(k)])
    return x - x.mean(axis=0), np.repeat(np.arange(k), n)


def _exported(x, m=20, k=5, hub_penalty=0.5):
    z, listed = torch.from_numpy(x).float(), torch.from_numpy(graph.candidate_table(x, m, seed=0))
    rule = {"edge_temperature": 0.05, "hub_penalty": hub_penalty, "k": k}
    logits = graph.edge_logits(z, listed, in_degrees=graph.settled_in_degrees(z, listed, **rule), **rule)
    return graph.export_graph(logits.numpy(), listed.numpy(), x, k=k), logits, listed


def _draws(logits, n, *, scale=1.0, temperature=0.5, k=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return graph.gumbel_topk(
        logits.expand(n, -1), k, noise_scale=scale, relaxation_temperature=temperature, generator=generator
    )


# candidates and pairs


def test_candidates_are_the_nearest_and_give_every_batch_its_quota():
    x, batches = _blobs()
    table = graph.candidate_table(x, 18, seed=0)
    np.testing.assert_array_equal(table, graph.knn_table(x, 18, seed=0)[0])
    assert table.dtype == np.int32
    shared = batches[graph.candidate_table(x, 18, batches=batches, seed=0)]
    assert all((shared == b).sum(axis=1).min() >= 6 for b in range(3))
    assert not np.array_equal(shared, batches[table])
    # four batches leave fewer than five places each: no quotas
    np.testing.assert_array_equal(graph.candidate_table(x, 18, batches=np.arange(180) % 4, seed=0), table)


def test_pairs_are_all_once_with_their_places():
    table = graph.candidate_table(_blobs()[0], 7, seed=0)
    row, col, slot, reverse = graph.pair_list(table)
    assert all(part.dtype == np.int64 for part in (row, col, slot, reverse))
    wanted = {frozenset((i, int(j))) for i in range(len(table)) for j in table[i]}
    assert len(row) == len(wanted)
    assert {frozenset(pair) for pair in zip(row.tolist(), col.tolist(), strict=True)} == wanted
    np.testing.assert_array_equal(table[row, slot], col)
    both = reverse >= 0
    np.testing.assert_array_equal(table[col[both], reverse[both]], row[both])
    assert both.any()
    assert all(i not in table[j] for i, j in zip(row[~both], col[~both], strict=True))


# the draw


def test_first_pick_follows_softmax():
    logits = torch.tensor([[0.0, 0.5, 1.0, 2.0, -1.0]])
    hard, _ = _draws(logits, 20_000)
    expected = torch.softmax(logits[0], dim=0).double() * 20_000
    assert chisquare(hard.sum(dim=0).double(), expected * (20_000 / expected.sum())).pvalue > 1e-3


def test_pairs_are_drawn_without_replacement_from_softmax():
    p = torch.softmax(torch.tensor([0.0, 0.5, 1.5]).double(), dim=0)
    hard, _ = _draws(torch.tensor([[0.0, 0.5, 1.5]]), 20_000, k=2)
    assert (hard.sum(dim=1) == 2).all()
    left_out = torch.stack(
        [sum(p[a] * p[b] / (1 - p[a]) for a, b in ((i, j), (j, i))) for i, j in ((1, 2), (0, 2), (0, 1))]
    )
    assert chisquare((1 - hard).sum(dim=0).double(), left_out / left_out.sum() * 20_000).pvalue > 1e-3


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_relaxation_temperature_changes_no_choice(scale):
    logits = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    picks = [_draws(logits, 50, scale=scale, temperature=t, k=4)[0] for t in (0.1, 0.5, 2.0)]
    assert torch.equal(picks[0], picks[1])
    assert torch.equal(picks[0], picks[2])


def test_gradient_is_that_of_the_relaxation():
    logits = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    noise = graph.gumbel_noise((3, 6), generator=torch.Generator().manual_seed(1))
    weight = torch.arange(18.0, dtype=torch.float64).reshape(3, 6)

    def relaxed(values):
        return graph.gumbel_topk(values, 2, noise_scale=0.7, relaxation_temperature=0.5, noise=noise)[1]

    hard, _ = graph.gumbel_topk(logits, 2, noise_scale=0.7, relaxation_temperature=0.5, noise=noise)
    selected = graph.straight_through(hard, relaxed(logits))
    torch.testing.assert_close(selected.detach(), hard)
    (grad,) = torch.autograd.grad((selected * weight).sum(), logits)
    step = 1e-6
    for i, j in np.ndindex(3, 6):
        shift = torch.zeros(3, 6, dtype=torch.float64)
        shift[i, j] = step
        up, down = ((relaxed(logits.detach() + s * shift) * weight).sum() for s in (1, -1))
        assert grad[i, j].item() == pytest.approx(((up - down) / (2 * step)).item(), abs=1e-5)


def test_draw_refuses_what_it_cannot_do():
    with pytest.raises(SetupError, match="k=7"):
        graph.gumbel_topk(torch.zeros(2, 6), 7, noise_scale=0, relaxation_temperature=1)
    with pytest.raises(SetupError, match="generator="):
        graph.gumbel_topk(torch.zeros(2, 6), 2, noise_scale=1, relaxation_temperature=1)
    with pytest.raises(SetupError, match="relaxation_temperature=0"):
        graph.gumbel_topk(torch.zeros(2, 6), 2, noise_scale=0, relaxation_temperature=0)


def test_candidates_of_an_oracle_join_equal_types():
    labels = np.repeat(np.arange(6), 25)
    x = np.eye(6)[labels] + 1e-3 * np.random.default_rng(0).normal(size=(150, 6))
    listed = torch.from_numpy(graph.candidate_table(x, 40, seed=0))
    z = torch.from_numpy(x - x.mean(axis=0)).float()
    logits = graph.edge_logits(
        z, listed, edge_temperature=0.05, hub_penalty=0.5, in_degrees=torch.full((150,), 15.0), k=15
    )
    generator = torch.Generator().manual_seed(0)
    hard, _ = graph.gumbel_topk(logits, 15, noise_scale=1.0, relaxation_temperature=0.5, generator=generator)
    same = torch.from_numpy(labels[listed.numpy()] == labels[:, None])
    assert (hard * same).sum() / hard.sum() >= 0.98


# union and normalisation


def test_union_and_normalisation_equal_dense_ones_in_value_and_gradient():
    table = graph.candidate_table(_blobs(n=14)[0], 6, seed=0)
    n, pairs = len(table), graph.pair_list(table)
    w = torch.rand(n, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    rows, names = np.repeat(np.arange(n), 6), table.reshape(-1)
    dense = torch.zeros(n, n, dtype=torch.float64).index_put(
        (torch.from_numpy(rows), torch.from_numpy(names).long()), w.reshape(-1)
    )
    union = dense + dense.T - dense * dense.T
    root = union.sum(dim=1).rsqrt()
    normal = union * root[:, None] * root[None, :]
    sparse = graph.edge_normalise(graph.edge_union(w, pairs), pairs, n_cells=n)
    torch.testing.assert_close(sparse, normal[pairs.row, pairs.col])
    weight = torch.rand(len(sparse), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    a, b = ((values * weight).sum() for values in (sparse, normal[pairs.row, pairs.col]))
    torch.testing.assert_close(torch.autograd.grad(a, w), torch.autograd.grad(b, w))


def test_union_of_zeros_and_ones_is_the_smaller_of_their_sum_and_one():
    table = graph.candidate_table(_blobs(n=14)[0], 6, seed=0)
    pairs = graph.pair_list(table)
    w = (torch.rand(len(table), 6, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    back = torch.where(torch.from_numpy(pairs.reverse_slot) >= 0, w[pairs.col, np.maximum(pairs.reverse_slot, 0)], 0.0)
    assert torch.equal(graph.edge_union(w, pairs), (w[pairs.row, pairs.slot] + back).clamp(max=1))


def test_degrees_may_be_given():
    pairs = graph.pair_list(graph.candidate_table(_blobs(n=14)[0], 6, seed=0))
    a = torch.ones(len(pairs.row))
    own = graph.edge_normalise(a, pairs, n_cells=42)
    torch.testing.assert_close(
        graph.edge_normalise(a, pairs, n_cells=42, degrees=graph.pair_degrees(a, pairs, n_cells=42)), own
    )
    torch.testing.assert_close(graph.edge_normalise(a, pairs, n_cells=42, degrees=torch.full((42,), 4.0)), a / 4)


# the exported graph


def test_export_is_symmetric_connected_and_deterministic():
    x, _ = _blobs()
    (connectivities, distances, n_bridges), _, _ = _exported(x)
    assert connectivities.dtype == np.float32
    assert (connectivities != connectivities.T).nnz == 0
    assert (distances != distances.T).nnz == 0
    assert connectivities.diagonal().sum() == 0
    np.testing.assert_array_equal(connectivities.indices, distances.indices)
    assert connectivities.has_sorted_indices
    assert graph.n_components(connectivities) == 1
    assert n_bridges >= 2
    assert connectivities.data.max() <= 1
    again = _exported(x)[0]
    assert (again.connectivities != connectivities).nnz == 0
    row, col = connectivities.nonzero()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    chord = np.sqrt(np.maximum(2 - 2 * (unit[row] * unit[col]).sum(axis=1), 0))
    np.testing.assert_allclose(np.asarray(distances[row, col]).ravel(), np.maximum(chord, 1e-6), atol=1e-5)


def test_every_cell_keeps_its_k_best_and_bridges_are_weak():
    x, _ = _blobs()
    (connectivities, _, n_bridges), logits, listed = _exported(x)
    best = np.take_along_axis(listed.numpy(), np.argsort(-logits.numpy(), axis=1, kind="stable")[:, :5], axis=1)
    assert all(connectivities[i, j] > 0 for i in range(len(best)) for j in best[i])
    assert all(connectivities[i, best[i, 0]] == 1 for i in range(len(best)))
    labels = np.repeat(np.arange(3), 60)
    between = connectivities.tocoo()
    across = labels[between.row] != labels[between.col]
    assert across.sum() == 2 * n_bridges  # blobs this far apart share no chosen edge
    np.testing.assert_allclose(between.data[across], 1e-3 * np.median(between.data[~across]), rtol=1e-5)


def test_duplicates_and_candidates_that_never_meet():
    x = np.repeat(np.array([[5.0, 0], [-5, 0], [0, 7]]), 12, axis=0)
    x = x - x.mean(axis=0)
    (connectivities, distances, n_bridges), _, _ = _exported(x, m=8, k=4)
    assert graph.n_components(connectivities) == 1
    assert n_bridges >= 2
    assert np.isfinite(connectivities.data).all()
    assert (distances.data >= 1e-6).all()


def test_scanpy_takes_the_graph():
    sc = pytest.importorskip("scanpy")
    from anndata import AnnData

    x, labels = _blobs()
    (connectivities, distances, _), _, _ = _exported(x)
    adata = AnnData(x.astype(np.float32))
    adata.obsp = {"connectivities": connectivities, "distances": distances}
    adata.uns["neighbors"] = {
        "connectivities_key": "connectivities",
        "distances_key": "distances",
        "params": {"n_neighbors": 5, "method": "umap"},
    }
    adata.obs["type"] = labels.astype(str)
    adata.obs["type"] = adata.obs["type"].astype("category")
    sc.tl.paga(adata, groups="type")
    assert adata.uns["paga"]["connectivities"].shape == (3, 3)


def test_degrees_do_not_spread_more_with_the_penalty():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 20))
    spread = []
    for penalty in (0.0, 0.25, 0.5, 1.0, 2.0):
        degrees = np.diff(_exported(x - x.mean(axis=0), m=40, k=10, hub_penalty=penalty)[0].connectivities.indptr)
        spread.append(degrees.std() / degrees.mean())
    assert all(b <= a + 0.01 for a, b in pairwise(spread))
    assert spread[-1] < 0.7 * spread[0]


def test_export_refuses_tables_that_do_not_fit():
    with pytest.raises(SetupError, match=r"\(5, 3\)"):
        graph.export_graph(np.zeros((5, 3)), np.zeros((5, 4), int), np.zeros((5, 2)), k=2)
    with pytest.raises(SetupError, match="k=4"):
        graph.export_graph(np.zeros((5, 3)), np.zeros((5, 3), int), np.zeros((5, 2)), k=4)


# number of communities


def test_exact_number_by_resolution_or_by_spectrum():
    x, labels = _blobs(k=4)
    found = graph.fuzzy_union(*graph.knn_table(x, 10, seed=0))
    clusters, resolution = graph.leiden_exact(found, 4, seed=0)
    assert len(np.unique(clusters)) == 4
    assert resolution is not None
    np.testing.assert_array_equal(np.unique(np.c_[clusters, labels], axis=0).shape, (4, 2))
    assert graph.leiden_exact(found, 1, seed=0)[0].max() == 0
    # two separate cliques never make one community, and one clique no three
    clique = sp.csr_matrix(np.kron(np.eye(2), 1 - np.eye(8)))
    forced, none = graph.leiden_exact(clique, 3, seed=0)
    assert none is None
    assert len(np.unique(forced)) == 3
    with pytest.raises(SetupError, match="n_clusters=0"):
        graph.leiden_exact(found, 0, seed=0)


def test_spectral_clusters_find_blobs():
    x, labels = _blobs(n=40)
    found = graph.connect_components(graph.fuzzy_union(*graph.knn_table(x, 10, seed=0)), x)
    clusters = graph.spectral_clusters(found, 3, seed=0)
    assert len(np.unique(np.c_[clusters, labels], axis=0)) == 3
    np.testing.assert_array_equal(clusters, graph.spectral_clusters(found, 3, seed=0))


R = np.array([0.1, 0.2, 0.4, 0.8, 1.6])


@pytest.mark.parametrize(
    ("counts", "stability", "best", "ids"),
    [
        ([4, 4, 4, 4, 4], [0.9, 0.9, 0.95, 0.9, 0.9], 2, [0, 0, 0, 0, 0]),  # constant
        ([1, 1, 1, 1, 1], [1, 1, 1, 1, 1], None, [-1] * 5),  # one community is no plateau
        ([2, 5, 5, 6, 9], [0.9] * 5, 1, [-1, 0, 0, 0, -1]),  # a step of 1 is allowed
        ([1, 3, 3, 7, 7], [1, 0.9, 0.9, 0.86, 0.99], 4, [-1, 1, 1, 0, 0]),  # equal widths: the more stable one
        ([3, 3, 5, 7, 7], [0.9, 0.9, 0.5, 0.9, 0.9], 3, [1, 1, -1, 0, 0]),  # equal scores: more communities
        ([3, 3, 3, 7, 7], [0.6, 0.6, 0.6, 0.2, 0.2], 0, [0, 0, 0, -1, -1]),  # nothing stable: near the best
        ([2, 4, 6, 8, 10], [0.9] * 5, None, [-1] * 5),  # a single resolution has no width
    ],
)
def test_plateau_on_curves_made_by_hand(counts, stability, best, ids):
    found = graph.plateau(R, counts, stability)
    assert found.best == best
    assert found.ids.tolist() == ids


def test_plateau_refuses_unequal_lengths():
    with pytest.raises(SetupError, match="5 resolutions, 4 numbers"):
        graph.plateau(R, [2] * 4, [1] * 5)


def test_stability_is_high_at_the_true_number():
    x, _ = _blobs(k=3, spread=6)
    rng = np.random.default_rng(0)
    whole = graph.fuzzy_union(*graph.knn_table(x, 10, seed=0))
    graphs = []
    for _ in range(4):
        kept = sp.triu(whole).tocoo()
        keep = rng.random(kept.nnz) < 0.8
        half = sp.coo_matrix((kept.data[keep], (kept.row[keep], kept.col[keep])), shape=whole.shape).tocsr()
        graphs.append(half + half.T)
    counts, stability = graph.leiden_stability(graphs, [0.3, 3.0], seed=0)
    assert counts[0] == 3
    assert stability[0] > 0.99
    assert stability[1] < 0.9
    with pytest.raises(SetupError, match="1 graphs"):
        graph.leiden_stability(graphs[:1], [1.0], seed=0)
