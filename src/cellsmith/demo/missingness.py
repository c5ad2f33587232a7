"""Section "missingness": delete entries of real cells unevenly, embed what is left, compare with the complete data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cellsmith.demo import _missingness_cells as cells
from cellsmith.demo import _missingness_pictures as pictures
from cellsmith.demo import _missingness_words as words
from cellsmith.demo._context import Context
from cellsmith.demo._report import Block, Code, Heading, Section, Terms, Tiles

__all__ = ["section"]


@dataclass(frozen=True)
class _Run:
    """Everything that was computed, before any word is written about it."""

    task: cells.Task
    scores: Mapping[str, Mapping[str, float]]
    chance: Mapping[str, float]
    new: Mapping[str, float]
    heldout: Mapping[str, float]
    accepted: bool


def section(context: Context) -> Section:
    """Delete entries, embed the cells in five ways, score, and tell the story.

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
        *_followed(context, run),
        *_seen(context, run),
        *_scored(context, run),
        *_placed(run),
        Heading("What this does not show"),
        *words.LIMITS,
        Heading("On your own data"),
        "The same in Python, on any AnnData object with missing entries:",
        Code(words.CODE),
        Heading("Words of this part"),
        Terms(words.GLOSSARY),
    ]
    summary = words.summary_table(run.scores)
    return Section("Missing entries: a map of cells with gaps", "missingness", blocks, summary=summary)


def _compute(context: Context) -> _Run:
    task = cells.make_task(context.seed, quick=context.quick)
    n, d = task.adata.shape
    context.say(f"embedding {n:,} cells x {d:,} genes, {task.observed.mean():.0%} of the entries left")
    heldout, accepted = cells.embed(task, context.seed, show_progress=context.shows_progress)
    context.say("comparing with the complete data, and placing new cells")
    return _Run(
        task=task,
        scores=cells.score(task, context.seed),
        chance={"recall": cells.N_NEIGHBORS / (n - 1), "ari": 0.0},
        new=cells.place_new(task, context.seed),
        heldout=heldout,
        accepted=accepted,
    )


def _opening(context: Context, run: _Run) -> list[Block]:
    observed, scores = run.task.observed, run.scores
    rate = observed.mean(axis=1)
    n, d = observed.shape
    picture = context.picture(
        "missing_rates",
        pictures.rates(observed),
        title="Every cell and every gene keeps another share of its entries",
        how_to_read="Left: how many cells have which share of their entries left. Right: the same for genes. If "
        "entries were missing evenly, each picture would be one narrow peak.",
    )
    return [
        "**Can cells be compared when each was measured with other gaps?** Proteomics, antibody panels that differ "
        "between batches and spatial assays leave entries empty, in some cells far more than in others. The usual "
        "analysis refuses gaps, and filling them can make a map that shows how much was measured instead of what "
        "the cells are.",
        f"Here we know the truth, because we made the gaps: from {n:,} real blood cells and their {d:,} most variable "
        "genes (Kang and colleagues, 2018, GSE96583; counts scaled to 10,000 a cell, logarithm) we deleted "
        f"{1 - observed.mean():.0%} of all entries, unevenly. A deleted entry is a gap; a measured zero stays a zero. "
        "Each way of dealing with the gaps is then held against the PCA of the complete data.",
        Tiles(
            [
                (f"{observed.mean():.0%}", f"of the entries left, from {rate.min():.0%} to {rate.max():.0%} in a cell"),
                (
                    f"{scores[cells.ZERO]['follows']:.2f}",
                    "correlation of the first axis with how much was observed, zeros filled in "
                    f"(BC-PCA: {scores[cells.BC]['follows']:.2f})",
                ),
                (
                    f"{scores[cells.BC]['ari']:.2f}",
                    "agreement of clusters with types by BC-PCA (complete data: "
                    f"{scores[cells.COMPLETE]['ari']:.2f}, means filled in: {scores[cells.MEAN]['ari']:.2f}, "
                    f"pairwise complete: {scores[cells.PAIRWISE]['ari']:.2f})",
                ),
                ("0", "entries that were filled in by BC-PCA: the values are left as they are"),
            ]
        ),
        picture,
        Heading("Five ways to deal with the gaps"),
        Terms(words.WAYS),
    ]


def _followed(context: Context, run: _Run) -> list[Block]:
    shown = (cells.ZERO, cells.MEAN, cells.PAIRWISE, cells.BC)
    follows = {name: run.scores[name]["follows"] for name in shown}
    picture = context.picture(
        "missing_axis",
        pictures.first_axis(
            {name: run.task.embeddings[name] for name in shown}, run.task.observed.mean(axis=1), follows
        ),
        title="The first axis against how much of each cell was observed",
        how_to_read="Every dot is a cell: to the right, the share of its entries that is left; upwards, its place on "
        "the most important axis of the analysis. A cloud or level stripes are good: the axis is about the cells. A "
        "slope is bad: the axis only says how many gaps a cell has. A fan that narrows to the left means that cells "
        "with many gaps are pulled to the middle, whatever they are.",
        finding=", ".join(f"{name}: {value:.2f}" for name, value in follows.items()) + " (correlation, 0 is ideal).",
    )
    return [Heading("Does the map show the cells, or the gaps?"), picture]


def _seen(context: Context, run: _Run) -> list[Block]:
    picture = context.picture(
        "missing_maps",
        pictures.maps(run.task.embeddings, run.task.adata.obs["cell_type"].astype(str).to_list()),
        title="The same cells, before deletion and after, in five ways",
        how_to_read="Every dot is a cell on the first two axes, coloured by the type that the authors gave it; no way "
        "was told the types. The first panel is the complete data. The nearer a panel comes to it, the better. The "
        "axes are turned to point the same way, because their direction has no meaning; a few cells with hardly any "
        "entries left may lie outside the frame.",
        finding="With gaps every map is noisier than the complete one: what was deleted is gone.",
    )
    return [Heading("Side by side"), picture]


def _scored(context: Context, run: _Run) -> list[Block]:
    picture = context.picture(
        "missing_bars",
        pictures.bars(run.scores, words.BARS, run.chance),
        title="How much of the complete data is found again",
        how_to_read="One bar for each way; the complete data stands on top as the best that can be reached. The dashed "
        "line is what chance would give.",
    )
    heldout = ", ".join(f"{name} {value:.3f}" for name, value in run.heldout.items())
    outcome = "was better than before, so it was kept" if run.accepted else "was no better, so it was not kept"
    return [
        Heading("The scores"),
        words.score_table(run.scores, run.chance),
        picture,
        "With your own data there is no complete version to compare with. What can be had without it: 5 % of the "
        "observed entries are put aside, and each way predicts them from the rest. Typical error here (smaller is "
        f"better, in the unit of the data): {heldout}. By the same rule the refinement {outcome}.",
    ]


def _placed(run: _Run) -> list[Block]:
    new = run.new
    return [
        Heading("New cells"),
        f"BC-PCA was fitted again without {new['n_new']:.0f} of the cells, and these were placed afterwards, as one "
        f"would place a new sample on a map that stands. Of the {cells.N_NEIGHBORS} nearest fitted cells of a new cell "
        f"{new['placed']:.0%} have its type; where the same cells took part in the fit it is {new['joint']:.0%}, and "
        f"by chance it would be {new['chance']:.0%}. Pairwise complete has no such place for new cells.",
    ]
