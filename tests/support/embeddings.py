"""Small labelled galleries before and after re-embedding."""

import numpy as np


def upgrade(seed, queries=25, rows=90, dim=6, classes=5):
    """Return queries, gallery, new gallery, query labels and gallery labels; the new gallery is the better one.

    ``queries`` None: the new gallery is searched in itself.
    """
    rng = np.random.default_rng(seed)
    centers = 2 + rng.standard_normal((classes, dim))
    labels = rng.integers(0, classes, rows)
    new_gallery = (centers[labels] + 0.8 * rng.standard_normal((rows, dim))).astype(np.float32)
    gallery = (new_gallery + rng.random((rows, 1)) * rng.standard_normal((rows, dim))).astype(np.float32)
    if queries is None:
        return new_gallery, gallery, new_gallery, labels, labels
    query_labels = rng.integers(0, classes + 1, queries)  # one class is not in the gallery
    found = np.vstack((centers, centers[:1]))[query_labels] + 0.8 * rng.standard_normal((queries, dim))
    return found.astype(np.float32), gallery, new_gallery, query_labels, labels
