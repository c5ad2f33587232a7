"""The report of topics: frozen and printable."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

__all__ = ["TopicReport"]


@dataclass(frozen=True, eq=False, repr=False)
class TopicReport:
    """Answer of :func:`~cellsmith.metrics.topic_report`.

    Parameters
    ----------
    table
        One row a number: ``metric``, ``value``; only those that could be computed.

        Diversity of the lists of top genes (T29): ``td_once`` (genes in exactly one list) and ``td_unique`` (distinct
        genes), both divided by the length of all lists, ``td_bound`` (what neither can exceed), ``redundancy`` (share
        of topics with more than half of their list in common with another). Coherence: ``data_npmi`` over the cells
        (T30); ``set_npmi`` and ``set_npmi_strict`` over the gene sets (T31). Both at once (T32): ``topic_quality``
        (td_unique x data_npmi, a negative one as 0) and ``published_quality`` (td_once x set_npmi).

        ``ora_n_enriched`` (rows of topic and set with adjusted p at most 0.01), ``ora_n_unique`` (distinct sets among
        them), ``ora_unique_ratio`` (their quotient), and the same with ``gsea``. With labels: ``purity`` of the
        largest topic, ``ari`` and ``nmi`` of largest topic and label, ``capture_f1`` (mean of `per_type`).
    per_topic
        One row a topic: ``topic``, ``share`` (mean proportion), ``n_cells`` (where it is the largest), ``data_npmi``,
        ``redundant``, with gene sets ``set_npmi`` and ``set_npmi_strict``, and ``genes``.
    per_type
        One row a label: ``label``, ``n_cells``, ``topic`` (the largest topic that captures it best), ``recall``,
        ``precision``, ``f1``; empty without labels.
    settings
        ``key``, ``n_topics``, ``n_genes`` of a list, ``n_modelled`` genes, ``n_cells``, ``labels_key``,
        ``n_unlabelled`` cells that labels leave out, ``n_sets``, ``n_outside`` (listed genes that no set holds).

    Examples
    --------
    >>> report = topic_report(adata, gene_sets="h.all.v7.0.symbols.gmt", labels_key="cell_type")  # doctest: +SKIP
    >>> report["td_unique"], report.per_topic, report.per_type  # doctest: +SKIP
    """

    table: pd.DataFrame
    per_topic: pd.DataFrame
    per_type: pd.DataFrame
    settings: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, metric: str) -> float:
        """Return the value of one metric."""
        row = self.table.loc[self.table["metric"] == metric, "value"]
        if row.empty:
            raise KeyError(metric)
        return float(row.iloc[0])

    @property
    def _title(self) -> str:
        s = self.settings
        return (
            f"Topics {s.get('key')!r}: {s.get('n_topics')} topics of {s.get('n_modelled'):,} genes, lists of "
            f"{s.get('n_genes')}, {s.get('n_cells'):,} cells"
        )

    def __str__(self) -> str:
        return f"{self._title}\n{self._shown().to_string(index=False)}"

    __repr__ = __str__

    def _shown(self) -> pd.DataFrame:
        return self.table.assign(value=self.table["value"].map("{:.4g}".format))

    def _repr_html_(self) -> str:
        from html import escape

        return f"<p><b>{escape(self._title)}</b></p>{self._shown().to_html(index=False)}"
