"""The report on a mask: margins, overlaps, and the ranking of stored embeddings."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import cellsmith
from cellsmith import metrics
from cellsmith._errors import SetupError


def masked(n: int = 200, d: int = 100, *, spread: float = 1.0, seed: int = 0) -> AnnData:
    generator = np.random.default_rng(seed)
    u = generator.normal(size=(n, 2)) @ generator.normal(size=(2, d))
    eta = spread * (generator.normal(size=(n, 1)) + generator.normal(size=d))
    return AnnData(
        np.where(generator.random((n, d)) < 1 / (1 + np.exp(-eta)), u + generator.normal(size=(n, d)), np.nan).astype(
            np.float32
        )
    )


def test_subspace_error_is_the_sine_of_the_angles() -> None:
    angle = 0.3
    x = np.eye(4)[:, :2]
    turned = np.column_stack([np.cos(angle) * x[:, 0] + np.sin(angle) * np.eye(4)[:, 3], 5 * x[:, 1] + x[:, 0]])
    turned[:, 1] = x[:, 1]
    assert metrics.subspace_error(x, turned) == pytest.approx(np.sin(angle) / np.sqrt(2))
    assert metrics.subspace_error(x, 7 * x @ np.array([[1.0, 2.0], [0.0, 1.0]])) < 1e-12
    with pytest.raises(SetupError, match="expected the same"):
        metrics.subspace_error(x, x[:, :1])


def test_uneven_masks_are_told_from_even_ones() -> None:
    uneven, even = (metrics.missingness_report(masked(spread=s), mask="nan") for s in (1.0, 0.0))
    assert uneven["row_z"] > 10
    assert uneven["col_z"] > 10
    assert uneven["model_share"] > 0.15
    assert abs(even["row_z"]) < 3
    assert even["model_share"] < 0.05
    assert any("observed evenly" in note for note in even.notes)
    known = ~np.isnan(masked().X)
    np.testing.assert_allclose(uneven.cells["observed_rate"], known.mean(axis=1))
    np.testing.assert_allclose(uneven.features["observed_rate"], known.mean(axis=0))
    np.testing.assert_allclose(uneven.features["mean"], np.nanmean(masked().X, axis=0), rtol=1e-4, atol=1e-5)
    shared = known.astype(float) @ known.T
    np.fill_diagonal(shared, np.nan)
    np.testing.assert_allclose(uneven.cells["overlap"], np.nanmean(shared, axis=1), rtol=0.2)
    assert uneven["below_min"] == (uneven.cells["overlap"] < 10).sum()


def test_what_is_wrong_with_the_data_is_said() -> None:
    adata = masked()
    adata.X[0] = np.nan
    adata.X[:, 0] = np.nan
    report = metrics.missingness_report(adata, mask="nan")
    assert report["empty_cells"] == 1
    assert report["empty_features"] == 1
    assert np.isnan(report.cells["overlap"].iloc[0])
    parts = masked(60, 40, spread=0.0)
    parts.X[:30, 20:] = np.nan
    parts.X[30:, :20] = np.nan
    assert metrics.missingness_report(parts, mask="nan")["groups"] == 2
    follows = masked(200, 100, spread=0.0)
    follows.X[np.random.default_rng(0).random((200, 100)) > np.linspace(0.1, 0.9, 100)] = np.nan
    follows.X += np.linspace(0, 8, 100)
    assert any("higher means" in note for note in metrics.missingness_report(follows, mask="nan").notes)
    complete = metrics.missingness_report(AnnData(np.random.default_rng(0).normal(size=(20, 5))), mask=None)
    assert complete.notes[0].startswith("no entry is missing")


def test_stored_results_are_read_and_nothing_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    adata = masked()
    cellsmith.tl.bcpca(adata, n_latent=2, min_overlap=0)
    fresh = metrics.missingness_report(adata, mask="nan")
    monkeypatch.setattr("cellsmith.math.gram.fit_logistic", lambda *a, **k: pytest.fail("fitted"))
    report = metrics.missingness_report(adata, mask="nan", key="bcpca")
    assert report["row_z"] == pytest.approx(fresh["row_z"])
    assert report["model_share"] == pytest.approx(fresh["model_share"])
    np.testing.assert_allclose(report.cells["overlap"], fresh.cells["overlap"], rtol=1e-5)
    assert report.embeddings["heldout_error"].is_monotonic_increasing
    assert set(report.embeddings["name"]) == {"bc", "mean", "pairwise"}
    stored = adata.uns["bcpca"]["baselines"]
    by_name = dict(zip(stored["name"], stored["heldout_error"], strict=True))
    assert report.embeddings["heldout_error"].tolist() == sorted(by_name.values())


def test_report_is_frozen_printable_and_storable() -> None:
    report = metrics.missingness_report(masked(), mask="nan")
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.notes = ()
    assert "200 x 100 entries" in repr(report)
    assert "row_z" in repr(report)
    block = report.to_uns()
    assert isinstance(block["overlap"]["features"], np.ndarray)
    assert not [v for v in block.values() if isinstance(v, pd.DataFrame)]
    assert isinstance(report, metrics.MissingnessReport)


def test_refusals() -> None:
    adata = masked(20, 10)
    for kwargs, text in (
        ({"mask": "nam"}, "Did you mean 'nan'"),
        ({"mask": "nan", "key": "bcpca"}, "does not exist"),
        ({"mask": np.zeros((20, 10))}, "No entry is observed"),
        ({"mask": "nan", "layer": "x"}, "layer='x'"),
        ({"mask": None}, "expected a finite number"),
    ):
        with pytest.raises(SetupError, match=text):
            metrics.missingness_report(adata, **kwargs)
