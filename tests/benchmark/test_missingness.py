"""The benchmark of missing entries on tiny sets: margins of the masks, peers with known answers, tables, page, bars."""

from __future__ import annotations

import itertools
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import cellsmith
from cellsmith._errors import SetupError
from cellsmith.benchmark.__main__ import main
from cellsmith.benchmark._missingness import (
    bars,
    decision,
    laws,
    mechanisms,
    methods,
    peers,
    queries,
    reference,
    scoring,
    speed,
)
from cellsmith.benchmark._missingness import zeros as zero_masks
from cellsmith.benchmark._missingness.cases import masked, prepare
from cellsmith.benchmark._missingness.compare import run_case
from cellsmith.benchmark._missingness.report import report
from cellsmith.benchmark._missingness.results import Tables
from cellsmith.benchmark._store import SPEED, TASKS, Store

pytestmark = pytest.mark.filterwarnings("ignore::cellsmith._errors.CellsmithWarning")

LIGHT = ["complete", "zero-fill", "mean-impute", "pairwise-complete", "BC logistic"]


def sizes(n: int, n_features: int) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, n_features)), mechanisms.depth_of(rng.lognormal(5, 1, n)), np.random.default_rng(1)


def chances(name: str, n: int, n_features: int) -> np.ndarray:
    values, depth, rng = sizes(n, n_features)
    return mechanisms.probabilities(name, values, depth, rng=rng)


@pytest.fixture(scope="module")
def low_rank() -> np.ndarray:
    rng = np.random.default_rng(0)
    return 3.0 + rng.normal(size=(80, 2)) @ rng.normal(size=(2, 60))


@pytest.fixture(scope="module")
def cells():
    adata = cellsmith.datasets.toy_counts(150, 90, n_types=3, rng=0)
    complete = prepare(adata, file="toy")
    return ad.AnnData(complete.values, obs=pd.DataFrame({"cell_type": complete.labels}).astype(str))


# --- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rate"),
    [("homogeneous", 0.35), ("rank-1 observed", 0.36), ("rank-1 missing", 0.5125), ("logistic", 0.41)],
)
def test_mechanism_observes_the_stated_share(name, rate):
    observed = mechanisms.MECHANISMS[name](*sizes(900, 900))
    assert observed.dtype == bool
    assert observed.mean() == pytest.approx(rate, abs=0.02)


@pytest.mark.parametrize(
    ("name", "rate"), [("homogeneous", 0.30), ("rank-1 observed", 0.36), ("rank-1 missing", 0.51), ("logistic", 0.42)]
)
def test_mechanism_of_the_reference_observes_the_stated_share(name, rate):
    assert chances(name, 900, 900).mean() == pytest.approx(rate, abs=0.02)


def test_margins_have_the_form_of_their_mechanism():
    p = chances("rank-1 observed", 40, 30)
    assert np.linalg.matrix_rank(p) == 1
    missing = 1.0 - chances("rank-1 missing", 40, 30)
    assert np.linalg.matrix_rank(missing) == 1
    p = chances("logistic", 40, 30)
    logit = np.log(p / (1 - p))
    np.testing.assert_allclose(logit - logit[:1] - logit[:, :1] + logit[0, 0], 0.0, atol=1e-9)


def test_depth_and_values_decide_where_the_mechanism_says_so():
    values, depth, rng = sizes(600, 300)
    linked = mechanisms.MECHANISMS["depth-linked"](values, depth, rng)
    assert np.corrcoef(depth, linked.mean(axis=1))[0, 1] > 0.95
    stress = mechanisms.MECHANISMS[mechanisms.STRESS](values, depth, rng)
    assert values[stress].mean() > values[~stress].mean() + 0.5
    at_random = mechanisms.MECHANISMS["logistic"](values, depth, rng)
    assert abs(values[at_random].mean() - values[~at_random].mean()) < 0.05


def test_masks_are_seeded():
    complete = reference.complete_c()
    masks = mechanisms.MECHANISMS
    first, again = (masked(complete, "logistic", masks["logistic"], seed=0, task="x").values for _ in range(2))
    np.testing.assert_array_equal(first, again)
    other = masked(complete, "logistic", masks["logistic"], seed=1, task="x").values
    assert (np.isnan(first) != np.isnan(other)).any()
    assert np.array_equal(first[np.isfinite(first)], complete.values[np.isfinite(first)])


def test_unknown_mechanism_names_the_nearest():
    with pytest.raises(SetupError, match="logistic"):
        mechanisms.pick(["logistics"])
    with pytest.raises(SetupError, match="softImpute"):
        methods.pick(["softimpute"])


# --- peers -----------------------------------------------------------------------------------------------------------


def test_peers_equal_principal_components_on_complete_data(low_rank):
    noisy = low_rank + 0.1 * np.random.default_rng(1).normal(size=low_rank.shape)
    truth = peers.pca(noisy, 2)
    for peer in (peers.zero_fill, peers.mean_impute, peers.pairwise_complete, peers.prime_like):
        found = peer(noisy, 2)
        np.testing.assert_allclose(np.abs(found), np.abs(truth), rtol=1e-6, atol=1e-6, err_msg=peer.__name__)
    singular = np.linalg.svd(noisy - noisy.mean(axis=0))[1][:2]
    np.testing.assert_allclose(np.linalg.norm(truth, axis=0), singular)


def test_completion_recovers_an_exact_low_rank_matrix_where_filling_does_not(low_rank):
    rng = np.random.default_rng(2)
    x = mechanisms.apply_mask(low_rank, rng.random(low_rank.shape) < 0.6)
    truth = peers.pca(low_rank, 2)
    gap = {
        "zero": scoring.subspace_gap(peers.zero_fill(x, 2), truth),
        "mean": scoring.subspace_gap(peers.mean_impute(x, 2), truth),
        "soft": scoring.subspace_gap(peers.soft_impute(x, 2, rng=rng), truth),
        "prime": scoring.subspace_gap(peers.prime_like(x, 2), truth),
    }
    assert max(gap["soft"], gap["prime"]) < 0.1 < gap["mean"] < gap["zero"]


def test_soft_threshold_of_complete_data_is_the_shrunken_svd(low_rank):
    z = low_rank - low_rank.mean(axis=0)
    share = 0.25
    *_, (u, s, v) = peers._path(z, np.ones_like(z), 2, penalties=[share])
    np.testing.assert_allclose((u * s) @ v.T, z, atol=1e-8)


def test_pairwise_peer_equals_the_formula_entry_by_entry(low_rank):
    x = mechanisms.apply_mask(low_rank, np.random.default_rng(3).random(low_rank.shape) < 0.5)
    z = np.nan_to_num(x - np.nanmean(x, axis=0))
    both = np.isfinite(x)
    gram = np.array([[z[i] @ z[j] / max(1, (both[i] & both[j]).sum()) for j in range(80)] for i in range(80)])
    values, vectors = np.linalg.eigh(gram)
    expected = vectors[:, :-3:-1] * np.sqrt(values[:-3:-1] * x.shape[1])
    np.testing.assert_allclose(np.abs(peers.pairwise_complete(x, 2)), np.abs(expected), atol=1e-8)


def test_weighting_is_unbiased_for_a_fixed_matrix(low_rank):
    x = low_rank[:6] - low_rank[:6].mean(axis=0)
    p = np.full(x.shape, 0.5)
    rng, total = np.random.default_rng(4), np.zeros((6, 6))
    for _ in range(3000):
        z = np.where(rng.random(x.shape) < p, x / p, 0.0)
        gram = z @ z.T
        np.fill_diagonal(gram, (z**2 * p).sum(axis=1))
        total += gram / 3000
    np.testing.assert_allclose(total, x @ x.T, atol=0.1 * np.abs(x @ x.T).max())


# --- scores ----------------------------------------------------------------------------------------------------------


def test_subspace_gap_has_its_known_values():
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(30, 4)))[0]
    assert scoring.subspace_gap(q[:, :2] @ np.array([[2.0, 1.0], [0.0, 3.0]]), q[:, :2]) == pytest.approx(0, abs=1e-7)
    assert scoring.subspace_gap(q[:, 2:], q[:, :2]) == pytest.approx(1)
    assert scoring.subspace_gap(q[:, 1:3], q[:, :2]) == pytest.approx(np.sqrt(0.5))
    lacking = np.column_stack([q[:, 0], np.zeros(30)])
    assert scoring.subspace_gap(lacking, q[:, :2]) == pytest.approx(np.sqrt(0.5))
    x, y = np.random.default_rng(1).normal(size=(2, 30, 3))
    assert scoring.subspace_gap(x, y) == pytest.approx(cellsmith.math.gram.sin_theta(x, y), abs=1e-9)


def test_recall_counts_shared_neighbours():
    assert scoring.recall(np.array([[1, 2], [0, 3]]), np.array([[2, 1], [0, 2]])) == pytest.approx(0.75)


def test_cells_without_coordinates_are_counted():
    complete = reference.complete_c()
    x = complete.scores(3).copy()
    x[:5] = np.nan
    found = scoring.score(x, complete, seed=0, n_neighbors=0)
    assert found["left_out"] == 5
    assert found["sin_theta"] > 0


# --- the public function ---------------------------------------------------------------------------------------------


def test_rows_are_tidy_paired_and_resumed(cells, tmp_path):
    out = tmp_path / "rows.csv"
    options = {"labels_key": "cell_type", "mechanisms": ["logistic"], "columns": LIGHT, "n_latent": [2, 3], "out": out}
    table = cellsmith.benchmark.missingness(cells, **options)
    assert list(table.columns) == list(TASKS)
    assert set(table["variant"]) == set(LIGHT)
    assert set(table["task"]) == {"logistic, 2 PCs", "logistic, 3 PCs"}
    value = table.set_index(["task", "variant", "metric"])["value"]
    assert value["logistic, 2 PCs", "complete", "sin_theta"] == 0
    assert value["logistic, 2 PCs", "complete", "recall"] == 1
    assert value["logistic, 2 PCs", "BC logistic", "sin_theta"] < value["logistic, 2 PCs", "zero-fill", "sin_theta"]
    before = out.read_bytes()
    cellsmith.benchmark.missingness(cells, **options)
    assert out.read_bytes() == before


def test_own_mechanism_and_own_column_run_beside_the_others(cells):
    def mine(case, k):
        assert np.isnan(case.values).any()
        return peers.mean_impute(case.values, k)

    every = {"half": lambda values, depth, rng: rng.random(values.shape) < 0.5}
    chosen = {name: methods.COLUMNS[name] for name in ("complete", "mean-impute")}
    table = Store(TASKS)
    case = masked(reference.complete_c(), "half", every["half"], seed=0, task="half")
    run_case(case, {**chosen, "mine": methods.Column(mine)}, [2], store=table)
    value = table.table.set_index(["variant", "metric"])["value"]
    assert value["mine", "sin_theta"] == value["mean-impute", "sin_theta"]
    picked = methods.pick({"mine": mine})
    assert list(picked)[-1] == "mine"
    found = cellsmith.benchmark.missingness(cells, mechanisms=every, columns=["mean-impute"], n_latent=2)
    assert "ari" not in set(found["metric"])


def test_labels_change_no_embedding(cells):
    other = cells.copy()
    other.obs["cell_type"] = other.obs["cell_type"].to_numpy()[::-1]
    tables = [
        cellsmith.benchmark.missingness(
            x, labels_key="cell_type", mechanisms="logistic", columns=["BC logistic"], n_latent=2
        ).set_index("metric")["value"]
        for x in (cells, other)
    ]
    assert tables[0]["sin_theta"] == tables[1]["sin_theta"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"labels_key": "cell_typ"}, "cell_type"),
        ({"layer": "logcounts"}, "logcounts"),
        ({"mechanisms": "logit"}, "logistic"),
        ({"columns": ["mean"]}, "mean-impute"),
    ],
)
def test_wrong_names_are_refused(cells, options, words):
    with pytest.raises(SetupError, match=words):
        cellsmith.benchmark.missingness(cells, **options)


def test_missing_entries_are_refused(cells):
    broken = cells.copy()
    broken.X[3, 4] = np.nan
    with pytest.raises(SetupError, match=r"nan in cell '3'.*complete"):
        cellsmith.benchmark.missingness(broken)


# --- parts -----------------------------------------------------------------------------------------------------------


def test_reference_a_has_its_known_space_and_its_known_errors():
    case = reference.case_a("homogeneous", 0)
    axes = case.complete.truth(3)
    np.testing.assert_allclose(axes.mean(axis=0), 0.0, atol=1e-9)
    gap = {name: scoring.subspace_gap(methods.COLUMNS[name](case, 3).x, axes) for name in ("complete", "zero-fill")}
    assert gap["complete"] == pytest.approx(0.203, abs=0.03)
    assert gap["zero-fill"] == pytest.approx(0.696, abs=0.06)
    assert np.isfinite(case.values).mean() == pytest.approx(0.30, abs=0.01)


def test_laws_hold_and_can_be_broken():
    rng = np.random.default_rng(0)
    assert max(laws.parity_gap(rng) for _ in range(5)) < 1e-12
    error, rank = laws.overlap_error("logistic", 0, n=200, n_features=150)
    assert error <= 2e-4
    assert rank <= 6
    corrected, naive = laws.unbiasedness(0, soft=False, draws=400)
    assert corrected < 5 < naive


def test_identity_of_the_query_is_that_of_the_self_term():
    rng = np.random.default_rng(0)
    x, theta, delta = rng.normal(size=(20, 3)), np.array([3.0, 2.0, 1.0]), rng.uniform(size=20)
    placed = x - delta[:, None] * x / theta
    assert queries.identity_gap(x, placed, theta) < 1e-12
    assert queries.identity_gap(x, placed + 0.01 * rng.normal(size=x.shape), theta) > 1e-3


def test_neighbour_types_follow_the_majority():
    first = np.repeat([[0.0, 0.0], [9.0, 9.0]], 20, axis=0) + np.random.default_rng(0).normal(size=(40, 2)) * 0.1
    types = np.repeat(np.array(["a", "b"], dtype=object), 20)
    found = queries.neighbor_types(np.array([[0.1, 0.0], [8.9, 9.0]]), first, types)
    assert list(found) == ["a", "b"]


def test_every_zero_is_missing_under_the_zero_mask():
    values = np.random.default_rng(0).poisson(0.7, (60, 30)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        observed = zero_masks.observed_zeros(values, seed=0, method="zero")
        kept = zero_masks.observed_zeros(values, seed=0, method="consensus", threshold=0.5, n_clusters=(2, 3))
    np.testing.assert_array_equal(observed, values != 0)
    assert kept[values != 0].all()
    assert observed.mean() < kept.mean() <= 1.0


def test_synthetic_cells_have_the_stated_density_and_uneven_depth(tmp_path):
    block, u = speed.synthetic_block(0, 1500)
    assert block.nnz / np.prod(block.shape) == pytest.approx(0.084, abs=0.012)
    depth = block.getnnz(axis=1)
    assert depth.std() > 0.7 * depth.mean()
    assert depth.min() > 0
    assert (block.data != 0).all()
    np.testing.assert_array_equal(speed.true_axes(1500), u - u.mean(axis=0))
    path = tmp_path / "cells.h5ad"
    speed.write_cells(path, 700)
    read = ad.read_h5ad(path)
    assert (speed.synthetic_block(0, 700)[0] != read.X).nnz == 0


# --- page and bars ---------------------------------------------------------------------------------------------------


def rows_of(values: dict[tuple[str, str, str], float], file: str, seeds=(0, 1, 2)) -> list[dict[str, object]]:
    return [
        {"task": t, "file": file, "seed": s, "variant": v, "metric": m, "value": x + 1e-4 * s}
        for (t, v, m), x in values.items()
        for s in seeds
    ]


def tables(rows: list[dict[str, object]], fast: list[dict[str, object]] = ()) -> Tables:
    slow, quick = Store(TASKS), Store(SPEED)
    slow.add(rows)
    if fast:
        quick.add(fast)
    return Tables(slow.table, quick.table)


def logistic_rows(ari: float) -> list[dict[str, object]]:
    out = []
    for file in bars.FILES:
        values = {}
        for k in (10, 20):
            task = f"R, logistic, {k} PCs"
            values |= {
                (task, "BC logistic", "ari"): ari,
                (task, "mean-impute", "ari"): 0.5,
                (task, "BC logistic", "sin_theta"): 0.6,
                (task, "pairwise-complete", "sin_theta"): 0.6,
                (task, "BC legacy", "sin_theta"): 0.65,
                (task, "zero-fill", "sin_theta"): 0.8,
            }
        out += rows_of(values, file)
    return out


def bar(check: str) -> bars.Bar:
    return next(b for b in bars.BARS if b.check.startswith(check))


@pytest.mark.parametrize(("ari", "word"), [(0.52, "FAIL"), (0.56, "pass"), (0.61, "stretch")])
def test_a_bar_can_fail_pass_and_stretch(ari, word):
    from cellsmith.benchmark._annotation.bars import mark

    own = bar("protocol R, logistic")
    assert mark(own, own.measure(tables(logistic_rows(ari)))) == word


def test_a_file_without_runs_is_no_pass():
    from cellsmith.benchmark._annotation.bars import mark

    own = bar("protocol R, logistic")
    rows = [row for row in logistic_rows(0.61) if row["file"] != bars.FILES[0]]
    assert mark(own, own.measure(tables(rows))) == "not run"


def test_speed_bars_read_cpu_seconds_and_memory():
    from cellsmith.benchmark._annotation.bars import mark

    fast = {f"cpu_s_{p}_100000": 7.0 for p in speed.PROBS}
    fast |= {"csr_mib_logistic_100000": 130.0, "extra_mib_logistic_100000": 200.0}
    for seconds, word in ((19.0, "stretch"), (44.0, "pass"), (46.0, "FAIL")):
        fast["cpu_s_logistic_100000"] = seconds
        rows = [{"quantity": q, "value": v, "detail": "x"} for q, v in fast.items()]
        own = bar("speed")
        assert mark(own, own.measure(tables(logistic_rows(0.5), rows))) == word


def refined_rows(recall: float, ari: float, seeds: tuple[int, ...] = (0, 1, 2)) -> list[dict[str, object]]:
    """The refined column minus the plain one is (recall, ARI), and a little more for every seed."""
    out = []
    for file, name, k, seed in itertools.product(bars.FILES, bars.JUDGED, (10, 20), seeds):
        for variant, gaps in (("BC logistic", (0.0, 0.0)), ("BC logistic + prime", (recall, ari))):
            head = {"task": f"R, {name}, {k} PCs", "file": file, "seed": seed, "variant": variant}
            for metric, gap in zip(("recall", "ari"), gaps, strict=True):
                out.append({**head, "metric": metric, "value": 0.5 + gap + 0.001 * seed * (gap != 0)})
    return out


COST = [
    {"quantity": f"{name}_logistic, prime_100000", "value": value, "detail": ""}
    for name, value in (("cpu_s", 40.0), ("extra_mib", 200.0), ("csr_mib", 100.0))
]


@pytest.mark.parametrize(
    ("gaps", "seconds", "accepted"),
    [((0.02, 0.01), 40.0, True), ((0.02, -0.01), 40.0, False), ((0.02, 0.01), 50.0, False), ((0.0, 0.0), 40.0, False)],
)
def test_refinement_becomes_the_default_by_its_rule_alone(gaps, seconds, accepted):
    cost = [{**COST[0], "value": seconds}, *COST[1:]]
    found = decision.decide(tables(refined_rows(*gaps), cost))
    assert found.gaps["ari"].runs == 9
    assert found.accepted is accepted
    text = decision.described(tables(refined_rows(*gaps), cost))
    assert text.endswith("becomes the default." if accepted else "stays an option.")


def test_refinement_is_not_decided_by_half_of_its_runs():
    assert decision.decide(tables(refined_rows(0.02, 0.01, seeds=(0, 1)), COST)) is None
    assert not decision.decide(tables(refined_rows(0.02, 0.01))).accepted  # what it costs was not measured


def test_page_is_written_from_the_tables(tmp_path):
    Store(TASKS, tmp_path / "missingness.csv").add(logistic_rows(0.52))
    (tmp_path / "_missingness_notes.md").write_text("---\norphan: true\n---\n\nA note by hand.", encoding="utf-8")
    page = report(tmp_path).read_text(encoding="utf-8")
    assert "A note by hand." in page
    assert "orphan" not in page
    assert "### klein_mes_1k, logistic (seeds 0, 1, 2)" in page
    assert "| protocol R, logistic | ARI minus mean-impute +0.020" in page
    assert "**FAIL**" in page
    assert "klein_mes_1k, all masks, seeds 0, 1, 2, 3, 4: complete" in page
    assert "python -m cellsmith.benchmark missingness" in page


def test_command_writes_a_page_without_running_anything(tmp_path):
    assert main(["missingness", "--parts", "--out", str(tmp_path)]) == 0
    page = (tmp_path / "missingness.md").read_text(encoding="utf-8")
    assert "not run" in page
    assert "pass**" not in page
    assert main(["missingness", "--columns", "nothing", "--parts", "real", "--out", str(tmp_path)]) == 2
