"""The base of closed-form models: a fit instead of an optimiser, the same guards, files and provenance."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from scvi.module.base import BaseModuleClass, LossOutput

from cellsmith._rng import Streams, isolated, resolve_seed
from cellsmith.model._base import CellModel
from cellsmith.model._stage import Stage

__all__ = ["FittedModel", "FittedState"]


class FittedState(BaseModuleClass):
    """The answer of a closed-form method, kept in buffers so that scvi-tools saves and loads it.

    Parameters
    ----------
    shapes
        Name of every quantity -> its shape; all start at zero.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))

    @property
    def device(self) -> torch.device:
        """Where the buffers are; scvi-tools looks for parameters, of which there are none."""
        return next(self.buffers()).device

    def _get_inference_input(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        return {}

    def _get_generative_input(self, tensors: Mapping[str, torch.Tensor], inference_outputs: Any) -> dict[str, Any]:
        return {}

    def inference(self) -> dict[str, Any]:
        """Return nothing: there is no posterior."""
        return {}

    def generative(self) -> dict[str, Any]:
        """Return nothing: there is no likelihood."""
        return {}

    def loss(self, tensors: Any, inference_outputs: Any, generative_outputs: Any) -> LossOutput:
        """Return zero: nothing is optimised."""
        return LossOutput(loss=torch.zeros(()), n_obs_minibatch=1)


class FittedModel(CellModel):
    """Abstract base of closed-form models: a subclass declares ``_shapes()``, ``_fit(streams)`` and ``results()``."""

    @abstractmethod
    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the name and shape of everything that the fit determines."""

    @abstractmethod
    def _fit(self, streams: Streams) -> Mapping[str, torch.Tensor]:
        """Return the fitted quantities by name; random numbers come from ``streams`` only."""

    def _new_module(self) -> FittedState:
        return FittedState(self._shapes())

    def stages(self) -> tuple[Stage, ...]:
        """Return no stage: there is no optimiser."""
        return ()

    def train(self, *, seed: Any = 0) -> None:  # type: ignore[override]
        """Fit the model.

        Parameters
        ----------
        seed
            Seed of whatever the fit draws; None draws one, which is recorded.

        Raises
        ------
        SetupError
            If the seed is not one, or as the method says.
        """
        streams = Streams(resolve_seed(seed))
        self.notes_: list[str] = []
        with isolated(streams.integer("noise")):
            found = self._fit(streams)
        # Nothing of an earlier fit is lost when this one fails.
        self.module.load_state_dict({name: torch.as_tensor(value) for name, value in found.items()})
        self.seed_, self.history_, self.is_trained_ = streams.seed, {}, True
        self.module.eval()
