"""Over-smoothing is warned about, and protection holds it back."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData

from cellsmith._errors import OverSmoothingWarning
from cellsmith.model import GRIT
from cellsmith.model.grit.summary import smoothing_guard

Task = Callable[[int], tuple[np.ndarray, np.ndarray]]


def real(pbmc: SimpleNamespace, p: np.ndarray) -> AnnData:
    adata = AnnData(obsm={"scores": p, "X_pca": pbmc.pcs}, uns={"scores": {"classes": pbmc.names}})
    adata.obsp["g"] = pbmc.weights
    return adata


@pytest.mark.parametrize("laplacian", ["sym", "comb"])
def test_every_run_that_loses_a_class_warns(
    laplacian: str, pbmc: SimpleNamespace, easy: Task, fit: Callable[..., GRIT]
) -> None:
    warned = 0
    for seed in range(2):
        adata = real(pbmc, easy(seed)[0])
        for weight in (5.0, 50.0, 1000.0):
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                model = fit(adata, setup={"neighbors_key": "g"}, laplacian=laplacian, smoothness_weight=weight)
            told = [str(w.message) for w in said if issubclass(w.category, OverSmoothingWarning)]
            lost, effective = model.summary_["lost_classes"], model.summary_["effective_classes"]
            gone = [c for c in pbmc.names if c in set(model.results().obs["{k}_raw"]) - set(model.predict())]
            assert list(lost) == gone
            assert bool(told) == (len(lost) > 0 or effective["refined"] < 0.6 * effective["raw"])
            assert all(name in told[0] for name in lost[:8])
            warned += bool(told)
    assert warned >= 2


def test_the_warning_counts_as_people_do() -> None:
    codes = np.array([0, 1, 2, 3])
    one, two = (smoothing_guard(codes, codes, lost)[1] for lost in (["T"], ["T", "B"]))
    assert "1 class no longer has any cell (T)" in one
    assert "2 classes no longer have any cell (T, B)" in two


def test_collapse_without_a_lost_class_warns(cells: Callable[..., AnnData], fit: Callable[..., GRIT]) -> None:
    """All cells drift to one class, and an isolated cell of each other class stays."""
    adata = cells()
    mixed = np.random.default_rng(0).permuted(np.tile([0.6, 0.2, 0.1, 0.1], (160, 1)), axis=1)
    mixed[:80] = [0.97, 0.01, 0.01, 0.01]
    mixed[157:] = np.eye(4)[1:]
    adata.obsm["scores"] = mixed
    adata.obsp["g"] = sp.block_diag([np.ones((157, 157)), np.zeros((3, 3))]).tocsr()
    with pytest.warns(OverSmoothingWarning, match="effective number of classes among the labels fell"):
        model = fit(adata, setup={"neighbors_key": "g"}, laplacian="rw", smoothness_weight=500.0)
    assert not len(model.summary_["lost_classes"])


def test_protect_keeps_a_small_class(pbmc: SimpleNamespace, easy: Task, fit: Callable[..., GRIT]) -> None:
    adata, kept = real(pbmc, easy(0)[0]), []
    for protect in (None, 0.5):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = fit(adata, setup={"neighbors_key": "g"}, smoothness_weight=50.0, protect=protect)
        flow = model.summary_["flow"]
        kept.append(np.diag(flow) / np.maximum(flow.sum(axis=1), 1))
        assert model.summary_["solve"]["protect_rounds"] == (0 if protect is None else 3)
    assert kept[1].min() >= kept[0].min()
    assert kept[1].mean() > kept[0].mean() + 0.1
