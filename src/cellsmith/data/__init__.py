"""From registered AnnData to batches: fields and data modules."""
