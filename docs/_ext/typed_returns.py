"""Read a Returns section as prose: annotations say the type, and the section says what it means."""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx
from sphinx.ext.napoleon import NumpyDocstring


def as_prose(self: NumpyDocstring, section: str) -> list[str]:
    """Format the lines of a Returns or Yields section without taking the first for a type."""
    lines = self._dedent(self._consume_to_next_section())
    return [*self._format_block(f":{section.lower()}: ", lines), ""]


def plain_types(_app: Sphinx, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Write numpy's type of objects as Python's: a trailing underscore would be a link."""
    lines[:] = [line.replace("numpy.object_", "object") for line in lines]


def setup(app: Sphinx) -> dict[str, bool]:
    """Replace the parser of the section; correct types after napoleon has added them."""
    NumpyDocstring._parse_returns_section = as_prose
    app.connect("autodoc-process-docstring", plain_types, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
