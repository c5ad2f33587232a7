"""What stands between AnnData and a batch of tensors: registered fields and data modules."""
