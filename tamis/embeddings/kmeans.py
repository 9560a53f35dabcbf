"""Spherical k-means on faiss: fitted on a sample, assigned block by block, the same for any thread count."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tamis.embeddings.grid import cosine_scale, to_grid
from tamis.threads import each

Matrix = npt.NDArray[np.float32]

_TILE_ELEMENTS = 1 << 23  # similarities at a time: 32 MiB of float32


def evenly_spaced(n: int, count: int) -> npt.NDArray[np.int64]:
    """At most `count` of the positions 0 .. n - 1, at even distances: a sample that needs no random draw."""
    count = min(n, count)
    return np.arange(count, dtype=np.int64) * n // max(1, count)


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


def assign(vectors: Matrix, centroids: Matrix, count: int = 1) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Assign unit vectors to the nearest centroids by cosine, ties to the lowest cluster.

    Args:
        vectors: float32[n, d] unit rows.
        centroids: float32[k, d] unit rows.
        count: How many of the nearest to name; clipped to k.

    Returns:
        int32[n, count] clusters, nearest first, and float32[n] cosine distances 1 - cos in [0, 2] to the nearest.
    """
    from tamis.embeddings import _neighbours

    block = max(1, _TILE_ELEMENTS // len(centroids))
    near = np.empty((len(vectors), min(count, len(centroids))), np.int32)
    distance = np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), block):
        similarity = vectors[start : start + block] @ centroids.T
        if count == 1:  # numpy's is quicker
            near[start : start + block, 0] = similarity.argmax(axis=1)
        else:
            _neighbours.top_columns(similarity, np.ones(len(centroids), np.float32), near[start : start + block])
        best = near[start : start + block, 0]
        distance[start : start + block] = 1 - similarity[np.arange(len(best)), best]
    return near, np.clip(distance, 0, 2)


def fit_on_grid(
    grid: npt.NDArray[np.int16], n_clusters: int, *, iterations: int, threads: int = 1, device: str | None = None
) -> npt.NDArray[np.int16]:
    """Fit spherical k-means on grid rows: the same centroids on every machine, for any thread count.

    Products are exact (see `grid`), and so are the sums of a cluster's rows, which are whole numbers. The first
    centroids are rows evenly spaced; a cluster that loses its last row keeps its centroid. BLAS must be limited to
    one thread.

    Args:
        grid: int16[m, d] from `to_grid`, m >= 1.
        n_clusters: Wanted clusters; clipped to m.
        iterations: Lloyd iterations.
        threads: Threads to use.
        device: A torch device for the products; None for numpy.

    Returns:
        int16[k, d], the centroids on the grid.
    """
    centroids = grid[evenly_spaced(len(grid), n_clusters)]
    for _ in range(iterations):
        labels = nearest_on_grid(grid, centroids, 1, threads, device)[:, 0]
        order = np.argsort(labels, kind="stable")
        used, first = np.unique(labels[order], return_index=True)
        sums = np.stack([grid[rows].sum(axis=0, dtype=np.int64) for rows in np.split(order, first[1:])])
        lengths = np.sqrt((sums.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
        moved = lengths[:, 0] > 0
        centroids[used[moved]] = to_grid((sums[moved] / lengths[moved]).astype(np.float32))
    return centroids


def nearest_on_grid(
    grid: npt.NDArray[np.int16],
    centroids: npt.NDArray[np.int16],
    count: int,
    threads: int = 1,
    device: str | None = None,
) -> npt.NDArray[np.int32]:
    """The nearest centroids of each row by cosine, nearest first, ties to the lowest.

    BLAS must be limited to one thread.

    Args:
        grid: int16[n, d] from `to_grid`.
        centroids: int16[k, d], likewise.
        count: How many to name, at most k.
        threads: Threads to use.
        device: A torch device for the products; None for numpy.

    Returns:
        int32[n, count].
    """
    from tamis.embeddings import _neighbours

    out = np.empty((len(grid), count), np.int32)
    scale, columns = cosine_scale(centroids), centroids.astype(np.float32).T
    block = max(16, min(2048, _TILE_ELEMENTS // len(centroids)))

    def find(start: int) -> None:
        rows = slice(start, start + block)
        _neighbours.top_columns(grid[rows].astype(np.float32) @ columns, scale, out[rows])

    if device is not None:
        from tamis.embeddings import on_device

        block = on_device.rows_at_a_time(len(centroids))
        there, there_scale = on_device.put(centroids, device), on_device.put(scale, device)
        for start in range(0, len(grid), block):
            here = on_device.put(grid[start : start + block], device)
            out[start : start + block] = on_device.top_columns(here, there, there_scale, count).cpu().numpy()
        return out
    each(threads, find, range(0, len(grid), block))
    return out
