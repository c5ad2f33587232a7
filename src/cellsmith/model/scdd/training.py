"""What the stages of SCDD do besides stepping an optimiser: starts, the refit, cached posteriors, the readout."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import sparse
from scvi import REGISTRY_KEYS
from torch import Tensor

from cellsmith._errors import DataWarning, SetupError
from cellsmith._rng import Streams, isolated
from cellsmith.data.splits import CellReader, scipy_counts
from cellsmith.math import counts
from cellsmith.math.matching import log_normalize
from cellsmith.model._calibration import Sample, calibrate
from cellsmith.model.scdd import equations as eq

__all__ = ["CodedCells", "TrainingMixin", "fit_readout"]

# The refit is an average over cells: more of them than this change nothing that matters.
MAX_REFIT_CELLS = 20_000
# Moments are where the dispersions start, before they are learnt and refitted; all their cells are held at once.
MAX_MOMENT_CELLS = 4_000
# A linear classifier of the log view is settled by then, and its table of cells is dense.
MAX_READOUT_CELLS = 4_000
READOUT_STEPS = 200
# Below this mean response of the generator, codes of one class give nearly the same profile.
LEAST_RESPONSE = 0.2


class CodedCells:
    """Cells as a reader gives them, each with its cached posterior: the encoder is read once, not at every step.

    Parameters
    ----------
    reader
        Maps indices to a batch of tensors.
    mean, sd
        Posterior of all cells (n, d).
    """

    def __init__(self, reader: CellReader, mean: Tensor, sd: Tensor) -> None:
        self._reader, self._mean, self._sd = reader, mean, sd

    def __len__(self) -> int:
        return len(self._mean)

    def __getitem__(self, indices: np.ndarray) -> dict[str, Tensor]:
        rows = torch.from_numpy(np.asarray(indices))
        return {**self._reader[indices], "mean": self._mean[rows], "sd": self._sd[rows]}


class TrainingMixin:
    """Methods that the stages of :class:`cellsmith.model.SCDD` name."""

    def _training_sample(self, limit: int, streams: Streams) -> Sample:
        cells = self._split[0]
        if len(cells) > limit:
            cells = np.sort(streams.numpy("refit").choice(cells, limit, replace=False))
        return Sample(self._reader, cells)

    @torch.no_grad()
    def _start_autoencoder(self, streams: Streams) -> None:
        """Start the dispersion at its moments and the decoder at the mean profile, eq. (3)."""
        self._require_reader()
        module, parts, factors = self.module, [], []
        for tensors in self._training_sample(MAX_MOMENT_CELLS, streams).batches():
            parts.append(scipy_counts(tensors[REGISTRY_KEYS.X_KEY]))
            if REGISTRY_KEYS.SIZE_FACTOR_KEY in tensors:
                factors.append(tensors[REGISTRY_KEYS.SIZE_FACTOR_KEY].reshape(-1))
        x = sparse.vstack(parts, format="csr")
        totals = counts.library_totals(x)
        if factors:
            factor = torch.cat(factors).double().numpy()
            module.size_factor_scale.fill_(float(np.median(totals) / np.median(factor)))
            totals = factor * float(module.size_factor_scale)
        module.autoencoder.decoder_head.init_bias(torch.from_numpy(np.asarray(x.mean(axis=0)).ravel()))
        theta = torch.from_numpy(np.asarray(counts.dispersion_moments(x, totals))).float()
        module.autoencoder.log_theta.copy_(theta.log().expand_as(module.autoencoder.log_theta))

    def _require_reader(self) -> None:
        if self._datamodule is not None:
            raise SetupError(
                "SCDD reads its cells again and again, which a data module does not offer. Register an AnnData: "
                "SCDD.setup_anndata(adata, labels_key=...)."
            )

    @torch.no_grad()
    def _calibrate(self, streams: Streams) -> None:
        """Eq. (3): refit the dispersion with the decoder frozen; kept unless held-out cells become less likely."""
        self._require_reader()
        fit = self._training_sample(MAX_REFIT_CELLS, streams)
        held_out = Sample(self._reader, self._split[1]) if len(self._split[1]) else fit
        self.module.eval()
        self.refit_ = dict(calibrate(self.module, fit=fit, held_out=held_out, seed=streams.integer("refit")))

    @torch.no_grad()
    def _start_generator(self, streams: Streams) -> CodedCells:
        """Eq. (4): posterior of every cell and the scale of all; fit C of eq. (8) on the training cells."""
        self._require_reader()
        self._remember_composition()
        module = self.module.eval()
        mean, sd = self._encode(self._reader, np.arange(len(self._reader)))
        train = torch.from_numpy(self._split[0])
        centre, scale, collapsed = eq.latent_statistics(mean[train], sd[train])
        module.latent_centre.copy_(centre)
        module.latent_scale.copy_(scale)
        module.memory.zero_()
        if bool(collapsed.any()):
            self._note(
                f"{int(collapsed.sum())} of {module.n_latent} latent dimensions carry nothing (spread below 1e-3). "
                "Lower kl_weight or n_latent.",
                DataWarning,
            )
        rows = self._split[0]
        if len(rows) > MAX_READOUT_CELLS:
            rows = np.sort(streams.numpy("pool", -1).choice(rows, MAX_READOUT_CELLS, replace=False))
        tensors = self._reader[rows]
        labels = tensors[REGISTRY_KEYS.LABELS_KEY].reshape(-1).numpy()
        known = labels < module.n_labels
        phi = log_normalize(scipy_counts(tensors[REGISTRY_KEYS.X_KEY])[known], scale=module.scale)
        weight, bias = fit_readout(phi, labels[known], n_classes=module.n_labels)
        module.readout.weight.copy_(weight)
        module.readout.bias.copy_(bias)
        return CodedCells(self._reader, mean, sd)

    @torch.no_grad()
    def _encode(self, reader: Any, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return posterior mean and standard deviation (n, d) of cells of a reader, on the CPU."""
        module, means, sds = self.module.eval(), [], []
        # The modules of scvi-tools draw at every encoding; the draw is not used and must not move the global generator.
        with isolated(0):
            for batch in Sample(reader, rows).batches():
                mean, sd = module.posterior({k: v.to(module.device) for k, v in batch.items()})
                means.append(mean.cpu())
                sds.append(sd.cpu())
        return torch.cat(means), torch.cat(sds)

    def _respond(self, streams: Streams) -> None:
        """Measure how the generator answers its codes, eq. (10), and warn where it hardly does."""
        self.response_ = self._measure_response(self._reader, sigma_star=self.module.sigma_star)
        self._warn_of_weak_response(self.response_)

    def _warn_of_weak_response(self, response: dict[str, Any]) -> None:
        mean = float(np.nanmean(response["jacobian"]))
        if mean < LEAST_RESPONSE:
            self._note(
                f"At sigma_star={response['sigma_star']:g} the generator answers its codes with a mean Jacobian norm "
                f"of {mean:.2f} (below {LEAST_RESPONSE}): codes of one class give nearly the same profile. Lower "
                "sigma_star, for example sigma_star=1.",
                DataWarning,
            )


def fit_readout(phi: Any, labels: np.ndarray, *, n_classes: int) -> tuple[Tensor, Tensor]:
    """Fit the linear classifier C of eq. (8) and (19) to log views.

    Parameters
    ----------
    phi
        Log views (n, G), sparse or dense.
    labels
        Classes (n,).
    n_classes
        K.

    Returns
    -------
    Weight (K, G) and bias (K,), float32; a class without cells has the bias -30.
    """
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=1.0, max_iter=READOUT_STEPS).fit(phi, labels)
    weight, bias = torch.zeros(n_classes, phi.shape[1]), torch.full((n_classes,), -30.0)
    present = torch.from_numpy(fitted.classes_.astype(np.int64))
    coefficients = torch.from_numpy(fitted.coef_).float()
    intercepts = torch.from_numpy(fitted.intercept_).float()
    if len(present) == 2:
        # Two classes share one direction: half of it each way gives the same probabilities.
        coefficients = torch.cat([-0.5 * coefficients, 0.5 * coefficients])
        intercepts = torch.cat([-0.5 * intercepts, 0.5 * intercepts])
    weight[present], bias[present] = coefficients, intercepts
    return weight, bias
