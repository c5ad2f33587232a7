"""What GRIT writes: labels, confidences, refined scores, the graph it built, and the record."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from cellsmith import _record
from cellsmith._errors import DataWarning
from cellsmith.math import graph
from cellsmith.model.grit import summary
from cellsmith.model.grit.solving import label_codes

__all__ = ["ResultsMixin"]


class ResultsMixin:
    """What :class:`cellsmith.model.GRIT` writes."""

    def _warn_of_another_graph(self, weights: Any) -> None:
        expected = self.summary_.get("graph", {}).get("fingerprint")
        if self.is_trained_ and expected != graph.fingerprint(weights):
            self._note(
                "The graph is not the one of training (its fingerprint differs), so that results and graph do not "
                "belong together. Train again.",
                DataWarning,
            )

    # --- what is written ------------------------------------------------------------------------------------------

    def write(
        self,
        adata: Any = None,
        *,
        result: _record.Result | None = None,
        key_added: str | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write the results into an AnnData.

        Parameters
        ----------
        adata
            Where to write; None is the training object (of MuData, the modality with the scores).
        result
            What to write; None is ``results()``.
        key_added
            Name of the outputs; None is "grit".
        overwrite
            Replace what another method wrote under these names.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        """
        self._require_trained("write")
        result, key = self.results(adata) if result is None else result, key_added or self._method
        if result.obsp:
            # so that scanpy's functions take neighbors_key=<key>
            names = {f"{what}_key": f"{key}_{what}" for what in ("connectivities", "distances")}
            result = replace(result, uns={**result.uns, **names})
        super().write(adata, result=result, key_added=key, overwrite=overwrite)

    def _results(self, adata: Any, *, check: bool = True) -> _record.Result:
        new = not (adata is None or adata is self.adata)
        if new:
            p, p0, _ = self._query(adata, None)
            codes, proba = label_codes(p), self._handed_out(p, self.space_)
            raw = np.full(len(codes), -1) if p0 is None else label_codes(p0)
        else:
            codes, proba, _ = self._answer(None, None)
            raw = self._value("raw_label").astype(np.int64)
            if check and self._args()["neighbors_key"] is not None:
                self._warn_of_another_graph(self._read_graph(0).weights)
        sure = summary.sureness(summary.shares(proba, self.space_, self._temperature()))
        columns = {
            "{k}": pd.Categorical.from_codes(codes, categories=list(self.classes_)),
            "{k}_raw": pd.Categorical.from_codes(raw, categories=list(self.classes_)),
            **{f"{{k}}_{name}": values for name, values in sure.items()},
        }
        return _record.Result(
            method="grit",
            obs=columns,
            obsm={"{k}_proba": proba},
            obsp={} if new else self._built_graph(),
            uns=self._block({} if new else self.summary_),
        )

    def _built_graph(self) -> dict[str, Any]:
        """Return the graph that was built here, in scanpy's form; nothing where the user named one."""
        if "neighbor_indices" not in dict(self.module.named_buffers()):
            return {}
        index, distance = self._value("neighbor_indices"), self._value("neighbor_distances")
        n, k = index.shape
        # written out, not through table_matrix: a distance of zero (a duplicate) is an entry, too
        indptr = np.arange(0, n * k + 1, k)
        table = sp.csr_matrix((distance.ravel(), index.ravel(), indptr), shape=(n, n))
        return {"{k}_connectivities": graph.fuzzy_union(index, distance), "{k}_distances": table}

    def _block(self, found: dict[str, Any]) -> dict[str, Any]:
        args = {k: v for k, v in self._args().items() if v is not None}
        params = {k: v for k, v in self.params_.items() if v is not None}
        if self._args()["neighbors_key"] is None:
            params |= {"method": "umap", "metric": "euclidean", "use_rep": args["use_rep"], "random_state": self.seed_}
        record = self._provenance(inputs=args)
        record["dtype"] = self.params_["dtype"]
        if found:
            carrier = self._place("scores_key")
            # positions of anchors mean something in this order of cells only
            record["obs_names_sha256"] = _record.hash_names(carrier.obs_names)
            record |= {"n_vars": carrier.n_vars, "var_names_sha256": _record.hash_names(carrier.var_names)}
        return {
            "params": {**params, **args},
            "classes": np.array(self.classes_, dtype=object),
            "space": self.space_,
            "calibrated": bool(np.isfinite(self._value("temperature"))),
            **found,
            "provenance": record,
        }
