"""Types and small checks that the diffusion files share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from cellsmith._errors import SetupError, nearest

__all__ = ["DenoiserFn", "Network", "Prediction", "Prior", "Randomness", "checked", "column"]

Prediction = Literal["v", "epsilon", "x0"]
Prior = Literal["diffusion", "flow"]
Network = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]
DenoiserFn = Callable[[Tensor, Tensor], Tensor]
Randomness = torch.Generator | Sequence[torch.Generator] | None


def checked(name: str, value: str, *, valid: tuple[str, ...]) -> None:
    """Refuse a value outside ``valid`` with a :class:`~cellsmith._errors.SetupError` that names the closest one."""
    if value not in valid:
        raise SetupError(f"{name}={value!r} is not known. {nearest(value, valid)}")


def column(values: Tensor | float, like: Tensor) -> Tensor:
    """Values as (n, 1), or (1, 1) when all rows share one, in the type and on the device of ``like``."""
    return torch.as_tensor(values, dtype=like.dtype, device=like.device).reshape(-1, 1)
