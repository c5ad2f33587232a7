"""What the doors behind `tl.sce2tm` share: reading its topics, and writing a table beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cellsmith import _record
from cellsmith._errors import SetupError
from cellsmith.math.enrichment import parse_gmt
from cellsmith.math.topics import top_genes

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["Topics", "gene_lists", "read_gene_sets", "read_mu", "read_topics", "sce2tm_top_genes", "write_table"]


@dataclass(frozen=True, eq=False)
class Topics:
    """The topics that `tl.sce2tm` wrote.

    Parameters
    ----------
    names
        Names of the K topics.
    genes
        Names of all genes of the object, (n_vars,).
    beta
        (K, n_vars), 0 for genes outside the model.
    """

    names: list[str]
    genes: npt.NDArray[np.object_]
    beta: npt.NDArray[np.float64]

    @property
    def modelled(self) -> npt.NDArray[np.bool_]:
        """Mask of the genes that the model holds, (n_vars,)."""
        return np.asarray(np.any(self.beta != 0, axis=0))


def read_topics(adata: AnnData, key: str) -> Topics:
    """Return the topics under a key.

    Raises
    ------
    SetupError
        If there are none, or another method wrote the key.
    """
    block = _record.read(adata, key)
    method, where = block["provenance"].get("method"), f"{key}_loadings"
    if method != "sce2tm" or where not in adata.varm:
        raise SetupError(
            f"{key!r} was written by {method!r} and .varm has {sorted(map(str, adata.varm))}; expected a result of "
            f"tl.sce2tm with .varm[{where!r}]. Type key=... as it was given to key_added."
        )
    names = [str(name) for name in block["classes"]]
    beta = np.asarray(adata.varm[where], dtype=np.float64).T
    if beta.shape[0] != len(names):
        raise SetupError(f".varm[{where!r}] has {beta.shape[0]} columns, expected one for each of {len(names)} topics.")
    return Topics(names, np.array([str(gene) for gene in adata.var_names], dtype=object), beta)


def read_mu(adata: AnnData, key: str) -> npt.NDArray[np.float64]:
    """Return mu (n, K) of the cells, with a `SetupError` where it is missing."""
    where = f"{key}_mu"
    if where not in adata.obsm:
        raise SetupError(
            f".obsm has {sorted(map(str, adata.obsm))}, expected {where!r}, which tl.sce2tm and tl.sce2tm_transfer "
            "write."
        )
    return np.asarray(adata.obsm[where], dtype=np.float64)


def gene_lists(topics: Topics, n: int) -> list[list[str]]:
    """Return the names of the n genes of largest beta, a list a topic."""
    return [[str(gene) for gene in topics.genes[row]] for row in top_genes(topics.beta, n)]


def read_gene_sets(source: Any) -> dict[str, tuple[str, ...]]:
    """Return gene sets by name, from a mapping or from the path of a GMT file.

    Raises
    ------
    SetupError
        If there is no such file, it is no GMT file, or a set of the mapping is not a collection of names.
    """
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        if not path.is_file():
            raise SetupError(
                f"gene_sets={str(source)!r} is no file; expected the path of a GMT file, or a mapping from name to "
                "genes."
            )
        with path.open(encoding="utf-8") as lines:
            return parse_gmt(lines)
    if not isinstance(source, Mapping) or not source:
        raise SetupError(
            f"gene_sets is a {type(source).__name__} of length {len(source) if hasattr(source, '__len__') else '?'}; "
            "expected the path of a GMT file or a mapping from name to genes."
        )
    for name, genes in source.items():
        if isinstance(genes, str) or not hasattr(genes, "__iter__"):
            raise SetupError(f"The gene set {name!r} is {genes!r}; expected a list of gene names.")
    return {str(name): tuple(str(gene) for gene in genes) for name, genes in source.items()}


def write_table(
    adata: AnnData,
    kind: str,
    *,
    key: str,
    key_added: str | None,
    table: Mapping[str, Any],
    params: Mapping[str, Any],
    copy: bool,
    seed: int | None = None,
    warnings: tuple[str, ...] = (),
) -> AnnData | None:
    """Write a table under ``<key>_<kind>`` or ``key_added``, and return the copy where one was asked for.

    Parameters
    ----------
    adata
        Cells with the topics.
    kind
        "enrich", "gsea", "rank" or "survival".
    key, key_added
        Key of the topics; that of the table, None for the usual one.
    table
        Columns of equal length.
    params
        What was asked, and what was left out.
    copy
        Write into a copy.
    seed, warnings
        For the record.
    """
    goal = adata.copy() if copy else adata
    record = _record.provenance(
        method=f"sce2tm_{kind}",
        seed=seed,
        n_obs=adata.n_obs,
        var_names=adata.var_names,
        inputs={"key": key},
        warnings=warnings,
    )
    block = {"table": dict(table), "params": dict(params), "provenance": record}
    name = f"{key}_{kind}" if key_added is None else key_added
    _record.write(goal, name, _record.Result(method=f"sce2tm_{kind}", uns=block))
    return goal if copy else None


def sce2tm_top_genes(adata: AnnData, *, key: str = "sce2tm", n: int = 10, copy: bool = False) -> AnnData | None:
    """List the genes of every topic.

    Parameters
    ----------
    adata
        Cells with the results of :func:`cellsmith.tl.sce2tm`.
    key
        Their key.
    n
        Genes a topic.
    copy
        Return a copy with the lists instead of writing into ``adata``.

    Returns
    -------
    None, or the copy. Written is ``.uns[key]["top_genes"]``: topic -> ``n`` names, exactly as in ``.var_names``,
    largest beta first. ``pandas.DataFrame(adata.uns[key]["top_genes"])`` shows them.

    Raises
    ------
    SetupError
        If there are no results, or fewer than ``n`` genes are in the model.

    Examples
    --------
    >>> cellsmith.tl.sce2tm_top_genes(adata, n=20)  # doctest: +SKIP
    """
    topics = read_topics(adata, key)
    lists = {
        name: np.array(genes, dtype=object) for name, genes in zip(topics.names, gene_lists(topics, n), strict=True)
    }
    goal = adata.copy() if copy else adata
    _record.extend(goal, key, _record.Result(method="sce2tm", uns={"top_genes": lists}))
    return goal if copy else None
