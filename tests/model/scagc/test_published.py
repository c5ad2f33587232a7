"""The published design with its repairs, on a toy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from anndata import AnnData

from cellsmith._errors import SetupError
from cellsmith.model import SCAGC
from cellsmith.model.scagc.published import PublishedModule, TAGLayer, normalised

Cells = Callable[..., AnnData]


def test_hops_go_on_from_one_another() -> None:
    path = torch.diag(torch.ones(3), 1) + torch.diag(torch.ones(3), -1)
    layer = TAGLayer(1, 1)
    torch.nn.init.ones_(layer.weight)
    impulse = torch.tensor([[1.0], [0], [0], [0]])
    np.testing.assert_allclose(layer(impulse, path).detach().ravel(), [2, 3, 1, 1])


def test_stages_have_the_published_lengths_and_centres_are_trained(cells: Cells, published: SCAGC) -> None:
    lengths = {s.name: s.max_epochs for s in published.stages() if not s.solve}
    assert lengths == {"pretrain": 1000, "cluster": 300}
    assert {s.name: s.plan.lr for s in published.stages() if not s.solve} == {"pretrain": 1e-4, "cluster": 5e-4}
    assert "centers" in next(s for s in published.stages() if s.name == "cluster").trains
    assert published.predict(soft=True).shape == (60, 3)
    assert len(published.validation_indices) == 0


def test_counts_and_not_z_scores_go_into_the_likelihood(published: SCAGC) -> None:
    history = published.history_["pretrain/train_reconstruction"].iloc[:, 0].astype(float)
    assert np.isfinite(history).all()
    assert history.iloc[-1] < history.iloc[0]
    made = published.generate(400)
    assert (made.X.data >= 1).all()
    assert (made.X.data == np.round(made.X.data)).all()
    # rates times size factors, not shares: the totals are the decoder's own
    decoded = published._decode(published.get_latent(), np.zeros((60, 0), dtype=np.int64))
    totals = decoded.total(torch.from_numpy(published.adata.X.sum(axis=1)).ravel())
    wanted = (totals[:, None] * decoded.rho * (1 - decoded.dropout_logits.sigmoid())).sum(dim=1)
    assert made.X.sum(axis=1).mean() == pytest.approx(float(wanted.mean()), rel=0.3)


def test_unscaled_cosines_give_an_almost_random_graph_that_excludes_the_cell_itself() -> None:
    """Edge temperature 1 against all cells, as published: homophily near chance even for an oracle embedding."""
    types = np.repeat(np.arange(5), 60)
    module = PublishedModule(4)
    module.noise = torch.Generator().manual_seed(0)
    a, normal = module.draw(torch.from_numpy(np.eye(5, dtype=np.float32)[types]), noise_scale=1.0)
    edges = torch.nonzero(a).numpy()
    same = (types[edges[:, 0]] == types[edges[:, 1]]).mean()
    assert 0.2 < same < 0.5
    assert float(a.diagonal().sum()) == 0
    torch.testing.assert_close(normal, normalised(a))
    quiet, _ = module.draw(torch.from_numpy(np.eye(5, dtype=np.float32)[types]), noise_scale=0.0)
    kept = torch.nonzero(quiet).numpy()
    assert (types[kept[:, 0]] == types[kept[:, 1]]).mean() == 1.0


def test_new_cells_have_no_place_and_files_come_back(published: SCAGC, cells: Cells, tmp_path) -> None:
    with pytest.raises(SetupError, match="embeds all cells at once"):
        published.map_query(cells(20, 30))
    published.save(tmp_path / "m", overwrite=True)
    back = SCAGC.load(tmp_path / "m", adata=cells(60, 30), accelerator="cpu")
    assert back.predict().equals(published.predict())
    np.testing.assert_array_equal(back.get_latent(), published.get_latent())
