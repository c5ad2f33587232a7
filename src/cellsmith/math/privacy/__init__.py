"""Differential privacy: what is added up, drawn, clipped and released, and how much each of it costs.

Everywhere: neighbouring data sets differ by one unit (a cell or a donor) that is added or removed; delta is the
probability with which the statement may fail; sigma is the noise multiplier, the standard deviation of the noise
divided by the sensitivity (no unit); q is the probability with which a unit enters a step; N is the number of units.

Floating-point Gaussian noise is used, as everywhere in practice; attacks on its low-order bits are not covered.
"""

from __future__ import annotations

from cellsmith.math.privacy.accounting import ORDERS, compose, gaussian_rdp, integer_rdp, rdp_epsilon, sampled_rdp
from cellsmith.math.privacy.audit import canary_run, gaussian_lower_bound, guesses_lower_bound, moment_run
from cellsmith.math.privacy.gaussian import gaussian_delta, gaussian_epsilon, gaussian_mu
from cellsmith.math.privacy.gradients import ClippedSum, add_noise, clip_factors, clipped_gradient_sum
from cellsmith.math.privacy.kmeans import Frame, KMeansRelease, frame_of_axes, kmeans_events, private_kmeans
from cellsmith.math.privacy.ledger import Event, Ledger, calibrate
from cellsmith.math.privacy.moments import (
    debias_values,
    noise_edge,
    noisy_second_moment,
    noisy_sum,
    principal_axes,
    split_centered,
    symmetric_noise,
)
from cellsmith.math.privacy.sampling import poisson_sample, secret_generator
from cellsmith.math.privacy.statement import Guarantee, Statement
from cellsmith.math.privacy.units import transform_counts, unit_counts, unit_means, unit_rows
from cellsmith.math.privacy.wiring import Wiring, unit_gradients, wiring

__all__ = [
    "ORDERS",
    "ClippedSum",
    "Event",
    "Frame",
    "Guarantee",
    "KMeansRelease",
    "Ledger",
    "Statement",
    "Wiring",
    "add_noise",
    "calibrate",
    "canary_run",
    "clip_factors",
    "clipped_gradient_sum",
    "compose",
    "debias_values",
    "frame_of_axes",
    "gaussian_delta",
    "gaussian_epsilon",
    "gaussian_lower_bound",
    "gaussian_mu",
    "gaussian_rdp",
    "guesses_lower_bound",
    "integer_rdp",
    "kmeans_events",
    "moment_run",
    "noise_edge",
    "noisy_second_moment",
    "noisy_sum",
    "poisson_sample",
    "principal_axes",
    "private_kmeans",
    "rdp_epsilon",
    "sampled_rdp",
    "secret_generator",
    "split_centered",
    "symmetric_noise",
    "transform_counts",
    "unit_counts",
    "unit_gradients",
    "unit_means",
    "unit_rows",
    "wiring",
]
