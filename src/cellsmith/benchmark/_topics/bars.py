"""What the numbers of topics and cells are judged by: one row of the acceptance table each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from cellsmith.benchmark._annotation.bars import SLACK, Bar, Measured
from cellsmith.benchmark._annotation.results import number
from cellsmith.benchmark._missingness.results import Tables
from cellsmith.benchmark._topics.cases import BUNDLED, FILES, TUNING
from cellsmith.benchmark._topics.compare import TASK
from cellsmith.benchmark._topics.ours import DEFAULT, ENVELOPE, NO_ECR, PAPER_60, SHORT, UNROLLED
from cellsmith.benchmark._topics.peers import LDA, LINEAR, NMF, PCA

__all__ = ["TOPIC_BARS", "chosen_space", "known", "listed", "median", "per_file", "task_of"]

PEERS = (NMF, LDA, LINEAR)


def task_of(n_topics: int = 20) -> str:
    """Return the name of the main task in the tables."""
    return f"{TASK}, K = {n_topics}"


def known(*values: float) -> bool:
    """Tell whether all numbers were measured."""
    return bool(values) and bool(np.isfinite(values).all())


def listed(values: Mapping[str, float], *, sign: bool = True) -> str:
    """Write names and numbers one after the other."""
    return ", ".join(f"{name} {v:+.3f}" if sign else f"{name} {number(v)}" for name, v in values.items())


def median(results: Tables, variant: str, metric: str, *, file: str = BUNDLED, n_topics: int = 20) -> float:
    """Return the median over seeds on one file; NaN where there is none."""
    found = results.of_seed(task_of(n_topics), variant, metric, file=file)
    return float(found.median()) if len(found) else float("nan")


def per_file(results: Tables, variant: str, metric: str, *, n_topics: int = 20) -> dict[str, float]:
    """Return the mean over seeds on each file that has one."""
    found = {file: results.mean(task_of(n_topics), variant, metric, file=file) for file in FILES}
    return {file: value for file, value in found.items() if np.isfinite(value)}


def over_files(results: Tables, ours: str, theirs: str, metric: tuple[str, str], *, n_topics: int = 20) -> float:
    """Return ours minus theirs, the mean over the files that both have."""
    a, b = per_file(results, ours, metric[0], n_topics=n_topics), per_file(results, theirs, metric[1])
    both = [a[f] - b[f] for f in a if f in b]
    return float(np.mean(both)) if both else float("nan")


def chosen_space(results: Tables) -> str:
    """Return the space with the better Leiden ARI on the tuning files: one choice for all files."""
    found = {s: [results.mean(task_of(), DEFAULT, f"leiden_ari_{s}", file=f) for f in TUNING] for s in SPACES}
    means = {s: float(np.mean([v for v in values if np.isfinite(v)] or [0.0])) for s, values in found.items()}
    return max(means, key=lambda s: means[s])


SPACES = ("theta", "mu")


def _paper(results: Tables) -> Measured | None:
    get = {m: median(results, PAPER_60, m) for m in ("td_unique", "npmi", "purity")}
    if not known(*get.values()):
        return None
    text = f"{listed(get, sign=False)}; k-means ARI on theta {number(median(results, PAPER_60, 'kmeans_ari_theta'))}"
    meets = 0.74 <= get["td_unique"] <= 0.91 and 0.15 <= get["npmi"] <= 0.24 and get["purity"] >= 0.71
    return Measured(text, meets)


def _kmeans(results: Tables) -> Measured | None:
    metric = ("kmeans_ari_theta", "kmeans_ari_theta")
    gaps = {p: over_files(results, DEFAULT, p, metric) for p in (*PEERS, PCA)}
    bundled = median(results, DEFAULT, "kmeans_ari_theta")
    if not known(bundled, *gaps.values()):
        return None
    n = len(per_file(results, DEFAULT, "kmeans_ari_theta"))
    text = f"mean over {n} files, minus {listed(gaps)}; {BUNDLED} median {number(bundled)}"
    meets = gaps[LDA] >= 0.05 - SLACK and gaps[LINEAR] >= -0.01 - SLACK and bundled >= 0.50 - SLACK
    return Measured(text, meets and n == len(FILES), gaps[NMF] >= 0.03 - SLACK and bundled >= 0.60 - SLACK)


def _leiden(results: Tables) -> Measured | None:
    space = chosen_space(results)
    gaps = {p: over_files(results, DEFAULT, p, (f"leiden_ari_{space}", "leiden_ari_theta")) for p in (*PEERS, PCA)}
    bundled, own = median(results, DEFAULT, "leiden_ari_mu"), median(results, DEFAULT, f"leiden_ari_{space}")
    if not known(bundled, *gaps.values()):
        return None
    n = len(per_file(results, DEFAULT, "leiden_ari_mu"))
    text = f"{space} (better on the tuning files), mean over {n} files, minus {listed(gaps)}; {BUNDLED} mu "
    meets = gaps[LDA] >= 0.10 - SLACK and bundled >= 0.45 - SLACK and n == len(FILES)
    return Measured(text + number(bundled), meets, gaps[NMF] >= -SLACK and own >= 0.50 - SLACK)


def _diversity(results: Tables) -> Measured | None:
    small = {m: median(results, SHORT, m) for m in ("td_unique", "td_once")}
    many = median(results, SHORT, "td_unique", n_topics=100)
    ours, lda, nmf = (per_file(results, v, "td_unique") for v in (DEFAULT, LDA, NMF))
    if not known(*small.values(), *ours.values()) or set(ours) != set(lda) or set(ours) != set(nmf):
        return None
    ratio, gap = {f: ours[f] / lda[f] for f in ours}, {f: ours[f] - nmf[f] for f in ours}
    text = f"{BUNDLED}, 60 epochs: K = 20 {listed(small, sign=False)}, K = 100 {number(many)}; over {LDA} "
    text += f"{listed(ratio, sign=False)}; minus NMF {listed(gap)}"
    meets = small["td_unique"] >= 0.74 - SLACK and small["td_once"] >= 0.55 - SLACK and many >= 0.60 - SLACK
    meets &= min(ratio.values()) >= 1.5 - SLACK and min(gap.values()) >= -0.02 - SLACK and len(ours) == len(FILES)
    return Measured(text, meets, many >= 0.70)


def _coherence(results: Tables) -> Measured | None:
    own = {m: median(results, DEFAULT, m) for m in ("npmi", "tq", "td_unique", "kmeans_ari_theta")}
    ours = {m: per_file(results, DEFAULT, m) for m in ("npmi", "tq")}
    peers = {p: {m: per_file(results, p, m) for m in ("npmi", "tq")} for p in PEERS}
    if not known(*own.values()) or any(set(peers[p]["tq"]) != set(ours["tq"]) for p in PEERS):
        return None
    npmi = {f: v - peers[NMF]["npmi"][f] for f, v in ours["npmi"].items()}
    best = {f: v - max(peers[p]["tq"][f] for p in PEERS) for f, v in ours["tq"].items()}
    text = (
        f"{BUNDLED}: NPMI {number(own['npmi'])}, TQ {number(own['tq'])}; NPMI minus NMF {listed(npmi)}; TQ minus the "
    )
    text += f"best peer {listed(best)}"
    meets = own["npmi"] >= 0.17 - SLACK and own["tq"] >= 0.14 - SLACK
    meets &= sum(v >= -SLACK for v in npmi.values()) >= 3 and sum(v >= -SLACK for v in best.values()) >= 4
    together = own["npmi"] >= 0.16 and own["td_unique"] >= 0.75 and own["kmeans_ari_theta"] >= 0.60
    return Measured(text, meets, own["tq"] >= 0.20 and together)


def _gradient(results: Tables) -> Measured | None:
    pairs = [results.of_seed(task_of(), v, "td_unique", file=BUNDLED) for v in (SHORT, ENVELOPE, UNROLLED)]
    detached, through = (pairs[0] - pairs[1]).dropna(), (pairs[0] - pairs[2]).dropna()
    if detached.empty or through.empty:
        return None
    text = "default minus envelope " + ", ".join(f"{v:+.3f}" for v in detached)
    text += "; implicit (the default) minus unrolled " + ", ".join(f"{v:+.3f}" for v in through)
    return Measured(text, detached.min() >= 0.10 - SLACK and through.abs().max() <= 0.05 + SLACK)


def _regularised(results: Tables) -> Measured | None:
    many = {f: results.gap(task_of(100), DEFAULT, NO_ECR, metric="td_unique", file=f).mean for f in FILES}
    many = {f: v for f, v in many.items() if np.isfinite(v)}
    few = results.gap(task_of(), DEFAULT, NO_ECR, metric="td_unique").mean
    if not many or not known(few):
        return None
    text = f"K = 100: {listed(many)}; K = 20, mean {few:+.3f}"
    return Measured(text, sum(v >= 0.20 - SLACK for v in many.values()) >= 4 and few >= 0.03 - SLACK)


def _rare(results: Tables) -> Measured | None:
    metrics = ("rare_f1_theta", "rare_capture")
    ours, lda, pca, nmf = (per_file(results, v, metrics[0]) for v in (DEFAULT, LDA, PCA, NMF))
    files = sorted(set(ours) & set(lda) & set(pca))
    if not files:
        return None
    gap = {
        name: float(np.mean([ours[f] - other[f] for f in files]))
        for name, other in ((LDA, lda), (PCA, pca), (NMF, nmf))
    }
    caught = {v: float(np.mean(list(per_file(results, v, metrics[1]).values()))) for v in (DEFAULT, LDA)}
    planted = results.of("twenty cells of a type", variant=DEFAULT)
    found = planted.groupby("task")["value"].mean()
    n = int((found >= 0.6).sum())
    text = f"F1 of k-means over {len(files)} files, minus {listed(gap)}; capture {listed(caught, sign=False)}; planted "
    text += f"types captured {n} of {len(found)}" if len(found) else "types not run"
    meets = gap[LDA] >= -SLACK and gap[PCA] >= -0.02 - SLACK and caught[DEFAULT] >= caught[LDA] - SLACK
    return Measured(text, meets and (n >= 3), len(found) > 0 and n == 5 and gap[NMF] >= 0.05)


def _stability(results: Tables) -> Measured | None:
    get = {v: results.of("stability", variant=v)["value"].mean() for v in (DEFAULT, NMF, LDA)}
    if not known(get[DEFAULT]):
        return None
    n = results.of("stability", variant=DEFAULT)["file"].nunique()
    return Measured(f"{n} files: {listed(get, sign=False)}", get[DEFAULT] >= 0.60 - SLACK, get[DEFAULT] >= get[NMF])


def _proposal(results: Tables) -> Measured | None:
    proposal, found = (results.values("12 planted topics", DEFAULT, m) for m in ("proposal", "found"))
    if proposal.empty:
        return None
    text = f"proposals {', '.join(f'{v:.0f}' for v in proposal)}; topics found {', '.join(f'{v:.0f}' for v in found)}"
    return Measured(text, bool(proposal.between(10, 15).all()) and bool((found >= 12).all()))


Judge = Callable[[Tables], Measured | None]

TOPIC_BARS: tuple[Bar, ...] = (
    Bar(
        "A2 published form, 60 epochs",
        "TD_unique .74 to .91, NPMI .15 to .24, purity >= .71 (public code .79, .223, .724)",
        "-",
        _paper,
    ),
    Bar(
        "A3 k-means on theta, K = 20",
        f">= {LDA} + .05, >= {LINEAR} - .01; {BUNDLED} >= .50",
        f">= NMF + .03; {BUNDLED} >= .60",
        _kmeans,
    ),
    Bar(
        "A4 Leiden 1.0, K = 20",
        f">= {LDA} + .10; {BUNDLED} mu >= .45",
        f">= NMF; {BUNDLED} >= .50",
        _leiden,
    ),
    Bar(
        "A5 diversity",
        "TD_unique >= .74, TD_once >= .55; K = 100 >= .60; >= 1.5 x LDA by probability, >= NMF - .02",
        "K = 100 >= .70 (bound .765)",
        _diversity,
    ),
    Bar(
        "A6 coherence",
        f"{BUNDLED}: NPMI >= .17, TQ >= .14; NPMI >= NMF on 3 files, TQ >= the best peer on 4",
        "TQ >= .20; NPMI .16, TD .75 and k-means ARI .60 together",
        _coherence,
    ),
    Bar(
        "A7 gradient through the plan",
        "TD_unique: default - envelope >= .10 on every seed; implicit within .05 of unrolled",
        "-",
        _gradient,
    ),
    Bar("A8 regularisation", "TD_unique, K = 100: + .20 on 4 of 5 files; K = 20 + .03", "-", _regularised),
    Bar("S1 stability over seeds", "mean matched cosine >= .60", ">= NMF", _stability),
    Bar("S2 number of topics", "12 planted: proposal 10 to 15, all found at .8", "-", _proposal),
    Bar(
        "R1 rare types",
        f">= {LDA}, >= PCA - .02; planted type captured with F1 .6 in 3 of 5",
        "5 of 5; NMF + .05",
        _rare,
    ),
)
"""Rows of the acceptance table that need topics and cells alone."""
