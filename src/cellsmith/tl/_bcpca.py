"""The door of BC-PCA: an embedding of data with missing entries in one line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from cellsmith import _keys
from cellsmith._errors import SetupError, nearest
from cellsmith._rng import resolve_seed

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["bcpca"]


def bcpca(
    adata: AnnData,
    *,
    layer: str | None = None,
    mask: Any = "nan",
    n_latent: int = 50,
    prob: Any = "logistic",
    rank_rule: str | None = None,
    batch_key: str | None = None,
    prob_covariates: Sequence[str] = (),
    refine: str | None = None,
    compare: bool | str = "auto",
    min_overlap: float = 10.0,
    chunk_size: int | None = None,
    tol: float = 1e-3,
    variant: str = "default",
    key_added: str = "bcpca",
    copy: bool = False,
    overwrite: bool = False,
    rng: Any = 0,
    random_state: int | None = None,
) -> AnnData | None:
    """Embed cells whose entries are missing unevenly, without imputing and without an n x n matrix.

    Parameters
    ----------
    adata
        Cells x features, in memory or backed.
    layer
        Layer with the values (for single-cell counts a log-normalised one); None is ``.X``.
    mask
        "nan" (NaN in dense data, stored NaN in CSR, masked arrays), "zero" (every zero is missing; warns), the name of
        a layer (see :func:`cellsmith.pp.missing_mask`), an array (n, D) with 1 = observed, 0 = missing and fractions =
        probability that the entry informs, or None (all observed).
    n_latent
        Components to compute.
    prob
        Probability that an entry is observed: "logistic", "rank1", "rank1-legacy", "grouped" (needs ``batch_key``),
        "pairwise" (counts of shared features; up to 5,000 cells), an array (n, D), a pair of factors, or a callable
        from cell numbers (m,) to probabilities (m, D).
    rank_rule
        None keeps all components; "cng", "proportion", "parallel" or "gap" keep the first k.
    batch_key
        Column of ``.obs`` with the groups of ``prob="grouped"``.
    prob_covariates
        Columns of ``.obs`` and ``.var`` that are added to the logistic predictor.
    refine
        None, "prime" or "hetero".
    compare
        Baselines beside the result: "auto" (mean imputation up to 50,000 cells, pairwise-complete up to 5,000), True
        or False.
    min_overlap
        Cells whose mean effective overlap with the others is lower (in features) are placed after the fit.
    chunk_size
        Cells read at once; None is about 64 MB.
    tol
        Residual of an eigenpair, relative to the largest eigenvalue.
    variant
        "default" or "paper".
    key_added
        Name of what is written.
    copy
        Return a copy with the results instead of writing into ``adata``.
    overwrite
        Replace what another method wrote under these names.
    rng
        Seed of the start block, of held-out entries and of probes.
    random_state
        Another name for ``rng``, as in older scanpy.

    Returns
    -------
    None, or the copy. Written are, with k = ``key_added``: ``.obsm["X_" + k]`` (n, k) float32, NaN for a cell without
    an observed entry; the baselines ``.obsm["X_" + k + "_mean"]`` and ``.obsm["X_" + k + "_pairwise"]``;
    ``.varm[k_loadings]``; ``.obs[k_overlap]`` (features) and ``.obs[k_observed_rate]``; and ``.uns[k]``. Nothing is
    written into ``.X``.

    Raises
    ------
    SetupError
        If layer, mask or an option cannot be used, or the data do not determine the embedding. Nothing is then written.
    ConvergenceError
        If the overlap is not factored or the eigenpairs do not reach ``tol``.
    SizeError
        If ``prob="pairwise"`` meets more than 5,000 cells.

    Examples
    --------
    >>> cellsmith.tl.bcpca(adata, mask="nan", n_latent=20)  # doctest: +SKIP
    >>> cellsmith.pp.bc_neighbors(adata)  # doctest: +SKIP
    """
    from cellsmith.model import BCPCA

    _keys.validate(key_added)
    seed = resolve_seed(rng if random_state is None else random_state)
    skeleton = _skeleton(adata, layer=layer, mask=mask, batch_key=batch_key, columns=prob_covariates)
    model = None
    try:
        BCPCA.setup_anndata(skeleton, layer=layer, mask=mask, batch_key=batch_key)
        model = BCPCA(
            skeleton,
            n_latent=n_latent,
            rank_rule=rank_rule,
            prob=prob,
            prob_covariates=prob_covariates,
            refine=refine,
            compare=compare,
            min_overlap=min_overlap,
            tol=tol,
            chunk_size=chunk_size,
            variant=variant,
        )
        model.train(seed=seed)
        result = model.results()
        if mask is not None and not isinstance(mask, str):
            # The layer in which the skeleton holds it is not in the user's object.
            result = replace(result, uns={**result.uns, "params": {**result.uns["params"], "mask": "given"}})
        target = adata.copy() if copy else adata
        model.write(target, result=result, key_added=key_added, overwrite=overwrite)
    finally:
        # scvi-tools keeps every registered object for the life of the process
        BCPCA._setup_adata_manager_store.pop(skeleton.uns.get("_scvi_uuid"), None)
        if model is not None:
            BCPCA._per_instance_manager_store.pop(model.id, None)
    return target if copy else None


def _skeleton(adata: Any, *, layer: str | None, mask: Any, batch_key: str | None, columns: Sequence[str]) -> AnnData:
    """Return an object that shares the arrays of the user's, so that registration never touches it."""
    from anndata import AnnData

    if hasattr(adata, "mod"):
        raise SetupError(
            "The object is a MuData; expected an AnnData. Type BCPCA.setup_mudata(mdata, ..., modalities=...), or pass "
            "one modality, mdata.mod[name]."
        )
    if layer is not None and layer not in adata.layers:
        raise SetupError(f"layer={layer!r} is not in .layers. {nearest(layer, adata.layers)}")
    wanted = [*([] if isinstance(columns, str) else columns), *([] if batch_key is None else [batch_key])]
    layers = {name: adata.layers[name] for name in (layer, mask) if isinstance(name, str) and name in adata.layers}
    marks = {name: adata.uns[name] for name in layers if name in adata.uns}
    skeleton = AnnData(
        X=adata.X if layer is None else None,
        obs=adata.obs[[c for c in dict.fromkeys(wanted) if c in adata.obs]].copy(),
        var=adata.var[[c for c in dict.fromkeys(wanted) if c in adata.var]].copy(),
        layers=layers,
        uns=marks,
    )
    skeleton.var_names = pd.Index(adata.var_names)
    return skeleton
