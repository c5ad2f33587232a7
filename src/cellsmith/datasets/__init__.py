"""Data to try things on: one embedded real data set, and toys whose truth is known."""

from __future__ import annotations

from cellsmith.datasets._kang import kang_pbmc
from cellsmith.datasets.toys import toy_counts, toy_gradient, toy_perturbation

__all__ = ["kang_pbmc", "toy_counts", "toy_gradient", "toy_perturbation"]
