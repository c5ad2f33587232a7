"""Fits of scSiameseClu with one thing changed; those that change nothing before the transport share one warm-up."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from anndata import AnnData

from cellsmith._rng import Streams
from cellsmith.benchmark._clustering.cases import Case
from cellsmith.benchmark._scsiameseclu.variants import AUTO, Change
from cellsmith.model import ScSiameseClu
from cellsmith.model._stage import Stage

__all__ = ["Comparable", "Fit", "Warmups", "fit"]

REP, N_PROJECTIONS = "X_random", 50
TRANSPORT_ONLY = ("prototypes", "alive", "proportions")


class Comparable(ScSiameseClu):
    """The model with one thing changed, which can begin at the end of the warm-up of another fit.

    What a stage draws depends on the seed and the stage alone, so that the result is that of a whole training.
    """

    change = Change()
    begin: Any = None
    kept: Any = None

    def _new_module(self) -> Any:
        module = super()._new_module()
        for name, value in self.change.module.items():
            setattr(module, name, value)
        return module

    def _graph_of(self, cells: Any, *, points: npt.NDArray[Any]) -> Any:
        found = super()._graph_of(cells, points=points)
        both = {"pagerank": {"lazy": found.pagerank}, "lazy": {"pagerank": found.lazy}}
        return replace(found, **both.get(self.change.walks, {}))

    def stages(self) -> tuple[Stage, ...]:
        """Return the stages, the first replaced by the end of another fit's where there is one."""
        first, *others = super().stages()
        return (first if self.begin is None else Stage(name=first.name, solve="_go_on"), *others)

    def _begin_transport(self, streams: Streams) -> Any:
        if self.begin is None:
            # Cells and module as they are now: operators are replaced as a whole, never changed.
            self.kept = {name: getattr(self, name) for name in ("axes_", "_points", "gene_share_", "factor_scale_")}
            self.kept |= {"cells": _again(self._cells), "weights": copy.deepcopy(self.module.state_dict())}
        self.trace: list[npt.NDArray[np.int64]] = []
        return super()._begin_transport(streams)

    def _go_on(self, streams: Streams) -> None:
        """Take over what a warm-up left."""
        for name in ("axes_", "_points", "gene_share_", "factor_scale_"):
            setattr(self, name, self.begin[name])
        self._cells, self._streams, self.k_path_ = _again(self.begin["cells"]), streams, []
        weights = {k: v for k, v in self.begin["weights"].items() if k not in TRANSPORT_ONLY}
        self.module.load_state_dict(weights, strict=False)
        n_queue = min(self._queue_size, max(0, len(self._cells) - self._batch_size()))
        self.module.hold(n_cells=len(self._cells), n_queue=n_queue)

    def _between_transport(self, epoch: int, n_epochs: int) -> bool:
        ends = super()._between_transport(epoch, n_epochs)
        self.trace.append(self.module.codes.cpu().numpy().copy())
        return ends


def _again(cells: Any) -> Any:
    out = copy.copy(cells)
    out.generator = copy.deepcopy(cells.generator)
    return out


@dataclass(frozen=True, eq=False)
class Fit:
    """A trained model, its clusters (n,), the clusters at every epoch of the transport, and CPU seconds."""

    model: ScSiameseClu
    labels: npt.NDArray[Any]
    trace: list[npt.NDArray[np.int64]]
    seconds: float


def fit(
    counts: AnnData,
    *,
    batch_key: str | None = None,
    n_clusters: int | str = AUTO,
    seed: int = 0,
    change: Change | None = None,
    begin: Any = None,
    max_epochs: Mapping[str, int] | None = None,
) -> Fit:
    """Train once.

    Parameters
    ----------
    counts
        Raw counts (n, G).
    batch_key
        Column of ``.obs``.
    n_clusters, seed
        As in the class.
    max_epochs
        Stage -> epochs, of stages that may be absent; None: the default.
    change
        What differs from the default.
    begin
        ``model.kept`` of another fit with the same cells and seed, to begin where its warm-up ended.
    """
    started, change = time.process_time(), change or Change()
    cells = counts.copy()
    if change.random_graph:
        cells.obsm[REP] = _projected(cells, seed)
    Comparable.setup_anndata(cells, batch_key=batch_key, use_rep=REP if change.random_graph else None)
    model = Comparable(cells, n_clusters=n_clusters, **change.options)
    model.change, model.begin = change, begin
    for name, value in change.private.items():
        setattr(model, name, {**getattr(model, name), **value} if isinstance(value, Mapping) else value)
    model.module = model._new_module()
    if max_epochs is not None:
        trained = {stage.name for stage in model.stages() if stage.solve is None}
        max_epochs = {name: n for name, n in max_epochs.items() if name in trained}
    model.train(seed=seed, max_epochs=max_epochs, accelerator="cpu", enable_progress_bar=False)
    labels = model.predict().to_numpy()
    return Fit(model, labels, getattr(model, "trace", []), time.process_time() - started)


def _projected(cells: AnnData, seed: int) -> npt.NDArray[Any]:
    from sklearn.random_projection import GaussianRandomProjection

    from cellsmith.math.counts import log_normalized

    x = log_normalized(cells.X, np.asarray(cells.X.sum(axis=1), dtype=np.float64).ravel())
    return np.asarray(GaussianRandomProjection(N_PROJECTIONS, random_state=seed).fit_transform(x))


class Warmups:
    """Keeps the last warm-up, so that what differs only after it need not repeat it.

    Parameters
    ----------
    train
        Of the tests: another function than :func:`fit`.
    """

    def __init__(self, train: Callable[..., Fit] = fit) -> None:
        self._train = train
        self._kept: Any = None
        self._of: tuple[Any, ...] = ()

    def fit(self, case: Case, change: Change, way: str, *, seed: int) -> Fit:
        """Train on a case by one way of finding the number of clusters, from the last warm-up where it is the same."""
        # Changes that act late share the warm-up of the default; of all others both ways share one.
        of = (id(case), seed, None if change.late else id(change))
        found = self._train(
            case.counts,
            batch_key=case.batch_key,
            n_clusters=AUTO if way == AUTO else case.n_types,
            seed=seed,
            change=change,
            begin=self._kept if of == self._of else None,
        )
        if (kept := getattr(found.model, "kept", None)) is not None:
            self._kept, self._of = kept, of
        return found
