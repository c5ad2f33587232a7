"""The privacy benchmark on toys: rows, bars, page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cellsmith import benchmark
from cellsmith.benchmark._privacy.arms import ARMS, FREE, PICKED
from cellsmith.benchmark._privacy.bars import BARS, DEFAULT, EPSILONS, MAIN, ONE_SHOT, Results
from cellsmith.benchmark._privacy.cases import Case
from cellsmith.benchmark._privacy.compare import COLUMNS, rare_recalls, run_arm
from cellsmith.benchmark._privacy.report import report
from cellsmith.datasets import toy_counts


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    cells = toy_counts(150, 80, n_types=3, rng=0)
    return benchmark.privacy(
        cells,
        labels_key="cell_type",
        epsilons=(0.2, 500.0),
        arms=("dp_pca 16", "dp_pca 32", "random projection 32", "PCA 50, all genes"),
    )


def test_rows_hold_every_arm_and_metric(rows: pd.DataFrame) -> None:
    assert list(rows.columns) == list(COLUMNS)
    assert set(rows["metric"]) == {"ari", "nmi", "macro_f1", "rare_f1", "rare_recall", "seconds"}
    counts = rows[rows["metric"] == "ari"].groupby("arm").size()
    assert counts["dp_pca 16"] == 2
    assert counts["PCA 50, all genes"] == 1


def test_a_large_budget_gives_the_types_back(rows: pd.DataFrame) -> None:
    ari = rows[rows["metric"] == "ari"].set_index(["arm", "epsilon"])["value"]
    assert ari["dp_pca 16", 500.0] > ari["dp_pca 16", 0.2]
    assert ari["dp_pca 16", 500.0] > 0.8


def made_up(shift: float) -> pd.DataFrame:
    out = []
    for case in MAIN:
        for seed in (0, 1):
            for arm in ARMS:
                for epsilon in (np.inf,) if arm in FREE else EPSILONS:
                    value = 0.8 if not np.isfinite(epsilon) else 0.7 + 0.01 * epsilon + shift * (arm == DEFAULT)
                    value = 0.3 if arm in FREE[:2] or "whole" in arm else value
                    for metric in ("ari", "macro_f1", "rare_recall", "recall of a"):
                        head = {"case": case, "seed": seed, "arm": arm, "epsilon": epsilon}
                        out.append({**head, "metric": metric, "value": value})
    return pd.DataFrame(out, columns=list(COLUMNS))


@pytest.mark.parametrize(("shift", "met"), [(0.0, True), (-0.1, False)])
def test_bars_can_be_met_and_missed(shift: float, *, met: bool) -> None:
    verdicts = {bar.check.split()[0]: bar.measure(Results(made_up(shift))) for bar in BARS if "B3" in bar.check}
    assert all(v is not None and v[1] == met for v in verdicts.values())


def test_what_was_not_run_is_no_verdict() -> None:
    assert all(bar.measure(Results(pd.DataFrame(columns=list(COLUMNS)))) is None for bar in BARS)


def test_page_is_written_from_the_table(tmp_path: Path) -> None:
    made_up(0.0).to_csv(tmp_path / "privacy.csv", index=False)
    text = report(tmp_path).read_text(encoding="utf-8")
    assert "B1 no privacy against PCA 50" in text
    assert "### pbmc4k_10x/2000" in text
    assert ONE_SHOT in text
    assert "| pbmc4k_10x/2000 | a | 0.74 | 0.78 | 0.74 | 0.78 | 0.80 |" in text


def test_recall_of_rare_types_alone() -> None:
    truth = np.repeat(["large", "rare", "tiny"], [960, 20, 5])
    found = np.repeat([0, 1, 2], [970, 10, 5])
    assert rare_recalls(truth, found) == {"rare": 0.5}
    assert rare_recalls(truth, np.zeros(985, dtype=int)) == {"rare": 0.0}


def test_published_scheme_is_shown_at_its_last_step_and_as_its_authors_would(monkeypatch: pytest.MonkeyPatch) -> None:
    from cellsmith.model.dpdcan import published

    monkeypatch.setattr(published, "EPOCHS", {"pretrain": 1, "cluster": 1})
    cells = toy_counts(60, 50, n_types=3, rng=0)
    found = {r["arm"]: r["value"] for r in run_arm(Case("x", 0, cells, "all"), "published, no guarantee", 8.0)}
    assert list(found) == ["published, no guarantee", PICKED]


def test_bought_centres_cluster_by_themselves() -> None:
    cells = toy_counts(150, 80, n_types=3, rng=0)
    rows = run_arm(Case("x", 0, cells, "all"), "DPDCAN centres", 500.0)
    assert {r["metric"]: r["value"] for r in rows}["ari"] > 0.3
