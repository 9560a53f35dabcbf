"""Spherical k-means: fitted on a sample, assigned block by block, the same for any thread count.

faiss searches fixed blocks of rows, each on one thread, by matrix products. Left to itself it parts the work by the
number of threads, and so do the products' last bits.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack

import numpy as np
import numpy.typing as npt

from tamis.embeddings.grid import cosine_scale, to_grid
from tamis.threads import Shared, each

Matrix = npt.NDArray[np.float32]

_TILE_ELEMENTS = 1 << 23  # similarities at a time: 32 MiB of float32
_SEARCH_ROWS = 1024  # in a block: the products of one stay in the cache, and many blocks share evenly among threads
_APART = 1 / 1024  # by how much the halves of a split cluster are moved apart, as in faiss


def evenly_spaced(n: int, count: int) -> npt.NDArray[np.int64]:
    """At most `count` of the positions 0 .. n - 1, at even distances: a sample that needs no random draw."""
    count = min(n, count)
    return np.arange(count, dtype=np.int64) * n // max(1, count)


def fit_spherical(sample: Matrix, n_clusters: int, *, iterations: int, seed: int, threads: int = 1) -> Matrix:
    """Fit spherical k-means (Dhillon and Modha, 2001) on unit vectors: Lloyd's iterations from rows drawn at random.

    A cluster that loses its last row takes half of the largest one.

    Args:
        sample: float32[m, d] unit rows, m >= 1.
        n_clusters: Wanted clusters; clipped to m.
        iterations: Lloyd iterations, at most: they end where no row changes its cluster.
        seed: Seed of the initial centroids, at least 0.
        threads: Threads to use; the centroids do not depend on it.

    Returns:
        float32[k, d] unit centroids.
    """
    m, k = len(sample), min(n_clusters, len(sample))
    if k == m:
        return np.array(sample, np.float32)
    sample = np.ascontiguousarray(sample, np.float32)
    centroids = sample[np.random.default_rng(seed).choice(m, k, replace=False)]
    before = np.full(m, -1, np.int32)
    for _ in range(iterations):
        labels = _search(sample, centroids, 1, threads)[0][:, 0]
        sizes = np.bincount(labels, minlength=k)
        if sizes.all() and np.array_equal(labels, before):
            break  # from here on nothing moves
        centroids, before = _moved(centroids, _sums(sample, labels, k, threads), sizes), labels
    return centroids


def _sums(sample: Matrix, labels: npt.NDArray[np.int32], k: int, threads: int) -> npt.NDArray[np.float64]:
    """Sum the rows of each cluster, float64[k, d], in their order; each thread has clusters of its own."""
    from tamis.embeddings import _neighbours

    sums = np.zeros((k, sample.shape[1]))
    width = -(-k // threads)
    each(
        threads,
        lambda first: _neighbours.add_rows(sample, labels, first, sums[first : first + width]),
        range(0, k, width),
    )
    return sums


def _moved(centroids: Matrix, sums: npt.NDArray[np.float64], sizes: npt.NDArray[np.int64]) -> Matrix:
    """The clusters' new centroids; where a sum is zero the old one stays."""
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    moved = np.where(lengths > 0, sums / np.where(lengths > 0, lengths, 1), centroids)
    for empty in np.flatnonzero(sizes == 0):
        largest = np.argmax(sizes)
        sizes[empty] = sizes[largest] // 2
        sizes[largest] -= sizes[empty]
        moved[empty] = moved[largest]
        for half, sign in ((empty, _APART), (largest, -_APART)):
            moved[half, ::2] *= 1 + sign
            moved[half, 1::2] *= 1 - sign
            moved[half] /= np.linalg.norm(moved[half])
    return moved.astype(np.float32)


def assign(
    vectors: Matrix, centroids: Matrix, count: int = 1, threads: int = 1
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Assign unit vectors to the nearest centroids by cosine; of equally near ones the lowest cluster comes first.

    Args:
        vectors: float32[n, d] unit rows.
        centroids: float32[k, d] unit rows.
        count: How many of the nearest to name; clipped to k.
        threads: Threads to use; the result does not depend on it.

    Returns:
        int32[n, count] clusters, nearest first, and float32[n] cosine distances 1 - cos in [0, 2] to the nearest.
    """
    near, similarity = _search(vectors, centroids, min(count, len(centroids)), threads)
    if near.shape[1] > 1:
        order = np.lexsort((near, -similarity))
        near, similarity = np.take_along_axis(near, order, axis=1), np.take_along_axis(similarity, order, axis=1)
    return near, np.clip(1 - similarity[:, 0], 0, 2)


def _search(
    vectors: Matrix, centroids: Matrix, count: int, threads: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """The nearest centroids of each row, int32[n, count], and their cosines, float32[n, count], largest first."""
    import faiss

    near = np.empty((len(vectors), count), np.int32)
    similarity = np.empty((len(vectors), count), np.float32)

    def find(start: int) -> None:
        rows = slice(start, start + _SEARCH_ROWS)
        before = faiss.omp_get_max_threads()  # of the calling thread
        faiss.omp_set_num_threads(1)
        try:
            similarity[rows], near[rows] = faiss.knn(vectors[rows], centroids, count, metric=faiss.METRIC_INNER_PRODUCT)
        finally:
            faiss.omp_set_num_threads(before)

    with _by_products():
        each(threads, find, range(0, len(vectors), _SEARCH_ROWS))
    return near, similarity


def _blas_always() -> AbstractContextManager[object]:
    """Let faiss search by matrix products whatever the size, and not sometimes by a loop with other last bits."""
    import faiss

    stack = ExitStack()
    stack.callback(setattr, faiss.cvar, "distance_compute_blas_threshold", faiss.cvar.distance_compute_blas_threshold)
    faiss.cvar.distance_compute_blas_threshold = 1
    return stack


_by_products = Shared(_blas_always)


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
