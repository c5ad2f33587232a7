"""Principal components from one private release: the strong, simple baseline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from cellsmith import _record
from cellsmith._errors import SetupError
from cellsmith._rng import Streams, resolve_seed
from cellsmith.data import panel as panels
from cellsmith.math import privacy
from cellsmith.math.privacy.moments import CENTER_SHARE

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["dp_pca"]

MOST_CELLS = 128


def dp_pca(
    adata: AnnData,
    *,
    epsilon: float,
    delta: float = 1e-5,
    n_components: int = 16,
    layer: str | None = None,
    gene_panel: Any = "all",
    privacy_unit_key: str | None = None,
    panel_is_public: bool = False,
    center: bool = False,
    drop_noise: bool = False,
    key_added: str = "dp_pca",
    copy: bool = False,
    rng: Any = 0,
    unsafe_reproducible: bool = False,
) -> AnnData | None:
    """Embed cells along principal axes that are differentially private.

    The second moment of unit-length cells is released once, with noise; axes are computed from it alone. Axes and
    eigenvalues may leave the building; the embedding of the cells themselves is that of private data and stays.

    Parameters
    ----------
    adata
        Raw counts, cells x genes; sparse, in a file, or dask.
    epsilon, delta
        The budget, for adding or removing one unit; delta at most 1 / n^1.1.
    n_components
        Axes.
    layer
        Layer with the counts; None is ``.X``.
    gene_panel
        Public names; an integer: so many genes drawn by name; "all": you declare ``var_names`` public.
    privacy_unit_key
        Column of ``.obs`` with donors; None protects single cells.
    panel_is_public
        The genes were not picked on these cells, although they are marked highly variable.
    center
        Release the mean as well, and embed around it.
    drop_noise
        Leave out axes whose eigenvalue noise alone would reach (at least 2 stay).
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
    None, or the copy. Written (k = ``key_added``): ``.obsm["X_k"]`` cells x axes, ``.varm["k_loadings"]`` genes x axes
    (0 outside the panel), ``.uns["k"]`` with eigenvalues, the edge of the noise, and the block ``privacy``.

    Raises
    ------
    PrivacyError
        For a budget that promises nothing, genes picked on these cells, or too few donors.
    SetupError
        For values that are no counts, or a panel that does not fit.

    Notes
    -----
    Release of M = sum of x x^T with noise on the isometric half-vector: Frobenius sensitivity 1, exact Gaussian
    accounting (arXiv 1805.06530). After Dwork and colleagues, doi 10.1145/2591796.2591883.

    Examples
    --------
    >>> import cellsmith
    >>> adata = cellsmith.datasets.kang_pbmc()
    >>> cellsmith.tl.dp_pca(adata, epsilon=4.0, gene_panel=500)  # doctest: +SKIP
    """
    written = {"obsm": ("X_{k}",), "varm": ("{k}_loadings",)}
    _record.check_free(adata, key_added, "dp_pca", names=written)
    target = adata.copy() if copy else adata
    panel = panels.panel_of(target.var, gene_panel, panel_is_public=panel_is_public)
    units, n_units = panels.unit_codes(target.obs, privacy_unit_key)
    panels.check_budget(epsilon, delta, n_units)
    n_genes = len(panel.names)
    if not 2 <= n_components <= n_genes:
        raise SetupError(f"n_components={n_components}; expected 2 to {n_genes}, the number of genes in the panel.")
    counts = panels.check_private_counts(target, layer)
    earlier = panels.warn_of_earlier(target.uns, epsilon=epsilon, delta=delta)
    seed = resolve_seed(rng)
    generator = Streams(seed).numpy("noise") if unsafe_reproducible else privacy.secret_generator()
    sd = 1 / privacy.gaussian_mu(epsilon, delta)
    ledger = privacy.Ledger(epsilon, delta)
    ledger.spend(privacy.Event(stage="release", kind="gaussian", sensitivity=1.0, noise_multiplier=sd))

    def rows() -> Iterator[Any]:
        """Yield what the units contribute, in blocks."""
        blocks = map(privacy.unit_counts, panels.panel_blocks(target, counts, panel))
        if units is None:
            yield from blocks
        else:
            x = np.vstack([block.toarray() for block in blocks])
            yield privacy.unit_means(x, units, n_units=n_units, most=MOST_CELLS, generator=generator)

    found = _axes(rows(), n_genes, n_components, sd=sd, center=center, generator=generator)
    kept = max(2, found["n_above_edge"]) if drop_noise else n_components
    axes = found.pop("axes")[:, :kept]
    x = [_embed(block, axes, found["mean"]) for block in panels.panel_blocks(target, counts, panel)]
    columns, places = panel.places(target.var_names)
    loadings = np.zeros((target.n_vars, kept), dtype=np.float32)
    loadings[columns] = axes[places]
    about: dict[str, Any] = {
        "unit_key": privacy_unit_key,
        "n_units": n_units,
        "simulated": unsafe_reproducible,
        "earlier": earlier,
    }
    said = _statement(ledger, panel.source, **about)
    inputs = {"layer": layer, "privacy_unit_key": privacy_unit_key}
    result = _record.Result(
        method="dp_pca",
        obsm={"X_{k}": np.vstack(x)},
        varm={"{k}_loadings": loadings},
        uns={
            "params": {"n_components": kept, "center": center, "drop_noise": drop_noise, "n_genes": n_genes},
            **found,
            "eigenvalues": found["eigenvalues"][:kept],
            "privacy": said.block(),
            "provenance": _record.provenance(
                method="dp_pca",
                seed=seed if unsafe_reproducible else None,
                n_obs=target.n_obs,
                var_names=target.var_names,
                inputs={k: v for k, v in inputs.items() if v is not None},
            ),
        },
    )
    _record.write(target, key_added, result)
    return target if copy else None


def _axes(
    rows: Iterator[Any], n_genes: int, n_components: int, *, sd: float, center: bool, generator: Any
) -> dict[str, Any]:
    """Release the moment of rows (n, G), and return axes, eigenvalues and what noise does to them."""
    blocks = map(_with_constant, rows) if center else rows
    moment = privacy.noisy_second_moment(blocks, n_genes + center, sd=sd, generator=generator)
    mean = np.zeros(n_genes)
    if center:
        _, mean, moment = privacy.split_centered(moment)
        sd = sd / (1 - CENTER_SHARE)
    values, axes = privacy.principal_axes(moment, n_components)
    edge = privacy.noise_edge(n_genes, sd)
    return {
        "axes": axes,
        "mean": mean,
        "eigenvalues": privacy.debias_values(values, n_genes, sd),
        "noise_edge": edge,
        "n_above_edge": int((values > edge).sum()),
    }


def _embed(counts: Any, axes: Any, mean: Any) -> Any:
    """Return the components of cells (n, r), float32."""
    return (privacy.unit_counts(counts) @ axes - mean @ axes).astype(np.float32)


def _with_constant(x: Any) -> Any:
    """Append the constant column that lets the mean be read off the moment."""
    w = CENTER_SHARE
    x = x.toarray() if sparse.issparse(x) else x
    return np.hstack([np.sqrt(1 - w) * x, np.full((len(x), 1), np.sqrt(w))])


def _statement(
    ledger: privacy.Ledger,
    source: str,
    *,
    unit_key: str | None,
    n_units: int,
    simulated: bool,
    earlier: tuple[float, float],
) -> privacy.Statement:
    return privacy.Statement(
        valid=True,
        mode="dp_pca",
        epsilon=ledger.epsilon,
        delta=ledger.delta,
        target_epsilon=ledger.target_epsilon,
        unit="cell" if unit_key is None else "donor",
        unit_key=unit_key,
        n_units=n_units,
        panel_source=source,
        reproducible_noise=simulated,
        wiring_checked=True,
        events=ledger.events,
        earlier=earlier,
        guarantees=(
            privacy.Guarantee("loadings, eigenvalues, mean", "private", "computed from the release alone"),
            privacy.Guarantee("embedding of these cells", "joint", "private towards everybody but the cell itself"),
            privacy.Guarantee("embedding of new cells", "private", "costs the cells of the release nothing more"),
        ),
    )
