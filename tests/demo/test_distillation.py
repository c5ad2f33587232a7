"""The distillation section of the demo, quick: every way is scored on the same cells, and the section says so."""

from __future__ import annotations

import pytest

from cellsmith.demo import _distillation_words as words
from cellsmith.demo import distillation
from cellsmith.demo._context import Context
from cellsmith.demo._report import Figure, Report, Table, Tiles, render


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    out = tmp_path_factory.mktemp("distillation")
    lines: list[str] = []
    return out, distillation.section(Context(out=out, seed=1, quick=True, say=lines.append)), lines


def test_section(result):
    out, section, lines = result
    assert section.slug == "distillation"
    assert [path.name for path in (out / "figures").iterdir()] == ["distillation_curve.png"]
    assert sum(isinstance(block, Figure) for block in section.blocks) == 1
    assert any("training SCDD on 200 cells" in line for line in lines)
    page = render(Report("t", "l", [section]))
    for phrase in ("GSE96583", "is the bar", "is that cell", "put aside", "twenty cuts"):
        assert phrase in page


def test_every_way_stands_in_the_tables_with_numbers(result):
    _, section, _ = result
    assert [row[0] for row in section.summary.rows] == [*words.NAMES.values(), words.ALL]
    numbers = {row[0]: [float(value) for value in row[1:]] for row in section.summary.rows}
    assert all(0 <= value <= 1 for values in numbers.values() for value in values)
    # What the section is about: a mean of ten groups teaches more than ten random cells.
    assert numbers["means of groups"][1] > numbers["random cells"][1]
    (table,) = (block for block in section.blocks if isinstance(block, Table))
    assert len(table.rows) == 1 + 2 * len(words.NAMES)
    (tiles,) = (block for block in section.blocks if isinstance(block, Tiles))
    assert all("nan" not in number for number, _ in tiles.items)


def test_steps_are_told_as_they_were():
    told = words.steps_told({1: 125, 10: 0})
    assert "with 1 a type step 125 was kept" in told
    assert "with 10 a type no step beat the start" in told
