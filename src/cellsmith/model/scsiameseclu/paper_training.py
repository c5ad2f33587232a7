"""Stages of variant="paper": four of them over all cells at once, and what is kept of the training cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from torch import Tensor

from cellsmith._errors import ConvergenceError
from cellsmith._rng import Streams
from cellsmith.data.checks import counts_carrier
from cellsmith.math import graph
from cellsmith.math.counts import log_normalized
from cellsmith.math.pca import principal_axes
from cellsmith.model._stage import Optim, Stage
from cellsmith.model.scsiameseclu import clusters, graphs
from cellsmith.model.scsiameseclu.cells import ROWS_KEY, SiameseCells
from cellsmith.model.scsiameseclu.paper import PAPER, PaperModule
from cellsmith.model.scsiameseclu.training import N_COMPONENTS, Swept

__all__ = ["PaperMixin", "RowsOnly"]

NETWORKS = ("gene_encoder", "gene_decoder", "graph_encoder", "graph_decoder")
FUSION = ("gene_share", "graph_share", "attention")
HEADS = ("mean", "dispersion", "zero")


class RowsOnly:
    """Positions of cells: everything else lies in the module.

    Parameters
    ----------
    n_cells
        n.
    """

    def __init__(self, n_cells: int) -> None:
        self.n_cells = n_cells

    def __len__(self) -> int:
        return self.n_cells

    def __getitem__(self, indices: np.ndarray) -> dict[str, Tensor]:
        return {ROWS_KEY: torch.from_numpy(np.asarray(indices))}


class PaperMixin:
    """Methods that the stages of ``variant="paper"`` name."""

    def _paper_stages(self) -> tuple[Stage, ...]:
        """Return the published stages: three of pre-training, ``main``, and ``finish``."""
        n = self._n_cells()

        def stage(name: str, loss: str, n_epochs: int, trains: tuple[str, ...], lr: float, **more: Any) -> Stage:
            plan = Optim(optimizer="adam", lr=lr, schedule="constant", keep_best=False)
            return Stage(
                name=name, loss=loss, max_epochs=n_epochs, trains=trains, plan=plan, **{"batch_size": n, **more}
            )

        everything = (*NETWORKS, *FUSION, *HEADS, "prototypes")
        return (
            stage("pretrain_gene", "loss_gene", 100, NETWORKS[:2], 5e-4, batch_size=256, refresh="_begin_paper"),
            stage("pretrain_graph", "loss_graph", 50, NETWORKS[2:], 5e-4, refresh="_paper_rows"),
            stage("pretrain_joint", "loss_joint", 200, (*NETWORKS, *FUSION), 1e-4, refresh="_paper_rows"),
            stage("main", "loss_main", 50, everything, 1e-4, refresh="_begin_main", between="between"),
            Stage(name="finish", solve="_finish_paper"),
        )

    def _new_paper_module(self) -> PaperModule:
        return PaperModule(
            len(self.gene_index_),
            n_cells=self.n_paper_[0],
            n_components=self.n_paper_[1],
            n_latent=self._module_kwargs["n_latent"],
            n_prototypes=self.n_prototypes_,
        )

    def _paper_rows(self, streams: Streams) -> RowsOnly:
        return RowsOnly(self._n_cells())

    def _begin_paper(self, streams: Streams) -> RowsOnly:
        """Normalise, scale and project the cells; form both dense operators of their graph."""
        cells = self._read_cells(self._reader)
        x = _scaled(cells)
        self._points = principal_axes(x, N_COMPONENTS).project(x)
        shown = principal_axes(x, self.n_paper_[1]).project(x)
        index, distance = graph.knn_table(self._points, min(PAPER["n_neighbors"], len(x) - 1), seed=self._graph_seed())
        weights = np.ones_like(distance)
        a = graph.probabilistic_union(graph.table_matrix(index, weights, len(x)))
        walk = graph.symmetric_walk(a)
        cells.graph = graphs.operators(
            a, distances=None, notes=[], teleport=PAPER["teleport"], k=32, tol=self._walk_kwargs["tol"]
        )
        held = {
            "x": shown,
            "counts": cells.counts.toarray(),
            "walk": walk.toarray(),
            "diffusion": graph.ppr_dense(walk, teleport=PAPER["teleport"]),
        }
        share = float(cells.counts.sum() / cells.totals.sum())
        device = self.module.modelled_share.fill_(share).device
        self.module.hold(**{k: torch.from_numpy(np.asarray(v, dtype=np.float32)).to(device) for k, v in held.items()})
        self._cells, self._streams, self._walk = cells, streams, sp.csr_matrix(walk, dtype=np.float32)
        return RowsOnly(len(cells))

    @torch.no_grad()
    def _begin_main(self, streams: Streams) -> RowsOnly:
        """Place prototypes by k-means on the pre-trained embedding; their sizes are the column sums of the plan."""
        z = self.module.embed()[2].cpu().numpy()
        centres, labels = clusters.kmeans(z, self.n_prototypes_, seed=streams.integer("init", 1), n_starts=20)
        sizes = np.maximum(np.bincount(labels, minlength=len(centres)) / len(labels), 1e-6)
        self.module.set_prototypes(torch.from_numpy(centres), torch.from_numpy(sizes / sizes.sum()))
        self.k_path_ = [("main", 0, len(centres), "k-means")]
        self.module.generator = streams.torch("augment", 0)
        self.module.keeper = self._between_main
        self._drop_paper_edges(0)
        return RowsOnly(self._n_cells())

    def _between_main(self, epoch: int, n_epochs: int) -> bool:
        """Leave other edges out; every ten epochs let the plan be solved again."""
        self._drop_paper_edges(epoch)
        if epoch % PAPER["refresh_every"] == 0:
            self.module.plan = None
        return False

    @torch.no_grad()
    def _drop_paper_edges(self, epoch: int) -> None:
        """S8 with the cosines of the current embedding; the symmetric operator keeps its scale."""
        z = torch.nn.functional.normalize(self.module.embed()[2], dim=1).cpu().numpy()
        walk = self._walk
        rows = np.repeat(np.arange(walk.shape[0]), np.diff(walk.indptr))
        alike = np.einsum("ij,ij->i", z[rows], z[walk.indices])
        kept = graph.drop_edges(walk, alike, rate=PAPER["edge_drop_rate"], cells=np.arange(walk.shape[0]))
        mask = torch.from_numpy(kept.toarray() > 0).to(self.module.walk.device)
        self.module.dropped = torch.where(mask, self.module.walk, 0.0)

    @torch.no_grad()
    def _finish_paper(self, streams: Streams) -> None:
        """Cluster the last embedding by seeded k-means, and keep the embedding of the training cells."""
        module = self.module.eval()
        module.keeper = None
        z_gene, z_graph, z = (t.cpu().numpy() for t in module.embed())
        if not np.isfinite(z).all():
            raise ConvergenceError("The embedding is not finite. Try train(plan_kwargs={'lr': 3e-5}).")
        centres, labels = clusters.kmeans(z, self.n_prototypes_, seed=streams.integer("init", 2), n_starts=20)
        order = np.argsort(-np.bincount(labels, minlength=len(centres)), kind="stable")
        self.n_prototypes_ = len(order)
        module.set_prototypes(torch.from_numpy(centres[order]))
        swept = Swept(z, z, z_gene, z_graph, z, np.full(len(z), 0.5, dtype=np.float32))
        self.k_path_.append(("finish", 0, len(order), "k-means"))
        self._note_run(swept, self._cells)
        names = counts_carrier(self.adata, self._setup("modalities")).obs_names
        self.paper_ = {"names": np.asarray(names, dtype=object), "gene": z_gene, "graph": z_graph, "fused": z}
        module.hold()
        self._cells = self._points = self._streams = self._walk = None

    def _paper_cells(self) -> tuple[SiameseCells, Swept]:
        """Return the training cells in the order of the object, whatever the order in training was."""
        from cellsmith.data.splits import CellReader

        cells = self._read_cells(CellReader(self.adata_manager))
        names = counts_carrier(self.adata, self._setup("modalities")).obs_names
        place = pd.Index(self.paper_["names"]).get_indexer(names)
        z_gene, z_graph, z = (self.paper_[name][place] for name in ("gene", "graph", "fused"))
        return cells, Swept(z, z, z_gene, z_graph, z, np.full(len(z), 0.5, dtype=np.float32))


def _scaled(cells: SiameseCells) -> np.ndarray:
    """Return log1p of counts scaled to the median total, unit variance, not clipped, (n, p)."""
    median = float(np.median(cells.totals))
    x = log_normalized(cells.counts, cells.totals * 1e4 / median).toarray().astype(np.float64)
    spread = x.std(axis=0)
    return (x - x.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
