"""How many topics: the rule, and the table on data whose number is known."""

from __future__ import annotations

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from cellsmith import tl
from cellsmith._errors import DataWarning, SetupError
from cellsmith.model import SCE2TM
from cellsmith.tl import _sce2tm_choose as module
from cellsmith.tl._sce2tm_choose import _agreement, _split, propose_n_topics

QUICK = {"accelerator": "cpu", "enable_progress_bar": False, "early_stopping": False}


def curve(**columns: list[float]) -> dict[str, np.ndarray]:
    table = {
        "n_topics": [10, 20, 30, 50],
        "perplexity": [900.0, 852.0, 850.0, 849.0],
        "perplexity_error": [5.0, 2.0, 2.0, 4.0],
        "stability": [0.9, 0.8, 0.7, 0.5],
        "redundancy": [0.0, 0.1, 0.1, 0.3],
    }
    return {name: np.array(values) for name, values in (table | columns).items()}


def test_smallest_number_within_one_error_of_the_best_perplexity() -> None:
    assert propose_n_topics(curve()) == (20, True)  # 852 <= 849 + 4
    assert propose_n_topics(curve(perplexity_error=[5.0, 2.0, 2.0, 2.0])) == (30, True)


def test_redundant_or_unstable_numbers_are_passed_over() -> None:
    assert propose_n_topics(curve(redundancy=[0.0, 0.25, 0.1, 0.3])) == (30, True)
    assert propose_n_topics(curve(stability=[0.9, 0.59, 0.6, 0.5])) == (30, True)


def test_where_no_number_keeps_all_bounds_the_most_stable_is_proposed() -> None:
    assert propose_n_topics(curve(redundancy=[0.0, 0.3, 0.3, 0.3])) == (10, False)


def planted(n_cells: int = 300, n_blocks: int = 12, width: int = 10) -> AnnData:
    """Negative binomial counts of topics that own disjoint blocks of genes."""
    generator = np.random.default_rng(0)
    theta = generator.dirichlet(np.full(n_blocks, 0.15), n_cells)
    rate = generator.gamma(2.0, 1.0, n_blocks * width)
    profiles = np.kron(np.eye(n_blocks), np.ones(width)) * rate
    profiles /= profiles.sum(axis=1, keepdims=True)
    rho = 0.7 * theta @ profiles + 0.3 * rate / rate.sum()
    mean = 2000 * np.exp(0.3 * generator.standard_normal((n_cells, 1))) * rho
    return AnnData(generator.poisson(generator.gamma(5, mean / 5)).astype(np.float32))


@pytest.fixture(scope="module")
def chosen() -> AnnData:
    adata = planted()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tl.sce2tm_choose_n_topics(
            adata,
            n_topics=(12, 3),
            n_seeds=2,
            model_kwargs={"n_hidden": 32, "n_embedding": 16},
            train_kwargs={
                **QUICK,
                "batch_size": 64,
                "max_epochs": {"topics": 40},
                "plan_kwargs": {"lr": 3e-3, "clip": 5.0},
            },
        )
    return adata


def test_planted_number_predicts_held_out_cells_better_than_fewer(chosen: AnnData) -> None:
    block = chosen.uns["sce2tm_n_topics"]
    summary, runs = block["summary"], block["runs"]
    assert summary["n_topics"].tolist() == [3, 12]
    assert runs["n_topics"].tolist() == [3, 3, 12, 12]
    assert summary["perplexity"][1] < 0.95 * summary["perplexity"][0]


def test_table_is_the_runs_summed_up_and_nothing_else_is_written(chosen: AnnData, tmp_path) -> None:
    block = chosen.uns["sce2tm_n_topics"]
    summary, runs = block["summary"], block["runs"]
    for name in ("perplexity", "npmi", "diversity", "redundancy"):
        np.testing.assert_allclose(summary[name], runs[name].reshape(2, 2).mean(axis=1))
    errors = runs["perplexity"].reshape(2, 2).std(axis=1, ddof=1) / np.sqrt(2)
    np.testing.assert_allclose(summary["perplexity_error"], errors)
    assert ((summary["stability"] > 0) & (summary["stability"] <= 1)).all()
    assert (block["proposal"], block["reached"]) == propose_n_topics(summary)
    assert block["params"]["held_out"] == 30
    assert list(chosen.uns) == ["sce2tm_n_topics"]
    assert not list(chosen.obs)
    chosen.write_h5ad(tmp_path / "curve.h5ad")
    stored = anndata.read_h5ad(tmp_path / "curve.h5ad").uns["sce2tm_n_topics"]
    np.testing.assert_array_equal(stored["summary"]["stability"], summary["stability"])


def test_a_tenth_of_every_batch_is_held_out() -> None:
    adata = planted(100)
    adata.obs["batch"] = ["a"] * 70 + ["b"] * 25 + ["rare"] * 5
    fitted, held_out = _split(adata, "batch", np.random.default_rng(0))
    assert held_out.obs["batch"].value_counts().to_dict() == {"a": 7, "b": 2}
    assert sorted([*fitted.obs_names, *held_out.obs_names]) == sorted(adata.obs_names)


def test_flat_loadings_do_not_agree_by_being_flat() -> None:
    generator = np.random.default_rng(0)
    genes = [f"g{j}" for j in range(60)]
    first, second = (pd.DataFrame(1 / 6 + 1e-3 * generator.standard_normal((60, 6)), index=genes) for _ in range(2))
    assert _agreement(first, second) < 0.5
    assert _agreement(first, first[[3, 1, 0, 2, 5, 4]]) == pytest.approx(1.0)
    assert _agreement(first, first[::-1][:-5]) == pytest.approx(1.0)  # other genes, other order


def test_a_choice_that_keeps_no_bound_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fits are replaced: what is tested is what the door says about their scores."""
    loadings = pd.DataFrame(np.eye(20), index=[str(j) for j in range(20)])

    def fit(*args: object) -> tuple[pd.DataFrame, dict[str, float]]:
        return loadings, {"perplexity": 5.0, "npmi": 0.1, "diversity": 0.5, "redundancy": 0.9}

    monkeypatch.setattr(module, "_fit", fit)
    adata = planted(100)
    with pytest.warns(DataWarning, match=r"None of \[4, 8\] has .* Proposed is the most stable number, 4\."):
        copied = tl.sce2tm_choose_n_topics(adata, n_topics=(4, 8), n_seeds=2, copy=True)
    assert not adata.uns
    assert copied.uns["sce2tm_n_topics"]["reached"] is False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_topics": (10, 10)}, "expected distinct numbers"),
        ({"n_topics": (1, 5)}, "expected distinct numbers from 2"),
        ({"n_seeds": 1}, "expected at least 2"),
        ({"model_kwargs": {"n_topics": 3}}, r"Type n_topics=\(\.\.\.\)"),
        ({"batch_key": "none"}, "batch_key='none' is not a column"),
        ({"layer": "none"}, "layer='none' is not in .layers"),
        ({"key_added": "a/b"}, "not storable"),
    ],
)
def test_refusals(options: dict, message: str) -> None:
    with pytest.raises(SetupError, match=message):
        tl.sce2tm_choose_n_topics(planted(100), **options)


def test_a_number_that_is_too_large_is_refused_before_the_others_are_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(*args: object, **options: object) -> None:
        raise AssertionError("a model was trained")

    monkeypatch.setattr(SCE2TM, "train", trained)
    with pytest.raises(SetupError, match="n_topics=80; expected a whole number"):
        tl.sce2tm_choose_n_topics(planted(100), n_topics=(5, 80))
