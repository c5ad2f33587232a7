"""The picture of distilled sets shows the means and the paired differences of the table, and refuses other tables."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

mpl.use("Agg")

import matplotlib.pyplot as plt

from cellsmith import pl
from cellsmith._errors import SetupError

SCORES = {
    ("full", 0): [0.90, 0.80, 0.85],
    ("random", 1): [0.50, 0.60, 0.55],
    ("random", 5): [0.70, 0.72, 0.71],
    ("metacell", 1): [0.70, 0.70, 0.73],
    ("metacell", 5): [0.80, 0.80, 0.77],
}


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.fixture
def table() -> pd.DataFrame:
    rows = [
        ("data", s, method, budget, model, "accuracy", value + step)
        for (method, budget), values in SCORES.items()
        for s, value in enumerate(values, start=1)
        for model, step in (("lr", 0.0), ("mlp", 0.03), ("knn1", -0.03))
    ]
    return pd.DataFrame(rows, columns=["file", "split", "method", "budget", "model", "metric", "value"])


def test_curves_are_means_and_bars_are_paired_intervals(table) -> None:
    curves, gaps = pl.distillation(table)
    lines = {line.get_label(): line for line in curves.get_lines()}
    np.testing.assert_allclose(lines["metacell"].get_ydata(), [0.71, 0.79])
    np.testing.assert_allclose(lines["random"].get_ydata(), [0.55, 0.71])
    np.testing.assert_allclose(lines["all training cells"].get_ydata(), 0.85)
    assert [t.get_text() for t in curves.get_xticklabels()] == ["1", "5"]
    d = np.array([-0.20, -0.10, -0.18])
    bar = gaps.containers[0]
    assert bar.lines[0].get_ydata()[0] == pytest.approx(d.mean())
    low, high = bar.lines[2][0].get_segments()[0][:, 1]
    assert (high - low) / 2 == pytest.approx(4.302653 * d.std(ddof=1) / np.sqrt(3), rel=1e-6)
    assert "minus metacell" in gaps.get_title(loc="left")


def test_one_cut_and_one_classifier(table) -> None:
    _, axes = plt.subplots(1, 2)
    one = table[table["split"] == 2]
    found = pl.distillation(one, model="mlp", baseline="random", ax=axes)
    assert found[0] is axes[0]
    assert axes[1].containers[0].lines[0].get_ydata()[0] == pytest.approx(0.10)
    assert not axes[1].containers[0].has_yerr
    assert "1 cut" in axes[0].get_title(loc="left")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "acuracy"}, "Did you mean 'accuracy'"),
        ({"model": "svm"}, "no classifier 'svm'"),
        ({"baseline": "metacells"}, "Did you mean 'metacell'"),
    ],
)
def test_what_is_not_in_the_table_is_named(table, options, message) -> None:
    with pytest.raises(SetupError, match=message):
        pl.distillation(table, **options)


def test_other_tables_are_refused(table) -> None:
    with pytest.raises(SetupError, match="no table of cuts"):
        pl.distillation(table[["method", "value"]])
    both = pd.concat([table, table.assign(file="other")])
    with pytest.raises(SetupError, match="2 data sets"):
        pl.distillation(both)
