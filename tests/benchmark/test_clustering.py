"""The clustering benchmark on toys: what methods may see, readings of an oracle, resumed tables, bars, the page."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import cellsmith as cs
from cellsmith._errors import SetupError
from cellsmith.benchmark._clustering import bars
from cellsmith.benchmark._clustering.cases import FILES, case_of
from cellsmith.benchmark._clustering.compare import BETWEEN, COLUMNS, FACTS, pick, run_case
from cellsmith.benchmark._clustering.methods import (
    KNN_GRAPH,
    LEARNED,
    METHODS,
    PCA,
    RANDOM_GRAPH,
    SCAGC,
    SCVI,
    UNTRAINED,
    Found,
    load_found,
    save_found,
)
from cellsmith.benchmark._clustering.report import report
from cellsmith.benchmark._clustering.results import MAIN, Clusters
from cellsmith.benchmark._clustering.scoring import (
    GRID,
    KMEANS,
    KNN,
    MATCHED,
    MERGED,
    MERGED_TO,
    OWN,
    neighbor_graph,
    readings,
)
from cellsmith.benchmark._store import SPEED, Store


@pytest.fixture(scope="module")
def cells():
    return cs.datasets.toy_counts(120, 60, n_types=3, n_batches=2, rng=0)


@pytest.fixture(scope="module")
def case(cells):
    return case_of(cells, file="toy", batch_key="batch")


def blobs(counts, batch_key, seed, n_clusters):
    """Put cells where their type is: the test's own oracle knows the order of the toy."""
    return Found(blobs.latent, labels={"auto": blobs.labels})


@pytest.fixture(autouse=True)
def oracle(case):
    codes = pd.factorize(case.labels)[0]
    noise = np.random.default_rng(0).normal(size=(len(codes), 3))
    blobs.latent, blobs.labels = (8 * np.eye(3)[codes] + noise).astype(np.float32), codes


def test_methods_see_counts_and_batch_and_no_type(case, cells):
    assert list(case.counts.obs.columns) == ["batch"]
    np.testing.assert_array_equal(case.counts.X.toarray(), cells.X.toarray())
    assert case.n_types == 3
    few = case_of(cells, file="toy", max_cells=50)
    assert few.counts.n_obs == len(few.labels) == 50
    assert list(few.counts.obs_names) == list(case_of(cells, file="toy", max_cells=50).counts.obs_names)
    assert list(few.counts.obs.columns) == []


def test_readings_of_an_oracle(case):
    found = readings(case, blobs(None, None, 0, 3), 0)
    assert set(found) == {*(f"Leiden {r}" for r in GRID), MATCHED, KMEANS, MERGED, MERGED_TO, OWN}
    assert all(cs.metrics.ari(case.labels, found[r]) == 1 for r in (MATCHED, KMEANS, MERGED_TO, OWN, "Leiden 0.2"))
    own = Found(blobs.latent, neighbor_graph(blobs.latent, 0))
    twice = readings(case, own, 0)
    np.testing.assert_array_equal(twice[f"{KNN}Leiden 0.5"], found["Leiden 0.5"])
    np.testing.assert_array_equal(twice["Leiden 0.5"], found["Leiden 0.5"])


def test_tables_resume_and_seeds_are_compared(case, tmp_path):
    calls = []

    def counted(*given):
        calls.append(given[2])
        return blobs(*given)

    for _ in range(2):
        store, further = Store(COLUMNS, tmp_path / "a.csv"), Store(FACTS, tmp_path / "b.csv")
        for seed in (0, 1):
            where = {"store": store, "further": further, "cells": MAIN, "fits": tmp_path / "fits"}
            run_case(case, {"mine": counted}, seed, **where)
    assert calls == [0, 1]
    assert store.table.shape == (2 * 12, len(COLUMNS))
    assert (store.table.loc[store.table["reading"] == OWN, "ari"] == 1).all()
    facts = further.table.set_index(["seed", "metric"])["value"]
    assert facts[1, BETWEEN + "0"] == 1
    assert facts[0, "n_types"] == 3
    assert facts[0, "knn_homophily"] == 1
    # what was found is read, not found again
    again = Store(COLUMNS)
    run_case(case, {"mine": counted}, 1, **where | {"store": again, "further": Store(FACTS)})
    assert calls == [0, 1]
    before = store.table[store.table["seed"] == 1].set_index("reading")
    pd.testing.assert_series_equal(again.table.set_index("reading")["ari"], before["ari"])


def test_what_a_method_found_is_kept(tmp_path):
    found = Found(blobs.latent, neighbor_graph(blobs.latent, 0), {"auto": blobs.labels})
    for each in (found, Found(graph=found.graph), Found(blobs.latent)):
        save_found(tmp_path / "x.npz", each, {"seconds": 2.0})
        back, cost = load_found(tmp_path / "x.npz")
        assert cost == {"seconds": 2.0}
        assert set(back.labels) == set(each.labels)
        assert (back.graph is None) == (each.graph is None)
        assert (back.latent is None) == (each.latent is None)
    save_found(tmp_path / "x.npz", found, {})
    back = load_found(tmp_path / "x.npz")[0]
    np.testing.assert_array_equal(back.latent, found.latent)
    assert (back.graph != found.graph).nnz == 0
    assert back.labels["auto"].tolist() == [str(v) for v in blobs.labels]


def test_own_method_beside_the_peers_and_unknown_names(cells):
    table = cs.benchmark.clustering(cells, methods=["PCA 50"], batch_key="batch", seeds=(0,))
    assert set(table["method"]) == {PCA}
    assert table["nmi_batch"].notna().all()
    assert "mine" in pick({"mine": blobs})
    with pytest.raises(SetupError, match="SCAGC"):
        pick("SCAG")
    with pytest.raises(SetupError, match="'batch'"):
        cs.benchmark.clustering(cells, batch_key="bach")


def _tables(shift):
    """Tables in which every method scores .6, SCAGC `shift` more on its own graph, with a learned graph on both."""
    rows, facts = [], []
    for file in FILES:
        for method in METHODS:
            high, near = 0.6 + shift * (method in (SCAGC, LEARNED)), 0.6 + shift * (method == LEARNED)
            names = [*(f"Leiden {r}" for r in GRID), MATCHED, MERGED_TO, KMEANS, OWN]
            names += [] if method in (PCA, SCVI) else [f"{KNN}Leiden {r}" for r in GRID]
            for seed in (0, 1, 2):
                head = {"cells": MAIN, "file": file, "seed": seed, "method": method}
                score = {"n_clusters": 8, "nmi_batch": 0.1 if method == SCAGC else 0.4}
                rows += [
                    {
                        **head,
                        "reading": n,
                        **dict.fromkeys(("ari", "nmi", "macro_f1", "rare_f1"), near if n.startswith(KNN) else high),
                        **score,
                    }
                    for n in names
                ]
                values = {"graph_homophily": 0.8, "knn_homophily": 0.8, "graph_degree_cv": 0.2, "knn_degree_cv": 0.3}
                values |= {"graph_degree_max": 30, "knn_degree_max": 60, "n_types": 8, f"{BETWEEN}0": 0.9}
                facts += [{**head, "metric": m, "value": v} for m, v in values.items()]
    return pd.DataFrame(rows), pd.DataFrame(facts)


@pytest.mark.parametrize(("shift", "claimed"), [(0.1, "clustering"), (0.0, "hubness")])
def test_bars_and_claim_follow_the_tables(shift, claimed):
    results = Clusters(*_tables(shift))
    marks = {bar.check.split()[0]: bar.measure(results) for bar in bars.BARS}
    assert bars.claim(results) == claimed
    for name in ("E2", "E4", "C1", "C2", "C3"):
        assert marks[name].meets == (shift > 0), name
    for name in ("C4", "E3", "E4b", "E6", "E7", "E11", "E16", "E17", "E18"):
        assert marks[name].meets, name
    assert marks["E1"] is None
    rows, facts = _tables(shift)
    part = Clusters(rows[rows["file"] != "worm_neuron"], facts)
    assert all(
        bar.measure(part) is None for bar in bars.BARS if bar.check.split()[0] not in ("E6", "E7", "E11", "E17", "E18")
    )
    assert bars.claim(part) is None


def test_a_control_that_does_better_fails_its_bar():
    rows, facts = _tables(0.1)
    controls = {SCAGC: ["E4b", "C1"], KNN_GRAPH: ["C2"], RANDOM_GRAPH: ["C3"], UNTRAINED: ["C4"]}
    for other, names in controls.items():
        changed, near = rows.copy(), rows["reading"].str.startswith(KNN)
        mine = (rows["method"] == other) & (near if other == SCAGC else True)
        changed.loc[mine, ["ari", "nmi", "macro_f1"]] = 0.75
        results = Clusters(changed, facts)
        failed = [b.check.split()[0] for b in bars.BARS if (m := b.measure(results)) is not None and not m.meets]
        assert failed == names


def test_page_says_what_was_not_run(tmp_path):
    assert "Not run." in report(tmp_path).read_text()
    rows, facts = _tables(0.0)
    rows.to_csv(tmp_path / "clustering.csv", index=False)
    facts.to_csv(tmp_path / "clustering_facts.csv", index=False)
    Store(SPEED, tmp_path / "clustering_speed.csv").add([{"quantity": "csr", "value": 2.5, "detail": "ms"}])
    (tmp_path / "_clustering_notes.md").write_text("---\norphan: true\n---\n\n* A remark.\n")
    page = report(tmp_path).read_text()
    assert "no better clustering is claimed" in page
    assert "| csr | 2.500 | ms |" in page
    assert "* A remark." in page
    assert "orphan" not in page


def test_ways_to_apply_a_graph_agree_and_are_timed():
    table = cs.benchmark.propagation((60,), n_neighbors=4, backends=("edge_list", "csr"), repeats=1)
    assert table["edge_gradient"].tolist() == [True, False]
    assert (table["milliseconds"] > 0).all()


def test_new_cells_are_placed_and_compared(case):
    """The oracle of E15: nothing trained, old cells stay, and a cell alone is placed as among others."""
    from cellsmith.benchmark._clustering.queries import QUERIES, held_out

    found = held_out(case, 0, epochs=0)
    assert found["largest change"] == 0
    assert found["one by one"] <= 1e-5
    assert 0 <= found["transferred"] <= 1
    table = pd.DataFrame(
        [
            {"file": file, "seed": 0, "lengths": "trained", "metric": metric, "value": value}
            for file in ("pbmc4k_10x", "kang_ifnb")
            for metric, value in {**found, "agreement": 0.9, "transferred": 0.8, "transferred, PCA": 0.8}.items()
        ],
        columns=list(QUERIES),
    )
    empty = pd.DataFrame(columns=COLUMNS), pd.DataFrame(columns=FACTS)
    assert bars._queries(Clusters(*empty)) is None
    judged = bars._queries(Clusters(*empty, queries=table))
    assert judged.meets
    assert not judged.exceeds
    table.loc[table["metric"] == "largest change", "value"] = 0.1
    assert not bars._queries(Clusters(*empty, queries=table)).meets


def test_a_task_alone_says_what_it_took(tmp_path, monkeypatch):
    """Time and memory come from a process of its own; one that fails says how."""
    from cellsmith.benchmark._clustering import scale

    store = Store(SPEED, tmp_path / "clustering_speed.csv")
    monkeypatch.setattr(scale, "run_alone", lambda *words: {"wall_s": 1.0, "peak_gib": 2.0})
    scale.scale(directory=tmp_path, store=store, tasks=("fit 2100",))
    scale.scale(directory=tmp_path, store=store, tasks=("fit 2100",))
    assert store.table["quantity"].tolist() == ["fit 2100, wall_s", "fit 2100, peak_gib"]
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="no_such"):
        scale.run_alone("cellsmith.no_such", "x")
