"""Every public name resolves, is documented, and has its place in the API pages."""

from __future__ import annotations

import importlib

import pytest

import cellsmith
import rules

NAMES = [(space, name) for space in dir(cellsmith) for name in dir(importlib.import_module(f"cellsmith.{space}"))]


@pytest.mark.parametrize(("space", "name"), NAMES)
def test_public_name_resolves_and_is_documented(space: str, name: str) -> None:
    found = getattr(getattr(cellsmith, space), name)
    assert callable(found)
    assert (found.__doc__ or "").strip()
    page = rules.ROOT / "docs" / "api" / f"{space}.md"
    assert name in page.read_text(encoding="utf-8").split(), f"docs/api/{space}.md does not list {name}"


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'scdl'.*scld"):
        _ = cellsmith.tl.scdl


def test_version_is_a_release_number() -> None:
    assert cellsmith.__version__[0].isdigit()
