"""What a solver returns, and the block arithmetic that all solvers share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cellsmith._errors import ConvergenceError, SetupError

__all__ = ["Solution"]

_ENTRIES = (
    32_000  # of a block summed together: fits the cache, and below the size at which torch divides a sum by threads
)
_COLUMNS = 16  # columns of the float64 residual held together


@dataclass(frozen=True)
class Solution:
    """Answer of a linear solver for several right-hand sides.

    Attributes
    ----------
    x
        ``(n, C)`` answer, numpy array or tensor as the right-hand side.
    residual
        ``(C,)`` |B_c - M X_c| / |B_c|, recomputed in float64 from the returned ``x``; 0 for a column of zeros.
    iterations
        Products with M for the column that took most.
    history
        Largest relative residual of all columns after each iteration, as the recursion has it; for a Chebyshev
        solve, which looks only at the end, after each pass.
    tolerance
        The relative residual that was asked for.
    """

    x: Any
    residual: npt.NDArray[np.float64]
    iterations: int
    history: list[float]
    tolerance: float

    @property
    def converged(self) -> npt.NDArray[np.bool_]:
        """``(C,)`` whether each column reached the tolerance."""
        return np.asarray(self.residual <= self.tolerance)

    def checked(self) -> Solution:
        """Return itself if all columns reached the tolerance.

        Raises
        ------
        ConvergenceError
            With the residual of the columns that did not.
        """
        late = np.flatnonzero(~self.converged)
        if late.size:
            shown = ", ".join(f"{c}: {self.residual[c]:.1e}" for c in late[:10]) + (", ..." if late.size > 10 else "")
            raise ConvergenceError(
                f"Found a relative residual above {self.tolerance:g} in {late.size} of {self.residual.size} columns "
                f"after {self.iterations} iterations (column: residual): {shown}. Raise max_iter or tol, or lower the "
                "smoothness weight; below a tol of about 1e-6 the right-hand side must be float64."
            )
        return self


def blocks(x: torch.Tensor) -> Iterator[slice]:
    """Yield the row blocks of a pass over an ``(n, c)`` array; an accelerator takes all rows at once."""
    n, width = x.shape
    step = max(1, _ENTRIES // max(1, width)) if x.device.type == "cpu" else max(n, 1)
    for start in range(0, n, step):
        yield slice(start, start + step)


@dataclass(frozen=True)
class Problem:
    """M X = B in torch, whatever B came as."""

    b: torch.Tensor
    norm: torch.Tensor
    numpy: bool
    _apply: Callable[[Any], Any]

    @classmethod
    def of(cls, apply: Callable[[Any], Any], b: Any) -> Problem:
        """Take ``(n, C)`` float32 or float64, array or tensor, without copying it where possible."""
        tensor = b if isinstance(b, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(b))
        if tensor.dtype not in (torch.float32, torch.float64):
            tensor = tensor.to(torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else torch.float64)
        if tensor.ndim != 2:
            raise SetupError(f"Found a right-hand side of shape {tuple(tensor.shape)}, expected (cells, classes).")
        square = torch.zeros(tensor.shape[1], dtype=torch.float64, device=tensor.device)
        for rows in blocks(tensor):
            square += tensor[rows].double().square().sum(0)
        if not bool(torch.isfinite(square).all()):
            bad = int((~torch.isfinite(square)).nonzero()[0])
            raise SetupError(f"Found entries that are not finite in column {bad} of the right-hand side.")
        return cls(tensor.contiguous(), square.sqrt(), not isinstance(b, torch.Tensor), apply)

    def start(self, x0: Any) -> torch.Tensor:
        """Return a new array to iterate on: a copy of ``x0``, or zeros."""
        if x0 is None:
            return torch.zeros_like(self.b)
        x = torch.as_tensor(x0, dtype=self.b.dtype, device=self.b.device).clone(memory_format=torch.contiguous_format)
        if x.shape != self.b.shape:
            raise SetupError(f"Found a start of shape {tuple(x.shape)}, expected {tuple(self.b.shape)}.")
        x[:, self.norm == 0] = 0
        return x

    def vector(self, values: Any) -> torch.Tensor:
        """Take ``(n,)`` values as a column of the dtype and device of B."""
        column = torch.as_tensor(np.asarray(values) if not isinstance(values, torch.Tensor) else values)
        return column.to(self.b.device, self.b.dtype).reshape(-1, 1)

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply by M."""
        if not self.numpy:
            return torch.as_tensor(self._apply(x))
        product = np.ascontiguousarray(self._apply(x.numpy()))
        return torch.from_numpy(product).to(x.dtype)

    def residual(self, x: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """Return the (C,) relative residuals in float64; B - M X itself goes into ``out``."""
        found = torch.zeros_like(self.norm)
        for start in range(0, self.b.shape[1], _COLUMNS):
            columns = slice(start, start + _COLUMNS)
            rest = self.apply(x[:, columns].double().contiguous()).neg_().add_(self.b[:, columns])
            for rows in blocks(rest):
                found[columns] += rest[rows].square().sum(0)
            if out is not None:
                out[:, columns] = rest.to(out.dtype)
        return torch.where(self.norm > 0, found.sqrt() / self.norm.clamp(min=torch.finfo(torch.float64).tiny), 0.0)

    def solution(self, x: torch.Tensor, residual: torch.Tensor, **facts: Any) -> Solution:
        """Pack an answer in the kind of B."""
        return Solution(x.numpy() if self.numpy else x, residual.cpu().numpy(), **facts)
