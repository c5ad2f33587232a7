"""The fit of GRIT: read, build, solve, certify, calibrate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scvi import REGISTRY_KEYS

from cellsmith._errors import CellsmithWarning, DataWarning, OverSmoothingWarning, SetupError
from cellsmith.math import conformal, graph, solve
from cellsmith.model._fitted import Fit
from cellsmith.model.grit import equations as eq
from cellsmith.model.grit import inputs, summary
from cellsmith.model.grit.anchors import NONE, Anchors, anchor_codes, divide
from cellsmith.model.grit.setup import place_of, registered_labels
from cellsmith.model.grit.solving import Problem, Refined, label_codes, refine, refine_protected

__all__ = ["CellGraph", "FittingMixin", "Given"]

EXACT_BELOW = 50_000  # cells up to which our own neighbour table is exact
FEWEST_FOR_TEMPERATURE = 20
ORDER_FROM = 3_000  # cells from which the order of rows in memory decides on the speed


@dataclass(frozen=True, eq=False)
class Given:
    """Scores as they are smoothed.

    Parameters
    ----------
    values
        P0 (n, C); a row of NaN has no scores.
    classes
        Names of the C classes.
    space
        What the scores were.
    notes
        What to tell the user.
    """

    values: np.ndarray
    classes: tuple[str, ...]
    space: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class CellGraph:
    """The graph: symmetric weights (n, n), the key it was found under ("" if built here), and what was built."""

    weights: Any
    key: str
    notes: tuple[str, ...] = ()
    table: tuple[np.ndarray, np.ndarray] | None = None


class FittingMixin:
    """What :class:`cellsmith.model.GRIT` does in ``train``."""

    def _args(self) -> Mapping[str, Any]:
        return self.registry["setup_args"]

    def _place(self, argument: str, data: Any = None) -> Any:
        data = self.adata if data is None else data
        if data is None:
            raise SetupError("The model was loaded without data. Type GRIT.load(path, adata=adata).")
        return place_of(data, self._args().get("modalities"), argument)

    def _read_scores(self) -> Given:
        """Read the registered scores and bring them into their space (Eq. 3)."""
        carrier, key = self._place("scores_key"), self._args()["scores_key"]
        where, values = f".obsm[{key!r}]", carrier.obsm[key]
        names = inputs.class_names(values, inputs.stored_classes(carrier.uns, key), where=where)
        array = inputs.dense(values, where=where)
        inputs.check_scores(array, obs_names=carrier.obs_names, classes=names, where=where)
        space, notes = self.params_["space"], []
        if space == "auto":
            space = eq.infer_space(array)
            if space != "prob":
                notes.append(f"{where} looks like space={space!r}, which was inferred; type it to be sure.")
        return Given(self._in_space(array, space, where=where), names, space, tuple(notes))

    def _in_space(self, array: np.ndarray, space: str, *, where: str) -> np.ndarray:
        _check_space(array, space, where=where, temperature_given=self.temperature_given_)
        p0 = eq.to_scores(array, space, temperature=self.params_["score_temperature"])
        return p0.astype(self.params_["dtype"], copy=False)

    def _further_scores(self, values: Any, obs_names: Any, *, classes: tuple[str, ...], space: str) -> np.ndarray:
        """Read scores of new cells, or of one half of the data, as columns of the classes of training."""
        if hasattr(values, "columns"):
            found = [str(c) for c in values.columns]
            if sorted(found) != sorted(classes):
                strange = sorted(set(found) ^ set(classes))
                raise SetupError(
                    f"The columns of the scores are not the {len(classes)} classes of training: {strange[:8]} differ; "
                    "expected the same names, in any order."
                )
            values = inputs.reindexed(values, values.index, obs_names, where="scores")
            values = values.iloc[:, [found.index(c) for c in classes]]
        array = inputs.dense(values, where="scores")
        inputs.check_scores(array, obs_names=obs_names, classes=classes, where="scores", some=False)
        return self._in_space(array, space, where="scores")

    def _read_graph(self, seed: int) -> CellGraph:
        args, n = self._args(), self._place("scores_key").n_obs
        if args["neighbors_key"] is not None:
            found, key = inputs.given_graph(self._place("neighbors_key"), args["neighbors_key"])
            weights, notes = inputs.read_graph(found, n, where=f".obsp[{key!r}]")
            return CellGraph(weights, key, tuple(notes))
        rep = inputs.read_rep(self._place("use_rep"), args["use_rep"], n=n)
        k = min(self.params_["n_neighbors"] - 1, n - 1)
        if k < 1:
            raise SetupError(f"Found {n} cell; expected at least 2 to build a graph.")
        # scanpy's convention: n_neighbors counts the cell itself, the table holds one less
        table = graph.knn_table(rep, k, exact_below=EXACT_BELOW, seed=seed)
        return CellGraph(graph.fuzzy_union(*table), "", (), table)

    def _fidelity(self, p0: np.ndarray) -> tuple[np.ndarray, float]:
        """Return w (n,) and the mean that divided confidences; zero where there are no scores."""
        given, scale = self.params_["fidelity"], 1.0
        if isinstance(given, str) and given == "uniform":
            w = np.ones(len(p0))
        elif isinstance(given, str) and given == "confidence":
            w, scale = eq.confidence_fidelity(p0)
        else:
            w = inputs.fidelity_weights(given, self._place("scores_key").obs, n=len(p0))
        return np.where(np.isnan(p0).any(axis=1), 0.0, w), scale

    def _anchors(self, classes: tuple[str, ...], generator: np.random.Generator) -> Anchors:
        found = registered_labels(self.adata_manager, REGISTRY_KEYS.LABELS_KEY)
        n = self._place("scores_key").n_obs
        if found is None:
            return Anchors(np.full(n, NONE), *(np.array([], dtype=np.intp) for _ in range(3)))
        codes, categories = found
        names = np.array([str(categories[c]) if c < len(categories) else None for c in codes], dtype=object)
        return divide(
            anchor_codes(names, classes),
            self.params_["anchors"],
            names=names,
            generator=generator,
            temperature=self.params_["calibrate"] == "auto",
        )

    def _problem(self, given: Given, weights: Any, anchors: Anchors) -> tuple[Problem, float]:
        fidelity, scale = self._fidelity(given.values)
        clamped = np.full(len(given.values), -1)
        clamped[anchors.clamped] = anchors.codes[anchors.clamped]
        order = solve.cuthill_mckee(weights) if len(given.values) > ORDER_FROM else None
        problem = Problem(
            weights=weights,
            p0=given.values,
            fidelity=fidelity,
            clamped=clamped,
            laplacian=self.params_["laplacian"],
            smoothness_weight=self.params_["smoothness_weight"],
            order=order,
            half_prior=self.params_["prior_correction"] == "half",
        )
        return problem, scale

    def _refine(self, fit: Fit) -> dict[str, Any]:
        fit.step("scores")
        given = self._read_scores()
        self._tell(given.notes, DataWarning)
        if len(given.classes) == 1:
            self._tell([f"There is one class, {given.classes[0]!r}: every confidence is 1."], CellsmithWarning)
        anchors = self._anchors(given.classes, fit.streams.numpy("split"))
        self._tell([anchors.note] if anchors.note else [], CellsmithWarning)
        fit.log("scores/space", eq.SPACES.index(given.space))
        fit.step("graph")
        found = self._read_graph(fit.streams.integer("graph"))
        self._tell(found.notes, DataWarning)
        problem, scale = self._problem(given, found.weights, anchors)
        fit.step("solve")
        raw = label_codes(given.values)
        options = {k: self.params_[k] for k in ("solver", "tol")} | {"device": fit.device, "max_iter": fit.max_iter}
        refined, problem = refine_protected(
            problem, raw, protect=self.params_["protect"], names=given.classes, **options
        )
        for value in refined.history:
            fit.log("solve/residual", value)
        fit.log("solve/active_classes", refined.active.sum())
        fit.log("scores/dropped", (~refined.active).sum())
        fit.step("certify")
        fit.log("certify/bound_max", refined.bound.max(initial=0.0))
        fit.log("certify/uncertified", refined.n_uncertified)
        blocks = self._describe(given, found, refined, raw=raw, tol=options["tol"])
        for name in ("nnz", "components", "isolated"):
            fit.log(f"graph/{name}", blocks["graph"][name])
        fit.step("calibrate")
        temperature, blocks["calibration"] = self._calibrate(given, refined, problem, anchors=anchors, options=options)
        if temperature is not None:
            fit.log("calibrate/temperature", temperature)
        fit.log("calibrate/n", len(anchors.calibrate))
        state = self._state(refined, problem, raw=raw, scale=scale, anchors=anchors, temperature=temperature)
        if found.table is not None:
            state |= {"neighbor_indices": found.table[0], "neighbor_distances": found.table[1]}
        # nothing below can fail: an earlier fit stays whole when this one does not finish
        self.classes_, self.space_, self.summary_ = given.classes, given.space, blocks
        return state

    def _tell(self, notes: Any, category: type[CellsmithWarning]) -> None:
        for note in notes:
            self._note(note, category)

    def _state(
        self,
        refined: Refined,
        problem: Problem,
        *,
        raw: np.ndarray,
        scale: float,
        anchors: Anchors,
        temperature: float | None,
    ) -> dict[str, Any]:
        args = self._args()
        state = {
            "solution": refined.solution.astype(self.params_["dtype"]),
            "factors": refined.factors,
            "fidelity": problem.fidelity,
            "fidelity_scale": np.array(scale),
            "degree": graph.degrees(problem.weights),
            "label": label_codes(refined.scores).astype(np.int32),
            "raw_label": raw.astype(np.int32),
            "certified": refined.certified,
            "clamped": anchors.clamped.astype(np.int64),
            "calibrate": anchors.calibrate.astype(np.int64),
            "anchor_codes": anchors.codes.astype(np.int32),
            "temperature": np.array(np.nan if temperature is None else temperature),
        }
        rep = self._place("use_rep") if args["use_rep"] else None
        if self.params_["store_rep"] and rep is not None and args["use_rep"] in rep.obsm:
            state["rep"] = inputs.read_rep(rep, args["use_rep"], n=len(raw))
        return state

    def _handed_out(self, scores: np.ndarray, space: str) -> np.ndarray:
        plain = self.params_["variant"] == "paper"
        return summary.output_scores(scores, space=space, laplacian=self.params_["laplacian"], renormalise=not plain)

    def _describe(
        self, given: Given, found: CellGraph, refined: Refined, *, raw: np.ndarray, tol: float
    ) -> dict[str, Any]:
        """Return the numbers of ``.uns`` and warn where smoothing erased structure."""
        n_classes, labels = len(given.classes), label_codes(refined.scores)
        lost = [given.classes[c] for c in summary.lost_classes(raw, labels, n_classes)]
        guard, warning = summary.smoothing_guard(raw, labels, lost)
        if warning and self.params_["variant"] == "default":
            self._note(warning, OverSmoothingWarning)
        filled = np.flatnonzero((raw < 0) & (labels >= 0))
        missing = np.flatnonzero(refined.missing)
        if missing.size:
            names = ", ".join(map(repr, self._place("scores_key").obs_names[missing[:3]]))
            self._note(
                f"{missing.size} cells lie in components of the graph without any score or anchor (first: {names}); "
                "they stay without a label.",
                DataWarning,
            )
        blocks = {
            "flow": summary.flow(raw, labels, n_classes),
            "solve": summary.solve_block(refined, tol),
            "graph": summary.graph_block(
                found.weights,
                key=found.key,
                fingerprint=graph.fingerprint(found.weights),
                directed=any("directed" in note for note in found.notes),
            ),
            "cross_edges": {
                "raw": summary.cross_edges(found.weights, raw),
                "refined": summary.cross_edges(found.weights, labels),
            },
            "lost_classes": np.array(lost, dtype=object),
            "effective_classes": guard,
            "filled": {"cells": filled, "source": "neighbours"},
            "missing": missing,
        }
        batches = registered_labels(self.adata_manager, REGISTRY_KEYS.BATCH_KEY)
        if batches is not None:
            blocks["batches"] = summary.batch_block(
                *batches, raw=raw, refined=labels, certified=refined.certified, n_classes=n_classes
            )
        return blocks

    def _calibrate(
        self, given: Given, refined: Refined, problem: Problem, *, anchors: Anchors, options: dict[str, Any]
    ) -> tuple[float | None, dict[str, Any]]:
        """Return the temperature of Eq. 15, or None, and what it rests on."""
        temperature, source = None, "none"
        rows = self._shares(refined, given)
        inside = anchors.fitted[anchors.codes[anchors.fitted] >= 0]
        if inside.size >= FEWEST_FOR_TEMPERATURE:
            if anchors.clamped.size:
                rows[inside] = self._without_own_label(given, refined, problem, inside=inside, options=options)
            temperature, source = conformal.fit_temperature(rows[inside], anchors.codes[inside]), "anchors"
        elif self.params_["calibrate"] == "auto" and self._halves is not None:
            halves = [self._shares(half, given) for half in self._refined_halves(given, problem, options)]
            temperature, source = conformal.split_half_temperature(*halves, rows), "split halves"
        return temperature, {
            "temperature": temperature,
            "source": source,
            "anchors": anchors.calibrate.astype(np.int64),
            "clamped": anchors.clamped.astype(np.int64),
            "fitted": anchors.fitted.astype(np.int64),
        }

    def _shares(self, refined: Refined, given: Given) -> np.ndarray:
        return summary.shares(self._handed_out(refined.scores, given.space), given.space)

    def _without_own_label(
        self, given: Given, refined: Refined, problem: Problem, *, inside: np.ndarray, options: dict[str, Any]
    ) -> np.ndarray:
        """Return what held cells would score if they were not held: each half in a solve that holds the other one."""
        found = np.empty((inside.size, len(given.classes)))
        for half in (np.arange(inside.size) % 2 == 0, np.arange(inside.size) % 2 == 1):
            clamped = problem.clamped.copy()
            clamped[inside[half]] = -1
            again = refine(replace(problem, clamped=clamped), start=refined.solution, names=given.classes, **options)
            found[half] = self._shares(again, given)[inside[half]]
        return found

    def _refined_halves(self, given: Given, problem: Problem, options: dict[str, Any]) -> list[Refined]:
        refined = []
        for half in self._halves or ():
            names = self._place("scores_key").obs_names
            p0 = self._further_scores(half, names, classes=given.classes, space=given.space)
            fidelity = np.where(np.isnan(p0).any(axis=1), 0.0, problem.fidelity)
            refined.append(refine(replace(problem, p0=p0, fidelity=fidelity), names=given.classes, **options))
        return refined


def _check_space(values: np.ndarray, space: str, *, where: str, temperature_given: bool) -> None:
    """Refuse scores that contradict the space that was named."""
    if space == "similarity" and not temperature_given:
        raise SetupError(
            f"{where} holds similarities; expected score_temperature, without which a softmax of them is flat. Type "
            "score_temperature=0.05, the value of CLIP-style models."
        )
    known = values[~np.isnan(values).any(axis=1)]
    if space in ("prob", "ovr") and known.size and (known.min() < -1e-6 or known.max() > 1 + 1e-3):
        raise SetupError(
            f"{where} has values from {known.min():.3g} to {known.max():.3g}; space={space!r} expects [0, 1]. Type "
            "space='auto', 'logit' or 'raw'."
        )
