"""Smoothing over a graph, (W + lambda L) P = W P0: systems, solvers, and what is certain about their answers."""

from __future__ import annotations

from cellsmith.math.solve.certificate import Supersolution, certified_argmax, error_bound
from cellsmith.math.solve.chebyshev import a_priori_steps, chebyshev
from cellsmith.math.solve.conjugate import block_cg
from cellsmith.math.solve.direct import solve_lu
from cellsmith.math.solve.extension import extend
from cellsmith.math.solve.operators import CsrApply, TorchApply, cuthill_mckee, permute
from cellsmith.math.solve.smoothing import active_columns, choose_solver, solve, solved_supersolution
from cellsmith.math.solve.solution import Solution
from cellsmith.math.solve.system import System, system

__all__ = [
    "CsrApply",
    "Solution",
    "Supersolution",
    "System",
    "TorchApply",
    "a_priori_steps",
    "active_columns",
    "block_cg",
    "certified_argmax",
    "chebyshev",
    "choose_solver",
    "cuthill_mckee",
    "error_bound",
    "extend",
    "permute",
    "solve",
    "solve_lu",
    "solved_supersolution",
    "system",
]
