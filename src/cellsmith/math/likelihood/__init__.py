"""Negative binomial log-likelihoods that pay for lgamma only where a count is.

The values and gradients equal those of ``scvi.distributions``; the cost does not. Single-cell counts are mostly zeros,
and at a zero the negative binomial is one logarithm. Everything else (lgamma, digamma, log of the mean) is evaluated at
the nonzero entries only, and gradients are closed forms, not a graph of elementary operations.

Notation: n cells, G genes, x (n, G) counts, m (n, G) means in counts, theta > 0 inverse dispersion, eps = 1e-8,
r = m / (theta + eps). With them, and in nats::

    log NB(x; m, theta) = -theta log1p(r) + 1{x > 0} { x [log(m + eps) - log1p(r)] + A(x, theta) }
    A(x, theta) = lgamma(x + theta) - lgamma(theta) - lgamma(x + 1) - x log(theta + eps)

For integer x, A is the sum over j < x of log[(theta + j) / ((j + 1)(theta + eps))]. Written like this nothing large is
subtracted from anything large when theta grows, which is where float32 differences of lgamma lose their digits.
"""

from __future__ import annotations

from cellsmith.math.likelihood.entries import CountEntries, count_entries
from cellsmith.math.likelihood.negative_binomial import nb_log_prob, nb_log_prob_softmax
from cellsmith.math.likelihood.zero_inflated import zinb_log_prob

__all__ = ["CountEntries", "count_entries", "nb_log_prob", "nb_log_prob_softmax", "zinb_log_prob"]
