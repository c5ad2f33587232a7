"""Missingness: BC-PCA beside its peers on data whose entries were taken away."""
