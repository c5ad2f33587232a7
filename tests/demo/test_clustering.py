"""The clustering section of the demo, quick: three ways on the same cells, new cells placed, and honest words."""

from __future__ import annotations

import pytest

from cellsmith.demo import _clustering_words as words
from cellsmith.demo import clustering
from cellsmith.demo._context import Context
from cellsmith.demo._report import Report, Table, Tiles, render


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    out = tmp_path_factory.mktemp("clustering")
    lines: list[str] = []
    return out, clustering.section(Context(out=out, seed=0, quick=True, say=lines.append)), lines


def test_section(result):
    out, section, lines = result
    assert section.slug == "clustering"
    assert (out / "figures" / "clustering_map.png").exists()
    assert any("clustering 160 cells" in line for line in lines)
    page = render(Report("t", "l", [section]))
    for phrase in ("GSE96583", "penalty on cells", "in both directions", "no truth"):
        assert phrase in page


def test_every_way_has_numbers(result):
    _, section, _ = result
    (table,) = (block for block in section.blocks if isinstance(block, Table))
    assert [row[0] for row in table.rows] == [words.SCANPY, words.UNTRAINED, words.TRAINED]
    for row in table.rows:
        assert int(row[1]) >= 1
        assert all(-1 <= float(value) <= 1 for value in row[2:])
    (tiles,) = (block for block in section.blocks if isinstance(block, Tiles))
    assert 0 <= float(tiles.items[1][0]) <= 1
