"""One change at a time: the guard of the gradient, the regularisation, and what else could have been the default."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cellsmith.benchmark._store import Store
from cellsmith.benchmark._topics.cases import BUNDLED, TUNING, read
from cellsmith.benchmark._topics.compare import run_case
from cellsmith.benchmark._topics.fits import Fits
from cellsmith.benchmark._topics.ours import ABLATIONS, DEFAULT, ENVELOPE, NO_ECR, PAPER, PAPER_60, SHORT, UNROLLED

__all__ = ["MANY", "ablation", "guard", "regularisation"]

N_TOPICS, MANY = 20, 100
SEEDS = range(5)


def guard(seeds: Iterable[int], *, directory: Path, store: Store, fits: Fits) -> None:
    """Run the gradients of the plan at 60 epochs, and the published form, on scanpy's bundled cells.

    Parameters
    ----------
    seeds
        Seeds of the fits.
    directory, store, fits
        Data, where the rows go, fits.
    """
    case = read(directory, BUNDLED)
    for seed in seeds:
        names = [SHORT, ENVELOPE, UNROLLED, PAPER_60, PAPER]
        run_case(case, names, n_topics=N_TOPICS, seed=seed, store=store, fits=fits)
        run_case(case, [SHORT], n_topics=MANY, seed=seed, store=store, fits=fits)


def regularisation(files: Iterable[str], seeds: Iterable[int], *, directory: Path, store: Store, fits: Fits) -> None:
    """Run the default with and without the regularisation, with 100 topics and with 20."""
    cases = {file: read(directory, file) for file in files}
    for seed in seeds:
        for case in cases.values():
            for n_topics in (MANY, N_TOPICS):
                run_case(case, [DEFAULT, NO_ECR], n_topics=n_topics, seed=seed, store=store, fits=fits)


def ablation(seeds: Iterable[int], *, directory: Path, store: Store, fits: Fits) -> None:
    """Run every change on the tuning files, five seeds where the default three were asked for."""
    cases = [read(directory, file) for file in TUNING]
    wanted = list(seeds)
    for seed in SEEDS if wanted == [0, 1, 2] else wanted:
        for case in cases:
            run_case(case, [DEFAULT, *ABLATIONS], n_topics=N_TOPICS, seed=seed, store=store, fits=fits)
