"""What the constructor of SCAGC accepts, and what the paper's variant fixes."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np

from cellsmith._errors import SetupError, SizeError, nearest

__all__ = ["LARGEST_DENSE", "PAPER", "check_size", "settle_arguments", "settle_sizes"]

LARGEST_DENSE = 5_000  # cells; the paper's variant holds about 14 dense arrays of cells x cells
SMALLEST = 10
CHOICES = {
    "variant": ("default", "paper"),
    "graph": ("learned", "knn", "random", "none"),
    "gene_likelihood": ("nb", "zinb"),
    "dispersion": ("gene", "gene-batch"),
    "cluster_head": ("none", "dec"),
}
RULES = ("auto", "stability")
# What variant="paper" fixes: argument -> (its default, its value there).
PAPER = {
    "n_hidden": (128, 128),
    "n_layers": (1, 1),
    "n_latent": (20, 15),
    "n_hops": (3, 3),
    "n_neighbors": (15, 15),
    "graph": ("none", "learned"),
    "edge_temperature": (0.05, 1.0),
    "relaxation_temperature": (5.0, 0.5),
    "noise_scale": (1.0, 1.0),
    "hub_penalty": (1.0, 0.0),
    "gene_likelihood": ("nb", "zinb"),
    "dispersion": ("gene", "gene"),
    "dropout_rate": (0.1, 0.0),
    "graph_weight": (0.0, 0.3),
    "first_weight": (1.0, 0.0),
    "contrast_weight": (0.0, 0.01),
    "contrast_temperature": (0.5, 0.7),
    "cluster_head": ("none", "dec"),
    "cluster_weight": (1.5, 1.5),
}
WHOLE = ("n_hidden", "n_layers", "n_latent", "n_neighbors", "n_candidates", "n_negatives")
POSITIVE = ("edge_temperature", "relaxation_temperature", "contrast_temperature")
NOT_NEGATIVE = ("noise_scale", "hub_penalty", "graph_weight", "first_weight", "contrast_weight", "cluster_weight")


def settle_arguments(given: Mapping[str, Any], *, n_cells: int) -> dict[str, Any]:
    """Check the arguments of the constructor, and put in what ``variant="paper"`` fixes.

    Parameters
    ----------
    given
        Argument name -> value.
    n_cells
        Registered cells.

    Returns
    -------
    The arguments as they are used.

    Raises
    ------
    SetupError
        Naming the argument, what was found and what is expected.
    """
    out = dict(given)
    for name, valid in CHOICES.items():
        if out[name] not in valid:
            raise SetupError(f"{name}={out[name]!r}. {nearest(out[name], valid)}")
    if out["variant"] == "paper":
        for name, (default, published) in PAPER.items():
            if out[name] not in (default, published):
                raise SetupError(
                    f"{name}={out[name]!r} contradicts variant='paper', where it is {published!r}. Leave it out, or "
                    "take variant='default'."
                )
            out[name] = published
    for name in WHOLE:
        if not isinstance(out[name], Integral) or out[name] < 1:
            raise SetupError(f"{name}={out[name]!r}; expected a whole number of 1 or more. Type {name}=1 at least.")
    if not isinstance(out["n_hops"], Integral) or out["n_hops"] < 0:
        raise SetupError(f"n_hops={out['n_hops']!r}; expected a whole number of 0 or more.")
    for name in POSITIVE + NOT_NEGATIVE:
        value = out[name]
        if not (isinstance(value, Real) and np.isfinite(value) and value >= 0) or (value == 0 and name in POSITIVE):
            expected = "a number above 0" if name in POSITIVE else "a number of 0 or more"
            raise SetupError(f"{name}={value!r}; expected {expected}. Type {name}={_PAST.get(name, 0.5)}.")
    if not 0 <= out["dropout_rate"] < 1:
        raise SetupError(f"dropout_rate={out['dropout_rate']!r}; expected a number in [0, 1). Type dropout_rate=0.1.")
    if out["n_neighbors"] > out["n_candidates"]:
        raise SetupError(
            f"n_neighbors={out['n_neighbors']} neighbours cannot be chosen among n_candidates={out['n_candidates']}. "
            f"Type n_neighbors={out['n_candidates']} or n_candidates={max(50, out['n_neighbors'])}."
        )
    _check_clusters(out, n_cells)
    return out


_PAST = {"edge_temperature": 0.05, "hub_penalty": 1.0, "noise_scale": 1.0}


def _check_clusters(given: Mapping[str, Any], n_cells: int) -> None:
    wanted = given["n_clusters"]
    if isinstance(wanted, str) and wanted not in RULES:
        raise SetupError(f"n_clusters={wanted!r}; a number or None is accepted as well. {nearest(wanted, RULES)}")
    whole = isinstance(wanted, Integral) and not isinstance(wanted, bool)
    if not isinstance(wanted, str) and wanted is not None and not (whole and 2 <= wanted <= n_cells):
        valid = 2 if not isinstance(wanted, Real) or wanted < 2 else min(int(wanted), n_cells)
        raise SetupError(
            f"n_clusters={wanted!r}; expected a whole number from 2 to {n_cells}, the number of cells. Type "
            f"n_clusters={valid}, or n_clusters='auto'."
        )
    if given["cluster_head"] == "dec" and given["graph"] != "learned":
        raise SetupError(
            f"cluster_head='dec' is trained after a learned graph, but graph={given['graph']!r}. Type graph='learned'."
        )
    if wanted is None and given["cluster_head"] == "dec":
        raise SetupError(
            f"cluster_head='dec' needs clusters, but n_clusters=None{_of_paper(given)}. Type n_clusters='auto'."
        )


def _of_paper(given: Mapping[str, Any]) -> str:
    return " (variant='paper' has this head)" if given["variant"] == "paper" else ""


def settle_sizes(given: Mapping[str, Any], *, n_cells: int) -> tuple[int, int, str]:
    """Return how many candidates and neighbours there is room for, and what to tell the user; "" where all fit.

    Parameters
    ----------
    given
        ``n_candidates`` and ``n_neighbors``.
    n_cells
        Registered cells.
    """
    m, k = int(given["n_candidates"]), int(given["n_neighbors"])
    if n_cells > m:
        return m, k, ""
    fewer = max(1, n_cells - 1)
    lowered = min(k, max(1, fewer // 2))
    return (
        fewer,
        lowered,
        (
            f"{n_cells} cells leave room for {fewer} candidates and {lowered} neighbours, not n_candidates={m} and "
            f"n_neighbors={k}."
        ),
    )


def check_size(n_cells: int, n_genes: int, *, variant: str) -> None:
    """Refuse too few cells, and more than the dense variant can hold.

    Raises
    ------
    SetupError
        For fewer than 10 cells.
    SizeError
        For variant="paper" above 5,000 cells, with the memory it would take.
    """
    if n_cells < SMALLEST:
        raise SetupError(f"Found {n_cells} cells, expected at least {SMALLEST}: there is no graph to learn.")
    if variant == "paper" and n_cells > LARGEST_DENSE:
        needed = (14 * n_cells**2 + 8 * n_cells * n_genes) * 4 / 1e9
        raise SizeError(
            f"variant='paper' holds arrays of cells x cells: {n_cells:,} cells would take about {needed:.0f} GB; it "
            f"stops at {LARGEST_DENSE:,}. Take variant='default', or a sketch of the cells (cellsmith.tl.sketch)."
        )
