"""Panels that look at no count, and batches in which every unit takes part by itself."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from cellsmith._errors import PrivacyError, SetupError
from cellsmith.data.panel import panel_counts, panel_of, unit_codes
from cellsmith.data.poisson import CellTable, PoissonSplit
from cellsmith.datasets import toy_counts


def table(units: np.ndarray | None = None, **kwargs) -> CellTable:
    counts = sparse.csr_matrix(np.arange(60, dtype=np.float32).reshape(20, 3))
    return CellTable(counts, np.zeros(20, dtype=np.int64), units=units, generator=np.random.default_rng(0), **kwargs)


def test_a_split_has_a_fixed_number_of_random_batches_and_no_validation() -> None:
    split = PoissonSplit(table(), sample_rate=0.3, steps=200, generator=np.random.default_rng(0))
    sizes = [len(batch["x"]) for batch in split.train_dataloader()]
    assert len(sizes) == len(split.train_dataloader()) == 200
    assert np.mean(sizes) == pytest.approx(6, abs=0.5)
    assert len(set(sizes)) > 4
    assert split.n_val == 0


def test_an_empty_draw_has_tensors_of_length_zero() -> None:
    batch = table()[np.array([], dtype=np.intp)]
    assert batch["x"].shape == (0, 3)
    assert batch["batch"].shape == (0,)


def test_units_are_padded_and_cut() -> None:
    units = np.repeat([0, 1, 2], [1, 4, 15])
    cut = table(units, n_units=3, most=5)[np.array([0, 2])]
    assert cut["x"].shape == (2, 5, 3)
    assert cut["keep"].sum(dim=1).tolist() == [1, 5]
    torch.testing.assert_close(cut["x"][0, 0], torch.tensor([0.0, 1.0, 2.0]))
    own = {tuple(row) for row in table().counts.toarray()[5:].tolist()}
    assert all(tuple(row) in own for row in cut["x"][1].tolist())


def test_absent_genes_of_a_panel_are_zeros() -> None:
    adata = toy_counts(60, 55, rng=0)
    names = ["absent", *adata.var_names[:51]]
    panel = panel_of(adata.var, names)
    counts = panel_counts(adata, adata.X, panel)
    assert counts.shape == (60, 52)
    assert counts[:, 0].nnz == 0
    dense = adata.X.toarray() if sparse.issparse(adata.X) else np.asarray(adata.X)
    np.testing.assert_array_equal(counts[:, 1:].toarray(), dense[:, :51])
    with pytest.raises(SetupError, match="expected names, a number of genes"):
        panel_of(adata.var, "most")


def test_names_of_donors_become_numbers() -> None:
    obs = pd.DataFrame({"donor": [f"p{i % 31}" for i in range(62)]})
    codes, n = unit_codes(obs, "donor")
    assert n == 31
    assert sorted(set(codes)) == list(range(31))
    with pytest.raises(PrivacyError, match="fewer than 30"):
        unit_codes(obs.iloc[:5], "donor")
    assert unit_codes(obs, None) == (None, 62)
