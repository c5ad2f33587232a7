"""Clusters: methods on the same cells and genes; whether a learned graph helps."""
