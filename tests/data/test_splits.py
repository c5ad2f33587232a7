"""Splits, readers and batches: every cell once, every format alike, every order a function of the seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import LightningDataModule
from scipy import sparse
from scvi import REGISTRY_KEYS

from cellsmith._rng import Streams
from cellsmith.data.splits import (
    Batches,
    CellReader,
    CellSplit,
    KeptCells,
    TableSplit,
    scipy_counts,
    split_cells,
    validation_batches,
)
from cellsmith.datasets import toy_counts
from cellsmith.model import SCLD


def split(n: int = 100, **kwargs: Any) -> tuple[np.ndarray, ...]:
    given = {"train_size": None, "validation_size": None, "shuffle": True, **kwargs}
    return split_cells(n, generator=Streams(0).numpy("split"), **given)


@given(n=st.integers(2, 500), train=st.floats(0.01, 1.0), share=st.floats(0.0, 1.0), shuffle=st.booleans())
def test_every_cell_is_in_exactly_one_part(n: int, train: float, share: float, shuffle: bool) -> None:
    parts = split(n, train_size=train, validation_size=share * (1 - train), shuffle=shuffle)
    assert sorted(np.concatenate(parts)) == list(range(n))
    assert len(parts[0]) >= 1
    assert all((np.diff(p) > 0).all() for p in parts)


def test_defaults_are_nine_tenths_and_the_rest() -> None:
    assert [len(p) for p in split()] == [90, 10, 0]
    assert [len(p) for p in split(train_size=0.5, validation_size=0.2)] == [50, 20, 30]


def test_without_shuffling_the_first_cells_train() -> None:
    np.testing.assert_array_equal(split(shuffle=False)[0], np.arange(90))


def test_split_is_a_function_of_the_seed() -> None:
    np.testing.assert_array_equal(split()[1], split()[1])
    other = split_cells(100, train_size=None, validation_size=None, shuffle=True, generator=Streams(1).numpy("split"))
    assert not np.array_equal(other[1], split()[1])


@pytest.mark.parametrize(("train", "validation"), [(0.0, None), (1.2, None), (0.8, 0.3), (0.5, -0.1)])
def test_impossible_fractions_are_refused(train: float, validation: float | None) -> None:
    with pytest.raises(ValueError, match=r"train_size=0\.9"):
        split(train_size=train, validation_size=validation)


@pytest.fixture(scope="module")
def counts() -> anndata.AnnData:
    return toy_counts(120, 20, n_types=2, rng=0)


def reader_of(adata: anndata.AnnData, *, sparse_counts: bool = True, layer: str | None = None) -> CellReader:
    SCLD.setup_anndata(adata, labels_key="cell_type", continuous_covariate_keys=["library"], layer=layer)
    return CellReader(SCLD(adata).adata_manager, sparse_counts=sparse_counts)


def dense(x: torch.Tensor) -> np.ndarray:
    return (x if x.layout is torch.strided else x.to_dense()).numpy()


@pytest.mark.parametrize("form", ["csr", "csc", "dense", "layer", "int32", "backed"])
@pytest.mark.parametrize("sparse_counts", [True, False])
def test_every_format_gives_the_same_batches(
    form: str, sparse_counts: bool, counts: anndata.AnnData, tmp_path: Path
) -> None:
    truth, adata, layer = counts.X.toarray(), counts.copy(), None
    if form == "csc":
        adata.X = sparse.csc_matrix(counts.X)
    elif form == "dense":
        adata.X = truth.copy()
    elif form == "int32":
        adata.X = counts.X.astype(np.int32)
    elif form == "layer":
        adata.layers["raw"], layer = counts.X.copy(), "raw"
        adata.X = np.log1p(truth)
    elif form == "backed":
        adata.write_h5ad(tmp_path / "a.h5ad")
        adata = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    reader = reader_of(adata, sparse_counts=sparse_counts, layer=layer)
    rows = np.array([5, 3, 119, 3])
    batch = reader[rows]
    assert len(reader) == 120
    x = batch[REGISTRY_KEYS.X_KEY]
    assert x.dtype == torch.float32
    assert (x.layout is torch.sparse_csr) == sparse_counts
    np.testing.assert_array_equal(dense(x), truth[rows])
    labels = counts.obs["cell_type"].cat.codes.to_numpy()[rows]
    np.testing.assert_array_equal(batch[REGISTRY_KEYS.LABELS_KEY].numpy().ravel(), labels)
    library = batch[REGISTRY_KEYS.CONT_COVS_KEY].numpy().ravel()
    np.testing.assert_allclose(library, counts.obs["library"].iloc[rows], rtol=1e-6)


def test_an_epoch_visits_every_training_cell_once(counts: anndata.AnnData) -> None:
    parts = split(120)
    data = CellSplit(reader_of(counts.copy()), parts, batch_size=32, streams=Streams(0))
    loader = data.train_dataloader()
    first, second = ([dense(b[REGISTRY_KEYS.X_KEY]) for b in loader] for _ in range(2))
    assert [len(b) for b in first] == [32, 32, 32, 12]
    assert len(loader) == 4
    truth = counts.X.toarray()[parts[0]]
    for epoch in (first, second):
        np.testing.assert_array_equal(np.sort(np.concatenate(epoch).sum(axis=1)), np.sort(truth.sum(axis=1)))
    assert not np.array_equal(np.concatenate(first), np.concatenate(second))
    again = [dense(b[REGISTRY_KEYS.X_KEY]) for b in data.train_dataloader()]
    np.testing.assert_array_equal(np.concatenate(first), np.concatenate(again))


def test_validation_cells_come_in_order_or_not_at_all(counts: anndata.AnnData) -> None:
    reader, parts = reader_of(counts.copy()), split(120)
    data = CellSplit(reader, parts, batch_size=2, streams=Streams(0))
    got = np.concatenate([dense(b[REGISTRY_KEYS.X_KEY]) for b in data.val_dataloader()])
    np.testing.assert_array_equal(got, counts.X.toarray()[parts[1]])
    alone = CellSplit(reader, split(120, train_size=1.0), batch_size=2, streams=Streams(0))
    assert alone.val_dataloader() is None


@pytest.mark.parametrize(("n", "batch_size", "n_steps"), [(50, 16, 7), (50, 256, 3), (300, 16, 2)])
def test_table_gives_the_steps_that_were_asked_for(n: int, batch_size: int, n_steps: int) -> None:
    table = {"row": torch.arange(n), "value": torch.arange(n).float()[:, None]}
    data = TableSplit(table, split(n), batch_size=batch_size, steps_per_epoch=n_steps, streams=Streams(0))
    loader = data.train_dataloader()
    batches = list(loader)
    assert len(batches) == len(loader) == n_steps
    assert all(len(b["row"]) == min(batch_size, data.n_train) for b in batches)
    rows = torch.cat([b["row"] for b in batches])
    assert set(rows.tolist()) <= set(data.train_idx.tolist())
    visits = np.bincount(rows, minlength=n)[data.train_idx]
    assert visits.max() - visits.min() <= 1
    np.testing.assert_array_equal(torch.cat([b["value"] for b in batches])[:, 0].numpy(), rows.numpy())


@given(n=st.integers(2, 60), batch_size=st.integers(2, 12), min_batch=st.integers(1, 2))
def test_a_last_batch_that_is_too_small_joins_the_one_before(n: int, batch_size: int, min_batch: int) -> None:
    batches = Batches(
        lambda i: {"i": torch.from_numpy(i)},
        lambda _: np.arange(n),
        n_items=n,
        batch_size=batch_size,
        min_batch=min_batch,
    )
    found = [b["i"].numpy() for b in batches]
    assert len(found) == len(batches)
    np.testing.assert_array_equal(np.concatenate(found), np.arange(n))
    assert min(map(len, found)) >= min_batch
    assert all(len(b) == batch_size for b in found[:-1])
    if min_batch == 1:
        assert len(found) == -(-n // batch_size)


def test_ranks_share_a_pass_without_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, lengths = [], []
    for rank in range(2):
        monkeypatch.setattr("cellsmith.data.splits._rank", lambda rank=rank: (rank, 2))
        loader = Batches(lambda i: {"i": torch.from_numpy(i)}, lambda _: np.arange(40), n_items=40, batch_size=10)
        mine = [b["i"] for b in loader]
        lengths.append((len(mine), len(loader)))
        seen.append(torch.cat(mine).tolist())
    assert lengths == [(2, 2), (2, 2)]
    assert not set(seen[0]) & set(seen[1])
    assert sorted(seen[0] + seen[1]) == list(range(40))


# --- cells of a data module ------------------------------------------------------------------------------------------


def in_order(reader: CellReader, n: int, size: int) -> Batches:
    return Batches(reader.__getitem__, lambda _: np.arange(n), n_items=n, batch_size=size)


@pytest.mark.parametrize("sparse_counts", [True, False])
def test_kept_cells_are_read_like_those_of_the_loader(sparse_counts: bool, counts: anndata.AnnData) -> None:
    reader = reader_of(counts, sparse_counts=sparse_counts)
    kept = KeptCells(in_order(reader, 120, 50), limit=1000)
    assert len(kept) == 120
    rows = np.array([3, 70, 3])
    got, expected = kept[rows], reader[rows]
    assert got.keys() == expected.keys()
    for key, values in expected.items():
        dense = values if values.layout is torch.strided else values.to_dense()
        mine = got[key] if got[key].layout is torch.strided else got[key].to_dense()
        torch.testing.assert_close(mine, dense)
    assert (scipy_counts(got["X"]) != counts.X[rows]).nnz == 0


def test_kept_cells_come_from_all_over_a_loader_that_does_not_shuffle(counts: anndata.AnnData) -> None:
    reader = reader_of(counts)
    kept = KeptCells(in_order(reader, 120, 10), limit=40)
    assert len(kept) == 40
    got = kept[np.arange(40)]["X"].to_dense().numpy()
    np.testing.assert_array_equal(got, counts.X.toarray().reshape(12, 10, 20)[::3].reshape(40, 20))
    # Of unknown length: the first ones.
    assert len(KeptCells(iter(in_order(reader, 120, 10)), limit=35)) == 40
    assert len(KeptCells(iter(()), limit=5)) == 0


def test_validation_batches_of_any_data_module() -> None:
    class Plain(LightningDataModule):
        def train_dataloader(self) -> list[int]:
            return [1]

    class Listed(Plain):
        def __init__(self, found: Any) -> None:
            super().__init__()
            self.found = found

        def val_dataloader(self) -> Any:
            return self.found

    assert validation_batches(Plain()) is None
    assert validation_batches(object()) is None
    assert validation_batches(Listed(None)) is None
    assert validation_batches(Listed([])) is None
    assert list(validation_batches(Listed([[1, 2], [3]]))) == [1, 2, 3]
    loader = in_order(reader_of(toy_counts(60, 5, rng=0)), 60, 30)
    assert validation_batches(Listed(loader)) is loader
