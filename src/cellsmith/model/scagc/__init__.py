"""SCAGC: clustering on a cell graph that is learned."""
