"""What a trained scSiameseClu answers: embeddings, clusters, gate, graph and expression, of old cells and new ones."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from cellsmith import _record
from cellsmith._errors import DataWarning, SetupError, nearest
from cellsmith.data.checks import check_counts, check_names, counts_carrier, place_of
from cellsmith.data.graphs import given_graph, read_graph
from cellsmith.data.splits import CellReader
from cellsmith.math import graph
from cellsmith.model.scsiameseclu import graphs
from cellsmith.model.scsiameseclu.cells import SiameseCells
from cellsmith.model.scsiameseclu.training import BLOCK, Swept

__all__ = ["Placed", "QueryMixin"]

# Share of the modelled genes that new cells may lack.
MAX_MISSING = 0.2


class Placed(NamedTuple):
    """Cells with their embeddings.

    Attributes
    ----------
    cells
        Their counts.
    swept
        Their embeddings; H and Pi H are those of training cells only.
    coverage
        Share of the modelled genes' training counts that the cells can show; 1 where no gene is missing.
    names
        (m,) names of the cells.
    soft
        (m, K) soft clusters.
    """

    cells: SiameseCells
    swept: Swept
    coverage: float
    names: pd.Index
    soft: np.ndarray


class QueryMixin:
    """Queries of :class:`cellsmith.model.ScSiameseClu` that return and never write."""

    def _setup(self, argument: str) -> Any:
        return self.registry["setup_args"].get(argument)

    def _place(self, data: Any, argument: str) -> Any:
        return place_of(data, self._setup("modalities"), argument)

    def _neighbors_key(self) -> str | None:
        return self._setup("neighbors_key")

    def _rep_key(self) -> str | None:
        """Return the embedding for neighbours: the registered one, or the one that the user's graph was built on."""
        return self._setup("use_rep") or self.graph_rep_

    def _find_graph_rep(self) -> str | None:
        """Return the embedding that the user's graph names as its own, if it is there."""
        if self._neighbors_key() is None:
            return None
        carrier = self._place(self.adata, "neighbors_key")
        block = carrier.uns.get(self._neighbors_key())
        named = (block.get("params") or {}).get("use_rep") if hasattr(block, "get") else None
        return named if isinstance(named, str) and named in self._place(self.adata, "use_rep").obsm else None

    def _given_graph(self) -> tuple[sp.csr_matrix, list[str]]:
        found, name = given_graph(self._place(self.adata, "neighbors_key"), self._neighbors_key())
        return read_graph(found, self.adata.n_obs, where=f".obsp[{name!r}]")

    def _digest(self) -> str:
        """Return a name for the set of cells of the training object, whatever their order."""
        return _record.hash_names(sorted(map(str, counts_carrier(self.adata, self._setup("modalities")).obs_names)))

    # --- placing cells --------------------------------------------------------------------------------------------

    def _placed(self, adata: Any = None, *, use_graph: bool = True) -> Placed:
        """Embed cells: those of training within their graph, all others beside it."""
        if adata is None and self.adata is None:
            raise SetupError("This model has no training object. Type adata=..., the cells that you ask about.")
        data = self.adata if adata is None else adata
        if data is self.adata and self._digest() == self.cells_:
            cells, swept = self._training_cells()
            names = counts_carrier(data, self._setup("modalities")).obs_names
            if use_graph or self._variant == "paper":
                return Placed(cells, swept, 1.0, names, self._soft(cells, swept.fused))
            swept, soft = self._beside(cells, None)
            return Placed(cells, swept, 1.0, names, soft)
        if self._variant == "paper":
            raise SetupError(
                "variant='paper' cannot place new cells: its fusion weights belong to the training cells. Train "
                "variant='default', or ask about the training object."
            )
        cells, coverage, names = self._read_query(data)
        points = self._rep_of(data, cells) if use_graph else None
        swept, soft = self._beside(cells, points)
        return Placed(cells, swept, coverage, names, soft)

    def _training_cells(self) -> tuple[SiameseCells, Swept]:
        """Return the training cells with their graph, built anew after loading."""
        if self._own is None or self._own[0] is not self.adata:
            if self._variant == "paper":
                self._own = (self.adata, *self._paper_cells())
                return self._own[1], self._own[2]
            cells = self._read_cells(CellReader(self.adata_manager))
            cells.graph = self._graph_of(cells, points=self._rep_of(self.adata, cells))
            self._own = (self.adata, cells, self._sweep(cells))
        return self._own[1], self._own[2]

    @torch.no_grad()
    def _beside(self, cells: SiameseCells, points: np.ndarray | None) -> tuple[Swept, np.ndarray]:
        """S9: embed cells beside the reference, each by itself; without coordinates by their own genes alone.

        Returns the embeddings and the soft clusters: S26, of a walk that may go on to the reference.
        """
        self.module.eval()
        blocks = [np.arange(s, min(s + BLOCK, len(cells))) for s in range(0, len(cells), BLOCK)]
        h = np.concatenate([self._encode(cells.clean(rows)) for rows in blocks])
        if points is None:
            swept = Swept(h, h, *self._fuse(h, h, use_graph=False))
            return swept, self._assign(swept.fused)
        kept, a = self.reference_, self._walk_kwargs["teleport"]
        w = graphs.neighbor_weights(points, kept["points"], self._n_neighbors - 1, seed=self._graph_seed())
        lazy, pagerank = (graph.place_beside(h, w, kept[name], teleport=a) for name in ("h", "pagerank_h"))
        swept = Swept(h, pagerank, *self._fuse(h, 0.5 * (lazy + pagerank)))
        return swept, graph.place_beside(self._assign(swept.fused), w, kept["soft"], teleport=a)

    def _read_query(self, data: Any) -> tuple[SiameseCells, float, pd.Index]:
        """Read new cells: genes by name, batches by name; nothing is registered or changed."""
        modalities, layer = self._setup("modalities"), self._setup("layer")
        carrier = counts_carrier(data, modalities)
        check_names(carrier)
        check_counts(carrier, layer, min_cells=1)
        x = carrier.X if layer is None else carrier.layers[layer]
        genes = self._training_genes()[self.gene_index_]
        place = carrier.var_names.get_indexer(pd.Index(genes))
        missing = genes[place < 0]
        if len(missing) > MAX_MISSING * len(genes):
            raise SetupError(
                f"{len(missing)} of the {len(genes)} modelled genes are missing (first: {', '.join(missing[:3])}); "
                f"expected at most {MAX_MISSING:.0%}. Name the genes as in training: model.get_var_names()."
            )
        parts, totals = [], []
        for start in range(0, carrier.n_obs, BLOCK):
            block = sp.csr_matrix(x[start : start + BLOCK], dtype=np.float32)
            totals.append(np.asarray(block.sum(axis=1, dtype=np.float64)).ravel())
            wide = sp.hstack([block, sp.csr_matrix((block.shape[0], 1), dtype=np.float32)], format="csr")
            parts.append(wide[:, np.where(place >= 0, place, block.shape[1])])
        counts, total = sp.vstack(parts, format="csr"), np.concatenate(totals)
        library = total
        if (key := self._setup("size_factor_key")) is not None:
            obs = self._place(data, "size_factor_key").obs
            if key not in obs:
                raise SetupError(f"size_factor_key={key!r} is not a column of .obs. {nearest(key, obs.columns)}")
            library = obs[key].to_numpy(dtype=np.float64) * self.factor_scale_
        coverage = 1.0 - float(self.gene_share_[place < 0].sum())
        if len(missing):
            self._note(
                f"{len(missing)} of {len(genes)} modelled genes are missing (first: {missing[0]!r}) and count as 0; "
                f"confidences are multiplied by {coverage:.3f}, their share of the counts that is left.",
                DataWarning,
            )
        cells = SiameseCells(counts, total, library=library, codes=self._batch_codes(data))
        return cells, coverage, carrier.obs_names

    def _batch_names(self) -> list[Any]:
        return list(self.registry["field_registries"]["batch"]["state_registry"]["categorical_mapping"])

    def _batch_codes(self, data: Any) -> np.ndarray:
        """Return the batch (m,) of new cells; one past the last for a batch that training had not."""
        key, n = self._setup("batch_key"), self._place(data, "batch_key").n_obs
        names = self._batch_names()
        if key is None:
            return np.zeros(n, dtype=np.int64)
        obs = self._place(data, "batch_key").obs
        codes = np.full(n, -1) if key not in obs else pd.Index(names).get_indexer(obs[key].astype(object))
        unseen = sorted({str(v) for v in obs[key][codes < 0]}) if key in obs else [f"no column {key!r}"]
        if (codes < 0).any():
            self._note(
                f"Batches that were not in training ({', '.join(unseen)}) are decoded with the mean of those that "
                "were; clusters do not depend on the batch.",
                DataWarning,
            )
        return np.where(codes < 0, len(names), codes).astype(np.int64)

    def _class_names(self) -> list[str]:
        return [str(c) for c in range(self.n_prototypes_)]

    # --- public ---------------------------------------------------------------------------------------------------

    def get_latent_representation(
        self, adata: Any = None, *, indices: Any = None, batch_size: int | None = None, branch: str = "fused"
    ) -> np.ndarray:
        """Return the embedding of cells.

        Parameters
        ----------
        adata
            Cells; None is the training object. New cells are placed beside the training cells, each by itself.
        indices
            Which of them; None is all.
        batch_size
            Without effect: a cell's embedding does not depend on its batch.
        branch
            "fused", "gene" (of the cell's own genes) or "graph" (of its neighbours).

        Returns
        -------
        Array (n, n_latent), float32.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        SetupError
            For another branch, or cells that cannot be used.
        """
        self._require_trained("get_latent_representation")
        if branch not in ("fused", "gene", "graph"):
            raise SetupError(f"branch={branch!r}. {nearest(branch, ('fused', 'gene', 'graph'))}")
        found = getattr(self._placed(adata).swept, branch)
        # A copy: what is kept here also answers predict() and write().
        return found.copy() if indices is None else found[np.arange(len(found))[indices]].copy()

    def predict(
        self,
        adata: Any = None,
        *,
        soft: bool = False,
        use_graph: bool = True,
        reject_below: float | None = None,
        batch_size: int | None = None,
    ) -> pd.Series | pd.DataFrame:
        """Return the cluster of cells.

        Parameters
        ----------
        adata
            Cells; None is the training object. Genes of new cells are matched by name.
        soft
            Soft clusters (S26) instead of names.
        use_graph
            False places every cell by its own genes alone.
        reject_below
            Cells with a smaller confidence get no name (NaN).
        batch_size
            Without effect: a cell's answer does not depend on its batch.

        Returns
        -------
        Categorical Series of n cells, or DataFrame n x n_clusters whose rows sum to 1, both indexed by obs_names.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        SetupError
            If the cells cannot be used, or more than 20 % of the modelled genes are missing.
        """
        self._require_trained("predict")
        placed = self._placed(adata, use_graph=use_graph)
        q = placed.soft
        names = self._class_names()
        if soft:
            return pd.DataFrame(q.copy(), index=placed.names, columns=names)
        codes = q.argmax(axis=1)
        if reject_below is not None:
            codes = np.where(q.max(axis=1) * placed.coverage < reject_below, -1, codes)
        return pd.Series(pd.Categorical.from_codes(codes, categories=names), index=placed.names, name=self._method)

    def get_gate(self, adata: Any = None) -> np.ndarray:
        """Return the weight of the gene branch of cells (S13), (n,), in [0, 1]; the rest is their neighbours' share.

        Parameters
        ----------
        adata
            Cells; None is the training object.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        """
        self._require_trained("get_gate")
        return self._placed(adata).swept.gate.copy()

    def get_prototypes(self) -> np.ndarray:
        """Return the prototypes of the clusters, (n_clusters, n_latent).

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        """
        self._require_trained("get_prototypes")
        return self.module.prototypes.detach().cpu().numpy().copy()

    def get_propagation(self) -> sp.csr_matrix:
        """Return Pi of the training cells (S6): CSR (n, n), rows sum to 1, at most ``n_propagation_neighbors`` a row.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        SetupError
            If the model does not hold its training cells, or of a loaded ``variant="paper"``.
        """
        self._require_trained("get_propagation")
        if self.adata is None or self._digest() != self.cells_:
            raise SetupError("The propagation joins the training cells. Load the model with them: adata=...")
        found = self._training_cells()[0].graph
        if found is None:
            raise SetupError("A loaded variant='paper' has no graph: its operators are dense and are not kept.")
        return found.pagerank.copy()

    def get_normalized_expression(self, adata: Any = None, *, library_size: float | str = "latent") -> np.ndarray:
        """Return the expected expression of cells (S14).

        Parameters
        ----------
        adata
            Cells; None is the training object.
        library_size
            Counts that every row sums to, over the modelled genes; "latent" is each cell's own expected total.

        Returns
        -------
        Array (n, p modelled genes), counts.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        """
        self._require_trained("get_normalized_expression")
        placed = self._placed(adata)
        library = (
            placed.cells.library.numpy() * float(self.module.modelled_share)
            if library_size == "latent"
            else np.full(len(placed.names), float(library_size))
        )
        return self._decode(placed.swept.fused, placed.cells.codes) * library[:, None].astype(np.float32)

    def decode(self, z: np.ndarray, *, library_size: Any, batch: Any = None) -> np.ndarray:
        """Return expected counts of embeddings.

        Parameters
        ----------
        z
            (n, n_latent).
        library_size
            Counts over the modelled genes, one or (n,).
        batch
            Category of the batch, one or (n,); None is the mean of all.

        Returns
        -------
        Array (n, p modelled genes).

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        SetupError
            For another width, or an unknown batch.
        """
        self._require_trained("decode")
        rows, names = np.asarray(z, dtype=np.float32), self._batch_names()
        if rows.ndim != 2 or rows.shape[1] != self.module.n_latent:
            raise SetupError(f"z has the shape {rows.shape}; expected (n, {self.module.n_latent}).")
        codes = np.full(len(rows), len(names))
        if batch is not None:
            codes = pd.Index(names).get_indexer(np.broadcast_to(np.asarray(batch, dtype=object), (len(rows),)))
            if (codes < 0).any():
                raise SetupError(f"batch={batch!r} is not a registered batch. {nearest(batch, names)}")
        library = np.broadcast_to(np.asarray(library_size, dtype=np.float32), (len(rows),))
        return self._decode(rows, codes) * library[:, None]

    @torch.no_grad()
    def _decode(self, z: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Return shares (n, p) of embeddings (n, d) in batches (n,)."""
        module, parts = self.module.eval(), []
        for start in range(0, len(z), BLOCK):
            rows = slice(start, start + BLOCK)
            batch = torch.from_numpy(np.minimum(codes[rows], module.n_batch_columns)).to(module.device)
            parts.append(module.decode(torch.from_numpy(z[rows]).to(module.device), batch).rho.cpu().numpy())
        return np.concatenate(parts)
