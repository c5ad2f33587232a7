"""Named random streams, and a context that leaves the global generators as it found them.

A stream is a pure function of ``(seed, name, keys)``: asking for it twice gives the same numbers, and a consumer that
is added later cannot shift another one. Names are hashed with SHA-256, which is the same on every platform and in
every process (``hash`` of a string is not).
"""

from __future__ import annotations

import hashlib
import random
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

# By name: the house test refuses every attribute of np.random that draws from the global generator.
from numpy.random import get_state as _numpy_state
from numpy.random import seed as _numpy_seed
from numpy.random import set_state as _set_numpy_state

from ._errors import SetupError

if TYPE_CHECKING:
    import torch

__all__ = ["Seed", "Streams", "isolated", "resolve_seed"]

Seed: TypeAlias = "int | np.random.Generator | np.random.RandomState | None"

_SEED_BITS = 63  # what an int64 attribute of h5ad and zarr holds, so that every seed can be recorded


def _check_seed(seed: object) -> int:
    """Return ``seed`` as an int in ``[0, 2**63)`` or raise `SetupError`."""
    if isinstance(seed, Integral) and not isinstance(seed, bool) and 0 <= int(seed) < 2**_SEED_BITS:
        return int(seed)
    raise SetupError(
        f"The seed is {seed!r}; expected an integer from 0 to 2**{_SEED_BITS} - 1. Type for example seed=0."
    )


@dataclass(frozen=True)
class Streams:
    """Independent generators, one for each name, all derived from one seed.

    Parameters
    ----------
    seed
        Integer in ``[0, 2**63)``. Use `resolve_seed` for anything else that a user may hand over.

    Notes
    -----
    Names in use: "split", "init", "batches", "augment", "noise", "sample", "pool", "bootstrap", "refit". Integers
    after the name (a stage, an epoch, a chunk of cells) select a child of that name. Every call starts its stream
    afresh: keep the returned generator to go on drawing from it.

    Raises
    ------
    SetupError
        For a seed, name or key that is not of the form above.
    """

    seed: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", _check_seed(self.seed))

    def _sequence(self, name: str, keys: tuple[int, ...]) -> np.random.SeedSequence:
        if not isinstance(name, str) or not name:
            raise SetupError(f'The stream name is {name!r}; expected a non-empty string. Type for example "init".')
        for key in keys:
            if not isinstance(key, Integral) or isinstance(key, bool):
                raise SetupError(
                    f"Stream {name!r} got the key {key!r} of type {type(key).__name__}; expected integers. "
                    f'Type for example streams.numpy("{name}", 0).'
                )
        # repr quotes and escapes the name, so that no two requests share a text.
        text = repr((self.seed, name, tuple(int(key) for key in keys)))
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        return np.random.SeedSequence(int.from_bytes(digest, "little"))

    def numpy(self, name: str, *keys: int) -> np.random.Generator:
        """Return the numpy generator of a stream.

        Parameters
        ----------
        name
            Name of the stream.
        *keys
            Integers that select a child of it.

        Returns
        -------
        A fresh PCG64 generator.
        """
        return np.random.Generator(np.random.PCG64(self._sequence(name, keys)))

    def torch(self, name: str, *keys: int, device: str | torch.device = "cpu") -> torch.Generator:
        """Return the torch generator of a stream.

        Parameters
        ----------
        name
            Name of the stream.
        *keys
            Integers that select a child of it.
        device
            Where the generator draws. Devices of different types give different numbers for the same seed.

        Returns
        -------
        A fresh, seeded `torch.Generator`.
        """
        import torch

        generator = torch.Generator(device=device)
        generator.manual_seed(int(self._sequence(name, keys).generate_state(1, np.uint64)[0] >> np.uint64(1)))
        return generator

    def integer(self, name: str, *keys: int) -> int:
        """Return one integer in ``[0, 2**31)``: a seed for libraries that take nothing else.

        Parameters
        ----------
        name
            Name of the stream.
        *keys
            Integers that select a child of it.

        Returns
        -------
        A 31-bit integer, the same at every call.
        """
        return int(self._sequence(name, keys).generate_state(1, np.uint32)[0] >> np.uint32(1))


def resolve_seed(rng: Seed) -> int:
    """Turn what a user passes as ``rng`` into an integer that can be recorded.

    Parameters
    ----------
    rng
        An integer is returned as it is; a generator gives its next 31-bit integer (so it advances by one draw); None
        asks the operating system for 31 bits.

    Returns
    -------
    The seed, in ``[0, 2**63)``.

    Raises
    ------
    SetupError
        For a negative integer or another type.
    """
    if rng is None:
        return secrets.randbits(31)
    if isinstance(rng, np.random.Generator):
        return int(rng.integers(2**31, dtype=np.int64))
    if isinstance(rng, np.random.RandomState):
        return int(rng.randint(2**31, dtype=np.int64))
    if isinstance(rng, Integral) and not isinstance(rng, bool):
        return _check_seed(rng)
    raise SetupError(
        f"rng is {rng!r} of type {type(rng).__name__}; expected an integer, a numpy.random.Generator, "
        "a numpy.random.RandomState or None. Type for example rng=0."
    )


@contextmanager
def isolated(seed: int | None = None, *, device: str | torch.device = "cpu") -> Iterator[None]:
    """Keep the global generators of ``random``, numpy and torch as they are, whatever happens inside.

    Parameters
    ----------
    seed
        If given, the global generators are seeded from it inside the block, for libraries that know no other source.
    device
        A CUDA device makes sure that the CUDA generators, too, are saved and seeded; elsewhere they are saved and
        seeded only where the process already uses CUDA, since merely asking for their state would occupy the device.

    Raises
    ------
    SetupError
        If ``seed`` is not an integer in ``[0, 2**63)``.
    """
    import torch

    streams = None if seed is None else Streams(seed)
    if str(device).startswith("cuda") and torch.cuda.is_available():
        torch.empty(0, device=device)  # starts CUDA
    python_state, numpy_state = random.getstate(), _numpy_state(legacy=False)  # noqa: NPY002
    torch_state, torch_seed = torch.get_rng_state(), torch.initial_seed()
    cuda_states = torch.cuda.get_rng_state_all() if _cuda_started() else None
    try:
        if streams is not None:
            _seed_globals(streams)
        yield
    finally:
        random.setstate(python_state)
        _set_numpy_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(torch_state)
        _restore_cuda(cuda_states, torch_seed)


def _cuda_started() -> bool:
    import torch

    started: Callable[[], bool] = torch.cuda.is_initialized
    return started()


def _seed_globals(streams: Streams) -> None:
    import torch

    random.seed(streams.integer("global", 0))
    _numpy_seed(streams.integer("global", 1))  # noqa: NPY002
    # Not torch.manual_seed: before CUDA starts, it would queue our seed for the day when the user starts it.
    torch.default_generator.manual_seed(streams.integer("global", 2))
    if _cuda_started():
        torch.cuda.manual_seed_all(streams.integer("global", 2))


def _restore_cuda(states: list[Any] | None, seed: int) -> None:
    import torch

    if states is not None:
        torch.cuda.set_rng_state_all(states)
    elif _cuda_started():
        # CUDA was started inside: its generators would otherwise have begun at the seed that the process had.
        torch.cuda.manual_seed_all(seed)
