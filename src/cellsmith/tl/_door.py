"""What every door does: sort the arguments, set up, train."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from cellsmith._errors import SetupError, nearest
from cellsmith._rng import resolve_seed

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["open_door"]

# Named by the base class or by scvi-tools, never by a user of a door.
_HIDDEN = frozenset({"self", "cls", "adata", "mdata", "registry", "source", "source_registry", "seed"})


def open_door(
    model_class: Any,
    adata: AnnData,
    *,
    setup: Mapping[str, Any],
    model_kwargs: Mapping[str, Any],
    train_kwargs: Mapping[str, Any],
    queries: Mapping[str, tuple[Callable[..., Any], Mapping[str, Any]]],
    copy: bool,
    rng: Any,
) -> tuple[Any, int]:
    """Register, build and train a model.

    Parameters
    ----------
    model_class
        Class with ``setup_anndata``, ``__init__`` and ``train``.
    adata
        Cells x genes.
    setup
        The door's own arguments of ``setup_anndata``.
    model_kwargs
        Further arguments of ``__init__`` and ``setup_anndata``.
    train_kwargs
        Arguments of ``train``; those of Lightning's trainer pass through.
    queries
        Name of a mapping -> the query that takes it, and the mapping.
    copy
        Work on a copy of ``adata``.
    rng
        Seed of training.

    Returns
    -------
    The trained model and the integer seed.

    Raises
    ------
    SetupError
        For a name that no function takes, with the nearest valid one.
    """
    own, given = _names(model_class.__init__), _names(model_class.setup_anndata) - setup.keys()
    _refuse_unknown("model_kwargs", model_kwargs, own | given)
    for name, (query, values) in queries.items():
        _refuse_unknown(name, values, _names(query) | {"seed"})
    options = dict(train_kwargs)
    seed = resolve_seed(rng)
    _refuse_unknown("train_kwargs", options, _names(model_class.train) | _trainer_names())
    data = adata.copy() if copy else adata
    model_class.setup_anndata(data, **setup, **{k: v for k, v in model_kwargs.items() if k in given})
    model = model_class(data, **{k: v for k, v in model_kwargs.items() if k in own})
    model.train(**options, seed=seed)
    return model, seed


def _names(function: Callable[..., Any]) -> set[str]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)} - _HIDDEN


def _trainer_names() -> set[str]:
    from lightning.pytorch import Trainer as LightningTrainer
    from scvi.train import Trainer

    return _names(Trainer.__init__) | _names(LightningTrainer.__init__)


def _refuse_unknown(what: str, given: Mapping[str, Any], valid: set[str]) -> None:
    for name in given:
        if name not in valid:
            raise SetupError(f"{what} has no option {name!r}. {nearest(name, sorted(valid))}")
