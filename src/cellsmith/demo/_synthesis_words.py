"""The words of the synthesis section: metrics in plain language, the text around the pictures, a glossary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cellsmith.demo._report import Cell, Table

if TYPE_CHECKING:
    from cellsmith.metrics import PrivacyReport, SyntheticReport

__all__ = ["CODE", "GLOSSARY", "LIMITS", "PRIVACY", "SHOWN", "privacy_table", "score_table", "type_table"]

SHOWN: dict[str, tuple[str, str]] = {
    "rf_auc_pca": ("A classifier tells them from real cells, overall pattern", "0.5 (it guesses)"),
    "rf_auc_genes": ("A classifier tells them from real cells, single genes", "0.5 (it guesses)"),
    "w2_per_type": ("Distance to the real cells of the same type", "as control"),
    "coverage": ("Share of real cells with a generated neighbour", "as control"),
    "precision": ("Share of cells that lie among real ones", "as control"),
    "label_fidelity": ("Recognised as the type they were made for", "as real cells"),
    "tstr_ratio": ("Teaching value: cell typing learnt from them, over learnt from real cells", "1"),
    "lfc_slope": ("Strength of the marker genes of each type (slope)", "1"),
    "gg_correlation": ("Genes that vary together still do (correlation)", "1"),
    "ks_library": ("Difference in counts per cell", "as control"),
    "ks_genes_detected": ("Difference in genes seen per cell", "as control"),
    "zero_fraction_mae": ("Difference in the share of zeros per gene", "as control"),
}
"""Metric -> its name in plain words, and its ideal."""

PRIVACY: dict[str, tuple[str, str]] = {
    "exact_copies": ("Cells that are exact copies of a training cell", "0"),
    "nearest_share": ("Share of cells nearer to a training cell than to an unseen one", "0.5"),
    "membership_auc": ("An attacker finds out who was in the training data", "0.5 (guesses)"),
}

GLOSSARY = (
    (
        "Cell, gene, count",
        "A cell is described by how many RNA molecules of each gene were caught in it.",
    ),
    (
        "CTRL and STIM",
        "Blood cells left alone, and blood cells six hours after interferon beta, the alarm signal that cells"
        " send when they meet a virus.",
    ),
    (
        "Generated cell",
        "A list of counts that no sequencer produced: the model wrote it after learning from real cells.",
    ),
    (
        "Unseen real cells",
        "Real cells of the same experiment that were kept away from every model.",
    ),
    (
        "Control",
        "The same comparison made between two groups of unseen real cells. It is the best that can be "
        "reached: even real cells differ from each other by chance.",
    ),
    (
        "Log2 fold change",
        "How much stronger a gene is in STIM than in CTRL: 1 means twice, 2 four times, -1 half.",
    ),
    (
        "Slope",
        "1 means that effects have their true strength; below 1 they are damped, above 1 exaggerated.",
    ),
    (
        "AUC",
        "How well two groups can be told apart: 0.5 is guessing, 1 is always right.",
    ),
    (
        "Memoriser",
        "A cheat that hands out copies of the training cells. Cell for cell it looks real, and it must be caught by "
        "the tests for copying.",
    ),
    (
        "scVI re-draw",
        "A well-known model of the same kind of data. It does not invent cells: it is handed real training "
        "cells and draws their counts again. It serves as a yardstick.",
    ),
)

LIMITS = (
    "One experiment, one split into training and unseen cells, one seed. Differences of a few hundredths between "
    "columns are within what another seed would change.",
    "The model knows only what was in its training cells. It does not know other donors, tissues, doses or times.",
    "Passing the tests for copying is not a guarantee of privacy. Such a guarantee needs training under differential "
    "privacy. Treat generated cells of patients with the care that the real ones deserve.",
    "Generated cells are good for teaching, testing software, planning sample sizes and balancing rare types. They "
    "are no evidence: a finding has to be shown in real cells, and generated cells must not be counted as further "
    "samples.",
)

CODE = """import cellsmith

synthetic = cellsmith.tl.scld(adata, labels_key="cell_type", batch_key="condition", n_cells=5000)

# or step by step, to ask for particular cells
SCLD = cellsmith.model.SCLD
SCLD.setup_anndata(adata, labels_key="cell_type", batch_key="condition")
model = SCLD(adata)
model.train()
nk = model.generate(500, condition={"cell_type": "NK", "condition": "STIM"}, library_size=2000)

report = cellsmith.metrics.evaluate_synthetic(unseen, synthetic, adata, labels_key="cell_type")
"""


def _number(value: float) -> str:
    return "not available" if value != value else f"{value:.3f}"


def _rows(
    shown: Mapping[str, tuple[str, str]], reports: Mapping[str, SyntheticReport | PrivacyReport]
) -> list[list[str | Cell]]:
    tables = {name: report.table.set_index("metric") for name, report in reports.items()}
    first = next(iter(tables.values()))
    rows: list[list[str | Cell]] = []
    for metric, (words, ideal) in shown.items():
        if metric not in first.index:
            continue
        row: list[str | Cell] = [words, Cell(ideal, "quiet"), _number(float(first.loc[metric, "control"]))]
        for table in tables.values():
            tone = {True: "good", False: "bad"}.get(table.loc[metric, "passed"], "")
            row.append(Cell(_number(float(table.loc[metric, "value"])), tone))
        rows.append(row)
    return rows


def score_table(reports: Mapping[str, SyntheticReport]) -> Table:
    """Put the scores of several generators side by side.

    Parameters
    ----------
    reports
        Name of the generator -> its report; all against the same real cells.

    Returns
    -------
    One row a metric of ``SHOWN``, one column a generator, the control first.
    """
    return Table(
        "How real are the cells? Every column is compared with the same unseen real cells",
        ["", "ideal", "other unseen real cells", *reports],
        _rows(SHOWN, reports),
        note="**Other unseen real cells** is the control: what real cells score in the place of generated ones. Green "
        "lies inside the range that we accept, red outside; where no colour is shown there is no fixed range. The "
        "ranges were set on another data set and widen with the control.",
    )


def type_table(report: SyntheticReport, n_train: Mapping[str, int]) -> Table:
    """Show type by type how well a generator did, and how many examples it had.

    Parameters
    ----------
    report
        Of the generator.
    n_train
        Type -> number of training cells.

    Returns
    -------
    One row a type, most frequent first.
    """
    frame = report.per_label.set_index("label")
    order = sorted(frame.index, key=lambda name: -int(n_train[name]))
    columns = ("fidelity", "fidelity_control", "lfc_slope", "lfc_slope_control")
    return Table(
        "Type by type",
        [
            "",
            "training cells",
            "recognised, generated",
            "recognised, real",
            "marker strength, generated",
            "marker strength, real",
        ],
        [[name, str(int(n_train[name])), *(_number(float(frame.loc[name, c])) for c in columns)] for name in order],
        note="Recognised: the share that a classifier, trained on real cells, calls by the right name. Marker "
        "strength: the slope of the type's marker genes, 1 is ideal. Types with few training cells, and types with a "
        "close relative, are the hard ones, also for real cells.",
    )


def privacy_table(reports: Mapping[str, PrivacyReport]) -> Table:
    """Put the tests for copying of several generators side by side.

    Parameters
    ----------
    reports
        Name of the generator -> its report.

    Returns
    -------
    One row a metric, one column a generator, the control first.
    """
    return Table(
        "Are they copies?",
        ["", "ideal", "other unseen real cells", *reports],
        _rows(PRIVACY, reports),
        note="The memoriser is in this table to show that the tests can fail: it must be red.",
    )
