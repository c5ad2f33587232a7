"""One component changed at a time, each from the default of the class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["AUTO", "BATCHED", "CHANGES", "DEFAULT", "GIVEN", "TOGETHER", "UNIFORM", "WAYS", "Change"]

AUTO, GIVEN = "auto", "given"
WAYS = (AUTO, GIVEN)
"""Number of clusters left to the method, and told."""


@dataclass(frozen=True)
class Change:
    """What differs from the default.

    Parameters
    ----------
    options
        Arguments of the class.
    private, module
        Attributes of the model and of its module that exist for comparison only.
    walks
        "both" operators of the graph, or one in the place of both: "pagerank", "lazy".
    random_graph
        Neighbours are sought in 50 random projections instead of principal components.
    late
        Whether it acts after the warm-up only, which can then be shared with the default.
    ways
        Of finding the number of clusters that it can touch.
    adds
        Whether it adds something, or is another value, and has to be better than the default to replace it; otherwise
        it takes something away, and the default has to be better to stay.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    private: Mapping[str, Any] = field(default_factory=dict)
    module: Mapping[str, Any] = field(default_factory=dict)
    walks: str = "both"
    random_graph: bool = False
    late: bool = False
    ways: tuple[str, ...] = WAYS
    adds: bool = False


DEFAULT, UNIFORM = "default", "sizes uniform"
TOGETHER = "all that the rule names, together"
"""Without the transport, its queue, its sizes and the cluster term have no say."""


def _late(**more: Any) -> Change:
    return Change(late=True, **more)


CHANGES: dict[str, Change] = {
    DEFAULT: _late(),
    "with the cell term": Change({"cell_weight": 0.1}, adds=True),
    "with the cell term, unmasked": Change({"cell_weight": 0.1}, module={"masks": False}, adds=True),
    "no latent term": Change({"latent_weight": 0.0}),
    "with the cluster term": _late(options={"cluster_weight": 0.1}, adds=True),
    "with the propagation term, 1": Change({"propagation_weight": 1.0}, adds=True),
    "with the propagation term, 1000": Change({"propagation_weight": 1e3}, adds=True),
    "no graph branch": Change(module={"fixed_gate": 1.0}),
    "gate fixed at .5": Change(module={"fixed_gate": 0.5}),
    "teleport .1": Change({"teleport": 0.1}, adds=True),
    "teleport .2": Change({"teleport": 0.2}, adds=True),
    "teleport .8": Change({"teleport": 0.8}, adds=True),
    "PageRank in both views": Change(walks="pagerank"),
    "lazy step in both views": Change(walks="lazy"),
    "neighbours in random projections": Change(random_graph=True),
    "no thinning": Change({"thinning_fraction": 1.0}),
    "no mask": Change({"gene_mask_rate": 0.0}),
    "no noise": Change({"noise_scale": 0.0}),
    "no edge drop": Change({"edge_drop_rate": 0.0}),
    "zinb": Change({"gene_likelihood": "zinb"}, adds=True),
    "no reconstruction": Change({"reconstruction_weight": 0.0}),
    "no transport": _late(options={"transport_weight": 0.0}),
    UNIFORM: _late(options={"proportions": "uniform"}, adds=True),
    "sizes of the start": _late(options={"proportions": "init"}, adds=True),
    "sizes learned": _late(options={"proportions": "learned"}, adds=True),
    "sizes partial": _late(options={"proportions": "partial"}, adds=True),
    "no queue": _late(options={"queue_size": 0}),
    "no swap": _late(module={"swaps": False}),
    "start not refined": _late(private={"_refines": False}),
    "no rare guard": _late(private={"_rare_guard": False}, ways=(AUTO,)),
    "no merging": _late(private={"_merges": False}, ways=(AUTO,)),
    "any two clusters merged": _late(private={"_merges_nearest": False}, ways=(AUTO,), adds=True),
    "given number by merging": _late(private={"_merges_to_number": True}, ways=(GIVEN,), adds=True),
    TOGETHER: Change(
        {"teleport": 0.1, "noise_scale": 0.0, "edge_drop_rate": 0.0, "transport_weight": 0.0},
        private={"_rare_guard": False, "_merges": False},
        module={"fixed_gate": 0.5},
        adds=True,
    ),
}
"""Rows of the ablation table on the tuning files."""

BATCHED: dict[str, Change] = {
    DEFAULT: CHANGES[DEFAULT],
    UNIFORM: CHANGES[UNIFORM],
    "no batch-balanced graph": Change({"batch_balanced": False}),
    "no batch in the decoder": Change(private={"_module_kwargs": {"n_batch": 1}}),
}
"""Rows of the file with a batch."""
