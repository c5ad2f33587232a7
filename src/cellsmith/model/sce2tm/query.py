"""New cells under a trained model: genes matched by name, one forward pass; new batches of the decoder (T28)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from scipy.special import softmax
from scvi import REGISTRY_KEYS

from cellsmith._errors import DataWarning, SetupError, nearest
from cellsmith.data.checks import check_counts, place_of
from cellsmith.data.genes import match_genes
from cellsmith.math.counts import library_totals
from cellsmith.model.sce2tm.new_batches import (
    NewCells,
    covariate_codes,
    fit_offsets,
    matched_counts,
    matched_log_expression,
    put_offsets,
    with_batches,
)

__all__ = ["QueryMappingMixin", "TopicQuery"]

FILLS = ("zero", "mean")
CHUNK = 1024
MIN_OVERLAP = 0.5  # share of the modelled genes that an object needs
MIN_COHORT = 10  # bulk samples: fewer give no standard deviation worth dividing by


@dataclass(frozen=True, eq=False)
class TopicQuery:
    """Topics of new cells.

    Parameters
    ----------
    theta
        Proportions, cells x topics, rows sum to 1.
    mu
        Topic scores, cells x topics; of bulk samples z-scored over the cohort.
    gene_overlap
        Share of the modelled genes that the query has.
    missing
        Names of the modelled genes that it lacks.
    empty
        Whether a cell has no count in any modelled gene, (n,); its proportions are uniform.
    unseen_batches
        Batches of the query that the model does not know: decoded with the mean offset of the known ones, unless
        :meth:`cellsmith.model.SCE2TM.load_query_data` fits offsets of their own. Topics do not depend on the batch.
    """

    theta: pd.DataFrame
    mu: pd.DataFrame
    gene_overlap: float
    missing: tuple[str, ...]
    empty: np.ndarray
    unseen_batches: tuple[str, ...]


class QueryMappingMixin:
    """Topics of cells that were not in training; completes :class:`cellsmith.model.SCE2TM`."""

    def map_query(
        self,
        query: Any,
        *,
        min_gene_overlap: float = MIN_OVERLAP,
        fill: str = "mean",
        bulk: bool = False,
        batch_size: int = 512,
    ) -> TopicQuery:
        """Return the topics of new cells, without training and without changing anything (T28).

        Parameters
        ----------
        query
            AnnData with raw counts where the training object has them (same layer), or a MuData with the modality that
            the model was trained on; genes in any order, matched by name. Nothing is written into it.
        min_gene_overlap
            Share of the modelled genes that it must have.
        fill
            Value of absent genes: "mean" of the training cells, which lost less on the tuning sets of the benchmark, or
            "zero".
        bulk
            The rows are bulk samples: any non-negative values, at least 10 samples, ``mu`` z-scored over them.
        batch_size
            Cells a forward pass; the answer of a cell does not depend on its companions.

        Returns
        -------
        Proportions, scores, and what was matched.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        SetupError
            If the values cannot be used, or too few genes match.
        """
        self._require_trained("map_query")
        if fill not in FILLS:
            raise SetupError(f"fill={fill!r}. {nearest(fill, FILLS)}")
        layer = self.registry["setup_args"].get("layer")
        cells = self._query_cells(query)
        counts = _profiles(cells, layer) if bulk else _counts(cells, layer)
        places = match_genes(self._genes, cells.var_names, min_overlap=min_gene_overlap)
        parts = [(self._encode(x)[0], told) for x, told in self._matched(counts, places, fill=fill, step=batch_size)]
        scores, told = (np.concatenate(part) for part in zip(*parts, strict=True))
        empty = ~told
        # a cell that shows the model nothing belongs to no topic more than to another
        scores[empty] = 0.0
        if empty.any():
            warnings.warn(
                f"{int(empty.sum())} cells have no count in any modelled gene (first: "
                f"{cells.obs_names[int(empty.argmax())]!r}); their topics are uniform.",
                DataWarning,
                stacklevel=2,
            )
        theta = softmax(scores.astype(np.float64), axis=1).astype(np.float32)
        if bulk:
            spread = scores.std(axis=0)
            scores = (scores - scores.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
        names = self._topic_names()
        return TopicQuery(
            theta=pd.DataFrame(theta, index=cells.obs_names, columns=names),
            mu=pd.DataFrame(scores, index=cells.obs_names, columns=names),
            gene_overlap=float((places >= 0).mean()),
            missing=tuple(str(gene) for gene, place in zip(self._genes, places, strict=True) if place < 0),
            empty=empty,
            unseen_batches=tuple(self._unseen_batches(query)),
        )

    def load_query_data(self, query: Any, *, max_epochs: int = 50, min_gene_overlap: float = MIN_OVERLAP) -> Any:
        """Return a model that also knows the batches of a query: their decoder offsets, and nothing else, are fitted.

        The topics of the query are those of :meth:`map_query`, with or without this step. The offsets are what remains
        between them and the counts; the loss is convex in them and is minimised by L-BFGS over all cells.

        Parameters
        ----------
        query
            AnnData with raw counts, genes in any order, and the column that was registered as ``batch_key``.
        max_epochs
            Largest number of L-BFGS steps, each a pass or two over the cells.
        min_gene_overlap
            Share of the modelled genes that the query must have. Offsets of absent genes stay 0.

        Returns
        -------
        A new model with the training object of this one; this one is not changed.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        SetupError
            If no batch was registered, the query has no new one, or it cannot be used.
        """
        self._require_trained("load_query_data")
        key = self.registry["setup_args"].get("batch_key")
        if key is None or not self.module.n_levels:
            raise SetupError(
                "The model corrects no batch, so there is nothing to fit. Type model.map_query(query) for its topics."
            )
        if key not in query.obs:
            columns = [c for c in query.obs if not c.startswith("_scvi")]
            raise SetupError(f"query.obs lacks {key!r}, the registered batch_key. {nearest(key, columns)}")
        batches = self._unseen_batches(query)
        if not batches:
            raise SetupError(
                f"All batches of the query are known: {sorted({str(b) for b in query.obs[key]})}. Type "
                "model.map_query(query) for its topics."
            )
        cells = query[query.obs[key].astype(str).isin(batches).to_numpy()]
        counts = _counts(cells, self.registry["setup_args"].get("layer"))
        places = match_genes(self._genes, query.var_names, min_overlap=min_gene_overlap)
        level = pd.Categorical(cells.obs[key].astype(str), categories=batches).codes.astype(np.int64)
        single = np.bincount(level, minlength=len(batches)) == 1
        if single.any():
            message = f"Batches of one cell keep the offset 0: {', '.join(np.asarray(batches)[single])}."
            warnings.warn(message, DataWarning, stacklevel=2)
        model = with_batches(self, batches)
        theta = self.map_query(cells, min_gene_overlap=min_gene_overlap).theta.to_numpy()
        new = NewCells(counts, places, level=level, covariates=covariate_codes(self, cells.obs), theta=theta)
        offsets = fit_offsets(model, new, n_new=len(batches), max_steps=max_epochs)
        offsets[torch.from_numpy(single)] = 0.0
        put_offsets(model, offsets)
        return model

    def _query_cells(self, query: Any) -> Any:
        """Return the AnnData with the counts of a query: itself, or of a MuData the modality of training."""
        if not hasattr(query, "mod"):
            return query
        name = self._count_modality
        if name not in query.mod:
            trained = "an AnnData" if name is None else f"the modality {name!r}"
            raise SetupError(
                f"The query is a MuData with the modalities {list(query.mod)}; the model was trained on {trained}. "
                f"Type query.mod[{next(iter(query.mod), name)!r}]."
            )
        return query.mod[name]

    def _matched(
        self, counts: Any, places: np.ndarray, *, fill: str, step: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield x (b, V) of the modelled genes by name (T28), and which cells have a count in any of them (b,)."""
        values = self._mean_log_expression() if fill == "mean" and (places < 0).any() else None
        totals = library_totals(counts)
        for start in range(0, counts.shape[0], step):
            rows = slice(start, start + step)
            matched = matched_counts(counts[rows], places)
            x = matched_log_expression(matched, totals[rows])
            if values is not None:
                x[:, places < 0] = values[places < 0]
            yield x, matched.any(axis=1)

    def _coded(
        self, cells: Any, rows: np.ndarray, batch_size: int | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return mu (n, K), the joint code of the registered columns (n,) and S (n,) of cells.

        An object with other genes than the training's, or in another order, is read by their names, as by
        :meth:`map_query`.
        """
        carrier = self._query_cells(cells)
        if cells is self.adata or np.array_equal(carrier.var_names, self._training_genes()):
            codes = self._batch_codes(cells)[rows]
            inputs = (x.cpu().numpy() for x, _ in self._inputs(cells, rows, batch_size))
        else:
            codes = self._codes_by_name(cells)[rows]
            counts = _counts(carrier, self.registry["setup_args"].get("layer"))[rows]
            places = match_genes(self._genes, carrier.var_names, min_overlap=MIN_OVERLAP)
            inputs = (x for x, _ in self._matched(counts, places, fill="mean", step=batch_size or CHUNK))
        parts = [(self._encode(x)[0], x.sum(axis=1)) for x in inputs]
        mu, mass = (np.concatenate(part) for part in zip(*parts, strict=True))
        return mu, codes, mass

    def _codes_by_name(self, cells: Any) -> np.ndarray:
        """Return the joint code (n,) of an object that is not registered; a level that is not known is a new one."""
        joint = np.zeros(cells.n_obs, dtype=np.int64)
        if not self.module.n_levels:
            return joint
        obs, key = self._obs_of(cells), self.registry["setup_args"].get("batch_key")
        known = pd.Index([str(name) for name in self._batch_names()])
        batch = known.get_indexer(obs[key].astype(str)) if key in obs else np.full(len(obs), -1)
        columns = [np.where(batch < 0, self.module.n_levels[0], batch), *covariate_codes(self, obs).T]
        for codes, n in zip(columns, self.module.n_levels, strict=True):
            joint = joint * (n + 1) + codes
        return joint

    def _obs_of(self, cells: Any) -> pd.DataFrame:
        """Return the columns among which the batch is: of a MuData, where training had it."""
        return place_of(cells, self.registry["setup_args"].get("modalities"), "batch_key").obs

    def _mean_log_expression(self) -> np.ndarray:
        """Return the mean of x over the registered cells, (V,); kept, since queries may come cell by cell."""
        if self.adata is None:
            raise SetupError(
                "The query lacks modelled genes, and their means (fill='mean') need the training object, which this "
                "model lacks. Load the model with it, or type fill='zero'."
            )
        key = (id(self.adata), np.asarray(self.gene_index_).tobytes())
        if getattr(self, "_mean_kept", (None,))[0] == key:
            return self._mean_kept[1]
        counts = _rows_first(self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY))
        places, total = np.asarray(self.gene_index_), np.zeros(len(self._genes))
        for start in range(0, counts.shape[0], CHUNK):
            part = counts[start : start + CHUNK]
            x = matched_log_expression(matched_counts(part, places), library_totals(part))
            total += x.sum(axis=0, dtype=np.float64)
        self._mean_kept = (key, total / counts.shape[0])
        return self._mean_kept[1]

    def _unseen_batches(self, query: Any) -> list[str]:
        """Return the batches of a query that the model does not know; none where it corrects nothing."""
        key = self.registry["setup_args"].get("batch_key")
        if key is None or not self.module.n_levels or key not in (obs := self._obs_of(query)):
            return []
        known = {str(name) for name in self._batch_names()}
        return sorted({str(name) for name in obs[key]} - known)


def _where(query: Any, layer: str | None) -> Any:
    if layer is not None and layer not in query.layers:
        raise SetupError(
            f"The model was trained on layer={layer!r}, which the query lacks. {nearest(layer, query.layers)}"
        )
    return query.X if layer is None else query.layers[layer]


def _counts(query: Any, layer: str | None) -> Any:
    _where(query, layer)
    check_counts(query, layer, min_cells=1)
    return _rows_first(_where(query, layer))


def _profiles(query: Any, layer: str | None) -> Any:
    """Return bulk profiles: counts, or expected counts with fractions."""
    if query.n_obs < MIN_COHORT:
        raise SetupError(
            f"The cohort has {query.n_obs} samples; expected at least {MIN_COHORT}: scores are compared within it."
        )
    x = _rows_first(_where(query, layer))
    values = x.data if sparse.issparse(x) else np.asarray(x)
    if not (np.isfinite(values).all() and (values >= 0).all()) or (library_totals(x) == 0).any():
        raise SetupError(
            "Found bulk profiles with negative or non-finite values, or a sample without any; expected expression that "
            "is not logarithmised (counts, expected counts or TPM)."
        )
    return x


def _rows_first(x: Any) -> Any:
    return x.tocsr() if sparse.issparse(x) else np.asarray(x)
