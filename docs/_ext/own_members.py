"""Leave members that other packages define, such as those of scvi-tools' base classes, to their own documentation."""

from __future__ import annotations

import inspect
from typing import Any

from sphinx.application import Sphinx


def skip_foreign(_app: Sphinx, what: str, name: str, member: Any, skip: bool, _options: Any) -> bool | None:
    """Skip a member of a class whose function was not written in cellsmith."""
    if skip or what != "class":
        return None
    function = getattr(member, "__func__", None) or getattr(member, "fget", None) or inspect.unwrap(member)
    module = getattr(function, "__module__", None) or ""
    return None if module.split(".")[0] == "cellsmith" else True


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the filter."""
    app.connect("autodoc-skip-member", skip_foreign)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
