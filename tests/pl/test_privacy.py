"""The picture of what a budget costs."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

mpl.use("Agg")

from cellsmith import pl
from cellsmith._errors import SetupError


def test_curve_draws_arms_between_lines() -> None:
    rows = [("a", e, s, "ari", 0.1 * e + 0.01 * s) for e in (1.0, 2.0, 4.0) for s in (0, 1)]
    rows += [("top", np.inf, 0, "ari", 0.9), ("low", np.inf, 0, "ari", 0.1)]
    table = pd.DataFrame(rows, columns=["arm", "epsilon", "seed", "metric", "value"])
    axes = pl.privacy_curve(table, ceiling="top", floor="low")
    lines = {line.get_label(): line for line in axes.lines}
    assert set(lines) == {"a", "top", "low"}
    np.testing.assert_allclose(lines["a"].get_ydata(), [0.105, 0.205, 0.405])
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1", "2", "4"]
    with pytest.raises(SetupError, match="metric='nmi'"):
        pl.privacy_curve(table, metric="nmi")
