"""Privacy: accuracy of private embeddings against what they promise, with the ceiling and the floor beside."""
