"""Whether a generator gives its training cells away: distances, exact copies and a membership attack.

Passing these tests is no privacy guarantee: distance tests miss leakage that
attacks find, and the attack here is one of many. Only training under
differential privacy bounds what can be learned about a cell or a donor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellsmith._errors import SetupError
from cellsmith._rng import Streams, resolve_seed
from cellsmith.metrics import _attack as parts
from cellsmith.metrics._bands import PRIVACY_METRICS
from cellsmith.metrics._cells import Cells, read_cells
from cellsmith.metrics._report import PrivacyReport, score_table

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["PrivacyReport", "membership_auc", "nearest_share", "privacy_report"]


def nearest_share(train: np.ndarray, holdout: np.ndarray, synthetic: np.ndarray) -> float:
    """Return the share of synthetic cells that lie nearer to a training than to a hold-out record.

    Parameters
    ----------
    train, holdout
        Coordinates of shape (n, d) each; they must have the same number of rows, or the larger set wins by its size.
    synthetic
        Coordinates of shape (m, d).

    Returns
    -------
    Share in [0, 1], ties counted half; 0.5 = no memory of the training cells.

    Raises
    ------
    SetupError
        When `train` and `holdout` differ in size.

    Examples
    --------
    >>> nearest_share(x[:100], x[100:200], generated)  # doctest: +SKIP
    """
    if len(train) != len(holdout):
        msg = (
            f"`train` has {len(train)} rows, `holdout` {len(holdout)}; the share compares equal sizes. "
            f"Cut both to {min(len(train), len(holdout))} rows."
        )
        raise SetupError(msg)
    return parts.share(parts.nearest(train, synthetic)[0][:, 0], parts.nearest(holdout, synthetic)[0][:, 0])


def membership_auc(train: np.ndarray, holdout: np.ndarray, synthetic: np.ndarray) -> float:
    """Return the AUC of an attack that calls cells near to a synthetic cell members of the training set.

    Parameters
    ----------
    train, holdout
        Coordinates of shape (n, d) and (m, d).
    synthetic
        Coordinates of shape (s, d).

    Returns
    -------
    AUC of minus the distance to the nearest synthetic cell; 0.5 = the attack learns nothing.

    Examples
    --------
    >>> membership_auc(x[:100], x[100:200], generated)  # doctest: +SKIP
    """
    return parts.auc(*(-parts.nearest(synthetic, side)[0][:, 0] for side in (train, holdout)))


def _per_label(cells: Cells, key: str | None, found: parts.Attack, copied: np.ndarray) -> pd.DataFrame:
    if key is None:
        return pd.DataFrame({"label": []})
    labels = cells.columns[key]
    rows = []
    for name in sorted({v for v in labels if v is not None}):
        mask = labels == name
        share = parts.share(found.to_train[mask], found.to_holdout[mask])
        rows.append((name, int(mask.sum()), share, float(copied[mask].mean())))
    return pd.DataFrame(rows, columns=["label", "n_synthetic", "nearest_share", "exact_copies"])


def _curves(found: parts.Attack, real: parts.Attack) -> dict[str, np.ndarray]:
    """Return what the picture draws: sorted distances, and the operating characteristic of the attack."""
    from sklearn.metrics import roc_curve

    member = np.r_[np.ones(len(found.inside)), np.zeros(len(found.outside))]
    false_positive, true_positive, _ = roc_curve(member, np.r_[found.inside, found.outside])
    return {
        "distance_train": np.sort(found.to_train),
        "distance_holdout": np.sort(found.to_holdout),
        "control_distance_train": np.sort(real.to_train),
        "control_distance_holdout": np.sort(real.to_holdout),
        "false_positive_rate": false_positive,
        "true_positive_rate": true_positive,
    }


def _donors(half: Cells, rest: Cells, key: str, scores: parts.Attack) -> tuple[np.ndarray, np.ndarray]:
    return parts.donor_means(scores.inside, half.columns[key]), parts.donor_means(scores.outside, rest.columns[key])


def _compare(
    members: Cells, others: Cells, points: Cells, *, donor_key: str | None, n_components: int, streams: Streams
) -> tuple[dict[str, float], dict[str, float], dict[str, tuple[Any, Any]], tuple[parts.Attack, ...], pd.DataFrame]:
    """Return values, controls, scores of members and non-members per attack, both attacks, and one row a point."""
    n = min(members.n, others.n)
    half, rest = members.draw(n, streams.numpy("split", 0)), others.draw(n, streams.numpy("split", 1))
    found, space = parts.attack(half, rest, points, n_components=n_components, seed=streams.integer("components", 0))
    stand_in, remainder = parts.halves(rest, donor_key, streams.numpy("split", 2))
    few = half.draw(remainder.n, streams.numpy("split", 3))
    real, _ = parts.attack(few, remainder, stand_in, n_components=n_components, seed=streams.integer("components", 1))

    records = space.project(members)
    ratio, record = parts.distance_ratio(records, space.project(points))
    known = set(parts.row_keys(members.counts))
    copied = parts.copies(points.counts, known, points.n)
    values = {
        "nearest_share": found.share,
        "exact_copies": float("nan") if points.counts is None else float(copied.mean()),
        "membership_auc": found.auc,
        "distance_ratio": float(np.median(ratio)),
    }
    controls = {
        "nearest_share": real.share,
        "exact_copies": float(parts.copies(others.counts, known, others.n).mean()),
        "membership_auc": real.auc,
        "distance_ratio": float(np.median(parts.distance_ratio(records, space.project(rest))[0])),
    }
    attacked = {"membership_auc": (found.inside, found.outside)}
    if donor_key is not None:
        attacked["membership_auc_donor"] = _donors(half, rest, donor_key, found)
        values["membership_auc_donor"] = parts.auc(*attacked["membership_auc_donor"])
        controls["membership_auc_donor"] = parts.auc(*_donors(few, remainder, donor_key, real))
    per_cell = {
        "cell": points.names,
        "distance_train": found.to_train,
        "distance_holdout": found.to_holdout,
        "distance_ratio": ratio,
        "nearest_train": members.names[record],
        "exact_copy": copied,
    }
    return values, controls, attacked, (found, real), pd.DataFrame(per_cell)


def privacy_report(
    train: AnnData,
    holdout: AnnData,
    synthetic: AnnData,
    *,
    donor_key: str | None = None,
    labels_key: str | None = None,
    layer: str | None = None,
    n_components: int = 30,
    n_bootstrap: int = 200,
    rng: int | np.random.Generator | np.random.RandomState | None = 0,
) -> PrivacyReport:
    """Test whether synthetic cells give training cells away.

    Distances are Euclidean in principal components of log1p expression (1e4
    counts a cell), fitted on equal halves of `train` and `holdout`. The control
    puts one half of `holdout` in place of the synthetic cells and the other in
    place of `holdout`. Nothing is written into the objects.

    Parameters
    ----------
    train
        Cells that the generator was trained on, counts of shape (n, G).
    holdout
        Cells of the same kind that it has not seen; at least 40.
    synthetic
        Generated cells with the same genes; log-normalised values are accepted when `layer` names the counts of
        `train` and `holdout`, exact copies are then not available.
    donor_key
        Column of ``.obs`` of `train` and `holdout` with the donor: adds the attack on donors.
    labels_key
        Column of ``.obs`` of `synthetic`: adds a table per label.
    layer
        Layer of counts; used in `synthetic` where it exists.
    n_components
        Principal components.
    n_bootstrap
        Resamplings of the 95 % intervals of the attack; 0 leaves them out.
    rng
        Seed, or a generator that gives it.

    Returns
    -------
    The report. ``nearest_share``: share of synthetic cells nearer to a training than to a hold-out cell.
    ``exact_copies``: share of synthetic cells whose counts equal those of a training cell. ``membership_auc``: attack
    by the distance to the nearest synthetic cell, ``membership_auc_donor``: the same by a donor's mean.
    ``distance_ratio``: median of first over second distance to the training cells, with hold-out cells as control.

    Raises
    ------
    PrivacyError
        When `train` and `holdout` share cells (same name and same counts) or donors.
    SetupError
        For different genes, values that are no counts, missing columns, too few cells.

    Examples
    --------
    >>> report = privacy_report(train, test, synthetic)  # doctest: +SKIP
    >>> report.passed, report.intervals["membership_auc"]  # doctest: +SKIP
    """
    seed = resolve_seed(rng)
    streams = Streams(seed)
    common: dict[str, Any] = {"genes": np.asarray(train.var_names, dtype=str), "layer": layer}
    members = read_cells(train, name="train", columns=(donor_key,), **common)
    others = read_cells(holdout, name="holdout", columns=(donor_key,), **common)
    points = read_cells(synthetic, name="synthetic", columns=(labels_key,), log_scale=layer is not None, **common)
    if others.n < 40:
        msg = f"`holdout` has {others.n} cells; expected at least 40, because its halves serve as control."
        raise SetupError(msg)
    parts.check_disjoint(members, others, donor_key)

    values, controls, attacked, (found, real), per_cell = _compare(
        members, others, points, donor_key=donor_key, n_components=n_components, streams=streams
    )
    ordered = {name: values[name] for name in PRIVACY_METRICS if name in values}
    table, bounds = score_table(
        ordered, controls, PRIVACY_METRICS, n_cells=min(len(found.inside), points.n), ideals={}, bands=None
    )
    copied = per_cell["exact_copy"].to_numpy()
    return PrivacyReport(
        table=table,
        per_label=_per_label(points, labels_key, found, copied),
        per_cell=per_cell,
        settings={
            "n_train": members.n,
            "n_holdout": others.n,
            "n_records_a_side": len(found.inside),
            "n_synthetic": points.n,
            "synthetic_holds_counts": points.counts is not None,
            "n_bootstrap": n_bootstrap,
            "n_components": n_components,
            "donor_key": donor_key,
            "labels_key": labels_key,
            "layer": layer,
            "seed": seed,
        },
        bounds=bounds,
        intervals={
            name: parts.bootstrap(*sides, n_bootstrap, streams.numpy("bootstrap", k))
            for k, (name, sides) in enumerate(attacked.items())
            if n_bootstrap > 0
        },
        curves=_curves(found, real),
    )
