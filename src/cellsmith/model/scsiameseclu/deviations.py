"""What is published of scSiameseClu, what is this package's own, and which test shows it."""

from __future__ import annotations

from cellsmith.model._deviation import Deviation

__all__ = ["DEVIATIONS"]

_HERE = "tests/model/scsiameseclu"

DEVIATIONS = (
    Deviation(
        "the method as a whole",
        "the text gives modules and their purpose; equations stand in the public code alone, which has no licence",
        "re-implemented from what that code computes, none of it copied; no published table is claimed",
        'variant="paper" keeps the published objective, with the repairs named below',
        f"{_HERE}/test_paper.py::test_published_stages_run_and_cluster",
    ),
    Deviation(
        "input",
        "100 principal components of 1,000 scaled genes; the networks never see expression",
        "log1p of counts per ten thousand of 2,000 variable genes",
        "views become biology (thinned molecules, genes that are missed), and the decoder a model of counts",
        "tests/math/test_count_views.py::test_each_augmentation_has_its_law",
    ),
    Deviation(
        "cell graph",
        "an edge only where the true labels differ; weights exp(-Manhattan^2 / 2), which are 0 for every pair",
        "fuzzy union of nearest neighbours in a PCA of 50 components, or a graph of the user's",
        "labels leaked into a graph of wrong edges; no label is read anywhere now",
        f"{_HERE}/test_laws.py::test_labels_change_nothing",
    ),
    Deviation(
        "propagation",
        "a dense inverse with teleport .1 to .5 set for each data set; columns scaled on a directed graph",
        "sparse PageRank of 32 cells a row, rows sum to 1, teleport .5; one lazy step is the other view",
        "n^3, and strong diffusion erases rare types",
        "tests/math/test_graph_walks.py::test_pushed_mass_stays_below_the_truth_by_no_more_than_the_bound",
    ),
    Deviation(
        "edges left out",
        "the 10 % least similar of all cells, zeroed in place",
        "of each cell's own edges the least similar ones (view 1) or random ones (view 2)",
        "few of a cell's neighbours are among the least similar of all cells",
        "tests/math/test_graph_walks.py::test_exactly_a_share_of_each_cells_own_edges_is_dropped",
    ),
    Deviation(
        "fusion",
        "free weights for every cell and dimension, attention of all cells on all",
        "a gate of each cell, computed from its own two embeddings",
        "new cells have no free weights; n^2 memory",
        f"{_HERE}/test_queries.py::test_new_cells_one_by_one_equal_all_at_once",
    ),
    Deviation(
        "cell-level term",
        "all other cells are pushed apart",
        "not neighbours, nor sure cells of one cluster; off by default: measured, it did not help",
        "it pushes cells of one type apart",
        f"{_HERE}/test_equations.py::test_neighbours_and_sure_cells_of_one_code_are_not_pushed_apart",
    ),
    Deviation(
        "latent-level term",
        "a readout that cuts cells in the order of the file and scales over an axis of length 1: gradients of 1e-7",
        "correlations of latent dimensions over the batch",
        "it has a gradient and no order",
        "tests/math/test_contrast_views.py::test_cross_correlation_has_a_gradient_and_no_order",
    ),
    Deviation(
        "propagation term",
        "one side of the Jensen-Shannon divergence twice, weight 1,000",
        "both sides once; off by default",
        "it pulls embeddings towards their smoothed copies",
        "tests/math/test_contrast_views.py::test_propagation_divergence_is_the_square_of_scipys_distance",
    ),
    Deviation(
        "count likelihood",
        "ZINB of principal components, half of them negative, its mean detached",
        "NB or ZINB of raw counts, all heads trained; the total that shares divide is that of the modelled genes",
        "no likelihood otherwise; shares of modelled genes times the total of all genes would overshoot every mean",
        f"{_HERE}/test_train.py::test_every_trained_parameter_gets_a_gradient",
    ),
    Deviation(
        "transport",
        "column sums fixed to the sizes of a first k-means; the target frozen after nine epochs",
        "other sizes at a low price, batch and queue, targets of each view from the other at every step; prototypes "
        "start from communities, straightened by a Gaussian mixture with one covariance",
        "fixed equal sizes cost .17 of ARI and .36 of rare F1 on kidney cells",
        f"{_HERE}/test_equations.py::test_columns_are_free_without_a_price_and_fixed_with_an_infinite_one",
    ),
    Deviation(
        "divergence",
        "KL of probabilities where logarithms are needed: it can be negative",
        "cross-entropy with log Q",
        "a divergence is at least 0",
        f"{_HERE}/test_equations.py::test_swapped_loss_is_a_cross_entropy_and_never_negative",
    ),
    Deviation(
        "prototypes",
        "the cluster head is built anew at every step: centres never move",
        "parameters of the model",
        "clusters are learned",
        f"{_HERE}/test_train.py::test_prototypes_move_and_targets_are_renewed_to_the_end",
    ),
    Deviation(
        "choice of the epoch",
        "the best one by the true accuracy",
        "the last one",
        "labels must not choose what they later judge",
        f"{_HERE}/test_laws.py::test_labels_change_nothing",
    ),
    Deviation(
        "confidence",
        "none",
        "soft clusters of a cell: in which cluster a short walk over the graph from it ends (Pi times the powers of Q)",
        "Student t assignments are flat in 20 dimensions, and the powers that the transport takes of them nearly 1: "
        "the network knows its training cells by heart",
        f"{_HERE}/test_queries.py::test_confidence_is_where_a_walk_from_the_cell_ends",
    ),
    Deviation(
        "number of clusters",
        "the true one",
        "at most the number given, or found: too many prototypes, merged where too few marker genes separate them, "
        "on counts that took no part in the assignment",
        "the number of types is what a user wants to know",
        f"{_HERE}/test_clusters.py::test_a_type_split_at_random_is_merged_again",
    ),
    Deviation(
        "networks",
        "leaky rectifiers, no normalisation",
        "the perceptron of this package: layer norm, SiLU",
        "a cell's answer must not depend on its batch; one building block for all methods",
        f"{_HERE}/test_queries.py::test_new_cells_one_by_one_equal_all_at_once",
    ),
    Deviation(
        'last layer of the graph decoder (variant="paper")',
        "tanh",
        "linear",
        "a tanh cannot reconstruct principal components that reach 10",
        f"{_HERE}/test_paper.py::test_graph_decoder_is_not_bounded",
    ),
    Deviation(
        'reconstruction of the graph (variant="paper")',
        "the sum of two sigmoids, between 0 and 2",
        "their mean",
        "the graph that is reconstructed has entries below 1",
        f"{_HERE}/test_paper.py::test_graph_decoder_is_not_bounded",
    ),
)
