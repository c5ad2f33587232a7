"""A smaller data set from a large one: real cells that stand for all, or sums of like cells; one signature for all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from cellsmith import _keys, _record
from cellsmith._errors import MissingExtraError, SetupError, nearest
from cellsmith._rng import Streams, isolated, resolve_seed
from cellsmith.data.checks import check_counts, check_covariates
from cellsmith.math import matching
from cellsmith.math.counts import library_totals

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["sketch"]

METHODS = ("random", "herding", "kcenter", "kernel_herding", "geosketch", "metacell")
SUMMARIES = ("sum", "mean_log")
ALL = "all cells"

Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Strata:
    """Groups, or pairs of group and batch, that are reduced one by one.

    Parameters
    ----------
    codes
        Stratum of each cell, (n,); -1 for a cell without a group.
    names
        Columns of ``.obs`` -> their value in each stratum, (K,), with the categories of the source.
    wanted
        Rows asked for in each stratum, (K,).
    """

    codes: npt.NDArray[np.int64]
    names: dict[str, pd.Categorical]
    wanted: npt.NDArray[np.int64]

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Cells of each stratum, (K,)."""
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.wanted))

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """Rows that each stratum gets, (K,): what is asked for, or all of its cells."""
        return np.minimum(self.wanted, self.sizes)


def sketch(
    adata: AnnData,
    groupby: str | None,
    n_per_group: int | float | Mapping[Any, int],
    *,
    method: str = "random",
    layer: str | None = None,
    use_rep: str | None = None,
    batch_key: str | None = None,
    key_added: str = "sketch",
    rng: Any = 0,
    random_state: int | None = None,
    method_kwargs: Mapping[str, Any] = {},
) -> AnnData:
    """Reduce a data set to a few rows a group: real cells, or metacells.

    Metacells of ``"mean_log"`` taught linear models, networks and nearest neighbours more than any choice of as many
    real cells that we tried, and random forests less; see the guide of distillation. Nothing private is hidden: a
    metacell of one cell is that cell.

    Parameters
    ----------
    adata
        Cells x genes; it is not changed. It may lie in a file (``backed="r"``).
    groupby
        Column of ``.obs``; every group is reduced on its own. None takes all cells for one group, and reads no label.
        Cells without a group are left out.
    n_per_group
        Rows a group: a number, a mapping group -> number, or a fraction below 1 of each group (at least one row). A
        group that is not larger is kept whole.
    method
        Real cells: "random"; "herding" (their mean follows the group's mean); "kcenter" (farthest first; it seeks
        outliers); "kernel_herding" (they follow the group's distribution); "geosketch" (evenly over the occupied space;
        needs ``cellsmith[sketch]``). New rows: "metacell" (k-means groups of cells, summed up).
    layer
        Layer with the raw counts; None is ``.X``. Not read where real cells are chosen at random or in `use_rep`.
    use_rep
        Embedding in ``.obsm`` in which cells are compared; None: 50 principal components of the logarithm of normalised
        counts, computed from these cells.
    batch_key
        Column of ``.obs``: every pair of group and batch is reduced on its own.
    key_added
        Name of the block in ``.uns`` of the answer, and of its columns.
    rng
        Seed.
    random_state
        Another name for ``rng``, as in older scanpy.
    method_kwargs
        Of "metacell": ``{"summary": "sum"}`` (counts added up) or ``{"summary": "mean_log"}`` (the mean of the cells'
        log-normalised values, as counts; read it by ``.layers["sketch_log"]``).

    Returns
    -------
    AnnData. Real cells are ``adata[indices]``, copied, in their old order; metacells are new rows with int32 counts in
    ``.X`` (and in the layer). ``.obs["sketch_weight"]`` (cells that a row stands for; they sum to the cells with a
    group) and ``["sketch_n_source_cells"]`` (cells it was made of); ``.uns["sketch"]`` with ``indices`` of the chosen
    cells, or ``assignment`` (row of each source cell, -1 for none). Metacells have ``.obs["sketch_library"]``, the
    divisor of their counts; with "mean_log" ``.layers["sketch_log"]`` is log1p(s X / library) before rounding, with s
    = 1e4 (1e3 for at most 1,000 genes), and ``.layers["sketch_expected"]`` the counts before rounding.

    Raises
    ------
    SetupError
        If a column, a name or a number cannot be used, or counts are needed and there are none.
    MissingExtraError
        If "geosketch" is asked for and not installed.

    Examples
    --------
    >>> import cellsmith
    >>> adata = cellsmith.datasets.pbmc68k_counts()
    >>> small = cellsmith.tl.sketch(adata, "cell_type", 5, method="metacell")
    >>> small.shape
    (50, 765)
    """
    _keys.validate(key_added)
    _check(method, method_kwargs)
    seed = resolve_seed(rng if random_state is None else random_state)
    streams = Streams(seed)
    strata = _strata(adata, groupby, n_per_group, batch_key=batch_key)
    params = {
        "method": method,
        "groupby": groupby,
        "batch_key": batch_key,
        "use_rep": use_rep,
        "layer": layer,
        **({"summary": method_kwargs.get("summary", "sum")} if method == "metacell" else {}),
    }
    points = _points(adata, strata, method=method, layer=layer, use_rep=use_rep, streams=streams)
    uns: dict[str, Any] = {
        "params": {name: value for name, value in params.items() if value is not None},
        "groups": _table(strata),
        "n_left_out": int((strata.codes < 0).sum()),
        "provenance": _record.provenance(
            method="sketch",
            seed=seed,
            n_obs=adata.n_obs,
            var_names=adata.var_names,
            inputs={name: value for name, value in params.items() if name != "summary" and value is not None},
            extra={"obs_names_sha256": _record.hash_names(adata.obs_names)},
        ),
    }
    if method == "metacell":
        return _metacells(
            adata, strata, points, params=params, key=key_added, uns=uns, generator=streams.numpy("init", 0)
        )
    indices = np.sort(np.concatenate([_pick(method, points, strata, k, streams) for k in range(len(strata.wanted))]))
    chosen = adata[indices].to_memory() if adata.isbacked else adata[indices].copy()
    _record.forget_registration(chosen)
    obs = {
        "{k}_weight": (strata.sizes / strata.rows)[strata.codes[indices]],
        "{k}_n_source_cells": np.ones(len(indices), dtype=np.int32),
    }
    result = _record.Result(method="sketch", obs=obs, uns={**uns, "indices": indices.astype(np.int64)})
    _record.write(chosen, key_added, result)
    return chosen


def _check(method: str, options: Mapping[str, Any]) -> None:
    if method not in METHODS:
        raise SetupError(f"method={method!r}. {nearest(method, METHODS)}")
    for name, value in options.items():
        if method != "metacell" or name != "summary":
            known = ("summary",) if method == "metacell" else ()
            raise SetupError(f"method_kwargs has no option {name!r} for method={method!r}. {nearest(name, known)}")
        if value not in SUMMARIES:
            raise SetupError(f"summary={value!r}. {nearest(value, SUMMARIES)}")
    if method == "geosketch":
        _geosketch()


def _geosketch() -> Any:
    try:
        from geosketch import gs
    except ImportError as error:
        raise MissingExtraError(
            "method='geosketch' needs the package geosketch, which is not installed. "
            "Type pip install 'cellsmith[sketch]'."
        ) from error
    return gs


def _strata(adata: AnnData, groupby: str | None, n_per_group: Any, *, batch_key: str | None) -> Strata:
    if groupby is not None and groupby not in adata.obs:
        raise SetupError(f"groupby={groupby!r} is not a column of .obs. {nearest(groupby, adata.obs.columns)}")
    check_covariates(adata.obs, categorical={"batch_key": batch_key})
    columns = {} if groupby is None else {groupby: pd.Categorical(adata.obs[groupby])}
    if batch_key is not None:
        columns[batch_key] = pd.Categorical(adata.obs[batch_key])
    codes = np.zeros(adata.n_obs, dtype=np.int64)
    for values in columns.values():
        own = values.codes.astype(np.int64)
        codes = np.where((codes < 0) | (own < 0), -1, codes * len(values.categories) + own)
    if not (codes >= 0).any():
        raise SetupError(f".obs[{groupby!r}] is missing for all {adata.n_obs} cells; expected a group for some.")
    found, first = np.unique(codes[codes >= 0], return_index=True)
    examples = np.flatnonzero(codes >= 0)[first]
    names = {name: values[examples] for name, values in columns.items()}
    compact = np.where(codes < 0, -1, np.searchsorted(found, codes))
    sizes = np.bincount(compact[compact >= 0])
    groups = [ALL] * len(found) if groupby is None else list(names[groupby])
    return Strata(compact, names, _wanted(n_per_group, groups, sizes, named=groupby is not None))


def _wanted(given: Any, groups: list[Any], sizes: Any, *, named: bool) -> npt.NDArray[np.int64]:
    if isinstance(given, Mapping):
        if not named:
            raise SetupError("n_per_group is a mapping, but groupby=None has no groups. Type n_per_group=100.")
        for name in given:
            if name not in groups:
                raise SetupError(f"n_per_group names the group {name!r}. {nearest(name, dict.fromkeys(groups))}")
        missing = [g for g in dict.fromkeys(groups) if g not in given]
        if missing:
            raise SetupError(
                f"n_per_group lacks {len(missing)} groups, first {missing[0]!r}; expected a number for every group."
            )
        return np.array([_number(given[g]) for g in groups], dtype=np.int64)
    if isinstance(given, Real) and not isinstance(given, Integral):
        if not 0 < float(given) < 1:
            raise SetupError(f"n_per_group={given!r}; expected an integer from 1 on, or a fraction between 0 and 1.")
        return np.asarray(np.maximum(1, np.rint(float(given) * sizes)), dtype=np.int64)
    return np.full(len(groups), _number(given), dtype=np.int64)


def _number(value: Any) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise SetupError(
            f"n_per_group holds {value!r}; expected an integer from 1 on. Type for example n_per_group=10."
        )
    return int(value)


def _points(
    adata: AnnData, strata: Strata, *, method: str, layer: str | None, use_rep: str | None, streams: Streams
) -> npt.NDArray[np.float64]:
    """Return coordinates (n, d) in which cells are compared; without columns where nothing is compared."""
    if method == "metacell" or (method != "random" and use_rep is None):
        check_counts(adata, layer, min_cells=1)
    compared = ((strata.rows > 1) & (strata.rows < strata.sizes)).any()
    # One herding or farthest-first cell is the one nearest to the mean; one random cell or one sum compares nothing.
    if method == "random" or (method == "metacell" and not compared):
        return np.zeros((adata.n_obs, 0))
    if use_rep is None:
        counts = adata.X if layer is None else adata.layers[layer]
        scale = matching.target_sum(adata.n_vars)
        return matching.count_components(counts, scale=scale, seed=streams.integer("init"))
    if use_rep not in adata.obsm:
        raise SetupError(f"use_rep={use_rep!r} is not in .obsm. {nearest(use_rep, adata.obsm)}")
    given = adata.obsm[use_rep]
    points = np.asarray(given.toarray() if sp.issparse(given) else given, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if bad.size:
        name = adata.obs_names[bad[0]]
        raise SetupError(f".obsm[{use_rep!r}] is not finite for {bad.size} cells, first {name!r}; expected numbers.")
    return points


def _pick(method: str, points: npt.NDArray[np.float64], strata: Strata, k: int, streams: Streams) -> Indices:
    """Return the chosen cells of stratum ``k`` as positions in the source."""
    members, c = np.flatnonzero(strata.codes == k), int(strata.rows[k])
    if c == len(members):
        return members
    x, generator = points[members], streams.numpy("sample", k)
    if method == "random":
        return members[generator.choice(len(members), c, replace=False)]
    if method == "herding":
        return members[matching.herding(x, c)]
    if method == "kcenter":
        return members[matching.k_center(x, c)]
    if method == "kernel_herding":
        return members[matching.kernel_herding(x, c, generator=generator)]
    seed = streams.integer("sample", k)
    with isolated(seed):
        # Without a seed geosketch returns the same cells at every call.
        return members[np.asarray(_geosketch()(x, c, seed=seed, replace=False), dtype=np.intp)]


def _metacells(
    adata: AnnData,
    strata: Strata,
    points: npt.NDArray[np.float64],
    *,
    params: Mapping[str, Any],
    key: str,
    uns: Mapping[str, Any],
    generator: np.random.Generator,
) -> AnnData:
    from anndata import AnnData

    layer = params.get("layer")
    source = adata.X if layer is None else adata.layers[layer]
    groups = matching.class_groups(points, strata.codes, strata.rows, generator=generator)
    summed = matching.metacell_sums(source, groups)
    counts, layers = summed, {}
    if params["summary"] == "mean_log":
        scale = matching.target_sum(adata.n_vars)
        shares, total = matching.group_profiles(source, groups, summary="mean_log", scale=scale)
        expected = shares * total[:, None]
        counts = matching.round_profiles(expected)
        layers = {"{k}_log": np.log1p(scale * shares).astype(np.float32), "{k}_expected": expected.astype(np.float32)}
    counts = sp.csr_matrix(counts, dtype=np.int32)
    stratum = np.repeat(np.arange(len(strata.rows)), strata.rows)
    names = pd.Index([f"{key}_{i}" for i in range(len(stratum))])
    obs = pd.DataFrame({name: values[stratum] for name, values in strata.names.items()}, index=names)
    colors = {f"{name}_colors": adata.uns[f"{name}_colors"] for name in obs if f"{name}_colors" in adata.uns}
    out = AnnData(
        counts, obs=obs, var=adata.var.copy(), uns=colors, layers={} if layer is None else {layer: counts.copy()}
    )
    columns = {
        "{k}_weight": (strata.sizes / strata.rows)[stratum],
        "{k}_n_source_cells": np.bincount(groups[groups >= 0], minlength=len(stratum)).astype(np.int32),
        "{k}_library": library_totals(summed),
        "is_synthetic": np.ones(len(stratum), dtype=bool),
    }
    result = _record.Result(method="sketch", obs=columns, layers=layers, uns={**uns, "assignment": groups})
    _record.write(out, key, result)
    return out


def _table(strata: Strata) -> dict[str, Any]:
    table: dict[str, Any] = {
        name: np.asarray(values, dtype=object).astype(str) for name, values in strata.names.items()
    }
    more = {"n_source_cells": strata.sizes, "n_rows": strata.rows, "kept_whole": strata.wanted >= strata.sizes}
    clash = table.keys() & more.keys()
    return {**{f"{name}_" if name in clash else name: values for name, values in table.items()}, **more}
