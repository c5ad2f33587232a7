"""ScSiameseClu: clustering from two views of every cell, a cell graph and optimal transport."""
