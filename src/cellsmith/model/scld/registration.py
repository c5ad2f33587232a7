"""What is checked and registered before a model is built: columns, embeddings, the posterior of a minified object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import sparse
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data._utils import _check_if_view
from scvi.data.fields import NumericalObsField, ObsmField

from cellsmith.data.checks import check_counts, check_registration
from cellsmith.data.source import OBSERVED_TOTAL, POSTERIOR_MEAN, POSTERIOR_VARIANCE

__all__ = [
    "OBSERVED_TOTAL",
    "POSTERIOR_MEAN",
    "POSTERIOR_VARIANCE",
    "check_object",
    "check_setup",
    "lacks_counts",
    "needs_plain_manager",
    "plain_manager",
    "posterior_fields",
]

POSTERIOR_KEYS = (REGISTRY_KEYS.LATENT_QZM_KEY, REGISTRY_KEYS.LATENT_QZV_KEY, REGISTRY_KEYS.OBSERVED_LIB_SIZE)


def check_setup(data: Any, args: Mapping[str, Any]) -> None:
    """Check what the arguments of set-up name; a posterior may stand in for counts that are gone.

    Raises
    ------
    SetupError
        Naming what cannot be used.
    """
    if hasattr(data, "mod") or not lacks_counts(data, args["layer"]):
        check_registration(data, args)


def check_object(adata: Any, layer: str | None, **limits: int) -> None:
    """Refuse cells that are no counts or have none, unless a posterior stands in for counts that are gone.

    Raises
    ------
    SetupError
        As :func:`cellsmith.data.fields.check_counts`.
    """
    if not lacks_counts(adata, layer):
        check_counts(adata, layer, **limits)


def has_posterior(adata: Any) -> bool:
    """Tell whether an object carries the posterior of its cells, as the AnnData behind a minified source does."""
    return POSTERIOR_MEAN in adata.obsm and POSTERIOR_VARIANCE in adata.obsm and OBSERVED_TOTAL in adata.obs


def lacks_counts(adata: Any, layer: str | None) -> bool:
    """Tell whether a posterior is all that is left of the cells: scvi-tools minified them and dropped the counts."""
    if adata is None or not has_posterior(adata):
        return False
    x = adata.X if layer is None else adata.layers[layer]
    return x is None or (x.nnz == 0 if sparse.issparse(x) else not np.any(x))


def posterior_fields(adata: Any) -> list[Any]:
    """Return the fields of the posterior of an object; none where it carries none."""
    if not has_posterior(adata):
        return []
    return [
        ObsmField(REGISTRY_KEYS.LATENT_QZM_KEY, POSTERIOR_MEAN),
        ObsmField(REGISTRY_KEYS.LATENT_QZV_KEY, POSTERIOR_VARIANCE),
        NumericalObsField(REGISTRY_KEYS.OBSERVED_LIB_SIZE, OBSERVED_TOTAL),
    ]


def needs_plain_manager(manager: Any, adata: Any) -> bool:
    """Tell whether the training cells of a model have a posterior in place of counts, and those of a query have not."""
    return manager is not None and REGISTRY_KEYS.LATENT_QZM_KEY in manager.data_registry and not has_posterior(adata)


def plain_manager(manager: Any, adata: Any) -> Any:
    """Register cells as those of a manager, without the fields of the posterior.

    Parameters
    ----------
    manager
        That of the training cells.
    adata
        Cells with counts.

    Returns
    -------
    The manager of the cells.
    """
    # A view would be copied by the registration, which would then not be that of the caller's object.
    _check_if_view(adata, copy_if_view=True)
    fields = [f for f in manager.fields if f.registry_key not in POSTERIOR_KEYS]
    plain = AnnDataManager(fields=fields, setup_method_args=manager._get_setup_method_args())
    plain.register_fields(adata, manager.registry)
    return plain
