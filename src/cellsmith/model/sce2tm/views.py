"""The external view: what it is, whom its cells have for neighbours (T15), and what it is worth (T21)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.linalg
from scipy import sparse
from scipy.sparse.csgraph import minimum_spanning_tree

from cellsmith._errors import SetupError, SizeError, nearest
from cellsmith._rng import Streams
from cellsmith.data.checks import place_of
from cellsmith.math import graph
from cellsmith.math.counts import binomial_split
from cellsmith.model.sce2tm.cells import ModelledCells, Neighbors

__all__ = ["Gate", "IndexedView", "check_view", "external_matrix", "index_view", "measure_gate", "pca_scores"]

MIN_VIEW_CELLS = 200
MAX_MATRIX_COLUMNS = 2_000
# The gate is a ratio of two means over cells: more of them change nothing that matters.
MAX_GATE_CELLS = 20_000
N_PERMUTATIONS = 20
# Standard deviations of 20 permutations that a view must beat: 3 of them let one of 40 views of noise pass, and with
# their own spread unknown (Student, 19 degrees of freedom) 5 do so less than once in 10,000.
BY_CHANCE = 5.0
N_SCORES, N_GATE_SCORES = 50, 30


def external_matrix(data: Any, setup: Mapping[str, Any]) -> Any:
    """Return the external view (n, E) of a registered object: an ``.obsm``, or a whole modality for ``"X"``."""
    key, modalities = setup["external_obsm_key"], setup.get("modalities")
    carrier = place_of(data, modalities, "external_obsm_key")
    return carrier.X if hasattr(data, "mod") and key == "X" and carrier is not data else carrier.obsm[key]


def check_view(data: Any, setup: Mapping[str, Any]) -> None:
    """Refuse an external view that no topic can be guided by.

    Raises
    ------
    SetupError
        If the key is absent, the cells are not those of the counts, a value is infinite, or fewer than 200 cells have
        the view. Rows of NaN mean that a cell has none.
    SizeError
        If a whole modality with more than 2,000 columns is asked for.
    """
    key, modalities = setup["external_obsm_key"], setup.get("modalities")
    if key is None:
        return
    carrier = place_of(data, modalities, "external_obsm_key")
    whole = hasattr(data, "mod") and key == "X" and carrier is not data
    if not whole and key not in carrier.obsm:
        raise SetupError(f"external_obsm_key={key!r} is not in .obsm. {nearest(key, carrier.obsm)}")
    values = external_matrix(data, setup)
    counts = place_of(data, modalities, "layer")
    if values.shape[0] != counts.n_obs or not np.array_equal(carrier.obs_names, counts.obs_names):
        raise SetupError(
            f"The external view has {values.shape[0]} cells that are not the {counts.n_obs} of the counts, in their "
            "order. Type mu.pp.intersect_obs(mdata), and give cells without a view rows of NaN."
        )
    if whole and values.shape[1] > MAX_MATRIX_COLUMNS:
        size = values.shape[0] * values.shape[1] * 4
        raise SizeError(
            f"external_obsm_key='X' would hold {values.shape[0]:,} x {values.shape[1]:,} numbers ({size:,} bytes); "
            f"expected at most {MAX_MATRIX_COLUMNS:,} columns. Reduce it first, and name the .obsm key of the result."
        )
    dense = _dense_rows(values)
    if np.isinf(dense).any():
        raise SetupError(f"The external view {key!r} holds infinite values; expected finite numbers, or rows of NaN.")
    n_present = int(_present(dense).sum())
    if n_present < MIN_VIEW_CELLS:
        raise SetupError(
            f"{n_present} of {len(dense)} cells have the external view {key!r}; expected at least {MIN_VIEW_CELLS} "
            "rows without NaN. Type external_obsm_key=None to train without it."
        )


def _dense_rows(values: Any) -> np.ndarray:
    rows = values.toarray() if sparse.issparse(values) else values
    return np.asarray(rows, dtype=np.float32).reshape(values.shape[0], -1)


def _present(view: np.ndarray) -> np.ndarray:
    return ~np.isnan(view).any(axis=1)


@dataclass(frozen=True)
class IndexedView:
    """What the stage "index" found of a view.

    Parameters
    ----------
    summary
        ``q`` and what it was measured from; see :meth:`cellsmith.model.SCE2TM.get_view_quality`.
    neighbors
        Whom cells may be paired with; None where the view is worth nothing.
    notes
        Warnings.
    """

    summary: dict[str, Any]
    neighbors: Neighbors | None
    notes: list[str] = field(default_factory=list)


def index_view(
    cells: ModelledCells,
    train: np.ndarray,
    matrix: Any,
    *,
    gate: str | float,
    n_neighbors: int,
    published: bool,
    streams: Streams,
) -> IndexedView:
    """Weigh an external view, and find the neighbours of the training cells in both views (T15, T21).

    Parameters
    ----------
    cells
        All registered cells.
    train
        (n_train,) positions of those that are trained on; no other takes part in anything here.
    matrix
        (n, E) external view; rows with NaN are absent.
    gate
        "explained", "overlap", "off", or the weight q itself.
    n_neighbors
        Neighbours a view, other cells.
    published
        Neighbours as in the public code: self kept, expression in all its dimensions, spanning-tree edges.
    streams
        "augment" draws halves of counts, permutations and neighbours.
    """
    view = _dense_rows(matrix)
    shown = train[_present(view[train])]
    notes = []
    if len(shown) < len(train):
        notes.append(f"{len(train) - len(shown)} of {len(train)} training cells have no external view; they are kept.")
    tables = _Tables(cells, train, shown, view, n_neighbors=n_neighbors, streams=streams)
    found = _weigh(tables, gate, published=published, notes=notes)
    summary = {"n_columns": int(view.shape[1]), "n_cells": len(shown), **vars(found)}
    if found.q == 0.0:
        return IndexedView(summary, None, notes)
    lists = tables.published() if published else tables.mutual()
    neighbors = Neighbors(*lists, view=view, generator=streams.numpy("augment", 3))
    return IndexedView(summary, neighbors, notes)


@dataclass(frozen=True)
class Gate:
    """What a view is worth, and why.

    Parameters
    ----------
    q
        Weight of the cross-view term, in [0, 1].
    explained
        e, share of the variance of half the counts that the view's neighbours explain.
    null
        e0, the same for permuted rows of the view, mean of 20.
    null_sd
        Their standard deviation.
    ceiling
        e1, the same for the neighbours by the other half of the counts.
    overlap
        T21b: overlap of the view's neighbours with those of expression, above chance, relative to that of the halves.
    n_gate_cells
        Cells that were used.
    """

    q: float
    explained: float = float("nan")
    null: float = float("nan")
    null_sd: float = float("nan")
    ceiling: float = float("nan")
    overlap: float = float("nan")
    n_gate_cells: int = 0


class _Tables:
    """The neighbour tables of both views, over the training cells."""

    def __init__(
        self,
        cells: ModelledCells,
        train: np.ndarray,
        shown: np.ndarray,
        view: np.ndarray,
        *,
        n_neighbors: int,
        streams: Streams,
    ) -> None:
        self.cells, self.train, self.shown, self.view = cells, train, shown, view
        self.k, self.streams = n_neighbors, streams
        self.seed = streams.integer("augment", 0)

    def batches(self, rows: np.ndarray) -> np.ndarray:
        """Return the level of the batch (n,) of some cells; 0 where none is registered."""
        codes = self.cells.codes.numpy()
        return codes[rows, 0] if codes.shape[1] else np.zeros(len(rows), dtype=np.int64)

    def knn(self, points: np.ndarray) -> np.ndarray:
        return graph.knn_table(points, min(self.k, len(points) - 1), seed=self.seed)[0]

    def unit_view(self, rows: np.ndarray) -> np.ndarray:
        values = self.view[rows].astype(np.float64)
        norms = np.linalg.norm(values, axis=1, keepdims=True)
        return values / np.where(norms > 0, norms, 1.0)

    def mutual(self) -> tuple[np.ndarray, np.ndarray]:
        """T15: mutual neighbours with fill-in, as positions among all cells; -1 where there are none."""
        x = self.cells.log_normalized(self.train)
        own = self.knn(pca_scores(x, N_SCORES, groups=self.batches(self.train)))
        other = self.knn(self.unit_view(self.shown))
        lists = [graph.mutual_neighbors(table)[0] for table in (own, other)]
        return self._placed(self.train, lists[0]), self._placed(self.shown, lists[1])

    def published(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the lists of the public code: the cell itself, mutual neighbours and partners of a spanning tree."""
        x = self.cells.log_normalized(self.train).toarray()
        lists = [_published_lists(points, self.k) for points in (x, self.view[self.shown])]
        return self._placed(self.train, lists[0]), self._placed(self.shown, lists[1])

    def _placed(self, rows: np.ndarray, table: np.ndarray) -> np.ndarray:
        out = np.full((len(self.cells), table.shape[1]), -1, dtype=np.int32)
        out[rows] = np.where(table >= 0, rows[table], -1)
        return out


def _published_lists(points: np.ndarray, k: int) -> np.ndarray:
    """Return up to k partners (n, k), the cell itself first, -1 at the end."""
    n = len(points)
    indices, distances = graph.knn_table(points, min(k - 1, n - 1), seed=0)
    rows = np.repeat(np.arange(n), indices.shape[1])
    # A duplicate is at distance 0, which a sparse matrix would drop.
    directed = sparse.csr_matrix((distances.ravel() + 1e-12, (rows, indices.ravel())), shape=(n, n))
    mutual = directed.minimum(directed.T)
    tree = minimum_spanning_tree(directed.maximum(directed.T))
    joined = mutual.maximum(tree).maximum(tree.T).tocoo()
    nearest = np.lexsort((joined.col, joined.data, joined.row))
    row, partner = joined.row[nearest], joined.col[nearest]
    place = 1 + np.arange(len(row)) - np.searchsorted(row, row)
    out = np.full((n, k), -1, dtype=np.int64)
    out[:, 0] = np.arange(n)
    out[row[place < k], place[place < k]] = partner[place < k]
    return out


def _weigh(tables: _Tables, gate: str | float, *, published: bool, notes: list[str]) -> Gate:
    view = tables.view[tables.shown]
    if np.ptp(view, axis=0).max() == 0:
        notes.append("The external view is the same for all cells; it is left out (q = 0).")
        return Gate(0.0)
    if published:
        return Gate(1.0)
    if not isinstance(gate, str):
        return Gate(float(gate))
    if gate == "off":
        notes.append("view_gate='off': the external view gets its full weight, whatever it is worth (q = 1).")
        return Gate(1.0)
    found = measure_gate(tables, by=gate)
    if found.ceiling <= found.null:
        notes.append("Expression itself has no reproducible neighbours; the external view is left out (q = 0).")
    return found


def measure_gate(tables: _Tables, *, by: str = "explained") -> Gate:
    """T21: q = clip((e - e0) / (e1 - e0), 0, 1), and 0 unless the view beats its own permutations by 5 sd.

    Counts are split into two binomial halves A and B. Neighbours are worth what they explain of the leading
    components of B: those of the view e, of its permuted rows e0 +- sd0, of expression in A e1. T21b ("overlap") does
    the same with the share of common neighbours, which undervalues coarse but right views. No label is read.
    """
    generator = tables.streams.numpy("augment", 1)
    rows = tables.shown
    if len(rows) > MAX_GATE_CELLS:
        rows = np.sort(generator.choice(rows, MAX_GATE_CELLS, replace=False))
    halves, batches = _halves(tables.cells, rows, generator), tables.batches(rows)
    y = pca_scores(halves[1], N_GATE_SCORES, groups=batches)
    table_a, table_b = (tables.knn(pca_scores(half, N_SCORES, groups=batches)) for half in halves)
    whole = tables.knn(pca_scores(tables.cells.log_normalized(rows), N_SCORES, groups=batches))
    external = tables.knn(tables.unit_view(rows))
    permuted = [graph.permuted_table(external, generator.permutation(len(rows))) for _ in range(N_PERMUTATIONS)]
    null = np.array([graph.explained_variance(y, table) for table in permuted])
    explained, ceiling = graph.explained_variance(y, external), graph.explained_variance(y, table_a)
    chance = np.array([graph.neighbor_overlap(table, whole) for table in permuted])
    common, most = graph.neighbor_overlap(external, whole), graph.neighbor_overlap(table_a, table_b)
    overlap = float(np.clip((common - chance.mean()) / most, 0.0, 1.0)) if most > 0 else 0.0
    if by == "overlap":
        q = overlap if common > chance.mean() + BY_CHANCE * chance.std() else 0.0
    elif ceiling > null.mean() and explained > null.mean() + BY_CHANCE * null.std():
        q = float(np.clip((explained - null.mean()) / (ceiling - null.mean()), 0.0, 1.0))
    else:
        q = 0.0
    return Gate(q, explained, float(null.mean()), float(null.std()), ceiling, overlap=overlap, n_gate_cells=len(rows))


def _halves(
    cells: ModelledCells, rows: np.ndarray, generator: np.random.Generator
) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Split counts binomially, and log-normalise both halves by their own totals over all genes."""
    counts = cells.counts[rows]
    rest = cells.totals.numpy().ravel()[rows].astype(np.int64) - np.asarray(counts.sum(axis=1)).ravel().astype(np.int64)
    parts = binomial_split(counts, generator=generator)
    first_rest = generator.binomial(np.maximum(rest, 0), 0.5)
    out = []
    for part, other in zip(parts, (first_rest, rest - first_rest), strict=True):
        totals = np.asarray(part.sum(axis=1)).ravel() + other
        half = ModelledCells(part, np.maximum(totals, 1.0), cells.codes[rows])
        out.append(half.log_normalized(np.arange(len(rows))))
    return out[0], out[1]


def pca_scores(x: sparse.csr_matrix, n_components: int, *, groups: np.ndarray) -> np.ndarray:
    """Leading principal components (n, d) of sparse x (n, V), each group centred by its own mean.

    Exact and free of random numbers: the eigenvectors of the V x V covariance.
    """
    n, n_genes = x.shape
    levels, codes = np.unique(groups, return_inverse=True)
    sizes = np.bincount(codes)
    members = sparse.csr_matrix((np.ones(n), (codes, np.arange(n))), shape=(len(levels), n))
    means = np.asarray((members @ x).todense()) / sizes[:, None]
    gram = -(means.T * sizes) @ means
    step = max(1, (1 << 24) // n_genes)
    for start in range(0, n, step):
        block = x[start : start + step].toarray()
        gram += block.T @ block
    d = min(n_components, n_genes, n - 1)
    axes = scipy.linalg.eigh(gram, subset_by_index=[n_genes - d, n_genes - 1])[1][:, ::-1]
    return x @ axes - (means @ axes)[codes]
