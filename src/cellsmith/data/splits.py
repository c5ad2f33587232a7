"""Data modules: batches of cells from AnnData, batches of rows from a cached table.

An epoch's order is a pure function of (seed, stage, epoch), so that a run can be repeated bit by bit and an
extra consumer of random numbers shifts nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from scipy import sparse
from scvi import REGISTRY_KEYS

from cellsmith._rng import Streams

__all__ = [
    "Batches",
    "CellReader",
    "CellSplit",
    "KeptCells",
    "TableSplit",
    "csr_tensor",
    "scipy_counts",
    "split_cells",
    "validation_batches",
]


def split_cells(
    n_obs: int,
    *,
    train_size: float | None,
    validation_size: float | None,
    shuffle: bool,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split cells into training, validation and test indices.

    Parameters
    ----------
    n_obs
        Number of cells.
    train_size
        Fraction for training; None is 0.9.
    validation_size
        Fraction for validation; None is the rest.
    shuffle
        Draw at random rather than cut in order.
    generator
        The stream "split".

    Returns
    -------
    Three sorted index arrays.

    Raises
    ------
    ValueError
        If the fractions are outside (0, 1] or add up to more than 1.
    """
    train = 0.9 if train_size is None else float(train_size)
    validation = 1.0 - train if validation_size is None else float(validation_size)
    if not 0 < train <= 1 or validation < 0 or train + validation > 1 + 1e-9:
        raise ValueError(
            f"train_size={train_size}, validation_size={validation_size}: expected fractions with 0 < train_size <= 1 "
            "and a sum of at most 1. Type train_size=0.9."
        )
    order = generator.permutation(n_obs) if shuffle else np.arange(n_obs)
    n_train = max(1, int(np.ceil(train * n_obs)))
    n_validation = min(n_obs - n_train, int(np.floor(validation * n_obs + 1e-9)))
    cuts = np.split(order, [n_train, n_train + n_validation])
    return np.sort(cuts[0]), np.sort(cuts[1]), np.sort(cuts[2])


class CellReader:
    """Random access to the registered tensors of cells: ``reader[indices] -> dict of tensors``.

    Counts that lie in memory as CSR are cut there directly and handed on as one sparse tensor; everything else
    (dense, CSC, backed, dask) goes through scvi-tools' own dataset, one batch at a time.

    Parameters
    ----------
    manager
        :class:`scvi.data.AnnDataManager` with registered fields.
    sparse_counts
        Hand on counts as ``torch.sparse_csr`` (B, G); else dense float32.
    """

    def __init__(self, manager: Any, *, sparse_counts: bool = True) -> None:
        self._sparse_counts = sparse_counts
        self._columns: dict[str, np.ndarray] = {}
        self._csr: sparse.csr_matrix | None = None
        keys = list(manager.data_registry.keys())
        counts = manager.get_from_registry(REGISTRY_KEYS.X_KEY)
        self._dataset = None
        if sparse.issparse(counts) and counts.format == "csr" and not manager.adata.isbacked:
            self._csr = counts
            self._n_obs = counts.shape[0]
            for key in keys:
                if key != REGISTRY_KEYS.X_KEY:
                    self._columns[key] = _column(manager.get_from_registry(key))
        else:
            self._dataset = manager.create_torch_dataset()
            self._n_obs = len(self._dataset)

    def __len__(self) -> int:
        return self._n_obs

    def __getitem__(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        if self._csr is None:
            # A file is read in the order of its rows: scvi-tools sorts the indices and leaves the answer sorted.
            rows, place = np.unique(np.asarray(indices), return_inverse=True)
            batch = {k: torch.as_tensor(np.ascontiguousarray(v)[place]) for k, v in self._dataset[rows].items()}
            if self._sparse_counts:
                batch[REGISTRY_KEYS.X_KEY] = batch[REGISTRY_KEYS.X_KEY].float().to_sparse_csr()
            return batch
        rows = self._csr[indices]
        batch = {key: torch.from_numpy(np.ascontiguousarray(col[indices])) for key, col in self._columns.items()}
        dense = None if self._sparse_counts else torch.from_numpy(rows.toarray().astype(np.float32, copy=False))
        batch[REGISTRY_KEYS.X_KEY] = csr_tensor(rows) if dense is None else dense
        return batch


class KeptCells:
    """Cells of a data module, kept in memory and read like those of a :class:`CellReader`.

    A loader may shuffle its cells anew at every pass; what has to see the same cells twice needs them kept.

    Parameters
    ----------
    batches
        Dicts of tensors with counts (B, G), dense or CSR; read once.
    limit
        About how many cells to keep. Where the number of batches is known they are taken at even distances, since a
        loader that does not shuffle may begin with one sample of many.
    """

    def __init__(self, batches: Iterable[Mapping[str, torch.Tensor]], *, limit: int) -> None:
        counts: list[sparse.csr_matrix] = []
        columns: dict[str, list[torch.Tensor]] = {}
        step = 1
        for position, batch in enumerate(batches):
            if position == 0:
                n_cells = _length(batches) * batch[REGISTRY_KEYS.X_KEY].shape[0]
                step = max(1, -(-n_cells // limit))
            if position % step:
                continue
            counts.append(scipy_counts(batch[REGISTRY_KEYS.X_KEY].cpu()))
            for key, values in batch.items():
                if key != REGISTRY_KEYS.X_KEY and values is not None:
                    columns.setdefault(key, []).append(values.cpu())
            if sum(part.shape[0] for part in counts) >= limit:
                break
        self._counts = sparse.vstack(counts, format="csr") if counts else sparse.csr_matrix((0, 0))
        self._columns = {key: torch.cat(parts) for key, parts in columns.items()}

    def __len__(self) -> int:
        return int(self._counts.shape[0])

    def __getitem__(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        rows = torch.from_numpy(np.asarray(indices))
        batch = {key: values[rows] for key, values in self._columns.items()}
        batch[REGISTRY_KEYS.X_KEY] = csr_tensor(self._counts[indices])
        return batch


def _length(batches: Any) -> int:
    try:
        return len(batches)
    except TypeError:  # an iterable data set
        return 0


def validation_batches(data: Any) -> Iterable[Mapping[str, torch.Tensor]] | None:
    """Return the validation batches of a data module; None where it has none.

    Parameters
    ----------
    data
        The data module.
    """
    if isinstance(data, LightningDataModule) and not is_overridden("val_dataloader", data):
        return None
    loader = data.val_dataloader() if hasattr(data, "val_dataloader") else None
    if isinstance(loader, list | tuple):
        return chain.from_iterable(loader) if loader else None
    return loader


def scipy_counts(x: torch.Tensor) -> sparse.csr_matrix:
    """Return dense or CSR counts (n, G) on the CPU as a scipy matrix."""
    if x.layout is torch.strided:
        return sparse.csr_matrix(x.numpy())
    parts = (x.values().numpy(), x.col_indices().numpy(), x.crow_indices().numpy())
    return sparse.csr_matrix(parts, shape=tuple(x.shape))


def csr_tensor(rows: sparse.csr_matrix) -> torch.Tensor:
    """Return counts (n, G) as one sparse tensor, float32, columns in order."""
    rows.sort_indices()
    return torch.sparse_csr_tensor(
        torch.from_numpy(rows.indptr.astype(np.int64)),
        torch.from_numpy(rows.indices.astype(np.int64)),
        torch.from_numpy(rows.data.astype(np.float32)),
        size=rows.shape,
        check_invariants=False,
    )


def _column(values: Any) -> np.ndarray:
    """Return a registered field as a 2-d array, integers as int64 and the rest as float32."""
    array = values.to_numpy() if hasattr(values, "to_numpy") else np.asarray(values)
    array = array.reshape(len(array), -1)
    return array.astype(np.int64 if np.issubdtype(array.dtype, np.integer) else np.float32, copy=False)


class Batches:
    """Iterable over batches; a fresh pass draws its order from ``order(pass_number)``.

    Parameters
    ----------
    fetch
        Maps an index array to a dict of tensors.
    order
        Maps the number of the pass to the order of the indices.
    n_items
        Length of that order.
    batch_size
        Items a batch.
    min_batch
        A last batch of fewer items is merged into the one before.
    """

    def __init__(
        self,
        fetch: Callable[[np.ndarray], dict[str, torch.Tensor]],
        order: Callable[[int], np.ndarray],
        *,
        n_items: int,
        batch_size: int,
        min_batch: int = 1,
    ) -> None:
        self._fetch, self._order = fetch, order
        self._n_items, self._batch_size = n_items, batch_size
        self._min_batch = min_batch
        self._epoch = 0

    def __len__(self) -> int:
        _, world = _rank()
        return max(1, int(np.ceil(self._n_batches(self._n_items) / world)))

    def _n_batches(self, n_items: int) -> int:
        whole, rest = divmod(n_items, self._batch_size)
        return whole + (rest >= self._min_batch or whole == 0)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        rank, world = _rank()
        order = self._order(self._epoch)
        n_batches = self._n_batches(len(order))
        # Every rank takes the same number of steps: the first batches are repeated where they do not divide.
        for b in range(rank, int(np.ceil(n_batches / world)) * world, world):
            start = (b % n_batches) * self._batch_size
            last = b % n_batches == n_batches - 1
            yield self._fetch(order[start : None if last else start + self._batch_size])
        self._epoch += 1


def _rank() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class _Split(LightningDataModule):
    """A training and a validation stream over the same items."""

    def __init__(self, train_idx: np.ndarray, val_idx: np.ndarray, test_idx: np.ndarray) -> None:
        super().__init__()
        self.train_idx, self.val_idx, self.test_idx = train_idx, val_idx, test_idx
        self.n_train, self.n_val = len(train_idx), len(val_idx)


class CellSplit(_Split):
    """Batches of cells read from the registered object.

    Parameters
    ----------
    reader
        Random access to the cells' tensors: a :class:`CellReader`, or anything that is read like one.
    split
        Indices for training, validation and test.
    batch_size
        Cells a batch.
    streams
        Root of the random streams; "batches" orders the epochs.
    position
        Of the stage: selects its child of the stream.
    min_batch
        A last training batch of fewer cells is merged into the one before.
    """

    def __init__(
        self,
        reader: Any,
        split: Sequence[np.ndarray],
        *,
        batch_size: int,
        streams: Streams,
        position: int = 0,
        min_batch: int = 1,
    ) -> None:
        super().__init__(*split)
        self._reader, self._batch_size, self._min_batch = reader, batch_size, min_batch
        self._streams, self._position = streams, position

    def train_dataloader(self) -> Batches:
        """Return shuffled batches of the training cells."""

        def order(epoch: int) -> np.ndarray:
            return self._streams.numpy("batches", self._position, epoch).permutation(self.train_idx)

        size = {"batch_size": self._batch_size, "min_batch": self._min_batch}
        return Batches(self._reader.__getitem__, order, n_items=self.n_train, **size)

    def val_dataloader(self) -> Batches | None:
        """Return the validation cells in order, or None where there are none."""
        if self.n_val == 0:
            return None
        return Batches(
            self._reader.__getitem__, lambda _: self.val_idx, n_items=self.n_val, batch_size=4 * self._batch_size
        )


class TableSplit(_Split):
    """Batches of rows of a cached table of tensors that share their first dimension.

    Parameters
    ----------
    table
        Name -> tensor (n, ...).
    split
        Indices for training, validation and test.
    batch_size
        Rows a batch.
    steps_per_epoch
        An epoch is as many whole passes as give about this many steps.
    streams
        Root of the random streams.
    """

    def __init__(
        self,
        table: Mapping[str, torch.Tensor],
        split: Sequence[np.ndarray],
        *,
        batch_size: int,
        steps_per_epoch: int,
        streams: Streams,
        position: int = 0,
    ) -> None:
        super().__init__(*split)
        self._table = dict(table)
        self._batch_size = min(batch_size, self.n_train)
        self._streams, self._position = streams, position
        self._n_steps = steps_per_epoch

    def _fetch(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        rows = torch.from_numpy(indices)
        return {name: values[rows] for name, values in self._table.items()}

    def train_dataloader(self) -> Batches:
        """Return random batches; rows are visited without replacement across the whole epoch."""
        n_draws = self._n_steps * self._batch_size

        def order(epoch: int) -> np.ndarray:
            generator = self._streams.numpy("batches", self._position, epoch)
            passes = [generator.permutation(self.train_idx) for _ in range(int(np.ceil(n_draws / self.n_train)))]
            return np.concatenate(passes)[:n_draws]

        return Batches(self._fetch, order, n_items=n_draws, batch_size=self._batch_size)

    def val_dataloader(self) -> Batches | None:
        """Return the validation rows in order, or None where there are none."""
        if self.n_val == 0:
            return None
        return Batches(self._fetch, lambda _: self.val_idx, n_items=self.n_val, batch_size=4 * self._batch_size)
