"""The columns of the tables: functions from a case and a number of components to an embedding."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cellsmith._errors import CellsmithWarning, SetupError, nearest
from cellsmith._rng import Streams
from cellsmith.benchmark._missingness import peers
from cellsmith.benchmark._missingness.cases import Case

__all__ = ["BC", "COLUMNS", "PRIME", "Column", "Embedded", "bcpca", "pick"]

BC, PRIME = "BC logistic", "BC logistic + prime"
MAX_PAIRWISE = 8_000  # cells of the peer's (n, n) array


@dataclass(frozen=True)
class Embedded:
    """An embedding (n, k), and numbers that are written beside its scores."""

    x: npt.NDArray[Any]
    facts: Mapping[str, float] = field(default_factory=dict)


Run = Callable[[Case, int], "npt.NDArray[Any] | Embedded"]


@dataclass(frozen=True)
class Column:
    """One column.

    Parameters
    ----------
    run
        From a case and a number of components k to an embedding (n, k).
    nested
        Whether the first columns of a longer embedding are the shorter one, so that one fit serves all k.
    """

    run: Run
    nested: bool = True

    def __call__(self, case: Case, k: int) -> Embedded:
        """Run it."""
        found = self.run(case, k)
        return found if isinstance(found, Embedded) else Embedded(np.asarray(found))


def bcpca(case: Case, k: int, **options: Any) -> Embedded:
    """Run :func:`cellsmith.tl.bcpca` on the values with NaN, without its own baselines.

    Parameters
    ----------
    case, k
        The run.
    **options
        Arguments of the door.
    """
    import anndata as ad

    from cellsmith import tl

    cells = ad.AnnData(case.values)
    with warnings.catch_warnings():
        # what it leaves out or does not accept is counted in the tables
        warnings.simplefilter("ignore", CellsmithWarning)
        tl.bcpca(cells, mask="nan", n_latent=k, compare=False, rng=case.seed, **options)
    facts = {}
    if options.get("refine") == "prime":
        refine = cells.uns["bcpca"]["refine"]
        facts = {"accepted": float(refine["accepted"]), "rounds": float(refine["rounds"])}
    return Embedded(cells.obsm["X_bcpca"], facts)


def _door(**options: Any) -> Run:
    return lambda case, k: bcpca(case, k, **options)


def _peer(function: Callable[[npt.NDArray[Any], int], npt.NDArray[Any]]) -> Run:
    return lambda case, k: function(case.values, k)


def _pairwise(case: Case, k: int) -> npt.NDArray[Any]:
    if len(case.values) > MAX_PAIRWISE:
        raise SetupError(
            f"pairwise-complete needs an array of {len(case.values)} x {len(case.values)}; expected at most "
            f"{MAX_PAIRWISE} cells. Leave it out: columns=[...]."
        )
    return peers.pairwise_complete(case.values, k)


def _soft(case: Case, k: int) -> npt.NDArray[Any]:
    return peers.soft_impute(case.values, k, rng=Streams(case.seed).numpy("split"))


COLUMNS: dict[str, Column] = {
    "complete": Column(lambda case, k: case.complete.scores(k)),
    "zero-fill": Column(_peer(peers.zero_fill)),
    "mean-impute": Column(_peer(peers.mean_impute)),
    "pairwise-complete": Column(_pairwise),
    # the published code places no cell after the fit
    "BC legacy": Column(_door(prob="rank1-legacy", min_overlap=0.0)),
    "BC rank1": Column(_door(prob="rank1")),
    BC: Column(_door(prob="logistic")),
    PRIME: Column(_door(prob="logistic", refine="prime"), nested=False),
    "softImpute": Column(_soft, nested=False),
    "primePCA-like": Column(_peer(peers.prime_like), nested=False),
}
"""Column -> function, in the order of the tables."""

CONTROLS: dict[str, Column] = {
    "BC true p": Column(lambda case, k: bcpca(case, k, prob=case.probability)),
    "weighting, true p": Column(lambda case, k: peers.weighting(case.values, k, np.asarray(case.probability))),
    "hetero(mean)": Column(lambda case, k: peers.hetero(case.values, k), nested=False),
}
"""Further columns of Reference A."""


def pick(chosen: str | Iterable[str] | Mapping[str, Run]) -> dict[str, Column]:
    """Return column -> function.

    Parameters
    ----------
    chosen
        ``"all"``, ``"peers"``, ``"bcpca"``, names, or a mapping name -> function that is run beside all the others.

    Raises
    ------
    SetupError
        For a name that is none of them.
    """
    if isinstance(chosen, Mapping):
        own = {name: run if isinstance(run, Column) else Column(run, nested=False) for name, run in chosen.items()}
        return {**COLUMNS, **own}
    if isinstance(chosen, str):
        groups = {
            "all": list(COLUMNS),
            "peers": [name for name in COLUMNS if not name.startswith("BC")],
            "bcpca": [name for name in COLUMNS if name.startswith("BC")],
        }
        chosen = groups.get(chosen, [chosen])
    names = list(chosen)
    for name in names:
        if name not in COLUMNS:
            raise SetupError(f"There is no column {name!r}. {nearest(name, COLUMNS)}")
    return {name: COLUMNS[name] for name in names}
