"""The distillation benchmark on toys: known answers, readers against libraries, resumed tables, leaks, the page."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

import cellsmith as cs
from cellsmith._errors import DataWarning, SetupError
from cellsmith.benchmark.__main__ import main
from cellsmith.benchmark._distillation import bars, peers, recipe, scoring, speed, transfer
from cellsmith.benchmark._distillation.cases import cut, labelled_counts
from cellsmith.benchmark._distillation.compare import COLUMNS, Recipe
from cellsmith.benchmark._distillation.expression import matched_expression
from cellsmith.benchmark._distillation.report import ABLATION_TABLE, SPEED_TABLE, TRANSFER_TABLE, report
from cellsmith.benchmark._distillation.results import Results
from cellsmith.benchmark._store import SPEED, Store
from cellsmith.math import matching

FAST = {"models": ("lr", "knn1"), "n_seeds": 1, "n_splits": 2, "methods": ("full", "random", "metacell")}


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    """Three classes, the third rare, of 12 genes; shallow, so that one cell teaches little."""
    rng = np.random.default_rng(0)
    codes = np.repeat([0, 1, 2], [40, 30, 10])
    rates = rng.gamma(1.0, 1.0, size=(3, 12))
    x = rng.poisson(2.0 * rates[codes]) + (np.arange(12) == 0)
    obs = pd.DataFrame(
        {"kind": pd.Categorical(np.array(["b", "a", "rare"])[codes])}, index=[f"c{i}" for i in range(80)]
    )
    return ad.AnnData(sparse.csr_matrix(x, dtype=np.float32), obs=obs)


@pytest.fixture(scope="module")
def part(cells):
    return cut(labelled_counts(cells, "kind", layer=None, batch_key=None), "kind", file="toy", split=1)


def table_of(values: dict[tuple[str, int], list[float]]) -> pd.DataFrame:
    """A table whose classifiers all score the given values, cut by cut."""
    rows = []
    for (method, budget), scores in values.items():
        for split, value in enumerate(scores, start=1):
            head = ("pbmc68k_reduced", split, method, budget)
            rows += [(*head, model, "accuracy", value) for model in recipe.MODELS]
            rows += [(*head, "-", "n_train", 490.0), (*head, "-", "n_test", 210.0)]
    return pd.DataFrame(rows, columns=COLUMNS)


def test_a_run_is_complete_paired_and_repeatable(cells) -> None:
    table = cs.benchmark.distillation(cells, "kind", budgets=(1, 3), **FAST)
    assert list(table.columns) == list(COLUMNS)
    accuracy = table[table["metric"] == "accuracy"]
    assert len(accuracy) == 2 * 2 * (1 + 2 * 2)
    assert set(table["split"]) == {1, 2}
    assert table["value"].notna().all()
    again = cs.benchmark.distillation(cells, "kind", budgets=(1, 3), **FAST)
    timed = table["metric"].isin(["seconds", "cpu_seconds"])
    pd.testing.assert_frame_equal(table[~timed], again[~timed])
    # Retention is a quotient of what stands in the table.
    key = {"split": 2, "method": "metacell", "budget": 3, "model": "lr"}
    found = table.set_index([*key, "metric"])["value"]
    expected = found[(*key.values(), "accuracy")] / found[2, "full", 0, "lr", "accuracy"]
    assert found[(*key.values(), "retention")] == pytest.approx(expected)


def test_rows_that_stand_are_not_run_again(cells, tmp_path) -> None:
    path = tmp_path / "rows.csv"
    first = cs.benchmark.distillation(cells, "kind", budgets=(1,), out=path, **FAST)

    def never(train, n, rng):
        raise AssertionError

    def whole(train, n, rng):
        return train

    second = cs.benchmark.distillation(cells, "kind", budgets=(1,), out=path, candidates={"whole": whole}, **FAST)
    assert set(second["method"]) - set(first["method"]) == {"whole"}
    cs.benchmark.distillation(cells, "kind", budgets=(1,), out=path, candidates={"whole": never}, **FAST)
    accuracy = second[second["metric"] == "accuracy"].pivot_table(
        index=["split", "model"], columns="method", values="value"
    )
    np.testing.assert_allclose(accuracy["whole"], accuracy["full"])


def test_test_labels_never_reach_a_distilled_set(cells) -> None:
    """Other labels of the test cells leave every set as it is; shuffled training labels leave nothing to learn."""
    made = {}
    for name in ("plain", "shuffled"):
        seen = []

        def watch(train, n, rng, seen=seen):
            small = cs.tl.sketch(train, "kind", n, method="metacell", use_rep="X_pca", rng=rng)
            seen.append(small.X.toarray())
            return small

        part = cut(labelled_counts(cells, "kind", layer=None, batch_key=None), "kind", file="toy", split=1)
        if name == "shuffled":
            part.reading.test.obs["kind"] = part.reading.test.obs["kind"].to_numpy()[::-1]
        watch(part.reading.train, 3, 0)
        made[name] = seen[0]
    np.testing.assert_array_equal(made["plain"], made["shuffled"])


def test_shuffled_training_labels_teach_nothing(cells) -> None:
    def shuffled(train, n, rng):
        small = cs.tl.sketch(train, "kind", n, method="metacell", use_rep="X_pca", rng=rng)
        small.obs["kind"] = np.roll(small.obs["kind"].to_numpy(), n)  # every class gets another one's rows
        return small

    table = cs.benchmark.distillation(cells, "kind", budgets=(3,), candidates={"shuffled": shuffled}, **FAST)
    mean = table[table["metric"] == "accuracy"].groupby("method")["value"].mean()
    assert mean["shuffled"] < 0.35 < mean["metacell"]


def test_genes_components_and_classes_come_from_the_training_cells(part, cells) -> None:
    reading = part.reading
    assert reading.train.n_obs == 56
    assert not set(reading.train.obs_names) & set(reading.test.obs_names)
    assert set(reading.test.obs["kind"]) == {"a", "b", "rare"}
    from cellsmith.math.matching import log_normalize, principal_components

    own = principal_components(log_normalize(reading.train.X, scale=1e3), seed=1)
    np.testing.assert_allclose(reading.train.obsm["X_pca"], own)
    fewer = cut(labelled_counts(cells, "kind", layer=None, batch_key=None), "kind", file="toy", split=1, max_train=30)
    assert fewer.reading.train.n_obs == 30
    assert set(fewer.reading.train.obs_names) <= set(reading.train.obs_names)


def test_readers_are_those_of_scikit_learn(part) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

    reading = part.reading
    x, y, test = reading.train_view, reading.codes(reading.train), reading.test_view
    np.testing.assert_allclose(x, np.log1p(1e3 * reading.train.X.toarray() / reading.train.X.sum(axis=1).A), rtol=1e-5)
    theirs = {
        "lr": LogisticRegression(C=1.0, max_iter=1000),
        "knn1": KNeighborsClassifier(1),
        "centroid": NearestCentroid(),
    }
    for name, model in theirs.items():
        found = recipe.predict(name, x, y, test=test, seed=0)
        np.testing.assert_array_equal(found, model.fit(x, y).predict(test))
    one_hot = np.eye(3)[y]
    # Certain soft labels are hard labels.
    for name in recipe.SOFT:
        hard, soft = (recipe.predict(name, x, t, test=test, seed=0) for t in (y, one_hot))
        assert (hard == soft).mean() > 0.95
    assert (recipe.predict("lr", x[:4], y[:4] * 0, test=test, seed=0) == 0).all()


def test_distilled_objects_are_read_by_their_own_logarithms(part) -> None:
    train = part.reading.train
    small = cs.tl.sketch(train, "kind", 2, method="metacell", method_kwargs={"summary": "mean_log"}, key_added="mini")
    np.testing.assert_allclose(part.reading.view(small), small.layers["mini_log"], rtol=1e-6)
    plain = cs.tl.sketch(train, "kind", 2, method="metacell")
    expected = np.log1p(1e3 * plain.X.toarray() / plain.X.sum(axis=1).A)
    np.testing.assert_allclose(part.reading.view(plain), expected, rtol=1e-5)


def test_soft_labels_are_means_over_source_cells(part) -> None:
    reading = part.reading
    p = scoring.teacher(reading)
    np.testing.assert_allclose(p.sum(axis=1), 1.0, rtol=1e-5)
    small = cs.tl.sketch(reading.train, "kind", 2, method="metacell")
    q = scoring.soft_labels(small, reading, p)
    assigned = small.uns["sketch"]["assignment"]
    for j in range(small.n_obs):
        np.testing.assert_allclose(q[j], p[assigned == j].mean(axis=0))
    chosen = cs.tl.sketch(reading.train, "kind", 2, method="random")
    np.testing.assert_allclose(scoring.soft_labels(chosen, reading, p), p[chosen.uns["sketch"]["indices"]])
    stranger = ad.AnnData(small.X, obs=small.obs[["kind"]], var=small.var)
    with pytest.raises(SetupError, match="soft=False"):
        scoring.soft_labels(stranger, reading, p)


def test_ready_made_sets_are_scored_and_unknown_labels_are_errors(part) -> None:
    train, test = part.reading.train, part.reading.test.copy()
    small = cs.tl.sketch(train, "kind", 3, method="metacell")
    options = {"labels_key": "kind", "models": ("lr", "mlp"), "n_seeds": 1, "soft": True}
    table = cs.benchmark.score_distilled(train, test, {"small": small}, **options)
    assert set(table["model"]) == {"lr", "mlp", "lr_soft", "mlp_soft", "-"}
    get = table.set_index(["method", "model", "metric"])["value"]
    assert get["small", "lr", "retention"] == pytest.approx(
        get["small", "lr", "accuracy"] / get["full", "lr", "accuracy"]
    )
    test.obs["kind"] = test.obs["kind"].astype(str)
    right = get["full", "lr", "accuracy"]
    test.obs.loc[test.obs["kind"] == "rare", "kind"] = "never seen"
    with pytest.warns(DataWarning, match="never seen"):
        renamed = cs.benchmark.score_distilled(train, test, {}, labels_key="kind", models=("lr",))
    value = renamed.set_index(["method", "metric"])["value"]["full", "accuracy"]
    share = 3 / test.n_obs
    assert right - share <= value <= min(right, 1 - share)
    with pytest.raises(SetupError, match="other genes"):
        cs.benchmark.score_distilled(train, test, {"cut": small[:, :5]}, labels_key="kind")
    with pytest.raises(SetupError, match="stands for 'train'"):
        cs.benchmark.score_distilled(train, test, {"full": small}, labels_key="kind")


@pytest.mark.parametrize("name", [n for n in peers.SHOWN if not n.startswith(("geosketch", "scdd", "generator"))])
def test_every_peer_answers_with_rows_that_can_be_scored(part, name) -> None:
    made = peers.built_in("kind")[name](part.reading.train, 2, 0)
    assert made.n_obs == {"full": 56, "pseudobulk": 3}.get(name, 6)
    (row,) = [r for r in scoring.score(made, part.reading, models=("knn1",)) if r["metric"] == "accuracy"]
    assert 0 <= row["value"] <= 1
    if name == "metacell_thin":
        assert (
            made.X.sum(axis=1).max()
            < cs.tl.sketch(part.reading.train, "kind", 2, method="metacell").X.sum(axis=1).max()
        )
    found = scoring.readings(made, part.reading, metrics="all")
    assert np.isfinite([found["coverage"], found["hausdorff"], found["membership_auc"]]).all()


def test_scdd_is_trained_once_a_cut_and_starts_at_the_metacells(part, monkeypatch) -> None:
    from cellsmith.model import SCDD

    plain, trained = SCDD.train, []

    def short(self, max_epochs=None, **options):
        trained.append(self)
        return plain(self, max_epochs=1, **options)

    monkeypatch.setattr(SCDD, "train", short)
    train = part.reading.train
    before = train.copy()
    methods = peers.built_in("kind")
    for n in (1, 3):
        start = methods["scdd"](train, n, 0)
        theirs = methods["metacell_mean_log"](train, n, 0)
        np.testing.assert_allclose(start.layers["scdd_log"], theirs.layers["sketch_log"], atol=1e-6)
        assert scoring.score(start, part.reading, models=("lr",)) == scoring.score(theirs, part.reading, models=("lr",))
    samples = methods["generator_samples"](train, 3, 0)
    assert samples.obs["kind"].value_counts().to_dict() == {"a": 3, "b": 3, "rare": 3}
    deep, thin = methods["scdd_counts"](train, 1, 0), methods["scdd_thin"](train, 1, 0)
    exact = methods["scdd"](train, 1, 0).layers["scdd_log"]
    # Rounding at the depth of one cell costs more than at that of a group.
    error = [np.abs(made.layers["scdd_log"] - exact).max() for made in (deep, thin)]
    assert 0 < error[0] < error[1]
    assert len(trained) == 1
    assert list(train.obs) == list(before.obs)
    assert set(train.uns) == set(before.uns)


def test_geosketch_is_left_out_with_a_word_where_it_is_not_installed(monkeypatch) -> None:
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    with pytest.warns(DataWarning, match="left out"):
        assert list(peers.pick(("full", "geosketch"), labels_key="kind")) == ["full"]


def test_rare_classes_are_small_in_number_or_share() -> None:
    codes = np.repeat([0, 1, 2], [2000, 41, 15])
    assert list(scoring.rare_classes(codes, 3)) == [1, 2]
    assert list(scoring.rare_classes(np.repeat([0, 1], [50, 21]), 2)) == []


def test_paired_differences_have_both_intervals() -> None:
    values = {("metacell", 1): [0.8, 0.82, 0.81], ("random", 1): [0.7, 0.75, 0.72], ("full", 0): [0.9, 0.9, 0.9]}
    results = Results(table_of(values))
    gap = results.gap("pbmc68k_reduced", "metacell", "random", budget=1)
    d = np.array([0.10, 0.07, 0.09])
    half = stats.t.ppf(0.975, 2) * d.std(ddof=1)
    assert (gap.mean, gap.runs) == (pytest.approx(d.mean()), 3)
    assert gap.high == pytest.approx(d.mean() + half * np.sqrt(1 / 3))
    assert gap.corrected_high == pytest.approx(d.mean() + half * np.sqrt(1 / 3 + 210 / 490))
    assert results.gap("pbmc68k_reduced", "metacell", "full", budget=1).mean == pytest.approx(-0.09)
    assert results.gap("pbmc68k_reduced", "metacell", "kcenter", budget=1).runs == 0


@pytest.mark.parametrize(("shift", "meets"), [(0.02, True), (-0.02, False)])
def test_bars_can_be_met_and_missed(shift, meets) -> None:
    base = np.array([0.80, 0.81, 0.82])
    values = {("scdd", b): list(base + shift) for b in (1, 5, 10)}
    values |= {(m, b): list(base + 0.001 * np.arange(3)) for b in (1, 5, 10) for m in bars.METACELLS}
    results = Results(table_of(values))
    for bar in bars.BARS[:2]:
        assert bar.measure(results).meets is meets
    assert bars.BARS[2].measure(results) is None  # random was not run


def test_the_page_is_written_from_the_table_alone(tmp_path) -> None:
    values = {("full", 0): [0.9, 0.8], ("random", 1): [0.5, 0.6], ("metacell", 1): [0.7, 0.7]}
    Store(COLUMNS, tmp_path / "distillation.csv").add(table_of(values).to_dict("records"))
    (tmp_path / "_distillation_notes.md").write_text("---\norphan: true\n---\nSome words.")
    text = report(tmp_path).read_text()
    assert "| 1 | random | 0.550 |" in text
    assert "-15.0 [" in text
    assert "no row of this table is of it" in text
    assert text.rstrip().endswith("Some words.")
    assert main(["distillation", "--methods", "--out", str(tmp_path)]) == 0


def test_variants_are_compared_with_the_means_of_groups(tmp_path) -> None:
    names = ("metacell_mean_log", "readers, last of 50 steps")
    values = dict(zip([(n, 1) for n in names], ([0.7, 0.8], [0.75, 0.8]), strict=True))
    Store(COLUMNS, tmp_path / ABLATION_TABLE).add(table_of(values).to_dict("records"))
    Store(COLUMNS, tmp_path / "distillation.csv").add(table_of({("full", 0): [0.9, 0.8]}).to_dict("records"))
    text = report(tmp_path).read_text()
    assert "What each part earns" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| 1 | readers, last of 50 steps")]
    assert row.split(" | ")[2:6] == ["+2.5"] * 4


@pytest.mark.parametrize("objective", ["gradient", "distribution"])
def test_matched_expression_moves_real_cells(part, objective) -> None:
    train = part.reading.train
    made = [matched_expression(train, 2, s, labels_key="kind", objective=objective) for s in (0, 0, 1)]
    assert (made[0].X != made[1].X).nnz == 0
    assert (made[0].X != made[2].X).nnz > 0
    np.testing.assert_array_equal(made[0].X.sum(axis=1).A1, 20_000)


@pytest.mark.filterwarnings("ignore:.*geosketch")
def test_what_was_typed_wrongly_is_named(cells) -> None:
    run = cs.benchmark.distillation
    with pytest.raises(SetupError, match="Did you mean 'kind'"):
        run(cells, "kinds")
    with pytest.raises(SetupError, match="Did you mean 'herding'"):
        run(cells, "kind", methods=("hearding",))
    with pytest.raises(SetupError, match="The classifier 'svm'"):
        run(cells, "kind", models=("svm",))
    with pytest.raises(SetupError, match="'core' or 'all'"):
        run(cells, "kind", metrics="some")
    with pytest.raises(SetupError, match="built-in name 'random'"):
        run(cells, "kind", candidates={"random": lambda train, n, rng: train})
    single = cells[[0, 1, 2, 45]].copy()
    with pytest.raises(SetupError, match="two cells or more"):
        run(single, "kind")
    odd = {"odd": lambda train, n, rng: train[:, :3]}
    with pytest.raises(SetupError, match="other genes"):
        run(cells, "kind", candidates=odd, methods=("full",), models=("knn1",), n_splits=1)


def test_the_command_runs_the_embedded_file(tmp_path, monkeypatch) -> None:
    rng = np.random.default_rng(1)
    codes = np.repeat([0, 1], 20)
    obs = pd.DataFrame({"cell_type": np.array(["a", "b"])[codes]}, index=[str(i) for i in range(40)])
    tiny = ad.AnnData(rng.poisson(3.0 + 3 * codes[:, None] * (np.arange(6) > 2)).astype(np.float32) + 1, obs=obs)
    monkeypatch.setattr("cellsmith.benchmark._distillation.command.read", lambda file, directory: tiny)
    typed = ["distillation", "--files", "pbmc68k_reduced", "--seeds", "1", "--methods", "full", "metacell"]
    typed += ["--models", "knn1", "lr", "--budgets", "2", "--out", str(tmp_path)]
    with warnings.catch_warnings():
        assert main(typed) == 0
    rows = pd.read_csv(tmp_path / "distillation.csv")
    assert set(rows["method"]) == {"full", "metacell"}
    assert "## pbmc68k_reduced" in (tmp_path / "distillation.md").read_text()


@pytest.fixture
def two_batches(cells) -> ad.AnnData:
    own = cells.copy()
    own.obs["cell_type"] = own.obs["kind"]
    own.obs["batch"] = pd.Categorical(np.array(["one", "two"])[np.arange(own.n_obs) % 2])
    return own


def test_a_batch_is_tested_on_and_never_learnt_from(two_batches, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(transfer, "read", lambda file, directory: two_batches)
    parts = list(transfer.cuts(tmp_path, transfer.TECHNOLOGIES, 1))
    assert [p.file for p in parts] == ["pbmc_3tech, tested on one", "pbmc_3tech, tested on two"]
    for part, tested in zip(parts, ("one", "two"), strict=True):
        assert set(part.reading.test.obs["batch"]) == {tested}
        assert set(part.reading.train.obs["batch"]) == {"one", "two"} - {tested}
        # Four fifths of every class, rounded up: 20, 15 and 5 cells a batch.
        assert part.reading.train.obs["cell_type"].value_counts().to_dict() == {"b": 16, "a": 12, "rare": 4}
    again, other = (next(transfer.cuts(tmp_path, transfer.TECHNOLOGIES, s)) for s in (1, 2))
    assert list(again.reading.train.obs_names) == list(parts[0].reading.train.obs_names)
    assert list(other.reading.train.obs_names) != list(parts[0].reading.train.obs_names)


def test_transfer_runs_its_methods_once(two_batches, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(transfer, "read", lambda file, directory: two_batches)
    named = {"full": lambda train, n, rng: train, "within": transfer.metacells_within}
    monkeypatch.setattr(transfer, "candidates", lambda: named)
    store = Store(COLUMNS, tmp_path / "rows.csv")
    options = {"files": [transfer.CONDITIONS], "seeds": [1], "budgets": [2], "recipe": Recipe(("knn1",), n_seeds=1)}
    for _ in range(2):
        transfer.transfer(tmp_path, store=store, **options)
    accuracy = store.table[store.table["metric"] == "accuracy"]
    assert len(accuracy) == 2 * 2
    # One batch is left to learn from: two rows of each of three classes.
    assert set(store.table.query("metric == 'n_rows' and method == 'within'")["value"]) == {6.0}


def test_bars_of_transfer_and_speed_can_be_met_and_missed(tmp_path) -> None:
    table = table_of({("full", 0): [0.8, 0.9], (transfer.WITHIN, 10): [0.78, 0.88]})
    results = Results(table.assign(file="pbmc_3tech, tested on 5p"))
    assert bars.TRANSFER_BARS[0].measure(results).meets
    assert not bars.TRANSFER_BARS[0].measure(results).exceeds
    values = {(m, 1): [0.7, 0.8] for m in bars.METACELLS} | {("full", 0): [0.8, 0.9]}
    for ours, meets in (([0.69, 0.79], True), ([0.65, 0.79], False)):
        rows = table_of({**values, ("scdd", 1): ours}).assign(file="kang_ifnb, tested on STIM")
        assert bars.TRANSFER_BARS[1].measure(Results(rows)).meets is meets
        rows = table_of({**values, (transfer.POOL[0], 1): ours})
        assert bars.TRANSFER_BARS[2].measure(Results(rows)).meets is meets
    assert bars.TRANSFER_BARS[3].measure(Results(rows)) is None
    assert bars.SPEED_BARS[0].measure({"epoch_over_scvi": 1.2}).meets
    assert not bars.SPEED_BARS[0].measure({"epoch_over_scvi": 1.4}).meets
    assert bars.SPEED_BARS[1].measure({"epoch_over_scvi": 1.2}) is None


def test_the_page_has_transfer_and_speed_where_they_were_run(tmp_path) -> None:
    rows = table_of({("full", 0): [0.8, 0.9], ("scdd", 1): [0.7, 0.8]}).assign(file="kang_ifnb, tested on STIM")
    Store(COLUMNS, tmp_path / TRANSFER_TABLE).add(rows.to_dict("records"))
    Store(SPEED, tmp_path / SPEED_TABLE).add([{"quantity": "epoch_over_scvi", "value": 1.1, "detail": "toy"}])
    text = report(tmp_path).read_text()
    assert "### kang_ifnb, tested on STIM" in text
    assert "| an epoch of the autoencoder over one of scVI | <= 1.3 | - | 1.100 | pass |" in text


def test_plain_loops_choose_what_sketches_choose() -> None:
    points = np.random.default_rng(0).normal(size=(30, 4))
    assert speed.herding_loop(points, 5) == list(matching.herding(points, 5))
    assert speed.kcenter_loop(points, 5) == list(matching.k_center(points, 5))


def test_plain_metacells_are_those_of_the_sketch() -> None:
    data = cs.datasets.toy_counts(120, 20, n_types=3)
    data.obsm["X_pca"] = np.random.default_rng(0).normal(size=(120, 4))
    plain, ours = speed.plain_metacell(data), speed.metacell(data)
    totals = [np.sort(np.asarray(x.sum(axis=1)).ravel()) for x in (plain.layers["sum"], ours.X)]
    np.testing.assert_array_equal(*totals)


def test_what_a_speed_run_lacks_is_added(monkeypatch, tmp_path) -> None:
    jobs = {
        "a": ("first", lambda directory: {"first": 1.0, "more": 2.0}, "toy"),
        "b": ("second", lambda directory: {"second": 3.0}, "toy"),
        "c": ("third", lambda directory: {"third": 4.0}, "toy"),
    }
    monkeypatch.setattr(speed, "TASKS", jobs)
    store = Store(SPEED, tmp_path / "rows.csv")
    store.add([{"quantity": "second", "value": 5.0, "detail": "before"}])
    speed.speed(tmp_path, store=store, chosen=["a", "b"])
    assert store.table.set_index("quantity")["value"].to_dict() == {"second": 5.0, "first": 1.0, "more": 2.0}
