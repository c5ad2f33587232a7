"""Selection and edits of topics: laws on arrays, then the same questions asked of a trained model."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy.special import softmax
from scipy.stats import mannwhitneyu

from cellsmith._errors import NotTrainedError, SetupError, SizeError
from cellsmith.model import SCE2TM
from cellsmith.model.sce2tm import perturb

N, K = 120, 6


@pytest.fixture
def mu() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(N, K)).astype(np.float32)


@pytest.mark.parametrize("space", perturb.SPACES)
@pytest.mark.parametrize("op", perturb.OPERATIONS)
def test_strength_zero_is_the_identity(mu: np.ndarray, op: str, space: str) -> None:
    values = np.full((N, 2), 0.7)
    after = perturb.edit_topics(mu, np.array([1, 4]), values, op=op, strength=0.0, space=space)
    np.testing.assert_allclose(softmax(after, axis=1), softmax(mu, axis=1), atol=1e-6)


@pytest.mark.parametrize("space", perturb.SPACES)
@pytest.mark.parametrize("op", perturb.OPERATIONS)
def test_topics_that_were_not_chosen_are_bit_equal(mu: np.ndarray, op: str, space: str) -> None:
    after = perturb.edit_topics(mu, np.array([1, 4]), np.array([0.3, 0.2]), op=op, strength=1.0, space=space)
    others = [0, 2, 3, 5]
    np.testing.assert_array_equal(after[:, others], mu[:, others])
    assert not np.array_equal(after[:, [1, 4]], mu[:, [1, 4]])


def test_operations_on_mu_by_hand(mu: np.ndarray) -> None:
    def edited(op: str, v: float, strength: float) -> np.ndarray:
        return perturb.edit_topics(mu, np.array([2]), np.array([v]), op=op, strength=strength)[:, 2]

    x = mu[:, 2].astype(float)
    np.testing.assert_allclose(edited("add", 1.5, 2.0), x + 3.0, rtol=1e-5)
    np.testing.assert_allclose(edited("scale", 3.0, 0.5), 2 * x, rtol=1e-5)
    np.testing.assert_allclose(edited("set", 1.5, 1.0), 1.5, rtol=1e-6)
    np.testing.assert_allclose(edited("set", 1.5, 0.5), (x + 1.5) / 2, rtol=1e-5, atol=1e-6)


def test_ablation_is_a_share_taken_away_and_renormalised(mu: np.ndarray) -> None:
    theta = softmax(mu.astype(float), axis=1)
    after = perturb.edit_topics(mu, np.array([0, 3]), np.ones(2), op="ablate", strength=0.4)
    expected = theta * np.where(np.isin(np.arange(K), [0, 3]), 0.6, 1.0)
    np.testing.assert_allclose(softmax(after, axis=1), expected / expected.sum(axis=1, keepdims=True), atol=1e-6)


def test_ablation_of_all_but_one_leaves_it_alone_and_of_all_is_refused(mu: np.ndarray) -> None:
    after = perturb.edit_topics(mu, np.arange(1, K), np.ones(K - 1), op="ablate", strength=1.0)
    np.testing.assert_array_equal(softmax(after, axis=1), np.eye(K)[[0] * N])
    with pytest.raises(SetupError, match=f"leaves {N} cells without any topic"):
        perturb.edit_topics(mu, np.arange(K), np.ones(K), op="ablate", strength=1.0)


def test_shares_are_edited_before_rows_are_renormalised(mu: np.ndarray) -> None:
    theta = softmax(mu.astype(float), axis=1)
    after = perturb.edit_topics(mu, np.array([1]), np.array([0.5]), op="add", strength=1.0, space="theta")
    expected = theta + 0.5 * np.eye(K)[1]
    np.testing.assert_allclose(softmax(after, axis=1), expected / 1.5, atol=1e-6)
    gone = perturb.edit_topics(mu, np.array([1]), np.array([-2.0]), op="add", strength=1.0, space="theta")
    assert (softmax(gone, axis=1)[:, 1] == 0).all()


def test_comparison_finds_the_topic_that_was_shifted(mu: np.ndarray) -> None:
    group = np.arange(N) < 60
    mu[group, 3] += 2.0
    scale = mu.std(axis=0)
    table = perturb.compare_topics(mu, group, ~group, scale=scale)
    assert table["fdr"][3] < 1e-6
    assert (np.delete(table["fdr"], 3) > 0.05).all()
    np.testing.assert_allclose(table["effect"], (mu[group].mean(axis=0) - mu[~group].mean(axis=0)) / scale, rtol=1e-4)
    x = mu.astype(float)
    reference = mannwhitneyu(x[group], x[~group]).pvalue
    np.testing.assert_allclose(table["p_value"], reference, rtol=1e-9)


def test_permutations_agree_with_ranks_on_what_is_there(mu: np.ndarray) -> None:
    group = np.arange(N) < 60
    mu[group, 3] += 2.0
    mu[:, 5] = 1.0  # a topic without any spread differs nowhere
    table = perturb.compare_topics(
        mu, group, ~group, scale=mu.std(axis=0), test="permutation", generator=np.random.default_rng(0)
    )
    assert table["p_value"][3] == pytest.approx(1 / 1001)
    assert table["p_value"][5] == 1.0
    assert table["effect"][5] == 0.0


def test_samples_are_averaged_and_counted(mu: np.ndarray) -> None:
    group, samples = np.arange(N) < 60, np.arange(N) // 15
    # two of four donors carry the difference: cells see it, samples do not
    mu[samples <= 1, 2] += 6.0
    by_cell = perturb.compare_topics(mu, group, ~group, scale=mu.std(axis=0))
    by_sample = perturb.compare_topics(mu, group, ~group, scale=mu.std(axis=0), samples=samples)
    assert by_cell["fdr"][2] < 0.05 < by_sample["fdr"][2]
    means = np.array([mu[samples == s].mean(axis=0) for s in range(8)])
    np.testing.assert_allclose(by_sample["mean_group"], means[:4].mean(axis=0), rtol=1e-5)
    with pytest.raises(SetupError, match="Found 2 samples in the group and 8 in the reference"):
        perturb.compare_topics(mu, samples < 2, group | ~group, scale=mu.std(axis=0), samples=samples)


@pytest.mark.parametrize("by_sample", [False, True])
def test_no_effect_is_seldom_found(by_sample: bool) -> None:
    """The share of random splits with any topic at FDR < .05 stays near .05 (and effects are far below 1 sd)."""
    generator = np.random.default_rng(1)
    found = 0
    for _ in range(60):
        mu, order = generator.normal(size=(N, K)), generator.permutation(N)
        samples = order // 15 if by_sample else None
        table = perturb.compare_topics(mu, order < 60, order >= 60, scale=mu.std(axis=0), samples=samples)
        assert np.abs(table["effect"]).max() < 1.0
        found += (table["fdr"] < 0.05).any()
    assert found <= 8  # 3 expected; more than 8 of 60 has probability .003


def test_small_groups_take_the_shift_of_all_cells(mu: np.ndarray) -> None:
    codes = np.where(np.arange(N) < 100, 0, 1)
    source, target = np.arange(N) % 2 == 0, np.arange(N) % 2 == 1
    shifts, pooled = perturb.group_shifts(mu, source, target, codes=codes, n_groups=2)
    assert pooled.tolist() == [False, True]
    np.testing.assert_allclose(shifts[1], mu[target].mean(axis=0) - mu[source].mean(axis=0), rtol=1e-5)
    own = mu[:100]
    np.testing.assert_allclose(shifts[0], own[1::2].mean(axis=0) - own[::2].mean(axis=0), rtol=1e-4, atol=1e-6)


def test_batches_that_tell_the_sides_apart() -> None:
    side = np.array([True, True, False, False])
    assert perturb.told_by_batch(np.array([0, 1, 2, 2]), side, ~side)
    assert not perturb.told_by_batch(np.array([0, 1, 1, 2]), side, ~side)
    assert not perturb.told_by_batch(np.zeros(4), side, ~side)


def test_means_of_blocks_and_fold_changes() -> None:
    x = np.random.default_rng(0).gamma(1.0, 10.0, size=(50, 7))
    codes = np.arange(50) % 3
    blocks = ((np.arange(i, min(i + 16, 50)), x[i : i + 16]) for i in range(0, 50, 16))
    means = perturb.mean_by_group(blocks, codes, 3)
    np.testing.assert_allclose(means, [x[codes == c].mean(axis=0) for c in range(3)])
    np.testing.assert_allclose(perturb.log_fold_change(np.array([1.0]), np.array([3.0])), 1.0)


def test_too_many_single_cells_name_the_way_out() -> None:
    perturb.check_size(100_000, 2_000)
    with pytest.raises(SizeError, match=r"300,000 cells x 2,000 genes \(2\.2 GiB\).*by="):
        perturb.check_size(300_000, 2_000)


# --- asked of a trained model ---


@pytest.fixture(scope="module")
def selected(topic_model: SCE2TM) -> pd.DataFrame:
    return topic_model.select_topics("condition", "stim", "ctrl", min_effect=0.5)


@pytest.fixture(scope="module")
def controls(stimulated: AnnData) -> np.ndarray:
    return np.flatnonzero(stimulated.obs["condition"] == "ctrl")


def test_selection_is_a_comparison_of_mu(topic_model: SCE2TM, stimulated: AnnData, selected: pd.DataFrame) -> None:
    mu = topic_model.get_latent_representation(kind="mu")
    stim = (stimulated.obs["condition"] == "stim").to_numpy()
    table = perturb.compare_topics(mu, stim, ~stim, scale=mu.std(axis=0))
    kept = [k for k in range(8) if table["fdr"][k] < 0.05 and abs(table["effect"][k]) > 0.5]
    assert set(selected.index) == {f"Topic_{k}" for k in kept}
    assert (np.diff(selected["effect"].abs()) <= 0).all()
    assert selected.attrs["unit"] == "cell"
    assert len(selected.attrs["tested"]["topic"]) == 8
    target, source = selected.attrs["cells"]
    np.testing.assert_array_equal(target, np.flatnonzero(stim))
    np.testing.assert_array_equal(source, np.flatnonzero(~stim))


def test_swap_raises_the_genes_that_respond(
    topic_model: SCE2TM, stimulated: AnnData, selected: pd.DataFrame, controls: np.ndarray
) -> None:
    answer = topic_model.perturb_topics(indices=controls, topics=selected, op="swap_to_group", by="cell_type")
    assert answer.logfc.shape == (3, 100)
    assert list(answer.logfc.index) == ["type_0", "type_1", "type_2"]
    response = stimulated.var["response"].to_numpy()
    for change in answer.logfc.to_numpy():
        top = np.argsort(-change)[:20]
        assert (response[top] > 0).sum() >= 14  # 4 expected by chance
    assert answer.params["pooled"] == []
    assert answer.params["source"] == f"{len(controls)} training cells with condition == 'ctrl'"
    assert answer.params["target"] == f"{400 - len(controls)} training cells with condition == 'stim'"
    mu = topic_model.get_latent_representation(kind="mu")
    kinds, stim = stimulated.obs["cell_type"] == "type_1", stimulated.obs["condition"] == "stim"
    own = mu[kinds & stim].mean(axis=0) - mu[kinds & ~stim].mean(axis=0)
    chosen = [int(name.removeprefix("Topic_")) for name in selected.index]
    np.testing.assert_allclose(answer.topics.loc["type_1"], own[chosen], rtol=1e-4)


def test_a_shift_the_other_way_lowers_the_genes_that_respond(
    topic_model: SCE2TM, stimulated: AnnData, selected: pd.DataFrame, controls: np.ndarray
) -> None:
    response = stimulated.var["response"].to_numpy()
    wrong = topic_model.perturb_topics(indices=controls, topics=selected, op="swap_to_group", strength=-1.0)
    top = np.argsort(-wrong.logfc.to_numpy()[0])[:20]
    assert (response[top] > 0).sum() <= 4


def test_fold_changes_grow_with_strength(
    topic_model: SCE2TM, stimulated: AnnData, selected: pd.DataFrame, controls: np.ndarray
) -> None:
    strongest = np.argsort(-stimulated.var["response"].to_numpy())[:5]
    changes = [
        topic_model.perturb_topics(indices=controls, topics=selected, op="swap_to_group", strength=s)
        .logfc.to_numpy()[0]
        .copy()
        for s in (0.0, 0.25, 0.5, 1.0)
    ]
    assert np.abs(changes[0]).max() < 1e-6
    assert (np.diff([c[strongest].mean() for c in changes]) > 0).all()


def test_ablation_of_all_others_gives_the_profile_of_a_topic(topic_model: SCE2TM) -> None:
    others = [f"Topic_{k}" for k in range(8) if k != 3]
    answer = topic_model.perturb_topics(indices=[0, 7], topics=others, op="ablate")
    np.testing.assert_array_equal(answer.theta_after, np.eye(8)[[3, 3]])
    codes, mass = topic_model._batch_codes()[[0, 7]], topic_model._mass()[[0, 7]]
    profile = topic_model._express(np.eye(8)[[3, 3]], batch_codes=codes, mass=mass)
    np.testing.assert_allclose(answer.to_adata().X, profile, rtol=1e-5)


def test_perturbation_does_not_touch_the_other_topics_or_the_model(topic_model: SCE2TM, stimulated: AnnData) -> None:
    before = {name: value.clone() for name, value in topic_model.module.state_dict().items()}
    columns = list(stimulated.obs.columns)
    mu = topic_model.get_latent_representation(kind="mu")
    answer = topic_model.perturb_topics(topics={"Topic_2": 3.0}, op="set")
    np.testing.assert_array_equal(np.delete(answer.mu_after.to_numpy(), 2, axis=1), np.delete(mu, 2, axis=1))
    np.testing.assert_allclose(answer.mu_after["Topic_2"], 3.0)
    assert all(torch.equal(value, before[name]) for name, value in topic_model.module.state_dict().items())
    assert list(stimulated.obs.columns) == columns


def test_fold_changes_of_cells_and_of_groups(topic_model: SCE2TM, stimulated: AnnData) -> None:
    options = {"topics": ["Topic_0"], "op": "add", "strength": 1.5}
    by_cell = topic_model.perturb_topics(per_cell=True, indices=[3, 5], **options)
    single = topic_model.perturb_topics(indices=[5], **options)
    assert list(by_cell.logfc.index) == list(stimulated.obs_names[[3, 5]])
    np.testing.assert_allclose(by_cell.logfc.to_numpy()[1], single.logfc.to_numpy()[0], atol=1e-5)


def test_edited_cells_as_an_object(topic_model: SCE2TM, stimulated: AnnData, tmp_path) -> None:
    answer = topic_model.perturb_topics(
        indices=[1, 2, 3], topics=["Topic_0"], op="ablate", by="cell_type", strength=0.4
    )
    assert (answer.topics == 0.4).all(axis=None)
    adata = answer.to_adata()
    assert adata.obs["is_synthetic"].all()
    assert list(adata.obs_names) == list(stimulated.obs_names[[1, 2, 3]])
    assert not [c for c in adata.obs if c.startswith("_scvi")]
    np.testing.assert_allclose(np.asarray(adata.layers["sce2tm_expected"]).sum(axis=1), 1e4, rtol=1e-4)
    np.testing.assert_allclose(adata.obsm["X_sce2tm"], answer.theta_after)
    assert not np.shares_memory(adata.X, adata.layers["sce2tm_expected"])
    adata.write_h5ad(tmp_path / "edited.h5ad")
    read = anndata.read_h5ad(tmp_path / "edited.h5ad")
    assert read.uns["sce2tm"]["params"]["op"] == "ablate"
    assert "is_synthetic" not in stimulated.obs


def test_edited_cells_keep_no_earlier_result_under_whatever_key(topic_model: SCE2TM, stimulated: AnnData) -> None:
    cells = stimulated.copy()
    cells.obs["topics_of_interest"] = "kept"
    topic_model.write(cells, key_added="topics")
    topic_model.write(cells)
    adata = topic_model.perturb_topics(cells, indices=[1, 2], topics=["Topic_0"]).to_adata()
    assert [c for c in adata.obs if "topic" in c or "sce2tm" in c] == ["topics_of_interest"]


def test_another_object_is_read_by_the_names_of_its_genes(topic_model: SCE2TM, stimulated: AnnData) -> None:
    """Shuffled genes change nothing; with genes missing and added, scores are those of map_query."""
    cells = stimulated[:40].copy()
    order = np.random.default_rng(0).permutation(100)
    options = {"topics": {"Topic_1": 2.0}, "op": "add", "indices": np.arange(5, 30)}
    plain, shuffled = (topic_model.perturb_topics(c, **options) for c in (cells, cells[:, order].copy()))
    np.testing.assert_allclose(shuffled.mu_after, plain.mu_after, atol=1e-5)
    np.testing.assert_allclose(shuffled.logfc, plain.logfc, atol=1e-5)
    other = cells[:, order[:80]].copy()
    other.var_names = [*other.var_names[:75], *(f"new {i}" for i in range(5))]
    found = topic_model.perturb_topics(other, **options)
    np.testing.assert_allclose(found.theta_before, topic_model.map_query(other).theta[5:30], atol=1e-6)
    assert list(found.logfc.columns) == list(plain.logfc.columns)
    tested = topic_model.select_topics(
        "condition", "stim", "ctrl", adata=cells[:, order].copy(), fdr=1.1, min_effect=0.0
    )
    again = topic_model.select_topics("condition", "stim", "ctrl", adata=cells, fdr=1.1, min_effect=0.0)
    np.testing.assert_allclose(tested["effect"], again["effect"], atol=1e-5)
    with pytest.raises(SetupError, match="of the 100 modelled genes"):
        topic_model.perturb_topics(cells[:, :30].copy(), **options)


def test_a_batch_that_tells_the_condition_is_refused(stimulated: AnnData, fit_topics) -> None:
    adata = stimulated.copy()
    SCE2TM.setup_anndata(adata, batch_key="confounded")
    model = fit_topics(adata, epochs=1)
    with pytest.raises(SetupError, match="registered batch of a cell tells on which side of groupby='condition'"):
        model.select_topics("condition", "stim", "ctrl")
    stim = (adata.obs["condition"] == "stim").to_numpy()
    with pytest.raises(SetupError, match="tells on which side of source and target"):
        model.perturb_topics(topics=["Topic_0"], op="swap_to_group", source=~stim, target=stim)
    assert len(model.select_topics("cell_type", "type_0", "type_1", min_effect=0.0, fdr=1.1)) == 8


def test_selection_over_samples(topic_model: SCE2TM) -> None:
    found = topic_model.select_topics("condition", "stim", "ctrl", sample_key="donor", min_effect=0.0, fdr=1.1)
    assert found.attrs["unit"] == "sample"
    assert found["p_value"].min() >= 2 / 70 - 1e-12  # four against four samples cannot say more


def test_nothing_selected_is_an_empty_table_that_says_what_was_largest(topic_model: SCE2TM) -> None:
    none = topic_model.select_topics("condition", "stim", "ctrl", min_effect=50.0)
    assert none.empty
    assert list(none.columns) == ["mean_group", "mean_reference", "difference", "effect", "p_value", "fdr"]
    assert none.dtypes.eq(float).all()
    with pytest.raises(SetupError, match=r"No topic passed.*largest effects are Topic_\d \([+-]\d\.\d\d sd\), Topic"):
        topic_model.perturb_topics(topics=none, op="swap_to_group")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"topics": ["Topic_9"]}, r"topics names 'Topic_9'\. Did you mean"),
        ({"topics": 1}, r"topics names 1\. Valid: 'Topic_0'"),
        ({"topics": []}, "expected at least one topic"),
        ({"topics": ["Topic_1"], "op": "adds"}, "Did you mean 'add'"),
        ({"topics": ["Topic_1"], "space": "z"}, "space='z'"),
        ({"topics": ["Topic_1"], "strength": np.nan}, "expected a finite number"),
        ({"topics": ["Topic_1"], "op": "ablate", "strength": 2.0}, "a share between 0 and 1"),
        ({"topics": ["Topic_1"], "op": "set"}, r"needs a value for each topic\. Type topics=\{'Topic_1'"),
        ({"topics": {"Topic_1": 1.0}, "op": "ablate"}, "takes no values"),
        ({"topics": ["Topic_1"], "op": "swap_to_group"}, "needs source and target"),
        ({"topics": ["Topic_1"], "by": "cell_typ"}, "Did you mean 'cell_type'"),
        ({"topics": ["Topic_1"], "indices": [900]}, "expected positions from 0 to 399"),
        ({"topics": ["Topic_1"], "indices": []}, "Found no cell"),
        ({"topics": ["Topic_1"], "indices": "first"}, "Found <U5 of shape"),
    ],
)
def test_refusals_of_a_perturbation(topic_model: SCE2TM, options: dict, message: str) -> None:
    with pytest.raises(SetupError, match=message):
        topic_model.perturb_topics(**options)


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        (("conditions", "stim", "ctrl"), {}, "Did you mean 'condition'"),
        (("condition", "stims", "ctrl"), {}, "Did you mean 'stim'"),
        (("condition", "stim", "stim"), {}, "expected two values"),
        (("condition", "stim", "ctrl"), {"test": "t"}, "test='t'"),
        (
            ("condition", "stim", "ctrl"),
            {"sample_key": "cell_type", "indices": range(3)},
            "at least 3 on each side|No cell",
        ),
    ],
)
def test_refusals_of_a_selection(topic_model: SCE2TM, args: tuple, options: dict, message: str) -> None:
    with pytest.raises(SetupError, match=message):
        topic_model.select_topics(*args, **options)


def test_untrained_models_refuse(stimulated: AnnData) -> None:
    adata = stimulated.copy()
    SCE2TM.setup_anndata(adata)
    model = SCE2TM(adata, n_topics=4)
    for ask in (
        lambda: model.select_topics("condition", "stim", "ctrl"),
        lambda: model.perturb_topics(topics=["Topic_0"]),
    ):
        with pytest.raises(NotTrainedError):
            ask()
