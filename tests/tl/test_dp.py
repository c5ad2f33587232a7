"""The private doors that need no training: dp_pca and dp_kmeans."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import cellsmith
from cellsmith._errors import PrivacyError, PrivacyWarning, SetupError
from cellsmith.math import privacy


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    adata = cellsmith.datasets.toy_counts(200, 60, n_types=3, rng=0)
    adata.X = sparse.csr_matrix(adata.X)
    return adata


def run(adata: ad.AnnData, **kwargs) -> ad.AnnData:
    given = {"epsilon": 4.0, "n_components": 5, "unsafe_reproducible": True, "copy": True} | kwargs
    return cellsmith.tl.dp_pca(adata, **given)


def test_written_slots_and_what_the_block_says(cells: ad.AnnData) -> None:
    out = run(cells, gene_panel=55)
    assert out.obsm["X_dp_pca"].shape == (200, 5)
    assert (out.varm["dp_pca_loadings"] != 0).any(axis=1).sum() == 55
    block = out.uns["dp_pca"]["privacy"]
    assert block["valid"]
    assert block["adjacency"] == "add or remove one cell"
    assert 4 - 1e-3 <= block["epsilon"] <= 4
    np.testing.assert_allclose(
        block["replace_one_bound"], [2 * block["epsilon"], (1 + np.exp(block["epsilon"])) * 1e-5]
    )
    assert block["ledger"]["steps"].tolist() == [1]
    sd = float(block["ledger"]["noise_multiplier"][0])
    assert privacy.gaussian_delta(4.0, 1 / sd) <= 1e-5
    assert "dp_pca" not in cells.uns


def test_embedding_is_the_transform_on_the_axes(cells: ad.AnnData) -> None:
    out = run(cells)
    expected = privacy.transform_counts(cells.X) @ out.varm["dp_pca_loadings"].astype(float)
    np.testing.assert_allclose(out.obsm["X_dp_pca"], expected, atol=1e-6)


def test_much_budget_gives_the_axes_without_noise(cells: ad.AnnData) -> None:
    x = privacy.transform_counts(cells.X)
    _, axes = privacy.principal_axes(x.T @ x, 3)
    out = run(cells, epsilon=5000.0, n_components=3)
    found = out.varm["dp_pca_loadings"].astype(float)
    assert np.linalg.svd(found.T @ axes)[1].min() > 0.99


def test_sparse_dense_and_other_orders_agree(cells: ad.AnnData) -> None:
    dense = cells.copy()
    dense.X = cells.X.toarray()
    np.testing.assert_allclose(run(cells).obsm["X_dp_pca"], run(dense).obsm["X_dp_pca"], atol=1e-6)
    # Cells in another order: the same release, so the same embedding, in that order. Noise is added to the sum.
    turned = cells[::-1].copy()
    np.testing.assert_allclose(run(turned).obsm["X_dp_pca"][::-1], run(cells).obsm["X_dp_pca"], atol=1e-5)


def test_cells_in_a_file_are_read_in_blocks(cells: ad.AnnData, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cellsmith.data import panel

    monkeypatch.setattr(panel.panel_blocks, "__kwdefaults__", {"rows": 64})
    cells.write_h5ad(tmp_path / "a.h5ad")
    file = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    cellsmith.tl.dp_pca(file, epsilon=4.0, n_components=5, unsafe_reproducible=True)
    np.testing.assert_allclose(file.obsm["X_dp_pca"], run(cells).obsm["X_dp_pca"], atol=1e-6)
    some = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    cellsmith.tl.dp_pca(some, epsilon=4.0, n_components=5, gene_panel=55, unsafe_reproducible=True)
    np.testing.assert_allclose(some.obsm["X_dp_pca"], run(cells, gene_panel=55).obsm["X_dp_pca"], atol=1e-6)
    file.file.close()
    some.file.close()


def test_private_runs_differ_and_simulations_do_not(cells: ad.AnnData) -> None:
    first, second = (run(cells, unsafe_reproducible=False, rng=1).obsm["X_dp_pca"] for _ in range(2))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(run(cells, rng=1).obsm["X_dp_pca"], run(cells, rng=1).obsm["X_dp_pca"])
    said = run(cells, rng=1).uns["dp_pca"]["privacy"]
    assert "simulation" in said["statement"]
    assert "seed" not in run(cells, unsafe_reproducible=False).uns["dp_pca"]["provenance"]


def test_empty_cells_stay_in_place(cells: ad.AnnData) -> None:
    x = cells.X.toarray()
    x[7] = 0
    empty = ad.AnnData(sparse.csr_matrix(x), obs=cells.obs.copy(), var=cells.var.copy())
    out = run(empty)
    np.testing.assert_array_equal(out.obsm["X_dp_pca"][7], 0)
    assert np.isfinite(run(empty, center=True).obsm["X_dp_pca"]).all()


def test_panel_by_number_depends_on_names_alone(cells: ad.AnnData) -> None:
    other = cells[:, ::-1].copy()
    other.X = other.X * 2
    genes = [set(a.var_names[(run(a, gene_panel=52).varm["dp_pca_loadings"] != 0).any(axis=1)]) for a in (cells, other)]
    assert genes[0] == genes[1]


def test_donors_are_units(cells: ad.AnnData) -> None:
    adata = cells.copy()
    adata.obs["donor"] = pd.Categorical([f"donor-{i % 40}" for i in range(200)])
    out = run(adata, privacy_unit_key="donor")
    assert out.uns["dp_pca"]["privacy"]["unit"] == "donor"
    assert out.uns["dp_pca"]["privacy"]["n_units"] == 40
    assert "donor-7" not in str(out.uns["dp_pca"])


@pytest.mark.parametrize(
    ("kwargs", "error", "text"),
    [
        ({"epsilon": 0.0}, PrivacyError, "expected a number above 0"),
        ({"delta": 0.01}, PrivacyError, r"at most 0\.0029"),
        ({"gene_panel": ["a", "b"]}, SetupError, "shares 0 of its 2 genes"),
        ({"gene_panel": 1000}, SetupError, "gene_panel=1000; expected 2 to 60"),
        ({"n_components": 61}, SetupError, "expected 2 to 60"),
        ({"privacy_unit_key": "cell_type"}, PrivacyError, "has 3 units; with fewer than 30"),
        ({"layer": "no"}, SetupError, "layer='no'"),
    ],
)
def test_refusals(cells: ad.AnnData, kwargs: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        run(cells, **kwargs)


def test_genes_picked_on_these_cells_are_refused(cells: ad.AnnData) -> None:
    picked = cells.copy()
    picked.var["highly_variable"] = True
    with pytest.raises(PrivacyError, match="panel_is_public=True"):
        run(picked)
    run(picked, panel_is_public=True)
    picked.var["highly_variable"] = np.arange(60) < 30
    run(picked)  # the panel is all genes, not the picked ones


def test_values_that_are_no_counts_name_cell_and_gene_and_cost_nothing(cells: ad.AnnData) -> None:
    wrong = cells.copy()
    x = cells.X.toarray()
    x[3, 4] = 0.5
    wrong.X = x
    with pytest.raises(SetupError, match=f"{cells.obs_names[3]}.*{cells.var_names[4]}.*Nothing was spent"):
        run(wrong)


def test_earlier_results_are_added_up(cells: ad.AnnData) -> None:
    out = run(cells, epsilon=3.0)
    with pytest.warns(PrivacyWarning, match=r"bounded by epsilon 4 and delta 2e-05"):
        cellsmith.tl.dp_kmeans(out, n_clusters=3, epsilon=1.0, use_rep="X_dp_pca")
    assert set(out.obs["dp_kmeans"]) <= {"0", "1", "2"}
    assert out.uns["dp_kmeans"]["centers"].shape == (3, 5)
    centers = out.uns["dp_kmeans"]["centers"]
    apart = np.linalg.norm(centers[:, None] - centers, axis=2).max()
    assert apart <= 2 * out.uns["dp_kmeans"]["params"]["radius"] + 1e-9
    block = out.uns["dp_kmeans"]["privacy"]
    assert 1 - 1e-3 <= block["epsilon"] <= 1.0
    assert block["ledger"]["steps"].tolist() == [1, 5]


def test_k_means_looks_where_the_released_eigenvalues_say(cells: ad.AnnData) -> None:
    out = run(cells, epsilon=200.0)
    given = {"n_clusters": 3, "epsilon": 20.0, "use_rep": "X_dp_pca", "unsafe_reproducible": True, "copy": True}
    found, blind = (cellsmith.tl.dp_kmeans(out, **given, **more) for more in ({}, {"radius": 1.0}))
    agreement = [cellsmith.metrics.ari(cells.obs["cell_type"], o.obs["dp_kmeans"]) for o in (found, blind)]
    assert agreement[0] > 0.5
    assert found.uns["dp_kmeans"]["params"]["radius"] < 1 == blind.uns["dp_kmeans"]["params"]["radius"]
    unknown = out.copy()
    unknown.obsm["X_other"] = out.obsm["X_dp_pca"]
    other = cellsmith.tl.dp_kmeans(unknown, **{**given, "use_rep": "X_other"})
    np.testing.assert_allclose(other.uns["dp_kmeans"]["centers"], blind.uns["dp_kmeans"]["centers"])


def test_a_result_that_was_replaced_was_spent_all_the_same(cells: ad.AnnData) -> None:
    out = run(cells, epsilon=3.0)
    with pytest.warns(PrivacyWarning, match="bounded by epsilon 5 "):
        again = run(out, epsilon=2.0)
    block = again.uns["dp_pca"]["privacy"]
    assert block["earlier_epsilon"] == pytest.approx(3.0, abs=1e-3)
    assert "which add to it" in block["statement"]
    with pytest.warns(PrivacyWarning, match=r"bounded by epsilon 6 and delta 3e-05"):
        run(again, epsilon=1.0)


def test_block_survives_h5ad_and_zarr(cells: ad.AnnData, tmp_path) -> None:
    out = run(cells)
    out.write_h5ad(tmp_path / "a.h5ad")
    out.write_zarr(tmp_path / "a.zarr")
    for back in (ad.read_h5ad(tmp_path / "a.h5ad"), ad.read_zarr(tmp_path / "a.zarr")):
        one, other = back.uns["dp_pca"]["privacy"], out.uns["dp_pca"]["privacy"]
        assert one["statement"] == other["statement"]
        assert list(one["guarantees"]["output"]) == list(other["guarantees"]["output"])
        assert one["epsilon"] == other["epsilon"]


def test_refusals_of_k_means(cells: ad.AnnData) -> None:
    with pytest.raises(SetupError, match=r"use_rep='X_pca' is not in \.obsm"):
        cellsmith.tl.dp_kmeans(cells, n_clusters=3, epsilon=1.0, use_rep="X_pca")
    out = run(cells)
    with pytest.raises(SetupError, match="expected positive numbers"):
        cellsmith.tl.dp_kmeans(out, n_clusters=0, epsilon=1.0, use_rep="X_dp_pca")


def test_a_taken_key_is_refused_before_anything_is_spent(cells: ad.AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    def spent(*args, **kwargs):
        raise AssertionError("the budget was spent")

    monkeypatch.setattr(privacy.Ledger, "spend", spent)
    taken = cells.copy()
    taken.obsm["X_dp_pca"] = np.zeros((200, 2))
    taken.obs["dp_kmeans"] = 1
    taken.obs["dpdcan"] = 1
    with pytest.raises(SetupError, match="already exists"):
        cellsmith.tl.dp_pca(taken, epsilon=1.0)
    with pytest.raises(SetupError, match="already exists"):
        cellsmith.tl.dp_kmeans(taken, n_clusters=2, epsilon=1.0, use_rep="X_dp_pca")
    with pytest.raises(SetupError, match="already exists"):
        cellsmith.tl.dpdcan(taken)
