"""What a trained scE2TM is asked: topics of cells, genes of topics, expression, perplexity."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from scvi import REGISTRY_KEYS

from cellsmith._errors import SetupError, nearest
from cellsmith._rng import Streams, resolve_seed
from cellsmith.data.splits import scipy_counts
from cellsmith.math import topics
from cellsmith.math.counts import binomial_split
from cellsmith.model.sce2tm import equations as eq
from cellsmith.model.sce2tm.coding import BATCH_SIZE, positions

__all__ = ["QueryMixin"]

READINGS = ("beta", "decoder", "profile", "lift", "frex")
KINDS = ("theta", "mu", "hellinger")


class QueryMixin:
    """Queries of :class:`cellsmith.model.SCE2TM` that return and never write."""

    # --- topics of cells --------------------------------------------------------------------------------------------

    def get_topic_proportions(
        self, adata: Any = None, *, indices: Any = None, batch_size: int | None = None
    ) -> pd.DataFrame:
        """Return the topic proportions of cells, theta = softmax(mu).

        Parameters
        ----------
        adata
            Cells; None is the training object.
        indices
            Positions of the cells; None is all.
        batch_size
            Cells a forward pass; the answer does not depend on it.

        Returns
        -------
        Cells x topics, rows sum to 1. A cell without a count in any modelled gene has equal proportions.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        SetupError
            If the cells cannot be used.
        """
        self._require_trained("get_topic_proportions")
        theta = self._encode(adata, indices=indices, batch_size=batch_size)[1]
        return pd.DataFrame(theta, index=self._cell_names(adata, indices), columns=self._topic_names())

    def _cell_names(self, adata: Any, indices: Any) -> pd.Index:
        names = (self.adata if adata is None else adata).obs_names
        return names if indices is None else names[indices]

    def get_latent_representation(
        self, adata: Any = None, *, kind: str | None = None, indices: Any = None, batch_size: int | None = None
    ) -> np.ndarray:
        """Return what stands for a cell.

        Parameters
        ----------
        adata
            Cells; None is the training object.
        kind
            "theta" (proportions), "mu" (scores, roughly normal) or "hellinger" (square root of theta, for Euclidean
            distances of proportions). None: "theta", and "mu" for ``variant="paper"``.
        indices
            Positions of the cells; None is all.
        batch_size
            Cells a forward pass.

        Returns
        -------
        (n, K) float32.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        SetupError
            For an unknown kind, or cells that cannot be used.
        """
        self._require_trained("get_latent_representation")
        kind = kind or ("mu" if self._variant == "paper" else "theta")
        if kind not in KINDS:
            raise SetupError(f"kind={kind!r}. {nearest(kind, KINDS)}")
        mu, theta = self._encode(adata, indices=indices, batch_size=batch_size)
        return {"theta": theta, "mu": mu}.get(kind, np.sqrt(theta))

    # --- genes of topics --------------------------------------------------------------------------------------------

    def get_feature_by_topic(self, *, kind: str = "beta") -> pd.DataFrame:
        """Return a reading of the topics (T6).

        Parameters
        ----------
        kind
            "beta": loadings, every gene's row sums to 1 over the topics; "decoder": beta times the decoder's scale of
            the gene, what reconstructs; "profile": expression of a cell of one topic, columns sum to 1; "lift": profile
            over the mean profile of the training cells; "frex": genes both abundant and exclusive.

        Returns
        -------
        Modelled genes x topics.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        SetupError
            For an unknown kind.
        """
        self._require_trained("get_feature_by_topic")
        if kind not in READINGS:
            raise SetupError(f"kind={kind!r}. {nearest(kind, READINGS)}")
        return pd.DataFrame(self._reading(kind).T, index=pd.Index(self._genes), columns=self._topic_names())

    @torch.no_grad()
    def _reading(self, kind: str) -> np.ndarray:
        """Return a reading (K, V)."""
        module = self.module.eval()
        beta, norm = module.beta().cpu().numpy(), module.decoder_norm
        if kind == "beta":
            return beta
        if kind == "decoder":
            scale = [t.detach().cpu().numpy() for t in (norm.weight, norm.running_var)]
            return topics.decoder_reading(beta, *scale, eps=norm.eps)
        n = module.n_topics
        logits = module.logits(torch.eye(n, device=module.device), self._levels(None, n))
        profiles = topics.profile(logits.cpu().numpy())
        if kind == "profile":
            return profiles
        return (
            topics.lift(profiles, module.mean_profile.cpu().numpy()) if kind == "lift" else topics.frex(profiles, beta)
        )

    def get_top_genes(self, *, n: int = 10, kind: str = "beta") -> pd.DataFrame:
        """Return the strongest genes of every topic.

        Parameters
        ----------
        n
            Genes a topic.
        kind
            As in :meth:`get_feature_by_topic`.

        Returns
        -------
        n x topics, exact gene names, strongest first.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        SetupError
            For an unknown kind, or more genes than are modelled.
        """
        table = self.get_feature_by_topic(kind=kind)
        names = self._genes[topics.top_genes(table.to_numpy().T, n)]
        return pd.DataFrame(names.T, columns=table.columns)

    def get_gene_embedding(self) -> pd.DataFrame:
        """Return the embedding of the modelled genes, genes x L.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        """
        self._require_trained("get_gene_embedding")
        return pd.DataFrame(self.module.gene_table.detach().cpu().numpy(), index=pd.Index(self._genes))

    def get_topic_embedding(self) -> pd.DataFrame:
        """Return the embedding of the topics, topics x L, in the space of the genes.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        """
        self._require_trained("get_topic_embedding")
        return pd.DataFrame(self.module.topic_table.detach().cpu().numpy(), index=self._topic_names())

    def get_view_quality(self) -> pd.Series:
        """Return what the external view was found to be worth (T21).

        Returns
        -------
        ``q`` (weight of the view, 0 to 1), ``explained``, ``null``, ``null_sd``, ``ceiling`` (e, e0, sd0, e1),
        ``overlap`` (T21b), ``n_cells`` with the view, ``n_gate_cells`` that were looked at, ``halvings`` of q during
        training and ``q_final``. NaN where nothing was measured; without a view q = 0.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        """
        self._require_trained("get_view_quality")
        names = ("q", "explained", "null", "null_sd", "ceiling", "overlap", "n_cells", "n_gate_cells")
        absent = {name: float("nan") for name in names} | {"q": 0.0, "n_cells": 0, "n_gate_cells": 0}
        found = {**absent, "halvings": 0, "q_final": 0.0, **(self.view_ or {})}
        return pd.Series({name: float(found[name]) for name in (*names, "halvings", "q_final")}, name="view")

    # --- expression -------------------------------------------------------------------------------------------------

    def get_normalized_expression(
        self,
        adata: Any = None,
        *,
        indices: Any = None,
        library_size: float = 1e4,
        transform_batch: Any = None,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Return the expression that the topics of cells stand for (T22).

        Parameters
        ----------
        adata
            Cells; None is the training object.
        indices
            Positions of the cells; None is all.
        library_size
            What the rows sum to, counts.
        transform_batch
            Decode all cells as if they came from this batch; None: from their own.
        batch_size
            Cells a forward pass.

        Returns
        -------
        (n, V), columns in the order of :meth:`get_gene_embedding`.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        SetupError
            For an unknown batch, or cells that cannot be used.
        """
        self._require_trained("get_normalized_expression")
        theta = self._encode(adata, indices=indices, batch_size=batch_size)[1]
        codes = self._batch_codes(adata)
        codes = codes if indices is None else codes[indices]
        if transform_batch is not None:
            codes = self._moved_to(codes, transform_batch)
        mass = self._mass(adata, indices=indices)
        parts = [
            self._express(theta[s], batch_codes=codes[s], mass=mass[s], library_size=library_size)
            for s in (slice(i, i + BATCH_SIZE) for i in range(0, len(theta), BATCH_SIZE))
        ]
        return np.concatenate(parts)

    def decode(self, theta: Any, *, library_size: float = 1e4, batch: Any = None) -> np.ndarray:
        """Return the expression of any topic proportions (T22).

        Parameters
        ----------
        theta
            (n, K) array or DataFrame, rows sum to 1.
        library_size
            What the rows of the answer sum to, counts.
        batch
            A registered batch; None: the mean of their offsets.

        Returns
        -------
        (n, V), columns in the order of :meth:`get_gene_embedding`. With the likelihood "log-multinomial" the mean log
        expression of the training cells stands in for that of the cell.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        SetupError
            If rows are no proportions, or the batch is not known.
        """
        self._require_trained("decode")
        rows = np.atleast_2d(np.asarray(theta, dtype=np.float64))
        n_topics = self.module.n_topics
        if rows.shape[1] != n_topics or (rows < 0).any() or not np.allclose(rows.sum(axis=1), 1.0, atol=1e-4):
            raise SetupError(
                f"theta has the shape {rows.shape} and row sums from {rows.sum(axis=1).min():.4g} to "
                f"{rows.sum(axis=1).max():.4g}; expected (n, {n_topics}) with values >= 0 and rows that sum to 1."
            )
        codes = None
        if batch is not None:
            unseen = [int(n) for n in self.module.n_levels]
            joint = 0
            for n in unseen:
                joint = joint * (n + 1) + n
            codes = self._moved_to(np.full(len(rows), joint), batch)
        return self._express(rows, batch_codes=codes, library_size=library_size)

    def get_perplexity(self, adata: Any = None, *, indices: Any = None, n_splits: int = 1, seed: Any = 0) -> float:
        """Return how hard one half of a cell's counts is to guess from the topics of the other half (T27).

        Parameters
        ----------
        adata
            Cells; None is the training object. Only cells that were not trained on say how well the model
            generalises: ``indices=model.validation_indices``.
        indices
            Positions of the cells; None is all.
        n_splits
            Random halves to average over.
        seed
            Seed of the halves.

        Returns
        -------
        From 1 (certain) to about the number of modelled genes (no idea).

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        SetupError
            If the cells cannot be used.
        """
        self._require_trained("get_perplexity")
        if n_splits < 1:
            raise SetupError(f"n_splits={n_splits!r}; expected at least 1. Type n_splits=1.")
        streams, nats, total = Streams(resolve_seed(seed)), 0.0, 0.0
        codes = self._batch_codes(adata)
        codes = codes[positions(indices, len(codes))]
        for split in range(n_splits):
            generator, start = streams.numpy("sample", split), 0
            for batch in self._batches(adata, indices, None):
                seen, held = binomial_split(scipy_counts(batch[REGISTRY_KEYS.X_KEY].cpu()), generator=generator)
                held = held[:, self.gene_index_]
                x = seen.astype(np.float32)
                totals = np.maximum(np.asarray(x.sum(axis=1)).ravel(), 1.0)
                x = (sparse.diags((eq.PER_CELL / totals).astype(np.float32)) @ x[:, self.gene_index_]).log1p()
                theta, stop = self._encode(x.tocsr())[1], start + x.shape[0]
                mass = np.asarray(x.sum(axis=1)).ravel()
                pi = self._express(theta, batch_codes=codes[start:stop], mass=mass, library_size=1.0)
                start, n_held = stop, float(held.sum())
                if n_held > 0:
                    nats += n_held * np.log(topics.perplexity(held, np.maximum(pi, 1e-12)))
                    total += n_held
        return float(np.exp(nats / max(total, 1.0)))
