"""Matching without a generator: the logarithms of real cells are moved until networks learn from them as from all."""

from __future__ import annotations

import anndata as ad
import numpy as np
import torch
from scipy import sparse

from cellsmith._rng import Streams
from cellsmith.math import matching
from cellsmith.model.scdd.distilling import ClassBatches, Pool
from cellsmith.nn.pool import KINDS

__all__ = ["matched_expression"]

STEPS, RATE, BATCH = 100, 0.05, 64
DEPTH = 20_000


def matched_expression(train: ad.AnnData, n_per_class: int, rng: int, *, labels_key: str, objective: str) -> ad.AnnData:
    """Start at random cells of every class and optimise their logarithms directly.

    Parameters
    ----------
    train
        Training cells, counts in ``.X``.
    n_per_class
        Rows a class.
    rng
        Seed.
    labels_key
        Column of ``.obs`` with the class.
    objective
        "gradient" or "distribution"; losses and networks are those of scDD.

    Returns
    -------
    Rows with counts at a depth of 20,000.
    """
    streams, scale = Streams(rng), matching.target_sum(train.n_vars)
    phi = matching.log_normalize(train.X, scale=scale)
    names = np.unique(train.obs[labels_key].astype(str))
    codes = np.searchsorted(names, train.obs[labels_key].astype(str))
    generator = streams.numpy("init")
    chosen = [
        generator.choice(rows, min(n_per_class, len(rows)), replace=False)
        for rows in (np.flatnonzero(codes == k) for k in range(len(names)))
    ]
    labels = torch.from_numpy(np.repeat(np.arange(len(names)), [len(rows) for rows in chosen]))
    views = torch.from_numpy(phi[np.concatenate(chosen)].toarray()).float().requires_grad_(True)
    batches = ClassBatches(phi, codes, n_classes=len(names), batch_size=BATCH, streams=streams)
    pool = Pool(train.n_vars, len(names), n_per_class=n_per_class, queue=0, kinds=KINDS, streams=streams)
    optimizer = torch.optim.Adam([views], lr=RATE)
    for step in range(STEPS):
        real, own = batches.draw(step), [views[labels == k] for k in range(len(names))]
        if objective == "gradient":
            network = pool.matched(step, views, labels)
            loss = matching.gradient_matching(network, real, own, parameters=network.weights)
        else:
            network = pool.embedding(step, real)
            with torch.no_grad():
                seen = [network.features(b) for b in real]
            loss = matching.distribution_matching(seen, [network.features(s) for s in own])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            views.clamp_(min=0.0)
    rates = np.expm1(views.detach().double().numpy())
    counts = matching.round_profiles(DEPTH * rates / rates.sum(axis=1, keepdims=True))
    obs = train.obs[[labels_key]].iloc[np.concatenate(chosen)].copy()
    obs.index = [f"row_{i}" for i in range(len(obs))]
    return ad.AnnData(sparse.csr_matrix(counts), obs=obs, var=train.var[[]].copy())
