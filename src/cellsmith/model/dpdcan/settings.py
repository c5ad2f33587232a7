"""What the constructor of DPDCAN accepts."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np

from cellsmith._errors import PrivacyError, SetupError, nearest

__all__ = ["PRIVATE", "settle"]

PRIVATE = ("dp_pca_init", "whole", "frozen_decoder")
CHOICES: dict[str, tuple[Any, ...]] = {
    "mode": (*PRIVATE, "reference", "none"),
    "accountant": ("rdp", "prv"),
    "cluster_head": ("local", "dp"),
    "latent_density": (None, "gaussian"),
    "gene_likelihood": ("zinb", "nb"),
    "n_units_policy": ("public", "dp_count"),
    "moments": ("none", "public", "dp"),
    "noised_block": ("encoder_and_trunk", "encoder"),
}
POSITIVE_INTEGERS = ("n_components", "n_hidden", "n_layers", "n_latent", "n_steps", "max_cells_per_unit")
POSITIVE = ("clip_norm", "learning_rate")
NOT_NEGATIVE = ("reconstruction_weight", "instance_weight", "cluster_weight", "repulsion_weight")


def settle(given: Mapping[str, Any]) -> dict[str, Any]:
    """Check the constructor's arguments, before anything is spent.

    Raises
    ------
    SetupError
        For an unknown choice or a number out of range.
    PrivacyError
        For a combination with which no promise can be kept.
    """
    out = dict(given)
    for name, valid in CHOICES.items():
        if out[name] not in valid:
            raise SetupError(f"{name}={out[name]!r}. {nearest(out[name], valid)}")
    for name in POSITIVE_INTEGERS:
        if not (isinstance(out[name], Integral) and out[name] >= 1):
            raise SetupError(f"{name}={out[name]!r}; expected a whole number of at least 1.")
    for name in POSITIVE + NOT_NEGATIVE:
        value = out[name]
        if not (isinstance(value, Real) and np.isfinite(value) and value >= 0) or (value == 0 and name in POSITIVE):
            expected = "a positive number" if name in POSITIVE else "a number >= 0"
            raise SetupError(f"{name}={value!r}; expected {expected}.")
    for name, low in (("dp_pca_fraction", 0.0), ("sample_rate", 0.0), ("mask_rate", -1.0)):
        if not (isinstance(out[name], Real) and low < out[name] <= 1):
            raise SetupError(f"{name}={out[name]!r}; expected a number in (0, 1].")
    if out["n_clusters"] is not None and not (isinstance(out["n_clusters"], Integral) and out["n_clusters"] >= 2):
        raise SetupError(f"n_clusters={out['n_clusters']!r}; expected at least 2, or None for Leiden.")
    _refuse_contradictions(out)
    return out


def _refuse_contradictions(out: Mapping[str, Any]) -> None:
    mode, private = out["mode"], out["mode"] in PRIVATE
    if out["n_latent"] > out["n_components"] and mode == "dp_pca_init":
        raise SetupError(
            f"n_latent={out['n_latent']} is above n_components={out['n_components']}; expected at most that."
        )
    if out["cluster_head"] == "dp" and out["n_clusters"] is None:
        raise PrivacyError("cluster_head='dp' needs n_clusters: choosing their number on these cells costs privacy.")
    if mode == "reference" and out["n_clusters"] is None:
        raise SetupError("mode='reference' needs n_clusters: its own choice of their number crashes, and is not kept.")
    if (out["cluster_head"] == "dp" or out["latent_density"] is not None) and not private:
        raise PrivacyError(
            f"mode={mode!r} promises nothing, so cluster_head='dp' and latent_density mean nothing in it."
        )
    if out["moments"] == "public" and out["public_adata"] is None:
        raise PrivacyError(
            "moments='public' needs public_adata: cells that anybody may see, with the genes of the panel."
        )
    if out["moments"] != "none" and mode not in ("whole", "frozen_decoder"):
        raise SetupError(f"moments={out['moments']!r} has no place in mode={mode!r}; expected 'none'.")
