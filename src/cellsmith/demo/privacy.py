"""Section "privacy": axes that may be handed on, and what each budget costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cellsmith.benchmark._privacy.compare import privacy
from cellsmith.demo import _privacy_words as words
from cellsmith.demo._context import Context
from cellsmith.demo._report import Block, Code, Heading, Section, Terms, Tiles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["section"]

EPSILONS, QUICK_EPSILONS = (1.0, 2.0, 4.0, 8.0), (1.0, 8.0)
PANEL, QUICK_CELLS = 500, 400


def section(context: Context) -> Section:
    """Embed real cells under four budgets, cluster, score, and say what was promised.

    Parameters
    ----------
    context
        Folder, seed and length of the run.

    Returns
    -------
    The section, with a short table for the command line.
    """
    from cellsmith.datasets import kang_pbmc

    cells = kang_pbmc()
    if context.quick:
        cells = cells[np.random.default_rng(context.seed).permutation(cells.n_obs)[:QUICK_CELLS]].copy()
    epsilons = QUICK_EPSILONS if context.quick else EPSILONS
    context.say(f"private axes of {cells.n_obs:,} cells at {len(epsilons)} budgets")
    seeds = (context.seed,) if context.quick else (context.seed, context.seed + 1)
    table = privacy(
        cells,
        labels_key="cell_type",
        epsilons=epsilons,
        arms=(words.OURS, words.CEILING, words.FLOOR),
        gene_panel=PANEL,
        seeds=seeds,
    )
    get = words.means(table)
    picture = context.picture(
        "privacy_budget",
        _curve(table),
        title="What each budget costs",
        how_to_read="Each point is the agreement of clusters with the authors' types when only axes with that epsilon "
        "are used: further left is a stronger promise. The upper line is the same without privacy, the lower one "
        "axes drawn at random, which need no cell and so cost no privacy.",
        finding=words.verdict(table),
    )
    blocks: list[Block] = [
        "**Can cells teach something without giving any of them away?** Counts of single cells identify donors. "
        "Differential privacy adds just enough noise that what is handed on would look the same had any one cell been "
        "left out, and states how nearly the same as a number, epsilon.",
        f"{cells.n_obs:,} blood cells (Kang and colleagues, 2018, GSE96583), {PANEL} genes drawn by name. One sum over "
        "the cells is released with noise; axes are computed from it; clusters are found along them.",
        Tiles(
            [
                (f"{get[words.CEILING, np.inf]:.2f}", "agreement with the types without any privacy"),
                (f"{get[words.OURS, max(epsilons)]:.2f}", f"at epsilon {max(epsilons):g}, a weak promise"),
                (f"{get[words.OURS, min(epsilons)]:.2f}", f"at epsilon {min(epsilons):g}, a strong one"),
            ]
        ),
        picture,
        words.summary_table(table),
        Heading("What this does not show"),
        *words.LIMITS,
        Heading("On your own data"),
        Code(words.CODE),
        Heading("Words of this part"),
        Terms(words.GLOSSARY),
    ]
    return Section(
        "Privacy: learning from cells that may not be shown", "privacy", blocks, summary=words.summary_table(table)
    )


def _curve(table: pd.DataFrame) -> Figure:
    from cellsmith.pl import privacy_curve

    return privacy_curve(table, ceiling=words.CEILING, floor=words.FLOOR).figure
