"""Genes of new cells are matched by name."""

from __future__ import annotations

import numpy as np
import pytest

from cellsmith._errors import SetupError
from cellsmith.data.genes import match_genes


def test_match_by_hand() -> None:
    np.testing.assert_array_equal(match_genes(["b", "x", "a"], ["a", "b", "c"], min_overlap=0.5), [1, -1, 0])


def test_too_few_and_ambiguous_genes_are_refused() -> None:
    with pytest.raises(
        SetupError, match=r"1 of the 3 modelled genes \(33%\); expected at least 50%.*knows 'b', 'x', 'a'"
    ):
        match_genes(["b", "x", "a"], ["a", "q"], min_overlap=0.5)
    with pytest.raises(SetupError, match="two genes called 'a'"):
        match_genes(["a", "b"], ["a", "a", "b"], min_overlap=0.5)
