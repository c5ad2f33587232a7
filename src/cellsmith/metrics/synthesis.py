"""Score the cells of any generator against real ones, every number beside its real-vs-real control."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellsmith._errors import SetupError, nearest
from cellsmith._rng import Streams, resolve_seed
from cellsmith.metrics import _scores as scores
from cellsmith.metrics._bands import METRICS, SYMMETRIC, check_bands
from cellsmith.metrics._cells import Cells, Space, read_cells, stack
from cellsmith.metrics._expression import count_curves
from cellsmith.metrics._labels import labelled
from cellsmith.metrics._report import SyntheticReport, score_table

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["SyntheticReport", "evaluate_synthetic"]

_REFUSED = {
    "nn_auc": "neighbour",
    "nn_auc_genes": "neighbour",
    "knn_auc": "neighbour",
    "knn_auc_genes": "neighbour",
    "one_nn_genes": "neighbour",
    "gene_mean": "mean",
    "gene_mean_correlation": "mean",
    "gene_mean_pearson": "mean",
    "gene_mean_spearman": "mean",
}
_REASONS = {
    "neighbour": (
        "a nearest-neighbour classifier in gene space calls every cell synthetic as soon as the generator is smooth, "
        "so it reads AUC 0.500 for a 20-neighbour average that a random forest recognises without error. Ask for "
        "'rf_auc_genes', 'rf_auc_pca' or 'one_nn' (in principal components)."
    ),
    "mean": (
        "the correlation of gene means is near 1 for any average of real cells, so it cannot tell a good generator "
        "from a useless one. Ask for 'gg_correlation', 'lfc_slope' or 'zero_fraction_mae'."
    ),
}


@dataclass(frozen=True)
class _Results:
    """Scores a side, label results a side, W2 a side and label, curves a side."""

    values: Mapping[str, dict[str, float]]
    found: Mapping[str, dict[str, Any]]
    per_type: Mapping[str, dict[str, float]]
    curves: Mapping[str, dict[str, np.ndarray]]


def _wanted(metrics: str | Iterable[str], labels_key: str | None, batch_key: str | None) -> frozenset[str]:
    have = {"labels": labels_key is not None, "batches": batch_key is not None}
    if isinstance(metrics, str) and metrics == "all":
        return frozenset(name for name, metric in METRICS.items() if have.get(metric.needs or "", True))
    chosen = [metrics] if isinstance(metrics, str) else list(metrics)
    for name in chosen:
        if name in _REFUSED:
            msg = f"The metric {name!r} is refused: {_REASONS[_REFUSED[name]]}"
            raise SetupError(msg)
        if name not in METRICS:
            msg = f"The metric {name!r} is unknown. {nearest(name, METRICS)}"
            raise SetupError(msg)
        needs = METRICS[name].needs or ""
        if not have.get(needs, True):
            key = "labels_key" if needs == "labels" else "batch_key"
            msg = f"The metric {name!r} needs {needs}, and `{key}` is None. Type `{key}='<column of .obs>'`."
            raise SetupError(msg)
    if not chosen:
        msg = f"`metrics` is empty. Type 'all' or a list of: {', '.join(METRICS)}."
        raise SetupError(msg)
    return frozenset(chosen)


def _check_labels(real: Cells, synthetic: Cells, key: str | None) -> None:
    if key is None:
        return
    a, b = (sorted(set(c.columns[key][labelled(c.columns[key])])) for c in (real, synthetic))
    if not set(a) & set(b):
        msg = (
            f"No label of `real.obs[{key!r}]` ({', '.join(a[:8]) or 'none'}) occurs in `synthetic.obs[{key!r}]` "
            f"({', '.join(b[:8]) or 'none'}). Rename the categories, or type `labels_key=None`."
        )
        raise SetupError(msg)


def _cut(
    real: Cells, synthetic: Cells, control: Cells | None, *, max_cells: int, streams: Streams
) -> tuple[Cells, Cells, Cells]:
    """Return reference, candidate and control of one size."""
    if control is None:
        order = streams.numpy("split", 0).permutation(real.n)
        half = real.n // 2
        real, control = real.rows(np.sort(order[:half])), real.rows(np.sort(order[half : 2 * half]))
    n = min(real.n, synthetic.n, control.n, max_cells)
    if n < 20:
        msg = (
            f"Only {n} cells are left a side (reference {real.n}, control {control.n}, synthetic {synthetic.n}, "
            f"max_cells={max_cells}); expected at least 20. Give more cells."
        )
        raise SetupError(msg)
    sides = enumerate((real, synthetic, control), start=1)
    reference, candidate, other = (side.draw(n, streams.numpy("split", k)) for k, side in sides)
    return reference, candidate, other


def _read(
    given: Mapping[str, AnnData | None],
    genes: np.ndarray,
    *,
    columns: tuple[str | None, str | None],
    layer: str | None,
    max_cells: int,
    streams: Streams,
) -> tuple[Cells, Cells, Cells, Cells | None]:
    """Read and check all objects; return reference, candidate and control of one size, and the training cells."""
    cells = {
        name: read_cells(
            adata,
            name=name,
            genes=genes,
            layer=layer,
            columns=columns,
            log_scale=layer is not None and name == "synthetic",
        )
        for name, adata in given.items()
        if adata is not None
    }
    _check_labels(cells["real"], cells["synthetic"], columns[0])
    cut = _cut(cells["real"], cells["synthetic"], cells.get("control"), max_cells=max_cells, streams=streams)
    _check_labels(cut[0], cut[1], columns[0])
    return *cut, cells.get("train")


def _per_label(
    key: str, cells: Mapping[str, Cells], found: Mapping[str, dict[str, Any]], w2: Mapping[str, dict[str, float]]
) -> pd.DataFrame:
    sizes = {side: pd.Series(c.columns[key]).value_counts() for side, c in cells.items()}
    labels = sorted({name for size in sizes.values() for name in size.index})
    table: dict[str, Any] = {"label": labels}
    table |= {f"n_{side}": [int(size.get(name, 0)) for name in labels] for side, size in sizes.items()}
    nan = float("nan")
    for column in ("fidelity", "f1", "lfc_slope", "de_overlap"):
        for side, suffix in (("synthetic", ""), ("control", "_control")):
            values = found[side]["per_label"][column] if found else {}
            table[column + suffix] = [values.get(name, nan) for name in labels]
    for side, suffix in (("synthetic", ""), ("control", "_control")):
        table["w2" + suffix] = [w2[side].get(name, nan) for name in labels]
    return pd.DataFrame(table)


def _fold_table(found: Mapping[str, dict[str, Any]], genes: np.ndarray) -> pd.DataFrame:
    """Put the fold changes of all types under each other.

    Without training cells each side chose its own genes; the control column then is NaN where it chose others.
    """
    parts = []
    for name, (index, real, synthetic) in found["synthetic"]["folds"].items():
        other = found["control"]["folds"].get(name)
        beside = {} if other is None else dict(zip(other[0].tolist(), other[2].tolist(), strict=True))
        control = [beside.get(g, float("nan")) for g in index.tolist()]
        columns = {"label": name, "gene": genes[index], "real": real, "synthetic": synthetic, "control": control}
        parts.append(pd.DataFrame(columns))
    if parts:
        return pd.concat(parts, ignore_index=True)
    return pd.DataFrame({"label": [], "gene": [], "real": [], "synthetic": [], "control": []})


def _teachers(frame: scores.Frame, sides: Mapping[str, Cells], side: str) -> tuple[Any, Any]:
    """Return the classifiers of fidelity and of comparison when there are no training cells.

    The control then is the only real data that may teach the synthetic side; the control itself is classified by the
    reference, never by itself.
    """
    rival = scores.teach(frame, sides["control"])
    return (rival if side == "synthetic" else scores.teach(frame, frame.reference)), rival


def _score_sides(
    base: scores.Frame, sides: Mapping[str, Cells], train: Cells | None, *, n_components: int
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, Any]], dict[str, dict[str, float]]]:
    """Score candidate and control alike: values a side, label results a side, W2 a label and side."""
    values: dict[str, dict[str, float]] = {side: {} for side in sides}
    found, per_type = {}, {}
    needs_labels = {"label_fidelity", "tstr", "tstr_ratio", "lfc_slope", "de_overlap"} & base.wanted
    taught = scores.teach(base, train) if train is not None and needs_labels else None
    for side, cells in sides.items():
        seed = base.streams.integer("components", 0 if side == "synthetic" else 1)
        together = Space.fit(stack(base.reference.log, cells.log), n_components, seed)
        frame = base if train is not None else replace(base, space=together)
        main, per_type[side] = scores.space_scores(frame, cells)
        values[side] |= main
        if train is not None:
            symmetric = replace(base, space=together, wanted=base.wanted & frozenset(SYMMETRIC))
            again, _ = scores.space_scores(symmetric, cells)
            values[side] |= {f"{k}_symmetric": v for k, v in again.items()}
        if needs_labels:
            teacher, rival = (taught, taught) if taught is not None else _teachers(frame, sides, side)
            found[side] = scores.label_scores(frame, cells, train, teacher=teacher, rival=rival)
            values[side] |= found[side]["scores"]
        values[side] |= scores.composition_scores(base, cells)
    return values, found, per_type


def evaluate_synthetic(
    real: AnnData,
    synthetic: AnnData,
    train: AnnData | None = None,
    *,
    control: AnnData | None = None,
    labels_key: str | None = None,
    batch_key: str | None = None,
    layer: str | None = None,
    metrics: str | Iterable[str] = "all",
    n_components: int = 30,
    n_genes: int = 250,
    max_cells: int = 2000,
    bands: Mapping[str, tuple[float | None, float | None] | None] | None = None,
    rng: int | np.random.Generator | np.random.RandomState | None = 0,
) -> SyntheticReport:
    """Score synthetic cells of any generator against real ones.

    Every number stands next to the same number for real cells in place of the
    synthetic ones. Components and genes are chosen on `train` alone; rows that
    end in ``_symmetric`` repeat the score with the choice made on both sides
    together. Nothing is written into the objects.

    Parameters
    ----------
    real
        Real cells that the generator has not seen, counts of shape (n, G).
    synthetic
        Generated cells with the same genes. Log-normalised values are accepted when `layer`
        names the counts of `real`; scores of counts are then NaN.
    train
        Cells that the generator was trained on. None: components and genes come from the two sides together.
    control
        Further unseen real cells. None: a seeded half of `real`; the other half is the reference.
    labels_key, batch_key
        Columns of ``.obs``; without them their scores are left out. Missing labels are ignored.
    layer
        Layer of counts; used in `synthetic` where it exists.
    metrics
        ``"all"`` or names: ``gg_correlation gg_mae mmd w2 w2_per_type w2_per_batch ilisi one_nn rf_auc_pca
        rf_auc_genes precision recall coverage label_fidelity tstr tstr_ratio lfc_slope de_overlap
        zero_fraction_mae ks_library ks_genes_detected mean_variance composition composition_batch``.
    n_components
        Principal components.
    n_genes
        Most variable genes of the random forest in gene space.
    max_cells
        Largest number of cells a side; all sides are cut to one size.
    bands
        Metric -> (low, high) instead of the default range, None for an open end; None instead of a pair: not judged.
    rng
        Seed, or a generator that gives it.

    Returns
    -------
    The report.

    Raises
    ------
    SetupError
        For different genes, values that are no counts, missing columns, no shared label, too few cells, an unknown
        metric, or one that cannot tell good from bad (nearest-neighbour AUC in gene space, correlation of gene means).

    Examples
    --------
    >>> report = evaluate_synthetic(test, synthetic, train, labels_key="cell_type")  # doctest: +SKIP
    >>> adata.uns["scld_evaluation"] = report.to_uns()  # doctest: +SKIP
    """
    wanted = _wanted(metrics, labels_key, batch_key)
    check_bands(bands, METRICS)
    seed = resolve_seed(rng)
    streams = Streams(seed)
    genes = np.asarray(real.var_names, dtype=str)
    given = {"real": real, "synthetic": synthetic, "control": control, "train": train}
    reference, candidate, other, trained = _read(
        given, genes, columns=(labels_key, batch_key), layer=layer, max_cells=max_cells, streams=streams
    )
    base = scores.Frame(
        reference=reference,
        space=Space.fit((trained or reference).log, n_components, streams.integer("components", 2)),
        wanted=wanted,
        n_genes=n_genes,
        labels_key=labels_key,
        batch_key=batch_key,
        streams=streams,
    )
    sides = {"synthetic": candidate, "control": other}
    values, found, per_type = _score_sides(base, sides, trained, n_components=n_components)
    curves = {
        "real": count_curves(reference.counts),
        "control": count_curves(other.counts),
        "synthetic": {} if candidate.counts is None else count_curves(candidate.counts),
    }
    for side in sides:
        values[side] |= scores.count_scores(wanted, curves["real"], curves[side])
    settings = {"seed": seed, "n_components": n_components, "max_cells": max_cells, "layer": layer}
    settings |= {
        "n_train": 0 if trained is None else trained.n,
        "control": "half of real" if control is None else "given",
    }
    results = _Results(values, found, per_type, curves)
    return _assemble(base, sides, results, bands=bands, genes=genes, settings=settings)


def _assemble(
    base: scores.Frame,
    sides: Mapping[str, Cells],
    results: _Results,
    *,
    bands: Mapping[str, Any] | None,
    genes: np.ndarray,
    settings: dict[str, Any],
) -> SyntheticReport:
    values, found, curves = results.values, results.found, results.curves
    candidate = sides["synthetic"]
    settings |= {
        "n_cells": base.reference.n,
        "n_synthetic_without_counts": int((np.diff(candidate.log.indptr) == 0).sum()),
        "synthetic_holds_counts": candidate.counts is not None,
        "space": "train" if settings["n_train"] else "reference and candidate",
        "n_genes": min(base.n_genes, len(genes)),
        "labels_key": base.labels_key,
        "batch_key": base.batch_key,
    }
    ideals = {}
    if found:
        settings["real_fidelity"] = ideals["label_fidelity"] = found["synthetic"]["real_fidelity"]
        settings["trtr"] = found["synthetic"]["trtr"]
    names = [n for n in METRICS if n in base.wanted]
    names += [f"{n}_symmetric" for n in SYMMETRIC if f"{n}_symmetric" in values["synthetic"]]
    ordered = {n: values["synthetic"].get(n, float("nan")) for n in names}
    table, bounds = score_table(
        ordered, values["control"], METRICS, n_cells=base.reference.n, ideals=ideals, bands=bands
    )
    per_label = pd.DataFrame({"label": []})
    if base.labels_key is not None:
        everyone = {"reference": base.reference, **sides}
        per_label = _per_label(base.labels_key, everyone, found, results.per_type)
    return SyntheticReport(
        table=table,
        per_label=per_label,
        settings=settings,
        bounds=bounds,
        curves={f"{side}_{name}": array for side, group in curves.items() for name, array in group.items()},
        lfc=_fold_table(found, genes) if found else pd.DataFrame({"label": []}),
    )
