"""scE2TM: the default, the published form, and one change at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from anndata import AnnData

from cellsmith.benchmark._topics.cases import Case
from cellsmith.benchmark._topics.peers import Fit, Method

__all__ = [
    "ABLATIONS",
    "DEFAULT",
    "ENVELOPE",
    "NO_ECR",
    "PAPER",
    "PAPER_60",
    "SHORT",
    "UNROLLED",
    "VARIANTS",
    "Variant",
]
__all__ += ["as_fit", "fit_model", "method", "methods"]

DEFAULT, PAPER, PAPER_60 = "SCE2TM", "SCE2TM, paper", "SCE2TM, paper, 60 epochs"
SHORT, ENVELOPE, UNROLLED = "SCE2TM, 60 epochs", "SCE2TM, 60 epochs, envelope", "SCE2TM, 60 epochs, unrolled"
NO_ECR = "SCE2TM, ecr_weight 0"
GUARDED = 60  # epochs of the rows that repeat what the measured facts were measured with


@dataclass(frozen=True)
class Variant:
    """Arguments that differ from the defaults: of the constructor, and of the training."""

    model: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)


def _model(**options: Any) -> Variant:
    return Variant(options)


ABLATIONS: dict[str, Variant] = {
    "SCE2TM, multinomial": _model(gene_likelihood="multinomial"),
    "SCE2TM, nb": _model(gene_likelihood="nb"),
    "SCE2TM, decoder_scale fixed": _model(decoder_scale="fixed"),
    "SCE2TM, loss_scale paper": _model(loss_scale="paper"),
    **{f"SCE2TM, ecr_weight {w}": _model(ecr_weight=float(w)) for w in (0, 20, 50, 200)},
    **{f"SCE2TM, topic_gene_temperature {t}": _model(topic_gene_temperature=t) for t in (0.1, 0.4)},
    **{f"SCE2TM, prior_concentration {a}": _model(prior_concentration=a) for a in (0.1, 0.3)},
    "SCE2TM, Adam": Variant(train={"plan_kwargs": {"optimizer": "adam"}}),
    "SCE2TM, gradients clipped at 5": Variant(train={"plan_kwargs": {"clip": 5.0}}),
    **{f"SCE2TM, {n} epochs": Variant(train={"max_epochs": {"topics": n}}) for n in (60, 200)},
}
"""One change each."""

VARIANTS: dict[str, Variant] = {
    DEFAULT: Variant(),
    PAPER: _model(variant="paper"),
    PAPER_60: Variant({"variant": "paper"}, {"max_epochs": GUARDED}),
    ENVELOPE: Variant({"ecr_gradient": "envelope"}, {"max_epochs": {"topics": GUARDED}}),
    UNROLLED: Variant({"ecr_gradient": "unrolled"}, {"max_epochs": {"topics": GUARDED}}),
    **ABLATIONS,
}
"""Name in the tables -> what differs."""


def fit_model(cells: AnnData, n_topics: int, seed: int, *, variant: Variant | None = None, **setup: Any) -> Any:
    """Train a model.

    Parameters
    ----------
    cells
        Raw counts (n, V).
    n_topics, seed
        Number of topics, seed.
    variant
        What differs from the defaults.
    **setup
        Arguments of ``setup_anndata``.
    """
    from cellsmith.model import SCE2TM

    variant = variant or Variant()
    SCE2TM.setup_anndata(cells, **setup)
    model = SCE2TM(cells, n_topics=n_topics, **variant.model)
    model.train(seed=seed, accelerator="cpu", enable_progress_bar=False, **variant.train)
    return model


def as_fit(model: Any) -> Fit:
    """Return what the scoring reads of a trained model."""
    spaces = {kind: np.asarray(model.get_latent_representation(kind=kind), np.float32) for kind in ("theta", "mu")}
    # a gene without a count in the training cells is not modelled
    loadings = model.get_feature_by_topic().reindex(model.adata.var_names).fillna(0.0)
    return Fit(spaces, {"": loadings.to_numpy(dtype=np.float32)})


def method(variant: Variant) -> Method:
    """Return a variant as a method without a view."""

    def run(case: Case, n_topics: int, seed: int) -> Fit:
        return as_fit(fit_model(case.cells.copy(), n_topics, seed, variant=variant))

    return run


def methods() -> dict[str, Method]:
    """Return every variant as a method."""
    return {name: method(variant) for name, variant in VARIANTS.items()}
