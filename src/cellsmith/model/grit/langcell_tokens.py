"""From counts to the tokens of a cell: genes ranked by their count relative to the gene's median."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cellsmith._errors import SetupError

__all__ = ["GeneVocabulary", "TokenizedCells", "tokenize"]

_ROWS = 2_048  # cells read together: bounds the memory of the sort


@dataclass(frozen=True)
class GeneVocabulary:
    """Genes that have a median and a token, and the special tokens.

    Parameters
    ----------
    tokens
        Ensembl id -> token; ``<pad>`` among them. Where ``<cls>`` is not, it is the first free token.
    medians
        Ensembl id -> median of its non-zero normalised counts, positive.
    symbols
        Gene symbol -> Ensembl id; may be empty.

    Raises
    ------
    SetupError
        If a token is missing, negative or given twice, or a median is not positive.
    """

    tokens: Mapping[str, int]
    medians: Mapping[str, float]
    symbols: Mapping[str, str]

    def __post_init__(self) -> None:
        if "<pad>" not in self.tokens:
            raise SetupError("The token dictionary has no '<pad>'; expected genes and special tokens -> integers.")
        numbers = list(self.tokens.values())
        if any(v != int(v) or v < 0 for v in numbers) or len(set(numbers)) != len(numbers):
            raise SetupError("The token dictionary has a fractional, negative or repeated token; expected 0, 1, 2, ...")
        if absent := [gene for gene in self.medians if gene not in self.tokens]:
            raise SetupError(f"{len(absent)} genes have a median and no token, for example {absent[:3]}.")
        bad = next((gene for gene, v in self.medians.items() if not (np.isfinite(v) and v > 0)), None)
        if bad is not None:
            raise SetupError(f"The median of {bad} is {self.medians[bad]}; expected a positive number.")

    @property
    def pad(self) -> int:
        """Token that fills short cells."""
        return int(self.tokens["<pad>"])

    @property
    def cls(self) -> int:
        """Token in front of every cell; its state is the cell's."""
        return int(self.tokens.get("<cls>", max(self.tokens.values()) + 1))

    def gene(self, name: str) -> str | None:
        """Return the Ensembl id that has a median, by id, by id without its version, or by symbol; None if none has."""
        for candidate in (name, re.sub(r"\.\d+$", "", name), self.symbols.get(name, "")):
            if candidate in self.medians:
                return candidate
        return None


@dataclass(frozen=True)
class TokenizedCells:
    """Token lists of cells, one behind the other.

    Parameters
    ----------
    tokens
        ``(sum of lengths,)`` int32.
    offsets
        ``(n + 1,)`` int64; the tokens of cell i are ``tokens[offsets[i]:offsets[i + 1]]``. A cell that was left out
        has none, a cell without a known gene has ``<cls>`` alone.
    fractional
        Whether a value was not an integer.
    """

    tokens: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    fractional: bool = False

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Number of tokens of every cell, ``(n,)``."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return self.offsets.size - 1

    def __getitem__(self, cell: int) -> npt.NDArray[np.int32]:
        return self.tokens[self.offsets[cell] : self.offsets[cell + 1]]


def _gather(
    genes: Sequence[str], vocabulary: GeneVocabulary
) -> tuple[sparse.csr_matrix, npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    """Return the matrix that sums columns of one gene, and the genes' tokens and medians, by rising token."""
    known = [(column, gene) for column, name in enumerate(genes) if (gene := vocabulary.gene(str(name))) is not None]
    if not known:
        raise SetupError(
            f"None of the {len(genes)} genes has a median, for example {[str(g) for g in genes[:3]]}; expected Ensembl "
            "ids such as 'ENSG00000156738'. Name their column with gene_key=, or put gene_name_id_dict.json (symbol "
            "-> Ensembl id) beside the other files."
        )
    ordered = sorted({gene for _, gene in known}, key=lambda gene: vocabulary.tokens[gene])
    place = {gene: i for i, gene in enumerate(ordered)}
    rows, columns = [column for column, _ in known], [place[gene] for _, gene in known]
    matrix = sparse.csr_matrix((np.ones(len(known)), (rows, columns)), shape=(len(genes), len(ordered)))
    tokens = np.array([vocabulary.tokens[gene] for gene in ordered], dtype=np.int32)
    return matrix, tokens, np.array([vocabulary.medians[gene] for gene in ordered])


def _blocks(x: Any) -> Iterator[tuple[int, sparse.csr_matrix]]:
    if sparse.issparse(x) and x.format != "csr":
        x = x.tocsr()
    for start in range(0, x.shape[0], _ROWS):
        block = x[start : min(start + _ROWS, x.shape[0])]
        block = block.compute() if hasattr(block, "compute") else block
        yield start, sparse.csr_matrix(block, dtype=np.float64)


def tokenize(
    x: Any,
    genes: Sequence[str],
    vocabulary: GeneVocabulary,
    *,
    keep: npt.NDArray[np.bool_] | None = None,
    max_length: int = 2_048,
    name: Callable[[int], str] = str,
) -> TokenizedCells:
    """Rank the genes of every cell by ``count / n_counts * 10,000 / median``, highest first.

    ``n_counts`` is the cell's total before any gene is left out. It and the 10,000 are common to all genes of a cell,
    so that the order is that of ``count / median``, which is what is sorted: one division rounds equal ratios equally,
    while three make the order of ties depend on the depth of the cell. Genes of equal ratio come by rising token, so
    that the order of the columns does not matter; columns of the same gene are summed. The matrix is read in blocks of
    rows and never densified.

    Parameters
    ----------
    x
        ``(n, G)`` counts: array, sparse matrix, backed matrix or dask array.
    genes
        Ensembl id or symbol of every column.
    vocabulary
        Tokens and medians.
    keep
        ``(n,)`` cells to tokenise; None means all.
    max_length
        Longest list, ``<cls>`` included.
    name
        Gives the name of a cell, for messages.

    Raises
    ------
    SetupError
        If no gene is known, or a value is negative, NaN or infinite; the message names the first cell and gene.
    """
    gather, tokens, medians = _gather(genes, vocabulary)
    parts: list[npt.NDArray[np.int32]] = []
    lengths = np.zeros(x.shape[0], dtype=np.int64)
    fractional = False
    for start, block in _blocks(x):
        _check(block, genes, lambda row, start=start: name(start + row))
        fractional = fractional or bool(np.any(block.data % 1))
        rows = np.arange(block.shape[0]) if keep is None else np.flatnonzero(keep[start : start + block.shape[0]])
        found = block[rows] @ gather
        found.eliminate_zeros()
        row = np.repeat(np.arange(rows.size), np.diff(found.indptr))
        value = found.data / medians[found.indices]
        part, length = _rank(row, value, tokens[found.indices], n=rows.size, cls=vocabulary.cls, most=max_length)
        parts.append(part)
        lengths[start + rows] = length
    joined = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)
    return TokenizedCells(joined, np.concatenate(([0], np.cumsum(lengths))), fractional)


def _rank(
    row: npt.NDArray[np.int64],
    value: npt.NDArray[np.float64],
    token: npt.NDArray[np.int32],
    *,
    n: int,
    cls: int,
    most: int,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Sort the entries of every row, cut them to ``most - 1`` and set ``<cls>`` in front."""
    order = np.lexsort((token, -value, row))
    row, token = row[order], token[order]
    full = np.bincount(row, minlength=n)
    rank = np.arange(row.size) - np.repeat(np.cumsum(full) - full, full)
    short = np.minimum(full, most - 1) + 1
    start = np.cumsum(short) - short
    out = np.full(int(short.sum()), cls, dtype=np.int32)
    inside = rank < most - 1
    out[start[row[inside]] + 1 + rank[inside]] = token[inside]
    return out, short


def _check(block: sparse.csr_matrix, genes: Sequence[str], name: Callable[[int], str]) -> None:
    bad = np.flatnonzero(~((block.data >= 0) & (block.data < np.inf)))
    if bad.size:
        row = int(np.searchsorted(block.indptr, bad[0], side="right") - 1)
        raise SetupError(
            f"Cell {name(row)!r} has {block.data[bad[0]]} of gene {str(genes[block.indices[bad[0]]])!r}; expected "
            "counts. Name the layer that holds them with layer=."
        )
