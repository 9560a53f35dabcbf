import numpy as np
import pytest

from tamis.embeddings import kmeans
from tamis.embeddings.kmeans import assign, fit_spherical


def unit_rows(n, d=12, groups=9, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(groups, d))[rng.integers(groups, size=n)] + 0.5 * rng.normal(size=(n, d))
    return (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32)


def lloyd(X, centroids, iterations):
    """By the definition, in float64."""
    for _ in range(iterations):
        labels = (X.astype(np.float64) @ centroids.astype(np.float64).T).argmax(axis=1)
        sums = np.stack([X[labels == c].sum(axis=0, dtype=np.float64) for c in range(len(centroids))])
        centroids = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    return centroids


def coherence(X, centroids):
    """The objective: how near rows are to their centroids."""
    return float((X @ centroids.T).max(axis=1).mean())


def test_it_is_lloyds_iteration():
    X = unit_rows(3000)
    start = fit_spherical(X, 9, iterations=0, seed=4)
    assert (X[None] == start[:, None]).all(axis=2).any(axis=1).all()  # nine of the rows
    assert len(np.unique(start, axis=0)) == 9
    for iterations in (1, 3):
        found = fit_spherical(X, 9, iterations=iterations, seed=4)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, lloyd(X, start, iterations), atol=1e-5)
    assert coherence(X, found) > coherence(X, start) + 0.05


def test_it_ends_where_nothing_moves(monkeypatch):
    X = unit_rows(500, groups=3)
    searches, search = [], kmeans._search
    monkeypatch.setattr(kmeans, "_search", lambda *given: searches.append(1) or search(*given))
    found = fit_spherical(X, 3, iterations=200, seed=1)
    assert 2 <= len(searches) < 60
    np.testing.assert_allclose(found, lloyd(X, found, 1), atol=1e-6)


def test_it_is_as_good_as_faiss():
    import faiss

    X = unit_rows(5000, groups=40)
    peer = faiss.Kmeans(12, 40, niter=20, spherical=True, seed=1, min_points_per_centroid=1)
    peer.train(X)
    ours = np.median([coherence(X, fit_spherical(X, 40, iterations=20, seed=seed)) for seed in range(5)])
    assert ours > 0.99 * coherence(X, peer.centroids)


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_threads_change_no_bit(threads):
    X = unit_rows(10 * kmeans._SEARCH_ROWS + 7, d=33, groups=100)
    found = fit_spherical(X, 50, iterations=4, seed=0)
    assert fit_spherical(X, 50, iterations=4, seed=0, threads=threads).tobytes() == found.tobytes()
    for count in (1, 4):
        alone, shared = assign(X, found, count), assign(X, found, count, threads)
        assert [part.tobytes() for part in shared] == [part.tobytes() for part in alone]


def test_the_setting_of_faiss_is_left_as_it_was():
    import faiss

    threshold = faiss.cvar.distance_compute_blas_threshold
    fit_spherical(unit_rows(300), 9, iterations=2, seed=0)
    assert faiss.cvar.distance_compute_blas_threshold == threshold > 1


def test_sums_are_those_of_each_cluster_however_many_threads_there_are():
    X = unit_rows(999)
    labels = np.random.default_rng(0).integers(7, size=999).astype(np.int32)
    expected = np.stack([X[labels == c].astype(np.float64).sum(axis=0) for c in range(8)])
    for threads in (1, 3, 8, 20):
        np.testing.assert_allclose(kmeans._sums(X, labels, 8, threads), expected, atol=1e-9)


def test_rows_that_are_all_alike_or_opposite_leave_clusters_empty_and_centroids_of_length_one():
    X = np.tile(np.eye(1, 5, dtype=np.float32), (300, 1))
    for rows, used in ((X, 1), (X * np.resize([1, -1], (300, 1)).astype(np.float32), 2)):
        centroids = fit_spherical(rows, 7, iterations=6, seed=3)
        np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-6)
        near, distance = assign(rows, centroids)
        assert len(np.unique(near)) == used
        np.testing.assert_allclose(distance, 0, atol=1e-6)
    # The sum of opposite rows is zero: the centroid stays where it was.
    assert abs(fit_spherical(rows, 1, iterations=3, seed=0)).tolist() == [[1, 0, 0, 0, 0]]


def test_an_empty_cluster_takes_half_of_the_largest():
    centroids = np.eye(3, 4, dtype=np.float32)
    sums = np.array([[8.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0]])
    moved = kmeans._moved(centroids, sums, np.array([8, 2, 0]))
    np.testing.assert_allclose(moved, [[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0]], atol=1e-6)
    sums[0] = 1.0
    moved = kmeans._moved(centroids, sums, np.array([8, 2, 0]))
    assert 0 < np.abs(moved[0] - moved[2]).max() < 0.01
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 1, atol=1e-6)


def test_as_many_clusters_as_rows_are_the_rows():
    X = unit_rows(6)
    for wanted in (6, 60):
        assert fit_spherical(X, wanted, iterations=3, seed=0).tolist() == X.tolist()


@pytest.mark.parametrize("count", [1, 3, 9, 12])
def test_the_nearest_come_first_and_ties_go_to_the_lowest(count):
    X = unit_rows(2500)
    centroids = np.concatenate([unit_rows(3, seed=1), unit_rows(6, seed=2), unit_rows(3, seed=1)])
    near, distance = assign(X, centroids, count)
    assert (near.dtype, distance.dtype, near.shape) == (np.int32, np.float32, (2500, min(count, 12)))
    cosine = X.astype(np.float64) @ centroids.astype(np.float64).T
    np.testing.assert_allclose(distance, np.clip(1 - cosine.max(axis=1), 0, 2), atol=1e-6)
    found = np.take_along_axis(cosine, near, axis=1)
    np.testing.assert_allclose(found, -np.sort(-cosine, axis=1)[:, :count], atol=1e-6)
    assert (np.sort(near, axis=1)[:, 1:] > np.sort(near, axis=1)[:, :-1]).all()
    assert near[:, 0].max() < 9  # the copies of the first three are never first


@pytest.mark.parametrize("threads", [1, 2])
def test_faiss_searches_on_one_thread_and_by_products_whatever_the_size(threads, monkeypatch):
    """Its threshold would give the last rows of a block other last bits."""
    import faiss

    seen, search = [], faiss.knn

    def knn(*given, **options):
        seen.append((faiss.omp_get_max_threads(), faiss.cvar.distance_compute_blas_threshold))
        return search(*given, **options)

    monkeypatch.setattr(faiss, "knn", knn)
    usual = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(2)
    try:
        assign(unit_rows(kmeans._SEARCH_ROWS + 5), unit_rows(9, seed=1), threads=threads)
        assert seen == [(1, 1), (1, 1)]
        assert faiss.omp_get_max_threads() == 2
    finally:
        faiss.omp_set_num_threads(usual)
    assert [len(part) for part in assign(unit_rows(0), unit_rows(9))] == [0, 0]
