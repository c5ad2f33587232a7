"""What the stages of scSiameseClu do besides stepping: genes, graph, bank, prototypes, pruning, and the final pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from scvi import REGISTRY_KEYS

from cellsmith._errors import ConvergenceError, DataWarning, SetupError
from cellsmith._rng import Streams, isolated
from cellsmith.data.checks import check_rep
from cellsmith.data.splits import CellReader, scipy_counts
from cellsmith.math import assign
from cellsmith.math.counts import GeneMoments, binomial_split, choose_genes, log_normalized
from cellsmith.math.pca import principal_axes
from cellsmith.model.scsiameseclu import clusters, graphs
from cellsmith.model.scsiameseclu import equations as eq
from cellsmith.model.scsiameseclu.cells import Augmentation, SiameseCells

__all__ = ["BLOCK", "N_COMPONENTS", "Swept", "TrainingMixin"]

BLOCK = 1024
N_COMPONENTS = 50
# Steps that either stage should have, and its epochs at least and at most.
WARMUP, TRANSPORT = (400, 20, 100), (200, 10, 50)
MIN_BATCH, MAX_BATCH = 64, 512
# Fractions of the transport stage at which clusters are pruned.
PRUNE_AT = (0.25, 0.5, 0.75)
# Share of codes that may change, and how often in a row, before the transport stage ends by itself.
SETTLED, N_SETTLED = 0.001, 3
MAX_RESEEDS = 2


class Swept(NamedTuple):
    """One clean pass over cells: H, Pi H and the embeddings (n, d), and the gate (n,)."""

    h: np.ndarray
    pagerank_h: np.ndarray
    gene: np.ndarray
    graph: np.ndarray
    fused: np.ndarray
    gate: np.ndarray


class TrainingMixin:
    """Methods that the stages of :class:`cellsmith.model.ScSiameseClu` name."""

    def _draw_split(self, streams: Streams, args: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        # All cells are clustered, so all of them train unless a share is asked for.
        return super()._draw_split(streams, args if args["train_size"] is not None else {**args, "train_size": 1.0})

    def _draw_weights(self) -> None:
        """Choose the genes of an untrained model, then draw its weights: their shape depends on the choice."""
        if self._datamodule is not None:
            raise SetupError(
                "ScSiameseClu needs the position of every cell in its graph, which a data module does not tell. "
                "Register the AnnData itself: ScSiameseClu.setup_anndata(adata)."
            )
        blocks = (
            scipy_counts(self._reader[np.arange(s, min(s + BLOCK, len(self._reader)))][REGISTRY_KEYS.X_KEY])
            for s in range(0, len(self._reader), BLOCK)
        )
        n_genes = int(self.summary_stats["n_vars"])
        self.gene_index_ = choose_genes(GeneMoments.of(blocks), self._n_top_genes or n_genes)
        self._fit_module_to_training()
        super()._draw_weights()

    def _fit_module_to_training(self) -> None:
        """Replace the module where it has other genes or another number of prototypes than the training found."""
        if self._variant == "paper":
            self.n_paper_ = (self.n_paper_[0], min(self.n_paper_[1], len(self.gene_index_) - 1))
        if self.module.n_input != len(self.gene_index_) or len(self.module.prototypes) != self.n_prototypes_:
            with isolated():  # whether the shape was known before must not change what is drawn afterwards
                self.module = self._new_module()

    def _n_epochs(self, wanted: tuple[int, int, int]) -> int:
        """Return the epochs of a stage: as many as give ``wanted[0]`` steps, within two bounds."""
        n_steps = -(-self._n_cells() // self._batch_size())
        return int(np.clip(-(-wanted[0] // n_steps), *wanted[1:]))

    def _batch_size(self) -> int:
        """Return 512, or a quarter of the cells: a pass over few cells would otherwise be too few steps."""
        return min(self._n_cells(), max(MIN_BATCH, min(MAX_BATCH, self._n_cells() // 4)))

    # --- reading cells --------------------------------------------------------------------------------------------

    def _read_cells(self, reader: CellReader) -> SiameseCells:
        """Cut cells to the modelled genes, and keep them with their totals over all genes."""
        parts, totals, factors, codes = [], [], [], []
        for start in range(0, len(reader), BLOCK):
            batch = reader[np.arange(start, min(start + BLOCK, len(reader)))]
            counts = scipy_counts(batch[REGISTRY_KEYS.X_KEY])
            totals.append(np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel())
            parts.append(counts[:, self.gene_index_].astype(np.float32))
            codes.append(batch[REGISTRY_KEYS.BATCH_KEY].reshape(-1).numpy().astype(np.int64))
            if (factor := batch.get(REGISTRY_KEYS.SIZE_FACTOR_KEY)) is not None:
                factors.append(factor.reshape(-1).numpy())
        total = np.concatenate(totals)
        library = np.concatenate(factors) * self._factor_scale(factors, total) if factors else total
        return SiameseCells(sp.vstack(parts, format="csr"), total, library=library, codes=np.concatenate(codes))

    def _factor_scale(self, factors: list[np.ndarray], total: np.ndarray) -> float:
        """Return what brings size factors to the scale of totals: that of training, whatever cells are asked about."""
        if not self.is_trained_ and self._reader is not None:
            self.factor_scale_ = float(np.median(total) / np.median(np.concatenate(factors)))
        return self.factor_scale_

    def _rep_of(self, data: Any, cells: SiameseCells) -> np.ndarray:
        """Return the coordinates (n, d) in which neighbours are sought: a registered embedding, or our own PCA."""
        key = self._rep_key()
        if key is not None:
            check_rep(self._place(data, "use_rep"), key)
            return np.asarray(self._place(data, "use_rep").obsm[key], dtype=np.float64)
        if self.axes_ is None:
            self.axes_ = principal_axes(cells.clean(np.arange(len(cells))), N_COMPONENTS)
        blocks = (np.arange(s, min(s + BLOCK, len(cells))) for s in range(0, len(cells), BLOCK))
        return np.concatenate([self.axes_.project(cells.clean(rows)) for rows in blocks])

    def _graph_of(self, cells: SiameseCells, *, points: np.ndarray) -> graphs.CellGraph:
        """S1 to S7: build the graph of the training cells, or read the user's, and form its operators."""
        distances, notes = None, []
        if self._neighbors_key() is not None:
            connectivities, notes = self._given_graph()
        else:
            batches = cells.codes if self._batch_balanced and len(np.unique(cells.codes)) > 1 else None
            connectivities, distances, notes = graphs.build_graph(
                points, self._n_neighbors - 1, batches=batches, seed=self._graph_seed()
            )
        return graphs.operators(connectivities, distances=distances, notes=notes, **self._walk_kwargs)

    def _graph_seed(self) -> int:
        return Streams(self.seed_ or 0).integer("init", 7)

    # --- stages ---------------------------------------------------------------------------------------------------

    def _begin_warmup(self, streams: Streams) -> SiameseCells:
        """Read the cells, build their graph, fill the bank, and draw the first edges to leave out."""
        self.axes_ = None
        self.graph_rep_ = self._find_graph_rep()  # kept with the model: data that come later may have another graph
        self.k_path_: list[tuple[str, int, int, str]] = []
        cells = self._read_cells(self._reader)
        empty = np.flatnonzero(np.asarray(cells.counts.sum(axis=1)).ravel() == 0)
        if len(empty):
            self._note(
                f"{len(empty)} cells have no count in any of the {len(self.gene_index_)} modelled genes (first: "
                f"{self.adata.obs_names[empty[0]]!r}); only their neighbours place them.",
                DataWarning,
            )
        self._points = self._rep_of(self.adata, cells)
        cells.graph = self._graph_of(cells, points=self._points)
        for note in cells.graph.notes:
            self._note(note, DataWarning)
        if cells.graph.truncated > 0.2:
            self._note(
                f"The propagation of a cell loses {cells.graph.truncated:.0%} of its mass by keeping "
                f"{self._walk_kwargs['k']} neighbours; raise n_propagation_neighbors or teleport.",
                DataWarning,
            )
        share = cells.counts.sum() / cells.totals.sum()
        self.gene_share_ = np.asarray(cells.counts.sum(axis=0)).ravel() / max(float(cells.counts.sum()), 1.0)
        self.module.modelled_share.fill_(float(share))
        self.module.head.init_bias(torch.from_numpy(np.asarray(cells.counts.mean(axis=0)).ravel()))
        cells.augmentation = Augmentation(*self._augmentation)
        cells.generator = streams.numpy("augment", 0)
        n_queue = min(self._queue_size, max(0, len(cells) - self._batch_size()))
        self.module.hold(n_cells=len(cells), n_queue=n_queue)
        self._cells, self._streams = cells, streams
        self._refresh(with_codes=False, by_similarity=False)
        self.module.keeper = lambda epoch, n_epochs: self._refresh(with_codes=False)
        return cells

    def _refresh(self, *, with_codes: bool, by_similarity: bool = True) -> bool:
        """Fill the bank by a clean pass, leave other edges out, and where there are prototypes renew the codes."""
        found = self._sweep(self._cells)
        self.module.bank = torch.from_numpy(found.h).to(self.module.bank.device)
        self._cells.drop_edges(found.fused if by_similarity else None)
        self._swept = found
        if with_codes:
            q = self._assign(found.fused)
            codes = torch.from_numpy(q.argmax(axis=1)).to(self.module.codes.device)
            before = self.module.codes
            self._changed = 1.0 if len(before) != len(codes) else float((before != codes).float().mean())
            self.module.codes = codes
            self.module.confidence = torch.from_numpy(q.max(axis=1).astype(np.float32)).to(codes.device)
        return False

    @torch.no_grad()
    def _sweep(self, cells: SiameseCells, *, x: sp.csr_matrix | None = None) -> Swept:
        """Embed all training cells as they are (S12, S13): no noise, no edge left out, both operators half and half.

        Parameters
        ----------
        cells
            With their graph.
        x
            (n, p) log-normalised input; None: that of the cells.
        """
        module, was_training = self.module, self.module.training
        module.eval()
        n = len(cells)
        blocks = [np.arange(s, min(s + BLOCK, n)) for s in range(0, n, BLOCK)]
        inputs = (cells.clean(rows) if x is None else x[rows] for rows in blocks)
        h = np.concatenate([self._encode(part) for part in inputs])
        if not np.isfinite(h).all():
            raise ConvergenceError(
                "The embedding is not finite; the weights so far are kept. Try train(plan_kwargs={'lr': 3e-4})."
            )
        lazy_h, pagerank_h = cells.graph.lazy @ h, cells.graph.pagerank @ h
        found = self._fuse(h, 0.5 * (lazy_h + pagerank_h))
        module.train(was_training)
        return Swept(h, pagerank_h, *found)

    def _encode(self, x: sp.csr_matrix) -> np.ndarray:
        """Return H (m, d) of log-normalised expression (m, p)."""
        dense = torch.from_numpy(x.toarray()).to(self.module.device)
        return self.module.hidden(dense).cpu().numpy()

    def _fuse(self, h: np.ndarray, smoothed: np.ndarray, *, use_graph: bool = True) -> tuple[np.ndarray, ...]:
        """Return Z_G, Z_C, Z (m, d) and the gate (m,) of H and of the mean of both propagated H."""
        device = self.module.device
        z_gene, z_graph = (
            layer(torch.from_numpy(np.asarray(values, dtype=np.float32)).to(device))
            for layer, values in ((self.module.to_gene, h), (self.module.to_graph, smoothed))
        )
        found = self.module.fuse(z_gene, z_graph, use_graph=use_graph)
        return tuple(t.cpu().numpy() for t in (found.gene, found.graph, found.fused, found.gate[:, 0]))

    @torch.no_grad()
    def _assign(self, z: np.ndarray) -> np.ndarray:
        """Return Q (n, K) of embeddings (n, d) to the power 1 / epsilon, as the transport takes it; rows sum to 1."""
        return (self._log_q(z).double() / self.temperature_).softmax(dim=1).numpy()

    def _soft(self, cells: SiameseCells, z: np.ndarray) -> np.ndarray:
        """S26: soft clusters (n, K) of training cells: in which cluster a short walk over the graph from a cell ends.

        The network is sure of every cell that it was trained on; its neighbours were found without it. The published
        form takes the network's word: its clusters are those of k-means.
        """
        q = self._assign(z)
        if cells.graph is None or self._variant == "paper":
            return q
        return np.asarray(cells.graph.pagerank.astype(np.float64) @ q)

    @torch.no_grad()
    def _log_q(self, z: np.ndarray) -> torch.Tensor:
        rows = torch.from_numpy(np.asarray(z, dtype=np.float32)).to(self.module.device)
        return torch.cat([self.module.log_q(rows[s : s + 8 * BLOCK]).cpu() for s in range(0, len(rows), 8 * BLOCK)])

    def _begin_transport(self, streams: Streams) -> SiameseCells:
        """Place prototypes on a clean pass, and start the schedule."""
        self._place_prototypes(streams)
        self.reseeds_: dict[int, int] = {}
        self._n_settled, self._threshold = 0, None
        self.temperature_ = self.module.targets.temperature
        self._refresh(with_codes=True)
        self.module.balance, self.module.mass = self._balance[0], eq.PARTIAL[0]
        self._cells.generator = streams.numpy("augment", 1)
        self.module.keeper = self._between_transport
        return self._cells

    def _place_prototypes(self, streams: Streams) -> None:
        found = self._sweep(self._cells)
        n_clusters = self._n_clusters
        if n_clusters == "auto" or self._merges_to_number:
            many = clusters.start_number(found.fused, self._n_neighbors - 1, seed=streams.integer("init", 2))
            n_clusters = many if n_clusters == "auto" else max(many, n_clusters)
        start = clusters.communities if self._start == "leiden" else clusters.kmeans
        centres, labels = start(found.fused, int(n_clusters), seed=streams.integer("init", 1))
        if self._refines and len(centres) > 1:
            centres, labels = clusters.refined(found.fused, labels)
        self.n_prototypes_ = len(centres)
        self.module.set_prototypes(torch.from_numpy(centres), self._wanted_sizes(labels, len(centres)))
        self.k_path_.append(("transport", 0, len(centres), self._start))

    def _wanted_sizes(self, labels: np.ndarray, k: int) -> torch.Tensor | None:
        """Return b of S22 (k,): sizes of k-means, those given (by falling size), or None for equal ones."""
        sizes = np.bincount(labels, minlength=k) / len(labels)
        if self._proportions_kind == "init":
            return torch.from_numpy(np.maximum(sizes, 1e-6) / np.maximum(sizes, 1e-6).sum())
        if self._proportions_kind == "given":
            # The largest cluster of k-means gets the largest share: clusters have no names yet.
            out = np.empty(k)
            out[np.argsort(-sizes, kind="stable")] = np.sort(self._given_sizes)[::-1]
            return torch.from_numpy(np.maximum(out, 1e-6))
        return None

    def _between_transport(self, epoch: int, n_epochs: int) -> bool:
        """Renew bank and codes, prune or re-seed, move the schedule; end where the codes have settled."""
        self._refresh(with_codes=True)
        if self._n_clusters == "auto" or self._merges_to_number:
            at = [max(1, round(f * n_epochs)) for f in PRUNE_AT]
            if epoch in at:
                self._prune("transport", epoch, to_go=len(at) - 1 - at.index(epoch))
                self._refresh(with_codes=True)
        else:
            self._reseed()
        fraction = epoch / n_epochs
        self.module.balance = eq.balance_at(fraction, *self._balance)
        self.module.mass = eq.PARTIAL[0] + (eq.PARTIAL[1] - eq.PARTIAL[0]) * fraction
        settled = self._changed < SETTLED and fraction > 0.75
        self._n_settled = self._n_settled + 1 if settled else 0
        return self._n_settled >= N_SETTLED

    def _reseed(self) -> None:
        """Put a prototype without cells on one of the least sure cells, each on another, twice at most."""
        sizes = np.bincount(self.module.codes.cpu().numpy(), minlength=self.n_prototypes_)
        worst = np.argsort(self.module.confidence.cpu().numpy(), kind="stable")
        for c in np.flatnonzero(sizes == 0):
            if self.reseeds_.get(int(c), 0) >= MAX_RESEEDS:
                continue
            place = worst[sum(self.reseeds_.values()) % len(worst)]
            self.reseeds_[int(c)] = self.reseeds_.get(int(c), 0) + 1
            with torch.no_grad():
                self.module.prototypes[c] = torch.from_numpy(self._swept.fused[place])
            self.module.targets.forget()

    def _halves(self, key: int) -> tuple[tuple[sp.csr_matrix, np.ndarray], tuple[sp.csr_matrix, np.ndarray]]:
        """Split the counts of all cells binomially; return either half with its totals over all genes."""
        cells, generator = self._cells, self._streams.numpy("augment", 2, key)
        parts = binomial_split(cells.counts, generator=generator)
        first = generator.binomial(cells.rest.astype(np.int64), 0.5)
        sums = [np.asarray(part.sum(axis=1, dtype=np.float64)).ravel() for part in parts]
        return (parts[0], sums[0] + first), (parts[1], sums[1] + cells.rest - first)

    def _codes_of(self, half: tuple[sp.csr_matrix, np.ndarray]) -> np.ndarray:
        """Return the clusters (n,) of cells that show only one half of their counts."""
        return self._log_q(self._sweep(self._cells, x=log_normalized(*half)).fused).argmax(dim=1).numpy()

    def _prune(self, stage: str, epoch: int, *, to_go: int = 0) -> None:
        """Merge and drop prototypes by marker genes: codes come from one half of the counts, genes from the other.

        Where the number is given, it is reached in equal steps, of which so many are to come.
        """
        cells, module = self._cells, self.module
        seen, (tested, _) = self._halves(epoch)
        codes = self._codes_of(seen)
        several = len(np.unique(cells.codes)) > 1
        alive = np.flatnonzero(module.alive.cpu().numpy())
        options: dict[str, Any] = {"min_markers": self._min_markers, "batches": cells.codes if several else None}
        if self._threshold is None:
            self._threshold = clusters.marker_threshold(tested, codes, **options)
        n_left = None
        if self._n_clusters != "auto":
            n_left = self._n_clusters + max(0, len(alive) - self._n_clusters) * to_go // (to_go + 1)
        found = clusters.prune(
            tested,
            codes,
            module.prototypes.detach().cpu().numpy()[alive],
            threshold=self._threshold,
            guard=self._rare_guard,
            merge=self._merges,
            n_left=n_left,
            # With batches a type may lie in two places, and what is nearest says little.
            nearest=self._merges_nearest and not several,
            **options,
        )
        sizes = torch.from_numpy(np.bincount(codes, minlength=len(alive)).astype(np.float32)).to(module.device)
        with torch.no_grad():
            for c in np.unique(found.into[found.into >= 0]):
                members = np.flatnonzero(found.into == c)
                if len(members) > 1:
                    weight = sizes[members] / sizes[members].sum().clamp_min(1e-8)
                    module.prototypes[alive[c]] = weight @ module.prototypes[alive[members]]
        gone = alive[found.into != np.arange(len(alive))]
        module.alive[gone] = False
        if len(gone):
            module.targets.forget()
        for step in found.steps or ["nothing to merge or drop"]:
            self.k_path_.append((stage, epoch, int(module.alive.sum()), step))

    # --- stage "finish" -------------------------------------------------------------------------------------------

    def _finish(self, streams: Streams) -> None:
        """Take the exact embedding, settle the clusters, and keep what new cells need."""
        module = self.module
        module.keeper = None
        self.temperature_ = module.targets.temperature
        with isolated(streams.integer("init", 3)):
            if self._loss_weights["transport"] == 0:
                self._place_prototypes(streams)
                self._threshold = None
            if self._n_clusters == "auto":
                self._prune("finish", 0)
        found = self._sweep(self._cells)
        self._order_prototypes(found.fused)
        self._keep_reference(found, streams)
        self._note_run(found, self._cells)
        module.hold(n_cells=0, n_queue=0)
        self._cells = self._points = self._swept = self._streams = None

    def _note_run(self, found: Swept, cells: SiameseCells) -> None:
        """Keep what queries and the report need of the training cells."""
        codes = self._soft(cells, found.fused).argmax(axis=1)
        self.gaussians_ = _shrunken_gaussians(found.fused, codes)
        self.codes_, self.batches_ = codes.astype(np.int32), cells.codes.astype(np.int32)
        self.library_ = cells.library.numpy().astype(np.float32)
        self.cells_ = self._digest()
        self.graph_summary_ = {
            "truncated_mass": cells.graph.truncated,
            "n_isolated": cells.graph.n_isolated,
            "n_components": cells.graph.n_components,
        }
        solves = self.module.targets
        self.sinkhorn_ = {
            "n_solves": solves.n_solves,
            "mean_sweeps": solves.n_sweeps / max(1, solves.n_solves),
            "n_unconverged": solves.n_unconverged,
        }
        self._own = (self.adata, cells, found)

    def _order_prototypes(self, z: np.ndarray) -> None:
        """Give clusters their numbers by falling size; drop those that have no cell."""
        alive = np.flatnonzero(self.module.alive.cpu().numpy())
        codes = self._soft(self._cells, z).argmax(axis=1)
        taken = np.unique(codes)
        if len(taken) < len(alive) and self._n_clusters != "auto":
            self._note(
                f"{len(alive) - len(taken)} of {len(alive)} clusters have no cell and are left out. Ask for fewer: "
                f"n_clusters={len(taken)}.",
                DataWarning,
            )
        if len(taken) == 1:
            self._note("All cells are in one cluster: no marker genes separate any two groups.", DataWarning)
        names = assign.ordered_clusters(codes)
        order = [alive[codes[np.flatnonzero(names == c)[0]]] for c in range(len(taken))]
        self.n_prototypes_ = len(order)
        self.module.set_prototypes(self.module.prototypes.detach()[order], self.module.proportions[order])
        self.k_path_.append(("finish", 0, len(order), "clusters with cells"))

    def _keep_reference(self, found: Swept, streams: Streams) -> None:
        """Keep coordinates, H, Pi H and soft clusters of the cells that new ones are placed beside."""
        soft = self._soft(self._cells, found.fused)
        rows = _stratified(soft.argmax(axis=1), self._max_reference, streams.numpy("sample", 9))
        self.reference_ = {
            "points": np.asarray(self._points[rows], dtype=np.float32),
            "h": found.h[rows],
            "pagerank_h": found.pagerank_h[rows].astype(np.float32),
            "soft": soft[rows].astype(np.float32),
        }


def _stratified(codes: np.ndarray, most: int, generator: np.random.Generator) -> np.ndarray:
    """Return at most about ``most`` cells, at least 50 of every cluster (or all it has)."""
    if len(codes) <= most:
        return np.arange(len(codes))
    kept = []
    for c in np.unique(codes):
        own = np.flatnonzero(codes == c)
        size = min(len(own), max(50, int(most * len(own) / len(codes))))
        kept.append(generator.choice(own, size, replace=False))
    return np.sort(np.concatenate(kept))


def _shrunken_gaussians(z: np.ndarray, codes: np.ndarray) -> dict[str, np.ndarray]:
    """Return mean (K, d) and a root of the covariance (K, d, d) of every cluster, shrunken (Ledoit and Wolf)."""
    from sklearn.covariance import ledoit_wolf

    means, roots = [], []
    for c in range(codes.max() + 1):
        own = z[codes == c].astype(np.float64)
        covariance = ledoit_wolf(own)[0] if len(own) > 1 else np.zeros((z.shape[1], z.shape[1]))
        means.append(own.mean(axis=0))
        roots.append(np.linalg.cholesky(covariance + 1e-9 * np.eye(len(covariance))))
    return {"mean": np.array(means), "root": np.array(roots)}
