"""MuData: scores in one modality, graph and labels where they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData
from mudata import MuData

from cellsmith._errors import SetupError
from cellsmith.math import graph
from cellsmith.model import GRIT

Cells = Callable[..., AnnData]


@pytest.fixture
def mdata(cells: Cells) -> MuData:
    rna = cells()
    protein = AnnData(np.ones((160, 3), dtype=np.float32), obsm={"X_protein": rna.obsm["X_pca"].copy()})
    protein.obs_names = rna.obs_names
    found = MuData({"rna": rna, "protein": protein})
    found.obsp["wnn_connectivities"] = graph.fuzzy_union(*graph.knn_table(rna.obsm["X_pca"], 14, seed=0))
    found.uns["wnn"] = {"connectivities_key": "wnn_connectivities"}
    return found


def test_results_go_into_the_modality_of_the_scores(mdata: MuData, cells: Cells, fit: Callable[..., GRIT]) -> None:
    GRIT.setup_mudata(mdata, scores_key="scores", neighbors_key="wnn", modalities={"scores_key": "rna"})
    model = GRIT(mdata)
    model.train(enable_progress_bar=False)
    np.testing.assert_array_equal(model.get_latent(), fit(cells()).get_latent())
    model.write()
    assert "grit" in mdata.mod["rna"].obs
    assert "grit" not in mdata.mod["protein"].obs
    assert "grit" not in mdata.uns


def test_arguments_are_looked_up_where_they_are(mdata: MuData, tmp_path: Path) -> None:
    mdata.obs["anchor"] = mdata.mod["rna"].obs["truth"].to_numpy()
    places = {"scores_key": "rna", "use_rep": "protein", "batch_key": "rna"}
    GRIT.setup_mudata(
        mdata, scores_key="scores", use_rep="X_protein", labels_key="anchor", batch_key="batch", modalities=places
    )
    model = GRIT(mdata, anchors="calibrate")
    model.train(enable_progress_bar=False)
    assert len(model.summary_["calibration"]["anchors"]) == 160 - 50  # which fit the temperature
    assert list(model.summary_["batches"]["names"]) == ["a", "b"]
    model.save(str(tmp_path / "m"))
    loaded = GRIT.load(str(tmp_path / "m"), adata=mdata, accelerator="cpu")
    assert loaded.predict().tolist() == model.predict().tolist()


def test_modalities_are_needed(mdata: MuData) -> None:
    with pytest.raises(SetupError, match=r"rna.*protein"):
        GRIT.setup_mudata(mdata, scores_key="scores")
    with pytest.raises(SetupError, match="lacks 'scores_key'"):
        GRIT.setup_mudata(mdata, scores_key="scores", modalities={"use_rep": "rna"})
    with pytest.raises(SetupError, match=r"Did you mean 'rna'"):
        GRIT.setup_mudata(mdata, scores_key="scores", modalities={"scores_key": "rma"})


def test_cells_must_be_the_same(cells: Cells) -> None:
    few = cells(160)[:100].copy()
    mixed = MuData({"rna": few, "protein": AnnData(obsm={"P": np.ones((160, 2))}, obs=cells().obs)})
    with pytest.raises(SetupError, match=r"cells of use_rep='P' \(160\) are not those of the scores \(100\)"):
        GRIT.setup_mudata(
            mixed, scores_key="scores", use_rep="P", modalities={"scores_key": "rna", "use_rep": "protein"}
        )
