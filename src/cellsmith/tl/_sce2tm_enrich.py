"""Which gene sets the topics of scE2TM stand for: over-representation, and enrichment of whole rankings."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellsmith._errors import MissingExtraError, SetupError, nearest
from cellsmith._rng import resolve_seed
from cellsmith.math.enrichment import OverRepresentation, benjamini_hochberg, over_representation, sets_within
from cellsmith.tl._sce2tm_tables import gene_lists, read_gene_sets, read_topics, write_table

if TYPE_CHECKING:
    import numpy.typing as npt
    from anndata import AnnData

    from cellsmith.tl._sce2tm_tables import Topics

__all__ = ["sce2tm_enrich", "sce2tm_gsea"]

CORRECTIONS = ("global", "per_topic")
GSEA_SIZES = {"min_size": 15, "max_size": 500}
ENRICH_COLUMNS = ("topic", "term", "overlap", "list_size", "set_size", "expected", "p_value", "fdr", "genes")
GSEA_COLUMNS = ("topic", "term", "set_size", "es", "nes", "p_value", "fdr", "fwer", "leading_edge")
_TEXT = {"topic", "term", "genes", "leading_edge"}
_WHOLE = {"overlap", "list_size", "set_size"}


def sce2tm_enrich(
    adata: AnnData,
    *,
    gene_sets: Any,
    key: str = "sce2tm",
    n_genes: int = 10,
    background: Collection[str] | None = None,
    min_size: int = 3,
    max_size: int = 500,
    correction: str = "global",
    key_added: str | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Find gene sets that share more genes with a topic's list than chance would give. No network, no extra package.

    One-sided hypergeometric test (T34) of every set against the first ``n_genes`` genes of every topic. The background
    is the genes that the model could have listed: with the union of the sets instead, as some programs have it, almost
    everything looks enriched.

    Parameters
    ----------
    adata
        Cells with the results of :func:`cellsmith.tl.sce2tm`.
    gene_sets
        Path of a GMT file, or a mapping from name to genes, named as in ``.var_names``.
    key
        Key of the topics.
    n_genes
        Length of a topic's list, by beta.
    background
        Names of genes; None is the genes of the model. Listed genes outside it are left out and counted.
    min_size, max_size
        Fewest and most genes of a set within the background; other sets are left out and counted.
    correction
        Benjamini-Hochberg over all topics and sets ("global") or within each topic ("per_topic").
    key_added
        Name of the table; None is ``key + "_enrich"``.
    copy
        Return a copy with the table instead of writing into ``adata``.

    Returns
    -------
    None, or the copy. Written is ``.uns[key_enrich]``: ``"table"``, a mapping of equally long arrays (topic, term,
    overlap, list_size, set_size, expected overlap, p_value, fdr, genes separated by ";"), one row a topic and set with
    a gene in common, by topic and then p-value, empty if there is none; and ``"params"``, with the numbers of sets
    tested and left out. ``pandas.DataFrame(adata.uns["sce2tm_enrich"]["table"])`` shows it.

    Raises
    ------
    SetupError
        If there are no results, the file does not exist or holds no sets, or no set of a fitting size has genes of the
        background.

    Examples
    --------
    >>> cellsmith.tl.sce2tm_enrich(adata, gene_sets="h.all.v7.0.symbols.gmt")  # doctest: +SKIP
    """
    if correction not in CORRECTIONS:
        raise SetupError(f"correction={correction!r} is not known. {nearest(correction, CORRECTIONS)}")
    topics = read_topics(adata, key)
    lists = gene_lists(topics, n_genes)
    known = [str(g) for g in (topics.genes[topics.modelled] if background is None else background)]
    sets, counts = sets_within(read_gene_sets(gene_sets), known, min_size=min_size, max_size=max_size)
    found = over_representation(lists, sets, known)
    rates = (
        benjamini_hochberg(found.p) if correction == "global" else np.array([benjamini_hochberg(p) for p in found.p])
    )
    params = {
        "n_genes": n_genes,
        "background": "modelled genes" if background is None else "given",
        "background_size": found.background_size,
        "min_size": min_size,
        "max_size": max_size,
        "correction": correction,
        "n_tests": found.p.size,
        "n_sets": counts["kept"],
        "n_sets_too_small": counts["too_small"],
        "n_sets_too_large": counts["too_large"],
        "n_genes_outside": sum(map(len, lists)) - int(found.list_size.sum()),
    }
    table = _enrich_table(topics, lists, sets, found=found, rates=rates)
    return write_table(adata, "enrich", key=key, key_added=key_added, table=table, params=params, copy=copy)


def _enrich_table(
    topics: Topics,
    lists: list[list[str]],
    sets: Mapping[str, tuple[str, ...]],
    *,
    found: OverRepresentation,
    rates: npt.NDArray[np.float64],
) -> dict[str, npt.NDArray[Any]]:
    """Return one row for every topic and set with a common gene, by topic and then p-value."""
    terms = list(sets)
    rows = []
    for k, name in enumerate(topics.names):
        for s in np.argsort(found.p[k], kind="stable"):
            if not found.overlap[k, s]:
                continue
            members = frozenset(sets[terms[s]])
            shared = ";".join(gene for gene in lists[k] if gene in members)
            sizes = (found.overlap[k, s], found.list_size[k], found.set_size[s])
            expected = found.list_size[k] * found.set_size[s] / found.background_size
            rows.append((name, terms[s], *sizes, expected, found.p[k, s], rates[k, s], shared))
    return _columns(rows, ENRICH_COLUMNS)


def _columns(rows: list[tuple[Any, ...]], names: tuple[str, ...]) -> dict[str, npt.NDArray[Any]]:
    """Return rows as typed columns, all of them there even without a row."""
    values = list(zip(*rows, strict=True)) if rows else [()] * len(names)
    kinds = [object if n in _TEXT else np.int64 if n in _WHOLE else np.float64 for n in names]
    return {name: np.array(column, dtype=kind) for name, column, kind in zip(names, values, kinds, strict=True)}


def sce2tm_gsea(
    adata: AnnData,
    *,
    gene_sets: Any,
    key: str = "sce2tm",
    n_permutations: int = 1000,
    key_added: str | None = None,
    copy: bool = False,
    rng: Any = 0,
) -> AnnData | None:
    """Find gene sets whose genes stand high in a topic's ranking of all genes. Needs ``cellsmith[enrichment]``.

    Preranked gene set enrichment by gseapy: the modelled genes ranked by the topic's beta, sets of 15 to 500 of them.

    Parameters
    ----------
    adata
        Cells with the results of :func:`cellsmith.tl.sce2tm`.
    gene_sets
        Path of a GMT file, or a mapping from name to genes, named as in ``.var_names``.
    key
        Key of the topics.
    n_permutations
        Permutations of the genes behind p-values; the smallest p-value that they can give is their inverse.
    key_added
        Name of the table; None is ``key + "_gsea"``.
    copy
        Return a copy with the table instead of writing into ``adata``.
    rng
        Seed of the permutations.

    Returns
    -------
    None, or the copy. Written is ``.uns[key_gsea]``: ``"table"``, a mapping of equally long arrays (topic, term,
    set_size, es, nes, p_value, fdr, fwer, leading_edge separated by ";"), one row a topic and set; ``fdr`` and ``fwer``
    are those of gseapy, within a topic; and ``"params"``, with the numbers of sets tested and left out.

    Raises
    ------
    MissingExtraError
        If gseapy is not installed.
    SetupError
        If there are no results, the file does not exist or holds no sets, or no set of a fitting size has genes of the
        model.

    Examples
    --------
    >>> cellsmith.tl.sce2tm_gsea(adata, gene_sets="h.all.v7.0.symbols.gmt")  # doctest: +SKIP
    """
    try:
        from gseapy import prerank
    except ImportError as error:
        raise MissingExtraError(
            "tl.sce2tm_gsea needs gseapy, which is not installed. Type: pip install 'cellsmith[enrichment]'. "
            "tl.sce2tm_enrich needs no further package."
        ) from error
    topics, seed = read_topics(adata, key), resolve_seed(rng)
    known = [str(gene) for gene in topics.genes[topics.modelled]]
    sets, counts = sets_within(read_gene_sets(gene_sets), known, **GSEA_SIZES)
    rows = []
    for name, values in zip(topics.names, topics.beta[:, topics.modelled], strict=True):
        found = prerank(
            rnk=pd.Series(values, index=known).sort_values(ascending=False, kind="stable"),
            gene_sets={term: list(genes) for term, genes in sets.items()},
            permutation_num=n_permutations,
            outdir=None,
            no_plot=True,
            threads=1,
            seed=seed % 2**32,
            **GSEA_SIZES,
        ).res2d
        numbers = found[["ES", "NES", "NOM p-val", "FDR q-val", "FWER p-val"]].to_numpy(dtype=np.float64)
        terms, edges = found["Term"].astype(str), found["Lead_genes"].astype(str)
        rows += [(name, t, len(sets[t]), *n, e) for t, n, e in zip(terms, numbers, edges, strict=True)]
    params = {
        "n_permutations": n_permutations,
        **GSEA_SIZES,
        "correction": "per_topic",
        "n_sets": counts["kept"],
        "n_sets_too_small": counts["too_small"],
        "n_sets_too_large": counts["too_large"],
    }
    table = _columns(rows, GSEA_COLUMNS)
    return write_table(adata, "gsea", key=key, key_added=key_added, table=table, params=params, copy=copy, seed=seed)
