"""The annotation benchmark: peers with known answers, tables that resume, bars that can fail, the page."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import cellsmith
from cellsmith._errors import SetupError
from cellsmith.benchmark.__main__ import main
from cellsmith.benchmark._annotation import (
    bars,
    blind,
    confidence,
    guarantee,
    laws,
    peers,
    queries,
    scoring,
    speed,
    toys,
    transfer,
)
from cellsmith.benchmark._annotation.cases import Case, Cells, codes_of, resolution
from cellsmith.benchmark._annotation.choice import WEIGHTS, chosen_weights
from cellsmith.benchmark._annotation.report import report
from cellsmith.benchmark._annotation.results import Results, difference
from cellsmith.benchmark._store import SPEED, TASKS, Store

warnings.filterwarnings("ignore")

CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def cells():
    rng = np.random.default_rng(0)
    return Cells(np.repeat(np.eye(3), 20, axis=0) * 6 + rng.normal(size=(60, 3)))


@pytest.fixture(scope="module")
def case(cells):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(60, 3))
    truth = np.repeat(np.arange(3), 20)
    logits[np.arange(60), truth] += 1.0
    p = np.exp(logits)
    return Case("toy", "toy", 0, cells, p / p.sum(axis=1, keepdims=True), CLASSES, truth, np.ones(60, dtype=bool))


def small(weights, scores, **more):
    """A case on a graph that is written down."""
    n, n_classes = np.shape(scores)
    settings = {"truth": np.zeros(n, dtype=int), "scored": np.ones(n, dtype=bool)} | more
    made = Cells(None, sparse.csr_matrix(np.array(weights, dtype=float)))
    return Case("toy", "toy", 0, made, np.array(scores, dtype=float), CLASSES[:n_classes], **settings)


def test_resolution_is_celltypists():
    assert [resolution(n) for n in (700, 4_999, 5_000, 39_999, 99_999, 199_999, 200_000)] == [5, 5, 10, 15, 20, 25, 30]


def test_vote_takes_the_majority_and_the_first_of_equals(case):
    one = small(np.zeros((5, 5)), [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.1, 0.9], [0.7, 0.3]])
    one.cells._clusters[0] = np.array([0, 0, 0, 1, 1])
    np.testing.assert_allclose(peers.vote(one), [[2 / 3, 1 / 3]] * 3 + [[0.5, 0.5]] * 2)
    assert peers.refine(one, peers.vote).labels.tolist() == [0] * 5
    clusters = case.cells.clusters(0)
    assert len(clusters) == 60
    assert clusters.max() > 3  # an over-clustering


def test_label_spreading_is_the_closed_form_of_hard_labels(case):
    graph = case.cells.graph.toarray()
    root = graph.sum(axis=1) ** -0.5
    exact = 0.1 * np.linalg.solve(np.eye(60) - 0.9 * root[:, None] * graph * root, peers.one_hot(case.scores))
    np.testing.assert_allclose(peers.spread_labels(case), exact, atol=1e-7)


def test_neighbor_means():
    one = small([[0, 2, 1, 0], [2, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]], [[1, 0], [0, 1], [0.5, 0.5], [0.3, 0.7]])
    expected = [[0.5 / 3, 2.5 / 3], [1, 0], [1, 0], [0.3, 0.7]]
    np.testing.assert_allclose(peers.neighbor_mean(one), expected)
    np.testing.assert_allclose(peers.neighbor_mean_with_self(one)[0], [1.5 / 4, 2.5 / 4])


def test_scprint_and_grit_are_their_formulas(case):
    graph = case.cells.graph.toarray()
    degree = graph.sum(axis=1)
    found = peers.scprint(case)
    exact = np.linalg.solve(np.eye(60) + 0.1 * (np.diag(degree) - graph), np.log(case.scores))
    np.testing.assert_allclose(found.scores, exact, atol=1e-4)
    root = degree**-0.5
    exact = np.linalg.solve(6 * np.eye(60) - 5 * root[:, None] * graph * root, case.scores)
    exact /= exact.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(peers.grit(case).scores, exact, atol=1e-4)


def test_every_method_runs_and_beats_the_raw_scores_on_easy_cells(case):
    raw = scoring.label_table(case, peers.refine(case, peers.raw))["accuracy"]
    for name, method in peers.pick("all").items():
        found = peers.refine(case, method)
        assert found.scores.shape == (60, 3), name
        assert scoring.label_table(case, found)["accuracy"] >= raw, name


def test_labels_outside_the_classes_are_wrong_and_rare_types_are_listed():
    truth = np.r_[np.zeros(388, int), np.ones(10, int), [-1, -1]]
    scores = np.eye(2)[np.r_[np.zeros(388, int), np.ones(8, int), 0, 0, 1, 1]]
    one = small(sparse.csr_matrix((400, 400)).toarray(), scores, truth=truth)
    found = scoring.label_table(one, peers.refine(one, peers.raw))
    assert found["accuracy"] == 396 / 400
    assert found["recall b"] == found["rare_recall"] == 0.8
    assert scoring.rare_types(np.r_[np.zeros(391, int), np.ones(9, int)]).tolist() == []


def own(cells, case):
    adata = ad.AnnData(obs=pd.DataFrame(index=[f"cell {i}" for i in range(60)]))
    adata.obsm["X_pca"] = cells.rep
    adata.obs["truth"] = pd.Categorical(np.array(CLASSES)[case.truth])
    adata.obsm["scores"] = pd.DataFrame(case.scores, index=adata.obs_names, columns=CLASSES)
    return adata


def test_public_function_resumes_and_takes_a_method_of_ones_own(cells, case, tmp_path):
    adata, out = own(cells, case), tmp_path / "table.csv"
    first = cellsmith.benchmark.annotation(adata, "scores", labels_key="truth", methods=["raw", "GRIT"], out=out)
    assert list(first.columns) == list(TASKS)
    value = first.set_index(["variant", "metric"])["value"]
    assert value["GRIT", "accuracy"] > value["raw", "accuracy"]
    before = out.read_bytes()
    cellsmith.benchmark.annotation(adata, "scores", labels_key="truth", methods=["raw", "GRIT"], out=out)
    assert out.read_bytes() == before
    mine = {"perfect": lambda run: np.eye(3)[run.truth]}
    again = cellsmith.benchmark.annotation(adata, "scores", labels_key="truth", methods=mine, out=out)
    assert again.set_index(["variant", "metric"])["value"]["perfect", "accuracy"] == 1.0
    shuffled = adata.obsm["scores"].iloc[::-1]
    other = cellsmith.benchmark.annotation(adata, shuffled, labels_key="truth", methods=["raw"])
    assert other.set_index("metric")["value"]["accuracy"] == value["raw", "accuracy"]


def test_messages(cells, case, tmp_path, monkeypatch, caplog):
    adata = own(cells, case)
    run = cellsmith.benchmark.annotation
    with pytest.raises(SetupError, match="no column 'trut'"):
        run(adata, "scores", labels_key="trut")
    with pytest.raises(SetupError, match="no 'score'"):
        run(adata, "score", labels_key="truth")
    with pytest.raises(SetupError, match="method 'vote' is unknown"):
        run(adata, "scores", labels_key="truth", methods=["vote"])
    with pytest.raises(SetupError, match="shape"):
        run(adata, "scores", labels_key="truth", methods={"bad": lambda c: c.scores[:3]})
    with pytest.raises(SetupError, match="class names"):
        run(adata, case.scores, labels_key="truth")
    lost = adata.obsm["scores"].copy()
    lost.iloc[0] = np.nan
    with pytest.raises(SetupError, match="1 cells without scores"):
        run(adata, lost, labels_key="truth")
    monkeypatch.delenv("CELLSMITH_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    assert main(["annotation", "--parts", "transfer", "--out", str(tmp_path)]) == 2
    assert "benchmark data directory" in caplog.text


def rows_of(values, task="easy", file=toys.FILE, seeds=(0, 1)):
    rows = [
        {"task": task, "file": file, "seed": s, "variant": v, "metric": m, "value": x + 0.001 * s}
        for s in seeds
        for v, found in values.items()
        for m, x in zip(("accuracy", "macro_f1"), found, strict=True)
    ]
    return pd.DataFrame(rows, columns=list(TASKS))


def results_of(*tables, fast=()):
    return Results(
        pd.concat([pd.DataFrame(columns=list(TASKS)), *tables]), pd.DataFrame(list(fast), columns=list(SPEED))
    )


@pytest.mark.parametrize(
    ("grit", "expected"),
    [((0.66, 0.50), "stretch"), ((0.63, 0.50), "pass"), ((0.60, 0.50), "FAIL"), ((0.66, 0.44), "FAIL")],
)
def test_the_bar_of_the_easy_task_can_fail(grit, expected):
    found = results_of(rows_of({"raw": (0.45, 0.35), bars.VOTE: (0.63, 0.48), "GRIT": grit}))
    bar = next(b for b in bars.BARS if b.check.startswith("easy"))
    assert bars.mark(bar, bar.measure(found)) == expected


def test_one_part_below_raw_fails_the_transfer():
    good = {"raw": (0.80, 0.7), bars.VOTE: (0.8, 0.7), "GRIT": (0.85, 0.7)}
    bad = {"raw": (0.80, 0.7), bars.VOTE: (0.8, 0.7), "GRIT": (0.79, 0.7)}
    bar = next(b for b in bars.BARS if b.check.startswith("real transfer"))
    tables = [rows_of(good, "transfer to x", "panc8_small"), rows_of(good, "transfer to y", "panc8_small")]
    assert bars.mark(bar, bar.measure(results_of(*tables))) == "pass"
    assert bars.mark(bar, bar.measure(results_of(*tables, rows_of(bad, "transfer to z", "panc8_small")))) == "FAIL"


def test_speed_is_judged_and_absent_rows_are_said_to_be_absent():
    bar = next(b for b in bars.BARS if b.check.startswith("speed"))
    quantities = {"cpu_s_100000": 4.0, "wall_s_100000": 4.0, "extra_mib_100000": 500.0, "cg_over_lu": 0.05}
    rows = [{"quantity": k, "value": v, "detail": ""} for k, v in quantities.items()]
    assert bars.mark(bar, bar.measure(results_of(fast=rows))) == "stretch"
    slow = [{**r, "value": 12.0} if r["quantity"] == "cpu_s_100000" else r for r in rows]
    assert bars.mark(bar, bar.measure(results_of(fast=slow))) == "FAIL"
    marks = {bars.mark(b, b.measure(results_of())) for b in bars.BARS}
    assert marks == {"not run", "by tests"}


def test_interval_of_differences():
    found = difference(np.array([1.0, 2.0, 3.0]))
    assert found.mean == 2.0
    assert found.high - found.mean == pytest.approx(4.302653 / np.sqrt(3))
    assert np.isnan(difference(np.array([1.0])).low)


def test_page_is_written_from_the_tables(tmp_path):
    page = report(tmp_path).read_text(encoding="utf-8")
    assert "**not run**" in page
    assert "None of the parts" in page
    store = Store(TASKS, tmp_path / "annotation.csv")
    store.add(
        rows_of({"raw": (0.4, 0.3), bars.VOTE: (0.6, 0.5), "GRIT": (0.3, 0.2), "mine": (0.1, 0.1)}).to_dict("records")
    )
    (tmp_path / "_annotation_notes.md").write_text("---\norphan: true\n---\nA note by hand.", encoding="utf-8")
    assert main(["annotation", "--parts", "--out", str(tmp_path)]) == 0
    page = (tmp_path / "annotation.md").read_text(encoding="utf-8")
    assert "**FAIL**" in page
    assert "| mine |" in page
    assert "A note by hand." in page
    assert "orphan" not in page
    assert "-10.0 (-10.0 to -10.0)" in page  # GRIT against raw


def test_toy_tasks_are_those_of_the_protocol():
    easy, again, other = toys.easy_case(0), toys.easy_case(0), toys.easy_case(1)
    np.testing.assert_array_equal(easy.scores, again.scores)
    assert (easy.scores != other.scores).any()
    assert easy.scored.sum() == 700 - 30
    assert easy.cells.graph.sum() / 700 == pytest.approx(6.93, abs=0.01)
    assert easy.cells.graph.nnz / 700 == pytest.approx(22.7, abs=0.05)
    coherent = toys.coherent_case(0)
    assert (coherent.truth == toys.PUSHED_CLASS).sum() == 240
    pushed = (coherent.scores.argmax(axis=1) == toys.PUSHED_TO) & (coherent.truth == toys.PUSHED_CLASS)
    assert 60 < pushed.sum() < 110


def test_guards_calibration_and_unknown_types_give_rows(monkeypatch):
    monkeypatch.setattr(confidence, "GUARD_WEIGHTS", (1000.0,))
    store, easy = Store(TASKS), toys.easy_case(0)
    confidence.guards(easy, store=store)
    value = store.table.set_index(["variant", "metric"])["value"]
    assert value["comb 1000", "warned"] == 1.0
    assert value["comb 1000", "macro_f1"] < value["comb 1000", "raw_macro_f1"]
    confidence.calibration(easy, store=store)
    error = store.table[store.table["metric"] == "ece"].set_index("variant")["value"]
    assert error["refined, 50 anchors"] < error["refined"]
    scores = confidence.rejection_scores(easy, np.log(easy.scores))
    assert set(scores) >= {"raw max-prob", "refined max-prob", "energy smoothed with rw"}
    assert all(np.isfinite(v).all() and v.shape == (700,) for v in scores.values())


def test_smoothed_energy_keeps_constants(cells):
    np.testing.assert_allclose(
        confidence.smoothed_energy(cells, np.full(60, 3.0), smoothness_weight=10.0), 3.0, rtol=1e-4
    )


def test_best_lambda_of_each_rule():
    n = len(WEIGHTS)
    table = pd.DataFrame(
        {"modularity": np.arange(n), "agreement": np.r_[1, np.zeros(n - 1)], "split_error": np.arange(n)}
    )
    assert chosen_weights(table) == {
        "modularity": WEIGHTS[-1],
        "split agreement": WEIGHTS[0],
        "split error": WEIGHTS[0],
    }


def test_parts_are_left_out_and_few_cells_are_few():
    counts = cellsmith.datasets.toy_counts(240, 60, n_types=3, n_batches=2, rng=0)
    data = transfer.prepare(counts, file="toy")
    assert data.rep.shape == (240, 50)
    found = list(transfer.leave_out(data, "batch", [0, 1]))
    assert [(c.task, c.seed) for c in found] == [(f"transfer to batch_{b}", s) for b in (0, 1) for s in (0, 1)]
    assert len(found[0].scores) == (data.obs["batch"] == "batch_0").sum()
    assert found[0].cells is found[1].cells
    assert (found[0].scores != found[1].scores).any()
    few = transfer.few_cells(data, 0)
    assert len(few.scores) == 240 - 30
    np.testing.assert_allclose(few.scores.sum(axis=1), 1.0)


def test_few_of_a_small_type_are_half_of_it():
    labels = np.repeat(["a", "b"], [50, 9])
    drawn = transfer.draw_few(labels, 0)
    assert pd.Series(labels[drawn]).value_counts().to_dict() == {"a": 10, "b": 4}


def test_blind_files_count_alike_and_so_do_their_kinds_of_task(tmp_path):
    a, b, c = blind.CANDIDATES
    tables = []
    for file in blind.FILES:
        gain = 0.1 if file == "paul15" else 0.0
        few = {"raw": (0.5, 0.5), a: (0.6, 0.6), b: (0.6, 0.6 + gain), c: (0.5, 0.5)}
        tables.append(rows_of(few, "blind, 10 cells a type", file))
    for part, gain in (("1", 0.0), ("2", 0.0), ("3", 0.06)):  # the mean of the parts counts as much as the few cells
        parts = {"raw": (0.5, 0.5), a: (0.6, 0.6), b: (0.6, 0.6 + gain), c: (0.5, 0.5)}
        tables.append(rows_of(parts, f"blind, transfer to {part}", "kang_ctrl_8donors"))
    found = results_of(*tables)
    by_file = blind.file_gains(found, b, a, metric="macro_f1")
    assert by_file["paul15"] == pytest.approx(0.1)
    assert by_file["kang_ctrl_8donors"] == pytest.approx(0.01)
    assert blind.gain(found, b, a, metric="macro_f1").mean == pytest.approx(0.11 / 5)
    assert blind.gain(found, b, a, metric="accuracy").mean == pytest.approx(0)
    assert not bars.transfer_parts(found, "raw")  # no row of the transfers
    Store(TASKS, tmp_path / "annotation.csv").add(found.rows.to_dict("records"))
    page = report(tmp_path).read_text(encoding="utf-8")
    assert "B minus A, macro-F1: +2.2" in page
    assert "better in 2 of 5 files" in page


def test_draws_agree_with_the_door_and_keep_their_promise(case, cells):
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(3, 0.1), size=4000)
    truth = np.array([rng.choice(3, p=row) for row in p])
    anchors = rng.choice(4000, 300, replace=False)
    draw = guarantee.judge_draw(p, truth, anchors, target="selective", level=0.1)
    assert 0.1 < draw.accepted <= 1
    adata = ad.AnnData(obs=pd.DataFrame(index=pd.RangeIndex(4000).astype(str)))
    adata.obsp["graph"] = sparse.csr_matrix((4000, 4000))  # isolated cells keep their scores
    cellsmith.tl.grit(adata, p, classes=CLASSES, neighbors_key="graph")
    labels = np.full(4000, "unknown", dtype=object)
    labels[anchors] = np.array(CLASSES)[truth[anchors]]
    adata.obs["anchors"] = labels
    cellsmith.tl.reject(adata, labels_key="anchors", target="selective", level=0.1)
    kept = ~adata.obs["grit_rejected"].to_numpy(dtype=bool)
    assert np.delete(kept, anchors).mean() == pytest.approx(draw.accepted, abs=1e-3)
    for target in ("coverage", "accepted_wrong"):
        found = [
            guarantee.judge_draw(p, truth, rng.choice(4000, 100, replace=False), target=target, level=0.1)
            for _ in range(60)
        ]
        mean = np.mean([d.value for d in found])
        assert mean > 0.87 if target == "coverage" else mean < 0.12


def test_oracle_threshold():
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    truth = np.array([0, 0, 1, 0])
    assert guarantee.oracle_share(p, truth, target="selective", level=0.3) == 1.0
    assert guarantee.oracle_share(p, truth, target="selective", level=0.2) == 0.5
    assert guarantee.oracle_share(p, truth, target="accepted_wrong", level=0.2) == 0.5
    assert guarantee.oracle_share(p[::-1], truth[[2, 1, 0, 3]], target="selective", level=0.0) == 0.75


def test_later_cells_and_self_query(case):
    store = Store(TASKS)
    queries.later_cells(case, store=store)
    queries.self_query(case, store=store)
    value = store.table.set_index(["variant", "metric"])["value"]
    assert value["GRIT", "agreement"] >= 0.8
    assert value["self-query, comb", "difference"] < 1e-6


def test_what_a_round_trip_changed_is_named(cells, case):
    adata = own(cells, case)
    other = adata.copy()
    assert queries.differences(adata, other) == []
    other.obsm["X_pca"] = other.obsm["X_pca"] + 1e-3
    other.obs["truth"] = other.obs["truth"].astype(str)
    assert queries.differences(adata, other) == [".obs['truth']", ".obsm['X_pca']"]


@pytest.mark.parametrize("name", ["identities", "invariances"])
def test_laws_hold(name, monkeypatch):
    monkeypatch.setattr(laws, "N_EXACT", 2)
    found = laws.LAWS[name](np.random.default_rng(0))
    assert max(found.values()) < 1e-6


def test_synthetic_cells_have_a_graph_and_a_ratio_of_solvers():
    points = speed.synthetic_points(400)
    graph, scores = speed.synthetic_graph(points), speed.synthetic_scores(points)
    assert abs(graph - graph.T).max() == 0
    assert 14 <= graph.nnz / 400 <= 28
    np.testing.assert_allclose(scores.sum(axis=1), 1.0, rtol=1e-5)
    assert speed.solvers(400)["cg_over_lu"] > 0


@pytest.mark.slow
def test_a_fresh_process_is_timed(tmp_path):
    found = speed.measure(tmp_path, 800)
    assert found["n"] == 800
    assert found["cpu_s"] > 0


def test_codes():
    assert codes_of(["b", "x", "a"], ("a", "b")).tolist() == [1, -1, 0]
