from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from cellsmith._errors import SetupError
from cellsmith.math import counts
from cellsmith.math.counts import (
    LogLibrary,
    binomial_split,
    binomial_thin,
    dispersion_moments,
    empirical_library,
    exact_total,
    first_bad_count,
    largest_remainder,
    library_totals,
    lognormal_library,
    nb_counts,
    refit_dispersion,
    shrink_dispersion,
)

FORMS = {
    "dense": np.asarray,
    "csr": sp.csr_matrix,
    "csc": sp.csc_matrix,
    "coo": sp.coo_matrix,
    "lil": sp.lil_matrix,
    "csr_array": sp.csr_array,
}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def draw(n: int = 40, n_genes: int = 30) -> np.ndarray:
    return rng().poisson(1.0, (n, n_genes)).astype(np.float32)


@pytest.mark.parametrize("form", FORMS)
class TestFirstBadCount:
    def test_counts_pass(self, form):
        assert first_bad_count(FORMS[form](draw())) is None
        assert first_bad_count(FORMS[form](draw().astype(np.int64))) is None

    @pytest.mark.parametrize("value", [-1.0, 0.5, np.nan, np.inf, -np.inf])
    def test_first_offender_in_row_major_order(self, form, value):
        x = draw()
        x[[7, 7, 3], [2, 20, 25]] = value
        row, column, found = first_bad_count(FORMS[form](x))
        assert (row, column) == (3, 25)
        assert found == value or np.isnan(value)

    def test_negative_integers(self, form):
        x = draw().astype(np.int64)
        x[4, 1] = -2
        assert first_bad_count(FORMS[form](x)) == (4, 1, -2.0)


def test_bad_count_is_found_in_later_blocks(monkeypatch):
    monkeypatch.setattr(counts.validation, "_BLOCK", 50)
    x = draw()
    x[[30, 31], [5, 0]] = 0.25
    for make in FORMS.values():
        assert first_bad_count(make(x)) == (30, 5, 0.25)


def test_unsorted_rows_across_blocks(monkeypatch):
    monkeypatch.setattr(counts.validation, "_BLOCK", 2)
    x = sp.csr_matrix((np.array([1, 1, 0.5, 1, 0.25]), np.array([5, 4, 3, 2, 1]), np.array([0, 5])), shape=(1, 6))
    assert first_bad_count(x) == (0, 1, 0.25)


def test_matrices_on_disk(tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    anndata = pytest.importorskip("anndata")
    monkeypatch.setattr(counts.validation, "_BLOCK", 100)
    x = draw()
    x[12, 3] = 0.5
    for name, make in (("csr", sp.csr_matrix), ("csc", sp.csc_matrix), ("dense", np.asarray)):
        path = tmp_path / f"{name}.h5ad"
        anndata.AnnData(make(x)).write_h5ad(path)
        with h5py.File(path) as file:
            stored = file["X"] if name == "dense" else anndata.io.sparse_dataset(file["X"])
            assert first_bad_count(stored) == (12, 3, 0.5)
            np.testing.assert_allclose(library_totals(stored), x.sum(1))


@pytest.mark.parametrize("form", FORMS)
def test_library_totals(form):
    total = library_totals(FORMS[form](draw()))
    assert total.dtype == np.float64
    np.testing.assert_array_equal(total, draw().sum(1))


@pytest.mark.parametrize("form", ["dense", "csr", "csc"])
class TestThinning:
    def test_split_sums_to_the_whole(self, form):
        x = FORMS[form](draw())
        a, b = binomial_split(x, generator=rng())
        whole = a + b
        np.testing.assert_array_equal(whole.toarray() if sp.issparse(whole) else whole, draw())
        assert a.dtype == x.dtype

    def test_input_is_untouched_and_zeros_stay(self, form):
        x = FORMS[form](draw())
        out = binomial_thin(x, 0.3, generator=rng())
        dense = out.toarray() if sp.issparse(out) else out
        np.testing.assert_array_equal(x.toarray() if sp.issparse(x) else x, draw())
        assert (dense <= draw()).all()
        assert (dense >= 0).all()

    def test_one_fraction_a_cell(self, form):
        share = np.repeat([0.0, 1.0], 20)
        out = binomial_thin(FORMS[form](draw()), share, generator=rng())
        np.testing.assert_array_equal(library_totals(out), draw().sum(1) * share)

    def test_bad_fractions(self, form):
        with pytest.raises(SetupError, match="between 0 and 1"):
            binomial_thin(FORMS[form](draw()), 1.5, generator=rng())
        with pytest.raises(SetupError, match="one for each of 40 cells"):
            binomial_thin(FORMS[form](draw()), [0.5, 0.5], generator=rng())


def test_largest_remainder_by_hand():
    assert largest_remainder([1.4, 1.4, 0.2], 3).tolist() == [2, 1, 0]
    assert largest_remainder([1, 1, 1], 5).tolist() == [2, 2, 1]
    assert largest_remainder([0, 2], 3).tolist() == [0, 3]
    assert largest_remainder([0, 0], 0).tolist() == [0, 0]
    with pytest.raises(SetupError, match="no positive share"):
        largest_remainder([0, 0], 1)
    with pytest.raises(SetupError, match="finite numbers >= 0"):
        largest_remainder([1, -1], 1)


class TestDecoding:
    rho = rng(3).dirichlet(np.full(30, 0.5), 40).astype(np.float32)
    theta = rng(4).gamma(2, 1, 30) + 0.1
    library = rng(5).integers(1, 200, 40)

    def test_totals_form_and_seed(self):
        x = exact_total(self.rho, self.theta, self.library, generator=rng())
        again = exact_total(self.rho, self.theta, self.library, generator=rng())
        assert x.format == "csr"
        assert x.dtype == np.int32
        assert x.data.min() > 0
        assert x.has_canonical_format
        np.testing.assert_array_equal(library_totals(x), self.library)
        assert (x != again).nnz == 0

    def test_shallow_and_deep_cells_share_a_block(self):
        library = np.where(np.arange(40) % 3 == 0, 5_000, 20)
        x = exact_total(self.rho, self.theta, library, generator=rng())
        np.testing.assert_array_equal(library_totals(x), library)
        assert x.has_canonical_format

    def test_many_blocks(self, monkeypatch):
        monkeypatch.setattr(counts.decoding, "_BLOCK", 70)
        for decode in (exact_total, nb_counts):
            x = decode(self.rho, self.theta, self.library, generator=rng())
            assert x.shape == (40, 30)
        np.testing.assert_array_equal(
            library_totals(exact_total(self.rho, self.theta, self.library, generator=rng())), self.library
        )

    def test_rounding_and_one_number(self):
        x = exact_total(self.rho, self.theta, np.full(40, 0.2), generator=rng())
        np.testing.assert_array_equal(library_totals(x), 1)
        x = exact_total(self.rho, np.tile(self.theta, (40, 1)), 17.4, generator=rng())
        np.testing.assert_array_equal(library_totals(x), 17)

    def test_impossible_genes_get_nothing(self):
        rho = self.rho.copy()
        rho[:, [0, 7, 29]] = 0
        for library in (50, 5_000):
            x = exact_total(rho, self.theta, library, generator=rng())
            assert x[:, [0, 7, 29]].nnz == 0
        assert nb_counts(rho, self.theta, 50, generator=rng())[:, [0, 7, 29]].nnz == 0

    def test_dropout_takes_genes_not_molecules(self):
        logits = np.full(self.rho.shape, -40.0)
        logits[:, :10] = 40.0
        for decode in (exact_total, nb_counts):
            x = decode(self.rho, self.theta, 100, dropout_logits=logits, generator=rng())
            assert x[:, :10].nnz == 0
        np.testing.assert_array_equal(
            library_totals(exact_total(self.rho, self.theta, 100, dropout_logits=logits, generator=rng())), 100
        )

    def test_where_all_genes_drop_the_largest_stays(self):
        x = exact_total(self.rho, 50.0 + self.theta, 9, dropout_logits=np.full(self.rho.shape, 60.0), generator=rng())
        np.testing.assert_array_equal(library_totals(x), 9)
        assert (np.diff(x.indptr) == 1).all()
        np.testing.assert_array_equal(x.indices, self.rho.argmax(1))

    def test_tiny_dispersion_that_underflows(self):
        x = exact_total(self.rho, np.full(30, 1e-4), 12, generator=rng())
        np.testing.assert_array_equal(library_totals(x), 12)

    def test_empty_cells_are_redrawn(self):
        x = nb_counts(self.rho, self.theta, 1.0, generator=rng())
        assert library_totals(x).min() >= 1
        x = nb_counts(self.rho, self.theta, 1.0, dropout_logits=np.full(self.rho.shape, 60.0), generator=rng())
        assert x.nnz == 0

    def test_no_cells(self):
        assert exact_total(self.rho[:0], self.theta, [], generator=rng()).shape == (0, 30)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"rho": rho[0]}, r"expected \(cells, genes\)"),
            ({"theta": theta[:3]}, r"theta of shape \(3,\)"),
            ({"theta": -theta}, "theta that are not positive"),
            ({"library": [5, 5]}, "2 library sizes"),
            ({"library": np.full(40, np.nan)}, "library that are not positive"),
            ({"rho": -rho}, "shares >= 0"),
            ({"rho": rho * 0}, "shares >= 0"),
            ({"dropout_logits": rho[:3]}, r"dropout_logits of shape \(3, 30\)"),
        ],
    )
    def test_errors(self, change, message):
        arguments = {"rho": self.rho, "theta": self.theta, "library": self.library, "dropout_logits": None} | change
        for decode in (exact_total, nb_counts):
            with pytest.raises(SetupError, match=message):
                decode(**arguments, generator=rng())


class TestLibrary:
    totals = rng(1).lognormal(6, 0.4, 300)
    codes = np.stack([np.repeat([0, 1, 2], 100), np.r_[np.zeros(90), np.ones(10), np.zeros(200)]], axis=1).astype(int)

    def test_scale_there_and_back(self):
        scale = LogLibrary.fit(self.totals)
        u = scale.standardise(self.totals)
        assert abs(u.mean()) < 1e-12
        assert u.std() == pytest.approx(1.0)
        np.testing.assert_allclose(scale.restore(u), self.totals)
        assert LogLibrary.fit([7.0, 7.0]) == LogLibrary(np.log(7.0), 1.0)

    def test_empty_cells_are_refused(self):
        with pytest.raises(SetupError, match=r"1 cells whose total is not positive, the first at position 1 \(0.0\)"):
            LogLibrary.fit([3.0, 0.0])

    def test_bootstrap_stays_within_its_condition(self):
        out = empirical_library(self.totals, self.codes, [[1, 0]] * 50, generator=rng())
        assert np.isin(out, self.totals[100:200]).all()

    def test_small_condition_uses_its_parent(self):
        out = empirical_library(self.totals, self.codes, [[0, 1]] * 400, generator=rng())
        assert np.isin(out, self.totals[:100]).all()
        assert not np.isin(out, self.totals[90:100]).all()
        exact = empirical_library(self.totals, self.codes, [[0, 1]] * 50, generator=rng(), min_cells=5)
        assert np.isin(exact, self.totals[90:100]).all()

    def test_unspecified_and_unseen_conditions(self):
        out = empirical_library(self.totals, self.codes, [[-1, 1], [9, 9], [-1, -1]] * 300, generator=rng())
        assert np.isin(out, self.totals).all()
        assert np.isin(out[2::3], self.totals[:100]).any()
        assert np.isin(out[2::3], self.totals[200:]).any()

    def test_lognormal_has_the_moments_of_its_condition(self):
        totals = np.where(self.codes[:, 0] == 2, self.totals * 20, self.totals)
        out = lognormal_library(totals, self.codes[:, 0], np.repeat([0, 2], 4000), generator=rng())
        for part, source in ((out[:4000], totals[:100]), (out[4000:], totals[200:])):
            assert np.log(part).mean() == pytest.approx(np.log(source).mean(), abs=0.03)
            assert np.log(part).std() == pytest.approx(np.log(source).std(), rel=0.05)

    def test_equal_totals_have_no_spread(self):
        assert (lognormal_library([5.0] * 30, [0] * 30, [0] * 9, generator=rng()).round(9) == 5).all()

    def test_shapes(self):
        with pytest.raises(SetupError, match="the same covariates"):
            empirical_library(self.totals, self.codes, [0, 1], generator=rng())


class TestDispersion:
    def test_moments_equal_the_dense_formula(self):
        x = rng().negative_binomial(2, 0.4, (200, 12)).astype(float)
        library = x.sum(1)
        mean = library[:, None] * (x.sum(0) / library.sum())
        expected = np.clip((mean**2).sum(0) / np.maximum(((x - mean) ** 2 - mean).sum(0), 1e-12), 0.05, 100)
        np.testing.assert_allclose(dispersion_moments(x, library), expected)
        np.testing.assert_allclose(dispersion_moments(sp.csr_matrix(x), library), expected)
        with pytest.raises(SetupError, match="3 library sizes"):
            dispersion_moments(x, [1, 2, 3])

    def test_shrinkage_weights(self):
        group, gene = np.array([[4.0, 1.0], [4.0, 1.0]]), np.array([1.0, 1.0])
        out = shrink_dispersion(group, gene, [50, 0])
        np.testing.assert_allclose(out, [[2.0, 1.0], [1.0, 1.0]])
        np.testing.assert_allclose(shrink_dispersion(group[0], gene, 50), out[0])

    def test_batching_and_storage_do_not_matter(self):
        x = rng().negative_binomial(2, 0.2, (300, 9))
        x[0, 0] = 5_000  # far beyond the histogram
        mean = rng(1).gamma(5, 2, (300, 9))
        whole = refit_dispersion(lambda: [(x, mean)], np.ones(9))
        parts = refit_dispersion(
            lambda: ((sp.csr_matrix(x[i : i + 7]), mean[i : i + 7]) for i in range(0, 300, 7)), np.full(9, 30.0)
        )
        np.testing.assert_allclose(whole, parts, rtol=1e-5)

    def test_gene_without_counts_keeps_its_start(self):
        x = np.zeros((50, 2))
        x[:, 1] = rng().negative_binomial(1, 0.3, 50)
        out = refit_dispersion(lambda: [(x, np.full((50, 2), 2.0))], [3.25, 1.0])
        assert out[0] == 3.25
        assert refit_dispersion(lambda: [(x * 0, x + 1)], [3.25, 1.0]).tolist() == [3.25, 1.0]

    def test_poisson_counts_go_to_the_upper_bound(self):
        x = np.full((200, 3), 4.0)
        assert refit_dispersion(lambda: [(x, x)], np.ones(3)).tolist() == pytest.approx([1e4] * 3)

    def test_errors(self):
        with pytest.raises(SetupError, match="finite numbers > 0"):
            refit_dispersion(lambda: [], [0.0])
        with pytest.raises(SetupError, match="expected the same"):
            refit_dispersion(lambda: [(np.ones((3, 2)), np.ones((3, 1)))], [1.0, 1.0])
