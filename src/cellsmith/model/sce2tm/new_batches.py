"""Decoder offsets of batches that a trained model has not seen, fitted with everything else held (T7, T8, T28)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor

from cellsmith.math.counts import library_totals
from cellsmith.model.sce2tm import equations as eq

__all__ = [
    "NewCells",
    "covariate_codes",
    "fit_offsets",
    "matched_counts",
    "matched_log_expression",
    "put_offsets",
    "with_batches",
]

CHUNK = 1024
ABSENT = -1e4  # logit of a gene that the query lacks: its share is 0, and 0 counts times it are still 0


def matched_counts(counts: Any, places: np.ndarray) -> np.ndarray:
    """Return the counts of the modelled genes (b, V), dense float64, 0 for absent ones.

    Parameters
    ----------
    counts
        (b, G) of the query's own genes, dense or CSR.
    places
        (V,) of :func:`match_genes`.
    """
    there = places >= 0
    part = counts[:, places[there]]
    out = np.zeros((part.shape[0], len(places)))
    out[:, there] = part.toarray() if sparse.issparse(part) else part
    return out


def matched_log_expression(matched: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Return x of T1 (b, V), float32, from counts of the modelled genes (b, V) and totals over all genes (b,)."""
    x = eq.log_normalize(torch.from_numpy(matched), torch.from_numpy(totals)[:, None])
    return x.float().numpy()


@dataclass(frozen=True)
class NewCells:
    """Cells of new batches, with the genes of their own object.

    Parameters
    ----------
    counts, places
        (n, G), and where the V modelled genes stand among the G, -1 for absent ones.
    level
        (n,) which of the new batches a cell is from.
    covariates
        (n, C - 1) levels of the further registered columns.
    theta
        (n, K) topics.
    """

    counts: Any
    places: np.ndarray
    level: np.ndarray
    covariates: np.ndarray
    theta: np.ndarray

    def parts(self) -> Iterator[tuple[np.ndarray, np.ndarray, slice]]:
        """Yield counts and x of the modelled genes (b, V), and which cells they are."""
        totals = library_totals(self.counts)
        for start in range(0, len(self.level), CHUNK):
            rows = slice(start, min(start + CHUNK, len(self.level)))
            matched = matched_counts(self.counts[rows], self.places)
            yield matched, matched_log_expression(matched, totals[rows]), rows


def with_batches(model: Any, batches: Sequence[str]) -> Any:
    """Return a trained copy of a model that knows further batches, their offsets at 0.

    Parameters
    ----------
    model
        Trained SCE2TM with a registered batch; not changed.
    batches
        Names of the new levels, which follow the known ones.
    """
    registry = copy.deepcopy(dict(model.registry))
    state = registry["field_registries"]["batch"]["state_registry"]
    known = np.asarray(state["categorical_mapping"])
    state["categorical_mapping"] = np.concatenate([known.astype(object), np.asarray(batches, dtype=object)])
    registry["field_registries"]["batch"]["summary_stats"] = {"n_batch": len(known) + len(batches)}
    options = model.init_params_["non_kwargs"] | model.init_params_["kwargs"]
    options = {name: value for name, value in options.items() if name not in ("adata", "registry")}
    if model.adata is None:
        new = type(model)(registry=registry, **options)
    else:
        setup = getattr(type(model), registry["setup_method_name"])
        setup(model.adata, source_registry=registry, **registry["setup_args"])
        new = type(model)(model.adata, **options)
    for name, value in model._get_user_attributes():
        if name.endswith("_") and name not in ("init_params_", "registry_"):
            setattr(new, name, copy.deepcopy(value))
    module, first = copy.deepcopy(model.module), model.module.n_levels[0]
    module.n_levels = (first + len(batches), *module.n_levels[1:])
    rows = torch.zeros(len(batches), module.n_input, device=module.device)
    offset, free = module.level_offset.detach(), module.level_free
    module.level_offset = torch.nn.Parameter(torch.cat([offset[:first], rows, offset[first:]]))
    module.level_free = torch.cat([free[:first], torch.ones_like(rows[:, :1]), free[first:]])
    new.module = module.eval()
    return new


def covariate_codes(model: Any, obs: pd.DataFrame) -> np.ndarray:
    """Return the level of every further registered column (n, C - 1); one past the last where it is not known."""
    names, sizes = model._level_names[1:], model.module.n_levels[1:]
    out = np.zeros((len(obs), len(names)), dtype=np.int64)
    for j, (name, n) in enumerate(zip(names, sizes, strict=True)):
        mapping = model.registry["field_registries"]["extra_categorical_covs"]["state_registry"]["mappings"][name]
        codes = pd.Index(mapping).get_indexer(obs[name]) if name in obs else np.full(len(obs), -1)
        out[:, j] = np.where(codes < 0, n, codes)
    return out


def put_offsets(model: Any, offsets: Tensor) -> None:
    """Store the offsets (m, V) of the last m batches of a model of :func:`with_batches`."""
    stop = model.module.n_levels[0]
    with torch.no_grad():
        model.module.level_offset[stop - len(offsets) : stop] = offsets


def fit_offsets(model: Any, cells: NewCells, *, n_new: int, max_steps: int) -> Tensor:
    """Return the offsets (m, V) of new batches under which the counts are most likely, everything else fixed (T7, T8).

    Parameters
    ----------
    model
        Model of :func:`with_batches`.
    cells
        All cells of the new batches.
    n_new
        m.
    max_steps
        Steps of L-BFGS; the loss is convex.
    """
    module, n = model.module, len(cells.level)
    first = module.n_levels[0] - n_new
    codes = torch.from_numpy(np.concatenate([cells.level[:, None] + first, cells.covariates], axis=1))
    codes = codes.to(module.device)
    absent = torch.from_numpy(cells.places < 0).to(module.device)
    theta = torch.from_numpy(np.ascontiguousarray(cells.theta, dtype=np.float32)).to(module.device)
    offsets = torch.zeros(n_new, module.n_input, device=module.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([offsets], max_iter=max_steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = eq.OFFSET_PENALTY * offsets.square().sum()
        total.backward()
        for counts, x, rows in cells.parts():
            with torch.no_grad():
                base = module.logits(theta[rows], codes[rows])
            # genes that the query did not measure take no part in the shares
            logits = (base + offsets[codes[rows, 0] - first]).masked_fill(absent, ABSENT)
            given = (torch.from_numpy(part).float().to(module.device) for part in (counts, x))
            loss = module.mass_factor * module.neg_log_likelihood(*given, logits).sum() / n
            loss.backward()
            total = total.detach() + loss.detach()
        return total.detach()

    optimizer.step(closure)
    return offsets.detach()
