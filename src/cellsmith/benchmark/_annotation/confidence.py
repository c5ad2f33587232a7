"""What else the toy tasks tell: warnings of over-smoothing, calibration, and types that the classifier never saw."""

from __future__ import annotations

import numpy as np

from cellsmith._rng import Streams
from cellsmith.benchmark._annotation import scoring, toys
from cellsmith.benchmark._annotation.cases import Case, Cells
from cellsmith.benchmark._annotation.peers import Refined, grit
from cellsmith.benchmark._store import Store
from cellsmith.math import assign, solve

__all__ = ["STRONG", "calibration", "guards", "rejection_scores", "smoothed_energy", "unknown_toy"]

GUARD_WEIGHTS = (50.0, 100.0, 300.0, 1000.0)
N_ANCHORS = 50
STRONG = 10.0  # lambda at which calibration and rejection were specified
GUARD_SEEDS, UNKNOWN_SEEDS = 20, 5


def as_given(case: Case) -> Refined:
    """Return the scores as they are."""
    return Refined(case.scores, case.scores.max(axis=1))


def guards(case: Case, *, store: Store) -> None:
    """Smooth far too much, and see whether the warning comes.

    Parameters
    ----------
    case
        The easy or the coherent task.
    store
        Gets accuracy and macro-F1, raw and refined, the number of classes that no cell has any more, and the warning.
    """
    task, before = f"guard, {case.task}", scoring.label_table(case, as_given(case))
    for laplacian in ("sym", "comb"):
        for weight in GUARD_WEIGHTS:
            name = f"{laplacian} {weight:g}"
            if store.has(task=task, file=case.file, seed=case.seed, variant=name):
                continue
            found = grit(case, laplacian=laplacian, smoothness_weight=weight)
            after = scoring.label_table(case, found)
            lost = np.setdiff1d(case.scores.argmax(axis=1), found.labels)
            values = {f"raw_{k}": before[k] for k in ("accuracy", "macro_f1")}
            values |= {k: after[k] for k in ("accuracy", "macro_f1")}
            values |= {"lost_classes": float(len(lost)), "warned": float(found.warned)}
            store.record(task, case, name, values)


def calibration(case: Case, *, store: Store) -> None:
    """Measure the calibration error at lambda 10: as given, refined, with 50 anchors, and with two halves of genes.

    The anchors are a random sample; the error is that of all other scored cells.

    Parameters
    ----------
    case
        The easy task.
    store
        Gets ``ece``, ``mean_confidence`` and ``accuracy``.
    """
    last = "refined, two halves of the genes"
    if store.has(task="calibration", file=case.file, seed=case.seed, variant=last):
        return
    rng = Streams(case.seed).numpy("anchors")
    anchors = rng.choice(np.flatnonzero(case.scored), N_ANCHORS, replace=False)
    rest = case.scored.copy()
    rest[anchors] = False
    labels = np.full(len(case.truth), "unknown", dtype=object)
    labels[anchors] = np.array(case.classes, dtype=object)[case.truth[anchors]]
    halves = tuple(toys.weak_classifier(toys.blood(), case.seed, half=h).probabilities for h in (0, 1))
    options = {"smoothness_weight": STRONG}
    runs = {
        "raw": as_given(case),
        "refined": grit(case, **options),
        "refined, 50 anchors": grit(case, anchor_labels=labels, anchors="calibrate", **options),
        last: grit(case, split_scores=halves, **options),
    }
    for name, found in runs.items():
        values = {"ece": scoring.ece(case, found, rest), "mean_confidence": float(found.confidence[rest].mean())}
        values["accuracy"] = float((found.labels[rest] == case.truth[rest]).mean())
        if found.record is not None:
            values["temperature"] = float(found.record["calibration"].get("temperature", np.nan))
        store.record("calibration", case, name, values)


def smoothed_energy(cells: Cells, energy: np.ndarray, *, smoothness_weight: float) -> np.ndarray:
    """Smooth one value a cell with the random-walk Laplacian, (n,) -> (n,)."""
    problem = solve.system(cells.graph, laplacian="rw", smoothness_weight=smoothness_weight)
    return solve.solve(problem, problem.right_hand_side(energy[:, None]), tol=1e-6).x[:, 0]


def rejection_scores(case: Case, decisions: np.ndarray) -> dict[str, np.ndarray]:
    """Return scores (n,) that should be high for a cell of an unknown type.

    Parameters
    ----------
    case
        Scores of the known types.
    decisions
        Decision values of the classifier, (n, C).
    """
    energy = -np.logaddexp.reduce(decisions, axis=1)
    refined = grit(case, smoothness_weight=STRONG)
    shares = np.clip(refined.scores, 0.0, None)
    shares = shares / shares.sum(axis=1, keepdims=True)
    return {
        "raw max-prob": -case.scores.max(axis=1),
        "raw energy": energy,
        "refined max-prob": -shares.max(axis=1),
        "refined entropy": assign.entropy(shares),
        "energy smoothed with rw": smoothed_energy(case.cells, energy, smoothness_weight=STRONG),
    }


def record_unknown(case: Case, decisions: np.ndarray, novel: np.ndarray, *, store: Store) -> None:
    """Add the AUROC of every rejection score; `novel` marks cells of the held-out type, (n,)."""
    for name, score in rejection_scores(case, decisions).items():
        value = scoring.auroc(score[case.scored], novel[case.scored])
        store.record(case.task, case, name, {"auroc": value})


def unknown_toy(seed: int, *, store: Store) -> None:
    """Leave each type in turn out of the easy task's training, and look for it.

    Parameters
    ----------
    seed
        Seed of the classifier.
    store
        Gets the AUROC of each rejection score.
    """
    data = toys.blood()
    for held in range(len(data.classes)):
        task = f"unknown, {data.classes[held]}"
        if store.has(task=task, file=toys.FILE, seed=seed, variant="energy smoothed with rw"):
            continue
        weak = toys.weak_classifier(data, seed, without=held)
        known = [c for c in range(len(data.classes)) if c != held]
        truth = np.full(len(data.codes), -1)
        for column, c in enumerate(known):
            truth[data.codes == c] = column
        names = tuple(data.classes[c] for c in known)
        case = Case(task, toys.FILE, seed, data.cells, weak.probabilities, names, truth, ~weak.trained_on)
        record_unknown(case, weak.decisions, data.codes == held, store=store)
