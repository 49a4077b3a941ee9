"""Principal directions of rows, and the rotation before a product quantizer that follows from them (OPQ)."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.index.faiss_module import faiss
from fct_infer.threadpools import one_blas_thread
from fct_infer.transformation import Float32Array

# Note [Balanced parts]
# A product quantizer leaves least of rows whose parts are independent and equally hard: principal directions, dealt out
# so that the product of their variances is the same in each part ("Optimized Product Quantization", CVPR 2013, section
# 3.2, the parametric solution). FAISS begins with a random rotation and betters it in 50 rounds of k-means. That takes
# half a minute and more of 65,536 rows of 256 dims, this a tenth of a second, and comes no nearer: recall@10 under
# OPQ32,IVF<n>,PQ32 was 0.630 by FAISS's rotation and 0.633 by this for definitions of WordNet (0.617 without one),
# 0.889 and 0.899 for pictures (0.808), 0.597 and 0.601 for rows near a plane (0.565). Rounds of k-means that went on
# from here gained nothing, nor did the variances of what the lists leave of rows.
_ROWS = 32_768  # enough for a covariance, in float64
_FAR_OFF = 8.0  # times the median length, as in the core (Note [Far centroids], csrc/assign/shifted_centroids.cpp)
_LEAST_VARIANCE = 1e-9  # of the largest: below it, directions are what rounding left


def principal_directions(rows: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the directions (dim, dim) along which rows (n, dim) differ, the first the most, and the variances (dim,).

    Rows that are far off, of one a million times as long as the others, would be a direction each and hide the rest:
    they are left out. On one thread, so that the result does not depend on how many there are.
    """
    shifted, _ = less_mean_of_most(rows.astype(np.float64))
    with one_blas_thread():
        variances, vectors = np.linalg.eigh(shifted.T @ shifted / len(shifted))
    return vectors[:, ::-1].T, variances[::-1]


def less_mean_of_most(rows: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return rows (most, dim) less their mean, and that (dim,): those that are not far off it."""
    while True:
        mean = rows.mean(axis=0, dtype=np.float64).astype(rows.dtype)
        shifted = rows - mean
        squares = np.einsum("ij,ij->i", shifted, shifted, dtype=np.float64)
        are_near = squares <= _FAR_OFF**2 * np.median(squares)
        if are_near.all():
            return shifted, mean
        rows = rows[are_near]


def train_rotation(opq: Any, rows: Float32Array) -> None:
    """Train FAISS's ``OPQMatrix`` on rows (n, d_in) float32. See Note [Balanced parts]."""
    directions, variances = principal_directions(rows[:: -(-len(rows) // _ROWS)])
    rotation = np.zeros((opq.d_out, opq.d_in), np.float32)
    count = min(opq.d_out, opq.d_in)
    rotation[_balanced(variances[:count], opq.M, opq.d_out // opq.M)] = directions[:count]
    faiss().copy_array_to_vector(rotation.ravel(), opq.A)
    opq.is_trained = opq.is_orthonormal = True


def _balanced(variances: NDArray[np.float64], parts: int, size: int) -> NDArray[np.int64]:
    """Return the place of each direction, so that the products of variances in each part (of ``size``) are alike."""
    hardness = np.log(np.maximum(variances, _LEAST_VARIANCE * (variances[0] or 1.0)))
    hardness -= hardness[-1]
    easiest = [(0.0, part, 0) for part in range(parts)]  # so far, and how many directions each has
    heapify(easiest)
    places = []
    for each in hardness.tolist():
        so_far, part, held = heappop(easiest)
        places.append(part * size + held)
        if held + 1 < size:
            heappush(easiest, (so_far + each, part, held + 1))
    return np.array(places, np.int64)
