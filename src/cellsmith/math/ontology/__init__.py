"""Ontologies parsed from text, and class probabilities rolled up over them (Eq. 18 of GRIT)."""

from __future__ import annotations

from cellsmith.math.ontology.parsing import parse_ontology
from cellsmith.math.ontology.rollup import RollUp, roll_up
from cellsmith.math.ontology.terms import Ontology, term_id

__all__ = ["Ontology", "RollUp", "parse_ontology", "roll_up", "term_id"]
