"""Registration: which scores, graph, labels and batches a model reads, in an AnnData or a MuData."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scvi import REGISTRY_KEYS
from scvi.data.fields import CategoricalObsField, MuDataCategoricalObsField

from cellsmith._errors import SetupError, nearest
from cellsmith.data.checks import check_covariates, modality_of
from cellsmith.data.fields import LabelsField, MuDataLabelsField
from cellsmith.model.grit.inputs import class_names, given_graph, stored_classes

__all__ = ["check_setup", "fields_of", "place_of", "registered_labels"]


def place_of(data: Any, modalities: Mapping[str, str | None] | None, argument: str) -> Any:
    """Return the object in which an argument is looked up: the AnnData, or a modality or the top of a MuData."""
    if not hasattr(data, "mod"):
        return data
    place = modality_of(data, modalities, argument)
    if argument == "scores_key" and place is data:
        raise SetupError(
            f"modalities lacks 'scores_key', where results go as well. Type modalities={{'scores_key': <one of "
            f"{list(data.mod)}>}}."
        )
    return place


def check_setup(data: Any, args: Mapping[str, Any]) -> None:
    """Refuse keys that do not exist, before anything is registered.

    Raises
    ------
    SetupError
        Naming what was typed and the nearest that exists.
    """
    modalities, scores_key = args.get("modalities"), args["scores_key"]
    carrier = place_of(data, modalities, "scores_key")
    if scores_key not in carrier.obsm:
        raise SetupError(f"scores_key={scores_key!r} is not in .obsm. {nearest(scores_key, carrier.obsm)}")
    values = carrier.obsm[scores_key]
    class_names(values, stored_classes(carrier.uns, scores_key), where=f".obsm[{scores_key!r}]")
    _same_cells(data, carrier, modalities, args)
    if args["neighbors_key"] is not None:
        given_graph(place_of(data, modalities, "neighbors_key"), args["neighbors_key"])
    elif args["use_rep"] not in (rep := place_of(data, modalities, "use_rep")).obsm:
        raise SetupError(
            f"use_rep={args['use_rep']!r} is not in .obsm, and no graph is named. {nearest(args['use_rep'], rep.obsm)} "
            "Type sc.pp.pca(adata) first, or neighbors_key='neighbors' after sc.pp.neighbors(adata)."
        )
    for name in ("labels_key", "batch_key"):
        if args[name] is not None:
            check_covariates(place_of(data, modalities, name).obs, categorical={name: args[name]})


def _same_cells(data: Any, carrier: Any, modalities: Any, args: Mapping[str, Any]) -> None:
    used = {"use_rep": True, "neighbors_key": True, "labels_key": True, "batch_key": True}
    for name in used:
        place = place_of(data, modalities, name) if args[name] is not None else carrier
        if place.n_obs != carrier.n_obs or not np.array_equal(place.obs_names, carrier.obs_names):
            raise SetupError(
                f"The cells of {name}={args[name]!r} ({place.n_obs}) are not those of the scores ({carrier.n_obs}), in "
                "their order; expected one set of cells. Type mu.pp.intersect_obs(mdata), or look the argument up in "
                f"the modality of the scores: modalities={{'{name}': ...}}."
            )


def fields_of(data: Any, args: Mapping[str, Any]) -> list[Any]:
    """Return the fields of scvi-tools for anchors and batches; scores and graph are read where they lie."""
    place = args.get("modalities") or {}
    found: list[Any] = []
    if args["labels_key"] is not None:
        what = (REGISTRY_KEYS.LABELS_KEY, args["labels_key"], args["unlabeled_category"])
        found.append(
            MuDataLabelsField(*what, mod_key=place.get("labels_key")) if hasattr(data, "mod") else LabelsField(*what)
        )
    if args["batch_key"] is not None:
        where = (REGISTRY_KEYS.BATCH_KEY, args["batch_key"])
        found.append(
            MuDataCategoricalObsField(*where, mod_key=place.get("batch_key"))
            if hasattr(data, "mod")
            else CategoricalObsField(*where)
        )
    return found


def registered_labels(manager: Any, key: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Return codes (n,) and categories of a registered column; a code past the last category is "none"."""
    if key not in manager.data_registry:
        return None
    state = manager.get_state_registry(key)
    codes = np.asarray(manager.get_from_registry(key)).ravel().astype(np.int64)
    return codes, np.asarray(state["categorical_mapping"], dtype=object)
