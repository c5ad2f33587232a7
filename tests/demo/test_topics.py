"""The topics section of the demo, quick: cells are put aside, and the section tells what it computed."""

from __future__ import annotations

import numpy as np
import pytest

from cellsmith.demo import _topics_cells as cells
from cellsmith.demo import _topics_words as words
from cellsmith.demo import topics
from cellsmith.demo._context import Context
from cellsmith.demo._report import Figure, Report, Table, Tiles, render

WAYS = [cells.SWITCHED, cells.SHIFT, cells.OTHERS]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    out = tmp_path_factory.mktemp("topics")
    lines: list[str] = []
    kept = {}

    def keep(seed, **options):
        kept["task"] = cells_make_task(seed, **options)
        return kept["task"]

    cells_make_task, cells.make_task = cells.make_task, keep
    try:
        section = topics.section(Context(out=out, seed=1, quick=True, say=lines.append))
    finally:
        cells.make_task = cells_make_task
    return out, section, lines, kept["task"]


def test_no_cell_is_on_both_sides_and_every_group_is(result):
    *_, task = result
    assert not set(task.train.obs_names) & set(task.test.obs_names)
    keys = ["cell_type", "condition"]
    assert set(task.test.obs.groupby(keys, observed=True).groups) <= set(
        task.train.obs.groupby(keys, observed=True).groups
    )
    assert task.train.n_obs / (task.train.n_obs + task.test.n_obs) == pytest.approx(0.7, abs=0.01)


def test_model_knows_no_condition(result):
    *_, task = result
    # a registered condition would be absorbed by the decoder, and nothing would be left to switch
    assert len(task.model.adata_manager.get_state_registry("batch").categorical_mapping) == 1
    np.testing.assert_allclose(task.train.obsm["X_sce2tm"].sum(axis=1), 1.0, rtol=1e-4)


def test_section(result):
    out, section, lines, _ = result
    assert section.slug == "topics"
    names = {path.stem for path in (out / "figures").iterdir()}
    assert names == {"topic_heatmap", "topic_genes", "topic_predictions", "topic_scores"}
    assert sum(isinstance(block, Figure) for block in section.blocks) == len(names)
    assert any("put aside" in line for line in lines)
    page = render(Report("t", "l", [section]))
    for phrase in ("GSE96583", "has not shown more than it", "not an experiment", "interferon response"):
        assert phrase in page


def test_selected_topics_beat_the_others_and_stand_beside_the_baseline(result):
    _, section, *_ = result
    assert list(section.summary.columns) == ["", *WAYS]
    numbers = {row[0]: dict(zip(WAYS, map(float, row[1:]), strict=True)) for row in section.summary.rows}
    agree, raised = (numbers[words.SHOWN[m][0]] for m in ("correlation", "top20"))
    assert agree[cells.SWITCHED] > 0.2
    assert agree[cells.SWITCHED] > agree[cells.OTHERS]
    assert raised[cells.SWITCHED] > raised[cells.OTHERS]


def test_tables_and_tiles_are_filled(result):
    _, section, *_ = result
    tables = [block for block in section.blocks if isinstance(block, Table)]
    assert all(table.rows for table in tables)
    (tiles,) = (block for block in section.blocks if isinstance(block, Tiles))
    assert all("nan" not in number for number, _ in tiles.items)


def test_scores_know_truth_from_a_shuffle():
    rng = np.random.default_rng(0)
    truth = {"a": rng.normal(size=200), "b": rng.normal(size=200)}
    ways = {
        "right": truth,
        "half": {name: x / 2 for name, x in truth.items()},
        "shuffled": {name: rng.permutation(x) for name, x in truth.items()},
    }
    found = cells.score(truth, ways)
    assert found["right"] == {"correlation": pytest.approx(1), "top20": 20.0, "size": pytest.approx(1)}
    assert found["half"]["correlation"] == pytest.approx(1)
    assert found["half"]["size"] == pytest.approx(0.5)
    assert abs(found["shuffled"]["correlation"]) < 0.2


def test_gene_sets_have_a_source_and_genes_of_the_embedded_data():
    from cellsmith.datasets import kang_pbmc

    known = set(kang_pbmc().var_names)
    assert "by hand" in cells.SOURCE
    for genes in cells.GENE_SETS.values():
        assert len(set(genes)) == len(genes)
        assert len(known & set(genes)) >= 0.7 * len(genes)
