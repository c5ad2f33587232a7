"""The graph while it is trained: candidates, selections, and the historical tables of the hops (S2, S9)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cellsmith.math import graph
from cellsmith.model.scagc import equations as eq
from cellsmith.nn.propagation import batch_hops, batch_pattern, pair_pattern

__all__ = ["BatchEdges", "GraphTables", "Rule"]

# Cells whose candidates are scored together.
CHUNK = 8192


class Rule(NamedTuple):
    """How edges are scored (S3) and relaxed (S5); see :class:`cellsmith.model.SCAGC`."""

    n_neighbors: int
    edge_temperature: float
    hub_penalty: float
    relaxation_temperature: float


class BatchEdges(NamedTuple):
    """The edges of the cells of a batch, one entry for each direction that ends in the batch.

    Parameters
    ----------
    row
        (E,) position in the batch of the cell that listens.
    cell
        (E,) the cell that is listened to, among all cells.
    place
        (E,) its position in the batch, -1 where it is not there.
    slot
        (E,) its place among the candidates of the row, -1 where it is none.
    reverse_slot
        (E,) place of the row among its candidates, -1 where it is none.
    """

    row: Tensor
    cell: Tensor
    place: Tensor
    slot: Tensor
    reverse_slot: Tensor


class GraphTables:
    """Candidates, two draws of the graph, and the last known value of every hop of every cell.

    Parameters
    ----------
    candidates
        (n, M) candidates of every cell.
    first
        (n, d') coordinates that the first edges are scored by.
    rule
        How edges are scored.
    n_hops, n_latent
        K and d.
    """

    def __init__(self, candidates: np.ndarray, first: Tensor, *, rule: Rule, n_hops: int, n_latent: int) -> None:
        n = len(candidates)
        self.rule, self.n_cells = rule, n
        self.hops = torch.zeros(n_hops, n, n_latent)
        self.z = torch.zeros(n, n_latent)
        self.alone, self.center = first, first.mean(dim=0)
        self.in_degree = torch.full((n,), float(rule.n_neighbors))
        self.temperature = rule.edge_temperature
        self.noise: tuple[Tensor | None, Tensor | None] = (None, None)
        self.noise_scale, self.is_fixed = 0.0, True
        self._position = torch.full((n,), -1, dtype=torch.long)
        self.set_candidates(candidates)
        self._first_gap = eq.cosine_gap(first - self.center, self.candidates)

    def scale_temperature(self) -> None:
        """S3: keep the temperature in units of the gaps between the latents as they are now."""
        gap = eq.cosine_gap(self.alone - self.center, self.candidates)
        self.temperature = eq.scaled_temperature(self.rule.edge_temperature, gap, self._first_gap)

    # --- S2: candidates and pairs ---------------------------------------------------------------------------------

    def set_candidates(self, candidates: np.ndarray) -> None:
        """Take a new table (n, M) and form its pairs; what was selected is void until the next selection."""
        self.candidates = torch.from_numpy(np.ascontiguousarray(candidates, dtype=np.int32))
        self.pairs = graph.Pairs(*(torch.from_numpy(part) for part in graph.pair_list(candidates)))
        row, col, slot, reverse = self.pairs
        source = torch.cat([row, col])
        order = torch.argsort(source, stable=True)
        self._start = torch.searchsorted(source[order], torch.arange(self.n_cells + 1))
        self._cell = torch.cat([col, row])[order].int()
        self._slot = torch.cat([slot, reverse])[order].short()
        self._reverse = torch.cat([reverse, slot])[order].short()
        self.selected = torch.zeros(2, *self.candidates.shape, dtype=torch.bool)
        self.degree = torch.ones(2, self.n_cells)

    def to(self, device: torch.device) -> GraphTables:
        """Move everything to a device, where it is not there yet."""
        if self.alone.device != device:
            for name, value in vars(self).items():
                if isinstance(value, Tensor):
                    setattr(self, name, value.to(device))
            self.pairs = graph.Pairs(*(part.to(device) for part in self.pairs))
            self.noise = _on(device, self.noise)
        return self

    # --- S3 to S7 over all cells, without gradient ----------------------------------------------------------------

    @torch.no_grad()
    def logits(self, rows: slice = slice(None)) -> Tensor:
        """S3: logits (n, M) of the latents that every cell has alone."""
        centred = self.alone - self.center
        return graph.edge_logits(
            centred[rows],
            self.candidates[rows],
            centred,
            edge_temperature=self.temperature,
            hub_penalty=self.rule.hub_penalty,
            in_degrees=self.in_degree,
            k=self.rule.n_neighbors,
        )

    @torch.no_grad()
    def select(self, noise_scale: float = 0.0, noise: tuple[Tensor | None, Tensor | None] = (None, None)) -> None:
        """S4: draw both graphs of all cells with noise tables (n, M); without noise they are the same."""
        device = self.alone.device
        self.noise_scale, self.noise = (
            noise_scale,
            tuple(table if table is None else table.to(device) for table in noise),
        )
        for start in range(0, self.n_cells, CHUNK):
            rows = slice(start, start + CHUNK)
            logits = self.logits(rows)
            for which in (0, 1):
                self.selected[which, rows] = self._drawn(logits, rows, which)[0].bool()
        self._count_degrees()

    def select_nearest(self) -> None:
        """Select the first k candidates of every cell, whatever their logits."""
        self.selected.zero_()
        self.selected[:, :, : self.rule.n_neighbors] = True
        self._count_degrees()

    def _drawn(self, logits: Tensor, rows: Any, which: int | None) -> tuple[Tensor, Tensor]:
        noise = None if which is None else self.noise[which]
        return graph.gumbel_topk(
            logits,
            self.rule.n_neighbors,
            noise_scale=0.0 if noise is None else self.noise_scale,
            relaxation_temperature=self.rule.relaxation_temperature,
            noise=None if noise is None else noise[rows],
        )

    def _count_degrees(self) -> None:
        for which in (0, 1):
            weights = graph.edge_union(self.selected[which].float(), self.pairs)
            self.degree[which] = graph.pair_degrees(weights, self.pairs, n_cells=self.n_cells)

    def counted_in_degree(self, which: int = 0) -> Tensor:
        """Return how many cells selected each cell, (n,)."""
        chosen = self.candidates[self.selected[which]].long()
        return torch.bincount(chosen, minlength=self.n_cells).float()

    def move_in_degree(self) -> None:
        """S3: let the running in-degree follow the last selection."""
        self.in_degree = eq.move_in_degree(self.in_degree, self.counted_in_degree())

    def selected_pairs(self) -> np.ndarray:
        """Return the directed selection as sorted numbers i n + j, for comparing two of them."""
        rows, slots = torch.nonzero(self.selected[0], as_tuple=True)
        return np.sort((rows * self.n_cells + self.candidates[rows, slots].long()).cpu().numpy())

    @torch.no_grad()
    def recompute(self, h: Tensor, *, hop_weights: Tensor, bias: Tensor) -> None:
        """S8, S9: all rows exactly, from the hidden rows h (n, n_hidden) and the weights (K + 1, n_hidden, d)."""
        weights = graph.edge_union(self.selected[0].float(), self.pairs)
        used = weights > 0
        pairs = graph.Pairs(*(part[used] for part in self.pairs))
        weights = graph.edge_normalise(weights[used], pairs, n_cells=self.n_cells, degrees=self.degree[0])
        self.alone = h @ hop_weights.sum(dim=0) + bias
        self.center = self.alone.mean(dim=0)
        self.z, self.hops = batch_hops(
            h,
            weights,
            pair_pattern(pairs.row, pairs.col, n_cells=self.n_cells),
            hop_weights=hop_weights,
            bias=bias,
            outside=torch.zeros(0, dtype=torch.long, device=h.device),
            stored=self.hops,
            backend="csr",
        )

    # --- the cells of a batch -------------------------------------------------------------------------------------

    def batch_edges(self, rows: Tensor, *, which: int = 0, only_selected: bool) -> BatchEdges:
        """Return the edges that end in a batch.

        Parameters
        ----------
        rows
            (b,) the cells, each once.
        which
            Draw of the graph.
        only_selected
            Leave out what is not selected in either direction. Else only what can be neither selected nor have a
            gradient is left out: pairs that the row does not list, and that the cached selection does not hold.
        """
        start, stop = self._start[rows], self._start[rows + 1]
        length = stop - start
        row = torch.repeat_interleave(length)
        entry = torch.arange(len(row), device=rows.device) + torch.repeat_interleave(
            start - (length.cumsum(0) - length), length
        )
        cell, slot, reverse = self._cell[entry].long(), self._slot[entry].long(), self._reverse[entry].long()
        self._position[rows] = torch.arange(len(rows), device=rows.device)
        place = self._position[cell]
        self._position[rows] = -1
        selected = self.selected[which]
        back = (reverse >= 0) & selected[cell, reverse.clamp(min=0)]
        if only_selected:
            kept = back | ((slot >= 0) & selected[rows[row], slot.clamp(min=0)])
        else:
            kept = (slot >= 0) | back | ((place >= 0) & (reverse >= 0))
        return BatchEdges(*(part[kept] for part in (row, cell, place, slot, reverse)))

    def draw_rows(self, rows: Tensor, alone: Tensor, *, which: int | None) -> tuple[Tensor, Tensor]:
        """S3 to S5: select anew for the cells of a batch by what they are alone (b, d), with gradient.

        Parameters
        ----------
        rows, alone
            The cells and their latents e.
        which
            Draw of the graph, with its noise; None: without noise.

        Returns
        -------
        The straight-through weights and the hard selection, (b, M) each.
        """
        listed = self.candidates[rows].long()
        flat = listed.reshape(-1)
        logits = graph.edge_logits(
            alone - self.center,
            torch.arange(flat.numel(), device=flat.device).reshape(listed.shape),
            self.alone[flat] - self.center,
            edge_temperature=self.temperature,
            hub_penalty=self.rule.hub_penalty,
            in_degrees=self.in_degree[flat],
            k=self.rule.n_neighbors,
        )
        hard, relaxed = self._drawn(logits, rows, which)
        return graph.straight_through(hard, relaxed), hard

    def batch_weights(
        self, rows: Tensor, edges: BatchEdges, *, which: int = 0, own: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """S6, S7: normalised weights (E,) of the edges of a batch, and the degrees (b,) of its cells.

        Parameters
        ----------
        rows
            (b,) the cells.
        edges
            Their edges.
        which
            Draw of the graph.
        own
            (b, M) weights of the candidates of the batch, with gradient; None: the cached selection.
        """
        own = self.selected[which, rows].float() if own is None else own
        there = torch.where(edges.slot >= 0, own[edges.row, edges.slot.clamp(min=0)], 0.0)
        cached = self.selected[which][edges.cell, edges.reverse_slot.clamp(min=0)].float()
        fresh = own[edges.place.clamp(min=0), edges.reverse_slot.clamp(min=0)]
        back = torch.where(edges.reverse_slot >= 0, torch.where(edges.place >= 0, fresh, cached), 0.0)
        weights = there + back - there * back
        degree = weights.new_zeros(len(rows)).index_add(0, edges.row, weights)
        root = degree.clamp(min=1e-8).rsqrt()
        stored = self.degree[which][edges.cell].clamp(min=1e-8).rsqrt()
        other = torch.where(edges.place >= 0, root[edges.place.clamp(min=0)], stored)
        return weights * root[edges.row] * other, degree

    def filter_rows(
        self, rows: Tensor, edges: BatchEdges, weights: Tensor, *, h: Tensor, hop_weights: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """S9: latents (b, d) of a batch and its rows of T_1 ... T_K (K, b, d), from hidden rows h (b, n_hidden)."""
        pattern, outside = batch_pattern(edges.row, edges.cell, batch=rows, n_cells=self.n_cells)
        return batch_hops(h, weights, pattern, hop_weights=hop_weights, bias=bias, outside=outside, stored=self.hops)

    def store_rows(self, rows: Tensor, z: Tensor, hops: Tensor, *, alone: Tensor) -> None:
        """S9: write the fresh latents z and e (b, d) and hops (K, b, d) of a batch back."""
        self.z[rows], self.alone[rows] = z.detach(), alone.detach()
        self.hops[:, rows] = hops

    def store_selection(self, rows: Tensor, hard: Tensor, degree: Tensor, *, which: int) -> None:
        """Write the selection (b, M) of a batch and its degrees (b,) back."""
        self.selected[which, rows] = hard.bool()
        self.degree[which, rows] = degree.detach()


def _on(device: torch.device, tables: tuple[Tensor | None, Tensor | None]) -> tuple[Tensor | None, Tensor | None]:
    """Return both noise tables on a device."""
    first, second = (table if table is None else table.to(device) for table in tables)
    return first, second
