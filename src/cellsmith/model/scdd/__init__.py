"""SCDD: distillation of a labelled data set into a few profiles a class."""
