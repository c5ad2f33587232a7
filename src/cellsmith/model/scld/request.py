"""Who is to be generated: from what a user types to codes, one row a cell."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from cellsmith._errors import SetupError, nearest
from cellsmith.math.counts import largest_remainder

__all__ = [
    "Covariates",
    "Request",
    "TrainingRows",
    "check_condition",
    "read_covariates",
    "request_composition",
    "request_rows",
]

Condition = Mapping[str, Any]


def shown(value: Any) -> str:
    """Return a category as a user types it: ``'NK'`` and ``3``, not ``np.str_('NK')``."""
    return repr(value.item() if isinstance(value, np.generic) else value)


@dataclass(frozen=True)
class Covariates:
    """Columns of ``.obs`` that condition the diffusion.

    Parameters
    ----------
    names
        The K categorical columns.
    categories
        Their categories; the code K_k, one past the last, means unknown.
    continuous
        The C continuous columns.
    batch, labels
        Position of the batch and of the label among ``names``, None where not registered.
    """

    names: tuple[str, ...]
    categories: tuple[np.ndarray, ...]
    continuous: tuple[str, ...] = ()
    batch: int | None = None
    labels: int | None = None

    @property
    def n_cats(self) -> tuple[int, ...]:
        """Number of categories of every column."""
        return tuple(len(c) for c in self.categories)

    def position(self, name: str) -> int:
        """Return the position of a categorical column."""
        if name not in self.names:
            raise SetupError(
                f"{name!r} is not a registered categorical covariate. {nearest(name, self.names)} "
                "Register it: SCLD.setup_anndata(adata, labels_key=..., categorical_covariate_keys=[...])."
            )
        return self.names.index(name)

    def code(self, name: str, value: Any) -> int:
        """Return the code of a category; a missing value is the unknown code."""
        k = self.position(name)
        if not pd.api.types.is_scalar(value):
            raise SetupError(
                f"{name} got {value!r}; expected one category. For a mixture give weights, {{{name!r}: {{'a': 0.5, "
                "'b': 0.5}}; for cells of several categories one row a cell, conditions=DataFrame."
            )
        if pd.api.types.is_scalar(value) and pd.isna(value):
            return len(self.categories[k])
        hits = np.flatnonzero(self.categories[k] == value)
        if not len(hits):
            hint = nearest(value, self.categories[k])
            raise SetupError(f"{name}={shown(value)} was not among the training cells. {hint}")
        return int(hits[0])

    def describe(self, codes: Sequence[int]) -> str:
        """Return ``cell_type='NK', batch='1'`` of one row of codes."""
        parts = [f"{n}={shown(c[k])}" for n, c, k in zip(self.names, self.categories, codes, strict=True) if k < len(c)]
        return ", ".join(parts) or "all unknown"


def read_covariates(registry: Mapping[str, Any]) -> Covariates:
    """Return the registered covariates in the order of the module: batch, labels, further ones.

    Parameters
    ----------
    registry
        Registry of scvi-tools, as :meth:`SCLD.setup_anndata` leaves it.
    """
    fields, names, categories = registry["field_registries"], [], []
    place: dict[str, int | None] = {"batch": None, "labels": None}
    for what in ("batch", "labels"):
        state = fields[what]["state_registry"]
        if state["original_key"] != f"_scvi_{what}":
            place[what] = len(names)
            names.append(state["original_key"])
            categories.append(np.asarray(state["categorical_mapping"]))
    extra = fields.get("extra_categorical_covs", {}).get("state_registry", {})
    for key in extra.get("field_keys", ()):
        names.append(key)
        categories.append(np.asarray(extra["mappings"][key]))
    continuous = fields.get("extra_continuous_covs", {}).get("state_registry", {}).get("columns", ())
    return Covariates(
        tuple(names), tuple(categories), tuple(str(c) for c in continuous), batch=place["batch"], labels=place["labels"]
    )


@dataclass(frozen=True)
class TrainingRows:
    """What is kept of the training cells: codes (n, K), continuous covariates (n, C), log library (n,), totals (n,)."""

    codes: np.ndarray
    continuous: np.ndarray
    log_library: np.ndarray
    log_total: np.ndarray


@dataclass(frozen=True)
class Request:
    """Cells to generate, one row each.

    Parameters
    ----------
    codes
        (n, K); K_k is unknown.
    continuous
        (n, C).
    continuous_known
        (n,) whether the continuous covariates condition the cell.
    mixes
        Position of a covariate -> (K_k + 1,) weights that replace its code in the embedding.
    additive
        (n,) whether the conditions of the cell are combined additively.
    notes
        Messages to warn with.
    fallback
        (n,) whether the cell comes from noise-perturbed training latents.
    small
        (n,) position of the covariate whose category has too few training cells, -1 where none.
    """

    codes: np.ndarray
    continuous: np.ndarray
    continuous_known: np.ndarray
    mixes: Mapping[int, np.ndarray] = field(default_factory=dict)
    additive: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    fallback: np.ndarray | None = None
    small: np.ndarray | None = None

    @property
    def n(self) -> int:
        """Number of cells."""
        return len(self.codes)


def check_condition(covariates: Covariates, condition: Any, argument: str = "condition") -> None:
    """Refuse a condition that is no mapping.

    Raises
    ------
    SetupError
        With what to type instead.
    """
    if not isinstance(condition, Mapping):
        name = covariates.names[0] if covariates.names else "cell_type"
        raise SetupError(
            f"{argument}={condition!r}; expected a mapping from a registered column to a category, for example "
            f"{argument}={{{name!r}: {condition!r}}}."
        )


def request_composition(
    covariates: Covariates,
    rows: TrainingRows,
    *,
    n_cells: int,
    condition: Condition | None,
    generator: np.random.Generator,
) -> Request:
    """Fix some covariates, let the others follow the training cells that share them; proportions are exact.

    Parameters
    ----------
    covariates, rows
        Of the trained model.
    n_cells
        How many cells.
    condition
        Column -> category, or column -> {category: weight}; None fixes nothing, {} hides everything.
    generator
        Draws the training rows that lend their continuous covariates.

    Returns
    -------
    The request.

    Raises
    ------
    SetupError
        For an unknown column or category, or a number of cells below 1.
    """
    if not isinstance(n_cells, Real) or not n_cells >= 1 or n_cells != int(n_cells):
        raise SetupError(f"n_cells={n_cells!r}; expected a whole number, at least 1.")
    n_cells = int(n_cells)
    check_condition(covariates, condition or {})
    n_cov, n_cont = len(covariates.names), len(covariates.continuous)
    if condition is not None and not condition:
        null = np.tile(np.array(covariates.n_cats, dtype=np.int64), (n_cells, 1))
        return Request(null, np.zeros((n_cells, n_cont)), np.zeros(n_cells, dtype=bool))
    fixed, mixes, values = _parse(covariates, condition or {})
    pool, notes = _matching(covariates, rows, fixed)
    codes, lenders = _compose(rows.codes[pool] if n_cov else np.zeros((len(pool), 0), int), n_cells, generator)
    for k, code in fixed.items():
        codes[:, k] = code
    continuous = rows.continuous[pool[lenders]].astype(float)
    for name, value in values.items():
        continuous[:, covariates.continuous.index(name)] = value
    return Request(codes, continuous, np.full(n_cells, n_cont > 0), mixes=mixes, notes=tuple(notes))


def _parse(
    covariates: Covariates, condition: Condition
) -> tuple[dict[int, int], dict[int, np.ndarray], dict[str, float]]:
    fixed, mixes, values = {}, {}, {}
    for name, value in condition.items():
        if name in covariates.continuous:
            values[name] = float(value)
            continue
        if name not in covariates.names:
            valid = (*covariates.names, *covariates.continuous)
            raise SetupError(f"condition names {name!r}, which is not a registered covariate. {nearest(name, valid)}")
        k = covariates.position(name)
        if isinstance(value, Mapping):
            weights = np.zeros(len(covariates.categories[k]) + 1)
            for category, weight in value.items():
                weights[covariates.code(name, category)] = float(weight)
            if weights.min() < 0 or not np.isclose(weights.sum(), 1.0):
                raise SetupError(
                    f"condition[{name!r}] has the weights {dict(value)}; expected positive ones that sum to 1."
                )
            mixes[k] = weights
            # For everything that needs one category (decoder, depth, the column of .obs) the heaviest stands in.
            fixed[k] = int(weights.argmax())
        else:
            fixed[k] = covariates.code(name, value)
    return fixed, mixes, values


def _matching(covariates: Covariates, rows: TrainingRows, fixed: Mapping[int, int]) -> tuple[np.ndarray, list[str]]:
    """Return the training rows whose covariates the request's free ones follow."""
    hits = np.ones(len(rows.log_library), dtype=bool)
    known = {k: c for k, c in fixed.items() if c < covariates.n_cats[k]}
    for k, code in known.items():
        hits &= rows.codes[:, k] == code
    if hits.any() or not known:
        return np.flatnonzero(hits if hits.any() else np.ones_like(hits)), []
    typed = ", ".join(f"{covariates.names[k]}={shown(covariates.categories[k][c])}" for k, c in known.items())
    first = next(iter(known))
    note = (
        f"No training cell combines {typed}: the conditions are guided additively, and what is left free follows the "
        f"cells with {covariates.names[first]}={shown(covariates.categories[first][known[first]])}."
    )
    return np.flatnonzero(rows.codes[:, first] == known[first]), [note]


def _compose(codes: np.ndarray, n_cells: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return n rows with the proportions of ``codes``, and for each a row of ``codes`` with the same values."""
    kinds, member = np.unique(codes, axis=0, return_inverse=True) if codes.shape[1] else (codes[:1], None)
    member = np.zeros(len(codes), dtype=int) if member is None else member.reshape(-1)
    share = np.bincount(member, minlength=len(kinds)) / len(member)
    counts = largest_remainder(share * n_cells, n_cells)
    kind = np.repeat(np.arange(len(kinds)), counts)
    lenders = np.empty(n_cells, dtype=int)
    for j in np.unique(kind):
        mine = kind == j
        lenders[mine] = generator.choice(np.flatnonzero(member == j), int(mine.sum()))
    return kinds[kind].astype(np.int64), lenders


def request_rows(covariates: Covariates, table: pd.DataFrame) -> Request:
    """Take the covariates of every cell from a table, row by row.

    Parameters
    ----------
    covariates
        Of the trained model.
    table
        One row a cell; every registered covariate is a column, a missing category means unknown.

    Raises
    ------
    SetupError
        For a registered covariate that is not a column, a column that is not registered, or an unknown category.
    """
    valid = (*covariates.names, *covariates.continuous)
    absent = [name for name in valid if name not in table]
    if absent:
        raise SetupError(f"conditions= lacks the registered covariate {absent[0]!r}. Columns needed: {list(valid)}.")
    unknown = [name for name in table.columns if name not in valid]
    if unknown:
        raise SetupError(
            f"conditions= has the column {unknown[0]!r}, which is not registered. {nearest(unknown[0], valid)}"
        )
    if not len(table):
        raise SetupError("conditions= has no row; expected one a cell.")
    codes = np.zeros((len(table), len(covariates.names)), dtype=np.int64)
    for k, name in enumerate(covariates.names):
        code = {value: covariates.code(name, value) for value in pd.unique(table[name])}
        codes[:, k] = [code[v] if not pd.isna(v) else len(covariates.categories[k]) for v in table[name]]
    continuous = np.zeros((len(table), len(covariates.continuous)))
    for j, name in enumerate(covariates.continuous):
        continuous[:, j] = pd.to_numeric(table[name], errors="coerce")
        if not np.isfinite(continuous[:, j]).all():
            raise SetupError(f"conditions[{name!r}] has values that are not finite numbers.")
    return Request(codes, continuous, np.full(len(table), len(covariates.continuous) > 0))


def resolve_modes(
    request: Request,
    covariates: Covariates,
    rows: TrainingRows,
    *,
    guidance_mode: str,
    guidance: float | Mapping[str, float],
    on_small: str,
    min_cells: int,
    asked: Collection[str],
) -> Request:
    """Decide for every cell between joint and additive guidance, and on conditions with few training cells.

    Only columns that the user named, ``asked``, can be refused or fall back: what is left free follows the training
    cells, whose combinations the joint condition has seen however rare they are.

    Raises
    ------
    SetupError
        If a category that was asked for has fewer than ``min_cells`` training cells and ``on_small="raise"``, if a
        mode is unknown, or if guidance by covariate meets ``guidance_mode="joint"``.
    """
    for what, value, valid in (
        ("guidance_mode", guidance_mode, ("auto", "joint", "additive")),
        ("on_small", on_small, ("raise", "neighbors")),
    ):
        if value not in valid:
            raise SetupError(f"{what}={value!r}. {nearest(value, valid)}")
    for weight in guidance.values() if isinstance(guidance, Mapping) else [guidance]:
        if not isinstance(weight, Real) or not np.isfinite(weight):
            raise SetupError(f"guidance={guidance!r}; expected a finite number, or {{covariate: number}}.")
    if isinstance(guidance, Mapping) and guidance_mode == "joint":
        raise SetupError("guidance by covariate is additive; guidance_mode='joint' takes one number. Drop one of them.")
    notes = list(request.notes)
    small = _small_categories(request, covariates, rows, min_cells=min_cells, asked=asked, on_small=on_small)
    if isinstance(guidance, Mapping) or guidance_mode == "additive":
        additive = np.ones(request.n, dtype=bool)
    elif guidance_mode == "joint" or not asked:
        additive = np.zeros(request.n, dtype=bool)
    else:
        additive, n_unseen = _rare_combinations(request, covariates, rows, min_cells)
        if n_unseen and not request.notes:
            notes.append(
                f"{n_unseen} combinations of conditions have fewer than {min_cells} training cells; their conditions "
                "are guided additively. Type guidance_mode='joint' to insist on the joint condition."
            )
    fallback = small >= 0
    return replace(request, additive=additive & ~fallback, fallback=fallback, small=small, notes=tuple(notes))


def _small_categories(
    request: Request,
    covariates: Covariates,
    rows: TrainingRows,
    *,
    min_cells: int,
    asked: Collection[str],
    on_small: str,
) -> np.ndarray:
    """Return for every row the covariate that has too few training cells, -1 where none; or raise."""
    small, fewest = np.full(request.n, -1), np.full(request.n, min_cells)
    for k, name in enumerate(covariates.names):
        if name not in asked or k in request.mixes:
            continue
        for code in np.unique(request.codes[:, k]):
            n_train = int((rows.codes[:, k] == code).sum())
            if code >= covariates.n_cats[k] or n_train >= min_cells:
                continue
            if on_small == "raise":
                raise SetupError(
                    f"{name}={shown(covariates.categories[k][code])} has {n_train} training cells; at least "
                    f"min_cells={min_cells} are needed to learn a condition. Type on_small='neighbors' to perturb "
                    "those cells instead, or lower min_cells."
                )
            mine = (request.codes[:, k] == code) & (n_train < fewest)
            small[mine], fewest[mine] = k, n_train
    return small


def _rare_combinations(
    request: Request, covariates: Covariates, rows: TrainingRows, min_cells: int
) -> tuple[np.ndarray, int]:
    """Mark the rows whose known conditions occur together in fewer than ``min_cells`` training cells."""
    if len(covariates.names) < 2:
        return np.zeros(request.n, dtype=bool), 0
    kinds, member = np.unique(request.codes, axis=0, return_inverse=True)
    rare = np.zeros(len(kinds), dtype=bool)
    for j, kind in enumerate(kinds):
        known = [k for k, code in enumerate(kind) if code < covariates.n_cats[k]]
        if len(known) >= 2:
            hits = np.ones(len(rows.codes), dtype=bool)
            for k in known:
                hits &= rows.codes[:, k] == kind[k]
            rare[j] = hits.sum() < min_cells
    return rare[member.reshape(-1)], int(rare.sum())
