"""The frozen recipe: how rows are read, and the five classifiers that learn from them.

Nothing here is tuned, for no method: logarithm at one target sum, defaults of the libraries, hard labels, no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anndata as ad
import numpy as np

from cellsmith._errors import SetupError, nearest
from cellsmith._rng import isolated
from cellsmith.math.matching import log_normalize

__all__ = ["CORE", "MODELS", "SEEDED", "SOFT", "check_models", "log_view", "predict"]

MODELS = ("lr", "mlp", "knn1", "forest", "centroid")
CORE = ("lr", "mlp", "knn1")
"""The three whose mean is judged."""
SOFT = ("lr", "mlp")
SEEDED = ("mlp", "forest")

HIDDEN, EPOCHS, BATCH, RATE, DECAY = 128, 200, 64, 1e-3, 1e-4


def check_models(models: Any) -> tuple[str, ...]:
    """Return the names of classifiers, or raise `SetupError` for one that does not exist."""
    for name in models:
        if name not in MODELS:
            raise SetupError(f"The classifier {name!r} is unknown. {nearest(name, MODELS)}")
    return tuple(models)


def log_layer(adata: ad.AnnData) -> str | None:
    """Return the layer that a distilled object is read by: ``<key>_log`` where it carries one, else None."""
    for key, block in adata.uns.items():
        record = block.get("provenance", {}) if isinstance(block, Mapping) else {}
        made = isinstance(record, Mapping) and record.get("method") in ("scdd", "sketch")
        if made and f"{key}_log" in adata.layers:
            return f"{key}_log"
    return None


def log_view(adata: ad.AnnData, *, layer: str | None, scale: float, genes: np.ndarray) -> np.ndarray:
    """Return what a classifier reads, float32 (n, len(genes)).

    Parameters
    ----------
    adata
        Rows x genes.
    layer
        Layer with the counts; None is ``.X``. Not read where the object carries its own logarithms.
    scale
        Target sum of the data set.
    genes
        Columns that are read.
    """
    own = log_layer(adata)
    if own is not None:
        values = adata.layers[own]
    else:
        values = log_normalize(adata.X if layer is None else adata.layers[layer], scale=scale)
    cut = values[:, genes]
    return np.asarray(cut.toarray() if hasattr(cut, "toarray") else cut, dtype=np.float32)


def predict(model: str, x: np.ndarray, targets: np.ndarray, *, test: np.ndarray, seed: int) -> np.ndarray:
    """Teach a classifier and name test cells.

    Parameters
    ----------
    model
        One of `MODELS`.
    x
        Rows, (m, G).
    targets
        Class of each row, (m,), or its class probabilities, (m, K), which "lr" and "mlp" take.
    test
        Test cells, (n, G).
    seed
        Of what is random in a classifier ("mlp", "forest").

    Returns
    -------
    Class of each test cell, (n,).
    """
    hard = targets if targets.ndim == 1 else targets.argmax(axis=1)
    if targets.ndim == 1 and len(np.unique(hard)) == 1:
        return np.full(len(test), hard[0])
    if model == "mlp":
        return _mlp(x, targets, test, seed=seed)
    if model == "lr":
        return _logistic(x, targets).predict(test)
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

    made = {
        "knn1": lambda: KNeighborsClassifier(1),
        "forest": lambda: RandomForestClassifier(random_state=seed),
        "centroid": lambda: NearestCentroid(),
    }[model]()
    return np.asarray(made.fit(x, hard).predict(test))


def _logistic(x: np.ndarray, targets: np.ndarray) -> Any:
    """Fit a logistic regression (C = 1); class probabilities enter as weighted copies of a row."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1.0, max_iter=1000)
    if targets.ndim == 1:
        return model.fit(x, targets)
    rows, classes = np.nonzero(targets > 0)
    return model.fit(x[rows], classes, sample_weight=targets[rows, classes])


def _mlp(x: np.ndarray, targets: np.ndarray, test: np.ndarray, *, seed: int) -> np.ndarray:
    import torch
    from torch import nn
    from torch.nn import functional

    soft = np.eye(int(targets.max()) + 1, dtype=np.float32)[targets] if targets.ndim == 1 else targets
    rows, wanted = torch.from_numpy(x), torch.from_numpy(np.asarray(soft, dtype=np.float32))
    with isolated(seed):
        network = nn.Sequential(nn.Linear(x.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, wanted.shape[1]))
        optimiser = torch.optim.Adam(network.parameters(), lr=RATE, weight_decay=DECAY)
        for _ in range(EPOCHS):
            for batch in torch.randperm(len(rows)).split(BATCH):
                optimiser.zero_grad()
                functional.cross_entropy(network(rows[batch]), wanted[batch]).backward()
                optimiser.step()
        with torch.no_grad():
            return network(torch.from_numpy(test)).argmax(dim=1).numpy()
