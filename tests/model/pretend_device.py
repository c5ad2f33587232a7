"""A device that is not there: tensors are marked as if they lay on a GPU, and operations that mix devices fail.

Everything is computed on the CPU. What is checked is what a GPU would refuse: tensors of both devices in one operation,
an index on the GPU into a tensor on the CPU, a generator on the one for numbers on the other, NumPy of a GPU tensor. A
mark is an attribute of the tensor; results take it from what they are made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy, strategy
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

__all__ = ["MixedDevicesError", "pretended"]

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
FACTORIES = {
    getattr(torch, name)
    for name in ("arange", "as_tensor", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn")
} | {torch.randperm, torch.tensor, torch.zeros, torch.from_numpy, torch.sparse_csr_tensor, torch.sparse_coo_tensor}
# They copy between devices, or look at one tensor alone.
FREE = {torch.Tensor.copy_, torch.Tensor.__repr__, torch.Tensor.__format__, torch.Tensor.item, torch.Tensor.__bool__}


class MixedDevicesError(AssertionError):
    """What a GPU would have refused."""


def named(device: Any) -> torch.device:
    """Return the one or the other device, however it is written."""
    return GPU if torch.device(device).type == "cuda" else CPU


def place(tensor: torch.Tensor) -> torch.device | None:
    """Return where a tensor pretends to be; None where nothing is known of it."""
    return tensor.__dict__.get("pretended") if isinstance(tensor, torch.Tensor) else None


def mark(value: Any, device: torch.device | None) -> Any:
    """Mark every tensor of a nested value."""
    for part in tree_flatten(value)[0]:
        if isinstance(part, torch.Tensor) and device is not None:
            part.pretended = device
    return value


def copy_to(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the tensor on another device: another object with the same values."""
    if place(tensor) == device:
        return tensor
    return mark(torch.ops.aten.alias(tensor) if tensor.layout is torch.strided else tensor.clone(), device)


class Pretend(TorchFunctionMode):
    """Marks results, and raises where devices are mixed."""

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function == torch.Tensor.device.__get__:
            return place(args[0]) or function(*args)
        if function == torch.Tensor.is_cuda.__get__:
            return place(args[0]) == GPU
        if function in (torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.tolist) and place(args[0]) == GPU:
            if function is torch.Tensor.tolist:
                return function(*args)
            raise MixedDevicesError("NumPy of a tensor on the GPU; expected .cpu() before")
        if function is torch.Tensor.to:
            return self._to(*args, **kwargs)
        if function in (torch.Tensor.cpu, torch.Tensor.cuda):
            return copy_to(args[0], CPU if function is torch.Tensor.cpu else GPU)
        if function in FACTORIES or "device" in kwargs:
            return self._made(function, args, kwargs)
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
        if function is torch.Tensor.__getitem__ or function is torch.Tensor.__setitem__:
            device = self._indexed(function, args)
        else:
            device = self._common(function, tensors)
        return mark(function(*args, **kwargs), device)

    def _common(self, function: Any, tensors: list[torch.Tensor]) -> torch.device | None:
        known = {place(t) for t in tensors if place(t) is not None and t.dim() > 0}
        if len(known) > 1 and function not in FREE:
            shapes = [(tuple(t.shape), str(place(t))) for t in tensors]
            raise MixedDevicesError(f"{getattr(function, '__name__', function)} of {shapes}")
        if function in FREE and tensors:
            return place(tensors[0])
        if known:
            return known.pop()
        return next((place(t) for t in tensors if place(t) is not None), None)

    def _indexed(self, function: Any, args: Any) -> torch.device | None:
        own = place(args[0])
        for index in tree_flatten(args[1])[0]:
            if place(index) == GPU and own == CPU:
                raise MixedDevicesError(f"an index on the GPU into {tuple(args[0].shape)} on the CPU")
        return own

    def _made(self, function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
        own = next((place(t) for t in tensors if place(t) is not None), None)
        given = kwargs.pop("device", None)
        device = named(given) if given is not None else own or CPU
        if kwargs.get("generator") is not None and device != kwargs["generator"].device:
            raise MixedDevicesError(f"{function.__name__} on {device} from a generator on the CPU")
        if function in (torch.sparse_csr_tensor, torch.sparse_coo_tensor):
            self._common(function, tensors)
        return mark(function(*args, **kwargs), device)

    def _to(self, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        device, rest = kwargs.pop("device", None), []
        for value in args:
            if isinstance(value, torch.Tensor):
                device, rest = place(value), [*rest, value.dtype]
            elif isinstance(value, torch.device | str):
                device = value
            else:
                rest.append(value)
        goal = place(tensor) if device is None else named(device)
        moved = tensor.to(*rest, **kwargs) if rest or kwargs else tensor
        return mark(moved, place(tensor)) if goal is None else copy_to(moved, goal)


def _move(module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    for part in (*module.parameters(), *module.buffers()):
        part.pretended = device
    return module


@contextmanager
def pretended(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let whatever trains inside believe that its modules and batches are on a GPU."""
    from cellsmith.model import _base, _fitted

    def to(module: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        target = kwargs.get("device", args[0] if args else None)
        return _move(module, named(target))

    def moved(batch: Any) -> Any:
        return tree_map(lambda v: copy_to(v, GPU) if isinstance(v, torch.Tensor) else v, batch)

    for base in (_base, _fitted):
        given = base.parse_device_args
        patch.setattr(
            base, "parse_device_args", lambda given=given, **k: (*given(**{**k, "accelerator": "cpu"})[:2], GPU)
        )
    # Its random streams are those of the CPU, since there is no other.
    patch.setattr(_base, "isolated", lambda seed=None, device=None, own=_base.isolated: own(seed))
    patch.setattr(_fitted, "isolated", lambda seed=None, device=None, own=_fitted.isolated: own(seed))
    patch.setattr(torch.nn.Module, "to", to)
    patch.setattr(torch.nn.Module, "cpu", lambda self: _move(self, CPU))
    patch.setattr(SingleDeviceStrategy, "model_to_device", lambda self: _move(self.model, GPU))
    patch.setattr(SingleDeviceStrategy, "batch_to_device", lambda self, batch, *a, **k: moved(batch))
    # The trainer puts the state of its optimisers where its module is.
    patch.setattr(
        strategy, "_optimizers_to_device", lambda optimizers, device: mark([o.state for o in optimizers], GPU)
    )
    with Pretend():
        yield
