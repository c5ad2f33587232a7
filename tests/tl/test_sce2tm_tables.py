"""Doors behind tl.sce2tm on planted topics: no model is trained here."""

from __future__ import annotations

import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import cellsmith
from cellsmith import _record
from cellsmith._errors import DataWarning, MissingExtraError, SetupError

N_TOPICS, N_MODELLED, N_GENES = 8, 320, 400


def planted(n_cells=120, seed=0):
    """Topic k owns genes 40 k to 40 k + 39; genes from 320 on are outside the model. Names are awkward on purpose."""
    rng = np.random.default_rng(seed)
    beta = np.zeros((N_TOPICS, N_GENES))
    owner = np.arange(N_MODELLED) // 40
    strength = rng.uniform(0, 3, (N_TOPICS, N_MODELLED)) + 4 * (owner == np.arange(N_TOPICS)[:, None])
    beta[:, :N_MODELLED] = np.exp(strength) / np.exp(strength).sum(axis=0)
    mu = rng.normal(size=(n_cells, N_TOPICS))
    adata = ad.AnnData(np.zeros((n_cells, N_GENES), dtype=np.float32))
    adata.var_names = [f"HLA-{g}.1" if g % 3 else f"g{g}" for g in range(N_GENES)]
    theta = np.exp(mu) / np.exp(mu).sum(axis=1, keepdims=True)
    result = _record.Result(
        method="sce2tm",
        obsm={"X_{k}": theta.astype(np.float32), "{k}_mu": mu},
        varm={"{k}_loadings": beta.T.astype(np.float32)},
        uns={"classes": [f"Topic_{k}" for k in range(N_TOPICS)]},
    )
    _record.write(adata, "sce2tm", result)
    return adata


@pytest.fixture
def adata():
    return planted()


def names_of(adata, genes):
    return [str(adata.var_names[g]) for g in genes]


def best(adata, topic, n):
    return names_of(adata, np.argsort(-adata.varm["sce2tm_loadings"][:, topic], kind="stable")[:n])


def sets_of(adata):
    """Sets planted in topics 3 and 7, random ones, and one that is too small within the model."""
    rng = np.random.default_rng(5)
    sets = {f"random {i}": names_of(adata, rng.choice(N_MODELLED, 30, replace=False)) for i in range(30)}
    sets["planted/3"] = [*best(adata, 3, 9), "unknown", *names_of(adata, [0, 350, 351])]
    sets["planted-7 (GO:1)"] = best(adata, 7, 8)
    sets["outside"] = names_of(adata, range(330, 390))
    return sets


def frame(adata, key):
    return pd.DataFrame(adata.uns[key]["table"])


# lists of genes


def test_top_genes_are_exact_names_of_modelled_genes(adata):
    cellsmith.tl.sce2tm_top_genes(adata, n=7)
    lists = adata.uns["sce2tm"]["top_genes"]
    assert list(lists) == [f"Topic_{k}" for k in range(N_TOPICS)]
    assert lists["Topic_3"].tolist() == best(adata, 3, 7)
    assert set(np.concatenate(list(lists.values()))) <= set(adata.var_names[:N_MODELLED])
    assert adata.uns["sce2tm"]["provenance"]["method"] == "sce2tm"


def test_a_copy_leaves_the_object_alone(adata):
    answer = cellsmith.tl.sce2tm_top_genes(adata, copy=True)
    assert "top_genes" not in adata.uns["sce2tm"]
    assert "top_genes" in answer.uns["sce2tm"]
    assert "sce2tm_enrich" in cellsmith.tl.sce2tm_enrich(adata, gene_sets=sets_of(adata), copy=True).uns
    assert "sce2tm_enrich" not in adata.uns


def test_results_must_be_there(adata):
    with pytest.raises(SetupError, match="does not exist"):
        cellsmith.tl.sce2tm_top_genes(adata, key="other")
    del adata.varm["sce2tm_loadings"]
    with pytest.raises(SetupError, match=r"expected a result of tl\.sce2tm with \.varm"):
        cellsmith.tl.sce2tm_top_genes(adata)
    with pytest.raises(SetupError, match="expected 1 to 320"):
        cellsmith.tl.sce2tm_top_genes(planted(), n=321)


# over-representation


def test_planted_sets_are_found_and_random_ones_are_not(adata):
    """F9: sets in topics other than the first; their names are values, never keys."""
    cellsmith.tl.sce2tm_enrich(adata, gene_sets=sets_of(adata))
    table = frame(adata, "sce2tm_enrich")
    hits = table[table["fdr"] < 0.01]
    assert set(zip(hits["topic"], hits["term"], strict=True)) == {
        ("Topic_3", "planted/3"),
        ("Topic_7", "planted-7 (GO:1)"),
    }
    params = adata.uns["sce2tm_enrich"]["params"]
    assert params["n_sets"] == 32
    assert params["n_sets_too_small"] == 1
    assert params["n_tests"] == 32 * N_TOPICS


def test_numbers_are_those_of_scipy_with_the_models_genes_as_background(adata):
    """F10: M is the number of modelled genes, 320; not the genes of the object, nor the union of the sets."""
    cellsmith.tl.sce2tm_enrich(adata, gene_sets=sets_of(adata), correction="per_topic")
    table = frame(adata, "sce2tm_enrich")
    assert adata.uns["sce2tm_enrich"]["params"]["background_size"] == N_MODELLED
    row = table[(table["topic"] == "Topic_3") & (table["term"] == "planted/3")].iloc[0]
    assert (row["overlap"], row["list_size"], row["set_size"]) == (9, 10, 10)
    assert row["genes"].split(";") == best(adata, 3, 9)
    assert row["expected"] == pytest.approx(10 * 10 / 320)
    ours, theirs = table["p_value"], stats.hypergeom.sf(table["overlap"] - 1, 320, table["set_size"], 10)
    assert np.abs(ours - theirs).max() <= 1e-12
    first = np.ones(32)
    first[: (table["topic"] == "Topic_0").sum()] = table.loc[table["topic"] == "Topic_0", "p_value"]
    expected = stats.false_discovery_control(first)[: (table["topic"] == "Topic_0").sum()]
    np.testing.assert_allclose(table.loc[table["topic"] == "Topic_0", "fdr"], expected)


def test_shuffled_topics_are_rarely_called():
    """E1: at most 5 % of 40 shuffles have any finding."""
    called = 0
    for seed in range(40):
        adata = planted(n_cells=5)
        sets = sets_of(adata)
        shuffled = np.random.default_rng(seed).permuted(adata.varm["sce2tm_loadings"][:N_MODELLED], axis=0)
        adata.varm["sce2tm_loadings"][:N_MODELLED] = shuffled
        cellsmith.tl.sce2tm_enrich(adata, gene_sets=sets)
        called += bool((frame(adata, "sce2tm_enrich")["fdr"] < 0.05).any())
    assert called <= 2


def test_one_to_one_renaming_changes_no_number(adata):
    """F8: names with hyphens, dots or of one letter are names like others."""
    sets = sets_of(adata)
    cellsmith.tl.sce2tm_enrich(adata, gene_sets=sets)
    plain = frame(adata, "sce2tm_enrich")
    new = {old: f"{chr(65 + i % 26)}" if i < 26 else f"RP11-{i}.A" for i, old in enumerate(adata.var_names)}
    adata.var_names = [new[old] for old in adata.var_names]
    cellsmith.tl.sce2tm_enrich(adata, gene_sets={t: [new.get(g, g) for g in genes] for t, genes in sets.items()})
    pd.testing.assert_frame_equal(plain.drop(columns="genes"), frame(adata, "sce2tm_enrich").drop(columns="genes"))


def test_a_background_of_ones_own(adata):
    own = names_of(adata, range(0, 320, 2))
    cellsmith.tl.sce2tm_enrich(adata, gene_sets=sets_of(adata), background=own, key_added="mine")
    params, table = adata.uns["mine"]["params"], frame(adata, "mine")
    assert params["background_size"] == 160
    assert params["n_genes_outside"] > 0
    assert table["list_size"].max() < 10


def test_sets_from_a_file(adata, tmp_path):
    path = tmp_path / "sets.gmt"
    path.write_text("".join("\t".join([t, "", *g]) + "\n" for t, g in sets_of(adata).items()), encoding="utf-8")
    cellsmith.tl.sce2tm_enrich(adata, gene_sets=path)
    from_file = frame(adata, "sce2tm_enrich")
    cellsmith.tl.sce2tm_enrich(adata, gene_sets=sets_of(adata))
    pd.testing.assert_frame_equal(from_file, frame(adata, "sce2tm_enrich"))
    (tmp_path / "empty.gmt").write_text("\n")
    with pytest.raises(SetupError, match="gene sets are empty"):
        cellsmith.tl.sce2tm_enrich(adata, gene_sets=str(tmp_path / "empty.gmt"))
    with pytest.raises(SetupError, match="is no file"):
        cellsmith.tl.sce2tm_enrich(adata, gene_sets=str(tmp_path / "absent.gmt"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gene_sets": {"a": ["ENSG1", "ENSG2", "ENSG3"]}}, "None of 1 gene sets has 3 to 500 genes"),
        ({"gene_sets": {}}, "dict of length 0"),
        ({"gene_sets": {"a": "CD3D"}}, "gene set 'a' is 'CD3D'"),
        ({"gene_sets": ["CD3D"]}, "is a list of length 1"),
        ({"correction": "globl"}, "Did you mean 'global'"),
        ({"min_size": 600}, "1 <= min_size <= max_size"),
    ],
)
def test_what_cannot_be_tested_says_why(adata, arguments, message):
    with pytest.raises(SetupError, match=message):
        cellsmith.tl.sce2tm_enrich(adata, **{"gene_sets": sets_of(adata), **arguments})
    assert "sce2tm_enrich" not in adata.uns


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_no_hit_gives_an_empty_typed_table_that_can_be_stored(adata, tmp_path, kind):
    listed = {g for k in range(N_TOPICS) for g in best(adata, k, 10)}
    others = [g for g in names_of(adata, range(N_MODELLED)) if g not in listed][:20]
    cellsmith.tl.sce2tm_enrich(adata, gene_sets={"never": others})
    getattr(adata, f"write_{kind}")(tmp_path / "x")
    again = getattr(ad, f"read_{kind}")(tmp_path / "x")
    table = again.uns["sce2tm_enrich"]["table"]
    names = ["topic", "term", "overlap", "list_size", "set_size", "expected", "p_value", "fdr", "genes"]
    assert sorted(table) == sorted(names)
    assert all(len(column) == 0 for column in table.values())
    assert table["overlap"].dtype == np.int64
    assert table["fdr"].dtype == np.float64


# enrichment of rankings


def test_gsea_is_that_of_gseapy(adata):
    """E3: equal to 1e-10 to the package that it calls."""
    gseapy = pytest.importorskip("gseapy")
    sets = sets_of(adata) | {"own genes of 3": best(adata, 3, 25)}
    cellsmith.tl.sce2tm_gsea(adata, gene_sets=sets, n_permutations=50, rng=4)
    table = frame(adata, "sce2tm_gsea")
    ranks = pd.Series(adata.varm["sce2tm_loadings"][:N_MODELLED, 3].astype(float), index=adata.var_names[:N_MODELLED])
    theirs = gseapy.prerank(
        rnk=ranks.sort_values(ascending=False),
        gene_sets=sets,
        min_size=15,
        max_size=500,
        permutation_num=50,
        outdir=None,
        no_plot=True,
        threads=1,
        seed=4,
    ).res2d.set_index("Term")
    ours = table[table["topic"] == "Topic_3"].set_index("term").loc[theirs.index]
    for mine, name in [
        ("es", "ES"),
        ("nes", "NES"),
        ("p_value", "NOM p-val"),
        ("fdr", "FDR q-val"),
        ("fwer", "FWER p-val"),
    ]:
        np.testing.assert_allclose(ours[mine], theirs[name].astype(float), atol=1e-10)
    assert ours["nes"].idxmax() == "own genes of 3"
    assert ours.loc["own genes of 3", "leading_edge"].split(";")[0] == best(adata, 3, 1)[0]
    assert adata.uns["sce2tm_gsea"]["params"]["n_sets_too_small"] == 3
    assert len(table) == N_TOPICS * 31


@pytest.mark.parametrize(
    ("package", "door", "arguments"),
    [
        ("gseapy", "sce2tm_gsea", {"gene_sets": {"a": ["b"]}}),
        ("lifelines", "sce2tm_survival", {"time": "months", "event": "dead"}),
    ],
)
def test_a_missing_package_is_named_with_its_remedy(adata, monkeypatch, package, door, arguments):
    monkeypatch.setitem(sys.modules, package, None)
    extra = "enrichment" if package == "gseapy" else "survival"
    with pytest.raises(MissingExtraError, match=rf"pip install 'cellsmith\[{extra}\]'"):
        getattr(cellsmith.tl, door)(adata, **arguments)


# groups


def grouped(adata, n_donors=8):
    """Group b has more of topic 2; donors are nested in the groups."""
    donor = np.arange(adata.n_obs) % n_donors
    adata.obs["donor"] = [f"d{d}" for d in donor]
    adata.obs["group"] = pd.Categorical(np.where(donor < n_donors // 2, "a", "b"))
    adata.obsm["sce2tm_mu"][donor >= n_donors // 2, 2] += 3
    return adata


def test_rank_finds_the_topic_that_differs_and_warns_of_cells(adata):
    with pytest.warns(DataWarning, match="unit='cell'"):
        cellsmith.tl.sce2tm_rank(grouped(adata), groupby="group")
    table = frame(adata, "sce2tm_rank")
    assert list(table.columns) == [
        *("group", "topic", "mean_group", "mean_rest", "difference", "effect", "p_value", "fdr", "n_group", "n_rest")
    ]
    assert table.groupby("group", sort=False)["topic"].first().to_dict()["b"] == "Topic_2"
    row = table[(table["group"] == "b") & (table["topic"] == "Topic_2")].iloc[0]
    mu, b = adata.obsm["sce2tm_mu"], (adata.obs["group"] == "b").to_numpy()
    assert row["p_value"] == pytest.approx(stats.mannwhitneyu(mu[b, 2], mu[~b, 2]).pvalue)
    assert row["effect"] == pytest.approx((mu[b, 2].mean() - mu[~b, 2].mean()) / mu[:, 2].std())
    np.testing.assert_allclose(table["fdr"], stats.false_discovery_control(table["p_value"]))
    assert (row["n_group"], row["n_rest"]) == (60, 60)
    block = adata.uns["sce2tm_rank"]
    assert block["params"]["unit"] == "cell"
    assert "sample_key" in block["provenance"]["warnings"][0]


def test_rank_on_means_of_samples(adata, recwarn):
    cellsmith.tl.sce2tm_rank(grouped(adata), groupby="group", sample_key="donor")
    assert not [w for w in recwarn if issubclass(w.category, DataWarning)]
    table = frame(adata, "sce2tm_rank")
    row = table[(table["group"] == "b") & (table["topic"] == "Topic_2")].iloc[0]
    assert (row["n_group"], row["n_rest"]) == (4, 4)
    assert row["p_value"] == pytest.approx(2 / 70)  # 4 against 4, all on one side: 2 of 70 orders
    assert adata.uns["sce2tm_rank"]["params"]["unit"] == "sample"


def test_rank_leaves_out_cells_without_a_group_and_counts_them(adata):
    grouped(adata).obs.loc[adata.obs_names[:7], "group"] = np.nan
    with pytest.warns(DataWarning):
        cellsmith.tl.sce2tm_rank(adata, groupby="group")
    assert adata.uns["sce2tm_rank"]["params"]["n_cells_without_group"] == 7
    assert (frame(adata, "sce2tm_rank")[["n_group", "n_rest"]].sum(axis=1) == 113).all()


def test_rank_refuses_too_few_groups_and_samples(adata):
    grouped(adata, n_donors=4)
    with pytest.raises(SetupError, match=r"Group 'a' against the rest: Found 2 samples .* at least 3"):
        cellsmith.tl.sce2tm_rank(adata, groupby="group", sample_key="donor")
    adata.obs["one"] = "x"
    with pytest.raises(SetupError, match="expected at least two"):
        cellsmith.tl.sce2tm_rank(adata, groupby="one")
    with pytest.raises(SetupError, match="Did you mean 'group'"):
        cellsmith.tl.sce2tm_rank(adata, groupby="grup")
    del adata.obsm["sce2tm_mu"]
    with pytest.raises(SetupError, match="expected 'sce2tm_mu'"):
        cellsmith.tl.sce2tm_rank(adata, groupby="group")


# survival


def patients(n=300, seed=0, hazard=0.5):
    """Topic 1 multiplies the hazard by exp(0.5) a standard deviation; a third of the patients is censored."""
    adata = planted(n_cells=n, seed=seed)
    rng = np.random.default_rng(seed + 1000)
    adata.obsm["sce2tm_mu"] = adata.obsm["sce2tm_mu"][:, :3] * [1.0, 2.0, 5.0]
    adata.varm["sce2tm_loadings"] = adata.varm["sce2tm_loadings"][:, :3]
    adata.uns["sce2tm"]["classes"] = adata.uns["sce2tm"]["classes"][:3]
    death = rng.exponential(np.exp(-hazard * adata.obsm["sce2tm_mu"][:, 1] / 2))
    end = rng.exponential(2.0, n)
    adata.obs["months"], adata.obs["dead"] = np.minimum(death, end), death < end
    adata.obs["age"] = rng.normal(60, 9, n)
    adata.obs["stage"] = pd.Categorical(rng.choice(["I", "II", "III"], n))
    return adata


def test_survival_is_that_of_lifelines():
    """E3: equal to 1e-10 to the package that it calls; the hazardous topic is found."""
    lifelines = pytest.importorskip("lifelines")
    adata = patients()
    cellsmith.tl.sce2tm_survival(adata, time="months", event="dead", covariates=["age", "stage"])
    table = frame(adata, "sce2tm_survival").set_index("topic")
    mu = adata.obsm["sce2tm_mu"][:, 1]
    data = pd.DataFrame({"t": adata.obs["months"], "e": adata.obs["dead"], "age": adata.obs["age"]})
    data = data.assign(II=adata.obs["stage"] == "II", III=adata.obs["stage"] == "III", z=(mu - mu.mean()) / mu.std())
    theirs = lifelines.CoxPHFitter().fit(data.astype(float), "t", "e").summary.loc["z"]
    ours = table.loc["Topic_1"]
    for mine, name in [("coefficient", "coef"), ("hazard_ratio", "exp(coef)"), ("p_value", "p"), ("z", "z")]:
        assert ours[mine] == pytest.approx(theirs[name], abs=1e-10)
    high = mu > np.median(mu)
    logrank = lifelines.statistics.logrank_test(
        data["t"][high], data["t"][~high], event_observed_A=data["e"][high], event_observed_B=data["e"][~high]
    )
    assert ours["logrank_p_value"] == pytest.approx(logrank.p_value, abs=1e-10)
    assert ours["fdr"] < 0.05
    assert ours["low"] < 1.65 < ours["high"]
    np.testing.assert_allclose(table["fdr"], stats.false_discovery_control(table["p_value"]))
    assert adata.uns["sce2tm_survival"]["params"]["n_events"] == adata.obs["dead"].sum()


@pytest.mark.slow
def test_survival_finds_the_hazardous_topic_and_few_others():
    """E3: cohorts of 300 patients; 25 here, to be cheap (E3 asks for 100, which passed)."""
    pytest.importorskip("lifelines")
    found, wrong = 0, 0
    for seed in range(25):
        adata = patients(seed=seed)
        cellsmith.tl.sce2tm_survival(adata, time="months", event="dead")
        called = frame(adata, "sce2tm_survival")["fdr"].to_numpy() < 0.05
        found, wrong = found + called[1], wrong + called[[0, 2]].sum()
    assert found >= 24
    assert wrong <= 5  # 5 % of 50 are 2.5


def test_a_topic_that_never_varies_has_no_answer():
    pytest.importorskip("lifelines")
    adata = patients(n=80)
    adata.obsm["sce2tm_mu"][:, 0] = 1.0
    cellsmith.tl.sce2tm_survival(adata, time="months", event="dead")
    table = frame(adata, "sce2tm_survival")
    assert table["fdr"].isna().tolist() == [True, False, False]
    np.testing.assert_allclose(table["fdr"][1:], stats.false_discovery_control(table["p_value"][1:]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("months", 3, 0.0), r"\.obs\['months'\] is .*0\.0.* for '3'; expected finite times above 0"),
        (("months", 3, np.nan), "is missing for 1 of 80 patients"),
        (("age", 0, np.nan), "is missing for 1 of 80 patients"),
        (("dead", slice(None), False), "holds 0 events; expected at least 20"),
        (("dead", 5, 2), "expected True and False, or 1 and 0"),
    ],
)
def test_patients_that_cannot_be_used(change, message):
    pytest.importorskip("lifelines")
    adata = patients(n=80)
    column, rows, value = change
    values = adata.obs[column].to_numpy(dtype=object)
    values[rows] = value
    adata.obs[column] = values
    with pytest.raises(SetupError, match=message):
        cellsmith.tl.sce2tm_survival(adata, time="months", event="dead", covariates=["age"])
    with pytest.raises(SetupError, match="is a string"):
        cellsmith.tl.sce2tm_survival(adata, time="months", event="dead", covariates="age")
