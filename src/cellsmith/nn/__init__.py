"""Torch modules that the models share. No AnnData, no Lightning."""
