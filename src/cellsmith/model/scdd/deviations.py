"""What is published of scDD, what is this package's own, and which test shows it."""

from __future__ import annotations

from cellsmith.model._deviation import Deviation

__all__ = ["DEVIATIONS"]


DEVIATIONS = (
    Deviation(
        "the method as a whole",
        "an outline: latent codes, a conditional generator with one back-propagated step, matching of gradients or "
        "distributions",
        "a design of that outline; variant='paper' keeps the outline alone. No claim to reproduce the paper's numbers",
        "networks, noise level, weights, iterations and data sets are not in the text that was available",
        "tests/model/scdd/test_distill.py::test_paper_variant_keeps_the_outline",
    ),
    Deviation(
        "sigma_star",
        "one step; its noise level is not stated (from pure noise in the literal reading)",
        "the step is taken at sigma_star = 1, and train() measures and guards the response there (10)",
        "from pure noise the step answers every code of a class with nearly the class mean",
        "tests/model/scdd/test_generator.py::test_response_falls_with_the_noise_level_and_a_warning_names_it",
    ),
    Deviation(
        "prototype start",
        "codes start at random",
        "codes start where the generator gives the k-means groups of each class (11, 12)",
        "sums and means of groups are the strongest simple reduction; starting elsewhere only loses to them",
        "tests/model/scdd/test_distill.py::test_step_zero_is_the_metacell",
    ),
    Deviation(
        "residual",
        "codes are optimised, expression never directly",
        "every profile also has a free, penalised correction of its log rates (13); recorded as codes_only=False",
        "decoding costs a few points of accuracy against the group profile itself",
        "tests/model/scdd/test_distill.py::test_step_zero_is_the_metacell",
    ),
    Deviation(
        "second moments",
        "distributions are matched (by means, in the methods it builds on)",
        "variances of features are matched too (16)",
        "matching means alone lets the profiles of a class collapse onto one point, and nearest neighbours then fail",
        "tests/math/test_matching.py::test_collapsed_profiles_are_seen_by_the_second_moment_only",
    ),
    Deviation(
        "best iterate",
        "not stated (the last one, in the methods it builds on)",
        "the iterate with the fewest errors on held-out training cells, step 0 among them; a later one must win by a "
        "standard error, no reader (linear, centroid, neighbour) may make more errors, nor may the mean over classes",
        "bounds the harm that the optimisation can do; matching alone moves the profiles of a class apart: nearest "
        "neighbours then fail while the other readers gain",
        "tests/model/scdd/test_judging.py::test_neighbour_sees_profiles_that_drift_apart_and_keep_their_mean",
    ),
    Deviation(
        "deep counts",
        "not stated",
        "a profile has the depth of the cells that it stands for, at most 20,000 counts",
        "at the depth of one cell, rounding alone costs what the method gains",
        "tests/model/scdd/test_delivery.py::test_depth_follows_the_cells_behind_a_profile",
    ),
    Deviation(
        "soft labels",
        "not stated",
        "beside its own label a profile carries the class probabilities of a cross-fitted teacher (21)",
        "what the strongest distillers of images rely on; no reader has to use them",
        "tests/model/scdd/test_delivery.py::test_teacher_never_saw_the_label_of_the_cell",
    ),
    Deviation(
        "loops",
        "not stated",
        "between two matched steps a network learns 10 steps from the profiles (the methods it builds on: 50 at 10 "
        "profiles a class); the codes are optimised by a plain loop on one device",
        "time: those lessons would cost more than the matching itself",
        "tests/model/scdd/test_distilling.py::test_networks_live_and_learn_as_long_as_the_budget_says",
    ),
    Deviation(
        "nothing is optimised unless asked for",
        "gradients or distributions are matched",
        "the default returns step 0; objective='readers' optimises the loss of two readers fitted to the profiles in "
        "closed form (23); the published matching is asked for by objective=('gradient', 'distribution') or "
        "variant='paper'",
        "on the data set that settings were tried on, matching gained nothing on step 0 and cost minutes; the readers "
        "gained with one profile a class, but a random forest lost",
        "tests/model/scdd/test_distill.py::test_nothing_is_optimised_unless_asked_for",
    ),
    Deviation(
        "trajectory matching",
        "not stated",
        "left out (17)",
        "it needs many trained networks to be stored, and nothing showed a gain here",
        "tests/model/scdd/test_equations.py::test_equations_are_numbered_and_resolve",
    ),
)
