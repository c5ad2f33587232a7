"""Entropic optimal transport in the log domain: balanced, with relaxed columns, partial; three kinds of gradient."""

from __future__ import annotations

from cellsmith.math.transport.adjoint import plan_adjoint
from cellsmith.math.transport.partial import sinkhorn_partial
from cellsmith.math.transport.plan import Plan
from cellsmith.math.transport.scaling import sinkhorn

__all__ = ["Plan", "plan_adjoint", "sinkhorn", "sinkhorn_partial"]
