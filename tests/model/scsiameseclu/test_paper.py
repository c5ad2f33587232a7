"""variant="paper": the published stages, repaired."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData

from cellsmith._errors import SetupError
from cellsmith._rng import Streams
from cellsmith.data.splits import CellReader
from cellsmith.datasets import toy_counts
from cellsmith.metrics.clustering import ari
from cellsmith.model import ScSiameseClu
from cellsmith.model.scsiameseclu.paper import PAPER, PaperModule


@pytest.fixture(scope="module")
def paper(fitted: Any) -> ScSiameseClu:
    adata = toy_counts(120, 50, n_types=4)
    epochs = {"pretrain_gene": 30, "pretrain_graph": 10, "pretrain_joint": 20, "main": 12}
    return fitted(adata, variant="paper", n_clusters=4, n_latent=20, train={"max_epochs": epochs})


def test_published_stages_run_and_cluster(paper: ScSiameseClu) -> None:
    assert [s.name for s in paper.stages()] == ["pretrain_gene", "pretrain_graph", "pretrain_joint", "main", "finish"]
    assert [s.max_epochs for s in paper.stages()[:4]] == [100, 50, 200, 50]
    assert all(np.isfinite(table.to_numpy(dtype=float)).all() for table in paper.history_.values())
    assert ari(paper.adata.obs["cell_type"], paper.predict()) > 0.6
    np.testing.assert_allclose(paper.predict(soft=True).sum(axis=1), 1.0, atol=1e-6)


def test_new_cells_are_refused_and_training_cells_written(paper: ScSiameseClu) -> None:
    with pytest.raises(SetupError, match="cannot place new cells"):
        paper.predict(toy_counts(60, 50, n_types=4, rng=5))
    paper.write()
    assert paper.adata.obsm["X_scsiameseclu"].shape == (120, 20)
    assert paper.generate(10).shape == (10, 50)


def test_saved_and_permuted(paper: ScSiameseClu, tmp_path: Path) -> None:
    paper.save(tmp_path / "m")
    order = np.random.default_rng(0).permutation(120)
    loaded = ScSiameseClu.load(tmp_path / "m", adata=paper.adata[order].copy())
    assert loaded.predict().loc[paper.adata.obs_names].equals(paper.predict())


def test_graph_decoder_is_not_bounded() -> None:
    torch.manual_seed(0)
    module = PaperModule(10, n_cells=30, n_components=8, n_latent=4, n_prototypes=4)
    walk = torch.eye(30)
    out, _ = module.graph_decoder(100 * torch.randn(30, 4), walk)
    with torch.no_grad():
        module.graph_decoder.layers[-1].weight.mul_(50)
    assert module.graph_decoder(100 * torch.randn(30, 4), walk)[0].abs().max().item() > 1
    from cellsmith.model.scsiameseclu.paper import _edges

    found = _edges(out[:, :2], out)
    assert ((found >= 0) & (found <= 1)).all()


def test_every_head_and_centre_learns_and_the_plan_is_renewed(paper: ScSiameseClu) -> None:
    """F10, F11, F13, F17: one operator in all stages, all heads trained, targets renewed every ten epochs."""
    paper._reader = CellReader(paper.adata_manager)
    paper._begin_paper(Streams(0))
    paper._begin_main(Streams(0))
    module = paper.module.train()
    module.zero_grad()
    module.loss_main({}, weights={}).loss.backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        if name != "attention":
            assert float(parameter.grad.abs().sum()) > 0, name
    first = module.plan.clone()
    with torch.no_grad():
        module.prototypes.add_(0.3 * torch.randn(module.prototypes.shape))
    for epoch in range(1, 11):
        paper._between_main(epoch, 50)
    assert module.plan is None
    module.loss_main({}, weights={})
    assert not torch.equal(first, module.plan)
    terms = module.loss_main({}, weights={}).extra_metrics
    assert float(terms["transport"]) >= -1e-5
    assert PAPER["refresh_every"] == 10
    module.hold()


def test_two_runs_are_bit_equal(fitted: Any, fresh: AnnData) -> None:
    short = {"variant": "paper", "n_clusters": 3, "n_latent": 20, "train": {"max_epochs": 2}}
    one, two = (fitted(fresh.copy(), **short).get_latent_representation() for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_clusters_are_those_of_kmeans_and_stay_so_after_loading(paper: ScSiameseClu, tmp_path: Path) -> None:
    """Nearest centre, and no walk over a graph on top of it."""
    z, centres = paper.get_latent_representation(), paper.get_prototypes()
    nearest = np.linalg.norm(z[:, None] - centres, axis=2).argmin(axis=1)
    np.testing.assert_array_equal(paper.predict().cat.codes, nearest)
    paper.save(str(tmp_path / "model"), overwrite=True)
    loaded = ScSiameseClu.load(str(tmp_path / "model"), adata=paper.adata)
    np.testing.assert_array_equal(loaded.predict().cat.codes, nearest)
    with pytest.raises(SetupError, match="dense"):
        loaded.get_propagation()


def test_expected_totals_are_those_of_the_modelled_genes(fitted: Any, fresh: AnnData) -> None:
    model = fitted(fresh, variant="paper", n_top_genes=30, train={"max_epochs": 2})
    share = float(fresh.X[:, model.gene_index_].sum() / fresh.X.sum())
    assert share < 0.95
    assert float(model.module.modelled_share) == pytest.approx(share, rel=1e-5)


def test_a_graph_that_would_not_be_used_is_refused(fresh: AnnData) -> None:
    fresh.obsm["X_mine"] = np.zeros((fresh.n_obs, 3), dtype=np.float32)
    ScSiameseClu.setup_anndata(fresh, use_rep="X_mine")
    with pytest.raises(SetupError, match="use_rep"):
        ScSiameseClu(fresh, n_clusters=4, variant="paper")
