"""The benchmark of accelerators: what is timed, and the page."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cellsmith.benchmark.__main__ import main
from cellsmith.benchmark._accelerator.trainings import measure


@pytest.mark.parametrize("name", ["SCE2TM", "GRIT"])
def test_seconds_are_those_of_the_method(name: str) -> None:
    found = measure(name, "cpu", n_cells=100, n_genes=110)
    assert set(found) == {"seconds"}
    assert 0 < found["seconds"] < 60


def test_command_resumes_and_writes_its_page(tmp_path: Path) -> None:
    """Rows that stand are not run again; without a GPU its columns are empty."""
    arguments = ["accelerator", "--methods", "GRIT", "--n-cells", "80", "--n-genes", "30", "--out", str(tmp_path)]
    assert main([*arguments, "--accelerators", "cpu"]) == 0
    first = (tmp_path / "accelerator.csv").read_text()
    assert main([*arguments, "--accelerators", "cpu"]) == 0
    assert (tmp_path / "accelerator.csv").read_text() == first
    (row,) = [line for line in (tmp_path / "accelerator.md").read_text().splitlines() if line.startswith("| GRIT")]
    assert row.split("|")[3].strip() == "-"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_an_absent_device_is_left_out(tmp_path: Path) -> None:
    assert main(["accelerator", "--methods", "GRIT", "--accelerators", "cuda", "--out", str(tmp_path)]) == 0
    assert not (tmp_path / "accelerator.csv").exists()
