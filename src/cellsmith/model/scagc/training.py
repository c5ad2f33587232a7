"""What happens around the epochs of SCAGC: the first graph, the graph between epochs, and what stays at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scvi import REGISTRY_KEYS
from torch import Tensor

from cellsmith._errors import DataWarning, SetupError
from cellsmith._rng import Streams
from cellsmith.data.splits import csr_tensor, scipy_counts
from cellsmith.math import graph
from cellsmith.math.counts import binomial_thin, library_totals
from cellsmith.model.scagc import equations as eq
from cellsmith.model.scagc.clusters import choose_clusters
from cellsmith.model.scagc.first_space import FirstSpace, FirstTarget, first_space, mutual_partners
from cellsmith.model.scagc.module import ROWS_KEY, SEEN_KEY, SCAGCModule
from cellsmith.model.scagc.schedule import noisy_share
from cellsmith.model.scagc.tables import GraphTables, Rule

__all__ = ["EpochKeeper", "IndexedCells", "TrainingMixin"]

CHUNK = 2048
SMALL_BATCH = 5
# "settle" ends where fewer edges than this change between two checks, twice in a row.
TURNOVER, CHECK_EVERY = 0.01, 5
# "cluster" renews its target this often, and ends where fewer cells than this change cluster.
TARGET_EVERY, LABEL_CHANGE = 8, 0.001


class IndexedCells:
    """The registered cells, read with their positions: ``cells[indices] -> dict of tensors``.

    Parameters
    ----------
    reader
        :class:`cellsmith.data.splits.CellReader`.
    counts
        (n, G) the same counts.
    """

    def __init__(self, reader: Any, counts: sparse.csr_matrix) -> None:
        self._reader, self._counts = reader, counts
        self._seen = counts

    def split(self, generator: np.random.Generator | None) -> None:
        """Draw anew which half of its molecules every cell shows (S10); None: all of them."""
        self._seen = self._counts if generator is None else binomial_thin(self._counts, 0.5, generator=generator)

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, indices: np.ndarray) -> dict[str, Tensor]:
        rows = torch.from_numpy(np.asarray(indices, dtype=np.int64))
        return {**self._reader[indices], ROWS_KEY: rows, SEEN_KEY: csr_tensor(self._seen[indices])}


@dataclass
class EpochKeeper:
    """What is done to the graph between two epochs of a stage.

    Parameters
    ----------
    module
        The module in training.
    cells
        All cells.
    streams
        Root of the randomness.
    stage
        Number of the stage, which selects its child of the stream "noise".
    noise
        Scale of the noise at the first and at the last epoch, as fractions of the cosine schedule; None: no noise.
    noise_scale
        Where that schedule starts.
    redraws
        Whether the graph is drawn anew before every epoch; False keeps the first one.
    thins
        Whether cells show half of their molecules; False at the end, when nothing is predicted any more.
    renews_target
        Whether the stage trains the cluster head.
    """

    module: SCAGCModule
    cells: IndexedCells
    streams: Streams
    stage: int
    noise: tuple[float, float] | None = None
    noise_scale: float = 0.0
    redraws: bool = False
    thins: bool = True
    renews_target: bool = False
    turnovers: list[float] = field(default_factory=list)
    _before: np.ndarray | None = None
    _labels: Tensor | None = None

    def __call__(self, epoch: int, n_epochs: int) -> bool:
        """Prepare epoch ``epoch`` of ``n_epochs``; answer whether the stage may end before it."""
        tables, module = self.module.tables, self.module
        self.cells.split(self.streams.numpy("augment", 2, self.stage, epoch) if self.thins else None)
        if tables is None:
            return False
        tables.to(module.device).recompute(self.hidden(), hop_weights=module.hop_weights, bias=module.hop_bias)
        if not self.redraws:
            return False
        tables.scale_temperature()
        self._select(epoch, n_epochs)
        tables.move_in_degree()
        tables.recompute(self.hidden(), hop_weights=module.hop_weights, bias=module.hop_bias)
        if self.renews_target and epoch % TARGET_EVERY == 0:
            return self._renew_target()
        quiet = self.noise is None and not self.renews_target
        return quiet and epoch % CHECK_EVERY == 0 and self._is_settled()

    def _select(self, epoch: int, n_epochs: int) -> None:
        tables = self.module.tables
        if self.noise is None or self.noise_scale == 0:
            tables.select()
            return
        first, last = self.noise
        scale = eq.noise_at(first + (last - first) * epoch / max(1, n_epochs - 1), self.noise_scale)
        drawn = (
            graph.gumbel_noise(tables.candidates.shape, generator=self.streams.torch("noise", self.stage, epoch, which))
            for which in (0, 1)
        )
        tables.select(scale, tuple(drawn))

    def _is_settled(self) -> bool:
        now = self.module.tables.selected_pairs()
        if self._before is not None:
            self.turnovers.append(1.0 - float(np.isin(now, self._before, assume_unique=True).mean()))
        self._before = now
        return len(self.turnovers) > 1 and max(self.turnovers[-2:]) < TURNOVER

    def _renew_target(self) -> bool:
        from cellsmith.math.assign import student_t

        with torch.no_grad():
            q = student_t(self.module.tables.z, self.module.centers)
        self.module.target_sizes, labels, before = q.sum(dim=0), q.argmax(dim=1), self._labels
        self._labels = labels
        return before is not None and float((labels != before).float().mean()) < LABEL_CHANGE

    @torch.no_grad()
    def hidden(self) -> Tensor:
        """S1: hidden rows of all cells (n, n_hidden) by what they show, without dropout."""
        was_training = self.module.training
        self.module.eval()
        parts = []
        for start in range(0, len(self.cells), CHUNK):
            rows = np.arange(start, min(start + CHUNK, len(self.cells)))
            tensors = {k: v.to(self.module.device) for k, v in self.cells[rows].items() if v is not None}
            parts.append(self.module.hidden(self.module.halves(tensors)[0]))
        self.module.train(was_training)
        return torch.cat(parts)


class TrainingMixin:
    """Stages of :class:`cellsmith.model.SCAGC` that solve, and the refresh of those that train."""

    # --- stage "index" --------------------------------------------------------------------------------------------

    def _index(self, streams: Streams) -> None:
        """Measure library sizes, find the first coordinates, and form the first graph of their nearest cells (S2)."""
        if self._datamodule is not None:
            raise SetupError(
                "SCAGC needs to know which cell is which, and a data module does not say. Type "
                "SCAGC.setup_anndata(adata), SCAGC(adata), and train() without datamodule=."
            )
        counts = self._counts_in_memory()
        self._cells = IndexedCells(self._reader, counts)
        self.module.median_total.fill_(float(np.median(library_totals(counts))))
        if REGISTRY_KEYS.SIZE_FACTOR_KEY in self.adata_manager.data_registry:
            factor = np.asarray(self.adata_manager.get_from_registry(REGISTRY_KEYS.SIZE_FACTOR_KEY), dtype=np.float64)
            self.module.median_factor.fill_(float(np.median(factor)))
        self._first: FirstSpace = first_space(counts, self._given_rep())
        batches = self._sample_batches()
        self._warn_of_small_batches(batches)
        self.module.partners = None
        if batches is not None and self._weights["contrast"] > 0:
            found = mutual_partners(self._first.scores, batches, seed=streams.integer("init", 4))
            self.module.partners = torch.from_numpy(found)
        self._turnovers: list[float] = []
        if self._variant == "default" and self._weights["first"] > 0:
            self.module.first_target = FirstTarget(self._first, n_latent=self.module.n_latent)
        m, k = self._sizes()
        rule = Rule(k, self._rule["edge_temperature"], self._hub_penalty(), self._rule["relaxation_temperature"])
        found = graph.candidate_table(
            self._first.scores, m, batches=batches, exact_below=50_000, seed=streams.integer("init", 1)
        )
        z = torch.from_numpy(self._first.scores.astype(np.float32))
        self._first_gap = eq.cosine_gap(z - z.mean(dim=0), torch.from_numpy(found))
        self._candidates = found
        if self._graph == "random":
            found = _rewired(found[:, :k], streams.numpy("init", 5))
        size = {"n_hops": self.module.n_hops, "n_latent": self.module.n_latent}
        self.module.tables = None
        if self.is_untrained_ or (self._graph != "none" and self._variant == "default"):
            self.module.tables = GraphTables(found, z, rule=rule, **size)
            if self._graph == "learned":
                self.module.tables.select()
            else:
                self.module.tables.select_nearest()

    def _given_rep(self) -> np.ndarray | None:
        setup = self.registry["setup_args"]
        if setup.get("use_rep") is None:
            return None
        place = (setup.get("modalities") or {}).get("use_rep")
        carrier = self.adata if place is None else self.adata.mod[place]
        return np.asarray(carrier.obsm[setup["use_rep"]], dtype=np.float64)

    def _sample_batches(self) -> np.ndarray | None:
        """Return the batch of every cell (n,); None where there is one."""
        codes = np.asarray(self.adata_manager.get_from_registry(REGISTRY_KEYS.BATCH_KEY)).reshape(-1)
        return codes if len(np.unique(codes)) > 1 else None

    def _warn_of_small_batches(self, batches: np.ndarray | None) -> None:
        if batches is None:
            return
        sizes = np.bincount(batches)
        small = np.flatnonzero((sizes > 0) & (sizes < SMALL_BATCH))
        if len(small):
            names = self.registry["field_registries"]["batch"]["state_registry"]["categorical_mapping"]
            self._note(
                f"Batch {str(names[small[0]])!r} has {sizes[small[0]]} cells, fewer than {SMALL_BATCH}; its quota of "
                "candidates is lowered to what it has.",
                DataWarning,
            )

    # --- before the stages over cells -----------------------------------------------------------------------------

    def _keep(self, streams: Streams, number: int, **how: Any) -> IndexedCells:
        """Hand the module a keeper of the graph for the coming stage, prepare its first epoch, return the cells."""
        module = self.module
        self._leave_keeper()
        module.negatives = streams.torch("sample", number)
        module.keeper = EpochKeeper(module, self._cells, streams, number, noise_scale=self._noise_scale, **how)
        module.keeper(0, 2)
        return self._cells

    def _leave_keeper(self) -> None:
        if self.module.keeper is not None:
            self._turnovers += self.module.keeper.turnovers
        self.module.keeper = None

    def _start_warmup(self, streams: Streams) -> IndexedCells:
        return self._keep(streams, 0)

    def _start_fixed(self, streams: Streams) -> IndexedCells:
        return self._keep(streams, 1)

    def _start_graph(self, streams: Streams) -> IndexedCells:
        return self._keep(streams, 1, noise=(0.0, noisy_share(self._noise_scale)), redraws=True)

    def _start_anneal(self, streams: Streams) -> IndexedCells:
        return self._keep(streams, 2, noise=(noisy_share(self._noise_scale), 1.0), redraws=True)

    def _start_settle(self, streams: Streams) -> IndexedCells:
        return self._keep(streams, 3, redraws=True)

    def _start_cluster(self, streams: Streams) -> IndexedCells:
        self.module.centers.data.copy_(_means(self.module.tables.z.cpu(), self._labels))
        return self._keep(streams, 4, redraws=True, renews_target=True)

    # --- stage "export" -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _export(self, streams: Streams) -> None:
        """Compute every latent exactly on the graph without noise, form the graph that is written, and cluster it."""
        module = self.module
        self._leave_keeper()
        latents = self._exact_latents(streams)
        z, alone, k = latents["z"], latents["alone"], self._sizes()[1]
        center = alone.mean(dim=0)
        found = self._candidates
        if self._variant == "paper" and not self.is_untrained_:
            found = graph.candidate_table(alone.numpy(), self._sizes()[0], seed=streams.integer("init", 1))
        listed = torch.from_numpy(found)
        gap = eq.cosine_gap(alone - center, listed)
        temperature = eq.scaled_temperature(self._rule["edge_temperature"], gap, self._first_gap)
        rule = {"edge_temperature": temperature, "hub_penalty": self._hub_penalty(), "k": k}
        in_degree = graph.settled_in_degrees(alone - center, listed, **rule)
        logits = graph.edge_logits(alone - center, listed, in_degrees=in_degree, **rule)
        exported = graph.export_graph(logits.numpy(), found, (alone - center).numpy(), k=k)
        module.fitted.keep(
            {
                **latents,
                "in_degree": in_degree,
                "temperature": torch.tensor(temperature),
                "center": center,
                "candidates": listed,
                "indptr": exported.connectivities.indptr.astype(np.int64),
                "indices": exported.connectivities.indices.astype(np.int32),
                "weights": exported.connectivities.data,
                "distances": exported.distances.data,
                "cluster": torch.full((len(z),), -1, dtype=torch.int32),
                **({f"axis_{name}": value for name, value in self._first.axes.items()} if self.is_untrained_ else {}),
            }
        )
        choice = choose_clusters(
            exported.connectivities,
            self._n_clusters,
            counts=self._counts_in_memory,
            batches=self._sample_batches(),
            perturbed=lambda n: self._perturbed_graphs(n, streams),
            streams=streams,
        )
        for message in choice.notes:
            self._note(message, DataWarning)
        self.merges_, self.stability_, self._labels = choice.merges, choice.stability, choice.labels
        if choice.labels is not None:
            module.fitted.cluster.copy_(torch.from_numpy(choice.labels.astype(np.int32)))
            self.n_clusters_ = int(choice.labels.max()) + 1
            if self._cluster_head == "dec" and module.centers is None:
                module.centers = torch.nn.Parameter(_means(z, choice.labels))
        self.reference_ = np.asarray(self.adata.obs_names, dtype=np.object_)
        self.graph_ = {
            "n_bridges": exported.n_bridges,
            "n_components": exported.n_bridges + 1,
            "turnover": np.asarray(self._turnovers),
        }
        if self._cluster_head == "none" or self.is_untrained_:
            self._forget_run()

    def _exact_latents(self, streams: Streams) -> Mapping[str, Tensor]:
        """Return z and e (n, d), the hops (K, n, d) and the degrees (n,) of the final graph."""
        module, tables = self.module, self.module.tables
        if self.is_untrained_:
            z = torch.from_numpy(self._first.scores.astype(np.float32))
            return {"z": z, "alone": z, "hops": torch.zeros(0, *z.shape), "degree": torch.ones(len(z))}
        if self._variant == "paper":
            return self._published_latents()
        keeper = EpochKeeper(module, self._cells, streams, 9, redraws=True, thins=False)
        self._cells.split(None)
        h = keeper.hidden()
        if tables is None:
            z = (h @ module.hop_weights[0] + module.hop_bias).cpu()
            return {"z": z, "alone": z, "hops": torch.zeros(0, *z.shape), "degree": torch.ones(len(z))}
        if self._graph == "learned":
            keeper(0, 2)
        else:
            tables.recompute(h, hop_weights=module.hop_weights, bias=module.hop_bias)
        kept = {"z": tables.z, "alone": tables.alone, "hops": tables.hops, "degree": tables.degree[0]}
        return {name: value.cpu() for name, value in kept.items()}

    def _assign(self, streams: Streams) -> None:
        """Compute the exact latents once more after the head was trained, and take its clusters."""
        from cellsmith.math.assign import student_t

        wanted, self._n_clusters = self._n_clusters, None
        merges, stability = self.merges_, self.stability_
        self._export(streams)
        self._n_clusters, self.merges_, self.stability_ = wanted, merges, stability
        with torch.no_grad():
            q = student_t(self.module.fitted.z, self.module.centers.to(self.module.fitted.z.device))
        self.module.fitted.cluster.copy_(q.argmax(dim=1).int())
        self._forget_run()

    def _forget_run(self) -> None:
        """Drop what only a running training needs."""
        self.module.forget()
        self._cells = None

    def _counts_in_memory(self) -> Any:
        parts = [
            scipy_counts(self._reader[np.arange(start, min(start + CHUNK, len(self._reader)))][REGISTRY_KEYS.X_KEY])
            for start in range(0, len(self._reader), CHUNK)
        ]
        return sparse.vstack(parts, format="csr")


def _means(z: Tensor, labels: np.ndarray) -> Tensor:
    """Return the mean latent of every cluster, (C, d)."""
    codes = torch.from_numpy(np.asarray(labels, dtype=np.int64))
    sums = torch.zeros(int(codes.max()) + 1, z.shape[1]).index_add(0, codes, z)
    return sums / torch.bincount(codes)[:, None]


def _rewired(table: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return a random table (n, k) of other cells in which every cell is named about as often as in the given one."""
    n, k = table.shape
    ends = generator.permutation(table.reshape(-1)).reshape(n, k)
    for _ in range(100):  # a row must name other cells, each once
        ordered = np.sort(ends, axis=1)
        bad = np.flatnonzero((ends == np.arange(n)[:, None]).any(axis=1) | (np.diff(ordered, axis=1) == 0).any(axis=1))
        if not len(bad):
            return ends
        rows = np.r_[bad, generator.integers(n, size=len(bad))]
        rows = np.unique(rows)
        ends[rows] = generator.permutation(ends[rows].reshape(-1)).reshape(len(rows), k)
    for i in bad:  # a hub of a tiny graph may fit nowhere else
        ends[i] = generator.choice(np.delete(np.arange(n), i), size=k, replace=False)
    return ends
