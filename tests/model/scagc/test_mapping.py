"""New cells on a trained model (E15)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from anndata import AnnData

from cellsmith._errors import SetupError
from cellsmith.model import SCAGC

Cells = Callable[..., AnnData]
Fit = Callable[..., SCAGC]


@pytest.fixture
def query(cells: Cells) -> AnnData:
    """A second draw from the same types."""
    both = cells(200)
    new = both[120:].copy()
    new.obs_names = [f"q{i}" for i in range(80)]
    return new


def test_reference_stays_bit_identical_and_companions_do_not_matter(model: SCAGC, query: AnnData) -> None:
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    together = model.map_query(query)
    alone = model.map_query(query[5].copy())
    small = model.map_query(query, batch_size=7)
    np.testing.assert_allclose(together.latent[5], alone.latent[0], atol=1e-5)
    np.testing.assert_allclose(together.latent, small.latent, atol=1e-5)
    np.testing.assert_allclose(together.proba.iloc[5], alone.proba.iloc[0], atol=1e-5)
    for name, value in model.module.state_dict().items():
        assert value.equal(before[name]), name


def test_training_cells_find_their_own_place(model: SCAGC) -> None:
    found = model.map_query(model.adata)
    own = model.get_latent()
    scale = np.linalg.norm(own - own.mean(axis=0), axis=1).mean()
    assert np.linalg.norm(found.latent - own, axis=1).mean() < 0.3 * scale
    assert (found.labels.to_numpy() == model.predict().to_numpy()).mean() > 0.9


def test_labels_carry_over_to_new_cells(model: SCAGC, query: AnnData, cells: Cells) -> None:
    truth = query.obs["cell_type"].astype(str).to_numpy()
    names = model.adata.obs["cell_type"].astype(str).groupby(model.predict(), observed=True).agg(lambda t: t.mode()[0])
    found = model.map_query(query).labels.map(names).astype(str).to_numpy()
    assert (found == truth).mean() > 0.85


def test_genes_are_matched_by_name_and_overlap_lowers_confidence(model: SCAGC, query: AnnData) -> None:
    shuffled = query[:, ::-1].copy()
    np.testing.assert_allclose(model.map_query(shuffled).latent, model.map_query(query).latent, atol=1e-5)
    partial = query[:, :36].copy()
    found = model.map_query(partial)
    assert found.gene_overlap == pytest.approx(0.9)
    assert found.missing == tuple(query.var_names[36:])
    model.write(partial, result=found)
    limit = found.proba.to_numpy().max(axis=1) * 0.9
    np.testing.assert_allclose(partial.obs["scagc_confidence"], limit, rtol=1e-5)
    assert "scagc_connectivities" not in partial.obsp
    assert float(partial.uns["scagc"]["query"]["gene_overlap"]) == pytest.approx(0.9)


def test_queries_that_cannot_be_placed_are_refused_and_untouched(model: SCAGC, query: AnnData) -> None:
    before = query.copy()
    with pytest.raises(SetupError, match=r"20 of the 40 modelled genes \(50%\); expected at least 80%"):
        model.map_query(query[:, :20].copy())
    broken = query.copy()
    broken.layers["counts"] = broken.layers["counts"] * 0.5
    with pytest.raises(SetupError, match="must hold raw counts"):
        model.map_query(broken)
    del broken.layers["counts"]
    with pytest.raises(SetupError, match=r"layer='counts' is not in \.layers"):
        model.map_query(broken)
    assert list(query.obs) == list(before.obs)
    assert not query.uns.keys() - before.uns.keys()


def test_unseen_batches_are_placed_and_neighbours_are_cells_of_training(model: SCAGC, query: AnnData) -> None:
    query.obs["batch"] = "elsewhere"
    found = model.map_query(query)
    assert found.neighbors.shape == found.weights.shape == (80, 6)
    assert found.neighbors.max() < 120
    np.testing.assert_allclose(found.weights[:, 0], 1.0)
    assert (np.diff(found.weights, axis=1) <= 1e-6).all()


def test_predict_and_latents_of_other_cells_are_those_of_the_map(model: SCAGC, query: AnnData) -> None:
    found = model.map_query(query)
    assert model.predict(query).equals(found.labels)
    np.testing.assert_array_equal(model.get_latent(query, indices=[1, 2]), found.latent[1:3])
    assert list(found.labels.index) == list(query.obs_names)
