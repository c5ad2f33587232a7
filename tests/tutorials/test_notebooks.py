"""The tutorials are executed as they stand, tell the reader nothing about the machine, and call what exists."""

from __future__ import annotations

import ast
import importlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))
# Folders of a machine, at the start of a path; "and/or" and "cells/genes" are no paths.
PATHS = re.compile(r"(?<![\w.:/])(?:/(?:work|tmp|root|home|Users|usr|opt|var|mnt|private)/|[A-Z]:\\)")
MAX_BYTES = 1_500_000


@pytest.fixture(params=NOTEBOOKS, ids=lambda p: p.stem)
def notebook(request):
    return json.loads(request.param.read_text(encoding="utf-8"))


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def text(value):
    return value if isinstance(value, str) else "".join(value)


def texts_of(output):
    """Yield everything of an output that a reader sees as text."""
    for name in ("text", "traceback", "evalue"):
        yield text(output.get(name, ""))
    for kind, value in output.get("data", {}).items():
        if not kind.startswith("image/"):
            yield text(value) if isinstance(value, str | list) else json.dumps(value)


def test_there_are_tutorials():
    assert NOTEBOOKS


def test_begins_with_a_title(notebook):
    first = notebook["cells"][0]
    assert first["cell_type"] == "markdown"
    assert re.match(r"# \S", text(first["source"]))


def test_was_executed_once_from_top_to_bottom(notebook):
    counts = [cell["execution_count"] for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))


def test_ended_without_errors_or_warnings(notebook):
    for cell in code_cells(notebook):
        for output in cell["outputs"]:
            assert output["output_type"] != "error", text(cell["source"])
            assert output.get("name") != "stderr", "".join(texts_of(output))


def test_names_no_folder_of_a_machine(notebook):
    for cell in notebook["cells"]:
        shown = [text(cell["source"]), *(t for output in cell.get("outputs", []) for t in texts_of(output))]
        for part in shown:
            found = PATHS.search(part)
            assert found is None, part[max(0, found.start() - 60) : found.end() + 60]


def test_shows_pictures(notebook):
    assert any("image/png" in o.get("data", {}) for cell in code_cells(notebook) for o in cell["outputs"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_is_small(path):
    assert path.stat().st_size <= MAX_BYTES


def test_calls_only_what_exists(notebook):
    """Every ``cellsmith.<namespace>.<name>`` and every import from cellsmith resolves in this version."""
    for cell in code_cells(notebook):
        tree = ast.parse(text(cell["source"]))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cellsmith"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, name.name) for name in node.names)
            elif isinstance(node, ast.Attribute) and re.fullmatch(r"cellsmith(\.\w+)+", ast.unparse(node)):
                found = importlib.import_module("cellsmith")
                for name in ast.unparse(node).split(".")[1:]:
                    found = getattr(found, name)


@pytest.mark.parametrize(
    ("shown", "is_path"),
    [
        ("/home/me/data.h5ad", True),
        ("File /usr/lib/python3/x.py", True),
        ("C:\\Users\\me", True),
        ("cells/genes and/or types", False),
        ("https://example.org/home/page", False),
    ],
)
def test_paths_are_told_from_words(shown, is_path):
    assert (PATHS.search(shown) is not None) == is_path
