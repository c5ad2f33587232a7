"""Names that may be written, and the check of ``key_added``."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellsmith._errors import SetupError
from cellsmith._keys import KEYS, SHARED, SLOTS, Slots, check_name, outputs_of, resolve, slots_of, validate

METHODS = ("scld", "scdd", "sce2tm", "scagc", "scsiameseclu", "dpdcan", "grit", "bcpca")
OTHERS = ("sketch", "dp_pca", "dp_kmeans", "missing_mask", "bc_neighbors")


@pytest.mark.parametrize("method", METHODS + OTHERS)
def test_every_method_has_its_block(method):
    assert "{k}" in KEYS[method].uns


@pytest.mark.parametrize("method", METHODS[:6])
@pytest.mark.parametrize(
    ("slot", "name"),
    [
        ("obs", "k"),
        *(("obs", f"k_{end}") for end in ("confidence", "margin", "entropy", "rejected")),
        ("obs", "is_synthetic"),
        ("obsm", "X_k"),
        ("obsm", "k_proba"),
        ("obsp", "k_connectivities"),
        ("obsp", "k_distances"),
        ("varm", "k_loadings"),
        ("layers", "k_expected"),
        ("uns", "k"),
    ],
)
def test_the_pattern(method, slot, name):
    assert name in [template.replace("{k}", "k") for template in getattr(KEYS[method], slot)]


@pytest.mark.parametrize(
    ("method", "slot", "names"),
    [
        ("scld", "obs", "scld_log_density scld_library scld_step scld_fallback scld_rejected"),
        ("scdd", "obs", "scdd_weight scdd_n_source_cells scdd_library"),
        ("scdd", "obsm", "scdd_code"),
        ("scdd", "layers", "scdd_expected scdd_log"),
        ("sketch", "obs", "sketch_weight sketch_n_source_cells"),
        ("sce2tm", "obsm", "sce2tm_mu"),
        ("sce2tm", "obs", "sce2tm_gene_overlap"),
        ("sce2tm", "uns", "sce2tm_enrich sce2tm_gsea sce2tm_rank sce2tm_survival sce2tm_n_topics"),
        ("scsiameseclu", "uns", "scsiameseclu_markers scsiameseclu_annotation"),
        ("scsiameseclu", "obs", "scsiameseclu_annotation"),
        ("scsiameseclu", "obs", "scsiameseclu_annotation_confidence scsiameseclu_annotation_rejected"),
        ("scsiameseclu", "obsm", "scsiameseclu_annotation_proba"),
        ("dp_pca", "obsm", "X_dp_pca"),
        ("dp_pca", "varm", "dp_pca_loadings"),
        ("dp_kmeans", "obs", "dp_kmeans"),
        ("grit", "obs", "grit grit_raw grit_reason grit_rollup grit_rejected"),
        ("grit", "obsm", "grit_proba"),
        ("bcpca", "obs", "bcpca_overlap bcpca_observed_rate"),
        ("bcpca", "obsm", "X_bcpca X_bcpca_mean X_bcpca_pairwise"),
        ("bcpca", "varm", "bcpca_loadings"),
        ("bc_neighbors", "obsp", "bc_neighbors_connectivities bc_neighbors_distances"),
    ],
)
def test_the_table_of_added_keys(method, slot, names):
    assert {(slot, name) for name in names.split()} <= outputs_of(method, method)


def test_missing_mask_is_named_after_its_pattern():
    for name in ("observed", "missing"):
        assert outputs_of("missing_mask", name) == {("layers", name), ("uns", name)}


def test_grit_writes_no_embedding():
    with pytest.raises(SetupError, match=r"'grit' has no .obsm\['X_\{k\}'\]"):
        resolve("grit", "obsm", "X_{k}", "grit")


def test_templates_are_storable_and_never_meet_inside_a_method():
    for method, slots in KEYS.items():
        for slot in SLOTS:
            names = [template.replace("{k}", "key") for template in getattr(slots, slot)]
            assert len(set(names)) == len(names), method
            assert [check_name(name) for name in names] == names
            assert all("{k}" in t or (slot, t) in SHARED for t in getattr(slots, slot))


def test_resolve_names_the_nearest():
    assert resolve("scld", "obs", "{k}_library", "run1") == "run1_library"
    with pytest.raises(SetupError, match=r"Did you mean '\{k\}_library'"):
        resolve("scld", "obs", "{k}_libary", "run1")
    with pytest.raises(SetupError, match="Did you mean 'scld'"):
        slots_of("scdl")
    with pytest.raises(SetupError, match="Did you mean 'layers'"):
        resolve("scld", "layer", "{k}_expected", "run1")


def test_union_keeps_order():
    assert (Slots(obs=("a", "b")) | Slots(obs=("b", "c"), varm=("v",))) == Slots(obs=("a", "b", "c"), varm=("v",))


@pytest.mark.parametrize(
    "key", ["", " ", "a/b", "/", "a\\b", "..", ".", "__x", "a\0", "\ud800", None, 3, "_index", "_scvi_uuid"]
)
def test_bad_key_is_refused(key):
    with pytest.raises(SetupError, match=r"(?s)key_added is .*expected .*Type for example"):
        validate(key)


def test_the_message_suggests_what_to_type():
    with pytest.raises(SetupError, match="Type for example 'a_b'"):
        validate("a/b")


@given(st.text(string.ascii_letters + string.digits + "_-. äλ", min_size=1).map(lambda text: "k" + text))
def test_a_good_key_is_returned(key):
    assert validate(key) == key
    assert resolve("scld", "obsm", "X_{k}", key) == f"X_{key}"
