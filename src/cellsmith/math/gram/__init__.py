"""Bias-corrected Gram operators for matrices with missing entries.

Public surface (every name is exported here; ``n`` cells, ``D`` features, ``k`` components, ``R`` overlap factors):

* data, in row blocks (``Blocks`` = callable that returns a fresh iterator of ``(start, Block)``)

  - ``dense_block(values, weights=None)``  NaN = missing; ``observed_block(values, observed)``; ``missing_block(values, missing)``
    (CSR patterns, fractions allowed); a ``Block`` has ``shape``, ``row_counts() col_counts() col_sums()``,
    ``first_bad() -> (row, feature, value) | None``, ``take(cells, features)``, ``centred(means, dtype=) -> Centred``
  - ``row_blocks(block, n_rows=None) -> Blocks``, ``select_blocks(blocks, *, cells=None, features=None) -> Blocks``
  - ``centred_blocks(blocks, means, *, dtype="float32", keep=False) -> CentredBlocks``; a ``Centred`` has
    ``dot(B) (rows, p)``, ``tdot(B) (D, p)``, ``squares`` (sum_d m z^2), ``norms`` (|Z_i|^2), ``row_counts``
  - ``hold_out(blocks, *, share=0.05, seed) -> HeldOut`` (``.blocks``, ``.entries()``);
    ``permute_within_mask(blocks, *, generator) -> Blocks``

* ``observed_stats(blocks) -> Stats(row_counts, col_counts, means, n_cells, n_features)``; ``cell_groups(blocks, stats) -> (n,) int``
* ``fit_logistic(row_counts, col_counts, *, tol=1e-6, max_rounds=100)``, ``fit_rank1(stats, *, legacy=False)``,
  ``fit_grouped(blocks, groups)``, ``fit_covariates(blocks, stats, *, cell_design=None, feature_design=None)``,
  ``custom_probability(values, *, shape=None)`` -> ``Probability``: ``row_sums() self_overlap() mean_overlap()``,
  ``block(rows)``, ``overlap(pairs)``, ``new_cells(...) -> Probability``, ``state()``
* ``overlap_factors(probability, *, tol=1e-4, max_rank=12, generator) -> Factors(u (n, R), s (R,), error)``; ``Factors.extend(probability) -> (m, R)``
* ``gram_operator(blocks, factors, row_sums) -> Operator(apply, delta, diagonal)``, ``mean_operator``, ``pairwise_operator``, ``dense_operator``
* ``block_krylov(apply, n, k, *, tol, start, max_iter) -> Eigen(values, vectors, images, residuals, ...)``,
  ``top_eigenpairs(operator, k, *, tol, max_iter, oversample, generator) -> Eigen``, ``spectrum_mass(operator, eigen, *, generator) -> Mass``
* ``embedding(eigen, n_features)``, ``projections(operator, vectors) -> (R, D, k)``, ``nystrom(blocks, weights, *, projections, s, values)``,
  ``loadings(operator, eigen, *, col_rates, self_overlap) -> (D, k)``, ``orient(eigen, loadings)``
* ``prime_step``, ``prime``, ``hetero``, ``heldout_error``, ``regress``
* ``choose_rank(values, rule, *, total=None, null=None)``, ``corrected_distances(operator, pairs) -> (d2, floored_share)``,
  ``gram_blocks(operator, chunk_size)``, ``diagnose(...)``, ``sin_theta(x, y)``, ``dense_legacy(Y, M)``
"""
