"""The topic benchmark on tiny sets: genes and peers, scores with known answers, tasks, tables, page, bars."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import cellsmith
from cellsmith._errors import SetupError
from cellsmith.benchmark._missingness.results import Tables
from cellsmith.benchmark._store import SPEED, TASKS, Store
from cellsmith.benchmark._topics import bars, choice, conditions, enriched, peers, scoring, stability, use_bars, views
from cellsmith.benchmark._topics.cases import prepare, variable_genes
from cellsmith.benchmark._topics.compare import EVERY, pick, run_case
from cellsmith.benchmark._topics.fits import Fits
from cellsmith.benchmark._topics.ours import ABLATIONS, DEFAULT, VARIANTS
from cellsmith.benchmark._topics.report import report

pytestmark = pytest.mark.filterwarnings("ignore::cellsmith._errors.CellsmithWarning")


@pytest.fixture(scope="module")
def cells():
    adata = cellsmith.datasets.toy_counts(120, 60, n_types=3, rng=0)
    adata.obs["condition"] = np.where(np.arange(120) % 2, "STIM", "CTRL")
    return adata


@pytest.fixture(scope="module")
def case(cells):
    return prepare(cells, file="toy")


# --- cells and peers -------------------------------------------------------------------------------------------------


def test_every_method_gets_counts_without_labels(case, cells):
    assert list(case.cells.obs.columns) == []
    np.testing.assert_array_equal(case.cells.X.toarray(), cells.X.toarray())
    np.testing.assert_allclose(np.expm1(case.log.toarray()).sum(axis=1), 1e4, rtol=1e-6)
    assert case.n_types == 3
    part = case.of(np.arange(7))
    assert part.cells.n_obs == part.log.shape[0] == len(part.labels) == len(part.obs) == 7


def test_genes_are_chosen_by_the_given_cells_and_no_label(cells):
    half = np.arange(120) < 60
    log = prepare(cells, file="toy").log
    chosen = variable_genes(log[half], 20)
    assert chosen.shape == (20,)
    assert (np.diff(chosen) > 0).all()
    other = cells.copy()
    other.obs["cell_type"] = other.obs["cell_type"].to_numpy()[::-1]
    np.testing.assert_array_equal(chosen, variable_genes(prepare(other, file="toy").log[half], 20))


def test_nmf_recovers_blocks(case):
    rng = np.random.default_rng(0)
    share = rng.dirichlet([0.1, 0.1, 0.1], 100)
    block = np.kron(np.eye(3), np.ones((1, 10)))
    counts = rng.poisson(200 * share @ block / 10).astype(np.float32) + 0
    adata = ad.AnnData(sparse.csr_matrix(counts[counts.sum(axis=1) > 0]))
    fit = peers.nmf(prepare(adata, file="blocks", labels_key=None), 3, 0)
    np.testing.assert_allclose(fit.spaces["theta"].sum(axis=1), 1.0, rtol=1e-5)
    own = fit.loadings[""].reshape(3, 10, 3).sum(axis=1)
    assert sorted(own.argmax(axis=0).tolist()) == [0, 1, 2]
    assert (own.max(axis=0) > 0.8 * own.sum(axis=0)).all()


def test_fits_are_kept_on_disk_and_read_back(case, tmp_path):
    calls = []

    def method(case, n_topics, seed):
        calls.append((n_topics, seed))
        return peers.Fit({"theta": np.eye(3, dtype=np.float32)}, {"": np.ones((4, 3)), "lift": np.zeros((4, 3))})

    first = Fits({"mine, all": method}, tmp_path).get(case, "mine, all", n_topics=3, seed=1)
    again = Fits({"mine, all": method}, tmp_path).get(case, "mine, all", n_topics=3, seed=1)
    assert calls == [(3, 1)]
    np.testing.assert_array_equal(first.spaces["theta"], again.spaces["theta"])
    assert set(again.loadings) == {"", "lift"}


# --- scores ----------------------------------------------------------------------------------------------------------


def test_purity_and_capture_have_their_known_values():
    theta = np.eye(3)[[0, 0, 0, 1, 1, 2]]
    labels = np.array(["a", "a", "b", "b", "b", "c"], dtype=object)
    assert scoring.purity(theta, labels) == pytest.approx(5 / 6)
    caught = scoring.capture(theta, labels)
    assert caught["a"] == pytest.approx(2 * 2 / (2 + 3))
    assert caught["b"] == pytest.approx(2 * 2 / (3 + 2))
    assert caught["c"] == 1.0


def test_perfect_proportions_score_perfectly_and_a_shuffle_does_not(case):
    _, types = np.unique(case.labels.astype(str), return_inverse=True)
    theta = (0.9 * np.eye(3)[types] + 0.1 / 3).astype(np.float32)
    theta = theta + 0.001 * np.random.default_rng(0).random(theta.shape).astype(np.float32)
    found = scoring.cell_scores(case, peers.Fit({"theta": theta}, {"": np.ones((60, 3))}), 0)
    assert found["kmeans_ari_theta"] == found["purity"] == 1.0
    assert found["ceiling_ari_theta"] >= found["leiden_ari_theta"]
    mixed = scoring.cell_scores(case, peers.Fit({"theta": np.random.default_rng(1).permutation(theta)}), 0)
    assert mixed["kmeans_ari_theta"] < 0.1


def test_topics_that_repeat_have_no_diversity(case):
    same = np.repeat(np.arange(60.0)[:, None], 3, axis=1)
    found = scoring.topic_scores(case, same)
    assert found["td_unique"] == pytest.approx(1 / 3)
    assert found["td_once"] == 0
    assert found["redundancy"] == 1
    blocks = np.zeros((60, 3))
    for k in range(3):
        blocks[10 * k : 10 * (k + 1), k] = 1.0
    assert scoring.topic_scores(case, blocks)["td_unique"] == 1


# --- the public function ---------------------------------------------------------------------------------------------


def test_rows_are_tidy_and_resumed(cells, tmp_path):
    def mine(case, n_topics, seed):
        assert "cell_type" not in case.cells.obs
        rng = np.random.default_rng(seed)
        return peers.Fit({"theta": rng.dirichlet(np.ones(n_topics), 120).astype(np.float32)}, {"": rng.random((60, 4))})

    out = tmp_path / "rows.csv"
    store, fits = Store(TASKS, out), Fits({"mine": mine, peers.PCA: peers.pca})
    case = prepare(cells, file="toy")
    for _ in range(2):
        run_case(case, ["mine", peers.PCA], n_topics=4, seed=0, store=store, fits=fits)
    rows = pd.read_csv(out)
    assert list(rows.columns) == list(TASKS)
    assert not rows.duplicated(["variant", "metric"]).any()
    value = rows.set_index(["variant", "metric"])["value"]
    assert value[peers.PCA, "kmeans_ari_theta"] > value["mine", "kmeans_ari_theta"]
    assert (peers.PCA, "npmi") not in value.index


def test_public_function_runs_named_methods(cells):
    table = cellsmith.benchmark.topics(cells, labels_key="cell_type", n_topics=4, methods=[peers.NMF], name="toy")
    assert set(table["variant"]) == {peers.NMF}
    assert {"td_unique", "npmi", "kmeans_ari_theta", "cpu_s"} <= set(table["metric"])
    assert cellsmith.benchmark.topics is not None
    unlabelled = cellsmith.benchmark.topics(cells, n_topics=4, methods=[peers.NMF])
    assert not unlabelled["metric"].str.contains("ari").any()


@pytest.mark.parametrize(
    ("options", "words"),
    [({"labels_key": "cell_typ"}, "cell_type"), ({"layer": "log"}, "layers"), ({"methods": "LDA2"}, "There is no")],
)
def test_wrong_names_are_refused(cells, options, words):
    with pytest.raises(SetupError, match=words):
        cellsmith.benchmark.topics(cells, **options)


def test_own_method_stands_beside_all_others():
    picked = pick({"mine": peers.pca})
    assert list(picked)[-1] == "mine"
    assert DEFAULT in picked
    assert set(VARIANTS) <= set(EVERY)
    assert set(ABLATIONS) <= set(VARIANTS)


# --- tasks -----------------------------------------------------------------------------------------------------------


def test_split_keeps_every_combination(cells):
    train = conditions.stratified(cells.obs, ["cell_type", "condition"], 0)
    table = cells.obs[train].groupby(["cell_type", "condition"], observed=True).size()
    whole = cells.obs.groupby(["cell_type", "condition"], observed=True).size()
    assert ((table / whole - 0.7).abs() <= 0.5 / whole + 1e-9).all()
    np.testing.assert_array_equal(train, conditions.stratified(cells.obs, ["cell_type", "condition"], 0))


def test_fold_change_has_the_stated_form():
    after, before = np.array([[3.0, 0.0], [5.0, 0.0]]), np.array([[1.0, 7.0], [1.0, 7.0]])
    np.testing.assert_allclose(conditions.change(after, before), np.log2([5.0 / 2.0, 1.0 / 8.0]))


def test_planted_genes_rise_in_the_treated_cells_alone(cells):
    counts, treated, genes = conditions.plant(sparse.csr_matrix(cells.X), 0, n=5)
    before, after = cells.X.toarray(), counts.toarray()
    np.testing.assert_array_equal(before[~treated], after[~treated])
    rest = np.setdiff1d(np.arange(cells.n_vars), genes)
    np.testing.assert_array_equal(before[:, rest], after[:, rest])
    ratio = after[np.ix_(treated, genes)].sum() / before[np.ix_(treated, genes)].sum()
    assert 4 < ratio < 8


class _Oracle:
    """Stands for a model: it raises each type by its fold changes, or by noise."""

    def __init__(self, logfc):
        self.logfc = logfc

    def perturb_topics(self, adata, *, indices, topics, op, strength):
        kinds = adata.obs["cell_type"].iloc[indices]
        noise = np.random.default_rng(1).normal(size=adata.n_vars)
        rise = np.stack([self.logfc[k] if topics == "right" else noise for k in kinds])
        before = np.full(rise.shape, 1000.0)
        edited = ad.AnnData((1 + before) * 2.0 ** (strength * rise) - 1)
        return type("Answer", (), {"to_adata": lambda _: edited})()


def test_scores_of_a_prediction_know_truth_from_noise(cells):
    task = conditions.Task("t", "toy", 0, cells, cells, "STIM", "CTRL", 5)
    truth = {
        t: conditions.change(*(conditions.on_scale(cells.X[task.rows(t, c)]) for c in ("STIM", "CTRL")))
        for t in task.types()
    }
    assert len(truth) == 3
    model = _Oracle(truth)
    right = conditions._scores(conditions.predicted(task, model, "right", truth), truth)
    wrong = conditions._scores(conditions.predicted(task, model, "wrong", truth), truth)
    assert right["spearman"] == pytest.approx(1)
    assert right["slope"] == pytest.approx(1)
    assert right["top20"] == 20
    assert abs(wrong["spearman"]) < 0.4


def test_views_are_what_they_say(case):
    rng = np.random.default_rng(0)
    labels = case.labels.astype(str)
    truth = views.truth(case, rng)
    assert (np.unique(labels)[truth.argmax(axis=1)] == labels).mean() > 0.9
    half = views.rows_right(case, rng, 0.5)
    assert 0.4 < (np.unique(labels)[half.argmax(axis=1)] == labels).mean() < 0.95
    absent = views.half_present(case, rng)
    assert 0.3 < np.isnan(absent[:, 0]).mean() < 0.7
    assert views.same_genes(case, rng).shape[0] == 120


def test_planted_topics_have_genes_of_their_own():
    counts, profile = stability.planted_counts(0, n_cells=60, n_topics=4)
    assert counts.shape == (60, 4 * stability.GENES_PER_TOPIC + stability.SHARED_GENES)
    np.testing.assert_allclose(profile.sum(axis=0), 1.0)
    own = profile[: 4 * stability.GENES_PER_TOPIC].reshape(4, -1, 4).sum(axis=1)
    assert (own.argmax(axis=0) == np.arange(4)).all()


def test_enriched_triple_counts_pairs_and_distinct_sets():
    genes = [f"g{i}" for i in range(200)]
    sets = {"own": tuple(genes[:10]), "other": tuple(genes[100:110])}
    lists = [genes[:10], genes[:10], genes[50:60]]
    assert enriched.triple(lists, sets, genes) == {"n_enriched": 2.0, "n_unique": 1.0, "unique_ratio": 0.5}
    loadings = np.zeros((200, 1))
    loadings[5:15] = 1
    assert enriched.top_lists(loadings, genes) == [genes[5:15]]


# --- page and bars ---------------------------------------------------------------------------------------------------


def _row(task, file, variant, metric, value, seed=0):
    return dict(zip(TASKS, (task, file, seed, variant, metric, value), strict=True))


def test_page_without_any_row_says_what_was_not_run(tmp_path):
    text = report(tmp_path).read_text(encoding="utf-8")
    assert text.count("not run") >= len(use_bars.BARS)
    assert "Not run." in text


def test_page_shows_rows_and_notes(tmp_path):
    store = Store(TASKS, tmp_path / "topics.csv")
    for seed in range(3):
        for variant, value in ((DEFAULT, 0.8), (peers.NMF, 0.7)):
            row = ("topics, K = 20", "pbmc68k", variant)
            store.add([_row(*row, "td_unique", value + 0.01 * seed, seed), _row(*row, "npmi", 0.2, seed)])
    (tmp_path / "_topics_notes.md").write_text("---\norphan: true\n---\nwritten by hand", encoding="utf-8")
    text = report(tmp_path).read_text(encoding="utf-8")
    assert "0.810 ± 0.010" in text
    assert "written by hand" in text
    assert "orphan" not in text


def _judged(rows, name):
    results = Tables(pd.DataFrame(rows, columns=list(TASKS)), pd.DataFrame(columns=list(SPEED)))
    (bar,) = (b for b in use_bars.BARS if b.check.startswith(name))
    found = bar.measure(results)
    return bars_mark(bar, found)


def bars_mark(bar, found):
    from cellsmith.benchmark._annotation.bars import mark

    return mark(bar, found)


def test_guard_of_the_gradient_is_judged_on_every_seed():
    def rows(gap):
        out = []
        for seed in range(3):
            for variant, value in (
                (bars.SHORT, 0.8),
                (bars.UNROLLED, 0.81),
                (bars.ENVELOPE, 0.8 - (0.3 if seed else gap)),
            ):
                out.append(_row("topics, K = 20", "pbmc68k", variant, "td_unique", value, seed))
        return out

    assert _judged(rows(0.2), "A7") == "pass"
    assert _judged(rows(0.05), "A7") == "FAIL"
    assert _judged([], "A7") == "not run"


def test_held_out_row_fails_where_random_topics_do_as_well():
    def rows(chance):
        task, file = "held-out cells", "kang_ifnb"
        values = {"spearman": 0.7, "random": chance, "nearer": 0.9, "top20": 13.0}
        values |= {f"rank {t}": float(i + 1) for i, t in enumerate(conditions.INTERFERON)}
        out = [_row(task, file, DEFAULT, m, v) for m, v in values.items()]
        return [*out, _row(task, file, conditions.SHIFT, "spearman", 0.72)]

    assert _judged(rows(0.1), "P1") == "pass"
    assert _judged(rows(0.6), "P1") == "FAIL"


def test_views_of_noise_must_be_bit_equal():
    def rows(equal):
        out = []
        for draw in range(20):
            for name in ("noise", "rows permuted"):
                out += [_row(views.NOISE, "pbmc68k", name, "q", 0.0, draw)]
                out += [_row(views.NOISE, "pbmc68k", name, "bit_equal", equal if draw == 3 else 1.0, draw)]
        return out

    assert _judged(rows(1.0), "V1") == "pass"
    assert _judged(rows(0.0), "V1") == "FAIL"


def _scored(name, *, nats, tq, redundancy=0.1):
    values = {"nats": nats, "tq": tq, "redundancy": redundancy, choice.AGREEMENT: 0.5}
    return [_row(choice.TASK, file, name, m, v, 0) for file in ("pbmc68k", "pbmc4k_10x") for m, v in values.items()]


@pytest.mark.parametrize(
    ("better", "present", "winner"),
    [
        ({"nats": 6.0, "tq": 0.3}, {"nats": 6.0, "tq": 0.2}, "better"),
        ({"nats": 6.0, "tq": 0.2}, {"nats": 6.0, "tq": 0.2}, "present"),  # a change needs a reason
        ({"nats": 6.02, "tq": 0.3}, {"nats": 6.0, "tq": 0.2}, "present"),  # worse on cells left out
        ({"nats": 6.0, "tq": 0.1}, {"nats": 6.02, "tq": 0.2}, "better"),  # the present one is
        ({"nats": 6.0, "tq": 0.1}, {"nats": 6.0, "tq": 0.2, "redundancy": 0.3}, "better"),
        ({"nats": 6.02, "tq": 0.3}, {"nats": 6.0, "tq": 0.2, "redundancy": 0.3}, "present"),  # nobody varied is near
    ],
)
def test_rule_of_the_default(better, present, winner):
    table = pd.DataFrame([*_scored("better", **better), *_scored("present", **present)])
    assert choice.chosen(table, ["better", "present"], "present")[0] == winner


def test_rule_of_the_smallest_effect():
    def rows(found, chance):
        out = []
        for e, f, c in zip(choice.EFFECTS, found, chance, strict=True):
            for seed in range(2):
                out.append(_row(choice.ON_TOYS, "toy", "10 genes", f"found {e:g}", f, seed))
                out.append(_row(choice.ON_TOYS, "toy", "10 genes", f"selected {e:g}", 3.0, seed))
                out.append(_row(choice.ON_TOYS, "toy", choice.NOTHING, f"selected {e:g}", c, seed))
        return pd.DataFrame(out)

    found = (0.9, 0.85, 0.8, 0.79, 0.6, 0.1)
    assert choice.chosen_effect(rows(found, (0.2, 0.1, 0, 0, 0, 0)), choice.ON_TOYS)[0] == 0.5
    assert choice.chosen_effect(rows(found, (0.05, 0, 0, 0, 0, 0)), choice.ON_TOYS)[0] == 0.0
