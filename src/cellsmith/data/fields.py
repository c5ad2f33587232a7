"""The AnnData and MuData fields that a count model registers, and the checks made on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scvi import REGISTRY_KEYS
from scvi.data import fields as scvi_fields
from scvi.data.fields import CategoricalObsField, MuDataWrapper

from cellsmith._errors import SetupError, nearest
from cellsmith.math.counts import first_bad_count, library_totals
from cellsmith.nn.autoencoder import REP_KEY

__all__ = ["REP_KEY", "LabelsField", "cell_fields", "check_counts", "check_covariates", "modality_of"]

MIN_CELLS = 50


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


def modality_of(mdata: Any, modalities: Mapping[str, str | None] | None, argument: str) -> Any:
    """Return the AnnData of a MuData that an argument lives in (the MuData itself for the top level).

    Raises
    ------
    SetupError
        If ``modalities`` is None or names a modality that the object lacks.
    """
    if modalities is None:
        raise SetupError(
            "modalities=None, but a MuData object needs to know where its counts are. "
            f"Type modalities={{'layer': <name>}}; this object has {list(mdata.mod)}."
        )
    name = modalities.get(argument)
    if name is None:
        return mdata
    if name not in mdata.mod:
        raise SetupError(f"modalities[{argument!r}]={name!r} is not a modality. {nearest(name, mdata.mod)}")
    return mdata.mod[name]


def check_counts(adata: Any, layer: str | None, *, min_cells: int = MIN_CELLS) -> None:
    """Refuse anything that a count likelihood cannot describe, naming the first offending cell and gene.

    Parameters
    ----------
    adata
        AnnData with ``n`` cells and ``G`` genes.
    layer
        Layer with the counts; None is ``.X``.
    min_cells
        Fewest cells to accept.

    Raises
    ------
    SetupError
        If the layer is missing; if there are fewer than ``min_cells`` cells or fewer than 2 genes; if a value is
        negative, fractional, NaN or infinite; if a cell has no count at all.
    """
    if hasattr(adata, "mod"):
        raise SetupError(
            f"Found a MuData with the modalities {list(adata.mod)}; expected an AnnData. Type mdata.mod[...], or "
            "setup_mudata(mdata, modalities={'layer': ...})."
        )
    where = ".X" if layer is None else f".layers[{layer!r}]"
    if layer is not None and layer not in adata.layers:
        raise SetupError(f"layer={layer!r} is not in .layers. {nearest(layer, adata.layers)}")
    x = adata.X if layer is None else adata.layers[layer]
    if x is None:
        raise SetupError(f"{where} is empty. Put raw counts there, or name the layer that has them with layer=.")
    n_obs, n_vars = x.shape
    if n_obs < min_cells or n_vars < 2:
        raise SetupError(f"Found {n_obs} cells and {n_vars} genes; at least {min_cells} cells and 2 genes are needed.")
    bad = first_bad_count(x)
    if bad is not None:
        i, g, value = bad
        raise SetupError(
            f"{where} must hold raw counts, but cell {adata.obs_names[i]!r}, gene {adata.var_names[g]!r} is {value!r} "
            "(negative, fractional or not finite). Name the layer with the raw counts: layer='counts'; "
            f"layers here: {list(adata.layers) or '(none)'}."
        )
    totals = library_totals(x)
    empty = np.flatnonzero(totals == 0)
    if len(empty):
        names = ", ".join(map(repr, adata.obs_names[empty[:3]]))
        raise SetupError(
            f"{len(empty)} cells have a total of zero (first: {names}); the logarithm of their total is undefined. "
            "Remove them first: sc.pp.filter_cells(adata, min_counts=1)."
        )


def check_covariates(
    obs: pd.DataFrame,
    *,
    categorical: Mapping[str, str | None],
    continuous: Sequence[str] = (),
    positive: str | None = None,
) -> None:
    """Refuse columns of ``.obs`` that are missing or have missing values.

    Parameters
    ----------
    obs
        Table of the cells.
    categorical
        Argument name -> column name; a name starting with ``labels_key`` may have missing values.
    continuous
        Columns that must be finite numbers.
    positive
        Column that must be finite and above zero.

    Raises
    ------
    SetupError
        Naming the argument, the column and the first offending cell.
    """
    for argument, column in categorical.items():
        if column is None:
            continue
        if column not in obs:
            raise SetupError(f"{argument}={column!r} is not a column of .obs. {nearest(column, obs.columns)}")
        if argument != "labels_key" and obs[column].isna().any():
            first = obs.index[np.flatnonzero(obs[column].isna())[0]]
            raise SetupError(
                f".obs[{column!r}] ({argument}) is missing for {int(obs[column].isna().sum())} cells, first {first!r}. "
                "Only labels_key may have missing values: fill the column or drop the cells."
            )
    for column in (*continuous, *([positive] if positive else [])):
        if column not in obs:
            raise SetupError(f"{column!r} is not a column of .obs. {nearest(column, obs.columns)}")
        values = pd.to_numeric(obs[column], errors="coerce").to_numpy(dtype=float)
        wrong = ~np.isfinite(values) | (values <= 0 if column == positive else False)
        if wrong.any():
            i = int(np.flatnonzero(wrong)[0])
            need = "a positive finite number" if column == positive else "a finite number"
            raise SetupError(f".obs[{column!r}] of cell {obs.index[i]!r} is {obs[column].iloc[i]!r}; expected {need}.")
