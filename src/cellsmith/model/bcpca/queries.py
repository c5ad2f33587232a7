"""The questions that a fitted BC-PCA answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from scvi import REGISTRY_KEYS

from cellsmith._errors import MissingnessWarning, SetupError, nearest
from cellsmith.data.checks import place_of
from cellsmith.math import gram
from cellsmith.model.bcpca.covariates import design_matrix
from cellsmith.model.bcpca.placing import Asked, Placed, place
from cellsmith.model.bcpca.source import Source, open_source
from cellsmith.model.bcpca.state import Answer, unpack

__all__ = ["QueryMixin"]


class QueryMixin:
    """Embedding, loadings, overlaps, distances and rows of the Gram matrix."""

    # --- what the questions read ----------------------------------------------------------------------------------

    @property
    def _setup_args(self) -> Mapping[str, Any]:
        return self.registry.get("setup_args", {})

    def _carrier(self, adata: Any) -> Any:
        """Return the AnnData with the values."""
        modalities = self._setup_args.get("modalities")
        return place_of(adata, modalities, "layer")

    def _open(self, adata: Any, *, own: bool = False) -> Source:
        args = self._setup_args
        return open_source(
            self._carrier(adata),
            layer=args.get("layer"),
            mask=args.get("mask"),
            chunk_size=self.options_["chunk_size"],
            features=None if own else self._training_genes(),
        )

    def _groups(self, adata: Any) -> np.ndarray | None:
        """Return the number of the group of each cell, as registered."""
        args = self._setup_args
        column, prob = args.get("batch_key"), self.options_["prob"]
        if column is None or not (isinstance(prob, str) and prob == "grouped"):
            return None
        categories = self.registry["field_registries"][REGISTRY_KEYS.BATCH_KEY]["state_registry"]["categorical_mapping"]
        holder = place_of(adata, args.get("modalities"), "batch_key")
        if column not in holder.obs:
            raise SetupError(f"batch_key={column!r} of the fit is not a column of .obs. {nearest(column, holder.obs)}")
        values = holder.obs[column]
        codes = pd.Categorical(values, categories=categories).codes.astype(np.int64)
        if (codes < 0).any():
            first = values.iloc[int(np.flatnonzero(codes < 0)[0])]
            raise SetupError(f"The group {first!r} was not among those of the fit. {nearest(first, categories)}")
        return codes

    def _designs(self, adata: Any) -> tuple[np.ndarray | None, np.ndarray | None]:
        if self.covariates_ is None:
            return None, None
        carrier = self._carrier(adata)
        tables = (("cells", carrier.obs), ("features", carrier.var))
        cells, features = (design_matrix(table, self.covariates_[kind]) for kind, table in tables)
        return cells, features

    def _answer(self) -> Answer:
        return unpack({name: value.cpu().numpy() for name, value in self.module.named_buffers()})

    # --- new cells ------------------------------------------------------------------------------------------------

    def _place(self, adata: Any) -> Placed:
        """Place the cells of another object."""
        answer, source = self._answer(), self._open(adata)
        least, shared = float(self.options_["min_overlap"]), int((source.shared & answer.live).sum())
        if shared < least:
            self._note(
                f"The object shares {shared} features with the fit, fewer than min_overlap={least:g}: "
                "its cells are not placed (NaN).",
                MissingnessWarning,
            )
            nothing = np.full(source.n_cells, np.nan)
            return Placed(np.full((source.n_cells, answer.n_latent), np.nan, np.float32), nothing, nothing)
        design = None
        if self.covariates_ is not None:
            design = design_matrix(self._carrier(adata).obs, self.covariates_["cells"])
        asked = Asked(source.blocks, self._groups(adata), design)
        placed = place(answer, asked, dtype=self.options_["dtype"])
        lost = int(np.isnan(placed.latent).all(axis=1).sum())
        if lost:
            self._note(f"{lost} cells have no observed entry and no embedding (NaN).", MissingnessWarning)
        return placed

    def _is_own(self, adata: Any) -> bool:
        return adata is None or adata is self.adata

    def get_latent_representation(self, adata: Any = None, *, indices: Any = None) -> np.ndarray:
        """Return the embedding.

        Parameters
        ----------
        adata
            Cells; None is the training object. Other cells are placed by Eq. 15: their features are aligned by name,
            absent ones are missing entries, and what was registered (layer, mask, columns) is looked up there.
        indices
            Rows to return; None is all.

        Returns
        -------
        Array (n_cells, n_latent) float32; NaN for a cell without an observed entry, and for all cells of an object
        that shares fewer than ``min_overlap`` features with the fit.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        SetupError
            If layer or mask are missing there, no feature is shared, or the fit cannot place other cells.
        """
        self._require_trained("get_latent_representation")
        latent = self._answer().latent.copy() if self._is_own(adata) else self._place(adata).latent
        return latent if indices is None else latent[np.asarray(indices)]

    # --- training cells -------------------------------------------------------------------------------------------

    def get_loadings(self) -> pd.DataFrame:
        """Return the loadings of the features, (n_vars, n_latent); NaN for features that were never observed.

        With a complete mask they are the orthonormal loadings of PCA.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        """
        self._require_trained("get_loadings")
        answer = self._answer()
        table = np.full((len(answer.live), answer.n_latent), np.nan)
        table[answer.live] = answer.loadings
        columns = [f"BC{i + 1}" for i in range(answer.n_latent)]
        return pd.DataFrame(table, index=pd.Index(self._training_genes()), columns=columns)

    def get_overlap(self, pairs: Any = None) -> np.ndarray:
        """Return how many features training cells effectively share: the expected number, which sets the noise.

        Parameters
        ----------
        pairs
            Numbers of cells (m, 2); None gives the mean of every cell with the others.

        Returns
        -------
        (m,) or (n_cells,), in features; NaN for cells that were not in the fit and, without pairs, for empty ones.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        SetupError
            If a number is not that of a cell.
        """
        self._require_trained("get_overlap")
        answer = self._answer()
        if pairs is None:
            return answer.overlap.astype(np.float64)
        inner, known = _in_fit(answer, pairs)
        out = np.full(len(known), np.nan)
        model = self._probability(answer)
        out[known] = self._operator(answer)[1][inner[:, 0], inner[:, 1]] if model is None else model.overlap(inner)
        return out

    def distances(self, pairs: Any) -> np.ndarray:
        """Return corrected squared distances of training cells, per feature (Eq. 8).

        Parameters
        ----------
        pairs
            Numbers of cells (m, 2).

        Returns
        -------
        (m,), floored at 0 (``floored_share_`` holds the share that was); NaN for cells that were not in the fit.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        SetupError
            If a number is not that of a cell, or the model holds no data.
        """
        self._require_trained("distances")
        answer = self._answer()
        inner, known = _in_fit(answer, pairs)
        out = np.full(len(known), np.nan)
        out[known], self.floored_share_ = gram.corrected_distances(self._operator(answer)[0], inner)
        return out

    def gram_blocks(self, chunk_size: int = 1000) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield rows of the corrected Gram matrix, for whoever really wants them.

        Parameters
        ----------
        chunk_size
            Rows at a time; every chunk reads the data twice.

        Yields
        ------
        A slice of the cells of the fit (:attr:`fit_indices`) and their rows, (rows, cells of the fit).

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        SetupError
            If the model holds no data.
        """
        self._require_trained("gram_blocks")
        yield from gram.gram_blocks(self._operator(self._answer())[0], chunk_size)

    @property
    def fit_indices(self) -> np.ndarray:
        """Numbers of the training cells that took part in the fit; empty for an untrained model."""
        return np.flatnonzero(self._answer().in_fit) if self.is_trained_ else np.zeros(0, dtype=np.int64)

    def _probability(self, answer: Answer) -> gram.Probability | None:
        """Return the probabilities of the cells of the fit; None for pairwise counts."""
        fitted = answer.fitted_probability()
        if fitted is not None or answer.facts["model"] == "pairwise":
            return fitted
        everything = gram.custom_probability(self.options_["prob"], shape=(len(answer.in_fit), len(answer.live)))
        cells, live = np.flatnonzero(answer.in_fit), answer.live
        shape = (len(cells), int(live.sum()))
        return gram.custom_probability(lambda numbers: everything.block(cells[numbers])[:, live], shape=shape)

    def _operator(self, answer: Answer) -> tuple[gram.Operator, np.ndarray | None]:
        """Return the Gram operator of the training cells, and their shared counts for ``prob="pairwise"``."""
        if self.adata is None:
            raise SetupError(
                "This question reads the training cells, and the model was loaded without them. "
                "Type BCPCA.load(path, adata=<the training object>)."
            )
        source = self._open(self.adata, own=True)
        blocks = source.blocks
        if not (answer.in_fit.all() and answer.live.all()):
            blocks = gram.select_blocks(blocks, cells=answer.in_fit, features=answer.live)
        z = gram.centred_blocks(blocks, answer.means, dtype=np.dtype(self.options_["dtype"]), keep=source.in_memory)
        probability = self._probability(answer)
        if probability is None:
            counts = gram.shared_counts(blocks, gram.observed_stats(blocks))
            return gram.pairwise_operator(z, counts), counts
        return gram.gram_operator(z, answer.factors, probability.row_sums), None


def _in_fit(answer: Answer, pairs: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs of cells of the fit, by their numbers there, and which of the pairs they are."""
    asked, n = np.asarray(pairs, dtype=np.int64), len(answer.in_fit)
    if asked.ndim != 2 or asked.shape[1] != 2:
        raise SetupError(f"pairs has shape {asked.shape}; expected (m, 2), numbers of cells.")
    if asked.size and (asked.min() < 0 or asked.max() >= n):
        raise SetupError(f"pairs holds numbers from {asked.min()} to {asked.max()}; expected 0 to {n - 1}.")
    number = np.cumsum(answer.in_fit) - 1
    known = np.asarray(answer.in_fit[asked].all(axis=1))
    return number[asked[known]], known
