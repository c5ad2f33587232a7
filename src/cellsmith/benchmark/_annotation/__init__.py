"""Annotation: GRIT beside other ways to improve the scores of a classifier."""
