"""Synthesis: SCLD beside its peers."""
