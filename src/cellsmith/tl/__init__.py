"""Tools: one-line doors to the models, with the interface of scanpy."""

from __future__ import annotations

from cellsmith._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "bcpca": "._bcpca",
        "dp_kmeans": "._dp_kmeans",
        "dp_pca": "._dp_pca",
        "dpdcan": "._dpdcan",
        "grit": "._grit",
        "merge_clusters": "._merge_clusters",
        "reject": "._reject",
        "rollup": "._rollup",
        "sce2tm": "._sce2tm",
        "sce2tm_choose_n_topics": "._sce2tm_choose",
        "sce2tm_enrich": "._sce2tm_enrich",
        "sce2tm_gsea": "._sce2tm_enrich",
        "sce2tm_rank": "._sce2tm_compare",
        "sce2tm_survival": "._sce2tm_compare",
        "sce2tm_top_genes": "._sce2tm_tables",
        "sce2tm_transfer": "._sce2tm_transfer",
        "scagc": "._scagc",
        "scdd": "._scdd",
        "scld": "._scld",
        "scsiameseclu": "._scsiameseclu",
        "scsiameseclu_annotate": "._scsiameseclu_annotate",
        "scsiameseclu_markers": "._scsiameseclu_markers",
        "scsiameseclu_transfer": "._scsiameseclu_transfer",
        "sketch": "._sketch",
    },
)
