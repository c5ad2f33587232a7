"""What is published of GRIT, what is this package's own, and which test shows it."""

from __future__ import annotations

from cellsmith.model._deviation import Deviation

__all__ = ["DEVIATIONS"]


DEVIATIONS = (
    Deviation(
        "the method as a whole",
        "scores of a CLIP-style model, smoothed over a k-NN graph of PCA space by P = (I + lambda L)^-1 P0; "
        "Laplacian, edge weights, numbers of genes and components, k, lambda and the space of P0 are not fixed",
        "one linear system (W + lambda L) P = W P0 for any scores, solved to a stated accuracy; all constants are our "
        "own, and no number of the paper is claimed",
        "the published text leaves these choices open",
        "tests/model/grit/test_equations.py::test_first_deviation_states_what_is_ours",
    ),
    Deviation(
        "fidelity W",
        "W = I",
        "a diagonal W opens confidence weights, anchors and cells without scores (Eq. 5, 6)",
        "one solver serves all of them",
        "tests/model/grit/test_train.py::test_a_cell_without_scores_is_filled_by_its_neighbours",
    ),
    Deviation(
        "Laplacian and lambda",
        "not fixed; the notation suggests L = D - A",
        "the normalised Laplacian with lambda = 5; `variant='paper'` keeps L = D - A and has no default lambda",
        "lambda then means the same on every graph, and the condition number is at most 1 + 2 lambda",
        "tests/model/grit/test_equations.py::test_a_scaled_graph_changes_nothing_for_sym_and_rw",
    ),
    Deviation(
        "space of the scores",
        "not fixed",
        "probabilities (Eq. 3); independent probabilities, similarities and logits are recognised",
        "equal or better than logits at every lambda we tried, and more robust at large ones",
        "tests/model/grit/test_equations.py::test_space_rule",
    ),
    Deviation(
        "solver",
        "the closed form",
        "sparse LU up to 3,000 cells, block CG or Chebyshev above; the error of every score is bounded and labels that "
        "could still change are counted (Eq. 10-12)",
        "a direct factorisation of a k-NN graph fills in, and an answer without an error is not an answer",
        "tests/model/grit/test_solving.py::test_a_large_graph_is_never_factorised",
    ),
    Deviation(
        "over-smoothing",
        "not discussed",
        "classes that vanish and a collapse of the effective number of classes among the labels are warned about (Eq. "
        "14); the mean score of a class cannot show it, because smoothing conserves it",
        "a smooth wrong answer is more convincing than a noisy wrong one",
        "tests/model/grit/test_guards.py::test_every_run_that_loses_a_class_warns",
    ),
    Deviation(
        "calibration and rejection",
        "not discussed",
        "a temperature from anchors or from two halves of the data, and thresholds with a stated risk (Eq. 15-17)",
        "smoothing leaves scores under-confident; thresholds by custom mean nothing",
        "tests/model/grit/test_rejection.py::test_selective_guarantee_holds",
    ),
    Deviation(
        "new cells",
        "not discussed",
        "the exact minimiser of Eq. 1 in the row of the new cell, all training rows fixed (Eq. 7)",
        "a query must not change the answers given before",
        "tests/model/grit/test_queries.py::test_self_query_reproduces_the_solution",
    ),
)
