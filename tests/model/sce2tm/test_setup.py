"""What is refused before training, with the words that help (section on bad input)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from anndata import AnnData

from cellsmith._errors import SetupError
from cellsmith.datasets import toy_counts
from cellsmith.model import SCE2TM


@pytest.fixture
def adata() -> AnnData:
    return toy_counts(100, 40, n_batches=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_topics": 1}, r"n_topics=1; expected a whole number from 2 to 8"),
        ({"n_topics": 5.5}, "n_topics=5.5; expected a whole number"),
        ({"n_topics": "5"}, "n_topics='5'; expected a whole number"),
        ({"n_topics": 5, "n_top_genes": 20}, "n_topics=5; .* from 2 to 4.*20 genes that are modelled"),
        ({"n_hidden": "20"}, "n_hidden='20'; expected a positive number"),
        ({"view_gate": None}, r"view_gate=None; a number in \[0, 1\]"),
        ({"n_topics": 9}, r"n_topics=9; .*2 to 8.*100 cells.*40 genes"),
        ({"gene_likelihood": "nbb"}, "Did you mean 'nb'"),
        ({"variant": "papr"}, "Did you mean 'paper'"),
        ({"decoder_scale": "fix"}, "Did you mean 'fixed'"),
        ({"loss_scale": "mas"}, "Did you mean 'mass'"),
        ({"ecr_gradient": "implict"}, "Did you mean 'implicit'"),
        ({"view_gate": "explaned"}, "Did you mean 'explained'"),
        ({"view_gate": 1.5}, r"view_gate=1.5; a number in \[0, 1\]"),
        ({"topic_gene_temperature": 0.0}, "topic_gene_temperature=0.0; expected a positive number"),
        ({"ecr_weight": -1.0}, "ecr_weight=-1.0; expected a number >= 0"),
        ({"cross_weight": float("nan")}, "cross_weight=nan"),
        ({"dropout_rate": 1.0}, "dropout_rate=1.0"),
        ({"variant": "paper", "ecr_weight": 20.0}, "ecr_weight=20.0 contradicts variant='paper', where it is 100.0"),
        ({"variant": "paper", "n_top_genes": 3000}, "n_top_genes=3000 contradicts"),
        ({"variant": "paper", "gene_likelihood": "nb"}, "gene_likelihood='nb' contradicts"),
        ({"variant": "paper", "view_gate": 0.5}, "view_gate=0.5 contradicts"),
    ],
)
def test_arguments_out_of_range(options: dict[str, Any], words: str, adata: AnnData) -> None:
    SCE2TM.setup_anndata(adata)
    with pytest.raises(SetupError, match=words):
        SCE2TM(adata, **options)


def test_paper_takes_what_it_fixes(adata: AnnData) -> None:
    SCE2TM.setup_anndata(adata)
    model = SCE2TM(adata, variant="paper", n_topics=5, loss_scale="paper", cross_weight=1.0)
    assert model._loss_weights == {"ecr": 100.0, "cross": 1.0}
    assert model._loss_scale == "paper"
    assert model.module.own_draw_for_cross


def test_number_of_topics_is_said_to_be_a_guess(adata: AnnData, caplog: pytest.LogCaptureFixture) -> None:
    SCE2TM.setup_anndata(adata)
    with caplog.at_level("INFO", logger="cellsmith"):
        assert SCE2TM(adata).module.n_topics == 8
    assert "by the size of the data alone" in caplog.text
    assert "sce2tm_choose_n_topics" in caplog.text


def test_a_plan_held_fixed_is_warned_of(adata: AnnData, caplog: pytest.LogCaptureFixture) -> None:
    SCE2TM.setup_anndata(adata)
    SCE2TM(adata, n_topics=4, ecr_gradient="envelope")
    assert "another objective" in caplog.text


@pytest.mark.parametrize("value", [-1.0, 0.5, np.nan, np.inf])
def test_values_that_are_no_counts(value: float, adata: AnnData) -> None:
    x = adata.X.toarray()
    x[4, 7] = value
    adata.X = x
    with pytest.raises(SetupError, match=r"cell 'cell_4', gene 'gene_7'.*layer='counts'"):
        SCE2TM.setup_anndata(adata)
    assert "_scvi_uuid" not in adata.uns


def test_cells_and_names_that_cannot_be_used(adata: AnnData) -> None:
    few = adata[:49].copy()
    with pytest.raises(SetupError, match="49 cells"):
        SCE2TM.setup_anndata(few)
    empty = adata.copy()
    empty.X = empty.X.toarray() * (np.arange(100) != 6)[:, None]
    with pytest.raises(SetupError, match=r"1 cells have a total of zero \(first: 'cell_6'\)"):
        SCE2TM.setup_anndata(empty)
    twice = adata.copy()
    twice.var_names = ["a", "a", *twice.var_names[2:]]
    with pytest.raises(SetupError, match=r"\.var_names holds 'a' twice.*var_names_make_unique"):
        SCE2TM.setup_anndata(twice)
    cells = adata.copy()
    cells.obs_names = ["c", "c", *cells.obs_names[2:]]
    with pytest.raises(SetupError, match=r"\.obs_names holds 'c' twice"):
        SCE2TM.setup_anndata(cells)
    with pytest.raises(SetupError, match=r"batch_key='bach'.*Did you mean 'batch'"):
        SCE2TM.setup_anndata(adata, batch_key="bach")
    with pytest.raises(SetupError, match=r"layer='count' is not in .layers"):
        SCE2TM.setup_anndata(adata, layer="count")
