"""Which topics set groups of cells apart, and which go with the survival of patients."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellsmith._errors import ConvergenceError, DataWarning, MissingExtraError, SetupError, nearest
from cellsmith.math.enrichment import benjamini_hochberg
from cellsmith.tl._sce2tm_tables import read_mu, read_topics, write_table

if TYPE_CHECKING:
    import numpy.typing as npt
    from anndata import AnnData

__all__ = ["sce2tm_rank", "sce2tm_survival"]

MIN_EVENTS = 20
RANK_COLUMNS = (
    "group",
    "topic",
    "mean_group",
    "mean_rest",
    "difference",
    "effect",
    "p_value",
    "fdr",
    "n_group",
    "n_rest",
)
CELLS_ARE_NOT_SAMPLES = (
    "The test took every cell for a sample of its own (unit='cell'). Cells of one donor are alike, so that p-values "
    "are far too small for a statement about donors. Type sample_key=... with the column of the donors."
)


def sce2tm_rank(
    adata: AnnData,
    *,
    groupby: str,
    key: str = "sce2tm",
    sample_key: str | None = None,
    key_added: str | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Compare every topic between every group of cells and all other cells.

    Two-sided Mann-Whitney test of mu (T23), Benjamini-Hochberg over all topics and groups.

    Parameters
    ----------
    adata
        Cells with the results of :func:`cellsmith.tl.sce2tm`.
    groupby
        Column of ``.obs``; cells without a value are left out.
    key
        Key of the topics.
    sample_key
        Column of ``.obs`` with the sample (donor) of each cell: the test then sees one mean of mu a sample and side,
        at least three a side. None tests cells, with a warning: cells of one donor are not independent, and the
        p-values are far too small for a statement about donors.
    key_added
        Name of the table; None is ``key + "_rank"``.
    copy
        Return a copy with the table instead of writing into ``adata``.

    Returns
    -------
    None, or the copy. Written is ``.uns[key_rank]``: ``"table"``, a mapping of equally long arrays (group, topic,
    mean_group, mean_rest, difference of mu, effect = difference in standard deviations over the cells, p_value, fdr,
    n_group, n_rest), one row a group and topic, by group and then falling effect; and ``"params"`` with ``unit``,
    "cell" or "sample", in which n_group and n_rest count.

    Raises
    ------
    SetupError
        If there are no results, a column does not exist, there are fewer than two groups, or a side has fewer than
        three samples.

    Examples
    --------
    >>> cellsmith.tl.sce2tm_rank(adata, groupby="cell_type", sample_key="donor")  # doctest: +SKIP
    """
    topics = read_topics(adata, key)
    column = _column(adata, groupby, "groupby").astype("category").cat.remove_unused_categories()
    known = column.notna().to_numpy()
    if len(column.cat.categories) < 2:
        raise SetupError(f".obs[{groupby!r}] has the values {list(column.cat.categories)}; expected at least two.")
    mu, codes = read_mu(adata, key)[known], column.cat.codes.to_numpy()[known]
    samples = None
    if sample_key is not None:
        samples = pd.factorize(_column(adata, sample_key, "sample_key")[known])[0]
        if (samples < 0).any():
            raise SetupError(
                f".obs[{sample_key!r}] is missing for {int((samples < 0).sum())} cells; expected a sample."
            )
    frame = pd.concat(
        [_against_rest(mu, codes == g, samples, str(name)) for g, name in enumerate(column.cat.categories)],
        keys=range(len(column.cat.categories)),
        names=["place", "topic"],
    ).reset_index()
    frame["topic"] = np.array(topics.names, dtype=object)[frame["topic"]]
    frame["fdr"] = benjamini_hochberg(frame["p_value"])
    frame = frame.iloc[np.lexsort((-frame["effect"], frame["place"]))][list(RANK_COLUMNS)]
    unit, note = ("cell", (CELLS_ARE_NOT_SAMPLES,)) if sample_key is None else ("sample", ())
    params = {"groupby": groupby, "sample_key": sample_key, "unit": unit, "n_cells_without_group": int((~known).sum())}
    table = {str(name): frame[name].to_numpy() for name in frame}
    answer = write_table(
        adata, "rank", key=key, key_added=key_added, table=table, params=params, copy=copy, warnings=note
    )
    if note:
        warnings.warn(CELLS_ARE_NOT_SAMPLES, DataWarning, stacklevel=2)
    return answer


def _against_rest(
    mu: npt.NDArray[np.float64], group: npt.NDArray[np.bool_], samples: npt.NDArray[Any] | None, name: str
) -> pd.DataFrame:
    """Return one row a topic; p-values are not yet adjusted."""
    from cellsmith.model.sce2tm.perturb import compare_topics

    try:
        found = compare_topics(mu, group, ~group, scale=mu.std(axis=0), samples=samples)
    except SetupError as error:
        raise SetupError(f"Group {name!r} against the rest: {error}") from error
    sizes = [int(s.sum()) if samples is None else len(np.unique(samples[s])) for s in (group, ~group)]
    shown = {"mean_group": found["mean_group"], "mean_rest": found["mean_reference"]}
    shown |= {what: found[what] for what in ("difference", "effect", "p_value")}
    return pd.DataFrame({"group": name, **shown, "n_group": sizes[0], "n_rest": sizes[1]})


def sce2tm_survival(
    adata: AnnData,
    *,
    time: str,
    event: str,
    key: str = "sce2tm",
    covariates: Sequence[str] = (),
    key_added: str | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Relate topics to the survival of patients: rows of ``adata`` are patients. Needs ``cellsmith[survival]``.

    A Cox model of every topic by itself, on mu in standard deviations over the patients (T28), by lifelines; beside it
    the log-rank test of the patients above against those below the median.

    Parameters
    ----------
    adata
        Patients with the results of :func:`cellsmith.tl.sce2tm_transfer` (with ``bulk=True`` of bulk profiles) or of
        :func:`cellsmith.tl.sce2tm`.
    time
        Column of ``.obs``: time until the event or the end of observation, above 0.
    event
        Column of ``.obs``: True or 1 where the event was observed, False or 0 where observation ended.
    key
        Key of the topics.
    covariates
        Further columns of ``.obs`` in the Cox model: numbers, or categories (one indicator a level but the first).
    key_added
        Name of the table; None is ``key + "_survival"``.
    copy
        Return a copy with the table instead of writing into ``adata``.

    Returns
    -------
    None, or the copy. Written is ``.uns[key_survival]``: ``"table"``, a mapping of equally long arrays (topic,
    coefficient, standard_error, hazard_ratio per standard deviation of mu, low and high of its 95 % interval, z,
    p_value, fdr over the topics, logrank_p_value), one row a topic. A topic that is the same in all patients has NaN.

    Raises
    ------
    MissingExtraError
        If lifelines is not installed.
    SetupError
        If there are no results, a column does not exist, a time is not above 0, a value is missing, or fewer than 20
        events were observed. No patient is left out silently.
    ConvergenceError
        If a Cox model does not converge.

    Examples
    --------
    >>> cellsmith.tl.sce2tm_survival(patients, time="months", event="dead", covariates=["age"])  # doctest: +SKIP
    """
    try:
        import lifelines  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "tl.sce2tm_survival needs lifelines, which is not installed. Type: pip install 'cellsmith[survival]'."
        ) from error
    topics = read_topics(adata, key)
    base = _patients(adata, time, event, covariates)
    mu = read_mu(adata, key)
    frame = pd.DataFrame([_cox(base, values, name) for name, values in zip(topics.names, mu.T, strict=True)])
    frame.insert(frame.columns.get_loc("p_value") + 1, "fdr", _adjusted(frame["p_value"].to_numpy()))
    table = {"topic": np.array(topics.names, dtype=object)} | {c: frame[c].to_numpy() for c in frame}
    params = {
        "time": time,
        "event": event,
        "covariates": np.array(list(covariates), dtype=object),
        "n_patients": len(base),
        "n_events": int(base["event"].sum()),
    }
    return write_table(adata, "survival", key=key, key_added=key_added, table=table, params=params, copy=copy)


def _patients(adata: AnnData, time: str, event: str, covariates: Sequence[str]) -> pd.DataFrame:
    """Return time, event and covariates as numbers, or say what is wrong with them."""
    if isinstance(covariates, str):
        raise SetupError(f"covariates={covariates!r} is a string; expected names of columns. Type [{covariates!r}].")
    wanted = {"time": time, "event": event} | {f"covariate {name}": name for name in covariates}
    columns = {role: _column(adata, name, role.split(" ")[0]) for role, name in wanted.items()}
    for role, name in wanted.items():
        if missing := int(columns[role].isna().sum()):
            raise SetupError(
                f".obs[{name!r}] is missing for {missing} of {adata.n_obs} patients; expected a value for each. Leave "
                "them out yourself: adata = adata[adata.obs[...].notna()]."
            )
    lengths, seen = (pd.to_numeric(columns[role].astype(object), errors="coerce") for role in ("time", "event"))
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        bad = columns["time"][~(np.isfinite(lengths) & (lengths > 0))]
        raise SetupError(f".obs[{time!r}] is {bad.iloc[0]!r} for {bad.index[0]!r}; expected finite times above 0.")
    if not seen.isin([0, 1]).all():
        found = sorted(map(str, columns["event"].unique()))[:5]
        raise SetupError(f".obs[{event!r}] has the values {found}; expected True and False, or 1 and 0.")
    if seen.sum() < MIN_EVENTS:
        raise SetupError(f".obs[{event!r}] holds {int(seen.sum())} events; expected at least {MIN_EVENTS}.")
    base = pd.DataFrame({"time": lengths.astype(float), "event": seen.astype(int)})
    extra = pd.DataFrame({role: column for role, column in columns.items() if role not in base})
    return base.join(pd.get_dummies(extra, drop_first=True, dtype=float)) if len(extra.columns) else base


def _cox(base: pd.DataFrame, mu: npt.NDArray[np.float64], name: str) -> dict[str, float]:
    """Return what a Cox model and a log-rank test say about one topic."""
    from lifelines import CoxPHFitter
    from lifelines.exceptions import ConvergenceError as NotConverged
    from lifelines.statistics import logrank_test

    wanted = {"coef": "coefficient", "se(coef)": "standard_error", "exp(coef)": "hazard_ratio"}
    wanted |= {"exp(coef) lower 95%": "low", "exp(coef) upper 95%": "high", "z": "z", "p": "p_value"}
    if mu.std() == 0:
        return dict.fromkeys([*wanted.values(), "logrank_p_value"], float("nan"))
    try:
        fitted = CoxPHFitter().fit(base.assign(topic=(mu - mu.mean()) / mu.std()), "time", "event")
    except NotConverged as error:
        raise ConvergenceError(f"The Cox model of {name} does not converge; leave out a covariate. {error}") from error
    row = fitted.summary.loc["topic"]
    high = mu > np.median(mu)
    sides = [base["time"][high], base["time"][~high], base["event"][high], base["event"][~high]]
    test = logrank_test(*sides) if high.any() else None
    return {ours: float(row[theirs]) for theirs, ours in wanted.items()} | {
        "logrank_p_value": float("nan") if test is None else float(test.p_value)
    }


def _adjusted(p: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return p-values after Benjamini and Hochberg; NaN, a test that could not be made, stays and is not counted."""
    made, out = ~np.isnan(p), np.full(p.shape, np.nan)
    out[made] = benjamini_hochberg(p[made])
    return out


def _column(adata: AnnData, name: str, argument: str) -> pd.Series[Any]:
    if name not in adata.obs:
        raise SetupError(f"{argument}={name!r} is not a column of .obs. {nearest(name, adata.obs.columns)}")
    return adata.obs[name]
