"""What is handed back: depth, integers, soft labels."""

from __future__ import annotations

import numpy as np
import pytest

from cellsmith._rng import Streams
from cellsmith.model import SCDD
from cellsmith.model.scdd import delivery
from cellsmith.model.scdd.profiles import Cells


def test_depth_follows_the_cells_behind_a_profile(model: SCDD) -> None:
    totals = np.asarray(model.adata.X.sum(axis=1)).ravel()
    labels = model.adata.obs["cell_type"].cat.codes.to_numpy()
    made = {
        how: model.distill(1, max_steps=0, library_size=how, max_library=50_000) for how in ("deep", "sum", "median")
    }
    sums, medians = ([f(totals[labels == k]) for k in range(3)] for f in (np.sum, np.median))
    np.testing.assert_allclose(made["sum"].obs["scdd_library"], sums)
    np.testing.assert_allclose(made["deep"].obs["scdd_library"], np.minimum(sums, 50_000))
    np.testing.assert_allclose(made["median"].obs["scdd_library"], medians)
    given = model.distill(1, max_steps=0, library_size=[10.0, 200.0, 3000.0])
    assert given.obs["scdd_library"].tolist() == [10.0, 200.0, 3000.0]
    for profiles in (*made.values(), given):
        expected = profiles.layers["scdd_expected"].sum(axis=1)
        np.testing.assert_allclose(np.asarray(profiles.X.sum(axis=1)).ravel(), np.rint(expected), atol=1)


@pytest.mark.parametrize("mode", ["multinomial", "nb"])
def test_drawn_counts_repeat_and_have_their_mean(model: SCDD, mode: str) -> None:
    first, second = (model.distill(1, max_steps=0, count_mode=mode, seed=0) for _ in range(2))
    assert (first.X != second.X).nnz == 0
    expected = first.layers["scdd_expected"]
    assert np.abs(first.X.toarray() - expected).max() >= 1
    assert np.corrcoef(first.X.toarray().ravel(), expected.ravel())[0, 1] > 0.7


def test_multinomial_keeps_the_total() -> None:
    rho = np.array([[0.2, 0.3, 0.1]])
    x = delivery.draw_counts(
        rho, np.array([1000.0]), mode="multinomial", theta=np.ones(3), generator=np.random.default_rng(0)
    )
    assert x.sum() == 600


def cells_with_planted_labels() -> Cells:
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 30)
    counts = generator.poisson(np.where(labels[:, None] == np.arange(40) % 2, 8.0, 1.0))
    from scipy import sparse

    return Cells(sparse.csr_matrix(counts.astype(float)), labels, 0 * labels, np.zeros((60, 2), np.float32), labels)


def test_teacher_never_saw_the_label_of_the_cell() -> None:
    cells = cells_with_planted_labels()
    honest = delivery.teacher(cells, n_classes=2, scale=1e3, streams=Streams(0))
    np.testing.assert_allclose(honest.sum(axis=1), 1.0)
    assert honest[np.arange(60), cells.labels].mean() > 0.9
    # One mislabelled cell: a teacher that had seen it would believe its label.
    wrong = cells.labels.copy()
    wrong[3] = 1
    lied = delivery.teacher(
        Cells(cells.counts, wrong, cells.batch, cells.mean, cells.positions), n_classes=2, scale=1e3, streams=Streams(0)
    )
    assert lied[3, 1] < 0.2


def test_teacher_copes_with_a_class_of_one_cell() -> None:
    cells = cells_with_planted_labels()
    labels = cells.labels.copy()
    labels[0] = 2
    got = delivery.teacher(
        Cells(cells.counts, labels, cells.batch, cells.mean, cells.positions),
        n_classes=3,
        scale=1e3,
        streams=Streams(0),
    )
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got.sum(axis=1), 1.0)
