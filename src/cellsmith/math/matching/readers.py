"""Two classifiers that are fitted to profiles in closed form, and how badly they read cells (eq. 23).

Unlike the matching of gradients and features, this asks directly for what a profile is there for. Everything stays
differentiable by the profiles; s (M, G) are profiles of the classes t (M,), x (n, G) cells of the classes y (n,).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["neighbour_loss", "ridge_loss", "settle_readers"]

RIDGE = 1.0
LEAST_SHARE = 1e-12
# What is tried for the temperature, in units of the mean squared distance, and for the sharpness.
TEMPERATURES = np.logspace(-3, 1, 21)
SHARPNESSES = 2.0 ** np.arange(7)


def neighbour_loss(x: Tensor, y: Tensor, s: Tensor, *, t: Tensor, temperature: float) -> Tensor:
    """Mean log-loss of a soft nearest neighbour: softmax over -|x - s_j|^2 / temperature, added up within classes.

    Parameters
    ----------
    x, y
        Cells (n, G) and their classes (n,).
    s, t
        Profiles (M, G) and their classes (M,).
    temperature
        In units of squared distance; towards 0 only the nearest profile counts.

    Returns
    -------
    Scalar, nats.
    """
    shares = torch.softmax(-_squared_distances(x, s) / temperature, dim=1)
    own = (shares * (y[:, None] == t[None, :])).sum(dim=1)
    return -own.clamp_min(LEAST_SHARE).log().mean()


def ridge_loss(x: Tensor, y: Tensor, s: Tensor, *, t: Tensor, sharpness: float) -> Tensor:
    """Mean log-loss of a ridge regression that is fitted to the profiles (Nguyen et al., 2021: kernel inducing points).

    With k(a, b) = a.b / mean |s|^2 + 1 the scores of a cell are k(x, s) (k(s, s) + I / M)^-1 (onehot(t) - 1 / K).

    Parameters
    ----------
    x, y, s, t
        As in :func:`neighbour_loss`.
    sharpness
        What scores are multiplied by before the softmax.

    Returns
    -------
    Scalar, nats.
    """
    n_classes = int(max(int(y.max()), int(t.max()))) + 1
    scale = s.detach().square().sum(dim=1).mean()
    # Like profiles make the table nearly singular: it is solved in double precision.
    gram = (s @ s.T / scale).double() + 1.0 + RIDGE / len(s) * torch.eye(len(s), dtype=torch.float64)
    wanted = functional.one_hot(t, n_classes).double() - 1.0 / n_classes
    scores = (x @ s.T / scale + 1.0) @ torch.linalg.solve(gram, wanted).to(s.dtype)
    return functional.cross_entropy(sharpness * scores, y)


@torch.no_grad()
def settle_readers(x: Tensor, y: Tensor, s: Tensor, *, t: Tensor) -> dict[str, float]:
    """Choose the temperature and the sharpness with which given profiles are read best.

    Parameters
    ----------
    x, y, s, t
        Cells (n, G), their classes (n,), profiles (M, G), their classes (M,).

    Returns
    -------
    ``temperature`` of :func:`neighbour_loss` and ``sharpness`` of :func:`ridge_loss`.
    """
    unit = float(_squared_distances(x, s).mean())
    soft = {float(c) * unit: float(neighbour_loss(x, y, s, t=t, temperature=float(c) * unit)) for c in TEMPERATURES}
    sharp = {float(c): float(ridge_loss(x, y, s, t=t, sharpness=float(c))) for c in SHARPNESSES}
    return {"temperature": min(soft, key=soft.__getitem__), "sharpness": min(sharp, key=sharp.__getitem__)}


def _squared_distances(x: Tensor, s: Tensor) -> Tensor:
    """Return |x - s|^2 (n, M) by one product: the derivative of ``torch.cdist`` takes ten times as long."""
    return x.square().sum(dim=1)[:, None] - 2.0 * x @ s.T + s.square().sum(dim=1)[None, :]
