"""What the pictures of synthesis show: panels, labels, artists and the numbers they carry."""

from __future__ import annotations

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.collections import PathCollection
from scipy.integrate import trapezoid

from cellsmith import pl
from cellsmith._errors import SetupError
from cellsmith.datasets import toy_counts
from cellsmith.metrics import evaluate_synthetic, privacy_report
from cellsmith.pl._synthesis_scores import _END, _number, _used

METRICS = ["mmd", "w2", "precision", "lfc_slope", "de_overlap", "ks_library", "zero_fraction_mae", "tstr"]


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def cells():
    adata = toy_counts(700, 100, n_types=3, rng=1)
    return [adata[a:b].copy() for a, b in ((0, 250), (250, 400), (400, 550), (550, 700))]


@pytest.fixture(scope="module")
def report(cells):
    train, test, control, fresh = cells
    return evaluate_synthetic(test, fresh, train, control=control, labels_key="cell_type", metrics=METRICS)


@pytest.fixture(scope="module")
def private(cells):
    return privacy_report(cells[0], cells[1], cells[3], n_bootstrap=20)


def texts(ax) -> list[str]:
    return [t.get_text() for t in ax.texts]


def legend(ax) -> list[str]:
    return [t.get_text() for t in ax.get_legend().get_texts()]


def clouds(ax) -> list[PathCollection]:
    return [c for c in ax.collections if isinstance(c, PathCollection)]


def test_report_has_one_row_a_judged_metric(report):
    ax = pl.synthetic_report(report)
    names = [t.get_text() for t in ax.get_yticklabels()]
    assert names[::-1] == [m for m in report.table["metric"] if m in report.bounds]
    assert "tstr" not in names  # shown in the table, judged nowhere
    shown = texts(ax)
    row = report.table.set_index("metric").loc["w2"]
    assert f"{row['value']:.3f}" in shown
    assert f"{row['control']:.3f}" in shown
    assert f"≤ {_number(report.bounds['w2'][1])}" in shown
    assert "0.930 – 1.070" in shown
    inside = sum(p is True for p in report.table["passed"])
    assert ax.get_title(loc="left") == f"{inside} of {len(names)} scores in the accepted range"
    assert legend(ax) == ["synthetic, accepted", "synthetic, outside", "off the scale", "control (real cells)"]


def test_report_puts_values_where_the_band_says(report):
    ax = pl.synthetic_report(report)
    drawn = {(round(float(x), 6), round(float(y))) for c in clouds(ax) for x, y in c.get_offsets()}
    names = [t.get_text() for t in ax.get_yticklabels()]
    rows = report.table.set_index("metric")
    w2 = rows.loc["w2"]
    used = (w2["value"] - w2["control"]) / (report.bounds["w2"][1] - w2["control"])
    assert (round(min(max(used, -0.6), _END), 6), names.index("w2")) in drawn
    assert (0.0, names.index("w2")) in drawn  # the control is the origin
    assert len(clouds(ax)) == 2 * len(names)


def test_part_of_the_allowed_deviation():
    inf = float("inf")
    assert _used(10.0, 8.0, (-inf, 12.0)) == pytest.approx(0.5)
    assert _used(0.90, 0.98, (0.94, inf)) == pytest.approx(2.0)
    assert _used(0.99, 0.98, (0.94, inf)) == pytest.approx(-0.25)
    assert _used(1.14, 1.0, (0.93, 1.07)) == pytest.approx(2.0)
    assert _used(0.0, 0.0, (-inf, 0.0)) == 0.0  # no copies allowed, none found
    assert _used(0.3, 0.0, (-inf, 0.0)) > _END
    assert np.isnan(_used(float("nan"), 0.1, (-inf, 1.0)))
    assert _number(-0.0001) == "0.000"
    assert _number(12.345) == "12.35" or _number(12.345) == "12.34"
    assert _number(float("nan")) == "n/a"


def test_report_says_what_is_not_available(cells):
    train, test, control, fresh = (c.copy() for c in cells)
    for x in (train, test, control):
        x.layers["counts"] = x.X
    fresh.X = fresh.X.log1p()
    got = evaluate_synthetic(test, fresh, control=control, layer="counts", metrics=["ks_library", "mmd"])
    ax = pl.synthetic_report(got)
    assert "not available" in texts(ax)
    assert "n/a" in texts(ax)
    axes = pl.synthetic_genes(got)
    assert "synthetic values are no counts" in texts(axes[0])
    assert legend(axes[2]) == ["real", "real, control"]


def test_lfc_draws_every_fold_change_and_the_slope(report):
    ax = pl.synthetic_lfc(report)
    offsets = [c.get_offsets() for c in clouds(ax)]
    assert len(offsets) == 3
    np.testing.assert_allclose(np.vstack(offsets), report.lfc[["real", "synthetic"]].to_numpy())
    slope = report["lfc_slope"]
    assert legend(ax) == ["type_0", "type_1", "type_2", "equal", f"slope {slope:.2f}"]
    line = ax.get_lines()[-1].get_xydata()
    assert line[1, 1] / line[1, 0] == pytest.approx(slope)
    assert ax.get_title(loc="left").startswith(f"Fold changes: slope {slope:.2f} (other real cells: ")
    assert ax.get_xlabel() == "log fold change in real cells"


def test_privacy_draws_distances_and_the_attack(private):
    near, attack = pl.privacy(private)
    assert legend(near) == ["to training cells", "to hold-out cells"]
    for line, name in zip(near.get_lines(), ("distance_train", "distance_holdout"), strict=True):
        x, y = line.get_data()
        np.testing.assert_allclose(x, private.curves[name])
        assert y[-1] == 1.0
    assert "exact copies of a training cell: 0.0%" in texts(near)
    auc = private["membership_auc"]
    low, high = private.intervals["membership_auc"]
    assert legend(attack)[0] == f"attack, AUC {auc:.2f}, 95 % {low:.2f}-{high:.2f}"
    x, y = attack.get_lines()[0].get_data()
    assert trapezoid(y, x) == pytest.approx(auc, abs=1e-6)


def test_pictures_of_stored_reports_are_the_same(report, private, cells, tmp_path):
    adata = cells[1].copy()
    adata.uns["scld_evaluation"], adata.uns["scld_privacy"] = report.to_uns(), private.to_uns()
    adata.write_h5ad(tmp_path / "x.h5ad")
    stored = ad.read_h5ad(tmp_path / "x.h5ad")
    assert texts(pl.synthetic_report(stored)) == texts(pl.synthetic_report(report))
    assert legend(pl.synthetic_lfc(stored)) == legend(pl.synthetic_lfc(report))
    assert legend(pl.privacy(stored)[1]) == legend(pl.privacy(private)[1])
    assert texts(pl.synthetic_report(report.to_uns())) == texts(pl.synthetic_report(report))
    assert len(pl.synthetic_report(private).get_yticklabels()) == 3
    with pytest.raises(SetupError, match=r"`.uns` has no 'other'.*evaluate_synthetic\(\.\.\.\)\.to_uns\(\)"):
        pl.synthetic_report(stored, key="other")
    with pytest.raises(SetupError, match=r"Found list; expected the answer of `cellsmith.metrics.evaluate_synthetic`"):
        pl.synthetic_report([1, 2])
    with pytest.raises(SetupError, match="holds no distances"):
        pl.privacy(report)
    with pytest.raises(SetupError, match="holds no fold changes"):
        pl.synthetic_lfc(private)


def test_genes_from_a_report_and_from_cells(report, cells):
    axes = pl.synthetic_genes(report)
    assert [a.get_title(loc="left") for a in axes] == [
        "Zeros",
        "Mean and variance",
        "Sequencing depth",
        "Complexity of a cell",
    ]
    assert legend(axes[0]) == ["equal", "real, control", "synthetic"]
    assert legend(axes[2]) == ["real", "real, control", "synthetic"]
    points = clouds(axes[0])[-1].get_offsets()
    expected = 1 - np.asarray((cells[3].X > 0).mean(axis=0)).ravel()
    np.testing.assert_allclose(points[:, 1], expected)
    line = axes[2].get_lines()[0]
    x, y = line.get_data()
    assert trapezoid(y, np.log10(x)) == pytest.approx(1.0, abs=0.02)  # a density
    direct = pl.synthetic_genes(cells[1], cells[3])
    assert legend(direct[2]) == ["real", "synthetic"]
    np.testing.assert_allclose(clouds(direct[0])[0].get_offsets()[:, 1], expected)
    with pytest.raises(SetupError, match="need the same genes"):
        pl.synthetic_genes(cells[1], cells[3][:, :50])


def test_overview_shares_the_map(cells):
    real, synthetic = pl.synthetic_overview(cells[1], cells[3])
    assert real.get_title() == "real (150 cells)"
    assert synthetic.get_title() == "synthetic (150 cells)"
    assert real.get_xlim() == synthetic.get_xlim()
    assert clouds(real)[0].get_offsets().shape == (150, 2)
    assert len(clouds(synthetic)) == 1
    assert legend(synthetic) == ["outline of real cells"]
    assert len(synthetic.collections) > 1  # density and the outline
    _, coloured = pl.synthetic_overview(cells[1], cells[3], color="cell_type", max_cells=100)
    assert legend(coloured) == ["type_0", "type_1", "type_2"]
    assert sum(len(c.get_offsets()) for c in clouds(coloured)) == 100
    again = pl.synthetic_overview(cells[1], cells[3])[0]
    np.testing.assert_array_equal(clouds(again)[0].get_offsets(), clouds(real)[0].get_offsets())
    with pytest.raises(SetupError, match=r"`basis` is 'tsne'"):
        pl.synthetic_overview(cells[1], cells[3], basis="tsne")
    with pytest.raises(SetupError, match="100 genes, `synthetic` 40; 40 are in both"):
        pl.synthetic_overview(cells[1], cells[3][:, :40])
    with pytest.raises(SetupError, match=r"`real.obs` has no column 'kind'"):
        pl.synthetic_overview(cells[1], cells[3], color="kind")


def test_interpolation_draws_the_mean_of_every_step(cells):
    adata = cells[1].copy()
    step = np.repeat(np.linspace(0, 1, 5), 30)
    latent = np.random.default_rng(0).normal(size=(150, 4)) * 0.1
    latent[:, 2] += 5 * step
    adata.obs["scld_step"] = step
    adata.obsm["X_scld"] = latent
    ax = pl.interpolation(adata)
    path = ax.get_lines()[-1].get_xydata()
    assert path.shape == (5, 2)
    assert np.ptp(path[:, 0]) == pytest.approx(5, abs=0.1)
    assert texts(ax) == ["start", "end"]
    assert clouds(ax)[0].get_array().tolist() == step.tolist()
    assert ax.get_xlabel() == "PC1 of X_scld"
    del adata.obsm["X_scld"]
    assert pl.interpolation(adata).get_xlabel() == "PC1 of expression"
    with pytest.raises(SetupError, match=r"`.obs` has no 'other_step'"):
        pl.interpolation(adata, key="other")
    with pytest.raises(SetupError, match=r"`.obsm` has no 'X_pca'"):
        pl.interpolation(adata, use_rep="X_pca")


HISTORIES = {
    "autoencode/train_loss": np.linspace(9, 1, 20),
    "autoencode/validation_loss": np.abs(np.arange(20) - 12.0) + 2,
    "autoencode/kl": np.ones(20),
    "diffuse/train_loss": np.geomspace(100, 1, 20),
    "diffuse/train_loss_step": np.ones(500),
}


class Trained:
    history_ = {k: pd.DataFrame({k: v}, index=pd.RangeIndex(len(v), name="epoch")) for k, v in HISTORIES.items()}


def test_training_history_has_one_panel_a_stage(cells):
    first, second = pl.training_history(Trained())
    assert (first.get_title(loc="left"), second.get_title(loc="left")) == ("autoencode", "diffuse")
    assert legend(first) == ["training", "validation (lowest 2)"]
    assert legend(second) == ["training"]
    assert second.get_yscale() == "log"
    np.testing.assert_allclose(first.get_lines()[0].get_ydata(), HISTORIES["autoencode/train_loss"])
    assert first.get_lines()[-1].get_xydata().tolist() == [[12.0, 2.0]]
    nested: dict = {}
    for name, values in HISTORIES.items():
        stage, metric = name.split("/")
        nested.setdefault(stage, {})[metric] = values
    adata = cells[1].copy()
    adata.uns["scld"] = {"provenance": {"histories": nested}}
    for source in (adata, HISTORIES, nested):
        assert [legend(a) for a in pl.training_history(source)] == [legend(first), legend(second)]
    (only,) = pl.training_history(HISTORIES, metrics=["kl"])
    assert legend(only) == ["kl"]
    with pytest.raises(SetupError, match=r"No history to draw for metrics=\['k'\]"):
        pl.training_history(HISTORIES, metrics=["k"])
    with pytest.raises(SetupError, match=r"holds no training histories"):
        pl.training_history(cells[0])
    with pytest.raises(SetupError, match="without histories"):
        pl.training_history(object())


def test_axes_of_the_caller_are_used(report, private):
    figure, grid = plt.subplots(2, 4)
    assert pl.synthetic_report(report, ax=grid[0, 0]) is grid[0, 0]
    assert list(pl.privacy(private, ax=grid[0, 1:3])) == list(grid[0, 1:3])
    assert list(pl.synthetic_genes(report, ax=grid[1])) == list(grid[1])
    assert plt.get_fignums() == [figure.number]
    with pytest.raises(SetupError, match="`ax` holds 1 Axes; this picture has 2 panels"):
        pl.privacy(private, ax=grid[0, 0])


def test_importing_pictures_does_not_import_matplotlib():
    import subprocess
    import sys

    code = "import sys, cellsmith.pl as pl; pl.synthetic_report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
