"""The benchmark of scSiameseClu on toys: shared warm-ups, changes that change, the rule, scores, bars, the page."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import cellsmith as cs
from cellsmith._errors import SetupError
from cellsmith.benchmark._clustering.cases import FILES, case_of
from cellsmith.benchmark._clustering.compare import COLUMNS, FACTS
from cellsmith.benchmark._clustering.methods import PCA, SCVI, SIAMESE
from cellsmith.benchmark._clustering.results import MAIN, Clusters
from cellsmith.benchmark._clustering.scoring import GIVEN, KMEANS, MATCHED, OWN
from cellsmith.benchmark._missingness.results import Tables
from cellsmith.benchmark._scsiameseclu import ablation, bars, later, paper, peer, structure, use_bars
from cellsmith.benchmark._scsiameseclu.fits import Fit, Warmups, fit
from cellsmith.benchmark._scsiameseclu.report import report
from cellsmith.benchmark._scsiameseclu.results import against_default, named
from cellsmith.benchmark._scsiameseclu.scoring import accuracy, best_f1, scores
from cellsmith.benchmark._scsiameseclu.variants import AUTO, BATCHED, CHANGES, DEFAULT, Change
from cellsmith.benchmark._store import SPEED, TASKS, Store

SHORT = partial(fit, max_epochs={"warmup": 3, "transport": 3})


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cells():
    return cs.datasets.toy_counts(120, 60, n_types=4, n_batches=2, rng=0)


@pytest.fixture(scope="module")
def case(cells):
    return case_of(cells, file="toy")


@pytest.mark.parametrize("name", ["no queue", "no transport", "no latent term", "given number by merging"])
def test_a_shared_warmup_gives_what_a_whole_training_gives(case, name):
    warmups, change = Warmups(SHORT), CHANGES[name]
    first = warmups.fit(case, CHANGES[DEFAULT] if change.late else change, AUTO, seed=0)
    shared = warmups.fit(case, change, "given", seed=0)
    alone = SHORT(case.counts, n_clusters=case.n_types, change=change)
    assert first.model.begin is None
    assert shared.model.begin is not None
    assert alone.model.begin is None
    np.testing.assert_array_equal(shared.labels, alone.labels)
    np.testing.assert_array_equal(shared.model.get_prototypes(), alone.model.get_prototypes())
    other = warmups.fit(case, change, "given", seed=1)
    assert other.model.begin is None  # another seed has another warm-up


@pytest.mark.parametrize("name", [n for n, c in CHANGES.items() if c.module or c.walks != "both" or c.random_graph])
def test_changes_inside_the_model_reach_its_training(case, name):
    change = CHANGES[name]
    # Only a wrong weight shows the mask: of the cell term alone.
    options = {"cell_weight": 10.0} if "masks" in change.module else {}
    plain = Change(options)
    changed = Change({**change.options, **options}, change.private, change.module, change.walks, change.random_graph)
    one, two = (SHORT(case.counts, n_clusters=4, change=c).model.get_latent_representation() for c in (plain, changed))
    assert not np.array_equal(one, two)


def test_batch_rows_leave_the_batch_out_of_graph_or_decoder(cells):
    case = case_of(cells, file="toy", batch_key="batch")
    found = {name: Warmups(SHORT).fit(case, BATCHED[name], AUTO, seed=0).model for name in list(BATCHED)[2:]}
    assert [m.module.n_batch_columns for m in found.values()] == [2, 0]
    assert [m._batch_balanced for m in found.values()] == [False, True]


def test_scores_of_known_clusters(case):
    codes = pd.factorize(case.labels)[0]
    assert accuracy(case.labels, codes) == 1
    assert accuracy(["a", "a", "b", "b"], [0, 0, 0, 1]) == 0.75
    assert best_f1([True, True, False, False], [5, 5, 5, 1]) == pytest.approx(0.8)
    wrong = np.zeros_like(codes)
    found = scores(case, Fit(None, wrong, [codes, wrong], 1.0))
    assert found["peeking"] == pytest.approx(1 - found["acc"])
    assert found["ari"] == 0
    assert "rare_f1" not in found  # no type is rare


def test_ablation_rows_are_resumed_and_unknown_ones_refused(cells, tmp_path, monkeypatch):
    calls = []

    def train(counts, **options):
        calls.append(options["change"])
        return SHORT(counts, **options)

    monkeypatch.setattr(ablation, "Warmups", lambda: Warmups(train))
    wanted = {"changes": [DEFAULT, "no merging"], "seeds": [0], "out": tmp_path / "rows.csv"}
    table = cs.benchmark.scsiameseclu_ablation(cells, **wanted)
    assert set(zip(table["task"], table["variant"], strict=True)) == {
        ("ablation, auto", DEFAULT),
        ("ablation, given", DEFAULT),
        ("ablation, auto", "no merging"),
    }
    assert len(calls) == 3
    cs.benchmark.scsiameseclu_ablation(cells, **wanted)
    assert len(calls) == 3
    with pytest.raises(SetupError, match="no row 'no swop'"):
        cs.benchmark.scsiameseclu_ablation(cells, changes=["no swop"])
    with pytest.raises(SetupError, match="labels_key='kind'"):
        cs.benchmark.scsiameseclu_ablation(cells, labels_key="kind")


@pytest.mark.parametrize(
    ("gaps", "adds", "replaces"),
    [
        ((0.02, 0.0, 0.0, 0.0), True, True),
        ((0.02, 0.0, -0.02, 0.0), True, False),
        ((0.0, 0.02, 0.0, 0.0), True, True),
        ((0.005, 0.0, 0.0, 0.0), True, False),
        ((-0.02, 0.0, 0.0, 0.0), False, False),  # what is taken away was needed
        ((-0.005, 0.0, 0.0, 0.0), False, True),  # it was not
        ((-0.02, 0.0, 0.02, 0.0), False, True),  # it did harm elsewhere
        ((np.nan, 0.0, 0.0, 0.0), False, None),
    ],
)
def test_rule(gaps, adds, replaces):
    names = ("ari", "rare_f1", "nmi", "macro_f1")
    assert named(dict(zip(names, gaps, strict=True)), Change(adds=adds)) is replaces


def _store(rows):
    store = Store(TASKS)
    for task, file, seed, variant, values in rows:
        store.record(task, SimpleNamespace(file=file, seed=seed), variant, values)
    return store.table


def test_differences_pair_file_seed_and_way():
    rows = []
    for file, start in (("worm_neuron", 0.2), ("young_kidney", 0.7)):
        for seed in (0, 1):
            for way in ("auto", "given"):
                value = start + 0.1 * (way == "given") + 0.01 * seed
                rows.append((ablation.TASK + way, file, seed, DEFAULT, {"ari": value}))
                rows.append((ablation.TASK + way, file, seed, "no queue", {"ari": value + 0.02}))
    rows.append((ablation.TASK + "auto", "pbmc_facs", 0, "no queue", {"ari": 1.0}))  # without its pair
    found = against_default(Tables(_store(rows), pd.DataFrame(columns=SPEED)), "no queue", "ari")
    assert (round(found.mean, 6), found.runs) == (0.02, 4)
    assert found.high - found.low < 1e-6


def _pages(ours: float, theirs: float, **more: float) -> bars.Pages:
    """Results in which all files have the same scores; five seeds."""
    rows, facts, own = [], [], []
    for file in FILES:
        for seed in range(5):
            head = {"cells": MAIN, "file": file, "seed": seed}
            for method, readings in {SIAMESE: (OWN, GIVEN), PCA: (KMEANS, MATCHED, "Leiden 0.5", "Leiden 1.0")}.items():
                value = ours if method == SIAMESE else theirs
                scored = dict.fromkeys(("ari", "nmi", "macro_f1", "rare_f1"), value)
                scored |= {"n_clusters": 10.0, "nmi_batch": more.get("batch", 0.05)}
                rows += [{**head, "method": method, "reading": r, **scored} for r in readings]
            rows.append({**rows[-1], "method": SCVI, "reading": KMEANS})
            rows.append({**rows[-1], "reading": "Leiden 1.0"})
            facts.append({**head, "method": SIAMESE, "metric": "n_types", "value": 10.0})
            own.append((peer.TASK, file, seed, peer.SMOOTHED, {"ari": theirs, "nmi": theirs}))
    for file in ablation.TUNING:
        values = {"acc": ours, "rare_f1": ours, "peeking": 0.0}
        own.append((ablation.TASK + GIVEN, file, 0, DEFAULT, values))
    for file in paper.FILES:
        own.append((paper.TASK, file, 0, paper.DEFAULT, {"ari": ours, "us_per_cell_and_epoch": 1.0, "peeking": 0.0}))
        own.append((paper.TASK, file, 0, paper.PAPER, {"ari": theirs, "us_per_cell_and_epoch": 2.0, "diverged": 0.0}))
    for t in range(structure.N_TYPES):
        own.append((f"{structure.RARE}, {t}", "pbmc_facs", 0, DEFAULT, {"f1": ours}))
        own.append((f"{structure.RARE}, {t}", "pbmc_facs", 0, structure.LEIDEN, {"f1": theirs}))
    for depth in structure.DEPTHS:
        own.append((structure.NULL, str(depth), 0, DEFAULT, {"n_clusters": 1.0 if ours > theirs else 4.0}))
    for file in later.FILES:
        values = {"ari_training": 0.9, "ari_held_out": ours, "agreement_with_refit": ours}
        own.append((later.HELD_OUT, file, 0, DEFAULT, values))
    speed = pd.DataFrame([("transport, share of a step", 1 - ours, "")], columns=SPEED)
    clusters = Clusters(pd.DataFrame(rows, columns=COLUMNS), pd.DataFrame(facts, columns=FACTS))
    return bars.Pages(Tables(_store(own), speed), clusters)


@pytest.mark.parametrize("good", [True, False])
def test_bars_pass_and_fail_with_the_scores(good):
    pages = _pages(0.98, 0.70) if good else _pages(0.60, 0.70, batch=0.5)
    judged = {bar.check.split()[0]: bar.measure(pages) for bar in use_bars.BARS}
    for name in ("A1", "A2", "A3", "A4", "A9", "A10", "A11", "A12", "transport,"):
        assert judged[name] is not None, name
        assert bool(judged[name].meets) is good, (name, judged[name].text)
    assert judged["A7"].meets  # all seeds alike
    assert judged["A15"].meets
    assert not judged["A5"].meets  # five runs of 25
    assert judged["A13"] is None


def test_page_says_what_was_not_run_and_carries_the_notes(tmp_path):
    (tmp_path / "_scsiameseclu_notes.md").write_text("---\norphan: true\n---\nby hand", encoding="utf-8")
    text = report(tmp_path).read_text(encoding="utf-8")
    assert "by hand" in text
    assert "orphan" not in text
    assert text.count("**not run**") > 15
    assert "* ablation, no queue: 0 of 9 runs" in text


def test_twenty_cells_and_no_structure(monkeypatch):
    population = structure._population(500, 0)
    assert population.shape == (structure.NULL_CELLS, structure.NULL_GENES)
    assert 400 < population.X.sum(axis=1).mean() < 650
    seen = []

    def oracle(cells, *, seed):
        seen.append(cells.n_obs)
        return Fit(None, (np.arange(cells.n_obs) % 3).astype(str), [], 0.0)

    monkeypatch.setattr(structure, "fit", oracle)
    store = Store(TASKS)
    structure.nulls([0], store=store)
    structure.nulls([0], store=store)
    assert seen == [structure.NULL_CELLS] * len(structure.DEPTHS)
    assert set(store.table.loc[store.table["metric"] == "n_clusters", "value"]) == {3.0}
