"""The flow from raw to refined classes: drawn from ``.uns`` only."""

from __future__ import annotations

import itertools

import matplotlib as mpl
import numpy as np
import pytest
from anndata import AnnData

mpl.use("agg")

import cellsmith
from cellsmith._errors import SetupError

FLOW = np.array([[60, 10, 0, 0], [5, 80, 0, 3], [0, 30, 0, 0], [0, 0, 0, 0]])


def record(flow: np.ndarray = FLOW) -> AnnData:
    block = {"flow": flow, "classes": np.array(["B", "T", "NK", "ghost"], dtype=object)}
    return AnnData(np.zeros((1, 1)), uns={"grit": {**block, "provenance": {"method": "grit", "outputs": []}}})


def words(ax: object) -> str:
    return " | ".join(t.get_text() for t in (*ax.texts, ax.title))


def test_flow_is_drawn_from_uns() -> None:
    ax = cellsmith.pl.grit_flow(record())
    said = words(ax)
    assert "48 of 188 labels changed" in said
    assert "B  86% stayed" in said
    assert "NK  lost" in said
    assert "3 cells" in said  # the band of T to ghost is too thin
    assert len(ax.collections) == 5
    ax.figure.canvas.draw()


@pytest.mark.parametrize(("normalize", "text"), [("refined", "B  92% from it"), ("none", "B  70")])
def test_numbers_at_the_bars(normalize: str, text: str) -> None:
    assert text in words(cellsmith.pl.grit_flow(record(), normalize=normalize))


def test_bars_add_up() -> None:
    ax = cellsmith.pl.grit_flow(record(), min_cells=0)
    assert sum(p.get_height() for p in ax.patches) == 2 * FLOW.sum()
    assert len(ax.collections) == (FLOW > 0).sum()


def test_given_axes_and_an_empty_flow() -> None:
    import matplotlib.pyplot as plt

    _, ax = plt.subplots()
    assert cellsmith.pl.grit_flow(record(), ax=ax) is ax
    assert "no cell" in words(cellsmith.pl.grit_flow(record(np.zeros((4, 4), dtype=int))))
    plt.close("all")


def test_words_do_not_overlap() -> None:
    flow = np.diag([1000, 1, 1, 1])
    ax = cellsmith.pl.grit_flow(record(flow))
    ax.figure.canvas.draw()
    boxes = [t.get_window_extent() for t in ax.texts if t.get_ha() == "left"]
    heights = sorted(((b.y0, b.y1) for b in boxes), reverse=True)
    assert all(upper[0] >= lower[1] - 1 for upper, lower in itertools.pairwise(heights))


def test_what_is_refused() -> None:
    with pytest.raises(SetupError, match="does not exist"):
        cellsmith.pl.grit_flow(AnnData(np.zeros((1, 1))))
    with pytest.raises(SetupError, match="Did you mean 'raw'"):
        cellsmith.pl.grit_flow(record(), normalize="rwa")
    adata = record()
    del adata.uns["grit"]["flow"]
    with pytest.raises(SetupError, match="holds no flow"):
        cellsmith.pl.grit_flow(adata)
