"""Topics of genes on arrays: their tables and readings, and how diverse, coherent and stable they are.

Equation numbers T1 to T34 are those of :mod:`cellsmith.model.sce2tm.equations`. Notation: n cells, V genes, K topics,
L coordinates of a topic or gene, N genes of a list. beta is the K x V table of :func:`topic_gene`.
"""

from __future__ import annotations

from cellsmith.math.topics.coherence import SetCoherence, data_npmi, set_npmi
from cellsmith.math.topics.readings import decoder_reading, frex, lift, profile, top_genes
from cellsmith.math.topics.scores import Diversity, agreement, diversity, matched_cosine, perplexity, topic_quality
from cellsmith.math.topics.tables import ecr, squared_distances, topic_gene

__all__ = [
    "Diversity",
    "SetCoherence",
    "agreement",
    "data_npmi",
    "decoder_reading",
    "diversity",
    "ecr",
    "frex",
    "lift",
    "matched_cosine",
    "perplexity",
    "profile",
    "set_npmi",
    "squared_distances",
    "top_genes",
    "topic_gene",
    "topic_quality",
]
