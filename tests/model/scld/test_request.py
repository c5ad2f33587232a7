"""From what a user types to codes, one row a cell."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cellsmith._errors import DataWarning, SetupError
from cellsmith.model import SCLD
from cellsmith.model.scld.request import Covariates, TrainingRows, request_composition, request_rows, resolve_modes

COVARIATES = Covariates(
    ("batch", "type"), (np.array(["x", "y"]), np.array(["A", "B", "C"])), ("age",), batch=0, labels=1
)
CODES = np.array([[0, 0]] * 30 + [[0, 1]] * 20 + [[1, 0]] * 40 + [[1, 1]] * 3 + [[1, 2]] * 5 + [[0, 3]] * 2)
ROWS = TrainingRows(CODES, np.arange(100.0)[:, None], np.zeros(100), np.zeros(100))


def compose(n: int, condition: Any = None, seed: int = 0) -> Any:
    generator = np.random.default_rng(seed)
    return request_composition(COVARIATES, ROWS, n_cells=n, condition=condition, generator=generator)


def resolve(request: Any, **kwargs: Any) -> Any:
    given = {
        "guidance_mode": "auto",
        "guidance": 1.0,
        "on_small": "raise",
        "min_cells": 10,
        "asked": COVARIATES.names,
        **kwargs,
    }
    return resolve_modes(request, COVARIATES, ROWS, **given)


@given(n=st.integers(1, 400), seed=st.integers(0, 20))
def test_proportions_are_within_one_cell_of_the_training_ones(n: int, seed: int) -> None:
    request = compose(n, seed=seed)
    assert request.n == n
    kinds, sizes = np.unique(CODES, axis=0, return_counts=True)
    for kind, size in zip(kinds, sizes, strict=True):
        got = (request.codes == kind).all(axis=1).sum()
        assert abs(got - n * size / 100) < 1


def test_continuous_covariates_come_from_rows_of_the_same_categories() -> None:
    request = compose(200)
    lenders = request.continuous[:, 0].astype(int)
    np.testing.assert_array_equal(CODES[lenders], request.codes)
    assert request.continuous_known.all()


def test_a_fixed_covariate_leaves_the_others_to_their_training_distribution() -> None:
    request = compose(70, {"type": "A"})
    assert (request.codes[:, 1] == 0).all()
    assert (request.codes[:, 0] == 0).sum() == 30
    fixed = compose(5, {"age": 7})
    assert (fixed.continuous == 7.0).all()
    hidden = compose(5, {"type": None})
    assert (hidden.codes[:, 1] == 3).all()


def test_empty_condition_hides_everything() -> None:
    request = compose(4, {})
    assert (request.codes == [2, 3]).all()
    assert not request.continuous_known.any()


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ({"typ": "A"}, "'typ', which is not a registered covariate.*Did you mean 'type'"),
        ({"type": "a"}, "type='a' was not among the training cells.*'A'"),
        ({"type": {"A": 0.5, "B": 0.6}}, "sum to 1"),
        ({"type": {"A": 1.5, "B": -0.5}}, "positive"),
        ({"type": ["A", "B", "C"]}, "expected one category. For a mixture give weights.*conditions=DataFrame"),
        ("A", r"condition='A'; expected a mapping .* condition=\{'batch': 'A'\}"),
    ],
)
def test_unknown_columns_and_categories_name_the_nearest(condition: Any, words: str) -> None:
    with pytest.raises(SetupError, match=words):
        compose(5, condition)


@pytest.mark.parametrize(
    ("categories", "value", "words"),
    [
        (np.array([0, 1]), "1", r"batch='1' was not .*Those are integers: type 1, not '1'\. Valid: 0, 1\."),
        (np.array(["0", "1"]), 1, r"batch=1 was not .*Those are text: type '1', not 1\. Valid: '0', '1'\."),
        (np.array([0, 1]), 3, r"batch=3 was not among the training cells\. Valid: 0, 1\."),
    ],
)
def test_a_category_of_another_type_says_what_to_type(categories: Any, value: Any, words: str) -> None:
    with pytest.raises(SetupError, match=words):
        replace(COVARIATES, categories=(categories, COVARIATES.categories[1])).code("batch", value)


@pytest.mark.parametrize("n", [0, -5, 2.5, "5", float("nan")])
def test_the_number_of_cells_is_a_whole_one(n: Any) -> None:
    with pytest.raises(SetupError, match="expected a whole number, at least 1"):
        compose(n)
    assert compose(5.0).n == 5  # type: ignore[arg-type]


@pytest.mark.parametrize("guidance", ["high", float("nan"), {"type": float("inf")}])
def test_guidance_is_finite(guidance: Any) -> None:
    with pytest.raises(SetupError, match="expected a finite number"):
        resolve(compose(5), guidance=guidance)


def test_weights_become_a_mixture_and_the_heaviest_stands_in() -> None:
    request = compose(5, {"type": {"A": 0.3, "B": 0.7}})
    np.testing.assert_allclose(request.mixes[1], [0.3, 0.7, 0, 0])
    assert (request.codes[:, 1] == 1).all()


def test_unseen_combination_is_noted_and_guided_additively() -> None:
    request = resolve(compose(6, {"batch": "x", "type": "C"}), min_cells=5)
    assert request.additive.all()
    assert "No training cell combines batch='x', type='C'" in request.notes[0]


def test_rare_combination_is_additive_and_frequent_ones_joint() -> None:
    table = pd.DataFrame({"batch": ["x", "y"], "type": ["B", "B"], "age": [1.0, 2.0]})
    request = resolve(request_rows(COVARIATES, table))
    assert request.additive.tolist() == [False, True]
    assert "fewer than 10 training cells" in request.notes[0]
    assert not resolve(request_rows(COVARIATES, table), guidance_mode="joint").additive.any()
    assert resolve(request_rows(COVARIATES, table), guidance_mode="additive").additive.all()


def test_small_category_raises_with_its_count_or_falls_back() -> None:
    with pytest.raises(SetupError, match="type='C' has 5 training cells; at least min_cells=10"):
        resolve(compose(5, {"type": "C"}))
    request = resolve(compose(5, {"type": "C"}), on_small="neighbors")
    assert request.fallback.all()
    assert not resolve(compose(100), asked=()).fallback.any()
    assert not resolve(compose(5, {"batch": "x"}), asked=("batch",)).fallback.any(), "a free covariate is not refused"
    assert not resolve(compose(5, {"type": "C"}), min_cells=5).fallback.any()


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"batch": ["x"], "age": [1.0]}, "lacks the registered covariate 'type'"),
        ({"batch": ["x"], "type": ["A"], "age": [1.0], "agee": [1]}, "'agee', which is not registered"),
        ({"batch": ["z"], "type": ["A"], "age": [1.0]}, "batch='z' was not among"),
        ({"batch": ["x"], "type": ["A"], "age": [np.nan]}, "not finite"),
        ({"batch": [], "type": [], "age": []}, "no row"),
    ],
)
def test_bad_tables_are_refused(table: Any, words: str) -> None:
    with pytest.raises(SetupError, match=words):
        request_rows(COVARIATES, pd.DataFrame(table))


def test_rows_of_a_table_keep_their_order_and_gaps_mean_unknown() -> None:
    table = pd.DataFrame({"age": [3.0, 1.0], "type": pd.Categorical(["B", None]), "batch": ["y", "x"]})
    request = request_rows(COVARIATES, table)
    assert request.codes.tolist() == [[1, 1], [0, 3]]
    assert request.continuous.ravel().tolist() == [3.0, 1.0]


def test_two_ways_to_say_who_are_one_too_many(model: SCLD) -> None:
    table = model.adata.obs[["cell_type", "batch"]][:4]
    with pytest.raises(SetupError, match="condition and conditions"):
        model.generate(4, condition={}, conditions=table)
    with pytest.raises(SetupError, match="conditions has 4 rows"):
        model.generate(5, conditions=table)
    with pytest.raises(SetupError, match="expected a DataFrame"):
        model.generate(conditions={"cell_type": ["type_0"]})
    with pytest.raises(SetupError, match=r"like\.obs lacks 'batch'"):
        model.generate(like=type(model.adata)(obs=table[["cell_type"]]))


def test_fallback_is_flagged_and_counted(model: SCLD) -> None:
    with pytest.raises(SetupError, match="on_small='neighbors'"):
        model.generate(20, condition={"cell_type": "type_2"}, min_cells=150)
    new = model.generate(20, condition={"cell_type": "type_2"}, min_cells=150, on_small="neighbors")
    assert new.obs["scld_fallback"].all()
    assert new.uns["scld"]["fallback"]["n_cells"] == 20
    # Each is a real cell of the category plus a tenth of the spread of the population.
    real = model.training_states()
    mine = real["w"][real["codes"][:, 1] == 2]
    z, log_total = new.obsm["X_scld"], np.log(new.obs["scld_library"].to_numpy())
    w = model.module.to_state(torch.from_numpy(z), torch.from_numpy(log_total).float())
    assert float(torch.cdist(w, mine).min(dim=1).values.max()) < 0.6


def test_unseen_combination_is_generated_with_a_warning(model: SCLD) -> None:
    with pytest.warns(DataWarning, match="guided additively"):
        new = model.generate(6, condition={"cell_type": "type_0", "batch": "batch_0"}, min_cells=70)
    assert new.uns["scld"]["params"]["n_additive"] == 6
