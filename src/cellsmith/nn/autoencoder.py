"""The count autoencoder of SCLD and SCDD, and the same interface over a trained scvi-tools module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from scvi import REGISTRY_KEYS
from torch import Tensor, nn

from cellsmith.nn.heads import GaussianHead, RateHead
from cellsmith.nn.mlp import MLP, Dropout

__all__ = ["REP_KEY", "CountAutoencoder", "Decoded", "ForeignAutoencoder", "dense", "row_totals"]

# Key under which a batch holds the representation that replaces the encoder.
REP_KEY = "rep"

# Standard deviation given to an external representation, in units of its own spread: a point has no density.
REP_JITTER = 0.01


class Decoded(NamedTuple):
    """Parameters of the counts of n cells: logits of the shares (n, G), theta (G,) or (n, G), dropout logits (n, G).

    ``scale`` (n,) is the expected total at a library of 1, where the decoder gives rates; None where it gives shares.
    """

    logits: Tensor
    theta: Tensor
    dropout_logits: Tensor | None
    scale: Tensor | None = None

    @property
    def rho(self) -> Tensor:
        """Shares (n, G), rows sum to 1."""
        return self.logits.softmax(dim=-1)

    def total(self, library: Tensor) -> Tensor:
        """Return the expected totals (n,) at libraries (n,)."""
        return library if self.scale is None else library * self.scale

    def mean(self, library: Tensor) -> Tensor:
        """Return the expected counts (n, G) at libraries (n,)."""
        return self.total(library)[:, None] * self.rho


def dense(x: Tensor) -> Tensor:
    """Return a batch of counts (n, G) without sparsity."""
    return x if x.layout is torch.strided else x.to_dense()


def row_totals(x: Tensor) -> Tensor:
    """Return the totals (n,) of dense or CSR counts (n, G)."""
    if x.layout is torch.strided:
        return x.sum(dim=1)
    return torch.segment_reduce(x.values(), "sum", offsets=x.crow_indices())


class CountAutoencoder(nn.Module):
    """Encoder of log counts, decoder to shares of the total, inverse dispersions of every gene (E1, E2).

    Parameters
    ----------
    n_input
        Number of genes.
    n_batch, n_labels
        Categories of batch and label.
    n_latent, n_hidden, n_layers, dropout_rate
        Size and regularisation.
    gene_likelihood
        "nb" or "zinb".
    dispersion
        "gene", "gene-batch" or "gene-label".
    log_variational
        Encode log(1 + x) rather than x.
    use_rep
        The representation of every cell is given: no encoder.
    """

    def __init__(
        self,
        n_input: int,
        *,
        n_batch: int,
        n_labels: int,
        n_latent: int,
        n_hidden: int,
        n_layers: int,
        dropout_rate: float,
        gene_likelihood: str,
        dispersion: str,
        log_variational: bool,
        use_rep: bool,
    ) -> None:
        super().__init__()
        self.n_input, self.n_latent = n_input, n_latent
        # One batch carries no information: no columns for it.
        self.n_batch_columns = n_batch if n_batch > 1 else 0
        self.dispersion, self.log_variational, self.use_rep = dispersion, log_variational, use_rep
        self.gives_rates = False
        if use_rep:
            self.register_buffer("rep_centre", torch.zeros(n_latent))
            self.register_buffer("rep_scale", torch.ones(n_latent))
        else:
            self.input_dropout = Dropout(dropout_rate)
            self.encoder = MLP(n_input + self.n_batch_columns, None, n_hidden=n_hidden, n_layers=n_layers)
            self.encoder_head = GaussianHead(n_hidden, n_latent)
        self.decoder = MLP(
            n_latent + self.n_batch_columns, None, n_hidden=n_hidden, n_layers=n_layers, dropout_rate=dropout_rate
        )
        self.decoder_head = RateHead(n_hidden, n_input, zero_inflated=gene_likelihood == "zinb")
        n_groups = {"gene": 1, "gene-batch": n_batch, "gene-label": n_labels}[dispersion]
        self.log_theta = nn.Parameter(torch.zeros(n_groups, n_input))

    def encode(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the posterior of cells.

        Parameters
        ----------
        tensors
            Counts (n, G), dense or CSR, and batch (n, 1), by registry key; or the representation (n, d).

        Returns
        -------
        Mean and log variance (n, d).
        """
        if self.use_rep:
            mean = (tensors[REP_KEY].float() - self.rep_centre) / self.rep_scale
            return mean, torch.full_like(mean, 2.0).mul_(torch.tensor(REP_JITTER).log().to(mean))
        batch = tensors[REGISTRY_KEYS.BATCH_KEY]
        return self.encoder_head(self.encoder(self._encoder_input(tensors[REGISTRY_KEYS.X_KEY], batch)))

    def _encoder_input(self, x: Tensor, batch: Tensor) -> Tensor:
        if x.layout is torch.strided:
            values = self.input_dropout(torch.log1p(x) if self.log_variational else x)
            return self._append_batch(values, batch)
        # log(1 + 0) = 0, and dropping a zero changes nothing: both need the nonzeros only.
        values = x.values()
        values = self.input_dropout(torch.log1p(values) if self.log_variational else values)
        n, crow = x.shape[0], x.crow_indices()
        rows = torch.repeat_interleave(torch.arange(n, device=x.device), crow.diff(), output_size=len(values))
        width = self.n_input + self.n_batch_columns
        out = values.new_zeros(n * width)
        out[rows * width + x.col_indices()] = values
        out = out.view(n, width)
        if self.n_batch_columns:
            out[torch.arange(n, device=x.device), self.n_input + batch.reshape(-1)] = 1.0
        return out

    def _append_batch(self, values: Tensor, batch: Tensor) -> Tensor:
        if not self.n_batch_columns:
            return values
        return torch.cat([values, nn.functional.one_hot(batch.reshape(-1), self.n_batch_columns).to(values)], dim=-1)

    def decode(self, z: Tensor, covariates: Mapping[str, Tensor]) -> Decoded:
        """Return the parameters of counts.

        Parameters
        ----------
        z
            Latents (n, d).
        covariates
            Batch and label (n,) or (n, 1), by registry key.
        """
        batch, labels = covariates[REGISTRY_KEYS.BATCH_KEY], covariates[REGISTRY_KEYS.LABELS_KEY]
        logits, dropout_logits = self.decoder_head(self.decoder(self._append_batch(z, batch)))
        return Decoded(logits, self.theta(batch, labels), dropout_logits)

    def theta(self, batch: Tensor, labels: Tensor) -> Tensor:
        """Return the inverse dispersion: (G,), or (n, G) where it depends on batch or label.

        Parameters
        ----------
        batch, labels
            Codes (n,) or (n, 1); the label one past the last is "unknown".
        """
        if self.dispersion == "gene":
            return self.log_theta[0].exp()
        if self.dispersion == "gene-batch":
            return self.log_theta[batch.reshape(-1)].exp()
        # An unlabelled cell gets the geometric mean over the labels.
        table = torch.cat([self.log_theta, self.log_theta.mean(dim=0, keepdim=True)])
        return table[labels.reshape(-1)].exp()


class ForeignAutoencoder(nn.Module):
    """A trained module of scvi-tools behind the interface of :class:`CountAutoencoder`; its weights stay frozen.

    Parameters
    ----------
    source
        Module of SCVI or SCANVI, already a copy.
    """

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.source = source.eval().requires_grad_(False)
        self.n_latent, self.n_input = int(source.n_latent), int(source.n_input)
        self.dispersion = source.dispersion
        self.use_rep = False
        # With size factors scVI's decoder gives rates, softplus and not softmax: their sum is part of the total.
        self.gives_rates = bool(source.use_size_factor_key)

    def train(self, mode: bool = True) -> ForeignAutoencoder:
        """Stay in evaluation mode: batch statistics and dropout of a trained model are not ours to move."""
        return super().train(False)

    def encode(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the posterior of the source, or the one that a minified object has kept.

        Parameters
        ----------
        tensors
            What the source reads, by registry key.

        Returns
        -------
        Mean and log variance (n, d).
        """
        if (mean := tensors.get(REGISTRY_KEYS.LATENT_QZM_KEY)) is not None:
            return mean.float(), tensors[REGISTRY_KEYS.LATENT_QZV_KEY].float().log()
        given = {**tensors, REGISTRY_KEYS.X_KEY: dense(tensors[REGISTRY_KEYS.X_KEY])}
        with torch.no_grad():
            qz = self.source.inference(**self.source._get_inference_input(given))["qz"]
        return qz.loc, 2.0 * qz.scale.log()

    def log_library(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the log library (n,) that the source itself would use: observed, or encoded.

        Parameters
        ----------
        tensors
            What the source reads, by registry key.
        """
        if (total := tensors.get(REGISTRY_KEYS.OBSERVED_LIB_SIZE)) is not None:
            return total.reshape(-1).float().log()
        given = {**tensors, REGISTRY_KEYS.X_KEY: dense(tensors[REGISTRY_KEYS.X_KEY])}
        with torch.no_grad():
            out = self.source.inference(**self.source._get_inference_input(given))
        ql = out.get("ql")
        return (out["library"] if ql is None else ql.loc).reshape(-1)

    def decode(self, z: Tensor, covariates: Mapping[str, Tensor]) -> Decoded:
        """Return the parameters of the counts; the source multiplies its shares, or rates, by a library of 1.

        Parameters
        ----------
        z
            Latents (n, d).
        covariates
            Batch, label and further covariates, by registry key.
        """
        n = z.shape[0]
        one = torch.zeros(n, 1, device=z.device)
        labels = covariates[REGISTRY_KEYS.LABELS_KEY].reshape(n, 1)
        out = self.source.generative(
            z=z,
            library=one,
            size_factor=one,
            batch_index=covariates[REGISTRY_KEYS.BATCH_KEY].reshape(n, 1),
            cont_covs=covariates.get(REGISTRY_KEYS.CONT_COVS_KEY),
            cat_covs=covariates.get(REGISTRY_KEYS.CAT_COVS_KEY),
            y=labels.clamp(max=max(self.source.n_labels - 1, 0)),
        )
        px = out["px"]
        rho = px.mu if getattr(px, "scale", None) is None else px.scale
        theta = getattr(px, "theta", None)
        # Poisson is the negative binomial of infinite inverse dispersion.
        theta = torch.full_like(rho[:1], 1e8)[0] if theta is None else theta
        if theta.dim() == 2 and self.dispersion == "gene":
            theta = theta[0]
        scale = rho.sum(dim=-1) if self.gives_rates else None
        return Decoded(rho.log(), theta, getattr(px, "zi_logits", None), scale)
