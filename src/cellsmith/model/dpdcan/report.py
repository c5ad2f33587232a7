"""What is said and written of a trained DPDCAN."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from cellsmith import _record
from cellsmith.math import assign as assignment
from cellsmith.math.privacy import Guarantee, Statement
from cellsmith.model.dpdcan.local import assign
from cellsmith.model.dpdcan.settings import PRIVATE

__all__ = ["private_result", "statement"]


def statement(model: Any) -> Statement:
    """Return what holds for a model at this moment.

    Parameters
    ----------
    model
        A :class:`cellsmith.model.DPDCAN`, trained or interrupted or loaded.
    """
    given, ledger, facts = model._given, model.ledger_, model.facts_
    mode = given["mode"]
    if mode not in PRIVATE:
        return Statement(
            valid=False,
            mode=mode,
            epsilon=None,
            delta=1.0 if mode == "none" else 1e-5,
            target_epsilon=None,
            nominal_epsilon=facts.get("nominal_epsilon"),
            panel_source=model._panel.source,
            guarantees=(Guarantee("everything", "none", "this mode promises nothing"),),
            notes=() if mode == "none" else PUBLISHED_FAULTS,
        )
    sampled = any(e.kind == "sampled_gaussian" for e in ledger.events)
    wired = not sampled or bool(facts.get("wiring"))
    return Statement(
        valid=wired and bool(ledger.events),
        mode=mode,
        epsilon=ledger.epsilon,
        delta=ledger.delta,
        target_epsilon=ledger.target_epsilon,
        unit="cell" if model._unit_key is None else "donor",
        unit_key=model._unit_key,
        n_units=float(model.n_units_ or facts["n_units"]),
        n_units_policy=given["n_units_policy"],
        accountant=given["accountant"] if sampled else "exact",
        panel_source=model._panel.source,
        moments_source=given["moments"],
        reproducible_noise=given["unsafe_reproducible"],
        wiring_checked=wired,
        events=tuple(ledger.events),
        earlier=facts.get("earlier", (0.0, 0.0)),
        guarantees=_guarantees(model),
        notes=() if ledger.events else ("Nothing was spent yet.",),
    )


PUBLISHED_FAULTS = (
    "The published scheme trains part of the decoder without noise, lets every cell of a batch move the gradient of "
    "all others, takes centres, targets and scales from all cells, and accounts shuffled batches as Poisson samples.",
)


def _guarantees(model: Any) -> tuple[Guarantee, ...]:
    given = model._given
    paid_head, density = given["cluster_head"] == "dp", given["latent_density"] is not None
    decoder = {
        "dp_pca_init": ("none trained", "not there") if model._pca_only else ("private", "trained with noise"),
        "whole": ("private", "trained with noise"),
        "frozen_decoder": ("private", "public, or from private axes; not trained on these cells"),
    }[given["mode"]]
    made = density and not model._pca_only
    return (
        Guarantee("encoder, axes, eigenvalues, scales", "private", "releases and noised gradients within the budget"),
        Guarantee("decoder", *decoder),
        Guarantee(
            "cluster centres and sizes",
            "private" if paid_head else "local only",
            "private k-means, then noised gradients" if paid_head else "fitted on these cells without noise",
        ),
        Guarantee(
            "generated cells",
            "private" if made else "not there",
            "from decoder and density, both paid for" if made else "needs a decoder and latent_density",
        ),
        Guarantee("embeddings of these cells", "joint", "private towards everybody but the cell itself"),
        Guarantee(
            "clusters, probabilities of these cells",
            "joint" if paid_head else "local only",
            "nearest private centre" if paid_head else "the local head saw all cells without noise",
        ),
        Guarantee("embeddings of new cells", "private", "cost the training cells nothing more"),
        Guarantee("loss curves, agreement with labels, settings tuned on these cells", "none", "not kept"),
    )


def private_result(model: Any, adata: Any) -> _record.Result:
    """Return clusters and embedding of cells, and the block of ``.uns``.

    Parameters
    ----------
    model
        A trained :class:`cellsmith.model.DPDCAN`.
    adata
        Cells; None is the training object.
    """
    counts = model._counts_of(adata)
    z = model._encode_counts(counts)
    centers, spread = model._head()
    p = assign(z, centers, spread)
    labels = model.predict(adata).cat.codes.to_numpy()
    names = [str(k) for k in range(len(centers))]
    empty = np.asarray(counts.sum(axis=1)).ravel() == 0
    given = model.init_params_["non_kwargs"] | model.init_params_["kwargs"]
    provenance = model._provenance(inputs=_inputs(model), extra={"mode": given["mode"]})
    if given["n_units_policy"] == "dp_count" and model.n_units_ is not None:
        provenance["n_obs"] = round(model.n_units_)
    block = {
        "params": {k: v for k, v in given.items() if v is not None},
        "classes": np.array(names, dtype=object),
        "release": "local",
        "privacy": model.privacy_report().block(),
        "provenance": provenance,
    }
    if len(model.eigenvalues_):
        block |= {"eigenvalues": model.eigenvalues_, "noise_edge": model.noise_edge_}
        block["n_above_edge"] = model.n_above_edge_
    return _record.Result(
        method="dpdcan",
        obs={
            "{k}": pd.Categorical.from_codes(labels, categories=names),
            "{k}_confidence": np.where(empty, 0.0, p[np.arange(len(p)), labels]).astype(np.float32),
            "{k}_margin": assignment.margin(p).astype(np.float32),
            "{k}_entropy": assignment.entropy(p).astype(np.float32),
        },
        obsm={"X_{k}": z.astype(np.float32), "{k}_proba": p.astype(np.float32)},
        uns=block,
    )


def _inputs(model: Any) -> dict[str, Any]:
    """Return what was read: names of layer and columns, never a value of theirs."""
    setup = model.registry.get("setup_args", {})
    kept = {k: setup.get(k) for k in ("layer", "batch_key", "privacy_unit_key", "modalities")}
    return {k: v for k, v in kept.items() if v is not None}
