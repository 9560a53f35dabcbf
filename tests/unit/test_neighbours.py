import dataclasses

import numpy as np
import pytest
import torch

from tamis.embeddings import _neighbours, kmeans, neighbours, on_device
from tamis.embeddings.grid import UNIT, cosine_scale, to_grid
from tamis.embeddings.kmeans import fit_on_grid, nearest_on_grid
from tamis.embeddings.neighbours import make_cells, nearest_neighbours, neighbour_graph, symmetric_lists
from tamis.selectors.kernels import DenseKernel
from tamis.selectors.selection import as_unit_rows

# Each way to compute the same.
WAYS = [{}, {"threads": 2}, {"threads": 3}, {"device": "cpu"}]


def clustered(n, d=6, centres=9, spread=0.4, seed=0):
    """Rows around some centres; every seventh is a copy of the row before, every eleventh its opposite."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(centres, d))[rng.integers(centres, size=n)] + spread * rng.normal(size=(n, d))
    X[7::7] = X[6:-1:7]
    X[11::11] = -X[10:-1:11]
    return as_unit_rows(X)


def levels(n, seed=0):
    """Rows of few directions: ties everywhere."""
    X = np.random.default_rng(seed).integers(-2, 3, size=(n, 3)).astype(np.float32)
    X[~X.any(axis=1), 0] = 1
    return as_unit_rows(X)


def small_blocks(monkeypatch, rows):
    """So few rows and elements at a time that there are many blocks, the last of them partly filled."""
    for module, name, value in (
        (neighbours, "_BLOCK_ROWS", rows),
        (neighbours, "_SLAB_ROWS", 3 * rows),
        (kmeans, "_TILE_ELEMENTS", 64 * rows),
        (on_device, "_MOST_ELEMENTS", 100 * rows),
    ):
        monkeypatch.setattr(module, name, value)


def scaled_products(rows, columns):
    """Products times the columns' scale, by int64 and in float32: what orders the centroids."""
    products = rows.astype(np.int64) @ columns.astype(np.int64).T
    return products.astype(np.float32) * cosine_scale(columns)[None, :]


def nearest_by_sorting(rows, columns, count):
    return np.argsort(-scaled_products(rows, columns), axis=1, kind="stable")[:, :count]


def brute(X, cells, k, candidates, places):
    """The k nearest candidates of each row among the places of the order that it sees: nearest, then first placed."""
    K = DenseKernel.of(X).matrix
    found, similarity = np.full((len(X), k), -1), np.zeros((len(X), k), np.int64)
    for at, seen in enumerate(places):
        i = cells.order[at]
        rows = [j for j in cells.order[seen].tolist() if K[i, j] > 0 and (candidates is None or candidates[j])]
        rows.sort(key=lambda j: -int(K[i, j]))  # stable
        found[i, : len(rows)], similarity[i, : len(rows)] = rows[:k], K[i, rows[:k]]
    return found, similarity


def all_places(cells):
    return [np.arange(len(cells.order))] * len(cells.order)


def probed_places(cells):
    """What each row sees: its probes, until it has seen as many rows as that many cells hold on average."""
    enough = cells.probes.shape[1] * len(cells.order) // len(cells.centroids)
    for probes in cells.probes.tolist():
        seen, total = [], 0
        for cell in probes:
            if total < enough:
                seen.append(cell)
            total += cells.start[cell + 1] - cells.start[cell]
        yield np.concatenate([np.arange(cells.start[c], cells.start[c + 1]) for c in sorted(seen)])


@pytest.mark.parametrize("make", [clustered, levels])
@pytest.mark.parametrize("block", [16, 2048])
@pytest.mark.parametrize(
    ("n", "count", "k"), [(150, 12, 5), (150, 150, 3), (90, 1, 120), (60, 7, 1), (2, 2, 3), (1, 1, 2)]
)
def test_all_cells_probed_is_all_pairs(monkeypatch, make, block, n, count, k):
    small_blocks(monkeypatch, block)
    X = make(n)
    rng = np.random.default_rng(n)
    for candidates in (None, rng.random(n) < 0.4, np.zeros(n, np.bool_), np.arange(n) == n // 2):
        cells = make_cells(X, count, probes=n)
        expected = brute(X, cells, k, candidates, all_places(cells))
        for how in WAYS:
            found, similarity = nearest_neighbours(cells, k, candidates=candidates, **how)
            assert (found.dtype, similarity.dtype) == (np.int32, np.uint16)
            np.testing.assert_array_equal(found, expected[0], str(how))
            np.testing.assert_array_equal(similarity, expected[1], str(how))


@pytest.mark.parametrize("make", [clustered, levels])
@pytest.mark.parametrize(("count", "probes"), [(12, 1), (12, 3), (30, 7), (100, 20)])
def test_few_cells_probed_is_all_pairs_of_these_cells(make, count, probes):
    X = make(200, seed=3)
    cells = make_cells(X, count, probes=probes)
    candidates = np.random.default_rng(4).random(200) < 0.5
    for some in (None, candidates):
        expected = brute(X, cells, 6, some, probed_places(cells))
        for how in WAYS:
            found, similarity = nearest_neighbours(cells, 6, candidates=some, **how)
            np.testing.assert_array_equal(found, expected[0], str(how))
            np.testing.assert_array_equal(similarity, expected[1], str(how))


def test_rows_that_probe_nothing_find_nothing():
    X = clustered(100)
    cells = make_cells(X, 8, probes=4)
    asking = np.random.default_rng(1).random(100) < 0.3  # places in the order
    some = dataclasses.replace(cells, probes=np.where(asking[:, None], cells.probes, -1).astype(np.int32))
    for how in WAYS:
        found, similarity = nearest_neighbours(some, 5, **how)
        whole, whole_similarity = nearest_neighbours(cells, 5)
        np.testing.assert_array_equal(found[cells.order[asking]], whole[cells.order[asking]])
        np.testing.assert_array_equal(similarity[cells.order[asking]], whole_similarity[cells.order[asking]])
        assert (found[cells.order[~asking]] == -1).all()
        assert (similarity[cells.order[~asking]] == 0).all()


@pytest.mark.parametrize(
    ("n", "count", "probes"), [(400, 25, 4), (400, None, 24), (400, 400, 2), (30, 90, 5), (1, None, 24)]
)
@pytest.mark.parametrize("make", [clustered, levels])
def test_cells_are_what_they_say(monkeypatch, make, n, count, probes):
    small_blocks(monkeypatch, 32)
    X = make(n)
    cells = make_cells(X, count, probes=probes)
    centroids = len(cells.centroids)
    assert centroids == min(n, count or round(4 * np.sqrt(n)))
    np.testing.assert_array_equal(np.sort(cells.order), np.arange(n))
    np.testing.assert_array_equal(cells.grid, to_grid(X)[cells.order])
    np.testing.assert_array_equal(cells.scale, cosine_scale(cells.grid))
    np.testing.assert_array_equal(cells.probes, nearest_by_sorting(cells.grid, cells.centroids, min(probes, centroids)))
    own = np.repeat(np.arange(centroids), np.diff(cells.start))
    np.testing.assert_array_equal(own, cells.probes[:, 0])
    members = cells.members()
    assert all(len(rows) and (np.diff(rows) > 0).all() for rows in members)
    np.testing.assert_array_equal(np.concatenate(members), cells.order)
    for how in WAYS[1:]:
        other = make_cells(X, count, probes=probes, **how)
        for field in dataclasses.fields(cells):
            np.testing.assert_array_equal(getattr(cells, field.name), getattr(other, field.name))


def test_cells_of_identical_rows_are_empty_but_one():
    X = np.tile(as_unit_rows([[0.6, 0.8, 0.1]]), (70, 1))
    cells = make_cells(X, 9, probes=3)
    assert np.diff(cells.start).tolist() == [70, *[0] * 8]
    assert [rows.tolist() for rows in cells.members()] == [list(range(70))]
    for how in WAYS:
        found, similarity = nearest_neighbours(cells, 4, **how)
        assert found.tolist() == [[0, 1, 2, 3]] * 70  # equally near: the lowest
        assert (similarity == UNIT).all()


def test_opposite_and_orthogonal_rows_are_no_neighbours():
    X = as_unit_rows([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [2.0, 0.0]])
    for how in WAYS:
        found, similarity = nearest_neighbours(make_cells(X, 2, probes=2), 3, **how)
        assert [sorted(row) for row in found.tolist()] == [[-1, 0, 3], [-1, -1, 1], [-1, -1, 2], [-1, 0, 3]]
        np.testing.assert_array_equal(similarity > 0, found >= 0)
        assert set(similarity.ravel().tolist()) == {0, UNIT}


def lloyd(grid, wanted, iterations):
    """Spherical k-means by the book, on whole numbers: sums of members, to the grid again."""
    k = min(wanted, len(grid))
    centroids = grid[[i * len(grid) // k for i in range(k)]].copy()
    for _ in range(iterations):
        labels = nearest_by_sorting(grid, centroids, 1)[:, 0]
        for cell in range(k):
            total = grid[labels == cell].astype(np.int64).sum(axis=0)
            length = np.sqrt((total.astype(np.float64) ** 2).sum())
            if length > 0:
                centroids[cell] = to_grid((total / length).astype(np.float32)[None])[0]
    return centroids


@pytest.mark.parametrize("make", [clustered, levels])
@pytest.mark.parametrize(("n", "k"), [(300, 10), (300, 299), (40, 60), (1, 3)])
def test_k_means_on_the_grid_is_lloyds(monkeypatch, make, n, k):
    small_blocks(monkeypatch, 16)
    grid = to_grid(make(n, seed=2))
    before = grid.copy()
    for iterations in (0, 1, 5):
        expected = lloyd(grid, k, iterations)
        for how in WAYS:
            centroids = fit_on_grid(grid, k, iterations=iterations, **how)
            assert centroids.dtype == np.int16
            np.testing.assert_array_equal(centroids, expected)
    np.testing.assert_array_equal(grid, before)


def test_a_cell_whose_rows_cancel_keeps_its_centroid():
    grid = to_grid(as_unit_rows([[1.0, 0.0], [-1.0, 0.0]]))
    np.testing.assert_array_equal(fit_on_grid(grid, 1, iterations=3), grid[:1])


@pytest.mark.parametrize("make", [clustered, levels])
@pytest.mark.parametrize(("n", "columns", "count"), [(130, 70, 9), (130, 70, 70), (33, 32, 1), (5, 200, 3), (1, 1, 1)])
def test_nearest_centroids(monkeypatch, make, n, columns, count):
    small_blocks(monkeypatch, 16)
    grid, centroids = to_grid(make(n)), to_grid(make(columns, seed=8))
    expected = nearest_by_sorting(grid, centroids, count)
    for how in WAYS:
        found = nearest_on_grid(grid, centroids, count, **how)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, expected, str(how))


def test_products_of_zero_and_below_are_in_order_too():
    # -0.0 and 0.0 are equal, and the bits of negative floats run backwards.
    rows, columns = np.array([[4, 0]], np.int16), np.array([[0, 4], [-4, 0], [-2, 4], [0, -4], [2, 4]], np.int16)
    expected = [[4, 0, 3, 2, 1]]
    assert nearest_on_grid(rows, columns, 5).tolist() == expected
    assert nearest_on_grid(rows, columns, 5, device="cpu").tolist() == expected
    tile, out = np.array([[0.0, -0.0, -1.0, 0.0]], np.float32), np.empty((1, 4), np.int32)
    _neighbours.top_columns(tile, np.ones(4, np.float32), out)
    assert out.tolist() == [[0, 1, 3, 2]]


@pytest.mark.parametrize("make", [clustered, levels])
@pytest.mark.parametrize(("n", "k"), [(80, 5), (80, 1), (3, 6), (1, 1)])
def test_lists_are_symmetric_and_the_row_itself_comes_first(make, n, k):
    X = make(n, seed=5)
    K = DenseKernel.of(X).matrix
    cells = make_cells(X, probes=4)
    candidates = np.random.default_rng(0).random(n) < 0.6
    for some in (None, candidates):  # among candidates only, a row may not find itself
        found, similarity = nearest_neighbours(cells, k, candidates=some)
        start, column, value = symmetric_lists(found, similarity)
        assert (start.dtype, column.dtype, value.dtype) == (np.int64, np.int32, np.uint16)
        assert start[0] == 0
        joined = np.eye(n, dtype=np.bool_)
        for i, row in enumerate(found.tolist()):
            joined[i, [j for j in row if j >= 0]] = True
        joined |= joined.T
        for i in range(n):
            mine = slice(start[i], start[i + 1])
            assert column[mine][0] == i
            assert sorted(column[mine].tolist()) == np.flatnonzero(joined[i]).tolist()
            np.testing.assert_array_equal(value[mine], K[i, column[mine]])
        assert start[-1] == joined.sum()
        for threads in (2, 3, 7):
            for part, expected in zip(symmetric_lists(found, similarity, threads), (start, column, value), strict=True):
                np.testing.assert_array_equal(part, expected)


def test_the_graph_is_the_lists_as_a_matrix():
    X = clustered(300)
    found, similarity = nearest_neighbours(make_cells(X, probes=6), 8)
    start, column, value = symmetric_lists(found, similarity)
    dense = np.zeros((300, 300), np.float32)
    for i in range(300):
        dense[i, column[start[i] : start[i + 1]]] = value[start[i] : start[i + 1]] / UNIT
    for threads in (1, 2):
        graph = neighbour_graph(X, 8, probes=6, threads=threads)
        assert graph.format == "csr"
        assert graph.dtype == np.float32
        np.testing.assert_array_equal(graph.toarray(), dense)
    np.testing.assert_array_equal(dense, dense.T)
    assert (np.diag(dense) == 1).all()
    assert graph.nnz == len(value)
    assert graph.data.min() > 0
    np.testing.assert_allclose(graph.toarray()[dense > 0], (X @ X.T)[dense > 0], atol=6e-4)


def test_most_true_neighbours_are_found():
    X = clustered(3000, d=24, centres=60, seed=1)
    K = DenseKernel.of(X).matrix
    least = np.partition(K, -10, axis=1)[:, -10]
    found, similarity = nearest_neighbours(make_cells(X), 10)
    assert (found >= 0).all()
    assert (similarity >= least[:, None]).mean() > 0.97
    few = nearest_neighbours(make_cells(X, probes=2), 10)[1]
    assert (few >= least[:, None]).mean() < 0.97  # so that the figure above says something


def test_where_tf32_is_allowed_cells_and_neighbours_stay_the_same(monkeypatch):
    X = clustered(200, d=64)
    expected = nearest_neighbours(make_cells(X, 10, probes=3), 5)
    monkeypatch.setattr(on_device, "_tf32_allowed", lambda: True)
    asked = []
    multiply = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: asked.append(a.dtype) or multiply(a, b))
    found = nearest_neighbours(make_cells(X, 10, probes=3, device="cpu"), 5, device="cpu")
    assert set(asked) == {torch.float64}
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_input_is_only_read():
    X = clustered(120)
    before = X.copy()
    X.setflags(write=False)
    cells = make_cells(X)
    for field in dataclasses.fields(cells):
        getattr(cells, field.name).setflags(write=False)
    candidates = np.ones(120, np.bool_)
    candidates.setflags(write=False)
    for how in WAYS:
        found, similarity = nearest_neighbours(cells, 4, candidates=candidates, **how)
        found.setflags(write=False)
        similarity.setflags(write=False)
        symmetric_lists(found, similarity)
    np.testing.assert_array_equal(X, before)
