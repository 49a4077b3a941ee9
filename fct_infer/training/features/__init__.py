"""Embeddings of a training set, cached on disk: read, shuffled, computed from images."""
