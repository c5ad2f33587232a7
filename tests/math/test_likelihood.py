from __future__ import annotations

import numpy as np
import pytest
import torch

from cellsmith._errors import SetupError
from cellsmith.math.likelihood import CountEntries, count_entries, nb_log_prob, nb_log_prob_softmax, zinb_log_prob

N, G = 5, 7


@pytest.fixture(params=["theta_gene", "theta_cell"])
def problem(request):
    """Counts with zeros, ones, values around the end of the lookup table and large ones; float64 parameters."""
    rng = np.random.default_rng(1)
    x = rng.choice([0, 0, 0, 1, 2, 5, 11, 12, 13, 14, 60], (N, G)).astype(np.float64)
    x[0] = 0
    theta = rng.gamma(2, 1, G if request.param == "theta_gene" else (N, G)) + 0.2
    arrays = (x, rng.gamma(1, 3, (N, G)) + 0.05, theta, rng.normal(0, 1, (N, G)), rng.uniform(5, 50, N))
    return [torch.tensor(a) for a in arrays]


@pytest.mark.parametrize("kind", ["nb", "zinb", "softmax"])
def test_gradient_is_the_derivative_of_the_value(problem, kind):
    x, mean, theta, logits, library = problem
    wanted = {"nb": (mean, theta), "zinb": (mean, theta, logits), "softmax": (logits, theta, library)}[kind]
    functions = {
        "nb": lambda m, t: nb_log_prob(x, m, t),
        "zinb": lambda m, t, p: zinb_log_prob(x, m, t, dropout_logits=p),
        "softmax": lambda f, t, l: nb_log_prob_softmax(x, f, t, library=l),
    }
    assert torch.autograd.gradcheck(functions[kind], tuple(a.clone().requires_grad_() for a in wanted))


def test_dense_csr_and_entries_agree(problem):
    x, mean, theta, logits, library = problem
    for form in (x.to_sparse_csr(), count_entries(x), count_entries(x.to_sparse_csr()), x.int(), x.float()):
        torch.testing.assert_close(nb_log_prob(form, mean, theta), nb_log_prob(x, mean, theta))
        torch.testing.assert_close(
            zinb_log_prob(form, mean, theta, dropout_logits=logits),
            zinb_log_prob(x, mean, theta, dropout_logits=logits),
        )
        torch.testing.assert_close(
            nb_log_prob_softmax(form, logits, theta, library=library[:, None]),
            nb_log_prob_softmax(x, logits, theta, library=library),
        )


def test_softmax_form_equals_the_composition(problem):
    x, _, theta, logits, library = problem
    whole = nb_log_prob_softmax(x, logits, theta, library=library)
    torch.testing.assert_close(whole, nb_log_prob(x, library[:, None] * torch.softmax(logits, 1), theta))


def test_only_asked_gradients_are_computed(problem):
    x, mean, theta, *_ = problem
    mean = mean.clone().requires_grad_()
    nb_log_prob(x, mean, theta).sum().backward()
    assert mean.grad is not None
    with torch.no_grad():
        assert not nb_log_prob(x, mean, theta).requires_grad


def test_memory_layout_does_not_matter(problem):
    x, mean, theta, logits, library = problem
    turned = [t.T.contiguous().T if t.ndim == 2 else t for t in problem]
    flat = torch.full_like(mean[:, :1], 2.0).expand_as(mean)
    torch.testing.assert_close(nb_log_prob(turned[0], turned[1], turned[2]), nb_log_prob(x, mean, theta))
    torch.testing.assert_close(nb_log_prob(x, flat, theta), nb_log_prob(x, flat.clone(), theta))
    torch.testing.assert_close(
        zinb_log_prob(turned[0], turned[1], turned[2], dropout_logits=turned[3]),
        zinb_log_prob(x, mean, theta, dropout_logits=logits),
    )
    torch.testing.assert_close(
        nb_log_prob_softmax(turned[0], turned[3], turned[2], library=library),
        nb_log_prob_softmax(x, logits, theta, library=library),
    )


def test_float32_under_autocast(problem):
    x, mean, theta, logits, library = (t.float() for t in problem)
    plain = nb_log_prob(x, mean, theta)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = nb_log_prob(x, mean, theta)
        halved = nb_log_prob_softmax(x, logits.bfloat16().requires_grad_(), theta, library=library)
        halved.sum().backward()
    assert inside.dtype == halved.dtype == torch.float32
    torch.testing.assert_close(inside, plain, rtol=0, atol=0)


def test_cell_without_counts_and_batch_without_counts(problem):
    _, mean, theta, logits, library = problem
    x = torch.zeros(N, G, dtype=torch.float64)
    expected = -(theta * torch.log1p(mean / theta)).sum(1)
    torch.testing.assert_close(nb_log_prob(x, mean, theta), expected)
    assert torch.isfinite(zinb_log_prob(x, mean, theta, dropout_logits=logits)).all()
    assert torch.isfinite(nb_log_prob_softmax(x, logits, theta, library=library)).all()


def test_probabilities_sum_to_one():  # up to the eps = 1e-8 that the formula shares with scvi
    x = torch.arange(400.0, dtype=torch.float64)[:, None]
    mean = torch.full((400, 1), 4.0, dtype=torch.float64)
    theta = torch.tensor([1.5], dtype=torch.float64)
    assert float(nb_log_prob(x, mean, theta).exp().sum()) == pytest.approx(1.0, abs=1e-7)
    odds = torch.full_like(mean, -0.3)
    assert float(zinb_log_prob(x, mean, theta, dropout_logits=odds).exp().sum()) == pytest.approx(1.0, abs=1e-7)


def test_vanishing_and_extreme_parameters_stay_finite():
    x = torch.tensor([[0.0, 3.0, 0.0, 2000.0]])
    for m, t in ((0.0, 1.0), (1e-12, 1e-2), (1e5, 1e-2), (1e-3, 1e4), (1e5, 1e4)):
        mean, theta = torch.full((1, 4), m, requires_grad=True), torch.full((4,), t, requires_grad=True)
        value = nb_log_prob(x, mean, theta)
        value.sum().backward()
        assert torch.isfinite(value).all()
        assert torch.isfinite(mean.grad).all()
        assert torch.isfinite(theta.grad).all()


def test_nan_counts_are_not_hidden():
    x = torch.tensor([[0.0, float("nan")], [1.0, 0.0]])
    value = nb_log_prob(x, torch.ones(2, 2), torch.ones(2))
    assert torch.isnan(value).tolist() == [True, False]


def test_entries_hold_what_they_say():
    x = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 3.0]])
    for entries in (count_entries(x), count_entries(x.to_sparse_csr())):
        assert isinstance(entries, CountEntries)
        assert entries.shape == (3, 3)
        assert entries.row.tolist() == [0, 2, 2]
        assert entries.column.tolist() == [1, 0, 2]
        assert entries.flat.tolist() == [1, 6, 8]
        assert entries.value.tolist() == [2.0, 1.0, 3.0]
        assert count_entries(entries) is entries


def test_shape_errors_say_what_was_found():
    x, mean, theta = torch.ones(3, 4), torch.ones(3, 4), torch.ones(4)
    with pytest.raises(SetupError, match=r"counts of shape \(4,\), expected \(cells, genes\)"):
        nb_log_prob(x[0], mean, theta)
    with pytest.raises(SetupError, match=r"mean \(or logits\) of shape \(2, 4\)"):
        nb_log_prob(x, mean[:2], theta)
    with pytest.raises(SetupError, match=r"inverse_dispersion of shape \(3,\), expected \(4,\) or \(3, 4\)"):
        nb_log_prob(x, mean, torch.ones(3))
    with pytest.raises(SetupError, match=r"dropout_logits of shape \(4,\)"):
        zinb_log_prob(x, mean, theta, dropout_logits=theta)
    with pytest.raises(SetupError, match="one total for each of 3 cells"):
        nb_log_prob_softmax(x, mean, theta, library=torch.ones(2))
