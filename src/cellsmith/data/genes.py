"""Genes of new cells beside those of training: matched by name, in any order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cellsmith._errors import SetupError

__all__ = ["match_genes"]


def match_genes(wanted: Sequence[str], found: Sequence[str], *, min_overlap: float) -> np.ndarray:
    """Return where each modelled gene stands among the genes of a query, -1 for one that is absent.

    Parameters
    ----------
    wanted
        Names of the V modelled genes.
    found
        Names of the genes of the query, in any order.
    min_overlap
        Share of the modelled genes that must be there.

    Returns
    -------
    Positions (V,).

    Raises
    ------
    SetupError
        If too few are there, naming three of each side, or a name of the query stands for two genes.
    """
    index = pd.Index(found).astype(str)
    if not index.is_unique:
        twice = index[index.duplicated()][0]
        raise SetupError(
            f"The query has two genes called {twice!r}; expected unique names. Type query.var_names_make_unique()."
        )
    places = index.get_indexer(pd.Index(wanted).astype(str))
    share = float((places >= 0).mean())
    if share < min_overlap:
        raise SetupError(
            f"The query has {int((places >= 0).sum())} of the {len(places)} modelled genes ({share:.0%}); expected at "
            f"least {min_overlap:.0%}. The model knows {_some(wanted)}; the query has {_some(found)}. Rename the genes "
            "of the query as in training (symbols or Ensembl identifiers), or lower min_gene_overlap."
        )
    return places


def _some(names: Sequence[str]) -> str:
    return ", ".join(repr(str(name)) for name in list(names)[:3])
