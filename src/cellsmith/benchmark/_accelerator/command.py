"""The command line of the benchmark of accelerators, and its page."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import pandas as pd
import torch

from cellsmith.benchmark._accelerator.trainings import CLOSED, TRAINED, measure
from cellsmith.benchmark._store import Store

__all__ = ["add_arguments", "report", "run"]

logger = logging.getLogger("cellsmith")

COLUMNS = ("machine", "accelerator", "n_cells", "n_genes", "method", "metric", "value")
PEER = "scVI"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark to its parser."""
    parser.add_argument("--methods", nargs="*", choices=(*TRAINED, *CLOSED), default=[*TRAINED, *CLOSED])
    parser.add_argument("--accelerators", nargs="+", choices=("cpu", "cuda"), default=["cpu", "cuda"])
    parser.add_argument("--n-cells", type=int, default=10_000)
    parser.add_argument("--n-genes", type=int, default=2_000)


def run(options: argparse.Namespace) -> Path:
    """Run what is not in the table yet, and write the page.

    Parameters
    ----------
    options
        What was typed. Without CUDA only the CPU is timed.

    Returns
    -------
    Path of the page.
    """
    store = Store(COLUMNS, options.out / "accelerator.csv")
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else "no accelerator"
    size = {"n_cells": options.n_cells, "n_genes": options.n_genes}
    for method in options.methods:
        for accelerator in options.accelerators:
            head = {"machine": machine, "accelerator": accelerator, **size, "method": method}
            if store.has(**head) or (accelerator == "cuda" and not torch.cuda.is_available()):
                continue
            found = measure(method, accelerator, **size)
            store.add([{**head, "metric": metric, "value": value} for metric, value in found.items()])
            logger.info("%s on %s: %s", method, accelerator, found)
    return report(options.out)


def report(out: Path) -> Path:
    """Write ``accelerator.md`` from ``accelerator.csv`` beside it.

    Parameters
    ----------
    out
        Directory of the table and of the page.
    """
    rows = pd.read_csv(out / "accelerator.csv") if (out / "accelerator.csv").is_file() else pd.DataFrame()
    lines = [
        "# Accelerators: results",
        "",
        "This page is written by `python -m cellsmith.benchmark accelerator` from the table beside it. One thread of",
        "the CPU and one GPU of the same machine; seconds of an epoch through all stages of a method (the difference",
        "of a longer and a shorter training), of a whole fit for BCPCA and GRIT. An epoch of DPDCAN is ten private",
        "steps. Made-up counts: only their size matters.",
        "",
    ]
    for (machine, n_cells, n_genes), part in rows.groupby(["machine", "n_cells", "n_genes"]) if len(rows) else ():
        table = part.pivot_table(index="method", columns=["accelerator", "metric"], values="value", aggfunc="last")
        lines += [f"## {machine}, {n_cells:,} cells x {n_genes:,} genes", ""]
        lines += [
            "| method | CPU, s | GPU, s | CPU / GPU | GPU, over scVI | GPU memory, MB |",
            "|---|---|---|---|---|---|",
        ]
        for method in [m for m in (*TRAINED, *CLOSED) if m in table.index]:
            value = {key: table.loc[method].get(key, float("nan")) for key in table.columns}
            cpu, gpu = (value.get((kind, "seconds"), float("nan")) for kind in ("cpu", "cuda"))
            peer = table.loc[PEER].get(("cuda", "seconds"), float("nan")) if PEER in table.index else float("nan")
            memory = value.get(("cuda", "device_bytes"), float("nan")) / 1e6
            over = float("nan") if method in CLOSED else gpu / peer
            cells = [f"{v:.3g}" if v == v else "-" for v in (cpu, gpu, cpu / gpu, over, memory)]
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
        lines.append("")
    page = out / "accelerator.md"
    page.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return page
