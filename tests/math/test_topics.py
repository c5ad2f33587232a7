"""Topics on arrays: hand examples, central differences, and faults of public code (F8, F11, F12, F18)."""

from __future__ import annotations

import itertools
import math
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

from cellsmith._errors import SetupError
from cellsmith.math import topics
from cellsmith.math.enrichment import parse_gmt

# tables


def tables(n_topics=4, n_genes=30, n_coordinates=5):
    generator = torch.Generator().manual_seed(0)
    draw = lambda n: torch.randn(n, n_coordinates, dtype=torch.float64, generator=generator) * 0.4
    return draw(n_topics), draw(n_genes)


def test_distances_are_squared_and_columns_of_beta_sum_to_one():
    topic_table, gene_table = tables()
    distances = topics.squared_distances(topic_table, gene_table)
    torch.testing.assert_close(distances, torch.cdist(topic_table, gene_table) ** 2)
    beta = topics.topic_gene(distances, temperature=0.2)
    torch.testing.assert_close(beta.sum(dim=0), torch.ones(30, dtype=torch.float64))
    by_hand = torch.exp(-distances[:, 3] / 0.2)
    torch.testing.assert_close(beta[:, 3], by_hand / by_hand.sum())


def test_equal_rows_have_no_negative_distance():
    row = torch.full((1, 200), 0.1)
    assert topics.squared_distances(row, row).item() == pytest.approx(0.0, abs=1e-6)
    assert topics.squared_distances(row, row).item() >= 0


def test_distances_of_fifty_give_finite_values_and_gradients():
    """F12: the published kernel exp(-20 D) lies below its own guard already at the start."""
    distances = torch.linspace(0, 50, 60).reshape(3, 20).requires_grad_()
    loss, _ = topics.ecr(distances)
    (loss + topics.topic_gene(distances, temperature=0.2).square().sum()).backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(distances.grad).all()


def test_ecr_is_the_cost_of_the_plan_and_its_margins_hold():
    distances = topics.squared_distances(*tables())
    loss, plan = topics.ecr(distances)
    assert loss.item() == pytest.approx((plan.plan * distances).sum().item())
    assert plan.converged
    assert (plan.plan.sum(dim=0) - 1 / 30).abs().sum() <= 5e-3
    assert (plan.plan.sum(dim=1) - 1 / 4).abs().sum() <= 5e-3


def gradient_of(distances, gradient):
    at = distances.clone().requires_grad_()
    topics.ecr(at, gradient=gradient, tol=1e-12, max_sweeps=5000)[0].backward()
    return at.grad


def test_gradient_of_ecr_runs_through_the_plan():
    """T13: unrolled = implicit = central differences; the plan held fixed is another gradient."""
    distances = topics.squared_distances(*tables())
    unrolled = gradient_of(distances, "unrolled")
    torch.testing.assert_close(unrolled, gradient_of(distances, "implicit"), rtol=1e-5, atol=1e-9)
    numeric = torch.zeros_like(distances)
    for k, j in itertools.product(range(4), range(0, 30, 7)):
        moved = [distances.clone() for _ in range(2)]
        moved[0][k, j] += 1e-5
        moved[1][k, j] -= 1e-5
        up, down = (topics.ecr(d, tol=1e-12, max_sweeps=5000)[0].item() for d in moved)
        numeric[k, j] = (up - down) / 2e-5
    torch.testing.assert_close(unrolled[:, ::7], numeric[:, ::7], rtol=1e-5, atol=1e-8)
    envelope = gradient_of(distances, "envelope")
    torch.testing.assert_close(envelope, topics.ecr(distances, tol=1e-12, max_sweeps=5000)[1].plan)
    assert (envelope - unrolled).norm() > 0.1 * unrolled.norm()


def test_bad_tables_and_temperatures_are_refused():
    with pytest.raises(SetupError, match=r"expected \(K, L\) and \(V, L\)"):
        topics.squared_distances(torch.zeros(2, 3), torch.zeros(4, 5))
    with pytest.raises(SetupError, match="temperature=0"):
        topics.topic_gene(torch.zeros(2, 3), temperature=0)


# readings


def test_decoder_reading_is_the_slope_of_the_decoder():
    rng = np.random.default_rng(0)
    beta = rng.dirichlet(np.ones(3), size=8).T
    norm = torch.nn.BatchNorm1d(8).double().eval()
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.copy_(torch.as_tensor(rng.uniform(0.5, 2, 8)))
    theta = torch.as_tensor(rng.dirichlet(np.ones(3), size=1)).requires_grad_()
    slope = torch.autograd.functional.jacobian(lambda t: norm(t @ torch.as_tensor(beta))[0], theta)[:, 0].T
    reading = topics.decoder_reading(beta, norm.weight.detach(), norm.running_var, eps=norm.eps)
    np.testing.assert_allclose(reading, slope.numpy(), rtol=1e-12)


def test_profile_lift_and_frex_by_hand():
    profiles = topics.profile(np.add(np.log([[1.0, 2.0, 1.0], [6.0, 1.0, 1.0]]), [[1000.0], [-1000.0]]))
    np.testing.assert_allclose(profiles, [[0.25, 0.5, 0.25], [0.75, 0.125, 0.125]])
    np.testing.assert_allclose(topics.lift(profiles, [0.5, 0.5, 0.0]), [[0.5, 1.0, 0.0], [1.5, 0.25, 0.0]], rtol=1e-12)
    # ranks of the first topic: (1.5, 3, 1.5) / 3 and (3, 2, 1) / 3
    np.testing.assert_allclose(
        topics.frex(profiles[:1], [[0.9, 0.5, 0.1]]), [[1 / (0.5 / 0.5 + 0.5), 1 / (0.5 + 0.75), 1 / (1 + 1.5)]]
    )


def test_top_genes_leave_out_what_is_not_modelled_and_break_ties_by_position():
    beta = np.array([[0.2, 0.0, 0.9, 0.2, 0.1], [0.8, 0.0, 0.1, 0.8, 0.9]])
    assert topics.top_genes(beta, 3).tolist() == [[2, 0, 3], [4, 0, 3]]
    with pytest.raises(SetupError, match="expected 1 to 4"):
        topics.top_genes(beta, 5)
    with pytest.raises(SetupError, match="finite"):
        topics.top_genes([[np.nan]], 1)


# diversity


def test_diversity_by_hand():
    lists = [["a", "b", "c", "d"], ["a", "b", "c", "e"], ["a", "f", "g", "h"]]
    found = topics.diversity(lists, 100)
    assert found.once == pytest.approx(5 / 12)  # d, e, f, g, h
    assert found.unique == pytest.approx(8 / 12)
    assert found.bound == 1.0
    assert found.redundant.tolist() == [True, True, False]  # three of four in common
    assert found.redundancy == pytest.approx(2 / 3)
    half = topics.diversity([["a", "b", "c", "d"], ["a", "b", "x", "y"]], 100)
    assert half.redundancy == 0.0  # half of a list is not more than half
    assert topics.diversity(np.arange(10).reshape(2, 5), 10)[:4] == (1.0, 1.0, 1.0, 0.0)


def test_diversity_prints_its_bound():
    lists = np.argsort(np.random.default_rng(0).normal(size=(100, 765)))[:, :10]
    found = topics.diversity(lists, 765)
    assert found.bound == 0.765
    assert found.once <= found.unique <= found.bound


def test_names_with_hyphens_dots_and_single_letters_change_nothing():
    """F8: public code joins names to text and splits it into words: HLA-DRA and HLA-DRB1 share 'hla'."""
    lists = np.argsort(np.random.default_rng(1).normal(size=(8, 40)))[:, :6]
    names = [f"HLA-{i}" for i in range(20)] + [f"RP11-1.{i}" for i in range(10)] + [*"ABCDEFGHIJ"]
    # case matters too: "a" and "A" are two genes
    names[3], names[4] = "a", "NKX2-2"
    renamed = np.array(names, dtype=object)[lists]
    plain, named = topics.diversity(lists, 40), topics.diversity(renamed, 40)
    assert plain[:4] == named[:4]
    assert plain.redundant.tolist() == named.redundant.tolist()


def test_lists_with_a_gene_twice_are_refused():
    with pytest.raises(SetupError, match="lists a gene twice"):
        topics.diversity([["a", "a"]], 5)
    with pytest.raises(SetupError, match=r"expected \(K, N\)"):
        topics.diversity(["a", "b"], 5)


# coherence


def npmi(both, a, b):
    return math.log(both / (a * b)) / -math.log(both)


def test_data_npmi_by_hand():
    """Four cells: a and b share two of them, c is in none, d in all."""
    x = np.array([[1, 2, 0, 1], [3, 1, 0, 1], [1, 0, 0, 5], [0, 0, 0, 1]])
    pair = npmi(2 / 4, 3 / 4, 2 / 4)
    found = topics.data_npmi(x, [[0, 1], [0, 2], [3, 0]])
    np.testing.assert_allclose(found, [pair, -1.0, npmi(3 / 4, 1.0, 3 / 4)], atol=1e-12)
    np.testing.assert_allclose(topics.data_npmi(x, [[0, 1, 2]]), [(pair - 2) / 3])
    np.testing.assert_allclose(topics.data_npmi(np.ones((5, 2)), [[0, 1]]), [0.0])
    assert np.isnan(topics.data_npmi(x, [[0]])).all()
    np.testing.assert_array_equal(topics.data_npmi(sparse.csr_matrix(x), [[0, 1], [0, 2], [3, 0]]), found)


SETS = {"s1": ["a", "b"], "s2": ["a", "b", "e"], "s3": ["a", "c"], "s4": ["e"]}


def test_both_forms_of_set_npmi_by_hand():
    """F11: the published form gives pairs that no set holds 0, so that it hardly ever turns negative."""
    together, apart = npmi(2 / 4, 3 / 4, 2 / 4), npmi(1 / 4, 3 / 4, 1 / 4)
    lists = [["a", "b", "c"], ["b", "c", "x"]]
    published = topics.set_npmi(lists, SETS)
    np.testing.assert_allclose(published.per_topic, [(together + apart + 0) / 3, 0.0], atol=1e-12)
    strict = topics.set_npmi(lists, SETS, form="strict")
    np.testing.assert_allclose(strict.per_topic, [(together + apart - 1) / 3, -1.0])
    assert published.n_outside == strict.n_outside == 1
    assert np.isnan(topics.set_npmi([["x", "a"]], SETS, form="strict").per_topic).all()


def test_set_npmi_refuses_other_forms_and_no_sets():
    with pytest.raises(SetupError, match="Did you mean 'strict'"):
        topics.set_npmi([["a", "b"]], SETS, form="strikt")
    with pytest.raises(SetupError, match="no gene set"):
        topics.set_npmi([["a", "b"]], {})


def peak_of_set_npmi(lists, sets):
    tracemalloc.start()
    for form in topics.coherence.FORMS:
        topics.set_npmi(lists, sets, form=form)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_genes_times_sets():
    """F18: public code forms a dense table of sets x genes."""
    rng = np.random.default_rng(0)
    genes = np.array([f"G{i}" for i in range(14_000)])
    sets = {f"s{i}": genes[rng.integers(0, 14_000, 40)].tolist() for i in range(6_000)}
    lists = [genes[rng.choice(14_000, 10, replace=False)].tolist() for _ in range(100)]
    assert peak_of_set_npmi(lists, sets) < 50e6  # the dense table has 670 MB


GO = Path(os.environ.get("CELLSMITH_DATA", Path(__file__).parents[3] / "shared" / "data")) / "genesets/GO_BP_2021.gmt"


@pytest.mark.needs_data
@pytest.mark.skipif(not GO.exists(), reason="GO_BP_2021.gmt is not on this machine")
def test_memory_with_the_published_collection():
    with GO.open() as lines:
        sets = parse_gmt(lines)
    assert len(sets) == 6_036
    names = sorted({gene for genes in sets.values() for gene in genes})
    lists = [names[i::100][:10] for i in range(100)]
    assert peak_of_set_npmi(lists, sets) < 200e6


# quality, stability, perplexity


def test_agreement_is_of_what_rises_above_the_average_topic():
    rng = np.random.default_rng(0)
    beta, other = rng.dirichlet(np.full(5, 0.1), size=(2, 30)).transpose(0, 2, 1)
    above = topics.matched_cosine(beta - 1 / 5, other - 1 / 5)[2]
    np.testing.assert_allclose(topics.agreement(beta, other), above)
    np.testing.assert_allclose(topics.agreement(beta + 7, other), above)
    np.testing.assert_allclose(topics.agreement(beta, beta[rng.permutation(5)]), 1.0)
    assert topics.agreement(np.ones((5, 30)), other).tolist() == [0.0] * 5


def test_topic_quality_counts_no_negative_coherence():
    assert topics.topic_quality(0.8, 0.2) == pytest.approx(0.16)
    assert topics.topic_quality(0.8, -0.2) == 0.0


def test_matched_cosine_undoes_a_permutation():
    rng = np.random.default_rng(0)
    beta = rng.dirichlet(np.full(30, 0.1), size=5)
    order = rng.permutation(5)
    rows, columns, cosines = topics.matched_cosine(beta, 3 * beta[order])
    assert order[columns].tolist() == rows.tolist()
    np.testing.assert_allclose(cosines, 1.0)
    assert len(topics.matched_cosine(beta, beta[:3])[2]) == 3
    assert topics.matched_cosine(np.zeros((1, 30)), beta[:1])[2].tolist() == [0.0]
    with pytest.raises(SetupError, match="the same genes"):
        topics.matched_cosine(beta, beta[:, :9])


def test_perplexity_of_the_true_model_is_that_of_its_entropy():
    """N2: within 1 % of exp(entropy) on simulated counts."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(200, 0.5), size=50)
    totals = rng.integers(500, 2000, 50)
    counts = np.stack([rng.multinomial(t, row) for t, row in zip(totals, p, strict=True)])
    entropy = -(totals[:, None] * p * np.log(p)).sum() / totals.sum()
    found = topics.perplexity(sparse.csr_matrix(counts), p)
    assert found == pytest.approx(math.exp(entropy), rel=0.01)
    assert topics.perplexity(counts, np.full(p.shape, 1 / 200)) == pytest.approx(200.0)


def test_perplexity_by_hand_and_its_limits():
    assert topics.perplexity([[2, 1, 0]], [[0.5, 0.25, 0.25]]) == pytest.approx(
        math.exp((2 * math.log(2) + math.log(4)) / 3)
    )
    assert topics.perplexity([[1, 1]], [[1.0, 0.0]]) == math.inf
    assert topics.perplexity([[1, 0]], [[1.0, 0.0]]) == 1.0
    with pytest.raises(SetupError, match="total 0"):
        topics.perplexity([[0, 0]], [[0.5, 0.5]])
