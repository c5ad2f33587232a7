"""What is published of DP-DCAN, what is this package's own, and which test shows it."""

from __future__ import annotations

from cellsmith.model._deviation import Deviation

__all__ = ["DEVIATIONS"]

_MODEL = "tests/model/dpdcan/test_model.py"
_WIRING = "tests/model/dpdcan/test_wiring.py"
_EQUATIONS = "tests/model/dpdcan/test_equations.py"
_RELEASES = "tests/math/test_privacy_releases.py"
_GRADIENTS = "tests/math/test_privacy_gradients.py"
_ACCOUNTS = "tests/math/test_privacy_accounting.py"

DEVIATIONS = (
    Deviation(
        "noised block",
        "text: the encoder; code: encoder, trunk of the decoder and centres, while three output heads, three quarters "
        "of all weights, are trained without noise",
        "every tensor that can influence a noised gradient is noised, public, or frozen",
        "heads without noise carry private state into all later gradients of the encoder; that fewer noised "
        "coordinates need less noise for the same epsilon is not so",
        f"{_WIRING}::test_the_published_scheme_is_caught",
    ),
    Deviation(
        "instance term",
        "cosine along the batch axis, over the whole batch",
        "cosine along the latent axis, inside one cell",
        "one cell moves the gradient of all others: by several times the clip norm, which voids the accounting",
        f"{_WIRING}::test_the_published_instance_term_is_coupled",
    ),
    Deviation(
        "sampling",
        "shuffled batches of fixed size, accounted as Poisson samples",
        "Poisson samples of the units",
        "the amplification of the two differs, provably",
        f"{_GRADIENTS}::test_sampling_is_independent_for_each_unit",
    ),
    Deviation(
        "centres",
        "k-means on all embeddings every five epochs, without noise",
        "trained with noise from private k-means on, or fitted locally after the last private step and never released",
        "a statistic of private cells that nobody accounts for",
        f"{_MODEL}::test_centres_that_are_released_are_paid_for",
    ),
    Deviation(
        "target",
        "squared assignment over its column sums, all cells",
        "the same over fixed or paid-for sizes, each cell by itself",
        "column sums couple all cells",
        f"{_WIRING}::test_sound_modes_keep_units_apart",
    ),
    Deviation(
        "input",
        "genes chosen, totals' median and z-scores fitted on all cells, unaccounted",
        "a public panel, a transform of each cell by itself, moments public or paid for",
        "changing one cell must leave every other cell's input as it is",
        f"{_RELEASES}::test_the_transform_of_a_cell_ignores_all_others",
    ),
    Deviation(
        "epsilon",
        "one number for the planned number of steps; unit and adjacency not stated",
        "a ledger of executed releases and steps; the number is given only if the wiring test passed",
        "a number that is not true is worse than none",
        f"{_ACCOUNTS}::test_ledger_counts_executed_steps_and_holds_its_budget",
    ),
    Deviation(
        "start",
        "random weights",
        'private principal axes from one release, a small network between them (mode="dp_pca_init"); how much is left '
        "for gradients is dp_pca_fraction",
        "noise grows with the number of trained coordinates",
        f"{_MODEL}::test_the_model_starts_as_private_pca",
    ),
    Deviation(
        "choice of the epoch",
        "weights of the epoch with the best agreement with labels",
        "the last step; there is no labels_key",
        "labels do not exist where the method is used",
        f"{_MODEL}::test_labels_cannot_steer_anything",
    ),
    Deviation(
        "likelihood",
        "zero-inflated negative binomial in plain operations",
        "the same, written out once more for gradients of single units; equal to cellsmith.math.likelihood",
        "its custom backward cannot be mapped over units",
        f"{_EQUATIONS}::test_likelihood_equals_the_shared_one",
    ),
)
