"""What a refined GRIT answers: labels and scores of its cells and of new ones, diagnostics, rejections, results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from cellsmith._errors import DataWarning, SetupError, nearest
from cellsmith._rng import Streams
from cellsmith.math import graph, solve
from cellsmith.model.grit import equations as eq
from cellsmith.model.grit import inputs, summary
from cellsmith.model.grit.anchors import NONE
from cellsmith.model.grit.fitting import EXACT_BELOW
from cellsmith.model.grit.rejection import Rejection, usable_anchors, with_anchors
from cellsmith.model.grit.solving import label_codes, refine

__all__ = ["QueryMixin"]


class QueryMixin:
    """What :class:`cellsmith.model.GRIT` answers."""

    def predict(
        self,
        adata: Any = None,
        *,
        scores: Any = None,
        soft: bool = False,
        indices: Sequence[int] | np.ndarray | None = None,
    ) -> pd.Series | pd.DataFrame:
        """Return refined labels, or scores.

        Parameters
        ----------
        adata
            New cells with ``.obsm[use_rep]`` in the space of training; None is the training object. New cells do not
            see one another, and change nothing.
        scores
            Their scores (m, C): array or DataFrame; None is ``.obsm[scores_key]`` where that exists. A new cell
            without scores gets the mean of its neighbours.
        soft
            Return the scores.
        indices
            Rows to return; None is all.

        Returns
        -------
        Categorical Series indexed by obs_names, missing where no score reaches; with ``soft=True`` a DataFrame cells x
        classes, float32.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        SetupError
            If new cells have no embedding or another number of dimensions, or their scores do not fit.
        """
        self._require_trained("predict")
        codes, proba, names = self._answer(adata, scores)
        rows = np.arange(len(names)) if indices is None else np.asarray(indices)
        if soft:
            return pd.DataFrame(proba[rows], index=names[rows], columns=list(self.classes_))
        return self._labels_frame(codes[rows], names[rows])

    def get_latent_representation(
        self, adata: Any = None, *, indices: Sequence[int] | np.ndarray | None = None
    ) -> np.ndarray:
        """Return the refined scores (n_cells, n_classes), float32.

        Parameters
        ----------
        adata, indices
            As in :meth:`predict`.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        """
        self._require_trained("get_latent_representation")
        proba = self._answer(adata, None)[1]
        return proba if indices is None else proba[np.asarray(indices)]

    def path(
        self, weights: Sequence[float] = (0.3, 1, 2, 3, 5, 10, 20, 50), *, split_scores: tuple[Any, Any] | None = None
    ) -> pd.DataFrame:
        """Refine with several smoothness weights and describe each, without labels.

        Parameters
        ----------
        weights
            Values of lambda.
        split_scores
            Scores from two independent halves of the data; adds what they say (the best guide that needs no label).

        Returns
        -------
        One row a weight: ``changed`` (share of cells whose label is not the raw one), ``lost`` (classes without a
        cell), ``modularity``, ``effective_classes``, ``cross_edges``, ``uncertified``, and with ``split_scores``
        ``agreement`` (share of cells on which the halves agree; higher is better) and ``split_error`` (mean squared
        distance of one refined half from the other as given; lower is better). Generalised cross-validation and
        evidence are not offered: noise of a classifier is itself smooth on the graph.

        Raises
        ------
        SetupError
            If scores or graph cannot be read.
        """
        seed = 0 if self.seed_ is None else self.seed_
        given = self._read_scores()
        found = self._read_graph(Streams(seed).integer("graph"))
        self._warn_of_another_graph(found.weights)
        anchors = self._anchors(given.classes, Streams(seed).numpy("split"))
        problem, _ = self._problem(given, found.weights, anchors)
        names = self._place("scores_key").obs_names
        halves = [self._further_scores(h, names, classes=given.classes, space=given.space) for h in split_scores or ()]
        raw, rows, start = label_codes(given.values), [], None
        options = {k: self.params_[k] for k in ("solver", "tol")} | {"names": given.classes}
        for weight in weights:
            current = replace(problem, smoothness_weight=float(weight))
            refined = refine(current, start=start, **options)
            start, labels = refined.solution, label_codes(refined.scores)
            known = (raw >= 0) & (labels >= 0)
            row = {
                "smoothness_weight": float(weight),
                "changed": float((raw != labels)[known].mean()) if known.any() else 0.0,
                "lost": int(summary.lost_classes(raw, labels, len(given.classes)).size),
                "modularity": eq.modularity(found.weights, labels),
                "effective_classes": eq.effective_classes(labels),
                "cross_edges": summary.cross_edges(found.weights, labels),
                "uncertified": refined.n_uncertified,
            }
            if halves:
                both = [refine(replace(current, p0=h), **options) for h in halves]
                row["agreement"] = float((label_codes(both[0].scores) == label_codes(both[1].scores)).mean())
                # as solved: the factors of Eq. 13 are for labels, and would put the two on different scales
                row["split_error"] = float(np.nanmean(((both[0].solution - halves[1]) ** 2).sum(axis=1)))
            rows.append(row)
        return pd.DataFrame(rows).set_index("smoothness_weight")

    def reject(
        self, *, target: str = "selective", level: float = 0.05, delta: float = 0.1, by: str | None = None
    ) -> Rejection:
        """Leave cells without a label so that a stated error rate holds, from the anchors that calibrate.

        Parameters
        ----------
        target
            "selective": error rate among accepted cells; "accepted_wrong": share of all cells that are accepted and
            wrong; "coverage": the set of classes holds the true one.
        level
            The error rate, in (0, 1).
        delta
            Probability with which "selective" may fail.
        by
            Column of ``.obs``: each group is calibrated on its own anchors.

        Returns
        -------
        Which cells are rejected, why, and on what that rests. It assumes that anchors are a random sample of the cells.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        SetupError
            If there is no anchor that was not held fixed, or an option does not exist.
        """
        self._require_trained("reject")
        codes = self._value("anchor_codes").astype(np.int64)
        if (codes == NONE).all():
            raise SetupError("No anchors are registered; expected labels_key in setup_anndata. Or type tl.reject(...).")
        usable_anchors(codes, self._value("clamped"))
        groups = None
        if by is not None:
            obs = self._place("scores_key").obs
            if by not in obs:
                raise SetupError(f"by={by!r} is not a column of .obs. {nearest(by, obs.columns)}")
            groups = obs[by].astype(str).to_numpy(dtype=object)
        found = with_anchors(
            summary.shares(self._proba(), self.space_, self._temperature()),
            codes,
            self._value("calibrate"),
            target=target,
            level=level,
            delta=delta,
            groups=groups,
        )
        if found.note:
            self._note(found.note, DataWarning)
        return found

    # --- answers --------------------------------------------------------------------------------------------------

    def _temperature(self) -> float | None:
        found = float(self._value("temperature"))
        return None if np.isnan(found) else found

    def _proba(self) -> np.ndarray:
        factors = self._value("factors").astype(self._value("solution").dtype)
        return self._handed_out(self._value("solution") * factors, self.space_)

    def _answer(self, adata: Any, scores: Any) -> tuple[np.ndarray, np.ndarray, pd.Index]:
        """Return label codes, refined scores and names of the cells asked for."""
        if adata is None or adata is self.adata:
            if scores is not None:
                raise SetupError(
                    "scores= is for new cells; the training cells were refined with theirs. Type predict(new_adata, "
                    "scores=...), or register other scores and train again."
                )
            names = self._place("scores_key").obs_names
            if len(names) != self._n_cells():
                raise SetupError(
                    f"The object has {len(names)} cells; the model was trained on {self._n_cells()}. Train it again."
                )
            return self._value("label").astype(np.int64), self._proba(), names
        p, _, names = self._query(adata, scores)
        return label_codes(p), self._handed_out(p, self.space_), names

    def _query(self, adata: Any, scores: Any) -> tuple[np.ndarray, np.ndarray | None, pd.Index]:
        """Return refined scores, own scores and names of new cells (Eq. 7)."""
        args = self._args()
        if "rep" not in dict(self.module.named_buffers()):
            raise SetupError(
                f"The model holds no embedding of its training cells (use_rep={args['use_rep']!r} was absent, or "
                "store_rep=False); expected one to find neighbours of new cells. Train with .obsm[use_rep] and "
                "store_rep=True."
            )
        rep = self._value("rep")
        query = inputs.read_rep(self._place("use_rep", adata), args["use_rep"])
        if query.shape[1] != rep.shape[1]:
            raise SetupError(
                f".obsm[{args['use_rep']!r}] of the new cells has {query.shape[1]} dimensions; expected "
                f"{rep.shape[1]}. Project them onto the components of training, for example with sc.tl.ingest."
            )
        carrier = self._place("scores_key", adata)
        if scores is None and args["scores_key"] in carrier.obsm:
            scores = carrier.obsm[args["scores_key"]]
        p0 = None
        if scores is not None:
            p0 = self._further_scores(scores, carrier.obs_names, classes=self.classes_, space=self.space_)
        k = min(self.params_["n_neighbors"] - 1, len(rep))
        seed = Streams(self.seed_).integer("graph")
        index, distance = graph.cross_knn(query, rep, k, exact_below=EXACT_BELOW, seed=seed)
        links = graph.table_matrix(index, graph.cross_weights(distance), len(rep))
        return self._extend(links, p0), p0, carrier.obs_names

    def _extend(self, links: sp.csr_matrix, p0: np.ndarray | None, fidelity: np.ndarray | None = None) -> np.ndarray:
        """Refine rows against the fixed training rows, with the factors of class masses."""
        if fidelity is None and p0 is not None and isinstance(f := self.params_["fidelity"], str) and f == "confidence":
            fidelity = eq.confidence_fidelity(p0, mean=float(self._value("fidelity_scale")))[0]
        p = solve.extend(
            links,
            self._value("solution"),
            degree=self._value("degree"),
            scores=p0,
            laplacian=self.params_["laplacian"],
            smoothness_weight=self.params_["smoothness_weight"],
            fidelity=fidelity,
        )
        return p * self._value("factors")
