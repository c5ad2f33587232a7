"""Several seeds of one clustering: agreement, recommendation, and what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from cellsmith._errors import SetupError
from cellsmith.benchmark import stability
from cellsmith.benchmark._stability import recommended
from cellsmith.metrics import ari

SHORT = {"max_epochs": 4, "accelerator": "cpu", "enable_progress_bar": False}


@pytest.fixture
def adata() -> AnnData:
    generator = np.random.default_rng(0)
    rates = np.exp(generator.normal(0.5, 1.0, (3, 60)))
    counts = generator.poisson(rates[np.repeat([0, 1, 2], 80)]).astype(np.float32)
    cells = AnnData(sparse.csr_matrix(counts))
    cells.obs["type"] = np.repeat(["a", "b", "c"], 80)
    return cells


@pytest.mark.parametrize("method", ["scsiameseclu", "scagc"])
def test_runs_are_compared_and_one_is_recommended(adata: AnnData, method: str) -> None:
    before = adata.copy()
    found = stability(adata, method=method, seeds=(3, 1, 2), train_kwargs=SHORT)
    assert list(found.runs.index) == list(found.clusters) == list(found.pairs) == [3, 1, 2]
    assert list(found.clusters.index) == list(adata.obs_names)
    assert found.runs["recommended"].sum() == 1
    assert found.runs["held_out"].isna().all() == (method == "scsiameseclu")  # SCAGC holds cells back by itself
    pair = ari(found.clusters[3].to_numpy(), found.clusters[1].to_numpy())
    assert found.pairs.loc[3, 1] == found.pairs.loc[1, 3] == pytest.approx(pair)
    assert found.runs.loc[3, "agreement"] == pytest.approx((pair + found.pairs.loc[3, 2]) / 2)
    assert found.runs["agreement"].idxmax() == found.runs.index[found.runs["recommended"]][0]
    assert found.runs.loc[1, "n_clusters"] == found.clusters[1].nunique()
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert not adata.uns


def test_cells_that_are_held_out_judge_and_get_clusters(adata: AnnData) -> None:
    found = stability(adata, seeds=(0, 1), held_out=0.2, train_kwargs=SHORT)
    assert found.runs["held_out"].between(0.1, 10).all()
    assert found.runs["held_out"].nunique() == 2
    assert found.clusters.notna().all().all()


def test_the_run_that_agrees_best_is_recommended() -> None:
    table = np.array([[1.0, 0.2, 0.3], [0.2, 1.0, 0.9], [0.3, 0.9, 1.0]])
    assert recommended(table) == 2
    assert recommended(np.ones((3, 3))) == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "scsiamese"}, "scsiameseclu"),
        ({"seeds": (1,)}, "two or more"),
        ({"seeds": (1, 1)}, "two or more"),
        ({"held_out": 1.0}, "share"),
    ],
)
def test_what_cannot_be_compared_is_refused(adata: AnnData, change: dict, words: str) -> None:
    with pytest.raises(SetupError, match=words):
        stability(adata, **change)
