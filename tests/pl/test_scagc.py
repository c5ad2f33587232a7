"""The pictures show the merges with their evidence, and the hubs of a graph."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")

import matplotlib.pyplot as plt
from anndata import AnnData
from scipy import sparse

from cellsmith import _record, pl
from cellsmith._errors import SetupError


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def result(*, n_merges: int = 2) -> AnnData:
    adata = AnnData(np.ones((4, 3), dtype=np.float32))
    star = np.zeros((4, 4), dtype=np.float32)
    star[0, 1:] = star[1:, 0] = 1.0
    names = ("step", "first", "second", "score", "n_clusters")
    columns = ([1, 2], [0, 0], [3, 1], [2, 4], [3, 2])
    merges = {name: np.array(values[:n_merges]) for name, values in zip(names, columns, strict=True)}
    block = {"merges": merges | {"threshold": np.full(n_merges, 5.0)}, "graph": {"knn_largest_degree": 9}}
    graph = sparse.csr_matrix(star)
    slots = {"{k}_connectivities": graph, "{k}_distances": graph}
    _record.write(adata, "scagc", _record.Result(method="scagc", obsp=slots, uns=block))
    return adata


def test_merges_are_bars_against_the_threshold() -> None:
    ax = pl.merge_path(result())
    assert [bar.get_width() for bar in ax.patches] == [2, 4]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["3 into 0, 3 left", "1 into 0, 2 left"]
    assert list(ax.lines[0].get_xdata()) == [5, 5]


def test_no_merge_is_said() -> None:
    with pytest.raises(SetupError, match="records no merge"):
        pl.merge_path(result(n_merges=0))


def test_degrees_are_counted_beside_those_of_knn() -> None:
    ax = pl.graph_degrees(result())
    assert sum(bar.get_height() for bar in ax.patches) == 4
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["largest: 3", "largest of kNN: 9"]
    with pytest.raises(SetupError, match="does not exist"):
        pl.graph_degrees(result(), "other")
