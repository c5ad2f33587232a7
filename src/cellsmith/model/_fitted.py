"""The base of closed-form models: a fit instead of an optimiser, the same guards, files and provenance."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from scvi.model._utils import parse_device_args
from scvi.module.base import BaseModuleClass, LossOutput
from tqdm.auto import tqdm

from cellsmith._errors import SetupError, nearest
from cellsmith._rng import Streams, isolated, resolve_seed
from cellsmith.model._base import CellModel
from cellsmith.model._stage import Stage

__all__ = ["Fit", "FittedModel", "FittedState"]

logger = logging.getLogger("cellsmith")


class FittedState(BaseModuleClass):
    """The answer of a closed-form method, kept in buffers so that scvi-tools saves and loads it.

    Which buffers there are, and of which shape, follows from the fit: an untrained module has none, and a module that
    is loaded takes those of the file.
    """

    def __init__(self) -> None:
        super().__init__()
        self._values: list[str] = []

    def keep(self, values: Mapping[str, Any]) -> None:
        """Replace everything by the quantities of a fit, name -> tensor or array of any shape and dtype."""
        for name in self._values:
            delattr(self, name)
        self._values = []
        for name, value in values.items():
            # torch takes no array with a negative stride, which an embedding sorted by NumPy has
            tensor = value if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))
            self.register_buffer(name, tensor.detach().clone())
            self._values.append(name)

    def _load_from_state_dict(self, state_dict: Mapping[str, torch.Tensor], prefix: str, *args: Any) -> None:
        self.keep({k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)})
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def device(self) -> torch.device:
        """Where the buffers are; scvi-tools looks for parameters, of which there are none."""
        first = next(self.buffers(), None)
        return torch.device("cpu") if first is None else first.device

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


class Fit:
    """One run of a closed-form method: its random streams, limits, device, histories and progress bar.

    Parameters
    ----------
    steps
        Names of the steps, in their order.
    streams
        Random streams of this fit.
    max_iter
        Largest number of iterations of its solvers; None is the method's own.
    device
        Where heavy products may run.
    progress
        Show a bar once the fit has taken a second.
    """

    def __init__(
        self, steps: tuple[str, ...], *, streams: Streams, max_iter: int | None, device: torch.device, progress: bool
    ) -> None:
        self.streams, self.max_iter, self.device = streams, max_iter, device
        self._steps, self._position = steps, -1
        self._histories: dict[str, list[float]] = {}
        # `disable` is left out where a bar is wanted, so that tqdm's own switch, TQDM_DISABLE, still works
        hidden = {} if progress else {"disable": True}
        self._bar = tqdm(total=len(steps), delay=1.0, unit="step", leave=False, **hidden)

    def step(self, name: str) -> None:
        """Say that a step begins; the steps of a fit come in the order in which the model declares them."""
        position = self._steps.index(name)
        if position <= self._position:
            raise RuntimeError(f"step {name!r} comes before {self._steps[self._position]!r}")
        self._bar.update(position - max(self._position, 0))
        # not drawn at once: a fit that takes less than a second shows nothing
        self._bar.set_description(name, refresh=False)
        self._position = position

    def log(self, name: str, value: float) -> None:
        """Append to the history ``<step>/<metric>``."""
        self._histories.setdefault(name, []).append(float(value))

    def close(self) -> dict[str, pd.DataFrame]:
        """Close the bar and return the histories in the form of scvi-tools."""
        self._bar.close()
        return {
            name: pd.DataFrame({name: values}, index=pd.RangeIndex(len(values), name="step"))
            for name, values in self._histories.items()
        }


class FittedModel(CellModel):
    """Abstract base of closed-form models: a subclass declares ``_steps``, ``_fit(fit)`` and ``results()``."""

    _steps: ClassVar[tuple[str, ...]]

    @abstractmethod
    def _fit(self, fit: Fit) -> Mapping[str, Any]:
        """Return the fitted quantities, name -> tensor; random numbers come from ``fit.streams`` only.

        It must not change the model: an earlier fit stays as it was when this one fails.
        """

    def _new_module(self) -> FittedState:
        return FittedState()

    def stages(self) -> tuple[Stage, ...]:
        """Return no stage: there is no optimiser."""
        return ()

    def train(  # type: ignore[override]
        self,
        *,
        max_epochs: int | None = None,
        max_iter: int | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        enable_progress_bar: bool = True,
        seed: Any = 0,
    ) -> None:
        """Fit the model, once and to its end.

        Parameters
        ----------
        max_epochs
            Accepted because every model has it; there are no epochs.
        max_iter
            Largest number of iterations of the solver; None is the method's own.
        accelerator, devices
            As in scvi-tools.
        enable_progress_bar
            Show a bar when the fit takes longer than a second.
        seed
            Seed of whatever the fit draws; None draws one, which is recorded.

        Raises
        ------
        ConvergenceError
            If a solver does not reach its tolerance.
        SetupError
            If the seed is not one, or as the method says.
        """
        streams = Streams(resolve_seed(seed))
        if max_iter is not None and int(max_iter) < 1:
            raise SetupError(f"max_iter={max_iter}; expected a positive integer, or None for the method's own limit.")
        if max_epochs is not None:
            logger.info("%s fits in closed form: max_epochs=%s has no effect.", type(self).__name__, max_epochs)
        device = parse_device_args(accelerator=accelerator, devices=devices, return_device="torch")[2]
        fit = Fit(self._steps, streams=streams, max_iter=max_iter, device=device, progress=enable_progress_bar)
        former, self.notes_ = self.notes_, []
        try:
            with isolated(streams.integer("noise"), device=device):
                found = self._fit(fit)
        except BaseException:
            self.notes_ = former
            raise
        finally:
            histories = fit.close()
        self.module.keep(found)
        self.seed_, self.device_, self.history_, self.is_trained_ = streams.seed, str(device), histories, True
        self.module.eval()

    def _value(self, name: str) -> np.ndarray:
        """Return a fitted quantity as an array; it shares the module's memory."""
        if name not in dict(self.module.named_buffers()):
            raise SetupError(f"The fit has no {name!r}. {nearest(name, dict(self.module.named_buffers()))}")
        return getattr(self.module, name).cpu().numpy()
