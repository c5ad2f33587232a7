"""scSiameseClu: one component changed at a time, and what its acceptance table asks for."""
