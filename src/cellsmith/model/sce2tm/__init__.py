"""scE2TM: readable topics of gene expression, guided by outside knowledge, and perturbed."""
