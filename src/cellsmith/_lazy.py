"""Lazy namespaces: a public name is imported on its first use.

Loading torch, Lightning and scvi-tools takes seconds. Through this module
``import cellsmith`` and tab completion cost nothing of that.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = ["attach"]


def attach(
    package: str, attributes: Mapping[str, str], *, submodules: Iterable[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Make the hooks of a lazy package.

    Parameters
    ----------
    package
        ``__name__`` of the package that calls this function.
    attributes
        Public name -> relative module that defines it, such as
        ``{"SCLD": ".scld.model"}``.
    submodules
        Names of sub-packages that are public themselves.

    Returns
    -------
    ``__getattr__``, ``__dir__`` and ``__all__`` for the package; the first
    raises :class:`AttributeError` for a name that is neither.

    Examples
    --------
    >>> __getattr__, __dir__, __all__ = attach(__name__, {"scld": "._scld"})  # doctest: +SKIP
    """
    modules = frozenset(submodules)
    public = sorted({*attributes, *modules})

    def load(name: str) -> Any:
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        if name in attributes:
            module = importlib.import_module(attributes[name], package)
            return getattr(module, name)
        msg = f"module {package!r} has no attribute {name!r}. Public names: {', '.join(public) or '(none yet)'}."
        raise AttributeError(msg)

    def names() -> list[str]:
        return list(public)

    return load, names, list(public)
