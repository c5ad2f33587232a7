"""Score topics: how diverse, coherent and stable they are, what they are enriched in, which types they capture."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellsmith import _record
from cellsmith._errors import DataWarning, SetupError
from cellsmith.math import topics
from cellsmith.math.enrichment import benjamini_hochberg, over_representation, parse_gmt, sets_within
from cellsmith.metrics._cells import _column, _matrix
from cellsmith.metrics._topic_report import TopicReport
from cellsmith.metrics.clustering import ari, nmi

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["TopicReport", "topic_report", "topic_stability"]

LEVEL = 0.01
"""Adjusted p-value, or false discovery rate of GSEA, up to which a set counts as enriched."""
MANY_REDUNDANT = 0.2
SET_SIZES = {"min_size": 3, "max_size": 500}


def topic_report(
    adata: AnnData,
    *,
    key: str = "sce2tm",
    layer: str | None = None,
    gene_sets: Mapping[str, Sequence[str]] | str | Path | None = None,
    labels_key: str | None = None,
    n_genes: int = 10,
) -> TopicReport:
    """Score topics. Reads only; nothing is written.

    Diversity and coherence trade off, and both depend on the number of topics and on how long they were trained: look
    at them together, and compare models of the same number of topics.

    Parameters
    ----------
    adata
        Cells with ``.obsm["X_" + key]`` (n, K), ``.varm[key_loadings]`` and ``.uns[key]``, as
        :func:`cellsmith.tl.sce2tm` writes them. The result of :func:`cellsmith.tl.sce2tm_gsea` is scored where it is
        there.
    key
        Key of the topics.
    layer
        Layer with counts (or any values above 0 where a gene is present), for the coherence over cells; None is ``.X``.
    gene_sets
        Mapping from name to genes, or path of a GMT file; names as in ``.var_names``. None leaves out what needs them.
    labels_key
        Column of ``.obs`` with types, for purity and capture; cells without a label are left out.
    n_genes
        Length of a topic's list, by beta.

    Returns
    -------
    The report. Warns where more than a fifth of the topics repeats another one.

    Raises
    ------
    SetupError
        If there are no topics, the layer or column does not exist, values are negative, or no gene set fits.

    Examples
    --------
    >>> report = topic_report(adata, layer="counts", labels_key="cell_type")  # doctest: +SKIP
    """
    if not isinstance(n_genes, int | np.integer) or n_genes < 2:
        raise SetupError(f"n_genes={n_genes!r}; expected at least 2 genes a topic. Type for example n_genes=10.")
    names, beta, theta = _read(adata, key)
    rows = topics.top_genes(beta, int(n_genes))
    largest = theta.argmax(axis=1)
    found = topics.diversity(rows, int((beta != 0).any(axis=0).sum()))
    coherence = topics.data_npmi(_present(adata, layer), rows)
    genes = np.asarray(adata.var_names, dtype=object).astype(str)[rows]
    per_topic = {"topic": names, "share": theta.mean(axis=0), "n_cells": np.bincount(largest, minlength=len(names))}
    per_topic |= {"data_npmi": coherence, "redundant": found.redundant}
    values = {f"td_{name}": getattr(found, name) for name in ("once", "unique", "bound")}
    values |= {"redundancy": found.redundancy, "data_npmi": float(coherence.mean())}
    values["topic_quality"] = topics.topic_quality(found.unique, values["data_npmi"])
    settings = {"key": key, "n_topics": len(names), "n_genes": int(n_genes), "labels_key": labels_key}
    settings |= {"n_modelled": int((beta != 0).any(axis=0).sum()), "n_cells": adata.n_obs}
    if gene_sets is not None:
        sets = _sets(gene_sets)
        scores, columns, n_outside = _against_sets(genes, sets, background=_modelled(adata, beta))
        values |= scores | {"published_quality": found.once * scores["set_npmi"]}
        per_topic |= columns
        settings |= {"n_sets": len(sets), "n_outside": n_outside}
    values |= _stored_gsea(adata, key)
    per_type = pd.DataFrame(columns=["label", "n_cells", "topic", "recall", "precision", "f1"])
    if labels_key is not None:
        scores, per_type, settings["n_unlabelled"] = _against_labels(adata, labels_key, largest, names)
        values |= scores
    _warn_of_repetition(found.redundancy)
    return TopicReport(
        table=pd.DataFrame({"metric": list(values), "value": list(values.values())}),
        per_topic=pd.DataFrame(per_topic).assign(genes=[", ".join(row) for row in genes]),
        per_type=per_type,
        settings=settings,
    )


def topic_stability(loadings: Sequence[Any]) -> pd.DataFrame:
    """Say how alike the topics of several runs, such as seeds, are when they are paired one to one.

    Parameters
    ----------
    loadings
        Two or more tables of genes by topics (V, K), all with the same genes in the same order. Every gene's mean over
        the topics is taken off first (of scE2TM's loadings that is 1 / K): what all topics share agrees with any other
        run. :func:`cellsmith.tl.sce2tm_choose_n_topics` measures the same.

    Returns
    -------
    One row a pair of runs: ``first`` and ``second`` (their positions), ``cosine`` (mean over the pairs of topics that
    make the sum of cosines largest) and ``lowest`` (the least alike pair). The mean of ``cosine`` is the stability.

    Raises
    ------
    SetupError
        For fewer than two tables, or tables that do not have the same genes.

    Examples
    --------
    >>> import numpy as np
    >>> float(topic_stability([np.eye(4), np.eye(4)[:, ::-1]])["cosine"].mean())
    1.0
    """
    if len(loadings) < 2:
        raise SetupError(f"Found {len(loadings)} table of loadings; expected at least two, one a run.")
    if not all(isinstance(t, pd.DataFrame) and t.index.equals(loadings[0].index) for t in loadings) and any(
        isinstance(t, pd.DataFrame) for t in loadings
    ):
        raise SetupError("The tables name different genes, or not all name them; expected the same index in all.")
    tables = [np.asarray(t, dtype=np.float64).T for t in loadings]
    rows = []
    for first, second in combinations(range(len(tables)), 2):
        cosines = topics.agreement(tables[first], tables[second])
        rows.append((first, second, float(cosines.mean()), float(cosines.min())))
    return pd.DataFrame(rows, columns=["first", "second", "cosine", "lowest"])


def _read(adata: AnnData, key: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return names of topics, beta (K, n_vars) and proportions (n, K)."""
    block = _record.read(adata, key)
    wanted = {".varm": (adata.varm, f"{key}_loadings"), ".obsm": (adata.obsm, f"X_{key}")}
    for slot, (mapping, name) in wanted.items():
        if name not in mapping:
            raise SetupError(f"{slot}[{name!r}] does not exist; expected the topics that tl.sce2tm writes.")
    names = [str(name) for name in block.get("classes", ())]
    beta, theta = np.asarray(adata.varm[f"{key}_loadings"], dtype=np.float64).T, np.asarray(adata.obsm[f"X_{key}"])
    if not len(names) == beta.shape[0] == theta.shape[1]:
        raise SetupError(
            f"Found {len(names)} names, {beta.shape[0]} columns of loadings and {theta.shape[1]} of proportions; "
            "expected one of each a topic."
        )
    return names, beta, theta


def _modelled(adata: AnnData, beta: np.ndarray) -> list[str]:
    return [str(gene) for gene in np.asarray(adata.var_names)[(beta != 0).any(axis=0)]]


def _present(adata: AnnData, layer: str | None) -> Any:
    x = _matrix(adata, layer, name="adata", fall_back=False)
    if x is None or x.shape[0] == 0:
        raise SetupError("adata.X is empty; expected counts. Type layer=... with the layer that holds them.")
    if x.min() < 0:
        raise SetupError(
            f"The values go down to {x.min():.3g}; expected counts, or others that are 0 where a gene is absent. Type "
            "layer=... with the layer of the counts."
        )
    return x


def _sets(source: Any) -> dict[str, Sequence[str]]:
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        if not path.is_file():
            raise SetupError(
                f"gene_sets={str(source)!r} is no file; expected the path of a GMT file, or a mapping from name to "
                "genes."
            )
        with path.open(encoding="utf-8") as lines:
            return dict(parse_gmt(lines))
    if not isinstance(source, Mapping) or not source:
        raise SetupError(
            f"gene_sets is a {type(source).__name__}; expected a mapping from name to genes with at least one set, or "
            "the path of a GMT file."
        )
    return {str(name): [str(gene) for gene in genes] for name, genes in source.items()}


def _against_sets(
    genes: np.ndarray, sets: Mapping[str, Sequence[str]], *, background: list[str]
) -> tuple[dict[str, float], dict[str, np.ndarray], int]:
    """Return scores of all topics, of each topic, and the listed genes that no set holds."""
    lists = [list(row) for row in genes]
    published, strict = (topics.set_npmi(lists, sets, form=form) for form in ("published", "strict"))
    known = ~np.isnan(strict.per_topic)
    scores = {"set_npmi": float(published.per_topic.mean())}
    scores["set_npmi_strict"] = float(strict.per_topic[known].mean()) if known.any() else float("nan")
    kept, _ = sets_within(sets, background, **SET_SIZES)
    called = benjamini_hochberg(over_representation(lists, kept, background).p) <= LEVEL
    scores |= _triple("ora", int(called.sum()), int(called.any(axis=0).sum()))
    return scores, {"set_npmi": published.per_topic, "set_npmi_strict": strict.per_topic}, strict.n_outside


def _triple(name: str, n_enriched: int, n_unique: int) -> dict[str, float]:
    ratio = n_unique / n_enriched if n_enriched else float("nan")
    return {f"{name}_n_enriched": n_enriched, f"{name}_n_unique": n_unique, f"{name}_unique_ratio": ratio}


def _stored_gsea(adata: AnnData, key: str) -> dict[str, float]:
    """Return the triple of the table that tl.sce2tm_gsea wrote, where there is one."""
    if f"{key}_gsea" not in adata.uns:
        return {}
    table = _record.read(adata, f"{key}_gsea")["table"]
    called = np.asarray(table["fdr"], dtype=np.float64) <= LEVEL
    terms = np.asarray(table["term"], dtype=object)[called]
    return _triple("gsea", int(called.sum()), len(set(terms)))


def _against_labels(
    adata: AnnData, labels_key: str, largest: np.ndarray, names: list[str]
) -> tuple[dict[str, float], pd.DataFrame, int]:
    """Return scores of the largest topic against types, one row a type, and the number of cells without one (T33)."""
    column = _column(adata, labels_key, name="adata")
    known = np.array([value is not None for value in column], dtype=bool)
    if not known.any():
        raise SetupError(
            f"None of the {adata.n_obs} cells has a label in `.obs[{labels_key!r}]`; expected at least one."
        )
    types, codes = np.unique(column[known].astype(str), return_inverse=True)
    counts = np.zeros((len(types), len(names)), dtype=np.int64)
    np.add.at(counts, (codes, largest[known]), 1)
    of_type, of_topic = counts.sum(axis=1), counts.sum(axis=0)
    f1 = 2 * counts / (of_type[:, None] + of_topic)
    best, each = f1.argmax(axis=1), np.arange(len(types))
    per_type = pd.DataFrame(
        {
            "label": types,
            "n_cells": of_type,
            "topic": [names[k] for k in best],
            "recall": counts[each, best] / of_type,
            "precision": counts[each, best] / of_topic[best],
            "f1": f1[each, best],
        }
    )
    scores = {
        "purity": float(counts.max(axis=0).sum() / known.sum()),
        "ari": ari(column[known], largest[known]),
        "nmi": nmi(column[known], largest[known]),
        "capture_f1": float(per_type["f1"].mean()),
    }
    return scores, per_type, int((~known).sum())


def _warn_of_repetition(redundancy: float) -> None:
    if redundancy > MANY_REDUNDANT:
        warnings.warn(
            f"{redundancy:.0%} of the topics have more than half of their top genes in common with another one. Try "
            "fewer topics; tl.sce2tm_choose_n_topics compares several numbers.",
            DataWarning,
            stacklevel=3,
        )
