"""Spherical k-means on faiss: fitted on a sample, assigned block by block, the same for any thread count."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float32]

_TILE_ELEMENTS = 1 << 23  # similarities at a time: 32 MiB of float32


def fit_spherical(sample: Matrix, n_clusters: int, *, iterations: int, seed: int) -> Matrix:
    """Fit spherical k-means (Dhillon and Modha, 2001) on unit vectors.

    Args:
        sample: float32[m, d] unit rows, m >= 1.
        n_clusters: Wanted clusters; clipped to m.
        iterations: Lloyd iterations.
        seed: Seed of the initial centroids.

    Returns:
        float32[k, d] unit centroids.
    """
    import faiss

    k = min(n_clusters, len(sample))
    if k == len(sample):
        return np.array(sample, np.float32)
    # faiss takes the BLAS route above this size, whose result depends on threads and batch size.
    before, threads = faiss.cvar.distance_compute_blas_threshold, faiss.omp_get_max_threads()
    faiss.cvar.distance_compute_blas_threshold = 2**31 - 1
    faiss.omp_set_num_threads(1)
    try:
        # Without these limits faiss subsamples silently above 256 points a centroid, and warns below 39.
        kmeans = faiss.Kmeans(
            sample.shape[1], k, niter=iterations, spherical=True, seed=1 + seed % (2**31 - 2), verbose=False,
            min_points_per_centroid=1, max_points_per_centroid=1 + len(sample) // k,
        )  # fmt: skip
        kmeans.train(np.ascontiguousarray(sample, np.float32))
        centroids: Matrix = np.array(kmeans.centroids, np.float32)
    finally:
        faiss.cvar.distance_compute_blas_threshold = before
        faiss.omp_set_num_threads(threads)
    norms = np.linalg.norm(centroids, axis=1, keepdims=True)
    # An empty cluster of identical points can end at zero: it keeps a member's place.
    return np.where(norms > 0, centroids / np.where(norms > 0, norms, 1), sample[:k]).astype(np.float32)


def assign(vectors: Matrix, centroids: Matrix) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Assign unit vectors to the nearest centroid by cosine, ties to the lowest cluster.

    Args:
        vectors: float32[n, d] unit rows.
        centroids: float32[k, d] unit rows.

    Returns:
        int32[n] clusters and float32[n] cosine distances 1 - cos in [0, 2].
    """
    block = max(1, _TILE_ELEMENTS // len(centroids))
    labels = np.empty(len(vectors), np.int32)
    distance = np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), block):
        similarity = vectors[start : start + block] @ centroids.T
        best = similarity.argmax(axis=1)
        labels[start : start + block] = best
        distance[start : start + block] = 1 - similarity[np.arange(len(best)), best]
    return labels, np.clip(distance, 0, 2)
