"""BC-PCA: an embedding of data whose entries are missing unevenly."""
