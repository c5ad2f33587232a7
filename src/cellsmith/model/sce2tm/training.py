"""What the stages of scE2TM do besides stepping an optimiser: genes, scales, neighbours, the gate; order of topics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scvi import REGISTRY_KEYS
from torch import Tensor

from cellsmith._errors import DataWarning, SetupError
from cellsmith._rng import Streams, isolated
from cellsmith.data.splits import scipy_counts
from cellsmith.math.counts import GeneMoments, choose_genes
from cellsmith.model.sce2tm import equations as eq
from cellsmith.model.sce2tm import views
from cellsmith.model.sce2tm.cells import ModelledCells

__all__ = ["TrainingMixin"]

CHUNK = 1024


class TrainingMixin:
    """Methods that the stages of :class:`cellsmith.model.SCE2TM` name."""

    def _draw_split(self, streams: Streams, args: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self._variant == "paper" and args["train_size"] is None:
            args = {**args, "train_size": 1.0}
        return super()._draw_split(streams, args)

    def _draw_weights(self) -> None:
        """Choose the genes of an untrained model, then draw its weights: their shape depends on the choice."""
        self.gene_index_ = choose_genes(GeneMoments.of(self._training_counts()), self._n_top_genes)
        self._fit_module_to_training()
        super()._draw_weights()
        self.module.choose_genes(torch.from_numpy(self.gene_index_))

    def _fit_module_to_training(self) -> None:
        """Replace the module where it has other genes, topics or another head than the training found."""
        width = self.view_.get("n_columns") if self.view_ and self.view_["q"] > 0 else None
        has_head = self.module.head is not None
        self._module_kwargs["n_topics"] = self.n_topics_
        found = (self.module.n_input, self.module.n_topics, has_head)
        if found != (len(self.gene_index_), self.n_topics_, width is not None):
            self.module = self._new_module(n_view=width)
        self._describe()

    def _training_counts(self) -> Iterator[sparse.csr_matrix]:
        """Yield the counts of all genes of the training cells, batch by batch."""
        for batch in self._training_batches():
            yield scipy_counts(batch[REGISTRY_KEYS.X_KEY].cpu())

    def _training_batches(self) -> Iterator[Mapping[str, Tensor]]:
        if self._datamodule is not None:
            yield from self._datamodule.train_dataloader()
            return
        cells = self._split[0]
        for start in range(0, len(cells), CHUNK):
            yield self._reader[cells[start : start + CHUNK]]

    # --- stage "index" --------------------------------------------------------------------------------------------

    def _index(self, streams: Streams) -> None:
        """T9, T15, T21: the scale of the reconstruction, the cells cut to their genes, neighbours and the gate."""
        self._cells = None if self._datamodule is not None else self._cut_cells()
        self.module.moments = {}
        self.module.n_sweeps = self.module.n_solves = self.module.n_unconverged = 0
        self.module.n_worse, self.module.halvings = 0, []
        self.module.last_potential = None
        self.module.view_weight.fill_(0.0)
        self.mean_mass_ = self._mean_mass()
        factor = 1.0 if self._loss_scale == "paper" else eq.mass_factor(self.mean_mass_)
        self.module.mass_factor.fill_(factor)
        if self.module.n_levels and self._cells is not None:
            self._hold_single_cells()
        self._note_empty_cells()
        self.view_ = None
        if self._external_key is not None:
            self._index_view(streams)

    def _cut_cells(self) -> ModelledCells:
        """Keep the counts of the modelled genes of all cells; everything that trains reads them."""
        parts, totals, codes = [], [], []
        for start in range(0, len(self._reader), CHUNK):
            batch = self._reader[np.arange(start, min(start + CHUNK, len(self._reader)))]
            counts = scipy_counts(batch[REGISTRY_KEYS.X_KEY])
            totals.append(np.asarray(counts.sum(axis=1)).ravel())
            parts.append(counts[:, self.gene_index_].astype(np.float32))
            codes.append(self.module.codes(batch).cpu())
        return ModelledCells(sparse.vstack(parts, format="csr"), np.concatenate(totals), torch.cat(codes))

    def _mean_mass(self) -> float:
        """T9: m, the mean over the training cells of the sum of the weights of T8."""
        total, n = 0.0, 0
        for batch in self._training_batches():
            counts = scipy_counts(batch[REGISTRY_KEYS.X_KEY].cpu()).astype(np.float64)
            weights = counts[:, self.gene_index_]
            if self._module_kwargs["gene_likelihood"] == "log-multinomial":
                totals = np.asarray(counts.sum(axis=1)).ravel()
                weights = (sparse.diags(eq.PER_CELL / np.maximum(totals, 1.0)) @ weights).log1p()
            total, n = total + float(weights.sum()), n + counts.shape[0]
        return max(total / n, 1e-6)

    def _note_empty_cells(self) -> None:
        """Warn of cells that show the model nothing: they have a total, but no count in any modelled gene."""
        if self._cells is None:
            return
        empty = np.flatnonzero(np.asarray(self._cells.counts.sum(axis=1)).ravel() == 0)
        if len(empty):
            self._note(
                f"{len(empty)} cells have no count in any of the {len(self.gene_index_)} modelled genes (first: "
                f"{self.adata.obs_names[empty[0]]!r}). Their topics are equal, with confidence 0.",
                DataWarning,
            )

    def _hold_single_cells(self) -> None:
        """Keep the offset of a level with one training cell at 0: it would learn that cell by heart."""
        codes, start = self._cells.codes[torch.from_numpy(self._split[0])], 0
        self.module.level_free.fill_(1.0)
        for column, n in enumerate(self.module.n_levels):
            sizes = torch.bincount(codes[:, column], minlength=n)[:n]
            single = torch.nonzero(sizes <= 1).reshape(-1)
            self.module.level_free[start + single] = 0.0
            if len(single):
                self._note(
                    f"{len(single)} levels of {self._level_names[column]!r} have at most one training cell; their "
                    "offsets stay 0.",
                    DataWarning,
                )
            start += n

    def _index_view(self, streams: Streams) -> None:
        """T15, T21: neighbours in both views, and what the external view is worth; a view worth nothing is dropped."""
        found = views.index_view(
            self._cells,
            self._split[0],
            self._external_matrix(),
            gate=self._view_gate,
            n_neighbors=self._n_neighbors,
            published=self._variant == "paper",
            streams=streams,
        )
        for message in found.notes:
            self._note(message, DataWarning)
        self.view_ = found.summary
        if found.neighbors is None:
            self.module.head = None  # of an earlier training, in which the view was worth something
            return
        if self.module.head is None:
            with isolated(streams.integer("init", 1)):
                self.module.build_head(found.neighbors.view.shape[1])
        self.module.view_weight.fill_(self.view_["q"])
        self._neighbors = found.neighbors

    # --- stages "topics", "guide", "joint" ------------------------------------------------------------------------

    def _read_alone(self, streams: Streams) -> ModelledCells | None:
        """Return the cells without neighbours; None where a data module delivers them."""
        if self._cells is not None:
            self._cells.neighbors = None
        return self._cells

    def _read_paired(self, streams: Streams) -> ModelledCells | None:
        """Return the cells with their neighbours; the guard of the gate starts from the reconstruction so far."""
        reference = float("inf")
        if (held_out := (self.history_ or {}).get("topics/validation_reconstruction")) is not None:
            best = int(np.argmin(self.history_["topics/validation_loss"].iloc[:, 0]))
            reference = float(held_out.iloc[best, 0])
        self.module.reference_loss.fill_(reference)
        self._cells.neighbors = self._neighbors
        return self._cells

    # --- stage "order" --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _order_topics(self, streams: Streams) -> None:
        """Sort topics by falling mean proportion, and keep the mean profile that "lift" divides by (T6)."""
        module, total, profile, n = self.module.eval(), 0.0, 0.0, 0
        for batch in self._training_batches():
            tensors = {k: v.to(module.device) for k, v in batch.items() if v is not None}
            counts, totals = module.counts(tensors)
            theta = eq.proportions(module.draw(eq.log_normalize(counts, totals)).z)
            total = total + theta.double().sum(dim=0)
            profile = profile + torch.softmax(module.logits(theta, module.codes(tensors)), dim=-1).double().sum(dim=0)
            n += len(theta)
        module.mean_profile.copy_(profile / n)
        module.permute_topics(torch.argsort(total, descending=True, stable=True))
        if self.view_ is not None:
            self.view_["halvings"] = len(module.halvings)
            self.view_["q_final"] = float(module.view_weight)
        self.sinkhorn_ = {
            "n_solves": module.n_solves,
            "mean_sweeps": module.n_sweeps / max(1, module.n_solves),
            "n_unconverged": module.n_unconverged,
        }
        self._cells = self._neighbors = None
        module.moments = {}

    def _external_matrix(self) -> Any:
        if self.adata is None or self._datamodule is not None:
            raise SetupError(
                "An external view is read from the training object, but these cells come from a data module. Type "
                "SCE2TM.setup_anndata(adata, external_obsm_key=None) to train without it."
            )
        setup = self.registry["setup_args"]
        views.check_view(self.adata, setup)
        return views.external_matrix(self.adata, setup)
