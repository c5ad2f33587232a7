"""What may not matter does not: labels, the order of cells, the order of genes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData

from cellsmith.metrics.clustering import ari


@pytest.fixture(scope="module")
def plain(cells: AnnData, fitted: Any) -> Any:
    return fitted(cells.copy(), train={"max_epochs": 4})


def test_labels_change_nothing(cells: AnnData, plain: Any, fitted: Any) -> None:
    """F5, F12: labels chose edges and epochs."""
    for change in ("shuffled", "dropped", "renamed"):
        adata = cells.copy()
        if change == "shuffled":
            adata.obs["cell_type"] = np.random.default_rng(0).permutation(adata.obs["cell_type"])
        elif change == "dropped":
            del adata.obs["cell_type"]
        else:
            adata.obs["cell_type"] = adata.obs["cell_type"].astype(str) + "_x"
        model = fitted(adata, train={"max_epochs": 4})
        for query in (lambda m: m.predict(soft=True).to_numpy(), lambda m: m.get_propagation().toarray()):
            np.testing.assert_array_equal(query(plain), query(model))
        np.testing.assert_array_equal(plain.reference_["h"], model.reference_["h"])


def test_other_counts_do_change_it(cells: AnnData, plain: Any, fitted: Any) -> None:
    """The comparison can fail."""
    adata = cells.copy()
    adata.X = adata.X * 2
    assert not np.array_equal(plain.reference_["h"], fitted(adata, train={"max_epochs": 4}).reference_["h"])


def test_scoring_leaves_predictions_as_they_are(model: Any) -> None:
    """F16: the public accuracy overwrote the predictions that it scored."""
    found = model.predict()
    before = found.copy()
    ari(model.adata.obs["cell_type"], found)
    assert found.equals(before)


def test_order_of_cells_and_genes_hardly_matters(cells: AnnData, model: Any, fitted: Any) -> None:
    long = {"max_epochs": {"warmup": 40, "transport": 16}}
    order = np.random.default_rng(1)
    for adata in (cells[order.permutation(160)].copy(), cells[:, order.permutation(60)].copy()):
        found = fitted(adata, setup={"batch_key": "batch"}, train=long).predict()
        assert ari(model.predict().loc[found.index], found) > 0.9


def test_loss_of_a_batch_does_not_depend_on_the_order_of_its_cells(cells: AnnData, plain: Any) -> None:
    from cellsmith._rng import Streams
    from cellsmith.data.splits import CellReader

    plain._reader = CellReader(plain.adata_manager)
    reader = plain._begin_warmup(Streams(0))
    plain._begin_transport(Streams(0))
    plain.module.eval()
    batch = dict(reader[np.arange(80)])
    order = np.random.default_rng(0).permutation(80)
    moved = {}
    for name, value in batch.items():
        dense = value.to_dense() if value.layout is not torch.strided else value
        rows = dense[order]
        if name in ("near", "inside0", "inside1"):
            rows = rows[:, order]
        moved[name] = rows.to_sparse_csr() if value.layout is not torch.strided else rows
    weights = {"reconstruction": 1.0, "cell": 0.1, "latent": 0.1, "transport": 1.0}
    one, two = (plain.module.loss_views(b, weights=weights) for b in (batch, moved))
    for name in one.extra_metrics:
        torch.testing.assert_close(one.extra_metrics[name], two.extra_metrics[name], atol=1e-5, rtol=1e-5)


def test_edges_join_cells_of_one_type_and_no_cell_is_a_hub(model: Any) -> None:
    """F6: weights of the public graph were 0 for every pair, its neighbours arbitrary, one cell in nearly all lists."""
    a = model._training_cells()[0].graph.connectivities
    types = model.adata.obs["cell_type"].to_numpy()
    rows, columns = a.nonzero()
    by_chance = float(np.mean(types[:, None] != types))
    assert np.mean(types[rows] != types[columns]) < 0.3 * by_chance
    degree = np.diff(a.indptr)
    assert degree.max() <= 20 * degree.mean()


def test_training_reads_and_writes_no_file(
    cells: AnnData, fitted: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F8: the public loader could not find what the public code had written."""
    monkeypatch.chdir(tmp_path)
    fitted(cells.copy(), train={"max_epochs": 1})
    assert list(tmp_path.iterdir()) == []
