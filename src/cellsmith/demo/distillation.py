"""Section "distillation": one or ten rows a type in place of all cells, and what classifiers learn from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellsmith.benchmark._distillation.cases import Cut, cut, labelled_counts
from cellsmith.benchmark._distillation.compare import COLUMNS, Recipe, run_cut
from cellsmith.benchmark._distillation.peers import FULL, built_in
from cellsmith.demo import _distillation_words as words
from cellsmith.demo._context import Context
from cellsmith.demo._report import Block, Code, Heading, Section, Terms, Tiles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["section"]

LABELS = "cell_type"
BUDGETS = (1, 10)
PEERS = ("random", "herding", "metacell", words.BAR)
MOST_GENES, QUICK_GENES, MOST_CELLS, QUICK_CELLS = 600, 150, 1_000, 200
# The generator gives the profiles their codes; their values follow from readers, which need few steps.
EPOCHS, QUICK_EPOCHS, STEPS, QUICK_STEPS = 40, 1, 100, 25


@dataclass(frozen=True)
class _Run:
    """Everything that was computed, before any word is written about it."""

    part: Cut
    table: pd.DataFrame
    steps: dict[int, int]


def section(context: Context) -> Section:
    """Reduce real cells in six ways, teach four classifiers, score on unseen cells, and tell the story.

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
        *_opening(context, run),
        Heading("The scores"),
        words.score_table(run.table),
        words.steps_told(run.steps),
        Heading("What this does not show"),
        *words.LIMITS,
        Heading("On your own data"),
        "The same in Python, on any AnnData object with raw counts and labels:",
        Code(words.CODE),
        Heading("Words of this part"),
        Terms(words.GLOSSARY),
    ]
    return Section(
        "Distillation: a few rows in place of a thousand cells",
        "distillation",
        blocks,
        summary=words.summary_table(run.table),
    )


def _compute(context: Context) -> _Run:
    part = _task(context)
    train = part.reading.train
    context.say(f"training SCDD on {train.n_obs:,} cells x {train.n_vars:,} genes")
    model, made = _train(context, train), {}

    def ours(train: Any, n: int, rng: int) -> Any:
        steps = QUICK_STEPS if context.quick else STEPS
        made[n] = model.distill(n, objective="readers", max_steps=steps, seed=rng)
        return made[n]

    context.say("teaching classifiers with 1 and 10 rows a type")
    chosen: dict[str, Any] = {name: built_in(LABELS)[name] for name in (FULL, *PEERS)}
    chosen[words.OURS] = ours
    todo = [(FULL, 0), *((name, n) for n in BUDGETS for name in (*PEERS, words.OURS))]
    recipe = Recipe(words.MODELS, n_seeds=1, seed=context.seed)
    rows = run_cut(part, todo, chosen, recipe=recipe)
    steps = {n: int(small.uns["scdd"]["selected_step"]) for n, small in made.items()}
    return _Run(part, pd.DataFrame(rows, columns=COLUMNS), steps)


def _task(context: Context) -> Cut:
    from cellsmith.datasets import kang_pbmc

    adata = labelled_counts(kang_pbmc(), LABELS, layer=None, batch_key=None)
    total = np.asarray(adata.X.sum(axis=0)).ravel()
    # By expression, so that no label and no test cell chooses a gene by what it tells apart.
    genes = np.sort(np.argsort(-total, kind="stable")[: QUICK_GENES if context.quick else MOST_GENES])
    few = adata[:, genes]
    few = few[np.asarray(few.X.sum(axis=1)).ravel() > 0].copy()
    most = QUICK_CELLS if context.quick else MOST_CELLS
    return cut(few, LABELS, file="kang_pbmc", split=context.seed + 1, max_train=most)


def _train(context: Context, train: Any) -> Any:
    """Return SCDD trained on the cells; every number of rows is distilled from it."""
    from cellsmith.model import SCDD

    own = train.copy()
    SCDD.setup_anndata(own, labels_key=LABELS)
    model = SCDD(own)
    epochs = QUICK_EPOCHS if context.quick else EPOCHS
    model.train(max_epochs=epochs, seed=context.seed, enable_progress_bar=context.shows_progress)
    return model


def _opening(context: Context, run: _Run) -> list[Block]:
    train, test = run.part.reading.train, run.part.reading.test
    get = words.means(run.table)
    best = max(BUDGETS)
    rows = int(run.table.query("metric == 'n_rows' and method == @words.BAR and budget == @best")["value"].iloc[0])
    picture = context.picture(
        "distillation_curve",
        _curve(run.table),
        title="What classifiers learn from one and from ten rows a type",
        how_to_read="Left: the share of unseen cells that are named rightly, the mean of three kinds of classifier, by "
        "how many rows each type has. The dashed line is what all training cells teach. Right: every way minus the "
        "means of groups, which is the bar.",
        finding=f"With {best} rows a type: random cells {get['random', best]:.2f}, means of groups "
        f"{get[words.BAR, best]:.2f}, SCDD {get[words.OURS, best]:.2f}; all training cells {get[FULL, 0]:.2f}.",
    )
    return [
        "**Can a hundred rows teach what a thousand cells teach?** Labelled atlases are large, and most of their cells "
        "say the same thing again. A small set that trains classifiers as well is quick to work with and easy to hand "
        "on.",
        f"{train.n_obs:,} blood cells with the names that the authors gave them (Kang and colleagues, 2018, GSE96583) "
        f"are reduced in five ways. Classifiers learn from the rows that are left and name {test.n_obs:,} cells that "
        "nobody has seen.",
        Tiles(
            [
                (f"{rows}", f"rows, in place of {train.n_obs:,} cells"),
                (f"{get[FULL, 0]:.2f}", "of unseen cells named rightly after learning from all of them"),
                (f"{get[words.BAR, best]:.2f}", "after learning from means of groups, made in under a second"),
                (f"{get[words.OURS, best]:.2f}", "after learning from SCDD's profiles"),
            ]
        ),
        Heading("Six ways to teach"),
        Terms(words.WAYS),
        picture,
    ]


def _curve(table: pd.DataFrame) -> Figure:
    from cellsmith.pl import distillation

    named = table.assign(method=table["method"].map(lambda m: words.NAMES.get(m, m)))
    axes = distillation(named, baseline=words.NAMES[words.BAR])
    return axes[0].figure
