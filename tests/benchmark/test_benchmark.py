"""The benchmark from end to end on toy cells: tables, resuming, page, and the generators that must fail."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import cellsmith
from cellsmith._errors import SetupError
from cellsmith.benchmark.__main__ import main
from cellsmith.benchmark._files import data_directory, split, variable_genes
from cellsmith.benchmark._store import SYNTHESIS, TASKS, Store
from cellsmith.benchmark._synthesis import bars, peers
from cellsmith.benchmark._synthesis.augmentation import augmentation
from cellsmith.benchmark._synthesis.density import shuffle_genes
from cellsmith.benchmark._synthesis.donors import CONTROL
from cellsmith.benchmark._synthesis.report import report
from cellsmith.benchmark._synthesis.scoring import Judge, composition_is_exact
from cellsmith.benchmark._synthesis.speed import alternate
from cellsmith.benchmark._synthesis.task_bars import TASK_BARS
from cellsmith.benchmark._synthesis.transfer import frequent_types
from cellsmith.metrics import evaluate_synthetic

warnings.filterwarnings("ignore")


@pytest.fixture(scope="module")
def toy():
    adata = cellsmith.datasets.toy_counts(320, 40, n_types=3, rng=0)
    del adata.layers["mean"]
    return adata


@pytest.fixture(scope="module")
def part(toy):
    return split(toy, file="toy", seed=0)


@pytest.fixture(scope="module")
def judge(part):
    return Judge(part)


@pytest.fixture(scope="module")
def table(toy, tmp_path_factory):
    out = tmp_path_factory.mktemp("tables") / "synthesis.csv"
    options = {"seeds": [0], "name": "pbmc4k_10x", "out": out, "max_epochs": 1}
    names = [peers.CONTROL, "memoriser", "20-neighbour average", peers.POSTERIOR, "SCLD"]
    first = cellsmith.benchmark.synthesis(toy, generators=names, **options)
    return first, out, options, names


def test_rows_are_tidy_and_hold_the_generators_that_must_fail(table):
    first, out, _, names = table
    assert list(first.columns) == list(SYNTHESIS)
    assert set(names) <= set(first["generator"])
    pd.testing.assert_frame_equal(pd.read_csv(out), first, check_dtype=False)
    value = first.set_index(["generator", "metric"])["value"]
    assert value["memoriser", "exact_copies"] == 1.0
    assert value["memoriser", "nearest_share"] > 0.6
    assert value["20-neighbour average", "rf_auc_genes"] > 0.95
    assert value["20-neighbour average", "valid_counts"] == 0.0
    assert np.isnan(value["20-neighbour average", "ks_library"])
    assert value["SCLD", "valid_counts"] == value["SCLD", "exact_composition"] == 1.0
    assert value[peers.POSTERIOR, "train_cpu_s"] > 0


def test_a_second_run_repeats_nothing(table, toy):
    first, out, options, names = table
    before = out.read_bytes()
    again = cellsmith.benchmark.synthesis(toy, generators=names, **options)
    assert out.read_bytes() == before
    assert len(again) == len(first)


def test_page_is_written_from_the_tables(table):
    _, out, _, _ = table
    (out.parent / "_synthesis_notes.md").write_text("A note by hand.", encoding="utf-8")
    store = Store(TASKS, out.parent / "synthesis_tasks.csv")
    store.add([{"task": "pre_guidance", "file": "toy", "seed": 0, "variant": "w = 1", "metric": "w2", "value": 1.25}])
    page = report(out.parent).read_text(encoding="utf-8")
    assert "| memoriser |" in page
    assert "| 20-neighbour average |" in page
    assert "A note by hand." in page
    assert "### pre_guidance, toy (seeds 0)" in page
    assert "python -m cellsmith.benchmark synthesis" in page
    assert "| W2 |" in page
    assert "not run" in page


def test_page_counts_the_files_on_which_a_bar_is_met(tmp_path):
    rows = [
        (file, 0, generator, "rf_auc_genes", value, 0.5)
        for file, ours in (("young_kidney", 0.6), ("kang_ifnb", 0.9))
        for generator, value in (("SCLD", ours), (peers.POSTERIOR, 0.7))
    ]
    Store(SYNTHESIS, tmp_path / "synthesis.csv").add([dict(zip(SYNTHESIS, row, strict=True)) for row in rows])
    page = report(tmp_path).read_text(encoding="utf-8")
    assert "| forest AUC, 250 genes | <= peer | 1 of 2 | kang_ifnb | **FAIL** |" in page


def test_own_generator_runs_beside_the_others(toy, part):
    def mine(train, n, rng):
        return peers.memoriser(train, n, rng, keys=["cell_type"])

    extra = {"mine": mine}
    from cellsmith.benchmark._synthesis.quality import run_split

    store = Store(SYNTHESIS)
    run_split(part, ["mine"], store=store, extra=extra)
    assert set(store.table["generator"]) == {"mine"}
    assert store.has(file="toy", seed=0, generator="mine", metric="w2")


def test_scores_are_those_of_the_metrics(part, judge):
    cells = peers.independent_nb(part.train, part.test.n_obs, np.random.default_rng(0), keys=["cell_type"])
    ours = judge.score(cells, symmetric=True)
    theirs = evaluate_synthetic(
        part.test, cells, part.train, control=part.spare, labels_key="cell_type", rng=part.seed
    ).table.set_index("metric")
    for metric in theirs.index:
        expected = theirs.loc[metric, ["value", "control"]].to_numpy(dtype=float)
        np.testing.assert_allclose(ours[metric], expected, rtol=1e-9, atol=1e-12, err_msg=metric)


def test_composition_is_exact_only_where_it_is(part):
    rng = np.random.default_rng(0)
    good = peers.memoriser(part.train, 100, rng, keys=["cell_type"])
    assert composition_is_exact(part.train, good, keys=["cell_type"], n=100)
    bad = good.copy()
    bad.obs["cell_type"] = "type_0"
    assert not composition_is_exact(part.train, bad, keys=["cell_type"], n=100)
    assert not composition_is_exact(part.train, good[:90], keys=["cell_type"], n=100)


def test_cut_is_disjoint_and_seeded(toy, part):
    names = [set(p.obs_names) for p in (part.train, part.test, part.spare)]
    assert sum(map(len, names)) == toy.n_obs == len(set.union(*names))
    assert part.train.n_obs == 160
    assert part.test.n_obs == 80
    again = split(toy, file="toy", seed=0)
    assert list(again.train.obs_names) == list(part.train.obs_names)
    assert list(split(toy, file="toy", seed=1).train.obs_names) != list(part.train.obs_names)


def test_variable_genes_find_the_planted_ones():
    rng = np.random.default_rng(0)
    counts = rng.poisson(5.0, (300, 40)).astype(np.float32)
    counts[:150, [3, 17]] *= 6
    assert variable_genes(sparse.csr_matrix(counts), 2).tolist() == [3, 17]


def test_augmentation_compares_five_ways(part):
    store = Store(TASKS)
    augmentation(part, 12, store, max_epochs=1)
    rows = store.table
    assert set(rows["variant"]) == {"none", "oversampling", "SMOTE in components", "independent NB", "SCLD"}
    assert rows["value"].between(0, 1).all()


def test_frequent_types():
    adata = cellsmith.datasets.toy_counts(900, 20, n_types=3, n_batches=2, rng=0)
    found = frequent_types(adata, labels_key="cell_type", batch_key="batch", condition="batch_1")
    assert found[0] == "type_0"
    assert all((adata.obs["cell_type"][adata.obs["batch"] == "batch_1"] == t).sum() >= 100 for t in found)


def test_shuffles_break_genes_and_keep_their_margins():
    x = sparse.csr_matrix(np.random.default_rng(0).poisson(2.0, (30, 20)) + 1)
    rng = np.random.default_rng(1)
    within, among = (shuffle_genes(x, how, rng=rng).toarray() for how in ("within cells", "among cells"))
    np.testing.assert_array_equal(np.sort(within, axis=1), np.sort(x.toarray(), axis=1))
    np.testing.assert_array_equal(np.sort(among, axis=0), np.sort(x.toarray(), axis=0))
    assert not np.array_equal(within, among)


# task -> rows (task, file, variant, metric, value) that meet its bar; the last value is the one that breaks it below.
GOOD_ROWS = {
    "augmentation": [
        ("augmentation (10 kept)", "a", "none", "macro_f1", 0.8),
        ("augmentation (10 kept)", "a", "SCLD", "macro_f1", 0.8),
        ("augmentation (10 kept)", "a", "oversampling", "rare_recall", 0.5),
        ("augmentation (10 kept)", "a", "SCLD", "rare_recall", 0.6),
    ],
    "rare_types": [
        ("rare_types", "a", "SCLD", "share_ratio_low", 0.6),
        ("rare_types", "a", "SCLD", "share_ratio_high", 1.9),
    ],
    "unseen": [
        ("unseen combination (x)", "a", "type only", "w2", 8.0),
        ("unseen combination (x)", "a", "condition only", "w2", 9.0),
        ("unseen combination (x)", "a", "additive", "w2", 7.0),
    ],
    "translate": [
        ("translate (x)", "kang_ifnb", "v", "identity_r", 1.0),
        ("translate (x)", "kang_ifnb", "v", "shift_r", 0.9),
    ],
    "interpolation": [("interpolation", "a", "v", "mid_share", 0.96), ("interpolation", "a", "v", "spearman", 0.99)],
    "train on": [("train on synthetic", file, "SCLD", "tstr_ratio", 0.95) for file in "abcde"],
    "donor": [
        ("donor privacy", "a", "memoriser", "exact_copies", 0.9),
        ("donor privacy", "a", "memoriser", "nearest_share", 0.7),
        ("donor privacy", "a", CONTROL, "nearest_share", 0.52),
        ("donor privacy", "a", "SCLD", "exact_copies", 0.0),
        ("donor privacy", "a", "SCLD", "nearest_share", 0.5),
        *(("donor privacy", "a", "SCLD", f"membership_auc_donor{end}", 0.5) for end in ("", "_low", "_high")),
        ("donor privacy", "a", "SCLD", "membership_auc", 0.51),
    ],
    "pre_guidance": [
        ("pre_guidance", "a", f"w = {w}", metric, value)
        for w, value in (("0", 0.1), ("1", 0.2), ("1.5", 0.3), ("2", 0.4))
        for metric in ("label_fidelity", "coverage", "lfc_slope")
    ],
    "state": [("log_density", "a", f"state, {how}", "auc", 0.97) for how in ("within cells", "among cells")],
    "counts": [("log_density", "a", f"counts, {how}", "auc", 0.97) for how in ("within cells", "among cells")],
}
WRONG = {"rare_types": 2.1, "unseen": 8.5, "donor": 0.6}


@pytest.mark.parametrize(("name", "bar"), zip(GOOD_ROWS, TASK_BARS, strict=True))
def test_bars_of_tasks_pass_and_fail(name, bar):
    def table(rows):
        return pd.DataFrame([dict(zip(TASKS, (t, f, 0, v, m, x), strict=True)) for t, f, v, m, x in rows])

    good = GOOD_ROWS[name]
    assert bar.measure(table(good))[1]
    bad = [*good[:-1], (*good[-1][:-1], WRONG.get(name, 0.01))]
    assert not bar.measure(table(bad))[1]
    assert bar.measure(table(GOOD_ROWS["rare_types" if name != "rare_types" else "unseen"])) is None


@pytest.mark.parametrize(
    ("metric", "value", "expected"),
    [("w2", 10.0, "pass"), ("w2", 9.0, "stretch"), ("w2", 12.1, "FAIL"), ("w2", float("nan"), "-")],
)
def test_marks(metric, value, expected):
    bar = next(b for b in bars.QUALITY if b.metric == metric)
    assert bars.mark(bar, value, control=8.5, peer=10.0) == expected


def test_alternate_counts_steps():
    seen = []
    ours, theirs, ratio = alternate(seen.append, lambda k: sum(range(20_000)), n_warm=2, n_steps=5)
    assert seen == list(range(7))
    assert ours < theirs
    assert ratio < 1


def test_messages(toy, tmp_path, monkeypatch, caplog):
    with pytest.raises(SetupError, match="unknown"):
        cellsmith.benchmark.synthesis(toy, generators=["memorizer"], seeds=[0])
    with pytest.raises(SetupError, match="no column 'celltype'"):
        cellsmith.benchmark.synthesis(toy, labels_key="celltype")
    monkeypatch.delenv("CELLSMITH_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SetupError, match="CELLSMITH_DATA"):
        data_directory()
    assert main(["synthesis", "--out", str(tmp_path)]) == 2
    assert "benchmark data directory" in caplog.text
    assert main(["synthesis", "--parts", "--out", str(tmp_path)]) == 0
    assert "was not run" in (tmp_path / "synthesis.md").read_text(encoding="utf-8")
