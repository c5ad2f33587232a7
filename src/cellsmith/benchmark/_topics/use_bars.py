"""What the numbers of perturbations, views, queries and speed are judged by."""

from __future__ import annotations

import numpy as np

from cellsmith.benchmark._annotation.bars import SLACK, Bar, Measured
from cellsmith.benchmark._annotation.results import number
from cellsmith.benchmark._missingness.results import Tables
from cellsmith.benchmark._topics import batches, conditions, enriched, later, nulls, views
from cellsmith.benchmark._topics.bars import TOPIC_BARS, known, listed
from cellsmith.benchmark._topics.cases import BUNDLED, TUNING
from cellsmith.benchmark._topics.ours import DEFAULT
from cellsmith.benchmark._topics.peers import LDA, NMF, PCA

__all__ = ["BARS", "USE_BARS"]

SHIFT, ADDED = conditions.SHIFT, f"{conditions.SHIFT}, added"


def _shift(results: Tables, task: str) -> float:
    """Return what the better of the two baselines reaches."""
    found = [results.mean(task, v, "spearman") for v in (SHIFT, ADDED)]
    return float(np.nanmax(found)) if np.isfinite(found).any() else float("nan")


def _held_out(results: Tables) -> Measured | None:
    task = "held-out cells"
    get = {m: results.mean(task, DEFAULT, m) for m in ("spearman", "random", "nearer", "top20")}
    ranks = [results.mean(task, DEFAULT, f"rank {t}") for t in conditions.INTERFERON]
    shift = _shift(results, task)
    if not known(*get.values(), shift):
        return None
    text = f"Spearman {number(get['spearman'])}, random topics {number(get['random'])}, mean shift {number(shift)}; "
    text += f"nearer {100 * get['nearer']:.0f} %; ranks of the interferon sets {', '.join(f'{r:.1f}' for r in ranks)}; "
    text += f"top 20 shared {get['top20']:.1f}; the training cells of the same type reach "
    text += number(results.mean(task, conditions.SAME, "spearman"))
    meets = get["spearman"] >= 0.60 - SLACK and get["random"] < 0.20 and get["spearman"] >= shift - 0.05 - SLACK
    meets &= get["nearer"] >= 0.80 - SLACK and known(*ranks) and max(ranks) <= 2 + SLACK
    return Measured(text, meets, get["spearman"] >= 0.80 and get["spearman"] > shift and get["top20"] >= 12)


def _donor(results: Tables) -> Measured | None:
    to, within = "donor, to", "donor, within"
    get = {name: results.mean(t, DEFAULT, "spearman") for name, t in (("other donor", to), ("same donor", within))}
    chance, shift = results.mean(to, DEFAULT, "random"), _shift(results, to)
    if not known(*get.values(), chance, shift):
        return None
    loss = get["same donor"] - get["other donor"]
    text = f"Spearman: {listed(get, sign=False)}; random topics {number(chance)}, mean shift {number(shift)}"
    meets = get["other donor"] >= 0.50 - SLACK and chance < 0.20 and loss <= 0.10 + SLACK
    return Measured(text, meets and get["other donor"] >= shift - 0.05 - SLACK, get["other donor"] >= 0.70)


def _type(results: Tables) -> Measured | None:
    found = results.values("held-out type", DEFAULT, "spearman")
    if found.empty:
        return None
    each = found.groupby(level="task").mean()
    shift = _shift(results, "held-out type")
    named = {str(t).removeprefix("held-out type, "): float(v) for t, v in each.items()}
    value = float(each.median())
    text = f"median {number(value)} ({listed(named, sign=False)}); mean shift {number(shift)}"
    return Measured(text, value >= 0.45 - SLACK and value >= shift - 0.05 - SLACK, value >= 0.60)


def _planted(results: Tables) -> Measured | None:
    get = {m: results.mean("planted", DEFAULT, m) for m in ("spearman", "random", "nearer")}
    hits = results.values("planted", "planted genes", "found")
    if not hits.empty and known(get["spearman"]) and not known(*get.values()):
        return Measured(f"no topic selected in {len(hits)} draws, nothing predicted", meets=False)
    if not known(*get.values()) or hits.empty:
        return None
    text = f"{listed(get, sign=False)}; planted genes in the top 30: {', '.join(f'{v:.0f}' for v in hits)} of 15"
    meets = get["spearman"] >= 0.6 - SLACK and hits.min() >= 10 and get["nearer"] >= 0.8 - SLACK
    return Measured(text, meets and get["random"] < 0.2, get["spearman"] >= 0.8 and hits.min() >= 13)


def _laws(results: Tables) -> Measured | None:
    get = {m: results.values(conditions.LAWS, DEFAULT, m) for m in ("identity", "monotone", "untouched", "n_raised")}
    if get["identity"].empty:
        return None
    worst, moved, share = get["identity"].max(), get["untouched"].max(), get["monotone"].min()
    meets = worst <= 1e-6 and moved == 0 and share >= 1 - SLACK
    text = (
        f"toys: strength 0 changes {worst:.1e}; {number(float(get['n_raised'].mean()))} raised planted genes, monotone "
    )
    text += f"{number(float(share))}; other topics move {moved:.1e}"
    return Measured(text, meets)


def _null(results: Tables) -> Measured | None:
    cells, donors = (results.mean(nulls.TASK, DEFAULT, "selected", file=f) for f in (nulls.FILE, nulls.DONORS))
    if not known(cells, donors):
        return None
    by_cells = results.mean(nulls.TASK, DEFAULT, "selected_by_cells", file=nulls.DONORS)
    text = f"cells {number(cells)}; donors {number(donors)} (the same splits by cells, wrongly: {number(by_cells)})"
    return Measured(text, cells <= 0.05 + SLACK and donors <= 0.05 + SLACK)


def _noise(results: Tables) -> Measured | None:
    rows = results.of(views.NOISE)
    if rows.empty:
        return None
    q, equal = (rows[rows["metric"] == m]["value"] for m in ("q", "bit_equal"))
    text = f"q = 0 in {int((q == 0).sum())} of {len(q)}, bit-equal in {int(equal.sum())} of {len(equal)}"
    return Measured(text, bool((q == 0).all()) and bool(equal.all()) and len(q) >= 2 * len(views.DRAWS))


def _view(results: Tables, name: str, metric: str, file: str) -> float:
    return results.gap(views.TASK, name, views.OFF, metric=metric, file=file).mean


def _truth(results: Tables) -> Measured | None:
    name = "types and noise"
    get = {m: results.mean(views.TASK, name, m, file=BUNDLED) for m in ("q", "purity")}
    gain = _view(results, name, "kmeans_ari_mu", BUNDLED)
    if not known(*get.values(), gain):
        return None
    meets = get["q"] >= 0.5 - SLACK and get["purity"] >= 0.85 - SLACK and gain >= 0.10 - SLACK
    text = f"{listed(get, sign=False)}; k-means on mu {gain:+.3f}"
    return Measured(text, meets, get["purity"] >= 0.89 and gain >= 0.16)


def _other_view(results: Tables, name: str, files: tuple[str, ...]) -> dict[str, float]:
    found = {f: _view(results, name, "kmeans_ari_theta", f) for f in files}
    return {f: v for f, v in found.items() if np.isfinite(v)}


def _other_genes(results: Tables) -> Measured | None:
    gain = _other_view(results, "other genes", views.OTHER_GENES)
    if not gain:
        return None
    ratio = {}
    for file in gain:
        off, on = (results.mean(views.TASK, v, "perplexity", file=file) for v in (views.OFF, "other genes"))
        ratio[file] = on / off - 1
    q = {f: results.mean(views.TASK, "other genes", "q", file=f) for f in gain}
    text = (
        f"k-means on theta {listed(gain)}; perplexity {', '.join(f'{f} {100 * v:+.2f} %' for f, v in ratio.items())}; "
    )
    meets = min(gain.values()) >= -0.02 - SLACK and max(map(abs, ratio.values())) <= 0.01 + SLACK
    return Measured(f"{text}q {listed(q, sign=False)}", meets, min(gain.values()) >= 0.03)


def _same_genes(results: Tables) -> Measured | None:
    gain = _other_view(results, "same genes", TUNING)
    if not gain:
        return None
    return Measured(f"k-means on theta {listed(gain)}", min(gain.values()) >= -0.03 - SLACK, min(gain.values()) >= 0)


def _half(results: Tables) -> Measured | None:
    out, text = [], []
    for name in ("half of the types", "half of the cells"):
        gain = _other_view(results, name, TUNING)
        q = [results.mean(views.TASK, name, "q", file=f) for f in gain]
        if not gain:
            return None
        out.append(min(gain.values()) >= -0.02 - SLACK and all(0 < v < 1 for v in q))
        text.append(f"{name}: q {', '.join(number(v) for v in q)}, k-means on theta {listed(gain)}")
    return Measured("; ".join(text), all(out))


def _graded(results: Tables) -> Measured | None:
    from scipy.stats import spearmanr

    text, marks = [], []
    off = results.mean(views.TASK, views.OFF, "kmeans_ari_theta", file=BUNDLED)
    for gate in ("explained", "overlap"):
        rows = {
            s: [results.mean(views.GRADED, f"{s:g} right, gate {gate}", m) for m in ("q", "kmeans_ari_theta")]
            for s in views.FRACTIONS
        }
        if not known(off, *(v for pair in rows.values() for v in pair)):
            continue
        rank = float(spearmanr(list(rows), [q for q, _ in rows.values()]).statistic)
        worst = min(score - off for _, score in rows.values())
        shown = ", ".join(f"{q:.2f}" for q, _ in rows.values())
        text.append(f"{gate}: q {shown}, rank correlation {rank:.2f}, worst {worst:+.3f}")
        marks.append(rank >= 0.9 - SLACK and worst >= -0.03 - SLACK)
    return Measured("; ".join(text), marks[0]) if marks else None


def _later(results: Tables) -> Measured | None:
    loss = results.values(later.LATER, DEFAULT, "accuracy_joint") - results.values(later.LATER, DEFAULT, "accuracy")
    if loss.empty:
        return None
    alone, same = (results.values(later.LATER, DEFAULT, m) for m in ("alone", "unchanged"))
    each = loss.groupby(level="file").mean()
    text = f"joint minus mapped {listed(dict(each))}; one by one {alone.max():.1e}; parameters "
    text += "unchanged" if same.min() == 1 else "changed"
    return Measured(text, each.max() <= 0.03 + SLACK and alone.max() <= 1e-6 and same.min() == 1, each.max() <= 0.01)


def _missing(results: Tables) -> Measured | None:
    loss = {}
    for fill in ("zero", "mean"):
        whole, part = (results.values(later.MISSING, f"fill {fill}", m) for m in ("accuracy_whole", "accuracy"))
        if whole.empty:
            return None
        loss[fill] = (whole - part).groupby(level="file").mean()
    text = "; ".join(f"fill {k}: {listed(dict(v))}" for k, v in loss.items())
    return Measured(f"loss, {text}", loss["zero"].max() <= 0.05 + SLACK, loss["zero"].max() <= 0.02)


def _technology(results: Tables) -> Measured | None:
    get = {v: results.mean(later.TECHNOLOGY, v, "macro_f1") for v in (DEFAULT, LDA, later.LOGISTIC)}
    if not known(*get.values()):
        return None
    meets = get[DEFAULT] >= get[LDA] + 0.03 - SLACK
    return Measured(f"macro-F1 {listed(get, sign=False)}", meets, get[DEFAULT] >= get[later.LOGISTIC] - 0.03)


def _enriched(results: Tables) -> Measured | None:
    parts, wins = [], []
    for file in enriched.FILES:
        for collection in enriched.COLLECTIONS:
            ours, theirs = (
                results.mean(f"{enriched.TASK}, {collection}", v, "n_unique", file=file) for v in (DEFAULT, NMF)
            )
            if known(ours, theirs):
                parts.append(f"{file} {collection} {ours:.1f} / {theirs:.1f}")
                wins.append(ours >= theirs)
    ranks = [results.mean(enriched.SELECTED, DEFAULT, f"rank {t}") for t in conditions.INTERFERON]
    if not parts or not known(*ranks):
        return None
    text = f"distinct sets, ours / NMF: {'; '.join(parts)}; interferon sets {', '.join(f'{r:.1f}' for r in ranks)}"
    return Measured(text, all(wins) and max(ranks) <= 2 + SLACK)


def _batch(results: Tables) -> Measured | None:
    names = (PCA, batches.UNREGISTERED, batches.REGISTERED)
    left = {v: results.mean(batches.TASK, v, "nmi_batch") for v in names}
    agree = {v: results.mean(batches.TASK, v, "ari") for v in names}
    if not known(*left.values()):
        return None
    text = f"NMI with the batch: {listed(left, sign=False)}; ARI: {listed(agree, sign=False)}"
    meets = left[batches.REGISTERED] <= left[PCA] - 0.05 + SLACK
    meets &= agree[batches.REGISTERED] >= agree[batches.UNREGISTERED] - 0.02 - SLACK
    return Measured(text, meets, left[batches.REGISTERED] < 0.20)


def _epoch(results: Tables) -> Measured | None:
    get = {n: [results.quantity(f"{n}, {f}") for f in TUNING] for n in ("over_lda", "over_linear", "view_over_plain")}
    many = results.quantity(f"epoch_s, topics100, {BUNDLED}")
    if not known(many, *(v for values in get.values() for v in values)):
        return None
    text = "; ".join(f"{k.replace('_', ' ')} {', '.join(number(v) for v in values)}" for k, values in get.items())
    meets = max(get["over_lda"]) <= 1.0 and max(get["over_linear"]) <= 1.2 and max(get["view_over_plain"]) <= 2.2
    return Measured(f"{text}; K = 100 {number(many)} CPU-s", meets and many <= 0.5, max(get["over_lda"]) <= 0.7)


def _plan(results: Tables) -> Measured | None:
    share, ratio = results.quantity("plan_share"), results.quantity("implicit_over_unrolled")
    if not known(share, ratio):
        return None
    text = f"{100 * share:.0f} % of a step; implicit {ratio:.2f} x unrolled"
    return Measured(text, share <= 0.15 and ratio <= 0.5)


def _fit(results: Tables) -> Measured | None:
    wall, cpu, peak = (results.quantity(f"fit, {m}") for m in ("wall_s", "cpu_s", "peak_gib"))
    small, large, query = (results.quantity(f"{t}, cpu_s") for t in ("gate_3000", "gate_12261", "query"))
    if not known(wall, peak, small, large, query):
        return None
    text = (
        f"fit {cpu:.0f} CPU-s ({wall:.0f} s), {peak:.2f} GiB; gate {small:.0f} and {large:.0f} CPU-s; query {query:.0f}"
    )
    return Measured(text, cpu <= 180 and peak <= 1.0 and small <= 15 and large <= 90 and query <= 30)


USE_BARS: tuple[Bar, ...] = (
    Bar("V1 views of noise", "q = 0, bit-equal, 20 of 20", "-", _noise),
    Bar("V2 types and noise as the view", "q >= .5, purity >= .85, k-means on mu + .10", ".89, + .16", _truth),
    Bar("V3 other genes as the view", "k-means >= off - .02, perplexity within 1 %", "+ .03", _other_genes),
    Bar("V4 the same genes as the view", "k-means >= off - .03", ">= off", _same_genes),
    Bar("V5 a view that is half good", "0 < q < 1; >= off - .02", "-", _half),
    Bar("V6 graded views", "rank correlation of q >= .9; never < off - .03", "-", _graded),
    Bar("Q1 20 % of the cells later", "accuracy within .03 of joint; 1e-6; unchanged", ".01", _later),
    Bar("Q2 30 % of the genes missing", "loss <= .05", ".02", _missing),
    Bar("Q3 a technology left out", f"macro-F1 >= {LDA} + .03", ">= PCA, logistic - .03", _technology),
    Bar(
        "P1 interferon in held-out cells",
        "Spearman >= .60, random < .20, >= mean shift - .05, interferon sets the two best, >= 80 % nearer",
        ">= .80, above the mean shift, 12 of the top 20",
        _held_out,
    ),
    Bar(
        "P2 interferon in another donor",
        "Spearman >= .50, random < .20, loss <= .10, >= mean shift - .05",
        ">= .70",
        _donor,
    ),
    Bar("P3 a type left out", "Spearman >= .45 (median), >= mean shift - .05", ">= .60", _type),
    Bar("P4 planted response", "Spearman >= .6, 10 of 15 genes, >= 80 % nearer, random < .2", ".8, 13", _planted),
    Bar("P5 laws of an edit", "identity 1e-6, monotone, other topics equal", "-", _laws),
    Bar("P6 no effect", "a topic selected in <= 5 % of splits", "-", _null),
    Bar("E2 enriched sets", "distinct sets >= NMF's; interferon sets first", "+ 20 %", _enriched),
    Bar("B1 batch", "NMI with the batch <= PCA's - .05, ARI - .02", "< .20", _batch),
    Bar("speed of an epoch", "<= 1.0 x LDA, <= 1.2 x LinearSCVI; view <= 2.2 x; K = 100 <= .5 s", ".7 x", _epoch),
    Bar("speed of the plan", "<= 15 % of a step; implicit <= .5 x unrolled", "-", _plan),
    Bar(
        "a fit, the gate, a query",
        "3,000 x 2,000: <= 3 min, <= 1 GB; gate <= 15 s and 90 s; 100,000 cells <= 30 s",
        "-",
        _fit,
    ),
)

BARS = (*TOPIC_BARS, *USE_BARS)
"""The rows of the acceptance table, in its order."""
