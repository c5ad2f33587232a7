"""From cells to proportions, and from proportions to expression: what every query of scE2TM goes through."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scvi import REGISTRY_KEYS
from torch import Tensor

from cellsmith._errors import DataWarning, SetupError, nearest
from cellsmith.data.checks import check_counts
from cellsmith.data.splits import CellReader
from cellsmith.model._base import _drop_foreign_uuid
from cellsmith.model.sce2tm import equations as eq

__all__ = ["BATCH_SIZE", "CodingMixin", "positions"]

BATCH_SIZE = 1024


def positions(indices: Any, n: int) -> np.ndarray:
    """Return which of n cells are meant by a mask, positions or a slice; None is all.

    Raises
    ------
    SetupError
        For anything else, positions that do not exist, and no cell at all.
    """
    if indices is None:
        return np.arange(n)
    given = np.arange(n)[indices] if isinstance(indices, slice) else np.asarray(indices)
    if given.dtype == bool and given.shape == (n,):
        given = np.flatnonzero(given)
    if given.ndim == 1 and len(given) and given.dtype.kind in "iu" and given.min() >= -n and given.max() < n:
        return np.arange(n)[given]
    what = f"{given.dtype} of shape {given.shape}" if given.size else "no cell"
    raise SetupError(f"Found {what}; expected positions from 0 to {n - 1}, or a mask of {n} cells with one True.")


class CodingMixin:
    """Encoder and decoder of :class:`cellsmith.model.SCE2TM` on arrays; its other files build on these methods."""

    @property
    def _genes(self) -> np.ndarray:
        """Names of the modelled genes (V,), in the order of the registered object."""
        return self._training_genes()[self.gene_index_]

    def _topic_names(self) -> list[str]:
        """Names of the topics (K,)."""
        return [f"Topic_{k}" for k in range(self.module.n_topics)]

    def _batch_names(self) -> list[Any]:
        """Return the categories of the registered batch; none where nothing is corrected."""
        if not self.module.n_levels:
            return []
        return list(self.registry["field_registries"]["batch"]["state_registry"]["categorical_mapping"])

    def _batch_codes(self, adata: Any = None) -> np.ndarray:
        """Return one code a cell (n,) for all registered columns together; equal codes share their decoder offset."""
        manager = self.get_anndata_manager(self._validate_anndata(adata), required=True)
        joint = np.zeros(manager.adata.n_obs, dtype=np.int64)
        if self.module.n_levels:
            columns = [np.asarray(manager.get_from_registry(REGISTRY_KEYS.BATCH_KEY)).reshape(-1, 1)]
            if REGISTRY_KEYS.CAT_COVS_KEY in manager.data_registry:
                columns.append(np.asarray(manager.get_from_registry(REGISTRY_KEYS.CAT_COVS_KEY)))
            for codes, n in zip(np.concatenate(columns, axis=1).T, self.module.n_levels, strict=True):
                joint = joint * (n + 1) + np.minimum(codes, n)
        return joint

    def _levels(self, batch_codes: np.ndarray | None, n: int) -> Tensor:
        """Return the level of every column (n, C) from joint codes (n,); None: a level that was never seen."""
        columns, rest = [], batch_codes
        for size in reversed(self.module.n_levels):
            columns.append(np.full(n, size) if rest is None else rest % (size + 1))
            rest = None if rest is None else rest // (size + 1)
        codes = np.stack(columns[::-1], axis=1) if columns else np.zeros((n, 0))
        return torch.from_numpy(codes.astype(np.int64)).to(self.module.device)

    @torch.no_grad()
    def _encode(
        self, cells: Any = None, *, indices: Any = None, batch_size: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return mu and theta (n, K) of cells.

        Parameters
        ----------
        cells
            AnnData or MuData of counts (None: the training object), or log-normalised expression (n, V) of the
            modelled genes, dense or sparse. A cell without any of it gets mu = 0 and equal proportions.
        indices
            Which cells of an AnnData.
        batch_size
            Cells a forward pass.
        """
        module, found = self.module.eval(), []
        if isinstance(cells, np.ndarray) or sparse.issparse(cells):
            inputs = self._given_inputs(cells, batch_size or BATCH_SIZE)
        else:
            inputs = (x for x, _ in self._inputs(cells, indices, batch_size))
        for x in inputs:
            mu = module.draw(x).mean
            found.append(torch.where((x == 0).all(dim=1, keepdim=True), 0.0, mu).cpu())
        mu = torch.cat(found)
        return mu.numpy(), eq.proportions(mu.double()).float().numpy()

    def _given_inputs(self, x: Any, batch_size: int) -> Iterator[Tensor]:
        for start in range(0, x.shape[0], batch_size):
            rows = x[start : start + batch_size]
            dense = rows.toarray() if sparse.issparse(rows) else rows
            yield torch.from_numpy(np.ascontiguousarray(dense, dtype=np.float32)).to(self.module.device)

    def _inputs(self, adata: Any, indices: Any, batch_size: int | None) -> Iterator[tuple[Tensor, Mapping[str, Any]]]:
        """Yield T1's x (b, V) and the tensors of batches of cells, in order."""
        for tensors in self._batches(adata, indices, batch_size):
            counts, totals = self.module.counts(tensors)
            yield eq.log_normalize(counts, totals), tensors

    def _batches(self, adata: Any, indices: Any, batch_size: int | None) -> Iterator[Mapping[str, Tensor]]:
        reader = CellReader(self.get_anndata_manager(self._validate_anndata(adata), required=True))
        order = positions(indices, len(reader))
        step = batch_size or BATCH_SIZE
        for start in range(0, len(order), step):
            batch = reader[order[start : start + step]]
            yield {k: v.to(self.module.device) for k, v in batch.items() if v is not None}

    @torch.no_grad()
    def _decode(self, theta: np.ndarray, batch_codes: np.ndarray | None = None) -> np.ndarray:
        """Return log rho (n, V) of proportions (n, K).

        Parameters
        ----------
        theta
            Rows sum to 1.
        batch_codes
            (n,) of :meth:`_batch_codes`; None: the mean offset, as for a batch that was never seen.
        """
        rows = torch.from_numpy(np.ascontiguousarray(theta, dtype=np.float32)).to(self.module.device)
        logits = self.module.eval().logits(rows, self._levels(batch_codes, len(theta)))
        return torch.log_softmax(logits, dim=-1).cpu().numpy()

    def _express(
        self,
        theta: np.ndarray,
        *,
        batch_codes: np.ndarray | None = None,
        mass: np.ndarray | None = None,
        library_size: float = eq.PER_CELL,
    ) -> np.ndarray:
        """T22: expression (n, V) of proportions (n, K), rows sum to ``library_size``.

        Parameters
        ----------
        theta, batch_codes
            As in :meth:`_decode`.
        mass
            S (n,) of :meth:`_mass`, read by the likelihood "log-multinomial"; None: its mean in training.
        library_size
            Counts a cell.
        """
        log_rho = torch.from_numpy(self._decode(theta, batch_codes))
        if self.module.gene_likelihood != "log-multinomial":
            return eq.normalized_expression(log_rho, None, library_size=library_size).numpy()
        if mass is None:
            mass = np.full(len(theta), self._training_mass())
        mass_of = torch.from_numpy(np.asarray(mass, dtype=np.float32))
        return eq.normalized_expression(log_rho, mass_of, library_size=library_size).numpy()

    def _expression_of(self, batch_codes: np.ndarray, mass: np.ndarray) -> Callable[[slice, np.ndarray], np.ndarray]:
        """Return f(part, theta): T22 for a part of cells, with their own batch and S, at other proportions."""

        def express(part: slice, theta: np.ndarray) -> np.ndarray:
            return self._express(theta, batch_codes=batch_codes[part], mass=mass[part])

        return express

    def _mass(self, adata: Any = None, *, indices: Any = None) -> np.ndarray:
        """Return S (n,), the sum of x over the modelled genes (T22)."""
        return np.concatenate([x.sum(dim=1).cpu().numpy() for x, _ in self._inputs(adata, indices, None)])

    def _training_mass(self) -> float:
        """Return the mean of S over the training cells, which T9 measured."""
        return float(self.mean_mass_)

    def _validate_anndata(self, adata: Any = None, copy_if_view: bool = True) -> Any:
        """Refuse cells that are no counts or have none, as set-up does: scvi-tools would only warn."""
        if adata is None and self.adata is None:
            raise SetupError("This model has no training object. Type adata=..., the cells that you ask about.")
        if adata is not None and adata is not self.adata:
            carrier = adata.mod[self._count_modality] if hasattr(adata, "mod") else adata
            check_counts(carrier, self.registry["setup_args"].get("layer"), min_cells=1)
            self._admit_unseen_batches(adata)
        return super()._validate_anndata(adata, copy_if_view)

    def _check_genes(self, adata: Any) -> None:
        try:
            super()._check_genes(adata)
        except SetupError as error:
            raise SetupError(f"{error} Topics of cells with other genes: model.map_query(adata).") from None

    def _admit_unseen_batches(self, adata: Any) -> None:
        """Register cells of batches that training had not: their codes lie past the last level (see `_batch_codes`)."""
        unseen = self._unseen_batches(adata)
        if not unseen or self.adata_manager is None:
            return
        _drop_foreign_uuid(adata)
        if self.get_anndata_manager(adata) is not None:
            return
        self._check_genes(adata)
        self._note(
            f"Batches {', '.join(unseen)} were not in training: decoded with the mean offset of those that were. "
            "model.load_query_data(query) fits offsets of their own.",
            DataWarning,
        )
        self._register_manager_for_instance(self.adata_manager.transfer_fields(adata, extend_categories=True))

    def _moved_to(self, codes: np.ndarray, batch: Any) -> np.ndarray:
        """Return joint codes (n,) with the batch replaced."""
        names = self._batch_names()
        if batch not in names:
            raise SetupError(f"batch={batch!r} is not a registered batch. {nearest(batch, names)}")
        below = int(np.prod([n + 1 for n in self.module.n_levels[1:]], dtype=np.int64))
        return names.index(batch) * below + codes % below
