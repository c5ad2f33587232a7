"""Pictures of synthetic cells: where they lie, how their genes behave, how one state turns into another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from cellsmith._errors import SetupError, nearest
from cellsmith.pl import _style as style
from cellsmith.pl._reading import count_summary, is_anndata, log_normalised, read_report

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

__all__ = ["interpolation", "synthetic_genes", "synthetic_overview"]


def _seed(rng: Any) -> int:
    from cellsmith._rng import Streams, resolve_seed

    return Streams(resolve_seed(rng)).integer("picture")


def _place(log: sparse.csr_matrix, basis: str, seed: int) -> np.ndarray:
    """Return coordinates (n, 2) of normalised expression (n, G)."""
    from sklearn.decomposition import PCA

    d = max(2, min(2 if basis == "pca" else 30, min(log.shape) - 1))
    scores = PCA(d, svd_solver="arpack", random_state=seed).fit_transform(log)
    if basis == "pca":
        return np.asarray(scores)
    import umap

    return np.asarray(umap.UMAP(n_neighbors=20, min_dist=0.3, random_state=seed, n_jobs=1).fit_transform(scores))


def _density(points: np.ndarray, grid: np.ndarray) -> np.ndarray | None:
    """Return the density (q,) of points (n, 2) at grid (q, 2); None where they lie on a line."""
    from scipy.stats import gaussian_kde

    try:
        # Cells come in islands: the usual bandwidth, made for one hill, would blur them into each other.
        return np.asarray(gaussian_kde(points.T, bw_method=0.4 * len(points) ** (-1 / 6))(grid.T))
    except (np.linalg.LinAlgError, ValueError):
        return None


def _contours(ax: Axes, points: np.ndarray, limits: Sequence[float], colour: str, *, filled: bool) -> None:
    """Draw the regions that hold about 25, 50, 75 and 95 % of the points."""
    from matplotlib.colors import to_rgba

    x, y = np.linspace(limits[0], limits[1], 90), np.linspace(limits[2], limits[3], 90)
    mesh = np.stack(np.meshgrid(x, y), axis=-1)
    values = _density(points, mesh.reshape(-1, 2))
    at_points = _density(points, points)
    if values is None or at_points is None:
        return
    levels = np.unique(np.quantile(at_points, [0.05, 0.25, 0.5, 0.75]))
    table = values.reshape(90, 90)
    if filled:
        shades = [to_rgba(colour, a) for a in (0.10, 0.20, 0.32, 0.46)][: len(levels)]
        ax.contourf(x, y, table, levels=[*levels, max(table.max(), levels[-1]) * 1.01], colors=shades)
    else:
        ax.contour(x, y, table, levels=levels, colors=[colour], linewidths=0.9, alpha=0.8)


def _column(adata: Any, key: str, name: str) -> np.ndarray:
    if key not in adata.obs:
        msg = f"`{name}.obs` has no column {key!r}. {nearest(key, adata.obs.columns)}"
        raise SetupError(msg)
    return adata.obs[key].astype(str).to_numpy(dtype=object)


def synthetic_overview(
    real: AnnData,
    synthetic: AnnData,
    *,
    color: str | None = None,
    layer: str | None = None,
    basis: str = "pca",
    max_cells: int = 3000,
    rng: int | np.random.Generator | np.random.RandomState | None = 0,
    ax: Sequence[Axes] | None = None,
) -> np.ndarray:
    """Draw real and synthetic cells side by side on one shared map, each with its density.

    The outline of the real cells is repeated in the second panel.

    Parameters
    ----------
    real, synthetic
        Counts of shapes (n, G) and (m, G) with the same genes.
    color
        Column of ``.obs`` of both that colours the cells; None colours by side.
    layer
        Layer of counts.
    basis
        ``"pca"`` (two components of both together) or ``"umap"`` (of 30 components).
    max_cells
        At most so many cells a side are drawn, chosen by `rng`.
    rng
        Seed, or a generator that gives it.
    ax
        Two Axes; None makes a figure.

    Returns
    -------
    Array of two Axes: real, synthetic.

    Raises
    ------
    SetupError
        For different genes, an unknown `basis` or column, or values that are no counts.

    Examples
    --------
    >>> cellsmith.pl.synthetic_overview(test, synthetic, color="cell_type")  # doctest: +SKIP
    """
    if basis not in ("pca", "umap"):
        msg = f"`basis` is {basis!r}. {nearest(basis, ('pca', 'umap'))}"
        raise SetupError(msg)
    common = set(real.var_names) & set(synthetic.var_names)
    if len(common) < max(real.n_vars, synthetic.n_vars):
        msg = f"`real` has {real.n_vars} genes, `synthetic` {synthetic.n_vars}; {len(common)} are in both. Subset them."
        raise SetupError(msg)
    seed = _seed(rng)
    generator = np.random.default_rng(seed)
    sides = []
    for adata in (real, synthetic[:, real.var_names]):
        keep = np.sort(generator.choice(adata.n_obs, min(max_cells, adata.n_obs), replace=False))
        sides.append(adata[keep])
    logs = [log_normalised(a, layer=layer, name=n) for a, n in zip(sides, ("real", "synthetic"), strict=True)]
    place = _place(sparse.csr_matrix(sparse.vstack(logs)), basis, seed)
    places = [place[: logs[0].shape[0]], place[logs[0].shape[0] :]]
    axes = style.panels(ax, 2, size=(9.6 if color is None else 11.4, 4.5), share=True)
    low, high = place.min(axis=0), place.max(axis=0)
    pad = 0.06 * (high - low)
    limits = [low[0] - pad[0], high[0] + pad[0], low[1] - pad[1], high[1] + pad[1]]
    names = ("real", "synthetic")
    groups = None if color is None else [_column(a, color, n) for a, n in zip(sides, names, strict=True)]
    word = "PC" if basis == "pca" else "UMAP "
    for k, (panel, colour) in enumerate(zip(axes, (style.REAL, style.SYNTHETIC), strict=True)):
        if groups is None:
            _contours(panel, places[k], limits, colour, filled=True)
            panel.scatter(*places[k].T, s=4, color=colour, alpha=0.35, linewidths=0, label=names[k], rasterized=True)
        else:
            _by_category(panel, places[k], groups[k], sorted({*groups[0], *groups[1]}))
        if k == 1 or groups is not None:
            _contours(panel, places[0], limits, style.INK if k else style.SOFT, filled=False)
        panel.set(title=f"{names[k]} ({len(places[k]):,} cells)", xlabel=f"{word}1", xlim=limits[:2], ylim=limits[2:])
        panel.set(xticks=[], yticks=[])
    axes[0].set_ylabel(f"{word}2")
    if groups is not None:
        axes[1].legend(
            title=color, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, markerscale=2.5, fontsize=9
        )
    else:
        axes[1].plot([], [], color=style.INK, linewidth=0.9, label="outline of real cells")
        axes[1].legend(handles=axes[1].get_lines(), loc="best", frameon=False, fontsize=9)
    style.tidy(axes)
    return np.asarray(axes, dtype=object)


def _by_category(ax: Axes, points: np.ndarray, groups: np.ndarray, names: list[str]) -> None:
    for k, name in enumerate(names):
        mask = groups == name
        marker = style.MARKERS[(k // len(style.CATEGORIES)) % len(style.MARKERS)]
        colour = style.CATEGORIES[k % len(style.CATEGORIES)]
        ax.scatter(
            *points[mask].T, s=7, color=colour, marker=marker, alpha=0.7, linewidths=0, label=name, rasterized=True
        )


_SIDES = (
    ("real", "real", style.REAL, "-"),
    ("control", "real, control", style.CONTROL, "--"),
    ("synthetic", "synthetic", style.SYNTHETIC, "-"),
)


def _curve(ax: Axes, values: np.ndarray, *, label: str, colour: str, line: str) -> None:
    """Draw the smoothed density of the logarithm of positive values."""
    from scipy.stats import gaussian_kde

    log = np.log10(values[values > 0])
    if len(log) < 2 or log.std() == 0:
        ax.axvline(float(values.max(initial=1.0)), color=colour, linestyle=line, label=label)
        return
    kernel = gaussian_kde(log)
    spread = 3 * float(np.sqrt(kernel.covariance[0, 0]))
    grid = np.linspace(log.min() - spread, log.max() + spread, 256)
    density = kernel(grid)
    ax.plot(10**grid, density, color=colour, linestyle=line, linewidth=2.0, label=label)
    if line == "-":
        ax.fill_between(10**grid, density, color=colour, alpha=0.10, linewidth=0)


def _plain_log(ax: Axes) -> None:
    """Make the x axis logarithmic with plain numbers: powers of ten would be too few, or would run into each other."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    ax.set_xscale("log")
    low, high = ax.get_xlim()
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 300 * low else (1.0,)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    ax.xaxis.set_minor_locator(NullLocator())


def synthetic_genes(
    real: Any,
    synthetic: AnnData | None = None,
    *,
    layer: str | None = None,
    key: str = "scld_evaluation",
    ax: Sequence[Axes] | None = None,
) -> np.ndarray:
    """Draw zero fraction, mean-variance relation, library size and genes detected.

    Parameters
    ----------
    real
        Counts of shape (n, G); or a report of :func:`cellsmith.metrics.evaluate_synthetic`, its
        ``to_uns()``, or an AnnData that stores it, and `synthetic` stays None.
    synthetic
        Counts of shape (m, G) with the genes of `real`.
    layer
        Layer of counts.
    key
        Name of a stored report in ``.uns``.
    ax
        Four Axes; None makes a figure of 2 x 2.

    Returns
    -------
    Array of four Axes, in the order above.

    Raises
    ------
    SetupError
        For different genes, values that are no counts, or a missing report.

    Examples
    --------
    >>> cellsmith.pl.synthetic_genes(report)  # doctest: +SKIP
    """
    if synthetic is not None:
        if not is_anndata(real) or set(real.var_names) != set(synthetic.var_names):
            msg = "`real` and `synthetic` need the same genes. Subset both to the shared ones, or give a report alone."
            raise SetupError(msg)
        sides = {
            "real": count_summary(real, layer=layer, name="real"),
            "synthetic": count_summary(synthetic[:, real.var_names], layer=layer, name="synthetic"),
        }
    else:
        curves = read_report(real, key=key, what="evaluate_synthetic").curves
        sides = {
            side: {k.removeprefix(f"{side}_"): v for k, v in curves.items() if k.startswith(f"{side}_")}
            for side, *_ in _SIDES
        }
        sides = {side: found for side, found in sides.items() if found}
    axes = style.panels(ax, 4, size=(9.2, 7.2), columns=2)
    drawn = [entry for entry in _SIDES if entry[0] in sides]
    _gene_panels(axes[0], axes[1], sides, drawn)
    for panel, name, label in (
        (axes[2], "library", "counts a cell"),
        (axes[3], "genes_detected", "genes detected a cell"),
    ):
        for side, text, colour, line in drawn:
            _curve(panel, sides[side][name], label=text, colour=colour, line=line)
        panel.set(xlabel=label, ylabel="density (per decade)", ylim=(0, None))
        _plain_log(panel)
        panel.legend(frameon=False, fontsize=9)
    for panel, title in zip(
        axes, ("Zeros", "Mean and variance", "Sequencing depth", "Complexity of a cell"), strict=True
    ):
        panel.set_title(title, loc="left", fontsize=11)
    if "synthetic" not in sides:
        axes[0].text(0.5, 0.5, "synthetic values are no counts", ha="center", transform=axes[0].transAxes)
    style.tidy(axes, grid="both")
    return np.asarray(axes, dtype=object)


def _gene_panels(zeros: Axes, noise: Axes, sides: dict[str, dict[str, np.ndarray]], drawn: list[Any]) -> None:
    """Draw zero fractions against each other, and variance against mean."""
    zeros.plot([0, 1], [0, 1], color=style.INK, linewidth=1, linestyle="--", zorder=3, label="equal")
    for side, text, colour, _ in drawn:
        one = sides[side]
        if side != "real":
            zeros.scatter(
                sides["real"]["zero_fraction"],
                one["zero_fraction"],
                s=8,
                color=colour,
                alpha=0.45,
                linewidths=0,
                label=text,
                rasterized=True,
            )
        if side == "control":
            continue  # three clouds on top of each other hide each other
        use = (one["mean"] > 0) & (one["variance"] > 0)
        noise.scatter(
            one["mean"][use],
            one["variance"][use],
            s=6,
            color=colour,
            alpha=0.4,
            linewidths=0,
            label=text,
            rasterized=True,
        )
    ends = np.array(noise.get_xlim() if noise.has_data() else (0.01, 1.0))
    positive = sides["real"]["mean"][sides["real"]["mean"] > 0]
    ends = np.array([positive.min(), positive.max()]) if len(positive) else ends
    noise.plot(ends, ends, color=style.INK, linewidth=1, linestyle="--", label="Poisson")
    zeros.set(xlabel="fraction of zeros, real", ylabel="fraction of zeros, other cells")
    noise.set(xscale="log", yscale="log", xlabel="mean count of a gene", ylabel="variance")
    for panel in (zeros, noise):
        panel.legend(frameon=False, fontsize=9, markerscale=2)


def interpolation(
    adata: AnnData,
    *,
    key: str = "scld",
    use_rep: str | None = None,
    layer: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the path from one state to another: cells coloured by step, and the line through the mean of every step.

    Parameters
    ----------
    adata
        Answer of ``SCLD.interpolate``: ``.obs["<key>_step"]`` in [0, 1].
    key
        Prefix of the column of steps.
    use_rep
        Entry of ``.obsm`` whose first two principal components are drawn; None takes ``"X_<key>"`` where it exists,
        else normalised expression.
    layer
        Layer of counts, used without a representation.
    ax
        Axes; None makes a figure.

    Returns
    -------
    The Axes.

    Raises
    ------
    SetupError
        When the column of steps or the representation is missing.

    Examples
    --------
    >>> cellsmith.pl.interpolation(model.interpolate({"day": "0"}, {"day": "7"}))  # doctest: +SKIP
    """
    from sklearn.decomposition import PCA

    column = f"{key}_step"
    if column not in adata.obs:
        msg = f"`.obs` has no {column!r}; expected the answer of `interpolate`. {nearest(column, adata.obs.columns)}"
        raise SetupError(msg)
    step = adata.obs[column].to_numpy(dtype=float)
    rep = use_rep or (f"X_{key}" if f"X_{key}" in adata.obsm else None)
    if rep is not None and rep not in adata.obsm:
        msg = f"`.obsm` has no {rep!r}. {nearest(rep, adata.obsm.keys())}"
        raise SetupError(msg)
    if rep is None:
        place = _place(log_normalised(adata, layer=layer, name="adata"), "pca", 0)
    else:
        x = np.asarray(adata.obsm[rep], dtype=float)
        place = PCA(min(2, x.shape[1]), svd_solver="full").fit_transform(x)
        place = place if place.shape[1] == 2 else np.c_[place, np.zeros(len(place))]
    panel = style.panels(ax, 1, size=(6.4, 4.8))[0]
    dots = panel.scatter(*place.T, c=step, cmap="cividis", s=9, alpha=0.55, linewidths=0, rasterized=True)
    steps = np.unique(step)
    path = np.array([place[step == s].mean(axis=0) for s in steps])
    panel.plot(*path.T, color="white", linewidth=4.5, zorder=3, solid_capstyle="round")
    panel.plot(
        *path.T, color=style.SYNTHETIC, linewidth=2.0, zorder=4, marker="o", markersize=4.5, label="mean of a step"
    )
    for name, spot, before in (("start", path[0], path[min(1, len(path) - 1)]), ("end", path[-1], path[-2:][0])):
        away = (spot - before) / max(float(np.linalg.norm(spot - before)), 1e-12)
        panel.annotate(
            name,
            spot,
            xytext=tuple(20 * away),
            ha="center",
            va="center",
            textcoords="offset points",
            weight="bold",
            color=style.INK,
            zorder=5,
            bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
        )
    panel.figure.colorbar(dots, ax=panel, label="step from start (0) to end (1)")
    word = "expression" if rep is None else rep
    panel.set(xlabel=f"PC1 of {word}", ylabel=f"PC2 of {word}", title=f"Interpolation in {len(steps)} steps")
    panel.legend(frameon=False, fontsize=9)
    style.tidy(panel)
    return panel
