"""Roll-up of refined scores over an ontology."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cellsmith import _record
from cellsmith._errors import DataWarning
from cellsmith.math.ontology import Ontology, roll_up
from cellsmith.tl._reject import refined_block

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

__all__ = ["rollup"]


def rollup(
    adata: AnnData,
    key: str = "grit",
    *,
    ontology: Ontology | str | Path,
    mass: float = 0.8,
    part_of: bool = False,
    copy: bool = False,
) -> AnnData | None:
    """Name every cell by the most specific ontology term that holds enough of its probability.

    Parameters
    ----------
    adata
        Object with the results of :func:`cellsmith.tl.grit`.
    key
        Their key.
    ontology
        What :func:`cellsmith.model.grit.sources.read_ontology` returned, or the path of a local ``.obo`` or obograph
        ``.json`` file.
    mass
        Probability that a term must hold, in (0, 1]; calibrated where GRIT was (smoothed scores alone are
        under-confident, and would roll nearly everything up to a root).
    part_of
        Count a part for its whole, beside is_a.
    copy
        Return a copy with the results.

    Returns
    -------
    None, or the copy. Written are ``.obs[key_rollup]`` (name of the term; missing for a cell without scores) and
    ``.uns[key]["rollup"]`` with the identifier, depth and mass of every cell's term, the classes that the ontology
    lacks, and its version and hash.

    Raises
    ------
    SetupError
        If there are no results, the file does not exist or has a cycle, or no class is in the ontology.

    Examples
    --------
    >>> cellsmith.tl.rollup(adata, ontology="cl.obo")  # doctest: +SKIP
    """
    from cellsmith.math.conformal import apply_temperature
    from cellsmith.model.grit.equations import normalise_rows
    from cellsmith.model.grit.sources import read_ontology

    block, proba = refined_block(adata, key)
    terms = ontology if isinstance(ontology, Ontology) else read_ontology(ontology)
    calibration = block.get("calibration", {})
    rows = normalise_rows(proba)
    if "temperature" in calibration:
        rows = apply_temperature(rows, float(calibration["temperature"]))
    found = roll_up(rows, [str(c) for c in block["classes"]], terms, mass=mass, part_of=part_of)
    labels = pd.Series(found.labels, dtype=object).replace("", np.nan)
    goal = adata.copy() if copy else adata
    record = {
        "ids": found.ids.astype(object),
        "depth": found.depth,
        "mass": found.mass,
        "leaf": found.leaf.astype(object),
        "mapped": {
            "class": np.array(list(found.mapped), dtype=object),
            "id": np.array(list(found.mapped.values()), dtype=object),
        },
        "unmapped": np.array(found.unmapped, dtype=object),
        "version": found.version,
        "sha256": found.digest,
        "required_mass": float(mass),
        "part_of": bool(part_of),
        "calibrated": "temperature" in calibration,
    }
    _record.extend(
        goal, key, _record.Result(method="grit", obs={"{k}_rollup": pd.Categorical(labels)}, uns={"rollup": record})
    )
    if found.unmapped:
        warnings.warn(
            f"{len(found.unmapped)} classes are not in the ontology and keep their names: {list(found.unmapped)[:8]}.",
            DataWarning,
            stacklevel=2,
        )
    return goal if copy else None
