"""The equations that stand alone, and what the tables EQUATIONS and DEVIATIONS claim (T1-T22)."""

from __future__ import annotations

import numpy as np
import pytest
import scanpy as sc
import torch
from anndata import AnnData
from scipy import sparse

from cellsmith.math import likelihood, topics
from cellsmith.math.counts import GeneMoments, choose_genes
from cellsmith.model.sce2tm import equations as eq
from cellsmith.model.sce2tm.module import SCE2TMModule


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def module(**options: object) -> SCE2TMModule:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SCE2TMModule(30, n_all_genes=30, n_topics=5, n_hidden=8, n_embedding=6, **options)


def test_every_equation_has_its_number() -> None:
    assert list(eq.EQUATIONS) == [f"T{i}" for i in range(1, 35)]


def test_first_deviation_states_what_was_available() -> None:
    first = eq.DEVIATIONS[0]
    assert first.published.startswith("abstracts and public code only")
    assert "not certified" in first.change


@pytest.mark.parametrize(("n", "expected"), [(50, 12), (700, 27), (2100, 36), (4271, 43), (10**6, 50), (5, 10)])
def test_topics_by_size(n: int, expected: int) -> None:
    assert eq.choose_n_topics_by_size(n) == expected


def test_input_is_scanpys_log_cp10k_over_all_genes() -> None:
    counts = sparse.random(
        40, 30, density=0.4, random_state=0, data_rvs=lambda n: np.ceil(9 * np.random.default_rng(0).random(n))
    )
    counts = sparse.csr_matrix(counts + sparse.csr_matrix((np.ones(40), (range(40), [0] * 40)), shape=(40, 30)))
    adata = AnnData(counts.astype(np.float32))
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    x = eq.log_normalize(torch.tensor(counts.toarray()), torch.tensor(counts.sum(axis=1)))
    np.testing.assert_allclose(x.numpy(), adata.X.toarray(), rtol=1e-5)


def test_genes_are_those_of_scanpy() -> None:
    generator = np.random.default_rng(0)
    rate = generator.gamma(0.5, 2.0, size=300)
    state = np.exp(generator.normal(size=(200, 300)) * generator.random(300))
    counts = generator.poisson(rate * state).astype(np.float32)
    counts[:, :7] = 0
    adata = AnnData(sparse.csr_matrix(counts))
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.highly_variable_genes(adata, flavor="seurat", n_top_genes=60)
    chosen = choose_genes(GeneMoments.of([sparse.csr_matrix(counts[:120]), sparse.csr_matrix(counts[120:])]), 60)
    assert len(chosen) == 60
    assert len(set(chosen) & set(np.flatnonzero(adata.var["highly_variable"]))) >= 59  # one may tie at the edge
    assert np.array_equal(
        choose_genes(GeneMoments.of([sparse.csr_matrix(counts)]), 1000), np.flatnonzero(counts.sum(0))
    )


def test_columns_of_beta_sum_to_one_and_rows_do_not() -> None:
    beta = module().beta()
    torch.testing.assert_close(beta.sum(dim=0), torch.ones(30))
    assert float(beta.detach().sum(dim=1).min()) > 1.0


def test_kl_is_zero_at_the_prior_and_positive_elsewhere() -> None:
    prior = torch.tensor(eq.prior_variance(5, 2.0), dtype=torch.float64)
    assert float(prior) == pytest.approx(0.4)
    at_prior = eq.prior_kl(torch.zeros(3, 5, dtype=torch.float64), prior.log().expand(3, 5), prior)
    torch.testing.assert_close(at_prior, torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    assert bool((eq.prior_kl(random(50, 5), random(50, 5, seed=1), prior) > 0).all())
    normal = torch.distributions.Normal
    mean, log_variance = random(20, 5), random(20, 5, seed=1)
    expected = torch.distributions.kl_divergence(
        normal(mean, (0.5 * log_variance).exp()), normal(torch.zeros_like(mean), prior.sqrt())
    )
    torch.testing.assert_close(eq.prior_kl(mean, log_variance, prior), expected.sum(dim=1))


def test_contrast_of_equal_cosines_is_the_log_of_the_candidates() -> None:
    same = torch.full((12, 5), 0.2)
    assert float(eq.distil(same, same, temperature=0.5)) == pytest.approx(np.log(2 * 5 - 1), rel=1e-6)


def test_consistency_and_balance_at_their_ends() -> None:
    one = torch.eye(5)
    assert float(eq.consistency(one, one)) == 0.0
    assert float(eq.balance(one, one)) == pytest.approx(2 * np.log(5), rel=1e-6)
    collapsed = torch.zeros(4, 5)
    collapsed[:, 0] = 1.0
    assert float(eq.balance(collapsed, collapsed)) == 0.0


def test_reconstruction_is_finite_where_a_softmax_underflows() -> None:
    """F12: log(softmax) of these logits is -inf, and its gradient NaN."""
    logits = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    assert bool(torch.isinf(logits.softmax(dim=1).log()).any())
    loss = eq.neg_log_multinomial(torch.ones(1, 3), logits).sum()
    loss.backward()
    assert bool(torch.isfinite(loss))
    assert bool(torch.isfinite(logits.grad).all())


def test_transport_term_is_finite_for_large_distances() -> None:
    """F12: exp(-20 D) is 0 in float32 from D = 5 on."""
    distances = torch.linspace(0, 50, 150).reshape(5, 30).requires_grad_()
    loss, plan = topics.ecr(distances, epsilon=0.05)
    loss.backward()
    assert plan.converged
    assert bool(torch.isfinite(loss))
    assert bool(torch.isfinite(distances.grad).all())


def test_terms_are_summed_with_their_weights() -> None:
    """F5: doubling a weight adds exactly its term."""
    terms = {"reconstruction": torch.tensor(7.0), "kl": torch.tensor(2.0), "ecr": torch.tensor(0.5)}
    base = float(eq.total_loss(terms, {"ecr": 100.0}))
    assert base == 59.0
    assert float(eq.total_loss(terms, {"ecr": 200.0})) == base + 50.0


def test_normalized_expression_inverts_the_log() -> None:
    log_rho = torch.log_softmax(random(6, 10), dim=1)
    mass = torch.linspace(5, 9, 6, dtype=torch.float64)
    c = eq.normalized_expression(log_rho, mass, library_size=1e4)
    torch.testing.assert_close(c.sum(dim=1), torch.full((6,), 1e4, dtype=torch.float64))
    y = mass[:, None] * log_rho.exp()
    torch.testing.assert_close(c / c[:, :1], torch.expm1(y) / torch.expm1(y[:, :1]))
    empty = eq.normalized_expression(log_rho, torch.zeros(6, dtype=torch.float64), library_size=1.0)
    torch.testing.assert_close(empty, log_rho.exp())
    torch.testing.assert_close(eq.normalized_expression(log_rho, None, library_size=1.0), log_rho.exp())


def test_normalized_expression_is_finite_where_one_gene_leads() -> None:
    """A share of one half of S = 2,000 is an exponent of 1,000; float32 ends at 88."""
    log_rho = torch.tensor([[0.5, 0.49, 0.01], [0.98, 0.01, 0.01]]).log()
    c = eq.normalized_expression(log_rho, torch.tensor([2000.0, 100.0]))
    torch.testing.assert_close(c.sum(dim=1), torch.full((2,), 1e4))
    wide = torch.expm1(torch.tensor([2000.0, 100.0], dtype=torch.float64)[:, None] * log_rho.double().exp())
    torch.testing.assert_close(c[1].double(), 1e4 * wide[1] / wide[1].sum(), rtol=1e-4, atol=1e-6)
    assert c[0, 0] > 9999


@pytest.mark.parametrize("scale", ["free", "fixed"])
def test_decoder_reading_is_the_slope_of_the_logits(scale: str) -> None:
    """F13: what beta says and what reconstructs are two things where the decoder has weights of its own."""
    built = module(decoder_scale=scale).double()
    for name in ("weight", "running_var"):
        if scale == "free" or name == "running_var":
            getattr(built.decoder_norm, name).data.copy_(random(30).abs() + 0.1)
    built.eval()
    theta = torch.full((1, 5), 0.2, dtype=torch.float64)
    codes = torch.zeros(1, 0, dtype=torch.long)
    slope = torch.autograd.functional.jacobian(lambda t: built.logits(t, codes)[0], theta)[:, 0]
    norm = built.decoder_norm
    reading = topics.decoder_reading(built.beta().detach(), norm.weight.detach(), norm.running_var, eps=norm.eps)
    np.testing.assert_allclose(slope.T.numpy(), reading, rtol=1e-9)
    assert ("decoder_norm.weight" in dict(built.named_parameters())) == (scale == "free")


def test_offsets_add_up_over_columns_and_unseen_levels_get_the_mean() -> None:
    built = module(n_levels=(2, 3))
    built.level_offset.data.copy_(random(5, 30))
    rows = built.offsets(torch.tensor([[0, 0], [1, 2], [2, 1], [2, 3]]))
    table = built.level_offset
    torch.testing.assert_close(rows[0], table[0] + table[2])
    torch.testing.assert_close(rows[1], table[1] + table[4])
    torch.testing.assert_close(rows[2], table[:2].mean(dim=0) + table[3])
    torch.testing.assert_close(rows[3], table[:2].mean(dim=0) + table[2:].mean(dim=0))


def test_negative_binomial_is_that_of_the_shared_likelihood() -> None:
    built = module(gene_likelihood="nb")
    counts = torch.poisson(torch.rand(4, 30) * 3 + 0.1)
    logits = random(4, 30).float()
    total = counts.sum(dim=1)
    mean = total[:, None] * logits.softmax(dim=1)
    expected = -likelihood.nb_log_prob(counts, mean, built.log_theta.exp())
    torch.testing.assert_close(built.neg_log_likelihood(counts, counts, logits), expected, rtol=1e-4, atol=1e-4)


def test_numbering_of_topics_carries_every_part_along() -> None:
    built = module(n_view=4).eval()
    x, view = random(6, 30).float(), random(6, 4).float()
    before = (*built.encoder(x), built.beta(), built.head(view))
    order = torch.tensor([3, 1, 4, 0, 2])
    built.permute_topics(order)
    after = (*built.encoder(x), built.beta(), built.head(view))
    for old, new in zip(before[:2] + before[3:], after[:2] + after[3:], strict=True):
        torch.testing.assert_close(new, old[:, order])
    torch.testing.assert_close(after[2], before[2][order])
