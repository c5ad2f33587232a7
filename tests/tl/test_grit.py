"""The doors of GRIT: one line from scores to labels, all or nothing, and nothing else touched."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

import cellsmith
from cellsmith._errors import CellsmithError, DataWarning, SetupError
from cellsmith.math import graph
from cellsmith.model import GRIT
from cellsmith.model.grit.sources import Scores, from_labels

TYPES = ["B cell", "NK/T", "T cell", "monocyte"]


def data(n: int = 200, *, seed: int = 0) -> AnnData:
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 4, n)
    rep = (6.0 * np.eye(4, 5)[kind] + rng.normal(size=(n, 5))).astype(np.float32)
    adata = AnnData(rng.poisson(1.0, (n, 6)).astype(np.float32), obsm={"X_pca": rep})
    logits = 1.2 * np.eye(4)[kind] + rng.normal(size=(n, 4))
    p = np.exp(logits)
    adata.obsm["scores"] = p / p.sum(axis=1, keepdims=True)
    adata.obs["truth"] = pd.Categorical.from_codes(kind, TYPES)
    adata.obs["anchors"] = np.where(rng.random(n) < 0.7, adata.obs["truth"].astype(object), "unknown")
    adata.obs["batch"] = np.array(["x", "y"])[rng.integers(0, 2, n)]
    adata.uns["scores"] = {"classes": TYPES}
    return adata


def digest(adata: AnnData, *, but: str = "grit") -> dict[str, str]:
    """Everything in the object that a method did not write, by content."""
    found: dict[str, Any] = {"X": adata.X.tobytes(), "names": "".join(adata.obs_names)}
    for slot in ("obs", "obsm", "obsp", "uns"):
        for name in getattr(adata, slot):
            if not name.startswith(but):
                value = getattr(adata, slot)[name]
                value = value.toarray() if sp.issparse(value) else value
                found[f"{slot}/{name}"] = repr(value) if slot in ("obs", "uns") else value.tobytes()
    return {k: hashlib.sha256(v if isinstance(v, bytes) else str(v).encode()).hexdigest() for k, v in found.items()}


@pytest.fixture(scope="module")
def done() -> AnnData:
    adata = data()
    cellsmith.tl.grit(adata, "scores", labels_key="anchors", anchors="calibrate", batch_key="batch")
    return adata


def test_one_line_writes_labels_and_the_record(done: AnnData) -> None:
    columns = {"grit", "grit_raw", "grit_confidence", "grit_margin", "grit_entropy"}
    assert columns <= set(done.obs)
    assert list(done.obs["grit"].cat.categories) == list(done.obs["grit_raw"].cat.categories) == TYPES
    raw, refined = ((done.obs[c] == done.obs["truth"]).mean() for c in ("grit_raw", "grit"))
    assert refined > raw + 0.15
    assert done.obsm["grit_proba"].shape == (200, 4)
    assert done.obsm["grit_proba"].dtype == np.float32
    assert "X_grit" not in done.obsm
    block = done.uns["grit"]
    assert list(block["classes"]) == TYPES
    assert block["flow"].sum() == 200
    assert block["flow"][0].sum() == (done.obs["grit_raw"] == "B cell").sum()
    assert block["solve"]["uncertified"] == 0
    assert block["solve"]["bound_max"] < 1e-8
    assert block["calibrated"]
    assert block["source"] == "obsm:scores"
    assert block["params"]["smoothness_weight"] == 5.0
    assert block["provenance"]["method"] == "grit"
    assert block["provenance"]["n_vars"] == 6
    assert block["provenance"]["inputs"]["scores_key"] == "scores"
    for column in ("grit_confidence", "grit_margin", "grit_entropy"):
        assert done.obs[column].between(0, 1).all()


def test_nothing_else_is_touched() -> None:
    adata = data()
    before = digest(adata)
    arrays = {name: adata.obsm[name] for name in adata.obsm}
    cellsmith.tl.grit(adata, "scores", labels_key="anchors", batch_key="batch")
    cellsmith.tl.grit(adata, "scores", neighbors_key="grit", key_added="grit_2")
    assert digest(adata) == before
    assert all(
        adata.obsm[name] is values or np.shares_memory(adata.obsm[name], values) for name, values in arrays.items()
    )
    assert not any(name.startswith("_scvi") for name in (*adata.obs, *adata.uns))


def test_the_skeleton_shares_the_arrays_and_is_forgotten() -> None:
    from cellsmith.tl._grit import _resolve, _skeleton

    adata = data()
    setup = {"neighbors_key": None, "use_rep": "X_pca", "labels_key": None, "batch_key": "batch"}
    skeleton, key = _skeleton(adata, _resolve(adata, "scores", None), key="scores", setup=setup, fidelity="uniform")
    assert np.shares_memory(skeleton.obsm[key], adata.obsm["scores"])
    assert np.shares_memory(skeleton.obsm["X_pca"], adata.obsm["X_pca"])
    assert skeleton.X is None
    stores = (GRIT._setup_adata_manager_store, GRIT._per_instance_manager_store)
    before = [set(store) for store in stores]
    cellsmith.tl.grit(adata, "scores")
    with pytest.raises(CellsmithError):
        cellsmith.tl.grit(adata, "scores", smoothness_weight=-1)
    assert all(set(store) <= known for store, known in zip(stores, before, strict=True))


def test_the_graph_that_was_built_serves_scanpy(done: AnnData) -> None:
    block = done.uns["grit"]
    assert block["connectivities_key"] == "grit_connectivities"
    assert block["params"]["method"] == "umap"
    expected = graph.fuzzy_union(*graph.knn_table(done.obsm["X_pca"], 14, seed=0))
    assert (done.obsp["grit_connectivities"] != expected).nnz == 0
    assert done.obsp["grit_distances"].nnz == 200 * 14
    cellsmith.tl.grit(adata := done.copy(), "scores", neighbors_key="grit", key_added="again")
    np.testing.assert_allclose(adata.obsm["again_proba"], done.obsm["grit_proba"], atol=1e-6)
    assert "again_connectivities" not in adata.obsp


def test_a_view_and_an_object_without_counts(done: AnnData) -> None:
    adata = data()
    view = adata[:150]
    cellsmith.tl.grit(view, "scores")
    assert "grit" in view.obs
    assert "grit" not in adata.obs
    bare = AnnData(obsm=dict(adata.obsm), uns={"scores": {"classes": TYPES}})
    cellsmith.tl.grit(bare, "scores")
    assert bare.obs["grit"].notna().all()


def test_backed_object_is_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data().write_h5ad(tmp_path / "a.h5ad")
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    monkeypatch.setattr(AnnData, "X", property(lambda self: pytest.fail("X was read")))
    cellsmith.tl.grit(backed, "scores")
    assert "grit" in backed.obs


@pytest.mark.parametrize("form", ["array", "frame", "sparse", "object", "function", "labels", "labels scores"])
def test_every_kind_of_scores(form: str) -> None:
    adata = data()
    values = adata.obsm["scores"]
    hard = pd.Series(np.array(TYPES, dtype=object)[values.argmax(axis=1)], index=adata.obs_names)
    if form.startswith("labels"):
        values = np.eye(4)[values.argmax(axis=1)]
    frame = pd.DataFrame(values, index=adata.obs_names, columns=TYPES)
    cellsmith.tl.grit(expected := data(), values, classes=TYPES)
    given, classes = {
        "array": (values, TYPES),
        "frame": (frame.iloc[::-1], None),
        "sparse": (sp.csr_matrix(values), TYPES),
        "object": (Scores(values, tuple(TYPES), "prob"), None),
        "function": (lambda a: Scores(a.obsm["scores"], tuple(TYPES), "prob"), None),
        "labels": (hard.iloc[::-1], None),
        "labels scores": (from_labels(hard.iloc[::-1]), None),
    }[form]
    cellsmith.tl.grit(adata, given, classes=classes)
    np.testing.assert_array_equal(adata.obsm["grit_proba"], expected.obsm["grit_proba"])
    assert adata.obs["grit"].tolist() == expected.obs["grit"].tolist()


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        ("score", {}, r"Did you mean 'scores'"),
        ("truth", {}, r"from_labels\(adata\.obs\['truth'\]\)"),
        (np.ones((3, 4)), {"classes": TYPES}, r"3 rows; expected 200"),
        (np.ones((200, 4)), {}, "no class names"),
        (np.ones((200, 4)), {"classes": ["a"]}, "1 class names"),
        (pd.DataFrame(np.ones((200, 2)), columns=["a", "b"]), {}, "lacks 200 of 200 cells"),
        ("scores", {"labels_key": "anchor"}, "Did you mean 'anchors'"),
        ("scores", {"fidelity": "trust"}, "'trust' is not a column"),
        ("scores", {"neighbors_key": "neighbors"}, "names no graph"),
        ("scores", {"use_rep": "X_pac"}, "Did you mean 'X_pca'"),
        ("scores", {"key_added": "a/b"}, "slash"),
        ("scores", {"variant": "paper"}, "no default smoothness_weight"),
        ("scores", {"space": "similarity"}, r"score_temperature=0\.05"),
        ("scores", {"tol": 0.0}, "tol=0"),
        ("scores", {"rng": -1}, "seed"),
    ],
)
def test_a_failure_writes_nothing(scores: Any, options: dict[str, Any], message: str) -> None:
    adata = data()
    if isinstance(scores, pd.DataFrame):
        scores.index = [f"other{i}" for i in range(200)]
    before = digest(adata, but="nothing")
    with pytest.raises(CellsmithError, match=message):
        cellsmith.tl.grit(adata, scores, **options)
    assert digest(adata, but="nothing") == before


def test_duplicate_names_and_missing_cells_of_a_table() -> None:
    adata = data()
    frame = pd.DataFrame(adata.obsm["scores"], index=adata.obs_names, columns=TYPES)
    with pytest.raises(SetupError, match=r"lacks 2 of 200 cells, first '3', '7'"):
        cellsmith.tl.grit(adata, frame.drop(index=["3", "7"]))
    extra = pd.concat([frame, frame.iloc[:2].set_index(pd.Index(["new1", "new2"]))])
    cellsmith.tl.grit(adata, extra)
    with pytest.raises(SetupError, match=r"index of scores has duplicates \('0'\)"):
        cellsmith.tl.grit(adata, pd.concat([frame, frame.iloc[:1]]))
    adata.obs_names = ["0", *adata.obs_names[:-1]]
    with pytest.raises(SetupError, match="obs_names has duplicates"):
        cellsmith.tl.grit(adata, frame)


def test_own_results_are_replaced_and_others_are_not() -> None:
    adata = data()
    adata.obs["mine"] = 1
    with pytest.raises(SetupError, match="overwrite=True"):
        cellsmith.tl.grit(adata, "scores", key_added="mine")
    assert adata.obs["mine"].eq(1).all()
    cellsmith.tl.grit(adata, "scores")
    cellsmith.tl.grit(adata, "scores", smoothness_weight=1.0)
    assert adata.uns["grit"]["params"]["smoothness_weight"] == 1.0
    cellsmith.tl.grit(adata, "scores", key_added="mine", overwrite=True)
    assert adata.obs["mine"].dtype == "category"


def test_copy_and_random_state() -> None:
    adata = data()
    returned = cellsmith.tl.grit(adata, "scores", copy=True, labels_key="anchors", random_state=3)
    assert "grit" not in adata.obs
    assert returned.uns["grit"]["provenance"]["seed"] == 3
    assert cellsmith.tl.grit(adata, "scores", labels_key="anchors", rng=3) is None
    np.testing.assert_array_equal(adata.obsm["grit_proba"], returned.obsm["grit_proba"])
    cellsmith.tl.grit(adata, "scores", labels_key="anchors", rng=4)
    assert (adata.obsm["grit_proba"] != returned.obsm["grit_proba"]).any()


def test_split_scores_calibrate() -> None:
    adata, rng = data(), np.random.default_rng(1)
    for name in ("one", "two"):
        noisy = np.clip(adata.obsm["scores"] + 0.1 * rng.normal(size=(200, 4)), 0.01, 1)
        adata.obsm[name] = noisy / noisy.sum(axis=1, keepdims=True)
    cellsmith.tl.grit(adata, "scores", split_scores=("one", "two"))
    assert adata.uns["grit"]["calibration"]["source"] == "split halves"
    assert adata.uns["grit"]["calibrated"]


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_results_survive_a_file(form: str, done: AnnData, tmp_path: Path) -> None:
    adata = done.copy()
    cellsmith.tl.reject(adata, level=0.2)
    getattr(adata, f"write_{form}")(tmp_path / f"a.{form}")
    back = getattr(anndata, f"read_{form}")(tmp_path / f"a.{form}")
    for column in adata.obs:
        assert back.obs[column].tolist() == adata.obs[column].tolist()
    np.testing.assert_array_equal(back.obsm["grit_proba"], adata.obsm["grit_proba"])
    assert set(back.uns["grit"]) == set(adata.uns["grit"])
    assert back.uns["grit"]["graph"]["fingerprint"] == adata.uns["grit"]["graph"]["fingerprint"]
    cellsmith.tl.reject(back, level=0.2)  # reads what was stored
    assert back.obs["grit_rejected"].tolist() == adata.obs["grit_rejected"].tolist()


def test_reject_with_anchors(done: AnnData) -> None:
    adata = done.copy()
    cellsmith.tl.reject(adata, level=0.2)
    accepted = adata[~adata.obs["grit_rejected"]]
    assert accepted.n_obs
    assert (accepted.obs["grit"] == accepted.obs["truth"]).mean() >= 0.8
    record = adata.uns["grit"]["rejection"]
    assert record["target"] == "selective"
    assert record["assumption"] == "exchangeable anchors"
    assert record["m"] == (adata.obs["anchors"] != "unknown").sum() - 50  # which fitted the temperature
    assert list(adata.obs["grit_reason"].cat.categories) == ["", "ambiguous", "novel"]
    assert (adata.obs["grit_reason"] == "").sum() == accepted.n_obs
    assert "flow" in adata.uns["grit"]
    cellsmith.tl.reject(adata, level=0.2, by="batch", target="accepted_wrong")
    assert list(adata.uns["grit"]["rejection"]["groups"]["name"]) == ["x", "y"] or set(
        adata.uns["grit"]["rejection"]["groups"]["name"]
    ) == {"x", "y"}


def test_reject_never_calibrates_on_clamped_anchors() -> None:
    adata = data()
    cellsmith.tl.grit(adata, "scores", labels_key="anchors")
    clamped = adata.uns["grit"]["calibration"]["clamped"]
    cellsmith.tl.reject(adata, level=0.3)
    assert adata.uns["grit"]["rejection"]["m"] == (adata.obs["anchors"] != "unknown").sum() - len(clamped)
    cellsmith.tl.grit(adata, "scores", labels_key="anchors", anchors="clamp")
    with pytest.raises(SetupError, match="of them clamped"):
        cellsmith.tl.reject(adata)


def test_reject_without_anchors(done: AnnData) -> None:
    adata = data()
    cellsmith.tl.grit(adata, "scores")
    with pytest.raises(SetupError, match=r"labels_key=.*threshold=0\.5"):
        cellsmith.tl.reject(adata)
    with pytest.raises(SetupError, match="Did you mean 'anchors'"):
        cellsmith.tl.reject(adata, labels_key="anchor")
    cellsmith.tl.reject(adata, quantile=0.25)
    assert adata.obs["grit_rejected"].sum() == 50
    assert "none" in adata.uns["grit"]["rejection"]["guarantee"]
    cellsmith.tl.reject(adata, target="entropy", threshold=0.9)
    assert adata.uns["grit"]["rejection"]["target"] == "entropy"
    cellsmith.tl.reject(adata, labels_key="anchors", level=0.2)
    assert adata.uns["grit"]["rejection"]["m"] > 100
    returned = cellsmith.tl.reject(adata, threshold=2.0, copy=True)
    assert returned.obs["grit_rejected"].all()
    assert not adata.obs["grit_rejected"].all()


def test_reject_says_when_nothing_can_be_accepted(done: AnnData) -> None:
    adata = done.copy()
    with pytest.warns(DataWarning, match="nothing can be accepted"):
        cellsmith.tl.reject(adata, level=0.001)
    assert adata.obs["grit_rejected"].all()
    assert "of 2525" in adata.uns["grit"]["rejection"]["reason"]


def test_reject_notices_other_cells_and_another_graph(done: AnnData) -> None:
    with pytest.raises(SetupError, match="not those that were refined"):
        cellsmith.tl.reject(done[:100].copy(), threshold=0.5)
    adata = done.copy()
    adata.obsp["grit_connectivities"] = 2 * adata.obsp["grit_connectivities"]
    with pytest.warns(DataWarning, match="fingerprint differs"):
        cellsmith.tl.reject(adata, threshold=0.5)
    with pytest.raises(SetupError, match="does not exist"):
        cellsmith.tl.reject(data())


OBO = """format-version: 1.2
data-version: 2024-01

[Term]
id: CL:0
name: cell

[Term]
id: CL:1
name: lymphocyte
is_a: CL:0

[Term]
id: CL:2
name: B cell
is_a: CL:1

[Term]
id: CL:3
name: T cell
is_a: CL:1

[Term]
id: CL:4
name: mono
synonym: "monocyte" EXACT []
is_a: CL:0
"""


def test_rollup(done: AnnData, tmp_path: Path) -> None:
    file = tmp_path / "cl.obo"
    file.write_text(OBO, encoding="utf-8")
    adata = done.copy()
    # three cells between B and T, whose sum alone is large
    adata.obsm["grit_proba"][:3] = [0.48, 0.02, 0.48, 0.02]
    with pytest.warns(DataWarning, match="NK/T"):
        cellsmith.tl.rollup(adata, ontology=file, mass=0.7)
    record, t = adata.uns["grit"]["rollup"], adata.uns["grit"]["calibration"]["temperature"]
    p = adata.obsm["grit_proba"] ** (1 / t)
    p /= p.sum(axis=1, keepdims=True)
    assert record["calibrated"]
    assert record["version"] == "2024-01"
    assert len(record["sha256"]) == 64
    assert list(record["unmapped"]) == ["NK/T"]
    sure = p[:, 0] > 0.7
    assert sure.any()
    assert set(adata.obs["grit_rollup"][sure]) == {"B cell"}
    assert list(adata.obs["grit_rollup"][:3]) == ["lymphocyte"] * 3
    assert len(record["ids"]) == 200
    adata.write_h5ad(tmp_path / "r.h5ad")
    assert anndata.read_h5ad(tmp_path / "r.h5ad").obs["grit_rollup"].tolist() == adata.obs["grit_rollup"].tolist()


def test_rollup_refuses(done: AnnData, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no file"):
        cellsmith.tl.rollup(done.copy(), ontology=tmp_path / "none.obo")
    file = tmp_path / "circle.obo"
    file.write_text(OBO.replace("name: cell\n", "name: cell\nis_a: CL:1\n"), encoding="utf-8")
    with pytest.raises(SetupError, match="circle"):
        cellsmith.tl.rollup(done.copy(), ontology=file)
