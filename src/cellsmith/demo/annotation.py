"""Section "annotation": refine a weak classifier's names with GRIT, beside simpler ways, against held-out truth."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cellsmith._errors import DataWarning
from cellsmith.demo import _annotation_cells as cells
from cellsmith.demo import _annotation_pictures as pictures
from cellsmith.demo import _annotation_words as words
from cellsmith.demo._context import Context
from cellsmith.demo._report import Block, Code, Heading, Section, Terms, Tiles
from cellsmith.demo._synthesis_cells import interferon_cells
from cellsmith.demo._synthesis_pictures import figure_of

__all__ = ["section"]

NOISY, DECENT = "5 labels a type,\n100 genes", "5 labels a type,\nall genes"
TRANSFERS = {"CTRL": "learnt from CTRL,\nnames STIM", "STIM": "learnt from STIM,\nnames CTRL"}
LEVELS, DELTA = (0.1, 0.2), 0.1


@dataclass(frozen=True)
class _Run:
    """Everything that was computed, before any word is written about it."""

    scores: dict[str, list[dict[str, float]]]
    tasks: dict[str, cells.Task]
    rejections: list[dict[str, float | str]]
    lost: dict[str, list[str]]
    n_draws: int
    n_anchors: int
    n_repeats: int


def section(context: Context) -> Section:
    """Teach weak classifiers, refine their scores, hold the names against the truth; tell the story.

    Parameters
    ----------
    context
        Folder, seed and length of the run.

    Returns
    -------
    The section, with a short table for the command line.
    """
    run = _compute(context)
    context.say("drawing the pictures")
    blocks: list[Block] = [
        *_opening(run),
        *_changes(context, run),
        *_convincing(context, run),
        *_comparison(context, run),
        *_sureness(context, run),
        Heading("What this does not show"),
        *words.LIMITS,
        Heading("On your own data"),
        "The same in Python, on any AnnData object with scores of types from any program:",
        Code(words.CODE),
        Heading("Words used on this page"),
        Terms(words.GLOSSARY),
    ]
    table = words.summary_table(run.scores, next(r for r in run.rejections if r["level"] == LEVELS[-1]))
    return Section("Annotation: naming cells with the help of their neighbours", "annotation", blocks, summary=table)


def _compute(context: Context) -> _Run:
    adata, _ = interferon_cells(context.seed, quick=context.quick)
    n_draws = 1 if context.quick else 3
    n_anchors, n_repeats = (80, 20) if context.quick else (200, 100)
    scores: dict[str, list[dict[str, float]]] = {}
    tasks: dict[str, cells.Task] = {}
    rejections: list[dict[str, float | str]] = []
    for name, all_genes in ((NOISY, False), (DECENT, True)):
        context.say(f"naming {adata.n_obs:,} cells from {name.replace(chr(10), ' ')}, {n_draws} times")
        scores[name] = []
        for draw in range(n_draws):
            task = cells.few_labels(adata, context.seed, draw=draw, all_genes=all_genes)
            untaught = task.judged
            if draw == 0:
                task = cells.with_anchors(task, context.seed, n_anchors)
            task = cells.rivals(cells.run_grit(context, task, anchors=draw == 0), context.seed)
            scores[name].append(_score(task))
            if draw == 0:
                tasks[name] = task
                everyone = replace(task, judged=untaught)
                rejections += _reject(context, everyone, task, name, n_repeats=n_repeats)
    for source, name in TRANSFERS.items():
        context.say(f"naming the cells of one condition with a classifier {name.replace(chr(10), ' ')}")
        task = cells.run_grit(context, cells.transfer(adata, context.seed, source=source))
        tasks[name] = cells.rivals(task, context.seed)
        scores[name] = [_score(tasks[name])]
    lost = {name: [str(c) for c in task.adata.uns["grit"]["lost_classes"]] for name, task in tasks.items()}
    return _Run(scores, tasks, rejections, lost, n_draws, n_anchors, n_repeats)


def _score(task: cells.Task) -> dict[str, float]:
    """Score every method over the judged cells."""
    from cellsmith.metrics import annotation_report

    judged = task.adata[task.judged]
    found = {}
    for method in words.METHODS:
        report = annotation_report(judged, key=method, labels_key="cell_type", n_boot=0)
        found |= {f"{method} {metric}": report[metric] for metric in words.METRICS}
    return found


def _reject(
    context: Context, everyone: cells.Task, task: cells.Task, name: str, *, n_repeats: int
) -> list[dict[str, float | str]]:
    """Reject at each level with the anchors at hand, and see how often the promise fails with others."""
    from cellsmith import tl
    from cellsmith.metrics import annotation_report

    rows: list[dict[str, float | str]] = []
    n_anchors = len(task.adata.uns["grit"]["calibration"]["anchors"])
    for level in LEVELS:
        with warnings.catch_warnings():
            # that nothing could be accepted stands in the table
            warnings.simplefilter("ignore", DataWarning)
            tl.reject(task.adata, labels_key="anchor", level=level, delta=DELTA)
        report = annotation_report(task.adata[task.judged], key="grit", labels_key="cell_type", n_boot=0)
        errors = cells.broken_promises(
            everyone, context.seed, level=level, delta=DELTA, n_anchors=n_anchors, n_draws=n_repeats
        )
        rows.append(
            {
                "situation": name.replace("\n", " "),
                "level": level,
                "kept": report["accepted_share"],
                "error": 1 - report["accepted_accuracy"],
                "broken": float(np.nanmean(np.nan_to_num(errors) > level)),
                "empty": float(np.isnan(errors).mean()),
            }
        )
    return rows


def _mean(draws: Sequence[Mapping[str, float]], name: str) -> float:
    return float(np.mean([draw[name] for draw in draws]))


def _opening(run: _Run) -> list[Block]:
    noisy, decent = run.scores[NOISY], run.scores[DECENT]
    edges = run.tasks[NOISY].adata.uns["grit"]["cross_edges"]
    adata = run.tasks[NOISY].adata
    return [
        "**Can its neighbours tell what a cell is?** Programs that name cells look at one cell at a time, and a single "
        "cell is noisy. GRIT takes the scores of any such program and asks for scores that stay close to them and are "
        "alike in neighbouring cells. That repairs scattered mistakes. It does not repair a mistake that all "
        "neighbours share: **a smooth wrong answer is more convincing than a noisy wrong one**. This page shows both.",
        Tiles(
            [
                (
                    f"{_mean(noisy, 'grit_raw accuracy'):.0%} → {_mean(noisy, 'grit accuracy'):.0%}",
                    "cells named rightly, weak classifier (100 genes), before and after",
                ),
                (
                    f"{_mean(decent, 'grit_raw accuracy'):.0%} → {_mean(decent, 'grit accuracy'):.0%}",
                    "the same for a better classifier (all genes)",
                ),
                (
                    f"{edges['raw']:.0%} → {edges['refined']:.0%}",
                    "neighbours that carry different names (weak classifier): tidier, not only where it is right",
                ),
                (
                    f"{_mean(noisy, 'vote accuracy'):.0%}",
                    "cells named rightly by a plain vote in clusters on the same scores",
                ),
            ]
        ),
        Heading("The experiment"),
        f"{adata.n_obs:,} blood cells of lupus patients (Kang and colleagues, 2018, GSE96583), left alone (CTRL) or "
        f"six hours after interferon beta (STIM), of {adata.obs['cell_type'].nunique()} types. The types were given by "
        "the authors of a reference analysis; they are the truth that every method is held against, on cells whose "
        "type it was not told. The four situations differ on purpose: there is something to gain, and to lose:",
        "**5 labels a type, 100 genes**: five cells of every type are labelled, and the classifier sees 100 genes "
        "picked at random, as when two experiments share a small panel. A noisy teacher. "
        f"**5 labels a type, all genes**: the same cells, a better teacher. Both were drawn {_times(run.n_draws)}; the "
        "pictures show the first. **Learnt from CTRL, names STIM**, and the reverse: all cells of one condition teach, "
        "those of the other are named.",
        "Each time one classifier (a logistic regression) gives the scores. GRIT with its defaults, a mean over "
        "neighbours and a vote in clusters then refine the same scores over the same graph.",
    ]


def _times(n: int) -> str:
    return {1: "once", 2: "twice"}.get(n, f"{n} times")


def _changes(context: Context, run: _Run) -> list[Block]:
    from cellsmith import pl

    adata = run.tasks[NOISY].adata
    flow = np.asarray(adata.uns["grit"]["flow"])
    return [
        Heading("Who changed its name?"),
        context.picture(
            "annotation_flow",
            figure_of(pl.grit_flow, adata, min_cells=max(5, adata.n_obs // 180)),
            title="From the classifier's names (left) to the refined names (right)",
            how_to_read="The height of a bar is the number of cells with that name. Faint bands kept their name, "
            "strong ones changed it. Names that grow by gathering many thin bands are gathering scattered mistakes; a "
            "name that loses all its cells would be written in orange as lost.",
            finding=f"{int(flow.sum() - np.trace(flow)):,} of {int(flow.sum()):,} cells changed their name (weak "
            "classifier, 100 genes). Whether for the better, this picture cannot say.",
        ),
    ]


def _convincing(context: Context, run: _Run) -> list[Block]:
    task = run.tasks[NOISY]
    places = pictures.place(task.adata, seed=context.seed, quick=context.quick)
    obs = task.adata.obs[task.judged]
    true, name, before, after = words.largest_mistake(obs["cell_type"], obs["grit_raw"], obs["grit"])
    edges = task.adata.uns["grit"]["cross_edges"]
    return [
        Heading("Right, and convincingly wrong"),
        context.picture(
            "annotation_map",
            pictures.maps(task.adata, places, task.judged),
            title="One map of the cells: true types, names before and after, and where they are wrong",
            how_to_read="Every dot is a cell; cells with similar genes lie close together (UMAP, so directions and "
            "distances between islands carry no meaning). Upper row: types and names. Lower row: grey is right, red is "
            "wrong. Look for islands that are speckled before and clean afterwards, and ask of each of them which "
            "colour it has in the first panel.",
            finding=f"Neighbours with different names fell from {edges['raw']:.0%} to {edges['refined']:.0%}, so the "
            "map looks far tidier. "
            + (
                f"The commonest mistake that is left: {after:,} cells of type {true} named {name} ({before:,} before)."
                if true
                else "No mistake remains."
            ),
        ),
        "An island in one clean, wrong colour is what to fear. Nothing in the picture of the refined names alone gives "
        "it away; the raw names, which GRIT always keeps beside its own, and the marker genes of the type do.",
    ]


def _comparison(context: Context, run: _Run) -> list[Block]:
    lost = {name.replace("\n", " "): types for name, types in run.lost.items() if types}
    warned = "; ".join(f"{name}: {', '.join(types)}" for name, types in lost.items())
    better = [draws for name, draws in run.scores.items() if name != NOISY]
    worse = sum(_mean(draws, "grit macro_f1") < _mean(draws, "grit_raw macro_f1") for draws in better)
    found: list[Block] = [
        Heading("Beside simpler ways"),
        "Averaging over neighbours is an old idea. So the same scores were refined in two simpler ways, too.",
    ]
    for metric, text in (
        ("accuracy", "Cells named rightly"),
        ("macro_f1", "The same with every type counting alike (macro-F1)"),
    ):
        found.append(
            context.picture(
                f"annotation_{metric}",
                pictures.bars(run.scores, words.METHODS, metric=metric),
                title=text,
                how_to_read="One group of bars a situation; higher is better. Grey is the classifier alone. Black dots "
                "are single draws, where there are several: methods that differ by less than the dots spread are "
                "equal.",
            )
        )
    return [
        *found,
        words.comparison_table(run.scores),
        "Read it in two steps. With the noisy teacher every kind of smoothing helps, and a plain vote in clusters or a "
        "mean over neighbours does about as well as GRIT. With the better teachers there is less noise to remove, and "
        "smoothing has a price: common types may still gain while rare ones are swallowed, which is why macro-F1 "
        f"shows it first. In {worse} of these {len(better)} situations GRIT has a lower macro-F1 than the classifier "
        "alone." + (f" Types that lost all their cells, each with a warning: {warned}." if warned else ""),
    ]


def _sureness(context: Context, run: _Run) -> list[Block]:
    from cellsmith.metrics import annotation_report

    judged = run.tasks[NOISY].adata[run.tasks[NOISY].judged]
    reports = {
        key: annotation_report(judged, key=key, labels_key="cell_type", n_boot=0) for key in ("grit_raw", "grit")
    }
    rows = [row for row in run.rejections if row["situation"] == NOISY.replace("\n", " ")]
    n_fitted = len(run.tasks[NOISY].adata.uns["grit"]["calibration"]["fitted"])
    picture = context.picture(
        "annotation_risk",
        pictures.risk_coverage(
            reports,
            words.METHODS,
            chosen={float(r["level"]): (float(r["kept"]), float(r["error"])) for r in rows},
        ),
        title="How wrong are the surest names? (weak classifier, 100 genes)",
        how_to_read="Sort the cells by confidence and name only the surest: to the right, the share of cells that get "
        "a name; upwards, how many of these names are wrong. Lower is better. The right end is naming everybody. The "
        "dashed lines are promised error rates, the black marks what the rejection kept for them.",
        finding=f"Naming everybody is wrong for {1 - reports['grit_raw']['accuracy']:.0%} (classifier) and "
        f"{1 - reports['grit']['accuracy']:.0%} (GRIT). Area under the curve: {reports['grit_raw']['aurc']:.2f} and "
        f"{reports['grit']['aurc']:.2f}.",
    )
    return [
        Heading("When to say nothing"),
        f"Not every cell needs a name. If the true types of a **random** sample of cells are known (here "
        f"{run.n_anchors}, as an expert could label them; {n_fitted} of them set the scale of the confidence, the "
        "others the threshold), `tl.reject` finds how sure a name has to be so that, among "
        f"the names that remain, the share of wrong ones stays below a promised level (with a chance of {DELTA:.0%} "
        "that the sample misleads). The price is cells without a name.",
        picture,
        words.rejection_table(run.rejections, delta=DELTA, n_anchors=run.n_anchors - n_fitted, n_draws=run.n_repeats),
    ]
