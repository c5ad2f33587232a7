"""Section "topics": gene programmes of blood cells, and what control cells would look like with those of interferon."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cellsmith._errors import SetupError
from cellsmith.demo import _topics_cells as cells
from cellsmith.demo import _topics_pictures as pictures
from cellsmith.demo import _topics_words as words
from cellsmith.demo._context import Context
from cellsmith.demo._report import Block, Code, Heading, Section, Terms, Tiles

__all__ = ["section"]


@dataclass(frozen=True)
class _Run:
    """Everything that was computed, before any word is written about it."""

    task: cells.Task
    enriched: list[tuple[str, str, int, float]]
    truth: Mapping[str, Any]
    ways: Mapping[str, Mapping[str, Any]]
    scores: Mapping[str, Mapping[str, float]]


def section(context: Context) -> Section:
    """Find topics, switch those of interferon in cells that were put aside, score, and tell the story.

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
        *_interferon(context, run),
        *_switched(context, run),
        Heading("What this does not show"),
        *words.LIMITS,
        Heading("On your own data"),
        "The same in Python, on any AnnData object with raw counts:",
        Code(words.CODE),
        Heading("Words of this part"),
        Terms(words.GLOSSARY),
    ]
    return Section("Topics: gene programmes, and switching them", "topics", blocks, words.summary_table(run.scores))


def _compute(context: Context) -> _Run:
    context.say("finding topics in 70% of the cells")
    task = cells.make_task(context.seed, quick=context.quick, show_progress=context.shows_progress)
    if task.selected.empty or not task.types:
        raise SetupError("No topic differs between the conditions; expected those of interferon. Type another --seed.")
    context.say(f"switching {len(task.selected)} topics in control cells that were put aside")
    truth, ways = cells.predict(task)
    return _Run(task, cells.enriched(task), truth, ways, cells.score(truth, ways))


def _opening(context: Context, run: _Run) -> list[Block]:
    task, scores = run.task, run.scores
    picture = context.picture(
        "topic_heatmap",
        pictures.heatmap(task),
        title="Which cells use which topic",
        how_to_read="One row for each type of cells in each condition, one column for each topic; darker means that "
        "the topic makes up more of these cells. A column that is dark in a few rows belongs to a type; a column "
        "that is dark in all rows of one condition belongs to the condition.",
        finding="Types and conditions were not told to the model.",
    )
    genes = int((task.train.varm["sce2tm_loadings"] != 0).any(axis=1).sum())
    return [
        "**Which programmes of genes are at work in these cells, and what would happen if one were switched on?** A "
        "topic model describes every cell as a mixture of a few programmes, called topics, and every topic by the "
        "genes that belong to it.",
        f"scE2TM learnt {task.model.get_topic_embedding().shape[0]} topics from {task.train.n_obs:,} real blood cells "
        f"and {genes:,} genes, half of the cells after six hours with interferon (Kang and colleagues, 2018, "
        f"GSE96583). {task.test.n_obs:,} further cells were put aside before. Then the topics that differ between the "
        "conditions were switched in control cells that were put aside, and the computed answer held against what "
        "stimulated cells really do.",
        Tiles(
            [
                (str(len(task.selected)), "topics differ between stimulated and control cells"),
                (
                    f"{scores[cells.SWITCHED]['correlation']:.2f}",
                    "agreement of predicted and observed changes in cells never seen "
                    f"(mean shift of all cells: {scores[cells.SHIFT]['correlation']:.2f}, all other topics: "
                    f"{scores[cells.OTHERS]['correlation']:.2f})",
                ),
                (
                    f"{scores[cells.SWITCHED]['top20']:.0f} of 20",
                    f"most raised genes are right (mean shift: {scores[cells.SHIFT]['top20']:.0f})",
                ),
            ]
        ),
        picture,
    ]


def _interferon(context: Context, run: _Run) -> list[Block]:
    task = run.task
    shown = list(task.selected.index[:6])
    top = task.model.get_top_genes(n=10)
    picture = context.picture(
        "topic_genes",
        pictures.genes(task, shown),
        title="The genes of the topics that differ",
        how_to_read="One row for each topic, its genes from left to right, the most typical first. The darker a gene, "
        "the more of it belongs to this topic alone. A gene in italics stands in two rows.",
    )
    blocks: list[Block] = [Heading("The topics of interferon"), words.selection_table(task.selected, top), picture]
    if run.enriched:
        return [*blocks, words.set_table(run.enriched)]
    return [*blocks, "None of the listed gene sets is enriched in a topic in this run."]


def _switched(context: Context, run: _Run) -> list[Block]:
    task = run.task
    largest = max(task.types, key=lambda name: len(task.rows(name, cells.CONTROL)))
    genes = cells.switch(task, largest, task.selected).logfc.columns.to_numpy()
    scatter = context.picture(
        "topic_predictions",
        pictures.predictions(run.truth[largest], {w: f[largest] for w, f in run.ways.items()}, genes),
        title=f"What interferon does to {largest}, predicted and observed",
        how_to_read="Every dot is a gene: to the right, how much interferon raises it in cells that were put aside; "
        "upwards, what was predicted. On the grey line the prediction is right; a cloud that is flatter than the line "
        "has the right genes and too small a change. The genes most raised are named.",
    )
    bars = context.picture(
        "topic_scores",
        pictures.bars(run.scores, words.BARS),
        title="Three ways to predict the answer",
        how_to_read="One bar for each way; the dashed line is the ideal.",
    )
    return [
        Heading("Control cells with the topics of stimulated cells"),
        Terms(words.WAYS),
        scatter,
        words.score_table(run.scores),
        bars,
    ]
