"""Generators: functions (train, n, rng) -> AnnData of new cells with the composition of the training cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from cellsmith._rng import isolated
from cellsmith.benchmark._synthesis.fits import Fits
from cellsmith.math.counts import dispersion_moments, largest_remainder, library_totals, nb_counts
from cellsmith.metrics._cells import Space, log_normalise
from cellsmith.metrics._labels import classifier

__all__ = ["CONTROL", "PEERS", "SCLD_VARIANTS", "Generator", "generators", "independent_nb", "memoriser"]
__all__ += ["composition_rows", "neighbour_average", "scvi_gaussian", "scvi_posterior_predictive", "scvi_prior"]

Generator = Callable[[ad.AnnData, int, np.random.Generator], ad.AnnData]

CONTROL = "real spare cells"
POSTERIOR = "scVI posterior predictive"
PEERS = (
    "memoriser",
    "20-neighbour average",
    "independent NB per type",
    POSTERIOR,
    "scVI Gaussian per type",
    "scVI prior N(0 I)",
)
SCLD_VARIANTS = ("SCLD", "SCLD (10 steps)", "SCLD (200 steps)", "SCLD on scVI")
FITTED = {
    **dict.fromkeys(PEERS[3:], "scvi"),
    **dict.fromkeys(SCLD_VARIANTS[:3], "scld"),
    "SCLD on scVI": "scld_on_scvi",
}
"""Generator -> model that it needs."""

N_AVERAGED = 20
N_COMPONENTS = 30


def composition_rows(
    train: ad.AnnData, n: int, rng: np.random.Generator, *, keys: list[str], replace: bool
) -> np.ndarray:
    """Draw training cells so that every combination of labels has its training share exactly.

    Parameters
    ----------
    train
        Training cells.
    n
        Cells to draw.
    rng
        Generator.
    keys
        Columns of ``.obs``.
    replace
        Draw with replacement; a group that is too small is drawn with replacement anyway.

    Returns
    -------
    Positions of shape (n,), group by group.
    """
    groups = list(train.obs.groupby(keys, observed=True).indices.values())
    sizes = largest_remainder([len(g) / train.n_obs * n for g in groups], n)
    return np.concatenate(
        [rng.choice(g, size, replace=replace or size > len(g)) for g, size in zip(groups, sizes, strict=True)]
    )


def _cells(x: Any, obs: pd.DataFrame, train: ad.AnnData) -> ad.AnnData:
    obs = obs.copy()
    obs.index = pd.Index([f"synthetic_{i}" for i in range(len(obs))])
    return ad.AnnData(sparse.csr_matrix(x), obs=obs, var=train.var[[]].copy())


def memoriser(train: ad.AnnData, n: int, rng: np.random.Generator, *, keys: list[str]) -> ad.AnnData:
    """Return training cells, resampled: realistic, and a breach of privacy.

    Parameters
    ----------
    train, n, rng
        Training cells, number of cells, generator.
    keys
        Columns of ``.obs``.
    """
    rows = composition_rows(train, n, rng, keys=keys, replace=True)
    return _cells(train.X[rows], train.obs[keys].iloc[rows], train)


def neighbour_average(train: ad.AnnData, n: int, rng: np.random.Generator, *, keys: list[str]) -> ad.AnnData:
    """Return the mean normalised expression of the 20 nearest training cells: smooth, and no data.

    Parameters
    ----------
    train, n, rng
        Training cells, number of cells, generator.
    keys
        Columns of ``.obs``.

    Returns
    -------
    log1p expression, not counts.
    """
    from sklearn.neighbors import NearestNeighbors

    log = log_normalise(sparse.csr_matrix(train.X))
    place = Space.fit(log, N_COMPONENTS, 0).pca.transform(log)
    rows = composition_rows(train, n, rng, keys=keys, replace=False)
    k = min(N_AVERAGED, train.n_obs)
    near = NearestNeighbors(n_neighbors=k).fit(place).kneighbors(place[rows], return_distance=False)
    weights = sparse.csr_matrix(
        (np.full(near.size, 1 / k), near.ravel(), np.arange(0, near.size + 1, k)), shape=(n, train.n_obs)
    )
    return _cells(weights @ log, train.obs[keys].iloc[rows], train)


def independent_nb(train: ad.AnnData, n: int, rng: np.random.Generator, *, keys: list[str]) -> ad.AnnData:
    """Draw every gene by itself from a negative binomial of its type, at resampled totals.

    Parameters
    ----------
    train, n, rng
        Training cells, number of cells, generator.
    keys
        Columns of ``.obs``; one fit a combination.
    """
    rows = composition_rows(train, n, rng, keys=keys, replace=True)
    total = library_totals(train.X)
    group = train.obs.groupby(keys, observed=True).ngroup().to_numpy()
    parts, order = [], []
    for g in np.unique(group[rows]):
        member, wanted = np.flatnonzero(group == g), rows[group[rows] == g]
        x = train.X[member]
        share = np.asarray(x.sum(axis=0), dtype=np.float64).ravel()
        share /= share.sum()
        theta = dispersion_moments(x, total[member])
        rho = np.broadcast_to(share, (len(wanted), len(share)))
        parts.append(nb_counts(rho, theta, total[wanted], generator=rng))
        order.append(wanted)
    return _cells(sparse.vstack(parts, format="csr"), train.obs[keys].iloc[np.concatenate(order)], train)


def _decode(model: Any, z: np.ndarray, *, rows: np.ndarray, rng: np.random.Generator) -> sparse.csr_matrix:
    """Draw counts from scVI's decoder at latents, with the totals and batches of training cells `rows`."""
    import torch

    total = library_totals(model.adata.X)[rows]
    batch = model.adata.obs["_scvi_batch"].to_numpy()[rows]
    model.module.eval()
    with torch.no_grad(), isolated(int(rng.integers(2**31))):
        answer = model.module.generative(
            z=torch.as_tensor(z, dtype=torch.float32),
            library=torch.as_tensor(np.log(total), dtype=torch.float32)[:, None],
            batch_index=torch.as_tensor(np.array(batch), dtype=torch.long)[:, None],
        )
        return sparse.csr_matrix(answer["px"].sample().numpy())


def scvi_posterior_predictive(
    train: ad.AnnData, n: int, rng: np.random.Generator, *, keys: list[str], model: Any
) -> ad.AnnData:
    """Resample the counts of real training cells from scVI; the cells are handed in, so this is no generator.

    Parameters
    ----------
    train, n, rng
        Training cells, number of cells, generator.
    keys
        Columns of ``.obs``.
    model
        Trained :class:`scvi.model.SCVI`.
    """
    rows = composition_rows(train, n, rng, keys=keys, replace=False)
    with isolated(int(rng.integers(2**31))):
        drawn = model.posterior_predictive_sample(indices=rows, n_samples=1)
    return _cells(sparse.csr_matrix(drawn.to_scipy_sparse()), train.obs[keys].iloc[rows], train)


def scvi_gaussian(train: ad.AnnData, n: int, rng: np.random.Generator, *, keys: list[str], model: Any) -> ad.AnnData:
    """Draw latents from one Gaussian a type in scVI's latent space and decode them at resampled totals.

    Parameters
    ----------
    train, n, rng
        Training cells, number of cells, generator.
    keys
        Columns of ``.obs``; one Gaussian a combination.
    model
        Trained :class:`scvi.model.SCVI`.
    """
    rows = composition_rows(train, n, rng, keys=keys, replace=True)
    with isolated(int(rng.integers(2**31))):
        latent = model.get_latent_representation(give_mean=False)
    group = train.obs.groupby(keys, observed=True).ngroup().to_numpy()
    z = np.empty((n, latent.shape[1]))
    for g in np.unique(group[rows]):
        member, wanted = latent[group == g], np.flatnonzero(group[rows] == g)
        spread = np.cov(member.T) if len(member) > latent.shape[1] + 1 else np.diag(member.var(axis=0) + 1e-3)
        z[wanted] = rng.multivariate_normal(member.mean(axis=0), spread, len(wanted))
    return _cells(_decode(model, z, rows=rows, rng=rng), train.obs[keys].iloc[rows], train)


def scvi_prior(train: ad.AnnData, n: int, rng: np.random.Generator, *, keys: list[str], model: Any) -> ad.AnnData:
    """Draw latents from scVI's prior N(0, I); the label of each cell is predicted afterwards.

    Parameters
    ----------
    train, n, rng
        Training cells, number of cells, generator.
    keys
        Columns of ``.obs``; the first is predicted, a batch comes with the training cell that gives the total.
    model
        Trained :class:`scvi.model.SCVI`.
    """
    rows = rng.choice(train.n_obs, n)
    x = _decode(model, rng.standard_normal((n, model.module.n_latent)), rows=rows, rng=rng)
    log = log_normalise(sparse.csr_matrix(train.X))
    space = Space.fit(log, N_COMPONENTS, 0)
    teacher = classifier(space.pca.transform(log), train.obs[keys[0]].astype(str).to_numpy(dtype=object))
    obs = train.obs[keys].iloc[rows].copy()
    obs[keys[0]] = pd.Categorical(np.asarray(teacher.predict(space.pca.transform(log_normalise(x)))).astype(str))
    return _cells(x, obs, train)


def generators(fits: Fits) -> Mapping[str, Generator]:
    """Return every generator of the table, bound to the models of one training set.

    Parameters
    ----------
    fits
        Models; each is trained when its first generator runs.
    """
    keys = [k for k in (fits.labels_key, fits.batch_key) if k is not None]

    def plain(function: Any) -> Generator:
        return lambda train, n, rng: function(train, n, rng, keys=keys)

    def scvi(function: Any) -> Generator:
        return lambda train, n, rng: function(train, n, rng, keys=keys, model=fits.get("scvi"))

    def scld(which: str, **options: Any) -> Generator:
        return lambda train, n, rng: fits.get(which).generate(n, seed=int(rng.integers(2**31)), **options)

    makers: list[Generator] = [
        *(plain(f) for f in (memoriser, neighbour_average, independent_nb)),
        *(scvi(f) for f in (scvi_posterior_predictive, scvi_gaussian, scvi_prior)),
        scld("scld"),
        scld("scld", n_steps=10),
        scld("scld", n_steps=200),
        scld("scld_on_scvi"),
    ]
    return dict(zip((*PEERS, *SCLD_VARIANTS), makers, strict=True))
