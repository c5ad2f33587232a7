"""Class probabilities rolled up to the most specific term that has enough of the mass (Eq. 18 of GRIT)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cellsmith._errors import SetupError
from cellsmith.math.ontology.terms import Ontology

__all__ = ["RollUp", "roll_up"]

Floats = npt.NDArray[np.float64]
Texts = npt.NDArray[np.object_]

_SLACK = 1e-6  # float32 probabilities that sum to 0.8 may miss it by rounding
_ROWS = 20_000  # cells at a time: (rows, terms) is the only large array


@dataclass(frozen=True, eq=False)
class RollUp:
    """What `roll_up` found.

    Parameters
    ----------
    labels
        ``(n,)`` name of the term; of the winning class where that one is not in the ontology and no term has enough
        mass; empty where nothing has.
    ids
        ``(n,)`` identifier of the term; empty for a class that is not in the ontology.
    depth
        ``(n,)`` steps from a root; -1 without a term.
    mass
        ``(n,)`` probability of the term in [0, 1]; of the winning class where that one is kept; NaN without a label.
    leaf
        ``(n,)`` winning class; empty for a row with NaN or without mass.
    mapped
        Class -> identifier.
    unmapped
        Classes that are not in the ontology.
    version, digest
        Of the ontology.
    """

    labels: Texts
    ids: Texts
    depth: npt.NDArray[np.int64]
    mass: Floats
    leaf: Texts
    mapped: Mapping[str, str]
    unmapped: tuple[str, ...]
    version: str
    digest: str


@dataclass(frozen=True)
class _Candidates:
    """Terms above the classes, sorted by identifier, then the classes outside the ontology."""

    ids: Texts
    labels: Texts
    depth: npt.NDArray[np.int64]
    covers: npt.NDArray[np.bool_]  # (terms, C)


def _candidates(classes: Sequence[str], mapped: Mapping[str, str], ontology: Ontology, part_of: bool) -> _Candidates:
    above = [ontology.ancestors(mapped[c], part_of=part_of) if c in mapped else frozenset[str]() for c in classes]
    terms = sorted(frozenset[str]().union(*above))
    outside = [c for c in classes if c not in mapped]
    # one flag a (term, class): however many paths of a diamond join the two, the class counts once
    covers = [[term in found for found in above] for term in terms] + [[c == o for c in classes] for o in outside]
    return _Candidates(
        ids=np.array([*terms, *("" for _ in outside)], dtype=object),
        labels=np.array([*(ontology.names[t] or t for t in terms), *outside], dtype=object),
        depth=np.array([*(ontology.depth(t, part_of=part_of) for t in terms), *(-1 for _ in outside)], dtype=np.int64),
        covers=np.array(covers, dtype=bool).reshape(len(terms) + len(outside), len(classes)),
    )


def roll_up(
    p: npt.ArrayLike, classes: Sequence[str], ontology: Ontology, *, mass: float = 0.8, part_of: bool = False
) -> RollUp:
    """Name every cell by the most specific term that holds enough of its probability (Eq. 18).

    The mass of a term is the sum of P over the classes at or below it, each once. Most specific is the deepest term
    (longest path from a root: no supported term lies below it); ties go to the larger mass, then the smaller id.

    Parameters
    ----------
    p
        ``(n, C)`` non-negative class scores; rows are normalised.
    classes
        C names or identifiers, mapped by identifier, exact name, then exact synonym.
    ontology
        The terms.
    mass
        Share of a cell's probability that its term must hold, in (0, 1].
    part_of
        Whether a part counts for its whole, beside is_a.

    Returns
    -------
    One term a cell, and the classes that the ontology lacks; such a class has no ancestor and keeps its own name.

    Raises
    ------
    SetupError
        If the shapes do not fit, ``mass`` is outside (0, 1], no class is in the ontology, or is_a and part_of together
        run in a circle.
    """
    values, names = np.asarray(p), [str(c) for c in classes]
    if values.ndim != 2 or values.shape[1] != len(names) or len(set(names)) != len(names):
        raise SetupError(
            f"Found scores of shape {values.shape} and {len(names)} classes ({len(set(names))} distinct), expected one "
            "column for each of as many distinct names."
        )
    if not 0 < mass <= 1:
        raise SetupError(f"Found mass={mass!r}, expected a share in (0, 1]. Type for example mass=0.8.")
    mapped = {name: found for name in names if (found := ontology.find(name)) is not None}
    if not mapped:
        raise SetupError(
            f"Found none of the {len(names)} classes ({', '.join(map(repr, names[:5]))}) in {ontology!r}, expected "
            "identifiers, exact names or exact synonyms. Rename the classes to those of the ontology."
        )
    table = _candidates(names, mapped, ontology, part_of)
    parts = [_chunk(values[i : i + _ROWS], names, table, mass) for i in range(0, max(len(values), 1), _ROWS)]
    chosen, weight, leaf, kept = (np.concatenate(column) for column in zip(*parts, strict=True))
    has_term = chosen >= 0
    return RollUp(
        labels=np.where(has_term, table.labels[chosen], np.where(kept, leaf, "")),
        ids=np.where(has_term, table.ids[chosen], ""),
        depth=np.where(has_term, table.depth[chosen], -1),
        mass=weight,
        leaf=leaf,
        mapped=mapped,
        unmapped=tuple(name for name in names if name not in mapped),
        version=ontology.version,
        digest=ontology.digest,
    )


def _chunk(
    values: npt.NDArray[np.generic], names: list[str], table: _Candidates, mass: float
) -> tuple[npt.NDArray[np.intp], Floats, Texts, npt.NDArray[np.bool_]]:
    """Return row of the chosen candidate (-1: none), mass, winning class, and whether an unmapped winner is kept."""
    x = np.clip(np.asarray(values, dtype=np.float64), 0.0, None)
    total = x.sum(axis=1, keepdims=True)
    usable = np.isfinite(total[:, 0]) & (total[:, 0] > 0)
    x = np.where(usable[:, None], x, 0.0) / np.where(usable[:, None], total, 1.0)
    held = x @ table.covers.T.astype(np.float64)
    supported = (held >= mass - _SLACK) & usable[:, None]
    depth = np.where(supported, table.depth, -2)
    best = supported & (depth == depth.max(axis=1, keepdims=True))
    # terms are sorted by id, so the first of equal masses is the smallest id; rounded, because sums differ in the end
    chosen = np.where(best, np.round(held, 9), -1.0).argmax(axis=1)
    winner = x.argmax(axis=1)
    leaf = np.where(usable, np.array(names, dtype=object)[winner], "")
    outside = {str(label) for label, term in zip(table.labels, table.ids, strict=True) if not term}
    found = supported.any(axis=1)
    kept = usable & ~found & np.isin(leaf.astype(str), sorted(outside))
    rows = np.arange(len(x))
    weight = np.where(found, held[rows, chosen], np.where(kept, x[rows, winner], np.nan))
    return np.where(found, chosen, -1), np.minimum(weight, 1.0), leaf, kept
