"""The acceptance table of scSiameseClu where it is used: planted types, later cells, names, orders, time and memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cellsmith.benchmark._annotation.bars import Bar, Measured
from cellsmith.benchmark._scsiameseclu import bars, later, markers, structure
from cellsmith.benchmark._scsiameseclu.bars import SLACK, Pages
from cellsmith.benchmark._scsiameseclu.speed import FIT_CELLS
from cellsmith.benchmark._scsiameseclu.variants import DEFAULT

__all__ = ["BARS"]


def _none(_: Pages) -> Measured | None:
    return None


def _known(*values: float) -> bool:
    return bool(np.isfinite(values).all())


def _planted(pages: Pages) -> Measured | None:
    found = pages.tables.values(structure.RARE, DEFAULT, "f1").groupby(level="task").mean()
    if len(found) < structure.N_TYPES:
        return None
    leiden = pages.tables.values(structure.RARE, structure.LEIDEN, "f1").groupby(level="task").mean()
    kept = int((found >= 0.7 - SLACK).sum())
    text = f"{kept} of {len(found)}, mean {found.mean():.3f}; {structure.LEIDEN}: {int((leiden >= 0.7).sum())},"
    return Measured(f"{text} {leiden.mean():.3f}", kept >= 4, kept == 5)


def _nulls(pages: Pages) -> Measured | None:
    found = pages.tables.values(structure.NULL, DEFAULT, "n_clusters")
    if found.index.get_level_values("file").nunique() < len(structure.DEPTHS):
        return None
    return Measured(f"{found.min():.0f} to {found.max():.0f}", found.max() <= 2, found.max() <= 1)


def _held_out(pages: Pages) -> Measured | None:
    names = ("ari_held_out", "ari_training", "agreement_with_refit")
    held, train, again = (
        pages.tables.of_seed(later.HELD_OUT, DEFAULT, name).groupby(level="file").mean() for name in names
    )
    if len(held) < len(later.FILES):
        return None
    ratio = held / train
    text = f"held-out over training ARI {ratio.mean():.3f} (lowest {ratio.min():.3f}, {ratio.idxmin()}); agreement "
    text += f"with a refit {again.mean():.3f} (lowest {again.min():.3f}, {again.idxmin()})"
    meets = ratio.min() >= 0.95 - SLACK and again.min() >= 0.90 - SLACK
    return Measured(text, meets, ratio.min() >= 0.98 - SLACK and again.min() >= 0.95 - SLACK)


def _technologies(pages: Pages) -> Measured | None:
    words, met, beaten = [], [], []
    for variant in (later.BY_TRANSFER, later.BY_REFERENCE):
        gaps = []
        for metric in ("accuracy", "macro_f1"):
            ours, peer = (
                pages.tables.values(later.TECHNOLOGY, v, metric).groupby(level="task").mean()
                for v in (variant, later.REGRESSION)
            )
            gaps.append((ours - peer).dropna())
        if min(len(g) for g in gaps) < 3:
            return None
        lowest = min(float(g.min()) for g in gaps)
        words.append(f"{variant}: accuracy {gaps[0].mean():+.3f}, macro-F1 {gaps[1].mean():+.3f}")
        met.append(lowest >= -0.02 - SLACK)
        beaten.append(lowest >= -SLACK)
    return Measured("; ".join(words), any(met), any(beaten))


def _markers(pages: Pages) -> Measured | None:
    names = ("accuracy", "rejected", "accuracy_kept", "accuracy_rejected")
    right, share, kept, lost = (pages.tables.mean(markers.TASK, DEFAULT, name) for name in names)
    if not _known(right, kept):
        return None
    text = f"{right:.3f}; {share:.1%} rejected" + (f": {lost:.3f}, the others {kept:.3f}" if share else "")
    return Measured(text, right >= 0.85 - SLACK and not lost >= kept, right >= 0.92 - SLACK)


def _orders(pages: Pages) -> Measured | None:
    found = pages.tables.rows[pages.tables.rows["task"] == structure.ORDER]
    if found.empty:
        return None
    means = found.groupby(["variant", "file"])["value"].mean()
    text = "; ".join(f"{variant}, {file} {value:.3f}" for (variant, file), value in means.items())
    return Measured(text, means.min() >= 0.90 - SLACK, means.min() >= 0.97 - SLACK)


def _most(names: tuple[str, ...], bounds: tuple[float, ...], words: str) -> Callable[[Pages], Measured | None]:
    """Judge quantities by their upper bounds; `words` shows them."""

    def measure(pages: Pages) -> Measured | None:
        values = [pages.tables.quantity(name) for name in names]
        if not _known(*values):
            return None
        return Measured(words.format(*values), all(v <= b for v, b in zip(values, bounds, strict=True)))

    return measure


def _fit(pages: Pages) -> Measured | None:
    name, other = f"fit {FIT_CELLS}", f"scvi {FIT_CELLS}"
    took, peak, peer = (pages.tables.quantity(n) for n in (f"{name}, cpu_s", f"{name}, peak_gib", f"{other}, cpu_s"))
    if not _known(took, peak, peer):
        return None
    text = f"{took:.0f} CPU s, peak {peak:.2f} GiB with imports and data; scVI, 100 epochs: {peer:.0f} CPU s"
    return Measured(text, took <= 120 and peak <= 1.5 and took <= 2 * peer)


def _memory(pages: Pages) -> Measured | None:
    names = [f"short {n}, above_data_gib" for n in (20_000, 40_000)] + ["short 50000, peak_gib"]
    few, many, most = (pages.tables.quantity(name) for name in names)
    if not _known(few, many, most):
        return None
    text = (
        f"50,000 cells {most:.2f} GiB; above the data {few:.2f} GiB at 20,000, {many:.2f} at 40,000: {many / few:.2f} x"
    )
    return Measured(text, most < 4 and many / few < 2.3)


BARS: tuple[Bar, ...] = (
    *bars.BARS[:8],
    Bar("A9 twenty cells of a type, number unknown, F1", ">= .7 for 4 of 5 types", "5 of 5", _planted),
    Bar("A10 no structure, clusters above 2 %", "<= 2 at three depths", "1", _nulls),
    bars.BARS[8],
    Bar("A12 held-out cells", "ARI >= .95 of training; agreement with a refit .90", ".98; .95", _held_out),
    Bar("A13 a technology left out", "logistic regression on PCA 50 - .02, each", ">= it", _technologies),
    Bar("A14 names by ten markers a lineage, accuracy", ".85; rejected less right than kept", ".92", _markers),
    bars.BARS[9],
    Bar("A16 labels shuffled, dropped, renamed", "bit-identical", "-", _none, "tests/model/scsiameseclu"),
    Bar("A17 cells, genes in another order: ARI of the clusters", ">= .90 (losses: by tests)", ".97", _orders),
    Bar("A18 solver, operators", "1e-6; bound holds", "-", _none, "tests/math, tests/parity"),
    Bar("A19 files, copies, MuData, scanpy", "all", "-", _none, "tests/model/scsiameseclu, tests/tl"),
    Bar(
        "epoch over scVI's",
        "<= 2.5 x",
        "-",
        _most(
            ("warmup over scVI, epoch", "transport over scVI, epoch"),
            (2.5, 2.5),
            "warm-up {:.2f} x, transport {:.2f} x",
        ),
    ),
    Bar("whole fit, 2,100 cells", "<= 120 CPU s, 1.5 GB; <= 2 x scVI", "-", _fit),
    Bar(
        "PageRank, unweighted",
        "<= 1.5 x PyG",
        "-",
        _most(("PageRank over PyG",), (1.5,), "{:.2f} x; exact weights besides"),
    ),
    Bar("transport, 50 clusters", "<= 10 % of a step", "-", _most(("transport, share of a step",), (0.10,), "{:.1%}")),
    Bar("memory", "50,000 cells < 4 GB; 20,000 to 40,000 < 2.3 x", "-", _memory),
)
"""The acceptance table, in its order."""
