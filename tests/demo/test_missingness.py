"""The missingness section of the demo, quick: the gaps are as promised, and the section tells what it computed."""

from __future__ import annotations

import numpy as np
import pytest

from cellsmith.demo import _missingness_cells as cells
from cellsmith.demo import _missingness_words as words
from cellsmith.demo import missingness
from cellsmith.demo._context import Context
from cellsmith.demo._report import Figure, Report, Table, Tiles, render

WAYS = [cells.COMPLETE, cells.ZERO, cells.MEAN, cells.PAIRWISE, cells.BC, cells.REFINED]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    out = tmp_path_factory.mktemp("missingness")
    lines: list[str] = []
    return out, missingness.section(Context(out=out, seed=1, quick=True, say=lines.append)), lines


@pytest.fixture(scope="module")
def task():
    return cells.make_task(1, quick=True)


def test_deleted_entries_are_gaps_and_nothing_else_changed(task):
    x = task.adata.X
    kept = task.observed
    assert np.array_equal(x[kept], task.complete[kept].astype(np.float32))
    assert np.isnan(x[~kept]).all()
    assert (x[kept] == 0).any()
    assert 0.3 < kept.mean() < 0.5


def test_deletion_is_uneven_over_cells_and_genes_and_blind_to_values():
    observed = cells.delete_entries((400, 500), np.random.default_rng(0))
    even = np.random.default_rng(0).random((400, 500)) < observed.mean()
    for across in (0, 1):
        assert observed.mean(axis=across).std() > 5 * even.mean(axis=across).std()
    assert np.array_equal(observed, cells.delete_entries((400, 500), np.random.default_rng(0)))


def test_section(result):
    out, section, lines = result
    assert section.slug == "missingness"
    names = {path.stem for path in (out / "figures").iterdir()}
    assert names == {"missing_rates", "missing_axis", "missing_maps", "missing_bars"}
    assert sum(isinstance(block, Figure) for block in section.blocks) == len(names)
    assert any("300 genes" in line for line in lines)
    page = render(Report("t", "l", [section]))
    for phrase in ("GSE96583", "are no missing entries", "are a tie", "BC-PCA, refined"):
        assert phrase in page


def test_every_way_stands_beside_the_complete_data(result):
    _, section, _ = result
    assert list(section.summary.columns) == ["", *WAYS]
    numbers = {row[0]: dict(zip(WAYS, map(float, row[1:]), strict=True)) for row in section.summary.rows}
    distance = numbers[words.SHOWN["sin_theta"][0]]
    follows = numbers[words.SHOWN["follows"][0]]
    assert distance[cells.COMPLETE] < 1e-6
    assert distance[cells.BC] < distance[cells.ZERO]
    assert follows[cells.BC] < follows[cells.ZERO]
    assert distance[cells.BC] == pytest.approx(distance[cells.PAIRWISE], abs=0.1)


def test_tables_and_tiles_are_filled(result):
    _, section, _ = result
    tables = [block for block in section.blocks if isinstance(block, Table)]
    assert [len(table.rows) for table in tables] == [len(words.SHOWN)]
    (tiles,) = (block for block in section.blocks if isinstance(block, Tiles))
    assert all("nan" not in number for number, _ in tiles.items)


def test_scores_know_the_truth_from_a_shuffle(task):
    truth = np.random.default_rng(0).normal(size=(task.adata.n_obs, 4))
    scored = cells.Task(task.adata, task.complete, 4)
    scored.embeddings = {cells.COMPLETE: truth, "turned": truth @ np.linalg.qr(truth[:4])[0], "shuffled": truth[::-1]}
    found = cells.score(scored, 0)
    assert found["turned"]["recall"] == pytest.approx(1.0)
    assert found["turned"]["sin_theta"] < 1e-6
    assert found["shuffled"]["recall"] < 0.2
    assert found["shuffled"]["sin_theta"] > 0.8
