"""Every branch on the version of another library lives here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

from packaging.version import Version

__all__ = ["aggregated_posterior_is_sound", "kept_threads", "scanpy_seed", "scvi_version"]


@contextmanager
def kept_threads() -> Iterator[None]:
    """Leave torch its number of threads while numba works.

    Numba, which pynndescent and scanpy call, sets OpenMP to all cores for the whole process, whatever
    ``OMP_NUM_THREADS`` and ``torch.set_num_threads`` say. On a busy machine the small steps of a training then wait for
    each other, at ten times the CPU time.
    """
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def scvi_version() -> Version:
    """Return the version of scvi-tools that is installed."""
    return Version(version("scvi-tools"))


def aggregated_posterior_is_sound() -> bool:
    """Tell whether ``get_aggregated_posterior`` can be trusted.

    scvi-tools 1.4.2 hands the posterior variance to a normal distribution as its scale, so that the densities and
    the differential abundance built on them are wrong.
    """
    return scvi_version() >= Version("1.5")


def scanpy_seed(seed: int) -> dict[str, int]:
    """Return the keyword that seeds a scanpy function: ``rng`` from scanpy 1.12 on, ``random_state`` before."""
    return {"rng" if Version(version("scanpy")) >= Version("1.12") else "random_state": seed}
