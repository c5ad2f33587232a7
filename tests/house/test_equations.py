"""Equations and deviations of every method resolve, and the documentation prints them."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Mapping

import pytest

import rules

BUILT = [m for m in rules.METHODS if (rules.PACKAGE / "model" / m / "equations.py").exists()]


def resolve(target: object) -> object:
    """The function behind an entry of EQUATIONS: itself, or a dotted path to it."""
    if not isinstance(target, str):
        return target
    parts = target.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            found = getattr(found, name)
        return found
    raise ModuleNotFoundError(target)


def fields(deviation: object) -> dict[str, object]:
    """A deviation as a mapping, whether it is one or a dataclass."""
    if dataclasses.is_dataclass(deviation) and not isinstance(deviation, type):
        return dataclasses.asdict(deviation)
    assert isinstance(deviation, Mapping)
    return dict(deviation)


@pytest.mark.parametrize("method", BUILT)
def test_equations_resolve_to_documented_functions(method: str) -> None:
    module = importlib.import_module(f"cellsmith.model.{method}.equations")
    assert module.EQUATIONS
    for number, target in module.EQUATIONS.items():
        function = resolve(target)
        assert callable(function), f"{method} {number} is not callable: {target}"
        assert (function.__doc__ or "").strip(), f"{method} {number} has no docstring"


@pytest.mark.parametrize("method", BUILT)
def test_deviations_say_what_why_and_which_test_shows_it(method: str) -> None:
    module = importlib.import_module(f"cellsmith.model.{method}.equations")
    assert module.DEVIATIONS
    for deviation in module.DEVIATIONS:
        entry = fields(deviation)
        assert {"subject", "why", "test"} <= set(entry), entry
        for path, name in re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", str(entry["test"])):
            source = (rules.ROOT / path).read_text(encoding="utf-8")
            assert name in source, f"{method}: {path} holds no {name}"


@pytest.mark.parametrize("method", BUILT)
def test_user_guide_prints_the_tables(method: str) -> None:
    page = rules.ROOT / "docs" / "user_guide" / f"{method}.md"
    assert re.search(rf"^```\{{equations\}} {method}\s*$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_a_planted_dead_path_is_found() -> None:
    with pytest.raises(AttributeError):
        resolve("cellsmith._errors.no_such_function")
    with pytest.raises(ModuleNotFoundError):
        resolve("no_such_package.function")
