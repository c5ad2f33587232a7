"""A task in a process of its own, so that its memory and its first seconds are its own."""

from __future__ import annotations

import json
import logging
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from cellsmith.benchmark._annotation.speed import THREADS

__all__ = ["report_cost", "run_alone", "say"]

MARK = "RESULT "


def report_cost(prepare: Callable[[], Any], task: Callable[[Any], Mapping[str, float] | None]) -> None:
    """Run a task here, on one thread, and say on standard output what it took.

    Parameters
    ----------
    prepare
        Makes the data, which count neither as time nor as memory of the task.
    task
        Takes them; what it returns is said as well, and stands where both measure the same.
    """
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    data = prepare()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = (time.perf_counter(), time.process_time())
    own = dict(task(data) or {})
    found = {"wall_s": time.perf_counter() - started[0], "cpu_s": time.process_time() - started[1]}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found |= {"peak_gib": peak / 1024**2, "above_data_gib": (peak - before) / 1024**2}
    say(found | own)


def say(found: Mapping[str, float]) -> None:
    """Tell the process that called :func:`run_alone` what was found."""
    sys.stdout.write(MARK + json.dumps(dict(found)) + "\n")


def run_alone(module: str, *words: str) -> dict[str, float]:
    """Call ``child(*words)`` of a module in a fresh process on one thread.

    Parameters
    ----------
    module
        Name of a module whose function ``child`` ends in :func:`report_cost` or :func:`say`.
    words
        Its arguments.

    Returns
    -------
    What the child said: "wall_s" and "cpu_s" in seconds, "peak_gib" and "above_data_gib" in GiB of resident memory, and
    what the task returned.

    Raises
    ------
    RuntimeError
        If it said nothing, with the end of its error output.
    """
    code = f"import sys; from {module} import child; child(*sys.argv[1:])"
    environment = {**os.environ, **dict.fromkeys(THREADS, "1")}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=environment, capture_output=True, text=True, check=False
    )
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            return dict(json.loads(line.removeprefix(MARK)))
    raise RuntimeError(f"{module}.child{words} ended with code {done.returncode}: {done.stderr.strip()[-500:]}")
