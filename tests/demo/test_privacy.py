"""The privacy section of the demo, quick."""

from __future__ import annotations

import pytest

from cellsmith.demo import _privacy_words as words
from cellsmith.demo import privacy
from cellsmith.demo._context import Context
from cellsmith.demo._report import Figure, Report, Tiles, render


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    out = tmp_path_factory.mktemp("privacy")
    return out, privacy.section(Context(out=out, seed=1, quick=True, say=lambda line: None))


def test_section_says_what_it_does_not_show(result):
    out, section = result
    assert section.slug == "privacy"
    assert [path.name for path in (out / "figures").iterdir()] == ["privacy_budget.png"]
    assert sum(isinstance(block, Figure) for block in section.blocks) == 1
    page = render(Report("t", "l", [section]))
    for phrase in ("GSE96583", "not one person", "simulation", "stay with the owner"):
        assert phrase in page


def test_every_budget_stands_between_floor_and_ceiling_in_the_table(result):
    _, section = result
    names = [row[0] for row in section.summary.rows]
    assert names[0].startswith("random axes")
    assert names[-1] == "axes without privacy"
    assert names[1:-1] == ["private axes, epsilon 1", "private axes, epsilon 8"]
    (tiles,) = (block for block in section.blocks if isinstance(block, Tiles))
    assert all("nan" not in number for number, _ in tiles.items)


def test_the_verdict_follows_the_numbers(result):
    import numpy as np
    import pandas as pd

    def table(value: float) -> pd.DataFrame:
        rows = [(words.OURS, 4.0, "ari", value), (words.FLOOR, np.inf, "ari", 0.3)]
        return pd.DataFrame(rows, columns=["arm", "epsilon", "metric", "value"])

    assert "From epsilon 4" in words.verdict(table(0.5))
    assert "No budget" in words.verdict(table(0.32))
