"""Cells as the scores see them: counts, normalised expression, labels, principal components.

Everything here copies what it needs; the objects of the caller are only read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from cellsmith._errors import SetupError, nearest
from cellsmith.math.counts import first_bad_count

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["Cells", "Space", "log_normalise", "moments", "read_cells", "stack", "top_variable"]

TARGET_TOTAL = 1e4
"""Counts a cell after normalisation, before log1p."""


@dataclass(frozen=True)
class Cells:
    """One set of cells.

    Parameters
    ----------
    log
        log1p of counts normalised to 1e4 a cell, CSR of shape (n, G), float64.
    counts
        Counts, CSR of shape (n, G); None when the object holds no counts.
    names
        Names of the cells, shape (n,).
    columns
        ``.obs`` column -> values as str or None where missing, each of shape (n,).
    """

    log: sparse.csr_matrix
    counts: sparse.csr_matrix | None
    names: np.ndarray
    columns: dict[str, np.ndarray]

    @property
    def n(self) -> int:
        """Number of cells."""
        return int(self.log.shape[0])

    def rows(self, index: np.ndarray) -> Cells:
        """Return the cells at `index` (positions, in that order)."""
        counts = None if self.counts is None else self.counts[index]
        return replace(
            self,
            log=self.log[index],
            counts=counts,
            names=self.names[index],
            columns={k: v[index] for k, v in self.columns.items()},
        )

    def draw(self, n: int, generator: np.random.Generator) -> Cells:
        """Return `n` cells drawn without replacement in their old order; all of them when there are no more."""
        if n >= self.n:
            return self
        return self.rows(np.sort(generator.choice(self.n, n, replace=False)))


def log_normalise(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return log1p of counts scaled to 1e4 a cell.

    Parameters
    ----------
    counts
        Counts, CSR of shape (n, G). A cell without counts stays zero.

    Returns
    -------
    CSR of shape (n, G), float64, natural logarithm.
    """
    out = counts.astype(np.float64, copy=True)
    totals = np.asarray(out.sum(axis=1)).ravel()
    scale = np.divide(TARGET_TOTAL, totals, out=np.zeros_like(totals), where=totals > 0)
    out.data = np.log1p(out.data * np.repeat(scale, np.diff(out.indptr)))
    return out


def _matrix(adata: AnnData, layer: str | None, *, name: str, fall_back: bool) -> Any:
    if layer is None or (fall_back and layer not in adata.layers):
        return adata.X
    if layer not in adata.layers:
        msg = f"`{name}` has no layer {layer!r}. {nearest(layer, adata.layers.keys())}"
        raise SetupError(msg)
    return adata.layers[layer]


def _csr(x: Any, order: np.ndarray | None) -> sparse.csr_matrix:
    x = x[:] if not (sparse.issparse(x) or isinstance(x, np.ndarray)) else x  # backed matrices are read once
    out = sparse.csr_matrix(x, dtype=np.float64, copy=True)
    out = out if order is None else out[:, order]
    out.sum_duplicates()
    out.eliminate_zeros()
    out.sort_indices()
    return out


def _gene_order(adata: AnnData, genes: np.ndarray, *, name: str) -> np.ndarray | None:
    own = np.asarray(adata.var_names, dtype=str)
    if len(set(own)) != len(own):
        msg = f"`{name}` has repeated gene names. Type `{name}.var_names_make_unique()` in every object first."
        raise SetupError(msg)
    if np.array_equal(own, genes):
        return None
    common = len(set(own) & set(genes))
    if common < max(len(genes), len(own)):
        msg = (
            f"`{name}` has {len(own)} genes, the first object {len(genes)}; {common} names are in both. Scores need "
            f"the same genes everywhere. Subset every object to them, for example `{name}[:, shared_genes]`."
        )
        raise SetupError(msg)
    return np.asarray(adata.var_names.get_indexer(genes))


def _column(adata: AnnData, key: str, *, name: str) -> np.ndarray:
    if key not in adata.obs:
        msg = f"`{name}.obs` has no column {key!r}. {nearest(key, adata.obs.columns)}"
        raise SetupError(msg)
    values = adata.obs[key]
    out = values.astype(str).to_numpy(dtype=object)
    out[values.isna().to_numpy()] = None
    return out


def read_cells(
    adata: AnnData,
    *,
    name: str,
    genes: np.ndarray,
    layer: str | None = None,
    columns: Iterable[str | None] = (),
    log_scale: bool = False,
) -> Cells:
    """Copy what the scores need out of an AnnData.

    Parameters
    ----------
    adata
        Counts in ``.X`` or in `layer`.
    name
        What error messages call the object.
    genes
        Gene names in the wanted order, shape (G,).
    layer
        Layer of counts.
    columns
        Columns of ``.obs`` to keep; None entries are skipped.
    log_scale
        Accept values that are no counts and read them as log1p of normalised
        expression; `layer` is then used only where the object has it.

    Returns
    -------
    The cells, with ``counts=None`` where the values are no counts.

    Raises
    ------
    SetupError
        For other genes, a missing layer or column, too few cells, or values that are no counts.
    """
    if adata.n_obs < 20 or adata.n_vars < 2:
        msg = f"`{name}` has {adata.n_obs} cells and {adata.n_vars} genes; scores need at least 20 cells and 2 genes."
        raise SetupError(msg)
    order = _gene_order(adata, genes, name=name)
    x = _csr(_matrix(adata, layer, name=name, fall_back=log_scale), order)
    broken = np.flatnonzero(~np.isfinite(x.data))
    if len(broken):
        row, gene = int(np.searchsorted(x.indptr, broken[0], side="right")) - 1, x.indices[broken[0]]
        msg = (
            f"`{name}` has {len(broken)} values that are NaN or infinite, the first in cell {adata.obs_names[row]!r}, "
            f"gene {str(genes[gene])!r}; expected finite ones. Name another layer with `layer=`, or remove them."
        )
        raise SetupError(msg)
    bad = first_bad_count(x)
    kept = {k: _column(adata, k, name=name) for k in columns if k is not None}
    names = np.asarray(adata.obs_names, dtype=object)
    if bad is None:
        return Cells(log=log_normalise(x), counts=x, names=names, columns=kept)
    if log_scale:
        return Cells(log=x, counts=None, names=names, columns=kept)
    row, gene, value = bad
    msg = (
        f"`{name}` does not hold counts: cell {adata.obs_names[row]!r}, gene {str(genes[gene])!r} is {value:g}; "
        "expected integers >= 0. Name the layer of counts with `layer=`; log-normalised synthetic cells then pass."
    )
    raise SetupError(msg)


def stack(*parts: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return the rows of all `parts` under each other, CSR."""
    return sparse.csr_matrix(sparse.vstack(parts, format="csr"))


def moments(x: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance (divisor n) of every column, each of shape (G,)."""
    mean = np.asarray(x.mean(axis=0)).ravel()
    square = np.asarray(x.multiply(x).mean(axis=0)).ravel()
    return mean, np.maximum(square - mean**2, 0.0)


def top_variable(x: sparse.csr_matrix, n: int) -> np.ndarray:
    """Return the columns of the `n` largest variances, largest first; ties by column."""
    return np.argsort(-moments(x)[1], kind="stable")[:n]


@dataclass(frozen=True)
class Space:
    """Principal components and gene ranking, both learned from one set of cells.

    Parameters
    ----------
    pca
        Fitted ``sklearn.decomposition.PCA``.
    ranked
        Columns by falling variance, shape (G,).
    """

    pca: Any
    ranked: np.ndarray

    @classmethod
    def fit(cls, log: sparse.csr_matrix, n_components: int, seed: int) -> Space:
        """Fit on normalised expression of shape (n, G); `seed` starts the eigensolver."""
        from sklearn.decomposition import PCA

        d = max(1, min(n_components, min(log.shape) - 1))
        pca = PCA(d, svd_solver="arpack", random_state=seed).fit(log)
        return cls(pca=pca, ranked=top_variable(log, log.shape[1]))

    def project(self, cells: Cells) -> np.ndarray:
        """Return coordinates of shape (n, d)."""
        return np.asarray(self.pca.transform(cells.log))
