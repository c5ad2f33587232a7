"""Score many generators against one cut of real cells; the control is scored once.

The numbers are those of ``metrics.evaluate_synthetic`` and
``metrics.privacy_report``; only the work that all generators share is shared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from cellsmith._rng import Streams
from cellsmith.benchmark._files import Split
from cellsmith.math.counts import largest_remainder
from cellsmith.metrics import _scores as scores
from cellsmith.metrics import privacy_report
from cellsmith.metrics._bands import METRICS, SYMMETRIC
from cellsmith.metrics._cells import Cells, Space, read_cells, stack
from cellsmith.metrics._expression import count_curves

__all__ = ["PRIVACY", "Judge", "composition_is_exact"]

PRIVACY = ("nearest_share", "exact_copies", "membership_auc", "distance_ratio")
N_COMPONENTS = 30
N_GENES = 250


def composition_is_exact(train: ad.AnnData, synthetic: ad.AnnData, *, keys: list[str], n: int) -> bool:
    """Tell whether `n` cells came back with the training shares of every combination of labels.

    Parameters
    ----------
    train, synthetic
        Training and generated cells.
    keys
        Columns of ``.obs``.
    n
        Number of cells that were asked for.
    """
    wanted = train.obs[keys].astype(str).value_counts(sort=False)
    # Ties between equal remainders may fall either way: each group must be within the rounding.
    expected = wanted / train.n_obs * n
    found = synthetic.obs[keys].astype(str).value_counts(sort=False).reindex(wanted.index).fillna(0)
    target = np.sort(largest_remainder(expected.to_numpy(), n))
    return bool(
        synthetic.n_obs == n and (np.sort(found.to_numpy()) == target).all() and ((found - expected).abs() < 1).all()
    )


class Judge:
    """Scores of generated cells beside those of spare real ones.

    Parameters
    ----------
    part
        The cut.
    metrics
        Names to compute; None: all of ``evaluate_synthetic``.
    """

    def __init__(self, part: Split, *, metrics: tuple[str, ...] | None = None) -> None:
        self.part = part
        have = {"labels": True, "batches": part.batch_key is not None}
        names = [m for m, metric in METRICS.items() if have.get(metric.needs or "", True)]
        self.names = [m for m in names if metrics is None or m in metrics]
        self._streams = Streams(part.seed)
        self._genes = np.asarray(part.test.var_names, dtype=str)
        self._train = self._read(part.train, "train")
        n = min(part.test.n_obs, part.spare.n_obs)
        self._n = n
        reference = self._read(part.test, "real").draw(n, self._streams.numpy("split", 1))
        self._frame = scores.Frame(
            reference=reference,
            space=Space.fit(self._train.log, N_COMPONENTS, self._streams.integer("components", 2)),
            wanted=frozenset(self.names),
            n_genes=N_GENES,
            labels_key=part.labels_key,
            batch_key=part.batch_key,
            streams=self._streams,
        )
        self._teacher = scores.teach(self._frame, self._train)
        self._curves = count_curves(reference.counts)
        control = self._read(part.spare, "control").draw(n, self._streams.numpy("split", 3))
        self.control = self._score(control, side=1, symmetric=True)

    def _read(self, adata: ad.AnnData, name: str) -> Cells:
        columns = (self.part.labels_key, self.part.batch_key)
        return read_cells(adata, name=name, genes=self._genes, columns=columns, log_scale=name == "synthetic")

    def _score(self, cells: Cells, *, side: int, symmetric: bool) -> dict[str, float]:
        frame = self._frame
        values, _ = scores.space_scores(frame, cells)
        if symmetric:
            seed = frame.streams.integer("components", side)
            both = Space.fit(stack(frame.reference.log, cells.log), N_COMPONENTS, seed)
            again = replace(frame, space=both, wanted=frame.wanted & frozenset(SYMMETRIC))
            values |= {f"{k}_symmetric": v for k, v in scores.space_scores(again, cells)[0].items()}
        if {"label_fidelity", "tstr", "tstr_ratio", "lfc_slope", "de_overlap"} & frame.wanted:
            found = scores.label_scores(frame, cells, self._train, teacher=self._teacher, rival=self._teacher)
            values |= found["scores"]
            if "label_fidelity" in values:
                values["fidelity_gap"] = abs(values["label_fidelity"] - found["real_fidelity"])
        values |= scores.composition_scores(frame, cells)
        curves = {} if cells.counts is None else count_curves(cells.counts)
        return values | scores.count_scores(frame.wanted, self._curves, curves)

    def score(self, synthetic: ad.AnnData, *, symmetric: bool = False) -> Mapping[str, tuple[float, float]]:
        """Return metric -> (value, control).

        Parameters
        ----------
        synthetic
            Generated cells.
        symmetric
            Also with components and genes chosen on both sides together.
        """
        cells = self._read(synthetic, "synthetic").draw(self._n, self._streams.numpy("split", 2))
        values = self._score(cells, side=0, symmetric=symmetric)
        return {k: (v, self.control.get(k, float("nan"))) for k, v in values.items()}

    def privacy(self, synthetic: ad.AnnData) -> Mapping[str, tuple[float, float]]:
        """Return metric -> (value, control) of the privacy report, all generated cells.

        Parameters
        ----------
        synthetic
            Generated cells.
        """
        part, real = self.part, []
        for adata in (part.train, part.test):
            twin = ad.AnnData(adata.X, obs=adata.obs[[]], var=adata.var[[]])
            # Named layer: generated values that are no counts are then read as log expression.
            twin.layers["counts"] = twin.X
            real.append(twin)
        report: Any = privacy_report(*real, synthetic, layer="counts", n_bootstrap=0, rng=part.seed)
        table: pd.DataFrame = report.table.set_index("metric")
        return {m: (float(table.loc[m, "value"]), float(table.loc[m, "control"])) for m in PRIVACY}

    def form(self, synthetic: ad.AnnData, *, n: int) -> Mapping[str, tuple[float, float]]:
        """Return whether the cells are counts without empty cells, and the composition as asked (1 or 0).

        Parameters
        ----------
        synthetic
            Generated cells.
        n
            Number of cells that were asked for.
        """
        cells = self._read(synthetic, "synthetic")
        empty = np.diff(cells.log.indptr) == 0
        counts = cells.counts is not None and not empty.any()
        exact = composition_is_exact(self.part.train, synthetic, keys=self.part.keys, n=n)
        return {"valid_counts": (float(counts), 1.0), "exact_composition": (float(exact), float("nan"))}
