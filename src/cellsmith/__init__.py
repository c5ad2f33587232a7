"""Published single-cell methods for AnnData, on one shared layer of mathematics.

The namespaces follow scanpy and scvi-tools: :mod:`cellsmith.tl` for one-line
doors, :mod:`cellsmith.model` for the classes behind them, :mod:`cellsmith.pp`,
:mod:`cellsmith.pl`, :mod:`cellsmith.metrics`, :mod:`cellsmith.datasets` and
:mod:`cellsmith.benchmark`. Each is imported on first use.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from cellsmith._lazy import attach

try:
    __version__ = version("cellsmith")
except PackageNotFoundError:  # a source tree on sys.path that was never installed
    __version__ = "0+unknown"

__getattr__, __dir__, __all__ = attach(
    __name__, {}, submodules=("benchmark", "datasets", "metrics", "model", "pl", "pp", "tl")
)
