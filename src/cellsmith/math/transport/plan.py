"""What a transport solver returns, and the checks of what it is given."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cellsmith._errors import SetupError

__all__ = ["Plan", "checked_equal", "checked_masses", "checked_positive"]

_UNEQUAL = 1e-4  # relative difference of two totals that are meant to be equal: float32 sums of some 10^5 masses


@dataclass(frozen=True)
class Plan:
    """Answer of a transport solver.

    Attributes
    ----------
    plan
        ``(R, C)`` transported mass, >= 0, exp((f_r + g_c - cost) / epsilon).
    row_potential, col_potential
        ``(R,)`` f and ``(C,)`` g, in units of the cost.
    n_sweeps
        Sweeps that were done; one sweep updates both potentials.
    converged
        Whether the stopping test was met within ``max_sweeps``. A cost with NaN is never met.
    """

    plan: Tensor
    row_potential: Tensor
    col_potential: Tensor
    n_sweeps: int
    converged: bool


def checked_masses(cost: Tensor, row: Tensor, col: Tensor) -> tuple[Tensor, Tensor]:
    """Return row and column masses in the type and on the device of the cost.

    Parameters
    ----------
    cost
        ``(R, C)`` cost, floating point.
    row, col
        ``(R,)`` and ``(C,)`` masses.

    Returns
    -------
    The two, without gradient.

    Raises
    ------
    SetupError
        If shapes do not fit, or a mass is not finite and above zero.
    """
    if cost.ndim != 2 or not cost.is_floating_point() or 0 in cost.shape:
        raise SetupError(f"Found cost of shape {tuple(cost.shape)} and {cost.dtype}, expected floats (rows, columns).")
    masses = []
    for name, values, size in (("row", row, cost.shape[0]), ("col", col, cost.shape[1])):
        mass = torch.as_tensor(values, dtype=cost.dtype, device=cost.device).detach()
        if mass.shape != (size,):
            raise SetupError(f"Found {name} of shape {tuple(mass.shape)}, expected ({size},) for this cost.")
        if not bool(((mass > 0) & torch.isfinite(mass)).all()):
            bad = int((~((mass > 0) & torch.isfinite(mass))).nonzero()[0])
            raise SetupError(
                f"Found {name}[{bad}] = {mass[bad].item():g}, expected masses above 0: leave out what carries none."
            )
        masses.append(mass)
    return masses[0], masses[1]


def checked_equal(row: Tensor, col: Tensor) -> Tensor:
    """Return column masses with the total of the row masses: unequal by rounding, potentials would grow by each sweep.

    Parameters
    ----------
    row, col
        ``(R,)`` and ``(C,)`` masses.

    Returns
    -------
    ``(C,)`` masses.

    Raises
    ------
    SetupError
        If the totals differ by more than rounding.
    """
    a, b = float(row.sum()), float(col.sum())
    if abs(a - b) > _UNEQUAL * max(a, b):
        raise SetupError(
            f"Found masses with totals {a:g} (row) and {b:g} (col), expected equal ones: scale them, or give a finite "
            "col_penalty."
        )
    return col * (a / b)


def checked_positive(name: str, value: float, *, finite: bool = True) -> None:
    """Refuse a number that is not above zero (and finite), with a :class:`~cellsmith._errors.SetupError`."""
    if not value > 0 or (finite and math.isinf(value)):
        raise SetupError(f"Found {name}={value!r}, expected a {'finite ' if finite else ''}number above 0.")
