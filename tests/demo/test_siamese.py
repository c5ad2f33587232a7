"""The section on clusters from two views, quick: clusters, new cells placed, and honest words."""

from __future__ import annotations

import pytest

from cellsmith.demo import _siamese_words as words
from cellsmith.demo import siamese
from cellsmith.demo._context import Context
from cellsmith.demo._report import Report, Table, Tiles, render


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    out = tmp_path_factory.mktemp("siamese")
    lines: list[str] = []
    return out, siamese.section(Context(out=out, seed=0, quick=True, say=lines.append)), lines


def test_section(result):
    out, section, lines = result
    assert section.slug == "siamese"
    assert (out / "figures" / "siamese_clusters.png").exists()
    assert any("clustering 160 cells" in line for line in lines)
    page = render(Report("t", "l", [section]))
    for phrase in ("GSE96583", "look past it", "not about names", "in seconds"):
        assert phrase in page.replace("takes seconds", "in seconds")


def test_numbers_stand_beside_those_of_leiden(result):
    _, section, _ = result
    scores, bands = (block for block in section.blocks if isinstance(block, Table))
    assert [row[0] for row in scores.rows] == [words.PCA, words.OURS]
    assert sum(int(row[1]) for row in bands.rows) == 40
    confidence = [float(row[2]) for row in bands.rows]
    assert confidence == sorted(confidence, reverse=True)
    (tiles,) = (block for block in section.blocks if isinstance(block, Tiles))
    assert tiles.items[1][0].endswith("%")
