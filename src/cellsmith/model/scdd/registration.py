"""What is checked before a data set is registered for distillation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cellsmith._errors import SetupError, nearest
from cellsmith.data.checks import check_registration, counts_carrier, place_of

__all__ = ["check_labels", "check_setup"]


def check_setup(data: Any, args: Mapping[str, Any], *, labelled: bool) -> None:
    """Check what the arguments of set-up name; with ``labelled``, that there are classes to distil as well.

    Raises
    ------
    SetupError
        Naming what cannot be used.
    """
    modalities = args.get("modalities")
    if getattr(counts_carrier(data, modalities), "is_view", False):
        raise SetupError("The object is a view of another one. Type adata = adata.copy() first.")
    check_registration(data, args)
    if labelled:
        obs = place_of(data, modalities, "labels_key").obs
        check_labels(obs, args["labels_key"], args["unlabeled_category"])


def check_labels(obs: Any, labels_key: str, unlabeled_category: str | None) -> None:
    """Refuse a label column that is absent or does not have at least two classes.

    Raises
    ------
    SetupError
        With the nearest column, or with what the column holds.
    """
    if labels_key is None or labels_key not in obs:
        raise SetupError(f"labels_key={labels_key!r} is not a column of .obs. {nearest(labels_key, obs.columns)}")
    column = obs[labels_key]
    known = column.notna() & (column.astype(object) != unlabeled_category)
    classes = column[known].unique()
    if len(classes) < 2:
        found = "no label at all" if not len(classes) else f"the label {classes[0]!r} alone"
        raise SetupError(
            f".obs[{labels_key!r}] holds {found} ({len(obs)} cells); distillation needs at least two classes. "
            "Name another column with labels_key."
        )
