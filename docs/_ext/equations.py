"""The ``equations`` directive: the tables EQUATIONS and DEVIATIONS of a method, printed from its code.

```{equations} scld
```
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

COLUMNS = {
    "subject": "Subject",
    "published": "Published",
    "change": "Ours",
    "why": "Why",
    "test": "Shown by",
}
# other spellings of a column
ALIASES = {"ours": "change", "reason": "why", "shown_by": "test"}


def resolve(target: Any) -> Any:
    """Return the object behind an entry of EQUATIONS: itself, or a dotted path to it."""
    if not isinstance(target, str):
        return target
    parts = target.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            found = getattr(found, name)
        return found
    raise ModuleNotFoundError(target)


def equation_rows(equations: Mapping[str, Any]) -> list[list[str]]:
    """One row an equation: number, what it says, where it stands."""
    rows = []
    for number, target in equations.items():
        found = resolve(target)
        text = (inspect.getdoc(found) or "").split("\n\n")[0].replace("\n", " ")
        text = re.sub(rf"^{re.escape(number)}\b[:.]?\s*", "", text)
        rows.append([number, text, f"`{found.__module__}.{found.__qualname__}`"])
    return rows


def deviation_rows(deviations: Iterable[Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the deviations; a column that no entry fills is left out."""
    entries = []
    for deviation in deviations:
        raw = dict(deviation) if isinstance(deviation, Mapping) else dataclasses.asdict(deviation)
        entries.append({ALIASES.get(key, key): str(value) for key, value in raw.items()})
    used = [c for c in COLUMNS if any(e.get(c) for e in entries)]
    rows = [[f"`{e[c]}`" if c == "test" and "::" in e[c] else e.get(c, "") for c in used] for e in entries]
    return [COLUMNS[c] for c in used], rows


class Equations(SphinxDirective):
    """Print the tables of ``cellsmith.model.<argument>.equations``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return both tables, each under a heading in bold."""
        module = importlib.import_module(f"cellsmith.model.{self.arguments[0]}.equations")
        self.env.note_dependency(module.__file__)
        headings, rows = deviation_rows(module.DEVIATIONS)
        return [
            nodes.rubric(text="Equations and the functions that hold them"),
            self.table(["Number", "Equation", "Function"], equation_rows(module.EQUATIONS), [1, 6, 4]),
            nodes.rubric(text="Where this differs from what is published"),
            self.table(headings, rows, [2] * len(headings)),
        ]

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int]) -> nodes.table:
        """Build a table whose cells hold inline markup."""
        group = nodes.tgroup("", *(nodes.colspec(colwidth=w) for w in widths), cols=len(headings))
        group += nodes.thead("", self.row(headings))
        group += nodes.tbody("", *(self.row(r) for r in rows))
        return nodes.table("", group, classes=["colwidths-given"])

    def row(self, cells: Sequence[str]) -> nodes.row:
        """Build one row; the roles and literals of docstrings are read as Markdown."""
        row = nodes.row()
        for cell in cells:
            text = re.sub(r":([a-z:]+):`~?([^`]*)`", r"`\2`", cell).replace("``", "`")
            row += nodes.entry("", nodes.paragraph("", "", *self.inline(text)))
        return row

    def inline(self, text: str) -> list[nodes.Node]:
        """Split text at its literals; everything else is plain, so that E[a] or p(x|c) need no escape."""
        parts = re.split(r"`([^`]*)`", text)
        return [nodes.literal(text=p) if i % 2 else nodes.Text(p) for i, p in enumerate(parts) if p]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("equations", Equations)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
