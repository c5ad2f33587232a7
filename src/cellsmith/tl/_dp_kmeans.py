"""k-means whose centres may leave the building."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellsmith import _record
from cellsmith._errors import SetupError, nearest
from cellsmith._rng import Streams, resolve_seed
from cellsmith.data import panel as panels
from cellsmith.math import privacy
from cellsmith.math.privacy.kmeans import in_ball

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["dp_kmeans"]


def dp_kmeans(
    adata: AnnData,
    *,
    n_clusters: int,
    epsilon: float,
    delta: float = 1e-5,
    use_rep: str,
    n_iterations: int = 5,
    n_starts: int = 10,
    radius: float | None = None,
    privacy_unit_key: str | None = None,
    key_added: str = "dp_kmeans",
    copy: bool = False,
    rng: Any = 0,
    unsafe_reproducible: bool = False,
) -> AnnData | None:
    """Cluster cells in an embedding; the centres and their sizes are differentially private.

    The guarantee covers the clustering. It holds for the counts behind the embedding only if the map from counts to the
    embedding was public or private itself (:func:`cellsmith.tl.dp_pca`); the two budgets then add up.

    Parameters
    ----------
    adata
        Cells with an embedding.
    n_clusters
        Number of clusters, chosen without looking at these cells.
    epsilon, delta
        The budget, for adding or removing one unit; delta at most 1 / n^1.1.
    use_rep
        Key of ``.obsm``, cells x dimensions.
    n_iterations
        Lloyd steps, each of which is released.
    n_starts
        Starts that are drawn without data; one release chooses.
    radius
        Of the ball into which rows are cut, chosen without looking at these cells. None: for an embedding by
        :func:`cellsmith.tl.dp_pca` a ball around its mean direction, in the axes above the noise, from the released
        eigenvalues, which costs nothing; else 1.
    privacy_unit_key
        Column of ``.obs`` with donors; None protects single cells.
    key_added
        Name of the outputs.
    copy
        Write into a copy and return it.
    rng
        Seed of the noise, used under ``unsafe_reproducible=True`` only.
    unsafe_reproducible
        Simulation: noise from the seed. The statement is void for whoever knows it.

    Returns
    -------
    None, or the copy. Written (k = ``key_added``): ``.obs["k"]`` the nearest centre; ``.uns["k"]`` with ``centers``
    (clusters x dimensions), noisy ``sizes`` (units), and the block ``privacy``.

    Raises
    ------
    PrivacyError
        For a budget that promises nothing, or too few donors.
    SetupError
        If there is no such embedding, or a number is not positive.

    Notes
    -----
    One release of scored starts (sensitivity sqrt(n_starts)), then (sum / radius, count) of each cluster (joint
    sensitivity sqrt(2)); composed exactly. A noisy count below 1 keeps the old centre.

    Examples
    --------
    >>> import cellsmith
    >>> adata = cellsmith.datasets.kang_pbmc()
    >>> cellsmith.tl.dp_pca(adata, epsilon=3.0, gene_panel=500)  # doctest: +SKIP
    >>> cellsmith.tl.dp_kmeans(adata, n_clusters=8, epsilon=1.0, use_rep="X_dp_pca")  # doctest: +SKIP
    """
    _record.check_free(adata, key_added, "dp_kmeans", names={"obs": ("{k}",)})
    target = adata.copy() if copy else adata
    if use_rep not in target.obsm:
        raise SetupError(f"use_rep={use_rep!r} is not in .obsm. {nearest(use_rep, target.obsm)}")
    units, n_units = panels.unit_codes(target.obs, privacy_unit_key)
    panels.check_budget(epsilon, delta, n_units)
    if min(n_clusters, n_iterations, n_starts) < 1 or not (radius is None or radius > 0):
        raise SetupError(
            f"Found n_clusters={n_clusters}, n_iterations={n_iterations}, n_starts={n_starts}, radius={radius}; "
            "expected positive numbers."
        )
    earlier = panels.warn_of_earlier(target.uns, epsilon=epsilon, delta=delta)
    seed = resolve_seed(rng)
    generator = Streams(seed).numpy("noise") if unsafe_reproducible else privacy.secret_generator()
    mu = privacy.gaussian_mu(epsilon, delta)
    ledger = privacy.Ledger(epsilon, delta)
    for event in privacy.kmeans_events(mu, n_iterations=n_iterations, n_starts=n_starts):
        ledger.spend(event)
    z = np.asarray(target.obsm[use_rep], dtype=np.float64)
    frame = _frame(target.uns, use_rep, n_columns=z.shape[1], n_units=n_units, radius=radius)
    found, nearest_center = _cluster(
        z, frame, n_clusters, mu=mu, n_iterations=n_iterations, n_starts=n_starts, units=units, generator=generator
    )
    about: dict[str, Any] = {
        "unit_key": privacy_unit_key,
        "n_units": n_units,
        "simulated": unsafe_reproducible,
        "earlier": earlier,
    }
    said = _statement(ledger, use_rep, **about)
    names = [str(k) for k in range(n_clusters)]
    result = _record.Result(
        method="dp_kmeans",
        obs={"{k}": pd.Categorical.from_codes(nearest_center, categories=names)},
        uns={
            "params": {"n_iterations": n_iterations, "n_starts": n_starts, "radius": frame.radius, "use_rep": use_rep},
            "classes": np.array(names, dtype=object),
            "centers": found.centers,
            "sizes": found.counts,
            "privacy": said.block(),
            "provenance": _record.provenance(
                method="dp_kmeans",
                seed=seed if unsafe_reproducible else None,
                n_obs=target.n_obs,
                var_names=target.var_names,
                inputs={"use_rep": use_rep},
            ),
        },
    )
    _record.write(target, key_added, result)
    return target if copy else None


def _cluster(
    z: np.ndarray, frame: privacy.Frame, n_clusters: int, **settings: Any
) -> tuple[privacy.KMeansRelease, np.ndarray]:
    """Return centres (K, d) in all dimensions, zeros where the frame has none, and the nearest one of every cell."""
    used = z[:, : len(frame.offset)]
    found = privacy.private_kmeans(used, n_clusters, **frame._asdict(), **settings)
    inside = in_ball(used - frame.offset, frame.radius) + frame.offset
    nearest_center = ((inside[:, None] - found.centers) ** 2).sum(axis=2).argmin(axis=1)
    centers = np.zeros((n_clusters, z.shape[1]))
    centers[:, : used.shape[1]] = found.centers
    return found._replace(centers=centers), nearest_center


def _frame(
    uns: Mapping[str, Any], use_rep: str, *, n_columns: int, n_units: int, radius: float | None
) -> privacy.Frame:
    """Return where to look: from the released eigenvalues of the embedding, where it has some and nothing is given."""
    key = use_rep.removeprefix("X_")
    found = uns.get(key) if key != use_rep else None
    block: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    along_axes = "n_above_edge" in block and "eigenvalues" in block
    if radius is None and along_axes and block["params"].get("mode", "dp_pca_init") == "dp_pca_init":
        centered = bool(block["params"].get("center", False))
        values = np.asarray(block["eigenvalues"])[:n_columns]
        return privacy.frame_of_axes(values, int(block["n_above_edge"]), n_units=n_units, centered=centered)
    return privacy.Frame(np.zeros(n_columns), None, 1.0 if radius is None else radius)


def _statement(
    ledger: privacy.Ledger,
    use_rep: str,
    *,
    unit_key: str | None,
    n_units: int,
    simulated: bool,
    earlier: tuple[float, float],
) -> privacy.Statement:
    return privacy.Statement(
        valid=True,
        mode="dp_kmeans",
        epsilon=ledger.epsilon,
        delta=ledger.delta,
        target_epsilon=ledger.target_epsilon,
        unit="cell" if unit_key is None else "donor",
        unit_key=unit_key,
        n_units=n_units,
        panel_source=f".obsm[{use_rep!r}]",
        reproducible_noise=simulated,
        wiring_checked=True,
        events=ledger.events,
        earlier=earlier,
        guarantees=(
            privacy.Guarantee("centers, sizes", "private", "where the map behind the embedding is public or private"),
            privacy.Guarantee("clusters of these cells", "joint", "private towards everybody but the cell itself"),
        ),
        notes=(f"The budget of the map behind .obsm[{use_rep!r}], if it has one, comes on top.",),
    )
