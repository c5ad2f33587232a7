"""Queries of SCLD that start from real cells: augment, translate, interpolate."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from torch import Tensor

from cellsmith._errors import DataWarning, SetupError, nearest
from cellsmith._rng import Streams, resolve_seed
from cellsmith.math import edm
from cellsmith.model.scld import equations as eq
from cellsmith.model.scld import generation as gen
from cellsmith.model.scld.assemble import assemble_cells, join_cells, joint_block, with_obs
from cellsmith.model.scld.registration import check_object, lacks_counts
from cellsmith.model.scld.request import Request, check_condition, request_composition, request_rows, shown

__all__ = ["EditingMixin"]


class EditingMixin:
    """Augmentation, translation and interpolation."""

    def augment(
        self,
        adata: AnnData | None = None,
        *,
        key: str,
        target: str | int | Mapping[str, int] = "max",
        max_ratio: float = 5.0,
        guidance: float | Mapping[str, float] = 1.0,
        guidance_mode: str = "auto",
        sampler: str = "dpmpp_2m",
        n_steps: int | None = None,
        library_size: float | str | None = None,
        decode: str = "exact_total",
        post_guidance: str | None = None,
        post_guidance_kwargs: Mapping[str, Any] = {},
        on_small: str = "raise",
        min_cells: int = 1,
        seed: Any = 0,
        batch_size: int = 4096,
    ) -> AnnData:
        """Add synthetic cells to small categories.

        Parameters
        ----------
        adata
            Real cells; None is the training object.
        key
            Registered categorical covariate.
        target
            Cells every category should have: "max" (that of the largest), a number, or {category: number}.
        max_ratio
            Never more synthetic than this many times the real cells of a category; a warning says where it capped.
        guidance, guidance_mode, sampler, n_steps, decode
            As in :meth:`generate`.
        library_size
            Totals of the synthetic cells: None is the model's, else a number or "match", counts.
        post_guidance, post_guidance_kwargs
            As in :meth:`generate`.
        on_small, min_cells
            As in :meth:`generate`; by default a category of any size is augmented.
        seed
            Seed of the draw.
        batch_size
            As in :meth:`generate`.

        Returns
        -------
        AnnData: the real rows first, then the synthetic ones; ``.obs["is_synthetic"]`` tells them apart.

        * ``.X`` (n, G) CSR: the counts, also where they were registered from a layer; that layer holds them too.
        * ``.var``, ``.varm``: those of the real cells.
        * ``.obs``: all columns; what only one kind of cells has is missing for the other.
        * ``.obsm`` and dense layers of numbers: NaN for synthetic cells, which were never measured or embedded there.
        * left out: sparse layers and ``.obsm`` (a warning names them), which cannot say "missing"; and ``.obsp``,
          ``.uns`` and ``.raw``, which describe the real cells only.
        * ``.uns[key_added]``: ``params``, ``composition`` (real, wanted, added a category), ``post_guidance``,
          ``fallback``, ``provenance``.

        Raises
        ------
        SetupError
            For a column that is not registered, a target that is not positive, cells whose counts are gone, or an
            option that :meth:`generate` refuses.
        """
        self._require_trained("augment")
        real = self._real_cells(adata, key)
        if not max_ratio > 0:
            raise SetupError(f"max_ratio={max_ratio}; expected a positive number.")
        if np.ndim(library_size):
            raise SetupError(
                f"library_size has the shape {np.shape(library_size)}; augment takes None, 'match' or one number, "
                "since it decides itself how many cells a category gets."
            )
        options = {
            "guidance": guidance,
            "guidance_mode": guidance_mode,
            "sampler": sampler,
            "n_steps": n_steps,
            "library_size": library_size,
            "decode": decode,
            "post_guidance": post_guidance,
            "post_guidance_kwargs": post_guidance_kwargs,
            "on_small": on_small,
            "min_cells": min_cells,
            "batch_size": batch_size,
        }
        wanted = _targets(
            target, real.obs[key].value_counts(), self.covariates.categories[self.covariates.position(key)]
        )
        table = self._shortfall(real, key, wanted, max_ratio)
        seed, parts = resolve_seed(seed), []
        for i, (category, n_new) in enumerate(zip(wanted, table["added"], strict=True)):
            if n_new:
                child = Streams(seed).integer("augment", i)
                parts.append(self.generate(int(n_new), condition={key: category}, seed=child, **options))
        layer = self.registry["setup_args"].get("layer")
        out, left_out = join_cells(real, parts, layer=layer, prefix=self.key_added_)
        if left_out:
            warnings.warn(
                f"augment left out {', '.join(left_out)}: a sparse matrix cannot say that synthetic cells have no "
                "value there. Compute them anew from .X, or make them dense first.",
                DataWarning,
                stacklevel=2,
            )
        if parts:
            params = {"key": key, "target": str(target), "max_ratio": float(max_ratio), "seed": seed}
            out.uns[self.key_added_] = joint_block(parts, self.key_added_, params=params, composition={key: table})
        return out

    def _real_cells(self, adata: AnnData | None, key: str) -> AnnData:
        """Return the cells to augment, with the column ``key``, after refusing what cannot be augmented."""
        self.covariates.position(key)
        whole = self.adata if adata is None else adata
        real = whole.mod[self._count_modality] if hasattr(whole, "mod") else whole
        layer = self.registry["setup_args"].get("layer")
        if lacks_counts(real, layer):
            raise SetupError(
                "augment puts real cells beside synthetic ones, but the counts of these real cells are gone: they are "
                "minified. Type augment(adata, key=...) with cells that have counts."
            )
        if adata is not None and adata is not self.adata:
            check_object(real, layer, min_cells=1)
            self._check_genes(whole)
        if key not in whole.obs and key not in real.obs:
            raise SetupError(f"adata.obs lacks {key!r}. {nearest(key, real.obs.columns)}")
        obs = real.obs[[c for c in real.obs.columns if not c.startswith("_scvi")]]
        if key not in obs:
            obs = obs.assign(**{key: whole.obs[key].reindex(obs.index)})
        return with_obs(real, obs)

    def _shortfall(self, real: AnnData, key: str, wanted: Mapping[Any, int], max_ratio: float) -> dict[str, np.ndarray]:
        """Return the table of the categories: how many are real, wanted and to be added; warn where that was capped."""
        sizes = real.obs[key].value_counts()
        have = np.array([int(sizes.get(category, 0)) for category in wanted])
        missing = np.maximum(0, np.array(list(wanted.values())) - have)
        added = np.minimum(missing, np.floor(max_ratio * have)).astype(int)
        capped = [f"{shown(c)} ({n} real)" for c, n, a, m in zip(wanted, have, added, missing, strict=True) if a < m]
        if capped:
            warnings.warn(
                f"augment stopped at {max_ratio:g} times the real cells for {', '.join(capped)}. "
                "Raise max_ratio to add more; cells far beyond the real ones add no information.",
                DataWarning,
                stacklevel=3,
            )
        return {"category": np.array([str(c) for c in wanted]), "real": have, "wanted": have + missing, "added": added}

    @torch.no_grad()
    def translate(
        self,
        adata: AnnData,
        condition: Mapping[str, Any],
        *,
        n_steps: int = 50,
        library_size: Any = "keep",
        seed: Any = 0,
    ) -> AnnData:
        """Carry cells over to another condition: invert the flow under the old one, run it under the new one (E19).

        Parameters
        ----------
        adata
            Real cells (n), row i of the answer comes from row i.
        condition
            Column -> new category; all other covariates stay.
        n_steps
            Noise levels in each direction.
        library_size
            "keep" the totals, or as in :meth:`generate`.
        seed
            Seed of the count draw.

        Returns
        -------
        AnnData with ``n`` cells and the new condition.

        Raises
        ------
        SetupError
            For an unknown column or category.
        """
        self._require_trained("translate")
        if not condition:
            raise SetupError("translate needs a condition, for example condition={'condition': 'STIM'}.")
        check_condition(self.covariates, condition)
        streams, module = Streams(resolve_seed(seed)), self.module
        table, log_total = self._encode(adata)
        request = Request(
            table["codes"].numpy(),
            table["continuous"].double().numpy(),
            np.full(len(table["codes"]), bool(self.covariates.continuous)),
            additive=np.zeros(len(table["codes"]), dtype=bool),
        )
        new_codes = request.codes.copy()
        for name, value in condition.items():
            new_codes[:, self.covariates.position(name)] = self.covariates.code(name, value)
        w = module.to_state(table["mean"].to(module.device), table["log_library"].to(module.device)).cpu()
        moved = self._carry(w, request, replace(request, codes=new_codes), n_steps=n_steps)
        keep = isinstance(library_size, str) and library_size == "keep"
        wanted = replace(request, codes=new_codes)
        cells = self._decode_states(
            moved,
            wanted,
            streams,
            library_size=np.exp(log_total.numpy()) if keep else library_size,
            decode="exact_total",
            output="counts",
        )
        params = {"condition": {str(a): str(b) for a, b in condition.items()}, "n_steps": n_steps, "sampler": "ddim"}
        return assemble_cells(self, wanted, cells, params=params, post_guidance={"kind": "none"}, min_cells=0)

    def _carry(self, w: Tensor, source: Request, target: Request, *, n_steps: int) -> Tensor:
        """Noise states under one request's conditions and denoise them under another's (ddim both ways)."""
        sigmas = edm.sigma_grid(n_steps, prior=self.module.prior).to(self.module.device, torch.float32)
        out = []
        for rows in gen.row_chunks(len(w), 4096, description="Translating"):
            old = gen.condition_denoiser(self.module, source, self.covariates, rows=rows, guidance=1.0)
            new = gen.condition_denoiser(self.module, target, self.covariates, rows=rows, guidance=1.0)
            y = edm.invert_ddim(old, w[rows].to(self.module.device), sigmas.flip(0))
            out.append(edm.sample_ddim(new, y, sigmas).cpu())
        return torch.cat(out)

    @torch.no_grad()
    def interpolate(
        self,
        a: Any,
        b: Any,
        *,
        n_steps: int = 11,
        n_cells: int = 100,
        mode: str = "condition",
        start_cells: AnnData | None = None,
        start_noise: float = 0.6,
        seed: Any = 0,
    ) -> AnnData:
        """Walk from one state to another (E23).

        Parameters
        ----------
        a, b
            Condition mappings for ``mode="condition"``, one-row AnnData for "latent" and "noise".
        n_steps
            Stations from 0 to 1.
        n_cells
            Cells a station.
        mode
            "condition": mix the condition embeddings under common noise; "latent": straight line between the cells'
            states; "noise": great circle between their inverted noises.
        start_cells
            For "condition": noise these real cells to ``start_noise`` and denoise them under the mixture.
        start_noise
            Time in (0, 1] to which they are noised.
        seed
            Seed of the draw.

        Returns
        -------
        AnnData with ``n_steps * n_cells`` cells and ``.obs["scld_step"]`` in [0, 1].

        Raises
        ------
        SetupError
            For an unknown mode, or ends that do not fit it.
        """
        self._require_trained("interpolate")
        valid = ("condition", "latent", "noise")
        if mode not in valid:
            raise SetupError(f"mode={mode!r}. {nearest(mode, valid)}")
        streams = Streams(resolve_seed(seed))
        weights = np.linspace(0.0, 1.0, n_steps)
        if mode == "condition":
            states, request = self._between_conditions(a, b, weights, n_cells, start_cells, start_noise, streams)
        else:
            states, request = self._between_cells(a, b, weights, n_cells, mode)
        cells = self._decode_states(states, request, streams, library_size=None, decode="exact_total", output="counts")
        step = np.repeat(weights, n_cells)
        return assemble_cells(
            self,
            request,
            cells,
            params={"mode": mode, "n_steps": n_steps, "n_cells": n_cells},
            post_guidance={"kind": "none"},
            min_cells=0,
            extra_obs={"{k}_step": step},
        )

    def _between_conditions(
        self,
        a: Mapping[str, Any],
        b: Mapping[str, Any],
        weights: np.ndarray,
        n_cells: int,
        start_cells: AnnData | None,
        start_noise: float,
        streams: Streams,
    ) -> tuple[Tensor, Request]:
        if not isinstance(a, Mapping) or not isinstance(b, Mapping):
            raise SetupError("mode='condition' needs two mappings, for example {'day': '0'} and {'day': '4'}.")
        module, rows = self.module, self._rows()
        ends = [
            replace(
                request_composition(
                    self.covariates, rows, n_cells=n_cells, condition=c, generator=streams.numpy("sample", -1)
                ),
                additive=np.zeros(n_cells, dtype=bool),
            )
            for c in (a, b)
        ]
        embedded = [gen.request_embeddings(module, end, slice(None))[1] for end in ends]
        noise = gen.start_noise(n_cells, module.n_state, streams=streams).to(module.device)
        sigmas = edm.sigma_grid(20, prior=module.prior, start=None if start_cells is None else start_noise).to(
            module.device, torch.float32
        )
        y = sigmas[0] * noise
        if start_cells is not None:
            table, _ = self._encode(start_cells)
            w = module.to_state(table["mean"].to(noise), table["log_library"].to(noise))
            y = w[torch.arange(n_cells, device=w.device) % len(w)] + y
        parts = []
        for weight in weights:
            cond = eq.interpolate_embeddings(embedded[0], embedded[1], float(weight))
            denoiser = edm.guided_denoiser(
                module.ema_denoiser,
                module.ema_denoiser.null(n_cells),
                [cond],
                weights=[1.0],
                prediction=module.prediction,
                prior=module.prior,
            )
            parts.append(edm.sample_dpmpp_2m(denoiser, y, sigmas).cpu())
        nearer = [ends[int(weight > 0.5)] for weight in weights]
        return torch.cat(parts), _join(nearer)

    def _between_cells(
        self, a: AnnData, b: AnnData, weights: np.ndarray, n_cells: int, mode: str
    ) -> tuple[Tensor, Request]:
        if not (isinstance(a, AnnData) and isinstance(b, AnnData)) or a.n_obs != 1 or b.n_obs != 1:
            raise SetupError(
                f"mode={mode!r} needs two AnnData of one cell each, for example adata[[0]] and adata[[1]]."
            )
        module, states, requests = self.module, [], []
        for end in (a, b):
            table, _ = self._encode(end.copy())
            states.append(module.to_state(table["mean"].to(module.device), table["log_library"].to(module.device)))
            requests.append(
                replace(
                    request_rows(self.covariates, end.obs[[*self.covariates.names, *self.covariates.continuous]]),
                    additive=np.zeros(1, dtype=bool),
                )
            )
        nearer = [requests[int(weight > 0.5)] for weight in weights for _ in range(n_cells)]
        request = _join(nearer)
        line = torch.from_numpy(np.repeat(weights, n_cells)).float()[:, None].to(module.device)
        if mode == "latent":
            return (torch.lerp(states[0], states[1], line)).cpu(), request
        sigmas = edm.sigma_grid(50, prior=module.prior).to(module.device, torch.float32)
        noises = []
        for state, end in zip(states, requests, strict=True):
            denoiser = gen.condition_denoiser(module, end, self.covariates, rows=slice(0, 1), guidance=1.0)
            noises.append(edm.invert_ddim(denoiser, state, sigmas.flip(0)))
        y = edm.spherical_line(noises[0].expand(len(line), -1), noises[1].expand(len(line), -1), line)
        start, end = (gen.request_embeddings(module, r, slice(0, 1))[1] for r in requests)
        cond = (1 - line) * start + line * end
        denoiser = edm.guided_denoiser(
            module.ema_denoiser,
            module.ema_denoiser.null(len(y)),
            [cond],
            weights=[1.0],
            prediction=module.prediction,
            prior=module.prior,
        )
        return edm.sample_ddim(denoiser, y, sigmas).cpu(), request


def _join(requests: list[Request]) -> Request:
    names = ("codes", "continuous", "continuous_known", "additive")
    return replace(requests[0], mixes={}, **{n: np.concatenate([getattr(r, n) for r in requests]) for n in names})


def _targets(target: Any, sizes: Any, categories: np.ndarray) -> dict[Any, int]:
    """Return the wanted number of cells of every category."""
    if isinstance(target, Mapping):
        for category in target:
            if category not in set(categories):
                raise SetupError(f"target names {category!r}. {nearest(category, categories)}")
        return {c: int(n) for c, n in target.items()}
    if isinstance(target, str):
        if target != "max":
            raise SetupError(f"target={target!r}; expected 'max', a number or a mapping.")
        target = int(sizes.max())
    if int(target) < 1:
        raise SetupError(f"target={target}; expected at least 1 cell a category.")
    return dict.fromkeys(categories, int(target))
