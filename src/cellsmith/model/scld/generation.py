"""From a request to states, from states to counts: everything that draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scvi import REGISTRY_KEYS
from scvi.utils import track
from torch import Tensor

from cellsmith._errors import SetupError, nearest
from cellsmith._rng import Streams
from cellsmith.math import counts, edm
from cellsmith.model.scld.module import SCLDModule
from cellsmith.model.scld.request import Covariates, Request, TrainingRows

__all__ = [
    "DenoiserFn",
    "condition_denoiser",
    "decode_counts",
    "decoder_covariates",
    "draw_states",
    "fill_unknown",
    "request_embeddings",
    "row_chunks",
    "start_noise",
    "totals_for",
]

DenoiserFn = Callable[[Tensor, Tensor], Tensor]
# Random numbers are drawn for this many cells at a time, whatever batch the network sees.
CHUNK = edm.NOISE_CHUNK
# A progress bar below this number of cells would be gone before it is read.
TRACK_ABOVE = 20_000


def row_chunks(n: int, batch_size: int, *, description: str = "Generating") -> Iterator[slice]:
    """Yield slices of whole logical chunks, about ``batch_size`` rows each, behind a progress bar when it is long."""
    step = max(CHUNK, batch_size // CHUNK * CHUNK)
    starts = range(0, n, step)
    for start in track(list(starts), description=description, style="tqdm", disable=n < TRACK_ABOVE):
        yield slice(start, min(n, start + step))


def start_noise(n: int, n_columns: int, *, streams: Streams, start: int = 0) -> Tensor:
    """Return standard normal noise (n, n_columns) for cells start, start + 1, ...; ``start`` is a multiple of 1,024."""
    first = start // CHUNK
    generators = [streams.torch("sample", first + k) for k in range(-(-n // CHUNK))]
    return edm.chunked_noise(n, n_columns, generators=generators)


def request_embeddings(module: SCLDModule, request: Request, rows: slice) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return the embeddings (n, h) of no condition, of all conditions together, and of each condition alone."""
    network, device = module.ema_denoiser, module.device
    codes = torch.as_tensor(request.codes[rows], dtype=torch.long, device=device)
    values = torch.as_tensor(request.continuous[rows], dtype=torch.float32, device=device)
    hidden = ~torch.as_tensor(request.continuous_known[rows], device=device)
    null = network.null(len(codes))
    n_cats = torch.tensor(module.n_cats, dtype=torch.long, device=device)
    values = module.standardise_continuous(values) if module.n_continuous else None

    def embed(codes: Tensor, hidden: Tensor) -> Tensor:
        if not request.mixes:
            return network.embed(codes, values, hidden)
        weights = []
        for k, n in enumerate(module.n_cats):
            one_hot = torch.nn.functional.one_hot(codes[:, k], n + 1).float()
            if k in request.mixes:
                mix = torch.as_tensor(request.mixes[k], dtype=torch.float32, device=device)
                # A covariate that this pass hides stays hidden: only rows that carry a code get the mixture.
                one_hot = torch.where((codes[:, k] < n)[:, None], mix, one_hot)
            weights.append(one_hot)
        return network.embed_weights(weights, values, hidden)

    singles = []
    for k in range(len(module.n_cats)):
        alone = n_cats.expand_as(codes).clone()
        alone[:, k] = codes[:, k]
        singles.append(embed(alone, torch.ones_like(hidden)))
    if module.n_continuous:
        singles.append(embed(n_cats.expand_as(codes), hidden))
    return null, embed(codes, hidden), singles


def condition_denoiser(
    module: SCLDModule,
    request: Request,
    covariates: Covariates,
    *,
    rows: slice,
    guidance: float | Mapping[str, float],
) -> edm.GuidedDenoiser:
    """E17: the guided denoiser of some rows of a request; joint and additive rows may mix.

    Raises
    ------
    SetupError
        If ``guidance`` names a covariate that is not registered.
    """
    null, joint, singles = request_embeddings(module, request, rows)
    additive = torch.as_tensor(request.additive[rows], device=null.device).float()
    names = [*covariates.names, *(["continuous"] if module.n_continuous else [])]
    if isinstance(guidance, Mapping):
        for name in guidance:
            if name not in names:
                raise SetupError(
                    f"guidance names {name!r}, which is not a registered covariate. {nearest(name, names)}"
                )
        each, all_together = [float(guidance.get(name, 1.0)) for name in names], 1.0
    else:
        each, all_together = [float(guidance)] * len(names), float(guidance)
    joint_rows = (1.0 - additive) * all_together
    if not bool(additive.any()):
        conds, weights = [joint], [joint_rows]
    else:
        conds, weights = [joint, *singles], [joint_rows, *(additive * w for w in each)]
    return edm.guided_denoiser(
        module.ema_denoiser, null, conds, weights=weights, prediction=module.prediction, prior=module.prior
    )


@torch.no_grad()
def draw_states(
    module: SCLDModule,
    request: Request,
    covariates: Covariates,
    *,
    guidance: float | Mapping[str, float],
    sampler: str,
    n_steps: int,
    streams: Streams,
    batch_size: int,
    steer: Callable[[DenoiserFn, slice], DenoiserFn] | None = None,
) -> tuple[Tensor, float]:
    """Sample the states w (n, d + 1) of a request.

    Parameters
    ----------
    module, request, covariates
        What to draw from, and what.
    guidance
        Weight of the conditions.
    sampler, n_steps
        Name in :data:`cellsmith.math.edm.SAMPLERS` and number of noise levels.
    streams
        "sample" gives the noise, chunk by chunk.
    batch_size
        Cells that the network sees at a time.
    steer
        Wraps the denoiser of some rows (post-guidance inside the sampler).

    Returns
    -------
    States on the CPU, and network rows per cell and evaluation.
    """
    if sampler not in edm.SAMPLERS:
        raise SetupError(f"sampler={sampler!r}. {nearest(sampler, edm.SAMPLERS)}")
    sigmas = edm.sigma_grid(n_steps, prior=module.prior).to(module.device, torch.float32)
    run, out, passes = edm.SAMPLERS[sampler], [], 0.0
    for rows in row_chunks(request.n, batch_size):
        n = rows.stop - rows.start
        noise = start_noise(n, module.n_state, streams=streams, start=rows.start).to(module.device)
        denoiser: DenoiserFn = condition_denoiser(module, request, covariates, rows=rows, guidance=guidance)
        passes += denoiser.n_passes * n
        if steer is not None:
            denoiser = steer(denoiser, rows)
        generators = [streams.torch("sample", rows.start // CHUNK + k, 1) for k in range(-(-n // CHUNK))]
        out.append(run(denoiser, sigmas[0] * noise, sigmas, generator=generators).cpu())
    return torch.cat(out), passes / request.n


def fill_unknown(
    request: Request,
    rows: TrainingRows,
    *,
    generator: np.random.Generator,
    positions: Sequence[int],
    n_cats: Sequence[int],
) -> np.ndarray:
    """Return codes (n, K) in which the unknown ones at ``positions`` come from random training cells.

    The decoder must be told a batch even where the diffusion was not.
    """
    codes = request.codes.copy()
    for k in positions:
        unknown = np.flatnonzero(codes[:, k] >= n_cats[k])
        if len(unknown):
            pool = rows.codes[:, k][rows.codes[:, k] < n_cats[k]]
            codes[unknown, k] = generator.choice(pool, len(unknown))
    return codes


def totals_for(
    request: Request,
    rows: TrainingRows,
    *,
    library_size: Any,
    library_model: str,
    log_library: np.ndarray | None,
    n_cats: Sequence[int],
    batch: int | None,
    batch_codes: np.ndarray | None,
    generator: np.random.Generator,
) -> tuple[np.ndarray, str]:
    """E10, E11: the total of every cell to generate, and where it came from.

    Parameters
    ----------
    request, rows
        Cells to generate, cells of training.
    library_size
        None (the model's), a number, an array (n,) or "match" (bootstrap within condition), counts.
    library_model
        "joint", "lognormal" or "empirical".
    log_library
        What the diffusion drew, (n,), for "joint".
    n_cats
        Categories of every covariate.
    batch, batch_codes
        Position of the batch among the covariates and its code for every cell, for the ratio of totals to size factors.
    generator
        Source of randomness.

    Returns
    -------
    Integer totals >= 1 (n,), and the name of their source.

    Raises
    ------
    SetupError
        For totals that are not positive finite numbers, or not one a cell.
    """
    if library_size is not None and not isinstance(library_size, str):
        totals = np.broadcast_to(np.asarray(library_size, dtype=float), np.shape(library_size) or (request.n,))
        if totals.shape != (request.n,):
            raise SetupError(f"library_size has the shape {totals.shape}; expected a number or {request.n} of them.")
        wrong = ~np.isfinite(totals) | (totals <= 0)
        if wrong.any():
            i = int(np.flatnonzero(wrong)[0])
            raise SetupError(f"library_size of cell {i} is {totals[i]}; expected a positive finite number of counts.")
        return np.maximum(1, np.rint(totals)).astype(np.int64), "given"
    if isinstance(library_size, str) and library_size != "match":
        raise SetupError(f"library_size={library_size!r}; expected None, 'match', a number or an array.")
    if library_size == "match" or library_model == "empirical":
        total = counts.empirical_library(
            np.exp(rows.log_total), rows.codes, known_codes(request, n_cats), generator=generator
        )
        return np.maximum(1, np.rint(total)).astype(np.int64), library_size or library_model
    if library_model == "lognormal":
        library = np.exp(rows.log_library)
        library = counts.lognormal_library(library, rows.codes, known_codes(request, n_cats), generator=generator)
        log_library = np.log(library)
    # With size factors the diffusion models those; totals differ from them by a factor of their batch.
    ratio = np.exp(rows.log_total - rows.log_library)
    if batch is None:
        factor = np.full(request.n, ratio.mean())
    else:
        member = rows.codes[:, batch]
        mean = np.bincount(member, ratio, minlength=member.max() + 1) / np.maximum(np.bincount(member), 1)
        factor = mean[batch_codes]
    # A state far outside the training cells must not turn into a cell of a billion counts.
    low, high = rows.log_library.min() - 1.0, rows.log_library.max() + 1.0
    total = np.exp(np.clip(log_library, low, high)) * factor
    return np.maximum(1, np.rint(total)).astype(np.int64), library_model


def lend_continuous(request: Request, rows: TrainingRows, *, generator: np.random.Generator) -> np.ndarray:
    """Return continuous covariates (n, C) in which the hidden ones come from random training cells."""
    hidden = np.flatnonzero(~request.continuous_known)
    continuous = np.array(request.continuous, dtype=float)
    if continuous.shape[1] and len(hidden):
        continuous[hidden] = rows.continuous[generator.integers(len(rows.continuous), size=len(hidden))]
    return continuous


def known_codes(request: Request, n_cats: Sequence[int]) -> np.ndarray:
    """Return the codes (n, K) of a request, unknown ones as -1."""
    return np.where(request.codes >= np.asarray(n_cats, dtype=np.int64), -1, request.codes)


@torch.no_grad()
def decode_counts(
    module: SCLDModule,
    z: Tensor,
    covariates: Mapping[str, Tensor],
    *,
    totals: np.ndarray,
    output: str,
    decode: str,
    streams: Streams,
) -> sparse.csr_matrix | np.ndarray:
    """E21: counts, means or shares of latents, 1,024 cells at a time.

    Parameters
    ----------
    module
        Its decoder.
    z
        Latents (n, d) in the autoencoder's own units.
    covariates
        Tensors (n, ...) for the decoder, by registry key.
    totals
        Totals (n,), counts.
    output
        "counts" (CSR int32), "mean" (l rho) or "normalized" (rho), float32.
    decode
        "exact_total" or "nb".
    streams
        "sample" gives the draws.

    Raises
    ------
    SetupError
        For an unknown ``output`` or ``decode``.
    """
    for what, value, valid in (
        ("output", output, ("counts", "mean", "normalized")),
        ("decode", decode, ("exact_total", "nb")),
    ):
        if value not in valid:
            raise SetupError(f"{what}={value!r}. {nearest(value, valid)}")
    parts: list[Any] = []
    draw = counts.exact_total if decode == "exact_total" else counts.nb_counts
    for rows in row_chunks(len(z), CHUNK, description="Decoding"):
        given = {k: v[rows].to(module.device) for k, v in covariates.items()}
        decoded = module.decode(z[rows].to(module.device), given)
        rho, library = decoded.rho.cpu().double().numpy(), totals[rows]
        if output != "counts":
            scale = library[:, None] if output == "mean" else 1.0
            parts.append((rho * scale).astype(np.float32))
            continue
        theta = decoded.theta.cpu().double().numpy()
        zeros = None if decoded.dropout_logits is None else decoded.dropout_logits.cpu().double().numpy()
        generator = streams.numpy("sample", rows.start // CHUNK, 2)
        parts.append(draw(rho, theta, library, dropout_logits=zeros, generator=generator))
    return sparse.vstack(parts, format="csr") if output == "counts" else np.concatenate(parts)


def decoder_covariates(
    module: SCLDModule, codes: np.ndarray, *, continuous: np.ndarray, covariates: Covariates
) -> dict[str, Tensor]:
    """Return codes (n, K) and continuous covariates (n, C) as the tensors that the decoder reads."""
    n = len(codes)
    table = torch.as_tensor(codes, dtype=torch.long)
    zero = torch.zeros(n, 1, dtype=torch.long)
    out = {
        REGISTRY_KEYS.BATCH_KEY: zero if covariates.batch is None else table[:, [covariates.batch]],
        REGISTRY_KEYS.LABELS_KEY: zero if covariates.labels is None else table[:, [covariates.labels]],
    }
    rest = [k for k in range(len(covariates.names)) if k not in (covariates.batch, covariates.labels)]
    if rest:
        out[REGISTRY_KEYS.CAT_COVS_KEY] = table[:, rest]
    if module.n_continuous:
        out[REGISTRY_KEYS.CONT_COVS_KEY] = torch.as_tensor(continuous, dtype=torch.float32)
    return out
