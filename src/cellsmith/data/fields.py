"""The AnnData and MuData fields that a count model registers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scvi import REGISTRY_KEYS
from scvi.data import fields as scvi_fields
from scvi.data.fields import CategoricalObsField, MuDataWrapper

from cellsmith._errors import SetupError, nearest
from cellsmith.nn.autoencoder import REP_KEY

__all__ = ["REP_KEY", "LabelsField", "MuDataLabelsField", "cell_fields"]


class LabelsField(CategoricalObsField):
    """Cell labels of which some may be missing.

    A missing label (NaN, or ``unlabeled_category``) gets the code ``n_labels``, one past the last
    class: it is the null token of a conditional model and never a class of its own.

    Parameters
    ----------
    registry_key
        Key of the field in the data registry.
    attr_key
        Column of ``.obs``; None registers one dummy class.
    unlabeled_category
        Value of the column that means "not labelled".
    """

    def __init__(self, registry_key: str, attr_key: str | None, unlabeled_category: str | None = None) -> None:
        super().__init__(registry_key, attr_key)
        self._unlabeled = unlabeled_category

    def register_field(self, adata: Any) -> dict[str, Any]:
        """Write the codes of all cells and return the categories."""
        if self.is_default:
            return super().register_field(adata)
        self.validate_field(adata)
        column = self._column(adata)
        return self._write_codes(adata, column, column.cat.categories.to_numpy())

    def transfer_field(self, state_registry: dict[str, Any], adata_target: Any, **kwargs: Any) -> dict[str, Any]:
        """Code the labels of new cells by the categories of the old ones; a missing column means no label."""
        if self.is_default:
            return super().transfer_field(state_registry, adata_target, **kwargs)
        categories = state_registry[self.CATEGORICAL_MAPPING_KEY]
        if self._original_attr_key not in adata_target.obs:
            column = pd.Series(np.full(adata_target.n_obs, np.nan, dtype=object), index=adata_target.obs_names)
            column = column.astype(pd.CategoricalDtype(categories))
        else:
            column = self._column(adata_target)
        return self._write_codes(adata_target, column, categories)

    def _column(self, adata: Any) -> pd.Series:
        column = adata.obs[self._original_attr_key].astype("category")
        if self._unlabeled is not None and self._unlabeled in column.cat.categories:
            column = column.cat.remove_categories([self._unlabeled])
        return column

    def _write_codes(self, adata: Any, column: pd.Series, categories: np.ndarray) -> dict[str, Any]:
        unknown = [c for c in column.dropna().unique() if c not in set(categories)]
        if unknown:
            raise SetupError(
                f"Label {unknown[0]!r} of .obs[{self._original_attr_key!r}] was not among the {len(categories)} labels "
                f"of the training cells. Set it to NaN, or rename it. {nearest(unknown[0], categories)}"
            )
        codes = pd.Categorical(column, categories=categories).codes.astype(np.int64)
        adata.obs[self.attr_key] = np.where(codes < 0, len(categories), codes)
        return {self.CATEGORICAL_MAPPING_KEY: np.asarray(categories), self.ORIGINAL_ATTR_KEY: self._original_attr_key}


MuDataLabelsField = MuDataWrapper(LabelsField)


def cell_fields(
    *,
    layer: str | None,
    batch_key: str | None = None,
    labels_key: str | None = None,
    categorical_covariate_keys: Sequence[str] | None = None,
    continuous_covariate_keys: Sequence[str] | None = None,
    size_factor_key: str | None = None,
    use_rep: str | None = None,
    unlabeled_category: str | None = None,
    modalities: Mapping[str, str | None] | None = None,
) -> list[Any]:
    """Return the scvi-tools fields of a conditional count model.

    Parameters
    ----------
    layer
        Layer with counts (cells x genes); None is ``.X``.
    batch_key, labels_key
        Categorical columns of ``.obs``.
    categorical_covariate_keys, continuous_covariate_keys
        Further columns of ``.obs``.
    size_factor_key
        Positive column of ``.obs``, any scale.
    use_rep
        Key of ``.obsm`` with an external embedding (cells x dimensions).
    unlabeled_category
        Label that means "not labelled".
    modalities
        None for AnnData; for MuData the modality of each argument, None or absent meaning the top level.

    Returns
    -------
    Fields for :class:`scvi.data.AnnDataManager`.
    """
    plain = modalities is None
    place = modalities or {}

    def field(kind: str, argument: str, *args: Any, **kwargs: Any) -> Any:
        if plain:
            return getattr(scvi_fields, kind)(*args, **kwargs)
        return getattr(scvi_fields, f"MuData{kind}")(*args, mod_key=place.get(argument), **kwargs)

    labels = (
        LabelsField(REGISTRY_KEYS.LABELS_KEY, labels_key, unlabeled_category)
        if plain
        else MuDataLabelsField(
            REGISTRY_KEYS.LABELS_KEY, labels_key, unlabeled_category, mod_key=place.get("labels_key")
        )
    )
    # The message of scvi-tools about non-integer values is a warning; check_counts makes it an error first.
    counts = {"is_count_data": True} if plain else {"is_count_data": True, "mod_required": True}
    out = [
        field("LayerField", "layer", REGISTRY_KEYS.X_KEY, layer, **counts),
        field("CategoricalObsField", "batch_key", REGISTRY_KEYS.BATCH_KEY, batch_key),
        labels,
        field(
            "CategoricalJointObsField",
            "categorical_covariate_keys",
            REGISTRY_KEYS.CAT_COVS_KEY,
            list(categorical_covariate_keys) if categorical_covariate_keys else None,
        ),
        field(
            "NumericalJointObsField",
            "continuous_covariate_keys",
            REGISTRY_KEYS.CONT_COVS_KEY,
            list(continuous_covariate_keys) if continuous_covariate_keys else None,
        ),
        field("NumericalObsField", "size_factor_key", REGISTRY_KEYS.SIZE_FACTOR_KEY, size_factor_key, required=False),
    ]
    if use_rep is not None:
        out.append(field("ObsmField", "use_rep", REP_KEY, use_rep))
    return out
