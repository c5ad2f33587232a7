"""Python Optimal Transport as the solver, on the CPU, for comparison."""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from torch import Tensor

from cellsmith._errors import ConvergenceError, MissingExtraError
from cellsmith.math.transport.sweeps import Problem

__all__ = ["pot_potential"]

_TOL = 1e-9  # POT's own test, which is none of ours; the caller tests the answer


def pot_potential(problem: Problem, *, max_sweeps: int) -> Tensor:
    """Return the column potential that POT finds, in units of epsilon.

    Parameters
    ----------
    problem
        What to solve.
    max_sweeps
        Iterations at most.

    Returns
    -------
    ``(C,)``, in the type and on the device of the problem.

    Raises
    ------
    MissingExtraError
        If POT is not installed.
    ConvergenceError
        If what POT returns is not finite: its kernel underflows for a cost far above epsilon.
    """
    try:
        import ot
    except ImportError as error:
        raise MissingExtraError("solver='pot' needs POT, which is not installed. Type: pip install pot") from error
    row, col, cost = (t.double().cpu().numpy() for t in (problem.row, problem.col, problem.scaled))
    options = {"numItermax": max_sweeps, "stopThr": _TOL, "log": True}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # that it stopped at max_sweeps is what the caller finds out
        if problem.ratio == 0:
            found = ot.bregman.sinkhorn_log(row, col, cost, 1.0, **options)[1]["log_v"]
        else:
            # reg_type: POT's default, "kl", has the entropy relative to row x col, another problem
            penalties = (math.inf, 1 / problem.ratio)
            log = ot.unbalanced.sinkhorn_unbalanced(row, col, cost, 1.0, penalties, reg_type="entropy", **options)[1]
            found = log["logv"]
    if not np.isfinite(found).all():
        raise ConvergenceError("POT's potentials are not finite for this cost and epsilon. Type solver='log'.")
    return torch.as_tensor(found).to(problem.scaled)
