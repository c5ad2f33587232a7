"""Topics switched in cells that the model never saw: interferon, donors, types left out, and genes that we planted."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
from anndata import AnnData
from scipy import sparse
from scipy.stats import spearmanr

from cellsmith._rng import Streams
from cellsmith.benchmark._store import Store
from cellsmith.benchmark._topics.cases import BUNDLED, Case, prepare, raw
from cellsmith.benchmark._topics.ours import ABLATIONS, DEFAULT, VARIANTS, fit_model

__all__ = ["FILE", "LIKELIHOODS", "RANDOM", "SHIFT", "donors", "held_out_cells", "held_out_types", "laws", "planted"]

logger = logging.getLogger("cellsmith")

FILE, DONOR_FILE = "kang_ifnb", "kang_stim_4samples"
SHIFT, RANDOM = "mean shift", "random topics"
BY_TYPE, SAME = "SCE2TM, shift of the type", "training cells of the type"
LENIENT, EVERY = "SCE2TM, min_effect 0.5", "SCE2TM, all topics"
LIKELIHOODS = (DEFAULT, "SCE2TM, multinomial", "SCE2TM, nb")
GENES, LAWS, TOY = "planted genes", "laws of an edit", "toy"
N_TOPICS, TRAIN_SHARE, MIN_CELLS, MIN_DONOR_CELLS, MAX_TYPES = 20, 0.7, 30, 20, 5
N_RANDOM, N_RAISED, N_COMPONENTS, MIN_SEEN = 20, 50, 30, 10
INTERFERON = ("HALLMARK_INTERFERON_ALPHA_RESPONSE", "HALLMARK_INTERFERON_GAMMA_RESPONSE")
HALLMARK = Path("genesets") / "h.all.v7.0.symbols.gmt"
Rows = npt.NDArray[np.intp]


def on_scale(counts: sparse.csr_matrix) -> npt.NDArray[np.float64]:
    """Return counts (n, V) at 10,000 a cell, dense."""
    x = np.asarray(counts.todense(), dtype=np.float64)
    return x * (1e4 / np.clip(x.sum(axis=1, keepdims=True), 1.0, None))


def change(after: npt.NDArray[np.float64], before: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return log2(1 + mean after) - log2(1 + mean before) of two groups of cells on the 1e4 scale, (V,)."""
    return np.log2(1.0 + after.mean(axis=0)) - np.log2(1.0 + before.mean(axis=0))


@dataclass(frozen=True, eq=False)
class Task:
    """Cells to train on, and cells whose answer is known.

    Parameters
    ----------
    name, file, seed
        Names in the tables.
    train, test
        Cells with counts of the modelled genes; ``.obs`` has ``condition`` and, for the scoring, ``cell_type``.
    group, reference
        Values of ``condition``: what is to be predicted, and what it starts from.
    min_cells
        A type is scored with at least so many test cells on both sides.
    """

    name: str
    file: str
    seed: int
    train: AnnData
    test: AnnData
    group: str
    reference: str
    min_cells: int

    def types(self) -> list[str]:
        """Return the types with enough test cells on both sides."""
        table = self.test.obs.groupby(["cell_type", "condition"], observed=False).size().unstack(fill_value=0)
        enough = (table[[self.group, self.reference]] >= self.min_cells).all(axis=1)
        return [str(t) for t in table.index[enough]]

    def rows(self, cell_type: str, condition: str) -> Rows:
        """Return the test cells of a type in a condition."""
        obs = self.test.obs
        return np.flatnonzero((obs["cell_type"] == cell_type).to_numpy() & (obs["condition"] == condition).to_numpy())

    @property
    def part(self) -> Any:
        """What a store names a row by."""
        return SimpleNamespace(file=self.file, seed=self.seed)


def cells_of(case: Case) -> AnnData:
    """Return the counts of a case with condition and type beside them."""
    cells = case.cells.copy()
    cells.obs["cell_type"] = np.asarray(case.labels, dtype=str)
    for name in case.obs:
        cells.obs[name] = case.obs[name].astype(str).to_numpy()
    return cells


def cut(cells: AnnData, train: npt.NDArray[np.bool_], test: npt.NDArray[np.bool_]) -> tuple[AnnData, AnnData]:
    """Return training and test cells with the genes that at least ten training cells have: the model drops others."""
    seen = np.asarray((cells[train].X > 0).sum(axis=0)).ravel() >= MIN_SEEN
    return cells[train][:, seen].copy(), cells[test][:, seen].copy()


def stratified(obs: Any, keys: Sequence[str], seed: int, share: float = TRAIN_SHARE) -> npt.NDArray[np.bool_]:
    """Return a mask of training cells with the same share of every combination of columns."""
    rng, train = Streams(seed).numpy("split"), np.zeros(len(obs), dtype=bool)
    for rows in obs.groupby(list(keys), observed=True).indices.values():
        train[rng.permutation(rows)[: round(share * len(rows))]] = True
    return train


def random_shift(task: Task, model: Any, n: int, truth: Mapping[str, npt.NDArray[np.float64]]) -> float:
    """Return the median over types of the correlation that random topics reach, mean of 20 draws."""
    names = model.get_topic_proportions(indices=np.arange(2)).columns.to_numpy()
    rng, found = Streams(task.seed).numpy("random topics"), []
    for _ in range(N_RANDOM):
        drawn = rng.choice(names, n, replace=False).tolist()
        sides = {
            "source": (task.train.obs["condition"] == task.reference).to_numpy(),
            "target": (task.train.obs["condition"] == task.group).to_numpy(),
        }
        values = predicted(task, model, drawn, truth, **sides)
        found.append(float(np.median([correlation(values[t], truth[t]) for t in truth])))
    return float(np.mean(found))


def expected(model: Any, cells: AnnData, rows: Rows, topics: Any, **options: Any) -> npt.NDArray[np.float64]:
    """Return the expression of cells with topics switched, on the 1e4 scale (n, V)."""
    answer = model.perturb_topics(cells, indices=rows, topics=topics, op="swap_to_group", **options)
    return np.asarray(answer.to_adata().X, dtype=np.float64)


def predicted(
    task: Task, model: Any, topics: Any, types: Iterable[str], **options: Any
) -> dict[str, npt.NDArray[np.float64]]:
    """Return the predicted fold changes (V,) of the reference cells of each type; all are switched in one call."""
    rows = {name: task.rows(name, task.reference) for name in types}
    order = np.concatenate(list(rows.values()))
    after, before = (expected(model, task.test, order, topics, strength=s, **options) for s in (1.0, 0.0))
    parts = np.split(np.arange(len(order)), np.cumsum([len(r) for r in rows.values()])[:-1])
    return {name: change(after[part], before[part]) for name, part in zip(rows, parts, strict=True)}


def correlation(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """Return Spearman's correlation, 0 where one side is constant."""
    return float(np.nan_to_num(spearmanr(a, b).statistic)) if len(a) > 2 else float("nan")


def run_task(task: Task, *, store: Store, directory: Path | None, variants: Sequence[str] = (DEFAULT,)) -> None:
    """Train on one side, switch the selected topics in the reference cells of the other, and hold against the truth.

    Parameters
    ----------
    task
        The task.
    store
        Where the rows go.
    directory
        The benchmark data directory with the Hallmark sets; None: no enrichment.
    variants
        Names of models.
    """
    truth = {
        t: change(on_scale(task.test.X[task.rows(t, task.group)]), on_scale(task.test.X[task.rows(t, task.reference)]))
        for t in task.types()
    }
    if not store.has(task=task.name, file=task.file, seed=task.seed, variant=SHIFT):
        _record_shift(task, truth, store)
    for variant in variants:
        if store.has(task=task.name, file=task.file, seed=task.seed, variant=variant):
            continue
        cells = task.train.copy()
        model = fit_model(cells, N_TOPICS, task.seed, variant=VARIANTS.get(variant) or ABLATIONS[variant])
        frame = model.select_topics("condition", task.group, task.reference)
        values: dict[str, float] = {"n_selected": float(len(frame)), "n_types": float(len(truth))}
        if len(frame) == 0:
            store.record(task.name, task.part, variant, {**values, "spearman": 0.0})
            continue
        found = predicted(task, model, frame, truth)
        values |= _scores(found, truth)
        values["random"] = random_shift(task, model, len(frame), truth)
        values["nearer"] = nearer(task, model, frame)
        if directory is not None:
            values |= enrichment(np.median(list(found.values()), axis=0), task.train.var_names, directory)
        store.record(task.name, task.part, variant, values)
        if variant == DEFAULT:
            _by_type(task, model, frame, truth, store)
            _lenient(task, model, truth, store)


def _by_type(task: Task, model: Any, frame: Any, truth: Mapping[str, Any], store: Store) -> None:
    """Record the same with the shift of each type, for which the user names a column of types."""
    found = predicted(task, model, frame, truth, by="cell_type")
    store.record(task.name, task.part, BY_TYPE, _scores(found, truth))


def _lenient(task: Task, model: Any, truth: Mapping[str, Any], store: Store) -> None:
    """Record the same with a smaller effect asked of a topic, and with all topics switched."""
    frame = model.select_topics("condition", task.group, task.reference, min_effect=0.5)
    every = model.select_topics("condition", task.group, task.reference, fdr=1.1, min_effect=0.0)
    for variant, chosen in ((LENIENT, frame), (EVERY, every)):
        if len(chosen):
            values = _scores(predicted(task, model, chosen, truth), truth)
            store.record(task.name, task.part, variant, {**values, "n_selected": float(len(chosen))})


def _scores(found: Mapping[str, Any], truth: Mapping[str, Any]) -> dict[str, float]:
    each = {t: correlation(found[t], truth[t]) for t in truth}
    top = [len(np.intersect1d(np.argsort(-found[t])[:20], np.argsort(-truth[t])[:20])) for t in truth]
    slope = [float((found[t] @ truth[t]) / (truth[t] @ truth[t])) for t in truth]
    values = {"spearman": float(np.median(list(each.values()))), "top20": float(np.median(top))}
    values["slope"] = float(np.median(slope))
    return values | {f"spearman {t}": v for t, v in each.items()}


def _record_shift(task: Task, truth: Mapping[str, Any], store: Store) -> None:
    """Record two baselines: the fold change of all training cells, and their mean difference added to the controls.

    Beside them stands the fold change of the training cells of the same type: how far the truth, which is noisy, agrees
    with itself.
    """
    obs = task.train.obs["condition"].to_numpy()
    sides = [on_scale(task.train.X[np.flatnonzero(obs == c)]) for c in (task.group, task.reference)]
    pooled, difference = change(*sides), sides[0].mean(axis=0) - sides[1].mean(axis=0)
    found: dict[str, dict[str, Any]] = {SHIFT: {}, f"{SHIFT}, added": {}}
    for name in truth:
        before = on_scale(task.test.X[task.rows(name, task.reference)]).mean(axis=0)
        found[SHIFT][name] = pooled
        found[f"{SHIFT}, added"][name] = np.log2(1 + np.clip(before + difference, 0, None)) - np.log2(1 + before)
    kinds, own = task.train.obs["cell_type"].to_numpy(), {}
    for name in truth:
        rows = [np.flatnonzero((kinds == name) & (obs == c)) for c in (task.group, task.reference)]
        if min(map(len, rows)) > 0:
            own[name] = change(*(on_scale(task.train.X[r]) for r in rows))
    if len(own) == len(truth):
        found[SAME] = own
    for variant, each in found.items():
        store.record(task.name, task.part, variant, _scores(each, truth))


def nearer(task: Task, model: Any, frame: Any) -> float:
    """Return the share of switched cells that lie nearer to the observed group centroid of their type (PCA 30)."""
    from sklearn.decomposition import PCA

    log = np.log1p(on_scale(task.train.X))
    space = PCA(min(N_COMPONENTS, *(s - 1 for s in log.shape)), random_state=task.seed).fit(log)
    hits = []
    for name in task.types():
        centres = [
            space.transform(np.log1p(on_scale(task.test.X[task.rows(name, c)]))).mean(axis=0)
            for c in (task.group, task.reference)
        ]
        rows = task.rows(name, task.reference)
        place = space.transform(np.log1p(expected(model, task.test, rows, frame)))
        gaps = [np.linalg.norm(place - centre, axis=1) for centre in centres]
        hits.append(gaps[0] < gaps[1])
    return float(np.concatenate(hits).mean())


def enrichment(values: npt.NDArray[Any], genes: Any, directory: Path) -> dict[str, float]:
    """Return the ranks of the two interferon sets among the Hallmark sets, by ORA of the 50 genes most raised."""
    from cellsmith.math.enrichment import over_representation, parse_gmt, sets_within

    names = np.asarray(genes, dtype=object)
    with (directory / HALLMARK).open(encoding="utf-8") as lines:
        sets, _ = sets_within(parse_gmt(lines), names.tolist(), min_size=3)
    raised = names[np.argsort(-values, kind="stable")[:N_RAISED]].tolist()
    p = over_representation([raised], sets, names.tolist()).p[0]
    order = [list(sets)[i] for i in np.argsort(p, kind="stable")]
    return {f"rank {t}": float(order.index(t) + 1) for t in INTERFERON if t in order}


def held_out_cells(
    seeds: Iterable[int], *, directory: Path, store: Store, variants: Sequence[str] = LIKELIHOODS
) -> None:
    """Predict stimulated from control cells that were not trained on; 70 to 30 inside each type and condition."""
    adata = raw(directory, FILE)
    for seed in seeds:
        train = stratified(adata.obs, ["cell_type", "condition"], seed)
        cells = cells_of(prepare(adata, file=FILE, choose=train))
        task = Task("held-out cells", FILE, seed, *cut(cells, train, ~train), "STIM", "CTRL", MIN_CELLS)
        run_task(task, store=store, directory=directory, variants=variants)


def donors(seeds: Iterable[int], *, directory: Path, store: Store, variants: Sequence[str] = (DEFAULT,)) -> None:
    """Train on one donor's two conditions, predict the other donor's; beside it a split within the donor."""
    adata = raw(directory, DONOR_FILE)
    donor = adata.obs["batch"].astype(str).str.removeprefix("ctrl").str.removeprefix("stim").to_numpy()
    for seed in seeds:
        for own in np.unique(donor):
            split = stratified(adata.obs, ["cell_type", "batch"], seed)
            cuts = {
                f"donor, to {own}": (donor != own, donor == own),
                f"donor, within {own}": ((donor == own) & split, (donor == own) & ~split),
            }
            for name, (train, test) in cuts.items():
                cells = cells_of(prepare(adata, file=DONOR_FILE, choose=train))
                least = MIN_DONOR_CELLS if "to " in name else MIN_DONOR_CELLS // 2
                task = Task(name, DONOR_FILE, seed, *cut(cells, train, test), "stim", "ctrl", least)
                run_task(task, store=store, directory=None, variants=variants)


def held_out_types(
    seeds: Iterable[int], *, directory: Path, store: Store, variants: Sequence[str] = (DEFAULT,)
) -> None:
    """Leave the stimulated cells of each of the five largest types out of the training, and predict them."""
    adata = raw(directory, FILE)
    largest = adata.obs["cell_type"].astype(str).value_counts().index[:MAX_TYPES]
    for seed in seeds:
        for name in largest:
            own = (adata.obs["cell_type"].astype(str) == name).to_numpy()
            train = ~(own & (adata.obs["condition"] == "STIM").to_numpy())
            cells = cells_of(prepare(adata, file=FILE, choose=train))
            task = Task(f"held-out type, {name}", FILE, seed, *cut(cells, train, own), "STIM", "CTRL", MIN_CELLS)
            run_task(task, store=store, directory=None, variants=variants)


def plant(counts: sparse.csr_matrix, seed: int, n: int = 15) -> tuple[sparse.csr_matrix, npt.NDArray[Any], Rows]:
    """Multiply the rate of genes by 4 to 8 in half of the cells, by a Poisson draw of the additional counts.

    Returns
    -------
    Counts (n, V), which cells were treated (n,), which genes (15,).
    """
    rng = Streams(seed).numpy("planted")
    seen = np.asarray((counts > 0).sum(axis=0)).ravel() >= 0.05 * counts.shape[0]
    genes = np.sort(rng.choice(np.flatnonzero(seen), n, replace=False))
    treated = np.zeros(counts.shape[0], dtype=bool)
    treated[rng.permutation(counts.shape[0])[: counts.shape[0] // 2]] = True
    x = counts.toarray()
    part = np.ix_(treated, genes)
    x[part] += rng.poisson(x[part] * (rng.uniform(4.0, 8.0, n) - 1.0))
    return sparse.csr_matrix(x, dtype=np.float32), treated, genes


def planted(seeds: Iterable[int], *, store: Store, variants: Sequence[str] = (DEFAULT,)) -> None:
    """Plant a response in scanpy's bundled cells, predict it in held-out cells, and count the planted genes found."""
    adata = raw(Path(), BUNDLED)
    for seed in seeds:
        counts, treated, genes = plant(sparse.csr_matrix(adata.X), seed)
        cells = AnnData(counts, obs=adata.obs[["cell_type"]].astype(str), var=adata.var.copy())
        cells.obs["condition"] = np.where(treated, "treated", "untreated")
        train = stratified(cells.obs, ["cell_type", "condition"], seed)
        # types are too small to be scored one by one, and the planted response knows no type
        everyone = cells.copy()
        everyone.obs["cell_type"] = "all"
        task = Task("planted", BUNDLED, seed, *cut(everyone, train, ~train), "treated", "untreated", MIN_CELLS)
        run_task(task, store=store, directory=None, variants=variants)
        names = adata.var_names[genes]
        _record_planted(task, np.flatnonzero(task.train.var_names.isin(names)), store=store)


def _record_planted(task: Task, genes: Rows, *, store: Store) -> None:
    """Count planted genes among the 30 most raised."""
    if store.has(task=task.name, file=task.file, seed=task.seed, variant=GENES):
        return
    model = fit_model(task.train.copy(), N_TOPICS, task.seed)
    frame = model.select_topics("condition", task.group, task.reference)
    hits = 0
    if len(frame):
        rows = task.rows("all", task.reference)
        answer = model.perturb_topics(task.test, indices=rows, topics=frame, op="swap_to_group").logfc.to_numpy()[0]
        hits = len(np.intersect1d(np.argsort(-answer)[:30], genes))
    store.record(task.name, task.part, GENES, {"found": float(hits)})


def laws(seeds: Iterable[int], *, store: Store) -> None:
    """Check on toys with a known response that strength 0 is the identity, planted genes rise with it, and the rest.

    Parameters
    ----------
    seeds
        Seeds of toys and models.
    store
        Where the rows go.
    """
    from cellsmith.datasets import toy_perturbation

    for seed in seeds:
        if store.has(task=LAWS, file=TOY, seed=seed):
            continue
        cells = toy_perturbation(600, 200, rng=seed)
        model = fit_model(cells, N_TOPICS, seed)
        # fewer topics than all, so that some have to stay as they are
        frame = model.select_topics("condition", "stim", "ctrl").head(N_TOPICS // 2)
        rows = np.flatnonzero((cells.obs["condition"] == "ctrl").to_numpy())
        options = {"indices": rows, "topics": frame, "op": "swap_to_group"}
        steps = [model.perturb_topics(strength=s, **options) for s in (0.0, 0.25, 0.5, 1.0)]
        logfc = np.stack([s.logfc.to_numpy(dtype=np.float64)[0] for s in steps])
        names = steps[0].logfc.columns
        raised = np.flatnonzero((cells.var.loc[names, "response"] > 0).to_numpy() & (logfc[-1] > 0))
        others = ~steps[0].mu_after.columns.isin(frame.index)
        kept = model.get_latent_representation(kind="mu", indices=rows)[:, others]
        values = {
            "n_selected": float(len(frame)),
            "n_raised": float(len(raised)),
            "identity": float(np.abs(logfc[0]).max()),
            "monotone": float((np.diff(logfc[:, raised], axis=0) >= -1e-9).all(axis=0).mean()),
            "untouched": float(np.abs(steps[-1].mu_after.to_numpy()[:, others] - kept).max()),
        }
        store.record(LAWS, SimpleNamespace(file=TOY, seed=seed), DEFAULT, values)
