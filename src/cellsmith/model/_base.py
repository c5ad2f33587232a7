"""The base of every trained model: set-up guard, the one staged ``train``, and writing."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from scvi.data import AnnDataManager
from scvi.model._utils import parse_device_args
from scvi.model.base import BaseModelClass

from cellsmith import _record
from cellsmith._errors import CellsmithWarning, NotTrainedError, SetupError
from cellsmith._rng import Streams, isolated, resolve_seed
from cellsmith.data.splits import CellReader, CellSplit, TableSplit, split_cells, validation_batches
from cellsmith.model._stage import Stage, StagePlan, StageRunner, apply_plan_kwargs, stage_lengths

__all__ = ["CellModel"]


class CellModel(BaseModelClass):
    """Abstract base of the models: a subclass declares ``stages()``, ``results()`` and its queries.

    Parameters
    ----------
    adata
        Registered AnnData or MuData; None with ``registry`` builds a model without data.
    registry
        Registry of an earlier set-up.

    Raises
    ------
    SetupError
        If neither is given.
    """

    _method: ClassVar[str]
    # The argument of set-up whose modality of a MuData receives the results.
    _writes_beside: ClassVar[str] = "layer"
    # Why a model cannot be trained on several devices; empty where it can.
    _one_device: ClassVar[str] = ""

    def __init__(self, adata: Any = None, registry: Mapping[str, Any] | None = None) -> None:
        if adata is None and registry is None:
            name = type(self).__name__
            raise SetupError(f"{name} needs data: {name}.setup_anndata(adata, ...), then {name}(adata).")
        super().__init__(adata, registry)
        self.seed_: int | None = None
        self.device_: str = "cpu"
        self.notes_: list[str] = []

    @classmethod
    def _register(
        cls, adata: Any, fields: list[Any], setup_args: Mapping[str, Any], *, source_registry: Any = None
    ) -> None:
        """Register fields with scvi-tools under the arguments that the user typed."""
        _drop_foreign_uuid(adata)
        method = "setup_mudata" if hasattr(adata, "mod") else "setup_anndata"
        manager = AnnDataManager(
            fields=fields,
            setup_method_args={
                "model_name": cls.__name__,
                "setup_method_name": method,
                "setup_args": dict(setup_args),
            },
        )
        manager.register_fields(adata, source_registry=source_registry)
        cls.register_manager(manager)

    def _validate_anndata(self, adata: Any = None, copy_if_view: bool = True) -> Any:
        """Validate an object at query time; genes must be those of training, in their order."""
        if adata is not None and adata is not self.adata:
            _drop_foreign_uuid(adata)
            self._check_genes(adata)
        return super()._validate_anndata(adata, copy_if_view)

    def _check_genes(self, adata: Any) -> None:
        expected, found = self._training_genes(), _genes_of(adata, self._count_modality)
        if expected is None:
            return
        if len(expected) == len(found) and np.array_equal(expected, found):
            return
        shared = len(set(expected) & set(found))
        raise SetupError(
            f"The object has {len(found)} genes, of which {shared} are among the {len(expected)} genes of training"
            f"{', in another order' if shared == len(expected) == len(found) else ''}. "
            "Order them as in training: adata = adata[:, model.get_var_names()]."
        )

    @property
    def _count_modality(self) -> str | None:
        modalities = self.registry.get("setup_args", {}).get("modalities")
        return None if modalities is None else modalities.get(self._writes_beside)

    def _training_genes(self) -> np.ndarray | None:
        """Return the names of the registered genes, None for a model that reads none."""
        field = self.registry["field_registries"].get("X")
        return None if field is None else np.asarray(field["state_registry"]["column_names"], dtype=object)

    @abstractmethod
    def stages(self) -> tuple[Stage, ...]:
        """Return the stages of training."""

    @abstractmethod
    def results(self, adata: Any = None) -> _record.Result:
        """Return what :meth:`write` puts into an AnnData: of its cells, or of the training cells."""

    @abstractmethod
    def _new_module(self) -> torch.nn.Module:
        """Return a module with fresh weights."""

    _copied: ClassVar[tuple[str, ...]] = ()

    def _draw_weights(self) -> None:
        """Draw all weights anew, except those of submodules that were copied from another model."""
        fresh = self._new_module().state_dict()
        kept = tuple(self._copied)
        own = {k: v for k, v in fresh.items() if not (kept and k.startswith(kept))}
        self.module.load_state_dict(own, strict=False)

    def train(
        self,
        max_epochs: int | Mapping[str, int] | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        *,
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        load_sparse_tensor: bool = True,
        batch_size: int | None = None,
        early_stopping: bool | None = None,
        datasplitter_kwargs: Mapping[str, Any] | None = None,
        plan_config: Mapping[str, Any] | None = None,
        plan_kwargs: Mapping[str, Any] | None = None,
        datamodule: LightningDataModule | None = None,
        trainer_config: Mapping[str, Any] | None = None,
        seed: Any = 0,
        **trainer_kwargs: Any,
    ) -> None:
        """Train stage after stage.

        Parameters
        ----------
        max_epochs
            None: as the stages declare. An int shortens every stage to at most that many epochs; a mapping
            ``{stage: epochs}`` sets stages exactly.
        accelerator, devices
            As in scvi-tools.
        train_size, validation_size
            Fractions of the cells; None is 0.9 and the rest.
        shuffle_set_split
            Draw the split at random.
        load_sparse_tensor
            Hand batches of counts to the module as CSR; dense otherwise.
        batch_size
            Cells a batch in stages over cells; None is what the stage declares.
        early_stopping
            None: as the stages declare; False runs every stage to its end.
        datasplitter_kwargs
            ``train_size``, ``validation_size``, ``shuffle_set_split`` once more, for scvi-tools' callers.
        plan_config, plan_kwargs
            Fields of :class:`cellsmith.model._stage.Optim`, for all stages.
        datamodule
            Source of the cells for a model without AnnData.
        trainer_config
            Mapping merged with ``trainer_kwargs``.
        seed
            Seed of all randomness: split, weights, batches, noise. None draws one, which is recorded.
        **trainer_kwargs
            For :class:`scvi.train.Trainer`, for example ``enable_progress_bar=False``.

        Raises
        ------
        ConvergenceError
            If a loss stops being finite; the last finite weights are kept.
        SetupError
            If a stage or an option of the optimiser does not exist.
        """
        split_args = {
            "train_size": train_size,
            "validation_size": validation_size,
            "shuffle_set_split": shuffle_set_split,
            **(datasplitter_kwargs or {}),
        }
        # Everything that may refuse an argument comes first: a trained model then stays as it was.
        self._check_request(
            {"early_stopping": early_stopping, "batch_size": batch_size, "datamodule": datamodule} | split_args
        )
        streams = Streams(resolve_seed(seed))
        wanted = {**(plan_config or {}), **(plan_kwargs or {})}
        stages = self._planned_stages(max_epochs, wanted, batch_size)
        # Named before it starts: a device that starts inside the trainer would not be seeded.
        _, chosen, device = parse_device_args(accelerator=accelerator, devices=devices, return_device="torch")
        self._check_devices(chosen)
        self._datamodule, self._reader = datamodule, None
        if datamodule is None:
            self._split = self._draw_split(streams, split_args)
            self._reader = CellReader(self.adata_manager, sparse_counts=load_sparse_tensor)
        self.seed_, self.notes_ = streams.seed, []
        was_trained, self.is_trained_ = self.is_trained_, False
        if not was_trained:
            self.history_ = {}
            with isolated(streams.integer("init")):
                self._draw_weights()
        self._runner_kwargs = {
            "accelerator": accelerator,
            "devices": devices,
            "early_stopping": early_stopping,
            **(trainer_config or {}),
            **trainer_kwargs,
        }
        try:
            position = 0
            while position < len(stages):
                with isolated(streams.integer("noise", position), device=device):
                    self._run_stage(stages[position], streams=streams, position=position)
                if stages[position].solve:
                    # What a solve finds may decide which stages follow, and how long they are.
                    stages = self._planned_stages(max_epochs, wanted, batch_size, again=True)
                position += 1
            self.is_trained_ = True
        finally:
            # The reader and the tables point into the data: a saved or idle model must not hold them.
            self._reader = self._datamodule = None
            self.module.eval()

    def _planned_stages(
        self, max_epochs: Any, plan_kwargs: Mapping[str, Any], batch_size: int | None, *, again: bool = False
    ) -> tuple[Stage, ...]:
        """Return the stages as the caller wants them; asked again, a mapping may name stages that are gone by then."""
        stages = self.stages()
        if again and isinstance(max_epochs, Mapping):
            names = {s.name for s in stages}
            max_epochs = {k: v for k, v in max_epochs.items() if k in names}
        stages = apply_plan_kwargs(stage_lengths(stages, max_epochs), plan_kwargs)
        if batch_size is not None:
            stages = tuple(replace(s, batch_size=batch_size) if s.batches == "cells" else s for s in stages)
        return stages

    def _check_request(self, request: Mapping[str, Any]) -> None:
        """Refuse options of ``train`` that a method cannot honour; by default all are fine."""

    def _check_devices(self, chosen: Any) -> None:
        listed = chosen.split(",") if isinstance(chosen, str) else chosen
        n_devices = len(listed) if isinstance(listed, list) else int(listed)
        if n_devices == -1:  # all that there are
            n_devices = torch.cuda.device_count()
        if self._one_device and n_devices > 1:
            raise SetupError(f"devices asks for {n_devices} devices. {self._one_device} Type devices=1.")

    def _draw_split(self, streams: Streams, args: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        split = split_cells(
            self.adata.n_obs,
            train_size=args["train_size"],
            validation_size=args["validation_size"],
            shuffle=args["shuffle_set_split"],
            generator=streams.numpy("split"),
        )
        self.train_indices, self.validation_indices, self.test_indices = split
        return split

    def _run_stage(self, stage: Stage, *, streams: Streams, position: int) -> None:
        table = getattr(self, stage.refresh)(streams) if stage.refresh else None
        if stage.solve:
            getattr(self, stage.solve)(streams)
            return
        if stage.batches == "table":
            data = TableSplit(
                table,
                self._table_split(next(iter(table.values())).shape[0], streams),
                batch_size=stage.batch_size,
                steps_per_epoch=stage.steps_per_epoch,
                streams=streams,
                position=position,
            )
        elif self._datamodule is not None:
            data = self._datamodule
        else:
            # What refresh returns stands in for the reader: the same cells, read in another way.
            reader, size = (
                self._reader if table is None else table,
                {"batch_size": stage.batch_size, "min_batch": stage.min_batch},
            )
            data = CellSplit(reader, self._split, streams=streams, position=position, **size)
        self._fit(stage, data, StagePlan(self.module, stage))

    def _fit(self, stage: Stage, data: Any, plan: StagePlan) -> None:
        """Run the batches of a stage through its plan."""
        kwargs = dict(self._runner_kwargs)
        patience, wanted = stage.plan.patience, kwargs.pop("early_stopping")
        validates = data.n_val > 0 if hasattr(data, "n_val") else validation_batches(data) is not None
        stop = validates and patience is not None and wanted is not False
        runner = StageRunner(
            self,
            training_plan=plan,
            data_splitter=data,
            max_epochs=stage.max_epochs,
            early_stopping=stop,
            early_stopping_monitor=stage.monitor,
            early_stopping_patience=patience or 0,
            check_val_every_n_epoch=kwargs.pop("check_val_every_n_epoch", 1) if validates else None,
            **kwargs,
        )
        runner()
        self.device_ = str(runner.device)

    def _table_split(self, n_rows: int, streams: Streams) -> Sequence[np.ndarray]:
        """Return the split of the cells, or a new one where the cells came from a data module."""
        if self._datamodule is None:
            return self._split
        return split_cells(
            n_rows, train_size=None, validation_size=None, shuffle=True, generator=streams.numpy("split")
        )

    def _note(self, message: str, category: type[CellsmithWarning]) -> None:
        """Warn, and keep the text for the provenance."""
        self.notes_.append(message)
        warnings.warn(message, category, stacklevel=3)

    def _require_trained(self, query: str) -> None:
        if not self.is_trained_:
            raise NotTrainedError(f"{type(self).__name__}.{query} needs a trained model: call .train() first.")

    def get_latent(self, adata: Any = None, **kwargs: Any) -> np.ndarray:
        """Return the latent representation; an alias of ``get_latent_representation``.

        Parameters
        ----------
        adata
            Cells; None is the training object.
        **kwargs
            As in ``get_latent_representation``.

        Returns
        -------
        Array (n, n_latent).
        """
        return self.get_latent_representation(adata, **kwargs)

    def write(
        self,
        adata: Any = None,
        *,
        result: _record.Result | None = None,
        key_added: str | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write the results of the model into an AnnData.

        Parameters
        ----------
        adata
            Where to write; None is the training object (of MuData, the modality with the counts).
        result
            What to write; None is ``results()``.
        key_added
            Name of the outputs; None is the method's own.
        overwrite
            Replace what another method wrote under these names.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        """
        self._require_trained("write")
        target = self.adata if adata is None else adata
        if hasattr(target, "mod"):
            target = target.mod[self._count_modality]
        result = self.results(adata) if result is None else result
        _record.write(target, key_added or self._method, result, overwrite=overwrite)

    def _n_cells(self) -> int:
        """Return the number of training cells."""
        return int(self.summary_stats["n_cells"])

    def _provenance(self, *, inputs: Mapping[str, Any], extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the block that every result of this model carries."""
        return _record.provenance(
            method=self._method,
            seed=self.seed_,
            device=self.device_,
            dtype="float32",
            n_obs=self._n_cells(),
            var_names=self._training_genes(),
            inputs={k: v for k, v in inputs.items() if v is not None},
            histories={k: np.asarray(v.iloc[:, 0], dtype=float) for k, v in (self.history_ or {}).items()},
            warnings=self.notes_,
            extra=dict(extra or {}),
        )


def _drop_foreign_uuid(adata: Any) -> None:
    """Forget a registration that came along with ``adata.copy()``.

    ``copy()`` keeps ``.uns["_scvi_uuid"]``; registering the copy under it would evict the original from the manager
    store of scvi-tools.
    """
    uuid = adata.uns.get("_scvi_uuid")
    if uuid is None:
        return
    pending = [BaseModelClass]
    while pending:
        cls = pending.pop()
        pending.extend(cls.__subclasses__())
        manager = cls._setup_adata_manager_store.get(uuid)
        if manager is not None and manager.adata is not adata:
            _record.forget_registration(adata)
            return


def _genes_of(adata: Any, modality: str | None) -> np.ndarray:
    names = adata.mod[modality].var_names if modality is not None and hasattr(adata, "mod") else adata.var_names
    return np.asarray(names, dtype=object)
