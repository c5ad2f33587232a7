"""Statistical audits: what an attacker who plants canaries can prove, against what is claimed.

A canary is a synthetic unit whose gradient is C in one coordinate of its own and zero elsewhere; it costs no cell.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import beta, binom, norm

from cellsmith._errors import PrivacyError
from cellsmith.math.privacy.gaussian import gaussian_epsilon
from cellsmith.math.privacy.gradients import add_noise, clip_factors
from cellsmith.math.privacy.moments import noisy_second_moment
from cellsmith.math.privacy.sampling import poisson_sample

__all__ = ["canary_run", "gaussian_lower_bound", "guesses_lower_bound", "moment_run"]

Floats = npt.NDArray[np.float64]


def canary_run(
    *,
    n_canaries: int,
    sample_rate: float,
    noise_multiplier: float,
    steps: int,
    generator: np.random.Generator,
    gradient: float = 1.0,
) -> tuple[npt.NDArray[np.bool_], Floats]:
    """Run sampling, clipping and noise as training does, on canaries alone.

    Parameters
    ----------
    n_canaries
        m, one coordinate each.
    sample_rate
        q.
    noise_multiplier
        sigma.
    steps
        T.
    generator
        Draws who is in, who is sampled, and the noise.
    gradient
        Norm of what a canary adds, in C; 2 plants the fault of a doubled sensitivity.

    Returns
    -------
    Who was in (m,), and the sums over steps (m,) of each coordinate, in C.
    """
    inside = generator.random(n_canaries) < 0.5
    members = np.flatnonzero(inside)
    # Ten times as long as C: it is the clipping that brings a canary to C.
    clipped = 10.0 * float(clip_factors(torch.tensor([10.0], dtype=torch.float64), 1.0)) * gradient
    scores = np.zeros(n_canaries)
    for _ in range(steps):
        total = torch.zeros(n_canaries, dtype=torch.float64)
        total[torch.from_numpy(members[poisson_sample(len(members), sample_rate, generator)])] = clipped
        noisy = add_noise({"g": total}, noise_multiplier=noise_multiplier, clip_norm=1.0, generator=generator)
        scores += noisy["g"].numpy()
    return inside, scores


def moment_run(
    *, n_genes: int, sd: float, n_shadows: int, n_guesses: int, generator: np.random.Generator
) -> tuple[npt.NDArray[np.bool_], Floats]:
    """Attack the release of a second moment by likelihood ratios (arXiv 2112.03570), to tell whether a unit is in.

    Parameters
    ----------
    n_genes
        G of the synthetic background.
    sd
        Of the noise on the half-vector.
    n_shadows
        Releases with and without the unit, together, from which the attacker learns both distributions.
    n_guesses
        Fresh releases to be told apart.
    generator
        Draws everything.

    Returns
    -------
    Whether the unit was in (n_guesses,), and the log likelihood ratio of each release.
    """
    background = np.abs(generator.standard_normal((20, n_genes)))
    background /= np.linalg.norm(background, axis=1, keepdims=True)
    unit = np.abs(generator.standard_normal(n_genes))
    unit /= np.linalg.norm(unit)

    def look(n: int) -> tuple[npt.NDArray[np.bool_], Floats]:
        there = generator.random(n) < 0.5
        seen = np.empty(n)
        for i, one in enumerate(there):
            rows = np.vstack([background, unit]) if one else background
            moment = noisy_second_moment([rows], n_genes, sd=sd, generator=generator)
            seen[i] = unit @ moment @ unit
        return there, seen

    there, seen = look(n_shadows)
    spread = max(1e-12, float(np.sqrt((seen[there].var() + seen[~there].var()) / 2)))
    means = seen[there].mean(), seen[~there].mean()
    inside, scores = look(n_guesses)
    ratio = ((scores - means[1]) ** 2 - (scores - means[0]) ** 2) / (2 * spread**2)
    return inside, ratio


def gaussian_lower_bound(
    inside: npt.NDArray[np.bool_], scores: Floats, *, threshold: float, delta: float, confidence: float = 0.95
) -> float:
    """Return a lower bound of epsilon for Gaussian-like mechanisms, valid with the stated confidence.

    Parameters
    ----------
    inside
        (m,) who was in.
    scores
        (m,) statistic, larger for those who were in.
    threshold
        Fixed beforehand: T q / 2.
    delta
        Of the claim.
    confidence
        Of the bound; both error rates get exact binomial limits at half of the rest each.

    Returns
    -------
    epsilon of the mu that the error rates need: Phi^-1(1 - false positive rate) - Phi^-1(false negative rate).
    """
    tail = (1 - confidence) / 2
    limits = []
    for errors, n in (
        (int((scores[~inside] > threshold).sum()), int((~inside).sum())),
        (int((scores[inside] <= threshold).sum()), int(inside.sum())),
    ):
        limits.append(1.0 if errors >= n else float(beta.ppf(1 - tail, errors + 1, n - errors)))
    mu = float(norm.ppf(1 - limits[0]) - norm.ppf(limits[1]))
    return gaussian_epsilon(mu, delta) if np.isfinite(mu) and mu > 0 else 0.0


def guesses_lower_bound(
    n_right: int, n_guesses: int, *, n_canaries: int, delta: float, confidence: float = 0.95
) -> float:
    """Return the lower bound of an audit in one run (arXiv 2305.08846).

    Parameters
    ----------
    n_right, n_guesses
        Guesses of who was in that were right, of all that were made; the rule is fixed beforehand.
    n_canaries
        m.
    delta
        Of the claim.
    confidence
        Of the bound.

    Returns
    -------
    The largest epsilon under which so many right guesses are too unlikely; 0 where none is.

    Raises
    ------
    PrivacyError
        If there are more right guesses than guesses.
    """
    if not 0 <= n_right <= n_guesses <= n_canaries:
        raise PrivacyError(f"Found {n_right} right of {n_guesses} guesses on {n_canaries} canaries.")

    def chance(epsilon: float) -> float:
        q = 1 / (1 + np.exp(-epsilon))
        first = float(binom.sf(n_right - 1, n_guesses, q))
        # The term of delta: the largest mean of the probabilities just below n_right.
        mass = binom.pmf(np.arange(n_right - 1, -1, -1), n_guesses, q)
        worst = float(np.max(np.cumsum(mass) / np.arange(1, len(mass) + 1))) if len(mass) else 0.0
        return first + 2 * n_canaries * delta * worst

    if chance(0.0) > 1 - confidence:
        return 0.0
    low, high = 0.0, 50.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if chance(middle) <= 1 - confidence else (low, middle)
    return low
