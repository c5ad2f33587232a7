"""What a fit leaves behind, as arrays: enough for every query, and no data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from cellsmith.math import gram

__all__ = ["Answer", "pack", "unpack"]

_PARTS = ("baselines", "nodes", "probability")  # mappings of arrays; their names are joined to that of the field


@dataclass(frozen=True)
class Answer:
    """The fitted quantities; n cells, D features, of which the fit used E, K eigenpairs, k components.

    Parameters
    ----------
    latent
        Embedding of the training cells (n, k) float32; NaN for cells without an observed entry.
    in_fit
        Cells (n,) that took part; the others were placed afterwards.
    overlap
        Mean effective overlap of a cell with the others (n,), features.
    observed_rate
        Observed share of each cell (n,).
    live
        Features (D,) that any cell of the fit observed.
    col_rates
        Observed share of each feature (D,) among the cells of the fit.
    means
        mu (E,) of the live features.
    loadings
        (E, k).
    values, residuals
        Eigenvalues (K,), largest first, and |G v - theta v| of each.
    col_means
        Mean probability (E,) of each live feature over the cells of the fit; empty for ``prob="pairwise"``.
    projections
        B_q (R, E, k) of Eq. 15; empty for ``prob="pairwise"``.
    basis, prior
        (E, k) orthonormal axes of a refinement by ``"prime"``, onto which new cells are regressed, and the (k, k)
        precision of their scores in units of the noise; empty without.
    factors_u, factors_s
        u (cells of the fit, R) and s (R,) of 1 / N; empty for ``prob="pairwise"``.
    baselines
        Name -> embedding (n, k) float32.
    nodes
        What continues u to new cells.
    probability
        Arrays of the fitted probabilities; empty where the caller gave them.
    facts
        Numbers and texts: ``model``, ``factors_kind``, ``factors_error``, and what only the record needs.
    """

    latent: np.ndarray
    in_fit: np.ndarray
    overlap: np.ndarray
    observed_rate: np.ndarray
    live: np.ndarray
    col_rates: np.ndarray
    means: np.ndarray
    loadings: np.ndarray
    values: np.ndarray
    residuals: np.ndarray
    col_means: np.ndarray
    projections: np.ndarray
    basis: np.ndarray
    prior: np.ndarray
    factors_u: np.ndarray
    factors_s: np.ndarray
    baselines: Mapping[str, np.ndarray]
    nodes: Mapping[str, np.ndarray]
    probability: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]

    @property
    def n_latent(self) -> int:
        """Number of components k of the embedding."""
        return int(self.latent.shape[1])

    @property
    def factors(self) -> gram.Factors:
        """The factors of the inverse overlap."""
        facts = self.facts
        return gram.Factors(
            self.factors_u, self.factors_s, facts["factors_error"], facts["factors_kind"], dict(self.nodes)
        )

    def fitted_probability(self) -> gram.Probability | None:
        """Return the probabilities of the cells of the fit; None where the caller gave them, or counts served."""
        return gram.probability_from_state(self.facts["model"], self.probability) if self.probability else None


def pack(answer: Answer) -> dict[str, np.ndarray]:
    """Return an answer as arrays alone, name -> array."""
    out: dict[str, np.ndarray] = {}
    for field in fields(answer):
        value = getattr(answer, field.name)
        if field.name in _PARTS:
            out.update({f"{field.name}_{name}": np.asarray(part) for name, part in value.items()})
        elif field.name == "facts":
            # Text has no tensor; its bytes have.
            out["facts"] = np.array(bytearray(json.dumps(value).encode()), dtype=np.uint8)
        else:
            out[field.name] = np.asarray(value)
    return out


def unpack(arrays: Mapping[str, np.ndarray]) -> Answer:
    """Return the answer that :func:`pack` made arrays of."""
    plain = {f.name: arrays[f.name] for f in fields(Answer) if f.name in arrays and f.name != "facts"}
    parts = {p: {n.removeprefix(f"{p}_"): v for n, v in arrays.items() if n.startswith(f"{p}_")} for p in _PARTS}
    return Answer(**plain, **parts, facts=json.loads(arrays["facts"].tobytes().decode()))
