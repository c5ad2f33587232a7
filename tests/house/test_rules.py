"""Every file of the package keeps every rule of the house."""

from __future__ import annotations

import statistics
import subprocess
import sys

import pytest

import rules

FILES = rules.files()


@pytest.mark.parametrize("checker", rules.CHECKERS, ids=lambda c: c.__name__)
def test_rule_holds_everywhere(checker: rules.Checker) -> None:
    found = [breach for path in FILES for breach in checker(path, rules.read(path))]
    assert not found, "\n".join(["", *found])


def test_median_file_is_short() -> None:
    lengths = [len(rules.read(path).splitlines()) for path in FILES]
    assert statistics.median(lengths) <= 180


def test_there_is_something_to_check() -> None:
    assert {"_errors.py", "__init__.py", "model/__init__.py"} <= set(FILES)


def test_importing_the_package_is_cheap() -> None:
    heavy = {"torch", "scvi", "scanpy", "anndata", "lightning", *rules.HEAVY}
    code = "import sys, cellsmith; dir(cellsmith.tl); dir(cellsmith.model); print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not heavy & set(done.stdout.split())
