"""The quick demo from end to end: files, a page that stands alone, and cells that are counts."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout

import anndata as ad
import numpy as np
import pytest

from cellsmith import cli
from cellsmith.demo import _synthesis_cells as cells
from cellsmith.demo import _synthesis_pictures as pictures
from cellsmith.demo._report import Cell, Table
from cellsmith.demo._run import text_table


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    shown = io.StringIO()
    with redirect_stdout(shown):
        assert cli.main(["demo", "--quick", "--out", str(out), "--seed", "1"]) == 0
    return out, shown.getvalue()


def test_files(result):
    out, _ = result
    assert {p.name for p in out.iterdir()} == {"generated.h5ad", "report.html", "figures"}
    pictures_found = sorted((out / "figures").iterdir())
    assert len(pictures_found) >= 6
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in pictures_found)


def test_page(result):
    out, _ = result
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == len(list((out / "figures").iterdir()))
    assert page.count("<table>") >= 3
    assert not re.findall(r'(?:src|href)\s*=\s*"(?!#|data:)', page)
    assert "<script" not in page
    assert "url(" not in page
    assert page.count("How to read this picture") == page.count("<figure>")
    assert '<section id="synthesis">' in page
    assert '<section id="annotation">' in page
    assert '<section id="missingness">' in page
    assert '<section id="topics">' in page
    assert '<section id="distillation">' in page
    for phrase in ("not a guarantee of privacy", "smooth wrong answer", "GSE96583", "Seed", "scvi-tools"):
        assert phrase in page


def test_generated_cells(result):
    out, _ = result
    adata = ad.read_h5ad(out / "generated.h5ad")
    assert adata.obs["is_synthetic"].all()
    assert adata.X.min() >= 0
    assert not np.any(adata.X.data % 1)
    assert {"cell_type", "condition"} <= set(adata.obs)
    assert {"scld", "scld_evaluation", "scld_privacy"} <= set(adata.uns)


def test_what_the_terminal_shows(result):
    _, text = result
    assert "SCLD" in text
    assert "scVI re-draw" in text
    assert "vote in clusters" in text
    assert "pairwise complete" in text
    assert "all other topics switched" in text
    assert "means of groups" in text
    assert "report.html" in text
    assert "Trainer" not in text


def test_split_shares_no_cell_and_keeps_every_group():
    adata, rare = cells.interferon_cells(0, quick=False)
    assert rare == ["Eryth"]
    parts = cells.split(adata, 0)
    names = [set(p.obs_names) for p in (parts.train, parts.test, parts.control)]
    assert sum(map(len, names)) == len(set.union(*names)) == adata.n_obs
    for part, share in ((parts.train, 0.55), (parts.test, 0.25), (parts.control, 0.2)):
        assert part.n_obs / adata.n_obs == pytest.approx(share, abs=0.01)
        assert part.obs.groupby(["cell_type", "condition"], observed=False).size().min() > 0
    assert list(cells.split(adata, 0).test.obs_names) == list(parts.test.obs_names)
    assert list(cells.split(adata, 1).test.obs_names) != list(parts.test.obs_names)


def test_fold_changes_and_slope():
    adata, _ = cells.interferon_cells(0, quick=False)
    change = pictures.fold_changes(adata)
    assert change.loc["CD14 Mono", "CXCL10"] > 4
    assert abs(change.loc["CD14 Mono", "CD74"]) < 1.5
    x = np.linspace(-2, 2, 9)
    assert pictures.slope(x, 0.5 * x) == pytest.approx(0.5)


def test_text_table():
    table = Table("T", ["name", "a"], [["long name", Cell("1.0", "good")], ["x", "22.0"]])
    assert text_table(table).splitlines() == ["T", "name          a", "-" * 15, "long name   1.0", "x          22.0"]
