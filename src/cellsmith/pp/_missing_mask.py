"""Which entries were observed: a pattern in ``.layers`` that BC-PCA reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import LinearOperator, svds

from cellsmith import _keys, _record
from cellsmith._errors import SetupError, nearest
from cellsmith._rng import Streams, isolated, resolve_seed
from cellsmith.math import missing

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["missing_mask"]

METHODS = ("nan", "zero", "consensus", "michaelis-menten", "nb", "scvi")
N_COMPONENTS = 20  # of the principal components that the consensus rule clusters

Weights = Callable[[int, int, Any], np.ndarray]


def missing_mask(
    adata: AnnData,
    *,
    layer: str | None = None,
    method: str = "nan",
    key_added: str | None = None,
    threshold: float = 0.9,
    n_clusters: Sequence[int | str] = (4, 6, 8, 10, 12),
    use_rep: str | None = None,
    model: Any = None,
    copy: bool = False,
    rng: Any = 0,
    random_state: int | None = None,
) -> AnnData | None:
    """Write down which entries were observed, by whichever pattern is sparser.

    Parameters
    ----------
    adata
        Cells x features.
    layer
        Layer with the values; None is ``.X``.
    method
        "nan": NaN is missing. "zero": every zero is. "consensus": a zero is a true one where most clusterings of the
        cells find at least ``threshold`` of the gene's values in the cell's cluster to be zero, else missing.
        "michaelis-menten", "nb" and "scvi" (counts): a zero gets the probability that it is a count and not a
        dropout, by the mean of its gene, a negative binomial, or a trained model with zero inflation. These three
        store one number for every zero of the matrix.
    key_added
        Name of the layer; None is ``"observed"`` or ``"missing"``, as the pattern says.
    threshold
        For "consensus": share of zeros, in (0, 1].
    n_clusters
        For "consensus": one clustering each. A number is k-means with so many clusters; a string is a categorical
        column of ``.obs``, for example of Leiden.
    use_rep
        For "consensus": key of ``.obsm`` to cluster; None computes 20 principal components (of log-normalised values
        where the layer holds counts).
    model
        For "scvi": a trained :class:`scvi.model.SCVI` with ``gene_likelihood="zinb"``.
    copy
        Return a copy instead of writing into ``adata``.
    rng
        Seed of clusterings and of draws from ``model``.
    random_state
        Another name for ``rng``, as in older scanpy.

    Returns
    -------
    None, or the copy. Written: ``.layers[<name>]``, CSR (n, D), uint8 or float32, and ``.uns[<name>]`` with ``marks``
    ("observed": stored values are weights; "missing": they are one minus the weights), ``method``, ``observed_rate``.
    ``.X`` is never changed.

    Raises
    ------
    SetupError
        For an unknown method or layer, a value that the method cannot read, or a name that is taken.

    Examples
    --------
    >>> import cellsmith
    >>> adata = cellsmith.datasets.kang_pbmc()
    >>> cellsmith.pp.missing_mask(adata, method="consensus")  # doctest: +SKIP
    """
    if method not in METHODS:
        raise SetupError(f"method={method!r}. {nearest(method, METHODS)}")
    if key_added is not None:
        _keys.validate(key_added)
    seed = resolve_seed(rng if random_state is None else random_state)
    rows, where = missing.find_values(adata.X, adata.layers, layer=layer)
    if method == "consensus":
        weigh, facts = _consensus(adata, rows, threshold=threshold, n_clusters=n_clusters, use_rep=use_rep, seed=seed)
        options = {"threshold": float(threshold), "n_clusters": [str(c) for c in n_clusters], "use_rep": use_rep}
    else:
        options = {}
        weigh, facts = _rule(adata, rows, method=method, model=model, seed=seed)
    pattern, marks, rate = missing.sparser_pattern(rows, weigh)
    name = key_added or marks
    target = adata.copy() if copy else adata
    record = _record.provenance(
        method="missing_mask",
        seed=seed,
        n_obs=adata.n_obs,
        var_names=adata.var_names,
        inputs={"layer": layer, "values": where, "method": method},
    )
    block = {"marks": marks, "method": method, "observed_rate": rate, **facts, "params": options, "provenance": record}
    _record.write(target, name, _record.Result(method="missing_mask", layers={"{k}": pattern}, uns=block))
    return target if copy else None


def _rule(adata: AnnData, rows: missing.Rows, *, method: str, model: Any, seed: int) -> tuple[Weights, dict[str, Any]]:
    """Return the weights of the rules that look at entries, genes and depth."""
    if method == "nan":
        return lambda start, stop, x: ~np.isnan(missing.dense(x)), {}
    if method == "zero":
        return _non_zero, {}
    means, zero_share, totals = missing.zero_moments(rows)
    if method == "scvi":
        return _scvi(adata, model, seed=seed), {}
    depth = totals / max(float(totals.mean()), np.finfo(float).tiny)
    if method == "michaelis-menten":
        constant = missing.fit_michaelis_menten(means, zero_share)
        rule = lambda start, stop: missing.michaelis_menten_weights(means, depth[start:stop], constant=constant)
        return _zeros_only(rule), {"constant": constant}
    nb, facts = _negative_binomial(rows, means, zero_share, depth)
    return _zeros_only(nb), facts


def _non_zero(start: int, stop: int, x: Any) -> np.ndarray:
    values = missing.dense(x)
    if np.isnan(values).any():
        i, g = (int(v[0]) for v in np.nonzero(np.isnan(values)))
        raise SetupError(
            f'method="zero" found NaN in row {start + i}, column {g}; expected values without NaN. '
            'Type method="nan", or fill what should be a zero.'
        )
    return values != 0


def _zeros_only(rule: Callable[[int, int], np.ndarray]) -> Weights:
    """Return weights that are 1 but for zeros."""
    return lambda start, stop, x: np.where(missing.dense(x) != 0, 1.0, rule(start, stop))


def _negative_binomial(
    rows: missing.Rows, means: np.ndarray, zero_share: np.ndarray, depth: np.ndarray
) -> tuple[Callable[[int, int], np.ndarray], dict[str, Any]]:
    from cellsmith.math.counts import dispersion_moments, first_bad_count

    x = missing.whole(rows)
    if (bad := first_bad_count(x)) is not None:
        raise SetupError(
            f'method="nb" reads counts, but the value of row {bad[0]}, column {bad[1]} is {bad[2]!r}. '
            "Name the layer with the raw counts: layer='counts'."
        )
    theta = dispersion_moments(x, depth)

    def no_count(start: int, stop: int) -> np.ndarray:
        mu = np.outer(depth[start:stop], means)
        return np.exp(theta * (np.log(theta) - np.log(theta + mu)))

    expected = np.zeros(rows.shape[1])
    for start, stop in missing.chunk_bounds(rows, 256):
        expected += no_count(start, stop).sum(axis=0)
    expected /= max(rows.shape[0], 1)
    # Zeros in excess of those that the negative binomial expects are the mixture weight of dropouts.
    excess = np.clip((zero_share - expected) / np.maximum(1.0 - expected, 1e-12), 0.0, 1.0)
    return lambda start, stop: missing.excess_zero_weights(no_count(start, stop), excess), {"dropout": excess}


def _scvi(adata: AnnData, model: Any, *, seed: int) -> Weights:
    if model is None or not hasattr(model, "get_likelihood_parameters"):
        raise SetupError(
            f'method="scvi" got model={type(model).__name__}; expected a trained scvi.model.SCVI with '
            'gene_likelihood="zinb". Type model=<that model>.'
        )
    likelihood = getattr(model.module, "gene_likelihood", None)
    if not model.is_trained or likelihood != "zinb":
        state = "is not trained" if not model.is_trained else f"has gene_likelihood={likelihood!r}"
        raise SetupError(f'The model {state}; expected a trained one with gene_likelihood="zinb". Train such a model.')

    def weights(start: int, stop: int, x: Any) -> np.ndarray:
        with isolated(Streams(seed).integer("sample", start)):
            found = model.get_likelihood_parameters(adata, indices=np.arange(start, stop), n_samples=1)
        mu, dropout = (np.asarray(found[name], dtype=float) for name in ("mean", "dropout"))
        theta = np.asarray(found["dispersions"], dtype=float)
        no_count = np.exp(theta * (np.log(theta) - np.log(theta + mu)))
        values = missing.excess_zero_weights(no_count, dropout)
        return np.where(missing.dense(x) != 0, 1.0, values)

    return weights


def _consensus(
    adata: AnnData,
    rows: missing.Rows,
    *,
    threshold: float,
    n_clusters: Sequence[int | str],
    use_rep: str | None,
    seed: int,
) -> tuple[Weights, dict[str, Any]]:
    if not 0.0 < float(threshold) <= 1.0:
        raise SetupError(f"threshold={threshold}; expected a share of zeros in (0, 1]. Type threshold=0.9.")
    if isinstance(n_clusters, str | int) or not len(n_clusters):
        raise SetupError(f"n_clusters={n_clusters!r}; expected a sequence, one entry a clustering. Type (4, 6, 8).")
    missing.zero_moments(rows)  # refuses what has no zeros in the sense of the rule
    points = None
    clusterings = []
    for position, entry in enumerate(n_clusters):
        if isinstance(entry, str):
            clusterings.append(_column(adata, entry))
            continue
        points = _points(adata, rows, use_rep=use_rep, seed=seed) if points is None else points
        clusterings.append(_k_means(points, int(entry), seed=Streams(seed).integer("init", position)))
    codes, true = missing.consensus_zeros(rows, np.column_stack(clusterings), threshold=float(threshold))
    facts = {"n_combinations": len(true)}
    return lambda start, stop, x: true[codes[start:stop]] | (missing.dense(x) != 0), facts


def _column(adata: AnnData, name: str) -> np.ndarray:
    import pandas as pd

    if name not in adata.obs:
        raise SetupError(f"n_clusters names {name!r}, which is not a column of .obs. {nearest(name, adata.obs)}")
    codes = pd.Categorical(adata.obs[name]).codes.astype(np.int64)
    # Cells without a cluster form one of their own.
    return np.where(codes < 0, codes.max() + 1, codes)


def _k_means(points: np.ndarray, k: int, *, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    if not 1 <= k <= len(points):
        raise SetupError(f"n_clusters names {k} clusters for {len(points)} cells; expected 1 to {len(points)}.")
    labels = KMeans(k, n_init=3, random_state=seed).fit_predict(points).astype(np.int64)
    return np.unique(labels, return_inverse=True)[1]


def _points(adata: AnnData, rows: missing.Rows, *, use_rep: str | None, seed: int) -> np.ndarray:
    """Return what is clustered: a representation of the user's, or principal components."""
    if use_rep is not None:
        if use_rep not in adata.obsm:
            raise SetupError(f"use_rep={use_rep!r} is not in .obsm. {nearest(use_rep, adata.obsm)}")
        return np.asarray(adata.obsm[use_rep], dtype=np.float32)
    x = sp.csr_matrix(missing.whole(rows))
    if missing.holds_counts(rows):
        x = _log_normalised(x)
    k = min(N_COMPONENTS, min(x.shape) - 1)
    if k < 1:
        raise SetupError(f"The data have shape {x.shape}; clustering needs 2 cells and 2 genes at least.")
    mean = np.asarray(x.mean(axis=0)).ravel()
    # Not sklearn's: centring stays implicit and nothing of the size of the data is copied.
    centred = LinearOperator(
        x.shape,
        matvec=lambda v: x @ v.ravel() - mean @ v.ravel(),
        rmatvec=lambda u: x.T @ u.ravel() - mean * u.sum(),
        dtype=np.float64,
    )
    start = Streams(seed).numpy("init").normal(size=min(x.shape))
    u, values, _ = svds(centred, k=k, v0=start, solver="arpack")
    return np.asarray(u * values, dtype=np.float32)


def _log_normalised(x: sp.csr_matrix) -> sp.csr_matrix:
    """Return log(1 + count) of cells that are brought to the median depth."""
    totals = np.asarray(x.sum(axis=1)).ravel()
    scale = (np.median(totals) / np.where(totals > 0, totals, 1.0)).astype(np.float32)
    data = x.data.astype(np.float32)
    data *= np.repeat(scale, np.diff(x.indptr))
    return sp.csr_matrix((np.log1p(data, out=data), x.indices, x.indptr), x.shape)
