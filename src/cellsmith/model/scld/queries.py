"""What a trained SCLD answers: new cells, translated cells, densities."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from torch import Tensor

from cellsmith._errors import DataWarning, SetupError, nearest
from cellsmith._rng import Streams, resolve_seed
from cellsmith.math import edm
from cellsmith.model.scld import generation as gen
from cellsmith.model.scld.assemble import assemble_cells, check_condition_table
from cellsmith.model.scld.post_guidance import apply_post_guidance
from cellsmith.model.scld.request import (
    Request,
    request_composition,
    request_rows,
    resolve_modes,
    shown,
)

__all__ = ["GenerationMixin"]

# A requested total this far above the training cells' is outside what the model has seen.
LARGE_LIBRARY = 10.0


class GenerationMixin:
    """Queries of :class:`cellsmith.model.SCLD` that draw or score cells."""

    def generate(
        self,
        n_cells: int | None = None,
        *,
        condition: Mapping[str, Any] | None = None,
        conditions: pd.DataFrame | None = None,
        like: AnnData | None = None,
        guidance: float | Mapping[str, float] = 1.0,
        guidance_mode: str = "auto",
        sampler: str = "dpmpp_2m",
        n_steps: int | None = None,
        library_size: Any = None,
        decode: str = "exact_total",
        output: str = "counts",
        post_guidance: str | None = None,
        post_guidance_kwargs: Mapping[str, Any] = {},
        on_small: str = "raise",
        min_cells: int = 10,
        seed: Any = 0,
        batch_size: int = 4096,
    ) -> AnnData:
        """Generate cells.

        Parameters
        ----------
        n_cells
            How many; None is the number of training cells. Alone: the training composition of all covariates, exact.
        condition
            Column -> category (or {category: weight}): fixes these, the others follow their training distribution given
            them. ``{}`` hides everything (holistic): covariate columns are then missing.
        conditions
            One row a cell, one column a registered covariate; honoured exactly.
        like
            Copy the covariates of this object, cell by cell.
        guidance
            Weight of the conditions: 1 plain, 0 none, above 1 sharper and less diverse; by covariate as a mapping.
        guidance_mode
            "joint", "additive", or "auto": joint where the combination has ``min_cells`` training cells.
        sampler
            "dpmpp_2m", "ddim", "heun" or "ancestral".
        n_steps
            Noise levels; None is the sampler's default (20, 50, 10, 200).
        library_size
            Totals: None is the model's, else a number, an array (n,) or "match" (bootstrap within condition), counts.
        decode
            "exact_total" (totals are met exactly) or "nb".
        output
            "counts" (CSR int32), "mean" (total x share) or "normalized" (share), float32.
        post_guidance
            None, "density_ratio", "classifier", "cycle" or "reject".
        post_guidance_kwargs
            Its options.
        on_small
            What to do for a category with fewer than ``min_cells`` training cells: "raise" or "neighbors".
        min_cells
            Training cells that a condition needs.
        seed
            Seed of the draw.
        batch_size
            Cells that the network sees at a time; changes no noise.

        Returns
        -------
        AnnData of new cells with the genes of training, every registered covariate, ``.obs["is_synthetic"]``,
        ``.obs["scld_library"]``, ``.obsm["X_scld"]`` and ``.uns["scld"]``.

        Raises
        ------
        NotTrainedError
            Before :meth:`train`.
        SetupError
            For a request that cannot be met, with the nearest valid one.
        """
        self._require_trained("generate")
        seed = resolve_seed(seed)
        streams = Streams(seed)
        table = conditions is not None or like is not None
        asked = self.covariates.names if table else tuple(condition or ())
        request = self._request(n_cells, condition, conditions, like, streams)
        rows = self._rows()
        request = resolve_modes(
            request,
            self.covariates,
            rows,
            guidance_mode=guidance_mode,
            guidance=guidance,
            on_small=on_small,
            min_cells=min_cells,
            asked=asked,
        )
        for note in request.notes:
            warnings.warn(note, DataWarning, stacklevel=2)
        n_steps = _steps(sampler, n_steps)
        draw = _Draw(guidance=guidance, sampler=sampler, n_steps=n_steps, batch_size=batch_size)
        w, info = self._states(request, draw, streams, post_guidance, post_guidance_kwargs)
        cells = self._decode_states(w, request, streams, library_size=library_size, decode=decode, output=output)
        params = {
            "guidance": dict(guidance) if isinstance(guidance, Mapping) else float(guidance),
            "guidance_mode": guidance_mode,
            "n_additive": int(request.additive.sum()),
            "sampler": sampler,
            "n_steps": n_steps,
            "n_evaluations": edm.SAMPLERS[sampler].n_evaluations(n_steps),
            "passes_per_evaluation": info.pop("passes"),
            "decode": decode,
            "output": output,
            "library": cells["library_source"],
            "seed": seed,
            "condition": {str(k): str(v) for k, v in (condition or {}).items()},
        }
        return assemble_cells(self, request, cells, params=params, post_guidance=info, min_cells=min_cells)

    def _request(
        self,
        n_cells: int | None,
        condition: Mapping[str, Any] | None,
        conditions: pd.DataFrame | None,
        like: AnnData | None,
        streams: Streams,
    ) -> Request:
        given = [n for n, v in (("condition", condition), ("conditions", conditions), ("like", like)) if v is not None]
        if len(given) > 1:
            raise SetupError(f"Found {' and '.join(given)}; expected one of them: each says who is to be generated.")
        if conditions is not None or like is not None:
            table = check_condition_table(self.covariates, conditions, like)
            if n_cells is not None and n_cells != len(table):
                raise SetupError(f"n_cells={n_cells}, but {given[0]} has {len(table)} rows. Leave n_cells out.")
            return request_rows(self.covariates, table)
        rows = self._rows()
        n = len(rows.log_library) if n_cells is None else n_cells
        return request_composition(
            self.covariates, rows, n_cells=n, condition=condition, generator=streams.numpy("sample", -1)
        )

    def _states(
        self,
        request: Request,
        draw: _Draw,
        streams: Streams,
        post_guidance: str | None,
        post_kwargs: Mapping[str, Any],
    ) -> tuple[Tensor, dict[str, Any]]:
        """Sample states, with post-guidance and the fallback of small conditions."""

        def sample(wanted: Request, *, streams: Streams = streams, steer: Any = None) -> Tensor:
            w, passes = gen.draw_states(
                self.module,
                wanted,
                self.covariates,
                guidance=draw.guidance,
                sampler=draw.sampler,
                n_steps=draw.n_steps,
                streams=streams,
                batch_size=draw.batch_size,
                steer=steer,
            )
            info["passes"] = passes
            return w

        info: dict[str, Any] = {"passes": 1.0, "kind": "none"}
        self.module.eval()
        if post_guidance is None:
            if post_kwargs:
                raise SetupError("post_guidance_kwargs needs post_guidance, which is None.")
            w = sample(request)
        else:
            w, more = apply_post_guidance(
                post_guidance, self, request=request, sample=sample, streams=streams, options=post_kwargs
            )
            info.update(more)
        if request.fallback is not None and request.fallback.any():
            w[torch.from_numpy(request.fallback)] = self._perturbed_neighbors(request, streams)
        return w, info

    def _perturbed_neighbors(self, request: Request, streams: Streams) -> Tensor:
        """States near the few training cells of a condition: a cell's posterior draw plus a little noise."""
        table = self.training_states()
        generator = streams.numpy("sample", -2)
        picked = []
        known = table["codes"].numpy()
        for codes, k in zip(request.codes[request.fallback], request.small[request.fallback], strict=True):
            # The small category itself is what was asked for; the other covariates may only be close.
            pool = np.flatnonzero(known[:, k] == codes[k])
            if not len(pool):
                name, category = self.covariates.names[k], shown(self.covariates.categories[k][codes[k]])
                raise SetupError(f"{name}={category} has no training cell to perturb. Ask for another category.")
            distance = (known[pool] != codes).sum(axis=1)
            picked.append(generator.choice(pool[distance == distance.min()]))
        noise = torch.from_numpy(generator.standard_normal((len(picked), table["w"].shape[1]))).float()
        return table["w"][picked] + 0.1 * noise

    def _decode_states(
        self,
        w: Tensor,
        request: Request,
        streams: Streams,
        *,
        library_size: Any,
        decode: str,
        output: str,
    ) -> dict[str, Any]:
        """Turn states into counts at their totals."""
        module, covariates, rows = self.module, self.covariates, self._rows()
        z, log_library = module.from_state(w.to(module.device))
        needed = range(len(covariates.names)) if self._source is not None else [covariates.batch]
        codes = gen.fill_unknown(
            request,
            rows,
            generator=streams.numpy("sample", -4),
            positions=[k for k in needed if k is not None and k != covariates.labels],
            n_cats=covariates.n_cats,
        )
        batch = covariates.batch
        totals, source = gen.totals_for(
            request,
            rows,
            library_size=library_size,
            library_model=module.library_model,
            log_library=None if log_library is None else log_library.cpu().double().numpy(),
            n_cats=covariates.n_cats,
            batch=batch,
            batch_codes=None if batch is None else codes[:, batch],
            generator=streams.numpy("sample", -5),
        )
        if source == "given" and totals.max() > LARGE_LIBRARY * np.exp(rows.log_total.max()):
            warnings.warn(
                f"library_size reaches {totals.max()}, more than {LARGE_LIBRARY:g} times the largest total of training "
                f"({np.exp(rows.log_total.max()):.0f}).",
                DataWarning,
                stacklevel=4,
            )
        continuous = gen.lend_continuous(request, rows, generator=streams.numpy("sample", -6))
        tensors = gen.decoder_covariates(module, codes, continuous=continuous, covariates=covariates)
        x = gen.decode_counts(module, z.cpu(), tensors, totals=totals, output=output, decode=decode, streams=streams)
        return {"x": x, "z": z.cpu().numpy(), "totals": totals, "library_source": source, "codes": codes}

    def decode(
        self,
        z: Any,
        *,
        library_size: Any,
        batch: Any = None,
        output: str = "counts",
        decode: str = "exact_total",
        seed: Any = 0,
    ) -> sparse.csr_matrix | np.ndarray:
        """Decode latents in the autoencoder's own units.

        Parameters
        ----------
        z
            Latents (n, n_latent).
        library_size
            Totals, a number or (n,), counts.
        batch
            Category of the batch, one or (n,); needed when a batch was registered.
        output
            "counts", "mean" or "normalized".
        decode
            "exact_total" or "nb".
        seed
            Seed of the draw.

        Returns
        -------
        CSR int32 (n, G), or float32 array (n, G).

        Raises
        ------
        SetupError
            For latents of another width, an unknown batch, or totals that are not positive.
        """
        self._require_trained("decode")
        z = torch.as_tensor(np.asarray(z, dtype=np.float32))
        if z.dim() != 2 or z.shape[1] != self.module.n_latent:
            raise SetupError(f"z has the shape {tuple(z.shape)}; expected (n, {self.module.n_latent}).")
        covariates, n = self.covariates, len(z)
        codes = np.tile(np.array(covariates.n_cats, dtype=np.int64), (n, 1))
        if covariates.batch is not None:
            name = covariates.names[covariates.batch]
            if batch is None:
                raise SetupError(
                    f"decode needs batch=, a category of {name!r}: {list(covariates.categories[covariates.batch])}."
                )
            values = np.broadcast_to(np.asarray(batch, dtype=object), (n,))
            codes[:, covariates.batch] = [covariates.code(name, v) for v in values]
        elif batch is not None:
            raise SetupError(f"batch={batch!r}, but no batch_key was registered. Leave it out.")
        request = Request(codes, np.zeros((n, len(covariates.continuous))), np.zeros(n, dtype=bool))
        streams, rows = Streams(resolve_seed(seed)), self._rows()
        codes = gen.fill_unknown(
            request,
            rows,
            generator=streams.numpy("sample", -4),
            n_cats=covariates.n_cats,
            positions=[] if self._source is None else [k for k in range(len(codes[0])) if k != covariates.labels],
        )
        totals, _ = gen.totals_for(
            request,
            rows,
            library_size=library_size,
            library_model="",
            log_library=None,
            n_cats=covariates.n_cats,
            batch=None,
            batch_codes=None,
            generator=streams.numpy("sample", -5),
        )
        continuous = gen.lend_continuous(request, rows, generator=streams.numpy("sample", -6))
        tensors = gen.decoder_covariates(self.module, codes, continuous=continuous, covariates=covariates)
        return gen.decode_counts(self.module, z, tensors, totals=totals, output=output, decode=decode, streams=streams)


class _Draw:
    """How states are sampled."""

    def __init__(self, *, guidance: Any, sampler: str, n_steps: int, batch_size: int) -> None:
        self.guidance, self.sampler = guidance, sampler
        self.n_steps, self.batch_size = n_steps, batch_size


def _steps(sampler: str, n_steps: int | None) -> int:
    if sampler not in edm.SAMPLERS:
        raise SetupError(f"sampler={sampler!r}. {nearest(sampler, edm.SAMPLERS)}")
    return edm.SAMPLERS[sampler].default_steps if n_steps is None else int(n_steps)
