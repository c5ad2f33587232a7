"""Adapters: what each annotator returns becomes scores, with its names and its meaning."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from cellsmith._errors import SetupError
from cellsmith.model.grit import sources

CELLS = pd.Index(["c1", "c2", "c3"])


def test_embeddings() -> None:
    cell, text = np.eye(3, 4), np.eye(4)[:3] * 7
    found = sources.from_embeddings(cell, text, classes=["A", "B", "C"])
    expected = np.exp(20.0) / (np.exp(20.0) + 2)
    np.testing.assert_allclose(np.diag(found.values), expected, rtol=1e-6)
    assert found.space == "prob"
    assert found.classes == ("A", "B", "C")


@pytest.mark.parametrize("pool", ["mean", "max", "logsumexp"])
def test_prompts_of_a_class_are_pooled(pool: str) -> None:
    rng = np.random.default_rng(0)
    cell, text = rng.normal(size=(5, 8)), rng.normal(size=(5, 8))
    classes = ["B", "A", "A", "B", "C"]
    found = sources.from_embeddings(cell, text, classes=classes, pool=pool, similarity_temperature=0.1)
    assert found.classes == ("B", "A", "C")
    cosine = (cell / np.linalg.norm(cell, axis=1, keepdims=True)) @ (
        text / np.linalg.norm(text, axis=1, keepdims=True)
    ).T
    groups = [cosine[:, [0, 3]], cosine[:, [1, 2]], cosine[:, [4]]]
    pooled = {
        "mean": [g.mean(1) for g in groups],
        "max": [g.max(1) for g in groups],
        "logsumexp": [0.1 * np.log(np.exp(g / 0.1).mean(1)) for g in groups],
    }[pool]
    z = np.exp(np.stack(pooled, 1) / 0.1)
    np.testing.assert_allclose(found.values, z / z.sum(axis=1, keepdims=True), rtol=1e-8)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"classes": ["A"]}, "one class a prompt"),
        ({"classes": ["A", "B"], "pool": "median"}, "Valid: 'mean'"),
        ({"classes": ["A", "B"], "similarity_temperature": 0.0}, "positive"),
    ],
)
def test_embeddings_that_are_refused(kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(SetupError, match=message):
        sources.from_embeddings(np.eye(2), np.eye(2), **kwargs)


def test_scanvi() -> None:
    frame = pd.DataFrame([[0.2, 0.8]] * 3, index=CELLS, columns=["T", "B"])
    asked = []
    model = SimpleNamespace(predict=lambda adata, soft: asked.append((adata, soft)) or frame)
    found = sources.from_scanvi(model, "cells")
    assert asked == [("cells", True)]
    assert found.classes == ("T", "B")
    assert list(found.obs_names) == list(CELLS)


def test_celltypist_rows_that_do_not_sum_to_one_stay_as_they_are() -> None:
    loose = pd.DataFrame([[0.01, 0.02], [0.9, 0.6], [0.5, 0.5]], index=CELLS, columns=["T", "B"])
    found = sources.from_celltypist(SimpleNamespace(probability_matrix=loose))
    assert found.space == "ovr"
    np.testing.assert_array_equal(found.values, loose)
    tight = loose.div(loose.sum(axis=1), axis=0)
    assert sources.from_celltypist(SimpleNamespace(probability_matrix=tight)).space == "prob"
    decided = sources.from_celltypist(SimpleNamespace(decision_matrix=loose))
    np.testing.assert_allclose(decided.values, expit(loose.to_numpy()))
    with pytest.raises(SetupError, match="probability_matrix"):
        sources.from_celltypist(object())


def test_popv_votes() -> None:
    frame = pd.DataFrame(
        {"m1": ["T", "B", None], "m2": ["T", "T", "unknown"], "m3": ["B", "unassigned", np.nan]}, index=CELLS
    )
    found = sources.from_popv(frame, ["m1", "m2", "m3"])
    assert found.classes == ("B", "T")
    np.testing.assert_allclose(found.values[:2], [[1 / 3, 2 / 3], [0.5, 0.5]])
    assert np.isnan(found.values[2]).all()
    same = sources.from_popv(SimpleNamespace(obs=frame), ["m1", "m2", "m3"])
    np.testing.assert_array_equal(same.values, found.values)
    with pytest.raises(SetupError, match="'m4' is not a column"):
        sources.from_popv(frame, ["m4"])


def test_singler() -> None:
    frame = pd.DataFrame(
        {"scores.B.cell": [0.1, 0.2, 0.3], "scores.T": [0.5, -0.1, 0.2], "labels": ["T"] * 3}, index=CELLS
    )
    found = sources.from_singler(frame)
    assert found.classes == ("B.cell", "T")
    assert found.space == "similarity"
    with pytest.raises(SetupError, match="scores"):
        sources.from_singler(frame[["labels"]])


def test_hard_labels() -> None:
    found = sources.from_labels(pd.Series(["T", None, "B"], index=CELLS))
    assert found.classes == ("B", "T")
    np.testing.assert_array_equal(found.values, [[0, 1], [np.nan, np.nan], [1, 0]])
    integers = sources.from_labels(pd.Series([3, 1, 3], index=CELLS))
    assert integers.classes == ("1", "3")
    with pytest.raises(SetupError, match="all of them missing"):
        sources.from_labels(pd.Series([None, None], index=CELLS[:2], dtype=object))


def test_scores_check_themselves() -> None:
    with pytest.raises(SetupError, match="1 of them distinct"):
        sources.Scores(np.eye(2), ("A", "A"))
    with pytest.raises(SetupError, match="Did you mean 'logit'"):
        sources.Scores(np.eye(2), ("A", "B"), "logits")
    with pytest.raises(SetupError, match="3 cell names for 2 rows"):
        sources.Scores(np.eye(2), ("A", "B"), "prob", CELLS.to_numpy(dtype=object))


def test_ontology_is_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "cl.obo"
    file.write_text("format-version: 1.2\ndata-version: 7\n\n[Term]\nid: CL:1\nname: cell\n", encoding="utf-8")
    found = sources.read_ontology(file)
    assert found.version == "7"
    assert "CL:1" in found
    with pytest.raises(SetupError, match="no file"):
        sources.read_ontology(tmp_path / "nothing.obo")
    file.write_bytes(b"\xff\xfe\x00garbage")
    with pytest.raises(SetupError, match="is not text"):
        sources.read_ontology(file)
