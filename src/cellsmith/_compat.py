"""Every branch on the version of another library lives here."""

from __future__ import annotations

from importlib.metadata import version

from packaging.version import Version

__all__ = ["aggregated_posterior_is_sound", "scanpy_seed", "scvi_version"]


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
