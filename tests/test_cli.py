"""The command line without its long command."""

from __future__ import annotations

import pytest

import cellsmith
from cellsmith import cli, demo
from cellsmith._errors import SetupError


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"cellsmith {cellsmith.__version__}\n"


def test_without_a_command_it_explains_itself(capsys):
    assert cli.main([]) == 2
    assert "demo" in capsys.readouterr().err


def test_arguments_reach_the_demo(monkeypatch, capsys):
    seen = {}

    def run(out, *, seed, quick, say):
        seen.update(out=out, seed=seed, quick=quick)
        say("a line")

    monkeypatch.setattr(demo, "run_demo", run, raising=False)
    assert cli.main(["demo", "--out", "x", "--seed", "3", "--quick"]) == 0
    assert seen == {"out": "x", "seed": 3, "quick": True}
    assert capsys.readouterr().out == "a line\n"
    assert cli.main(["demo"]) == 0
    assert seen == {"out": "cellsmith-demo", "seed": 0, "quick": False}


def test_an_error_is_one_line_and_status_one(monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise SetupError("found this; expected that")

    monkeypatch.setattr(demo, "run_demo", fail, raising=False)
    assert cli.main(["demo"]) == 1
    assert capsys.readouterr().err == "cellsmith demo: found this; expected that\n"


@pytest.mark.parametrize("bad", ["-1", "two"])
def test_a_bad_seed_is_refused(bad, capsys):
    with pytest.raises(SystemExit):
        cli.main(["demo", "--seed", bad])
    assert "--seed" in capsys.readouterr().err
