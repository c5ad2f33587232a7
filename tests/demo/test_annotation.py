"""The annotation section: who is judged, what the rivals do, and words that follow the numbers."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cellsmith._errors import CellsmithWarning
from cellsmith.demo import _annotation_cells as cells
from cellsmith.demo import _annotation_words as words
from cellsmith.demo import annotation
from cellsmith.demo._context import Context
from cellsmith.demo._report import Cell, Figure, Heading, Table, Terms
from cellsmith.demo._run import text_table
from cellsmith.demo._synthesis_cells import interferon_cells


@pytest.fixture(scope="module")
def blood():
    return interferon_cells(0, quick=True)[0]


@pytest.fixture(scope="module")
def noisy(blood):
    return cells.few_labels(blood, 0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    lines = []
    context = Context(tmp_path_factory.mktemp("annotation"), seed=3, quick=True, say=lines.append)
    with warnings.catch_warnings():
        # a small type may vanish from a quick run; the page says so
        warnings.simplefilter("ignore", CellsmithWarning)
        return annotation.section(context), context.out, lines


def test_section_has_its_parts(made):
    section, out, lines = made
    assert section.slug == "annotation"
    pictures = [b for b in section.blocks if isinstance(b, Figure)]
    assert len(pictures) == len(list((out / "figures").iterdir())) >= 5
    assert all(p.name.startswith("annotation_") for p in (out / "figures").iterdir())
    assert all(p.how_to_read for p in pictures)
    headings = [b.text for b in section.blocks if isinstance(b, Heading)]
    assert {"What this does not show", "Words used on this page"} <= set(headings)
    assert any(isinstance(b, Terms) for b in section.blocks)
    text = " ".join(b for b in section.blocks if isinstance(b, str))
    assert text.count("a smooth wrong answer is more convincing") + text.count("A smooth wrong answer") >= 2
    assert "GSE96583" in text
    assert lines


def test_summary_shows_every_method_and_the_price_of_rejection(made):
    summary = made[0].summary
    assert list(summary.columns) == ["", *words.METHODS.values()]
    assert len(summary.rows) == 2 * 4 + 2
    values = np.array([[float(v) for v in row[1:]] for row in summary.rows[:8]])
    assert ((values > 0.15) & (values <= 1)).all()
    assert max(len(line) for line in text_table(summary).splitlines()) <= 130


def test_no_judged_cell_taught_the_classifier(blood, noisy):
    assert (~noisy.judged).sum() == cells.N_LABELS * blood.obs["cell_type"].nunique()
    assert np.allclose(noisy.scores.sum(axis=1), 1)
    anchored = cells.with_anchors(noisy, 0, 80)
    revealed = (anchored.adata.obs["anchor"] != "unknown").to_numpy()
    assert "anchor" not in noisy.adata.obs
    assert revealed.sum() == 80
    assert not (revealed & anchored.judged).any()
    assert not (revealed & ~noisy.judged).any()
    assert (noisy.judged & ~revealed == anchored.judged).all()


def test_draws_differ_and_repeat(blood, noisy):
    again, other = cells.few_labels(blood, 0), cells.few_labels(blood, 0, draw=1)
    assert np.array_equal(noisy.judged, again.judged)
    assert np.array_equal(noisy.scores, again.scores)
    assert not np.array_equal(noisy.judged, other.judged)


def test_transfer_names_only_the_other_condition(blood):
    task = cells.transfer(blood, 0, source="CTRL")
    assert set(task.adata.obs["condition"]) == {"STIM"}
    assert list(task.scores.index) == list(task.adata.obs_names)
    assert task.judged.all()


def test_rivals_by_hand():
    """Eight triangles: a triangle takes the name of its majority, or that of its largest total."""
    adata = ad.AnnData(sparse.csr_matrix((24, 1), dtype=np.float32))
    adata.obsp["grit_connectivities"] = sparse.csr_matrix(np.kron(np.eye(8), np.ones((3, 3))) - np.eye(24))
    likes = np.tile([0.6, 0.6, 0.0, 0.1, 0.2, 0.9], 4)
    task = cells.Task(adata, pd.DataFrame({"a": likes, "b": 1 - likes}, index=adata.obs_names), np.ones(24, dtype=bool))
    named = cells.rivals(task, 0).adata.obs
    assert named["vote"].tolist() == (["a"] * 3 + ["b"] * 3) * 4
    assert named["knn"].tolist() == ["b"] * 24


def test_a_promise_that_cannot_be_kept_is_not_made(blood, noisy):
    """With scores that say nothing, no draw accepts a cell at a strict level."""
    adata = noisy.adata.copy()
    generator = np.random.default_rng(0)
    adata.obsm["grit_proba"] = generator.dirichlet(np.ones(noisy.scores.shape[1]), blood.n_obs)
    adata.uns["grit"] = {"calibration": {"fitted": np.arange(5)}}
    task = cells.Task(adata, noisy.scores, noisy.judged)
    errors = cells.broken_promises(task, 0, level=0.05, delta=0.1, n_anchors=80, n_draws=10)
    assert np.isnan(errors).all()
    perfect = (adata.obs["cell_type"].astype(str).to_numpy()[:, None] == noisy.scores.columns.to_numpy()).astype(float)
    adata.obsm["grit_proba"] = perfect
    errors = cells.broken_promises(task, 0, level=0.05, delta=0.1, n_anchors=80, n_draws=10)
    assert (errors == 0).all()


def test_words_follow_the_numbers():
    draws = {
        "s": [
            {f"{m} {k}": v for m, v in zip(words.METHODS, (0.5, 0.6, 0.4, 0.505), strict=True)} for k in ("accuracy",)
        ]
    }
    draws["s"][0] |= {f"{m} macro_f1": 0.5 for m in words.METHODS}
    table = words.comparison_table(draws)
    assert [cell.tone for cell in table.rows[0][1:] if isinstance(cell, Cell)] == ["", "good", "bad", ""]
    rows = [
        {"situation": "s", "level": 0.1, "kept": 0.0, "error": float("nan"), "broken": 0.0, "empty": 1.0},
        {"situation": "s", "level": 0.2, "kept": 0.5, "error": 0.3, "broken": 0.4, "empty": 0.0},
    ]
    table = words.rejection_table(rows, delta=0.1, n_anchors=5, n_draws=9)
    assert isinstance(table, Table)
    assert table.rows[0][2] == "no cell kept"
    assert (table.rows[1][2].tone, table.rows[1][3].tone) == ("bad", "bad")


def test_largest_mistake():
    truth = pd.Series(["a", "a", "a", "b", "b"])
    raw = pd.Series(["b", "a", "a", "b", "a"])
    refined = pd.Series(["b", "b", "a", "b", "a"])
    assert words.largest_mistake(truth, raw, refined) == ("a", "b", 1, 2)
    assert words.largest_mistake(truth, raw, truth) == ("", "", 0, 0)
