"""Section "synthesis": generate blood cells with SCLD and hold them against cells that no model saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd

from cellsmith.demo import _synthesis_cells as cells
from cellsmith.demo import _synthesis_pictures as pictures
from cellsmith.demo import _synthesis_words as words
from cellsmith.demo._context import Context
from cellsmith.demo._report import Block, Cell, Code, Heading, Section, Table, Terms, Tiles

if TYPE_CHECKING:
    from cellsmith.metrics import PrivacyReport, SyntheticReport
    from cellsmith.model import SCLD

__all__ = ["section"]

OURS, PEER, CHEAT = "generated (SCLD)", "scVI re-draw", "memoriser"
CONTROL = "other unseen real cells"


@dataclass(frozen=True)
class _Run:
    """Everything that was computed, before any word is written about it."""

    real: cells.Split
    rare: list[str]
    model: SCLD
    groups: dict[str, ad.AnnData]
    scores: dict[str, SyntheticReport]
    privacy: dict[str, PrivacyReport]
    peer_epochs: int


def section(context: Context) -> Section:
    """Train, generate, score; write ``generated.h5ad``; tell the story.

    Parameters
    ----------
    context
        Folder, seed and length of the run.

    Returns
    -------
    The section, with a short table for the command line.
    """
    run = _compute(context)
    generated = run.groups[OURS].copy()
    generated.uns["scld_evaluation"] = run.scores[OURS].to_uns()
    generated.uns["scld_privacy"] = run.privacy[OURS].to_uns()
    generated.write_h5ad(context.out / "generated.h5ad", compression="gzip")
    context.say("drawing the pictures")
    response, slopes = _response(context, run)
    blocks: list[Block] = [
        *_opening(run, slopes),
        *_looks(context, run),
        *response,
        *_scores(context, run),
        *_copying(context, run),
        *_requests(context, run),
        *_what_if(context, run),
        Heading("What this does not show"),
        *words.LIMITS,
        Heading("On your own data"),
        "The same in Python, on any AnnData object with raw counts:",
        Code(words.CODE),
        Heading("Words used on this page"),
        Terms(words.GLOSSARY),
    ]
    return Section("Synthesis: writing new cells", "synthesis", blocks, summary=_summary(run, slopes))


def _compute(context: Context) -> _Run:
    from cellsmith.metrics import evaluate_synthetic, privacy_report
    from cellsmith.model import SCLD

    adata, rare = cells.interferon_cells(context.seed, quick=context.quick)
    real = cells.split(adata, context.seed)
    train = cells.plain_copy(real.train)
    context.say(f"training SCLD on {train.n_obs:,} real cells")
    SCLD.setup_anndata(train, labels_key="cell_type", batch_key="condition")
    model = SCLD(train)
    epochs = {"autoencode": 15, "diffuse": 3} if context.quick else None
    model.train(max_epochs=epochs, accelerator="cpu", seed=context.seed, enable_progress_bar=context.shows_progress)
    context.say(f"generating {train.n_obs:,} cells")
    generated = model.generate(train.n_obs, on_small="neighbors", seed=context.seed)
    context.say("training the yardstick, scVI")
    redraw, n_epochs = cells.scvi_redraw(
        real.train,
        context.seed,
        max_epochs=3 if context.quick else cells.PEER_EPOCHS,
        show_progress=context.shows_progress,
    )
    groups = {OURS: generated, PEER: redraw, CHEAT: cells.copies(real.train, context.seed)}
    context.say("scoring everything against unseen real cells")
    unseen = ad.concat([real.test, real.control])
    scores = {
        name: evaluate_synthetic(
            real.test,
            group,
            real.train,
            control=real.control,
            labels_key="cell_type",
            max_cells=120 if context.quick else 2000,
            rng=context.seed,
        )
        for name, group in groups.items()
    }
    privacy = {name: privacy_report(real.train, unseen, group, rng=context.seed) for name, group in groups.items()}
    return _Run(real, rare, model, groups, scores, privacy, n_epochs)


def _opening(run: _Run, slopes: dict[str, float]) -> list[Block]:
    real = run.real
    left_out = (
        f" The rarest type ({', '.join(run.rare)}) has too few cells to be learnt and checked, and was left out."
        if run.rare
        else ""
    )
    return [
        "**Can a computer write cells that behave like real ones?** Here a model reads real blood cells, learns how "
        "their genes go together, and then writes new cells: lists of counts that no sequencer has produced. We then "
        "ask of these cells what one would ask of an experiment: do they look right, do they respond to interferon as "
        "real cells do, and are they new or merely copied?",
        Tiles(
            [
                (f"{run.groups[OURS].n_obs:,}", f"cells generated after reading {real.train.n_obs:,} real ones"),
                (
                    f"{run.scores[OURS]['rf_auc_pca']:.2f}",
                    "how well a classifier tells them from real cells (0.5 = it guesses, 1 = always)",
                ),
                (
                    f"{slopes[OURS]:.2f}",
                    "strength of the interferon response they show (1 = full; real cells compared with each other: "
                    f"{slopes[CONTROL]:.2f})",
                ),
                (f"{run.privacy[OURS]['exact_copies'] * run.groups[OURS].n_obs:.0f}", "exact copies of a real cell"),
            ]
        ),
        Heading("The experiment"),
        "The real cells are blood cells of lupus patients (Kang and colleagues, 2018, GSE96583). Half were left alone "
        "(CTRL), half met interferon beta for six hours (STIM), the signal with which cells warn each other of a "
        "virus. Every "
        "cell has a type, given by the authors of a reference analysis." + left_out,
        f"We dealt the cells into three groups that share no cell: {real.train.n_obs:,} for training, "
        f"{real.test.n_obs:,} as unseen real cells for every comparison, and {real.control.n_obs:,} further unseen "
        "real cells as control. The control answers the question that any score needs: how alike are two groups of "
        "real cells?",
        f"Two others take part. **scVI re-draw** is a well-known model ({run.peer_epochs} rounds of training); it "
        "cannot invent cells but is handed real training cells and draws their counts again. The **memoriser** is a "
        "cheat that hands out copies of training cells.",
    ]


def _looks(context: Context, run: _Run) -> list[Block]:
    from cellsmith import pl

    real, generated = run.real.test, run.groups[OURS]
    places = pictures.shared_map(real, generated, seed=context.seed, quick=context.quick)
    map_of_cells = context.picture(
        "map",
        pictures.maps(real, generated, places=places),
        title="One map, drawn for real and generated cells together",
        how_to_read="Every dot is a cell; cells with similar genes lie close together (UMAP, so directions and "
        "distances between islands carry no meaning). Left: real cells that the model never saw. Right: generated "
        "cells. The same islands should appear on both sides, with the same colours in the same places, and none on "
        "one side only.",
    )
    depth = context.picture(
        "counts",
        pictures.figure_of(pl.synthetic_genes, run.scores[OURS]),
        title="Counts, zeros and noise, gene by gene and cell by cell",
        how_to_read="These are the plain properties of the data: how many molecules and genes a cell shows, how often "
        "a gene is missing, and how noisy it is for its mean. The generated cells should follow the real ones; the "
        "spread between the two groups of real cells shows how exact that can be.",
    )
    return [Heading("Do they look like real cells?"), map_of_cells, depth]


def _response(context: Context, run: _Run) -> tuple[list[Block], dict[str, float]]:
    real = run.real
    change = {name: pictures.fold_changes(group) for name, group in run.groups.items()}
    unseen, control, seen = (pictures.fold_changes(part) for part in (real.test, real.control, real.train))
    heat = context.picture(
        "interferon",
        pictures.response_heatmap({"real, unseen": unseen, "generated": change[OURS]}),
        title="The interferon response, type by type",
        how_to_read="Rows are cell types, columns are genes that interferon switches on. Red means stronger after "
        "interferon; the number is the log2 fold change (3 means eight times as strong). Both panels should show the "
        "same pattern, including genes that only some types use, such as CXCL10 and CCL8 in monocytes.",
    )
    figure, slopes = pictures.response_scatter(
        {CONTROL: control, OURS: change[OURS], PEER: change[PEER]}, reference=unseen, chosen=seen
    )
    scatter = context.picture(
        "response_strength",
        figure,
        title="Is the response as strong as it should be?",
        how_to_read="Every dot is a gene in a cell type: to the right, its response in unseen real cells; upwards, in "
        "the group named above the panel. Dots on the dashed diagonal agree. The black line is the fitted slope: "
        "models often damp effects, which shows as a slope below 1. The first panel shows what real cells themselves "
        "reach.",
        finding=f"Slope of the generated cells: {slopes[OURS]:.2f}; of unseen real cells: "
        f"{slopes[CONTROL]:.2f}; of scVI's re-drawn cells: {slopes[PEER]:.2f}.",
    )
    genes = pictures.strongest(seen, [unseen, change[CHEAT]])
    slopes[CHEAT] = pictures.slope(pictures.values_of(unseen, genes), pictures.values_of(change[CHEAT], genes))
    return [
        Heading("Do they respond to interferon?"),
        "Looking right on a map is easy. The harder question is whether an **effect** survives: would an analysis of "
        "the generated cells find the same genes, in the same types, with the same strength?",
        heat,
        scatter,
    ], slopes


def _scores(context: Context, run: _Run) -> list[Block]:
    from cellsmith import pl

    ours = run.scores[OURS]
    judged = ours.table.set_index("metric").loc[lambda t: t["passed"].map(lambda p: p is not None)]
    inside = int((judged["passed"].map(bool)).sum())
    picture = context.picture(
        "scores",
        pictures.figure_of(pl.synthetic_report, ours),
        title="All scores of the generated cells beside real cells",
        how_to_read="One line a score, all on one scale: 0 is as good as other real cells (the white diamond), 1 is "
        "the limit of what we accept, and shorter lines are better. The numbers stand at the right. The names are "
        "those of the package; the table above has the most telling ones in plain words.",
        finding=f"{inside} of {len(judged)} judged scores lie inside their range"
        + (f"; outside: {', '.join(ours.failed)}." if ours.failed else "."),
    )
    return [
        Heading("The scores"),
        "Every number stands beside its control, because a number alone says little: two groups of real cells are not "
        "identical either.",
        words.score_table(run.scores),
        picture,
        words.type_table(ours, run.real.train.obs["cell_type"].value_counts()),
    ]


def _copying(context: Context, run: _Run) -> list[Block]:
    from cellsmith import pl

    picture = context.picture(
        "copying",
        pictures.figure_of(pl.privacy, run.privacy[OURS]),
        title="Generated cells, training cells and unseen cells",
        how_to_read="If the model had copied, generated cells would lie much nearer to training cells than to unseen "
        "ones, and the two distance curves would part. The attack curve shows how well someone could tell who was in "
        "the training data; the diagonal is guessing.",
    )
    return [
        Heading("Are they new, or copied?"),
        "A generator that hands out its training cells would look right in every picture above. So we measure whether "
        "generated cells lie nearer to the cells that the model was trained on than to cells that it never saw.",
        words.privacy_table(run.privacy),
        picture,
    ]


def _requests(context: Context, run: _Run) -> list[Block]:
    """Ask for particular cells and check what comes back with a classifier that knows real cells only."""
    from sklearn.linear_model import LogisticRegression

    names = run.real.train.obs["cell_type"].value_counts()
    frequent = [name for name in ("NK", "CD14 Mono", "DC", "B") if names.get(name, 0) >= 20][:3]
    logs = pictures.log_normalised(run.real.train)
    teacher = LogisticRegression(C=0.05, max_iter=300).fit(logs, run.real.train.obs["cell_type"].astype(str))
    rows: list[list[str | Cell]] = []
    for i, (name, depth) in enumerate(zip(frequent, (1000, 2000, 4000), strict=False)):
        wanted = {"cell_type": name, "condition": "STIM"}
        made = run.model.generate(200, condition=wanted, library_size=depth, seed=context.seed + 1 + i)
        test = run.real.test[run.real.test.obs["cell_type"] == name]
        agree = np.mean(teacher.predict(pictures.log_normalised(made)) == name)
        real_agree = np.mean(teacher.predict(pictures.log_normalised(test)) == name)
        totals = np.asarray(made.X.sum(axis=1)).ravel()
        seen = run.real.train.obs
        rows.append(
            [
                f"200 x {name}, STIM, {depth:,} counts each",
                str(int(((seen["cell_type"] == name) & (seen["condition"] == "STIM")).sum())),
                str(made.n_obs),
                f"{totals.min():,.0f} to {totals.max():,.0f}",
                f"{agree:.0%}",
                f"{real_agree:.0%}",
            ]
        )
    return [
        Heading("Ask for what you need"),
        "The model makes any number of cells of a type and condition, at any sequencing depth. A classifier that has "
        "only ever seen real cells checks whether they are what was asked for.",
        Table(
            "Three requests",
            [
                "request",
                "such cells in training",
                "cells delivered",
                "counts per cell",
                "recognised as that type",
                "the same for unseen real cells",
            ],
            rows,
            note="Recognised should be near the value of real cells: much higher would mean caricatures, much lower a "
            "mix-up with a neighbouring type, which happens where the model saw few examples. More counts per cell "
            "make any cell easier to recognise.",
        ),
    ]


def _what_if(context: Context, run: _Run) -> list[Block]:
    """Translate unseen resting cells into stimulated ones, and compare with the measured response of other cells."""
    real = run.real
    resting = cells.plain_copy(real.test[real.test.obs["condition"] == "CTRL"])
    moved = run.model.translate(resting, {"condition": "STIM"}, seed=context.seed)
    moved.obs_names = [f"moved_{i}" for i in range(moved.n_obs)]
    both = ad.concat([resting, moved])
    both.obs["condition"] = pd.Categorical(["CTRL"] * resting.n_obs + ["STIM"] * moved.n_obs)
    predicted, measured = pictures.fold_changes(both), pictures.fold_changes(real.test)
    # The reference comes from cells that are in neither group, so chance differences of the resting cells cannot
    # help.
    figure, slopes = pictures.response_scatter(
        {"measured in the unseen cells": measured, "predicted from their resting half": predicted},
        reference=pictures.fold_changes(real.control),
        chosen=pictures.fold_changes(real.train),
    )
    first, second = slopes.values()
    return [
        Heading("What if these cells had met interferon?"),
        "The model can also take a real, resting cell and write down how it might look after interferon: the same "
        "cell, in another condition. Here it does so for resting cells that it never saw. It has seen the response of "
        "other cells of these types, so this is a test of carrying an effect over, not of foreseeing a new one.",
        context.picture(
            "what_if",
            figure,
            title="Predicted response of unseen resting cells",
            how_to_read="As before: a dot is a gene in a type; to the right its measured response in a third group of "
            "real cells. Left panel: the measured response of the unseen cells, the best that can be reached. Right "
            "panel: resting cells against their own predicted version.",
            finding=f"Slope {second:.2f} predicted, {first:.2f} measured.",
        ),
    ]


def _summary(run: _Run, slopes: dict[str, float]) -> Table:
    rows: list[list[str | Cell]] = []
    for metric, (text, _) in words.SHOWN.items():
        table = run.scores[OURS].table.set_index("metric")
        if metric in table.index:
            numbers = [float(table.loc[metric, "control"]), *(report[metric] for report in run.scores.values())]
            rows.append([text, *(f"{number:.3f}" for number in numbers)])
    control = slopes[CONTROL]
    rows.append(
        [
            "Strength of the interferon response (slope)",
            f"{control:.3f}",
            *(f"{slopes[n]:.3f}" for n in run.groups),
        ]
    )
    for metric in ("nearest_share", "membership_auc"):
        table = run.privacy[OURS].table.set_index("metric")
        numbers = [float(table.loc[metric, "control"]), *(report[metric] for report in run.privacy.values())]
        rows.append([words.PRIVACY[metric][0], *(f"{number:.3f}" for number in numbers)])
    return Table(
        "Generated blood cells against unseen real cells", ["", "real cells", "SCLD", "scVI re-draw", "memoriser"], rows
    )
