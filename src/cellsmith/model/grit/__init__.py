"""GRIT: refine any classifier's scores over the cell graph, with a certificate."""
