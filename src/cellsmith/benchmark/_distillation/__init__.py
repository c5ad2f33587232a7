"""What a few rows a class teach a classifier, against all cells."""
