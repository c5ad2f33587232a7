"""Which genes and which units a private method reads, and what it refuses before it spends anything."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
from scipy import sparse

from cellsmith._errors import PrivacyError, PrivacyWarning, SetupError, nearest
from cellsmith._rng import Streams
from cellsmith.math.counts import first_bad_count

__all__ = [
    "Panel",
    "check_budget",
    "check_private_counts",
    "panel_blocks",
    "panel_counts",
    "panel_of",
    "unit_codes",
    "warn_of_earlier",
]

FEWEST_SHARED, FEWEST_DONORS = 50, 30
ROWS = 8192


@dataclass(frozen=True)
class Panel:
    """Genes of a private method, in their order.

    Parameters
    ----------
    names
        (G,) names.
    source
        How they were chosen, in words.
    """

    names: np.ndarray
    source: str

    def places(self, var_names: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the columns of an object that belong to the panel, and their places in it; others are zeros."""
        place = {name: i for i, name in enumerate(var_names)}
        shared = [(place[g], j) for j, g in enumerate(self.names) if g in place]
        pairs = np.asarray(shared, dtype=np.intp).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]


def panel_of(var: Any, gene_panel: Any, *, panel_is_public: bool = False, fewest: int = FEWEST_SHARED) -> Panel:
    """Settle the panel without looking at a count.

    Parameters
    ----------
    var
        Table of the genes, indexed by their names.
    gene_panel
        Names; an integer: so many drawn from the sorted names, the same for the same names; or "all".
    panel_is_public
        The caller says that the genes were not picked on these cells.
    fewest
        Panel genes that the object must have (or all of its genes, where it has fewer).

    Raises
    ------
    SetupError
        For duplicates, unknown forms, or too few shared genes.
    PrivacyError
        If the genes were picked as highly variable in the object itself.
    """
    names = np.asarray(var.index, dtype=object)
    if isinstance(gene_panel, str) and gene_panel == "all":
        panel = Panel(names, "all var_names, which the caller declares public")
    elif isinstance(gene_panel, Integral) and not isinstance(gene_panel, bool):
        if not 2 <= gene_panel <= len(names):
            raise SetupError(f"gene_panel={gene_panel}; expected 2 to {len(names)}, the number of genes.")
        ordered = np.sort(names.astype(str)).astype(object)
        drawn = Streams(0).numpy("sample").choice(len(names), size=int(gene_panel), replace=False)
        panel = Panel(ordered[np.sort(drawn)], f"{int(gene_panel)} of the var_names, drawn by name alone")
    elif isinstance(gene_panel, str) or not hasattr(gene_panel, "__len__"):
        raise SetupError(f"gene_panel={gene_panel!r}; expected names, a number of genes, or 'all'.")
    else:
        panel = Panel(np.asarray(list(gene_panel), dtype=object), "names given by the caller")
    _, counts = np.unique(panel.names.astype(str), return_counts=True)
    if (counts > 1).any():
        raise SetupError(f"gene_panel holds {int((counts > 1).sum())} names more than once; expected each once.")
    columns, _ = panel.places(names)
    if len(columns) < min(fewest, len(names)):
        raise SetupError(
            f"gene_panel shares {len(columns)} of its {len(panel.names)} genes with the {len(names)} of the object; at "
            f"least {fewest} are needed. Check that both use symbols, or both identifiers."
        )
    picked = "highly_variable" in var and bool(np.asarray(var["highly_variable"], dtype=bool)[columns].all())
    if picked and not panel_is_public:
        raise PrivacyError(
            "All genes of the panel are marked .var['highly_variable']: they seem to have been picked on these cells, "
            "which costs privacy that nobody accounts for. Pass a public panel, an integer for a random one of all "
            "genes, or, if the genes come from other cells, panel_is_public=True."
        )
    return panel


def check_private_counts(adata: Any, layer: str | None) -> Any:
    """Return the counts, refusing what is none; a cell without counts is allowed. The messages stay with the owner.

    Raises
    ------
    SetupError
        If the layer is missing or a value is negative, fractional or not finite: first cell and gene.
    """
    if layer is not None and layer not in adata.layers:
        raise SetupError(f"layer={layer!r} is not in .layers. {nearest(layer, adata.layers)}")
    x = adata.X if layer is None else adata.layers[layer]
    where = ".X" if layer is None else f".layers[{layer!r}]"
    if x is None:
        raise SetupError(f"{where} is empty. Put raw counts there, or name the layer that has them with layer=.")
    if hasattr(x, "compute") or getattr(adata, "isbacked", False):
        return x  # read in blocks, and checked there
    _refuse_bad(x, adata, where)
    return x


def _refuse_bad(x: Any, adata: Any, where: str, first_row: int = 0) -> None:
    bad = first_bad_count(x)
    if bad is not None:
        i, g, value = bad
        raise SetupError(
            f"{where} must hold raw counts, but cell {adata.obs_names[first_row + i]!r}, gene {adata.var_names[g]!r} "
            f"is {value!r} (negative, fractional or not finite). Nothing was spent. Type layer='counts'."
        )


def panel_blocks(adata: Any, x: Any, panel: Panel, *, rows: int = ROWS) -> Iterator[Any]:
    """Yield blocks (rows, G) of the panel, sparse (CSR) or dense as the counts are; absent genes are zeros.

    Parameters
    ----------
    adata
        The object, for its names.
    x
        Its counts: dense, sparse, in a file, or dask.
    panel
        Genes.
    rows
        Cells a block.
    """
    columns, places = panel.places(adata.var_names)
    whole = np.array_equal(columns, np.arange(x.shape[1])) and np.array_equal(places, columns)
    for start in range(0, x.shape[0], rows):
        part = x[start : start + rows]
        if hasattr(part, "compute"):
            part = part.compute()
        if getattr(adata, "isbacked", False) or hasattr(x, "compute"):
            _refuse_bad(part, adata, "The matrix", start)
        if whole:
            yield sparse.csr_matrix(part) if sparse.issparse(part) else np.asarray(part, dtype=np.float64)
        elif sparse.issparse(part):
            taken = sparse.coo_matrix(part.tocsc()[:, columns])
            found = (taken.data, (taken.row, places[taken.col]))
            yield sparse.csr_matrix(found, shape=(part.shape[0], len(panel.names)))
        else:
            block = np.zeros((len(part), len(panel.names)))
            block[:, places] = np.asarray(part)[:, columns]
            yield block


def panel_counts(adata: Any, x: Any, panel: Panel) -> sparse.csr_matrix:
    """Return the counts (n, G) of the panel as float32 CSR; absent genes are zeros."""
    parts = [sparse.csr_matrix(b, dtype=np.float32) for b in panel_blocks(adata, x, panel)]
    return sparse.vstack(parts, format="csr") if parts else sparse.csr_matrix((0, len(panel.names)), dtype=np.float32)


def unit_codes(obs: Any, key: str | None) -> tuple[np.ndarray | None, int]:
    """Return the code of every cell's unit (None where a cell is a unit), and the number of units.

    Raises
    ------
    SetupError
        If the column is missing, or empty for a cell.
    PrivacyError
        If there are fewer than 30 donors.
    """
    if key is None:
        return None, len(obs)
    if key not in obs:
        raise SetupError(f"privacy_unit_key={key!r} is not a column of .obs. {nearest(key, obs.columns)}")
    if obs[key].isna().any():
        raise SetupError(f".obs[{key!r}] is empty for {int(obs[key].isna().sum())} cells; every cell needs its unit.")
    codes, n_units = np.unique(np.asarray(obs[key].astype(str)), return_inverse=True)[1], obs[key].nunique()
    if n_units < FEWEST_DONORS:
        raise PrivacyError(
            f".obs[{key!r}] has {n_units} units; with fewer than {FEWEST_DONORS} no useful result is to be expected "
            "under differential privacy for whole donors. Leave privacy_unit_key out to protect single cells only."
        )
    return codes.astype(np.intp), int(n_units)


def check_budget(epsilon: Any, delta: Any, n_units: int) -> None:
    """Refuse a budget that promises nothing.

    Raises
    ------
    PrivacyError
        If epsilon is not above 0, or delta above 1 / n^1.1: with delta = 1 / n, publishing one cell whole would pass.
    """
    if not (isinstance(epsilon, Real) and np.isfinite(epsilon) and epsilon > 0):
        raise PrivacyError(f"epsilon={epsilon!r}; expected a number above 0. Type for example 4.0.")
    most = 1 / n_units**1.1
    if not (isinstance(delta, Real) and 0 < delta <= most):
        raise PrivacyError(
            f"delta={delta!r}; for {n_units} units expected a number above 0 and at most {most:.3g}: at 1/n, "
            "publishing somebody whole would pass for private."
        )


def warn_of_earlier(uns: Mapping[str, Any], *, epsilon: float, delta: float) -> tuple[float, float]:
    """Warn with the total of everything that was spent on the same cells before, by simple addition.

    A result that was replaced counts as well: each block says what had been spent before it.

    Parameters
    ----------
    uns
        Blocks of earlier results.
    epsilon, delta
        What comes on top.

    Returns
    -------
    Epsilon and delta that were spent before; zeros where nothing was.
    """
    spent = [b["privacy"] for b in uns.values() if isinstance(b, Mapping) and isinstance(b.get("privacy"), Mapping)]
    spent = [p for p in spent if p.get("epsilon") is not None]
    if not spent:
        return 0.0, 0.0
    before = [
        max(sum(float(p[name]) for p in spent), *(float(p[name]) + float(p.get(f"earlier_{name}", 0)) for p in spent))
        for name in ("epsilon", "delta")
    ]
    warnings.warn(
        f"{len(spent)} private results on these cells are in .uns already; together with this one, and with those that "
        f"they replaced, an adversary who sees all of them is bounded by epsilon {epsilon + before[0]:.4g} and delta "
        f"{delta + before[1]:.3g}.",
        PrivacyWarning,
        stacklevel=3,
    )
    return before[0], before[1]
