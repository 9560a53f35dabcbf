import hashlib
import itertools
import math
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tamis
from tamis.errors import DataError, RecipeError
from tamis.pipelines.stages import dedup
from tamis.selectors import near_duplicates as near_duplicates_of
from tamis.selectors.dedup import exact_duplicates, near_pairs, resolve_pairs, resolve_rows
from tamis.selectors.near_duplicates import cell_pairs, make_cells, receiving_clusters, split_group
from tamis.selectors.selection import as_unit_rows
from tamis.threads import one_blas_thread


def brute_exact(keys, order):
    groups = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append((order[row], row))
    return [min(groups[key])[1] for key in keys]


@pytest.mark.parametrize("form", ["S16", "V16", "uint8"])
def test_exact_duplicates_against_a_dictionary(form):
    generator = np.random.default_rng(0)
    # md5 of few values; some keys end in zero bytes, which numpy's S type would not show.
    raw = [hashlib.md5(bytes([v])).digest() for v in generator.integers(0, 30, size=200)]
    raw += [b"\0" * 16, b"\0" * 16, b"a" + b"\0" * 15, b"a" + b"\0" * 14 + b"b", b"\0" * 15 + b"a"]
    order = generator.permutation(len(raw))
    keys = np.frombuffer(b"".join(raw), np.uint8).reshape(-1, 16)
    if form != "uint8":
        keys = keys.view(form).ravel()
    kept_of = exact_duplicates(keys, order)
    assert kept_of.dtype == np.int64
    assert kept_of.tolist() == brute_exact(raw, order.tolist())


def test_exact_duplicates_edges():
    assert exact_duplicates(np.empty(0, "S16"), np.empty(0, np.int64)).tolist() == []
    assert exact_duplicates(np.array([b"x"], "S16"), np.array([3])).tolist() == [0]
    assert exact_duplicates(np.array([b"x"] * 3, "S16"), np.zeros(3, int)).tolist() == [0, 0, 0]
    for keys, order in (
        (np.array(["x"]), np.array([0])),
        (np.array([b"x"], "S8"), np.array([0])),
        (np.zeros((2, 15), np.uint8), np.arange(2)),
        (np.zeros((2, 16), np.uint8), np.arange(3)),
        (np.zeros((2, 16), np.uint8), np.array([0.5, 1.0])),
    ):
        with pytest.raises(DataError):
            exact_duplicates(keys, order)


def float64_cosines(X):
    """All cosines, each by exactly rounded sums."""
    wide = X.astype(np.float64).tolist()
    length = [math.sqrt(math.fsum(x * x for x in row)) for row in wide]
    cosines = np.empty((len(X), len(X)))
    for a, b in itertools.product(range(len(X)), repeat=2):
        product = math.fsum(x * y for x, y in zip(wide[a], wide[b], strict=True))
        cosines[a, b] = product / (length[a] * length[b])
    return cosines


def at_the_threshold(cosine, seed, n=60, d=37):
    """Rows whose cosines to row 0 differ from a given one by less than float32 can tell."""
    generator = np.random.default_rng(seed)
    first, *others = np.linalg.qr(generator.normal(size=(d, d)))[0]
    wanted = cosine + generator.uniform(-2e-7, 2e-7, size=n - 1)
    rows = [first] + [c * first + np.sqrt(1 - c * c) * others[p % (d - 1)] for p, c in enumerate(wanted)]
    return as_unit_rows(np.array(rows))


def alike(n, d, seed, groups=8, spread=0.4):
    """Rows in groups, in which many are near duplicates and some are equal."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(groups, d))
    rows = centres[generator.integers(groups, size=n)] + spread * generator.normal(size=(n, d))
    rows[generator.integers(n, size=n // 10)] = rows[0]
    return as_unit_rows(rows)


@pytest.mark.parametrize("block", [1, 7, 50, 1024])
def test_near_pairs_are_all_pairs(block):
    X = as_unit_rows(np.random.default_rng(1).normal(size=(50, 4)))
    exact = float64_cosines(X)
    i, j, cosine = near_pairs(X, 0.6, block)
    expected = [(a, b) for a in range(50) for b in range(a + 1, 50) if exact[a, b] >= 0.6]
    assert list(zip(i.tolist(), j.tolist(), strict=True)) == expected
    np.testing.assert_allclose(cosine, exact[i, j], rtol=0, atol=1e-15)
    assert (i.dtype, j.dtype, cosine.dtype) == (np.int64, np.int64, np.float64)


@pytest.mark.parametrize("seed", range(5))
def test_pairs_are_decided_in_float64(seed):
    X = at_the_threshold(0.9, seed)
    exact = float64_cosines(X)
    # Products in float32 decide some of these wrongly, or this test would show nothing.
    assert ((X @ X.T >= 0.9) != (exact >= 0.9)).any()
    i, j, _ = near_pairs(X, 0.9)
    expected = np.argwhere(np.triu(exact >= 0.9, 1))
    np.testing.assert_array_equal(np.stack((i, j), axis=1), expected)


@pytest.mark.parametrize("d", [1, 3, 8, 100, 1000])
def test_pairs_are_bit_for_bit_the_same_in_blocks_of_any_size(d):
    X = alike(150, d, d)
    expected = near_pairs(X, 0.9)
    assert len(expected[0]) > 50
    for block in (1, 13, 64, 149):
        for part, other in zip(near_pairs(X, 0.9, block), expected, strict=True):
            np.testing.assert_array_equal(part, other)
    # Nor do they depend on where a row stands.
    order = np.random.default_rng(d).permutation(150)
    i, j, cosine = near_pairs(X[order], 0.9)
    found = {(min(a, b), max(a, b)): c for a, b, c in zip(order[i], order[j], cosine, strict=True)}
    assert found == {(a, b): c for a, b, c in zip(*expected, strict=True)}


@pytest.mark.parametrize("block", [7, 64, 512])
def test_near_pairs_with_others_are_the_pairs_of_both_together(block):
    X = alike(180, 12, 4)
    i, j, cosine = near_pairs(X, 0.8)
    across = (i < 70) & (j >= 70)
    found = near_pairs(X[:70], 0.8, block, others=X[70:])
    for part, expected in zip(found, (i[across], j[across] - 70, cosine[across]), strict=True):
        np.testing.assert_array_equal(part, expected)
    assert len(found[0]) > 50
    assert near_pairs(X[:70], 0.8, block, limit=len(found[0]) - 1, others=X[70:]) is None
    assert [len(part) for part in near_pairs(X[:0], 0.8, others=X)] == [0, 0, 0]
    assert [len(part) for part in near_pairs(X, 0.8, others=X[:0])] == [0, 0, 0]


def test_near_pairs_edges():
    X = np.tile(as_unit_rows(np.array([[1.0, 2.0, 3.0]])), (4, 1))
    i, j, cosine = near_pairs(X, 1.0)
    assert list(zip(i, j, strict=True)) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert (cosine == 1).all()
    assert [len(part) for part in near_pairs(X[:1], 0.5)] == [0, 0, 0]
    assert [len(part) for part in near_pairs(X[:0], 0.5)] == [0, 0, 0]
    assert len(near_pairs(np.eye(3, dtype=np.float32), -1.0)[0]) == 3
    for floor, block in ((1.5, 10), (np.nan, 10), (0.5, 0)):
        with pytest.raises(RecipeError):
            near_pairs(X, floor, block)


@pytest.mark.parametrize("block", [5, 512])
def test_near_pairs_beyond_the_limit_are_none(block):
    X = alike(100, 10, 0)
    count = len(near_pairs(X, 0.9)[0])
    assert len(near_pairs(X, 0.9, block, limit=count)[0]) == count
    assert near_pairs(X, 0.9, block, limit=count - 1) is None
    assert near_pairs(X, 0.9, block, limit=0) is None


def peak_bytes(function):
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_pairs():
    X = np.tile(as_unit_rows(np.array([[1.0, 2.0, 3.0, 4.0]])), (20_000, 1))  # 200 million pairs
    priority = np.arange(20_000)[::-1]
    near_pairs(X[:2], 0.9), resolve_rows(X[:2], 0.1, priority[:2])  # compiled before the measurement
    with one_blas_thread():  # looking for the libraries that are loaded takes memory too
        assert peak_bytes(lambda: near_pairs(X, 0.9, 256, limit=10_000)) < 4 << 20
        assert peak_bytes(lambda: resolve_rows(X, 0.1, priority, 256)) < 4 << 20
    kept_of, similarity = resolve_rows(X, 0.1, priority)
    assert (kept_of == 19_999).all()
    assert (similarity == 1).all()


def brute_resolve(n, pairs, eps, priority, always=0):
    """The definition, item by item, over a dictionary of similarities."""
    similar = {}
    for a, b, c in pairs:
        similar[a, b] = similar[b, a] = max(c, similar.get((a, b), -1.0))
    visited = sorted(range(n), key=lambda x: (priority[x], x))
    kept, kept_of, similarity = [], [-1] * n, [0.0] * n
    for number, x in enumerate(visited):
        near = number >= always and [
            (-similar[x, y], kept.index(y), y) for y in kept if similar.get((x, y), -1.0) >= 1.0 - eps
        ]
        if near:
            negative, _, y = min(near)
            kept_of[x], similarity[x] = y, -negative
        else:
            kept.append(x)
            kept_of[x], similarity[x] = x, 1.0
    return kept_of, similarity


@pytest.mark.parametrize("seed", range(30))
def test_resolving_against_the_definition(seed):
    generator = np.random.default_rng(seed)
    n = int(generator.integers(1, 40))
    p = int(generator.integers(0, 4 * n)) if n > 1 else 0
    i = generator.integers(0, n, size=p)
    j = (i + generator.integers(1, max(2, n), size=p)) % n
    cosine = generator.integers(80, 101, size=p) / 100  # coarse: many ties, some at the threshold
    priority = generator.integers(0, n, size=n)  # ties here too
    for eps in (0.0, 0.05, 0.1, 0.25):
        kept_of, similarity = resolve_pairs(n, i, j, cosine, eps, priority)
        expected, similar = brute_resolve(n, list(zip(i, j, cosine, strict=True)), eps, priority.tolist())
        assert kept_of.tolist() == expected
        assert similarity.tolist() == similar
        assert (kept_of[kept_of] == kept_of).all()
        for always in (1, n // 2, n):
            found = resolve_pairs(n, i, j, cosine, eps, priority, always)
            expected = brute_resolve(n, list(zip(i, j, cosine, strict=True)), eps, priority.tolist(), always)
            assert [part.tolist() for part in found] == list(expected)


def test_a_chain_keeps_its_third_item():
    # 0 - 1 - 2 with 0 and 2 unlike: the release drops 2 for the sake of 1, which is itself dropped.
    i, j, cosine = np.array([0, 1]), np.array([1, 2]), np.array([0.95, 0.96])
    kept_of, similarity = resolve_pairs(3, i, j, cosine, 0.1, np.arange(3))
    assert kept_of.tolist() == [0, 0, 2]
    assert similarity.tolist() == [1.0, 0.95, 1.0]
    kept_of, similarity = resolve_pairs(3, i, j, cosine, 0.1, np.array([1, 0, 2]))
    assert kept_of.tolist() == [1, 1, 1]
    assert similarity.tolist() == [0.95, 1.0, 0.96]


@pytest.mark.parametrize("block", [1, 9, 64, 512])
@pytest.mark.parametrize("seed", range(4))
def test_rows_are_resolved_as_their_pairs_are(seed, block):
    generator = np.random.default_rng(seed)
    n = int(generator.integers(1, 300))
    X = alike(n, int(generator.integers(2, 40)), seed)
    priority = generator.integers(0, n, size=n)  # with ties
    for eps in (0.0, 1e-7, 0.05, 0.3, 1.0, 2.0):
        for always in (0, 1, n // 3, n):
            expected, similar = resolve_pairs(n, *near_pairs(X, 1 - eps), eps, priority, always)
            kept_of, similarity = resolve_rows(X, eps, priority, block, always)
            np.testing.assert_array_equal(kept_of, expected)
            np.testing.assert_array_equal(similarity, similar)


@pytest.mark.parametrize("seed", range(5))
def test_rows_are_resolved_by_the_definition(seed):
    X = np.concatenate([at_the_threshold(0.9, seed), alike(40, 37, seed)])
    exact = float64_cosines(X)
    pairs = [(a, b, exact[a, b]) for a in range(100) for b in range(a)]
    priority = np.random.default_rng(seed).permutation(100)
    for place in (priority, np.arange(100)):
        expected, similar = brute_resolve(100, pairs, 0.1, place.tolist())
        kept_of, similarity = resolve_rows(X, 0.1, place, 16)
        # Of equal rows, the one named may differ by the last bit of a cosine; who is kept may not.
        kept = np.arange(100) == kept_of
        np.testing.assert_array_equal(kept, np.arange(100) == np.array(expected))
        np.testing.assert_allclose(similarity, similar, rtol=0, atol=1e-15)
        np.testing.assert_allclose(exact[np.arange(100), kept_of][~kept], similarity[~kept], rtol=0, atol=1e-15)


def test_resolve_rows_edges():
    X = np.eye(3, dtype=np.float32)
    assert [part.tolist() for part in resolve_rows(X, 0.5, np.arange(3))] == [[0, 1, 2], [1.0, 1.0, 1.0]]
    assert resolve_rows(X, 1.0, np.array([2, 1, 3]))[0].tolist() == [1, 1, 1]
    assert resolve_rows(X[:0], 0.5, np.empty(0, np.int64))[0].tolist() == []
    for eps, block in ((-0.1, 5), (2.1, 5), (np.nan, 5), (0.1, 0)):
        with pytest.raises(RecipeError, match="eps"):
            resolve_rows(X, eps, np.arange(3), block)
    with pytest.raises(DataError, match="priority"):
        resolve_rows(X, 0.1, np.arange(2))


def test_larger_eps_with_the_same_pairs_keeps_no_neighbours():
    X = as_unit_rows(np.random.default_rng(2).normal(size=(200, 5)))
    pairs = near_pairs(X, 0.5)
    exact = X @ X.T
    for eps in (0.05, 0.2, 0.5):
        kept_of, similarity = resolve_pairs(200, *pairs, eps, np.arange(200))
        kept = np.unique(kept_of)
        between = exact[np.ix_(kept, kept)] - 2 * np.eye(len(kept))
        assert between.max() < 1 - eps + 1e-6
        assert (similarity >= 1 - eps).all()


def test_a_million_pairs():
    n = 200_000
    generator = np.random.default_rng(3)
    i = generator.integers(0, n - 1, size=1_000_000)
    j = generator.integers(i + 1, n)
    kept_of, similarity = resolve_pairs(n, i, j, np.full(len(i), 0.99, np.float32), 0.05, np.arange(n))
    kept = kept_of == np.arange(n)
    assert not (kept[i] & kept[j]).any()
    assert (similarity[~kept] == np.float32(0.99)).all()


def test_resolve_refusals():
    one = np.array([0])
    for eps in (-0.1, 2.1, np.nan):
        with pytest.raises(RecipeError, match="eps"):
            resolve_pairs(2, one, one + 1, np.ones(1), eps, np.arange(2))
    for i, j, cosine, priority in (
        (one, one, np.ones(1), np.arange(2)),
        (one, one + 2, np.ones(1), np.arange(2)),
        (one - 1, one, np.ones(1), np.arange(2)),
        (one, one + 1, np.array([np.nan]), np.arange(2)),
        (one, one + 1, np.ones(2), np.arange(2)),
        (one, one + 1, np.ones(1), np.arange(3)),
    ):
        with pytest.raises(DataError):
            resolve_pairs(2, i, j, cosine, 0.1, priority)


@pytest.mark.parametrize("limit", [20, 100, 299])
def test_a_large_group_is_split_into_cells(limit):
    X = alike(300, 12, 3)
    rows = np.arange(1000, 1300)
    asked = []

    def load(some):
        asked.append(len(some))
        return X[some - 1000]

    cells = split_group(rows, limit, 5, load)
    assert len(cells) > 1
    np.testing.assert_array_equal(np.sort(np.concatenate(cells)), rows)
    assert all((np.diff(cell) > 0).all() for cell in cells)
    equal = np.flatnonzero((X[0] == X).all(axis=1))  # more than 20, and k-means cannot part them
    for cell in cells:
        assert len(cell) <= limit or (X[cell - 1000] == X[cell[0] - 1000]).all()
    assert sum(np.isin(equal + 1000, cell).any() for cell in cells) == 1
    # At most the sample, or so many rows as a cell may have, are loaded at a time.
    assert max(asked) <= max(limit, 64 * math.ceil(600 / limit))
    again = split_group(rows, limit, 5, load)
    assert [cell.tolist() for cell in cells] == [cell.tolist() for cell in again]


def test_a_group_of_equal_rows_is_not_split():
    X = np.tile(as_unit_rows(np.array([[3.0, 4.0]])), (50, 1))
    rows = np.arange(50)
    assert [cell.tolist() for cell in split_group(rows, 10, 0, X.__getitem__)] == [rows.tolist()]
    assert [cell.tolist() for cell in split_group(rows, 50, 0, X.__getitem__)] == [rows.tolist()]


@pytest.fixture
def near(tmp_path):
    """Run the dedup stage over given vectors; give row -> (kept row, score) of near duplicates, and the facts."""

    def run(X, folder, **options):
        ids = [f"r{row:04d}" for row in range(len(X))]
        pq.write_table(pa.table({"id": ids, "text": ids}), tmp_path / "rows.parquet")
        np.save(tmp_path / "v.npy", X)
        recipe = {
            "name": "test",
            "seed": 3,
            "block_rows": 64,
            "dataset": {"path": str(tmp_path / "rows.parquet"), "id": "id", "text": "text"},
            "stages": [
                {"kind": "embed", "encoder": f"vectors: {tmp_path / 'v.npy'}"},
                {"kind": "dedup", "n_clusters": 3, "probes": 1, **options},
            ],
        }
        done = tamis.run(recipe, tmp_path / folder, executor="sync")
        (path,) = (tmp_path / folder / "work" / "dedup.near").glob("*.arrow")
        table = pa.ipc.open_file(path).read_all()
        dropped = table.filter(pa.compute.not_equal(table["decision"], 0))
        return dropped.select(["row", "kept_row", "score"]).to_pylist(), done.stages[2]["facts"]

    return run


@pytest.mark.parametrize(("which", "eps"), [("hard", 0.02), ("easy", 0.1), ("random", 0.1)])
def test_stored_pairs_and_vectors_give_the_same_duplicates(near, monkeypatch, which, eps):
    X = alike(250, 10, 1)
    stored, facts = near(X, "stored", eps=eps, which_to_keep=which)
    assert facts["rows_without_stored_pairs"] == 0
    assert facts["pairs"] > 100
    assert facts["near_duplicates"] == len(stored) > 20
    monkeypatch.setattr(dedup, "PAIRS_PER_ROW", 0)
    swept, facts = near(X, "swept", eps=eps, which_to_keep=which)
    assert facts["rows_without_stored_pairs"] == 250
    assert facts["pairs"] == 0
    assert swept == stored
    monkeypatch.setattr(dedup, "_SHARD_ROWS", 40)
    assert near(X, "shards", eps=eps, which_to_keep=which)[0] == stored


def test_the_split_of_large_clusters_is_in_the_facts(near, monkeypatch):
    X = alike(250, 10, 2)
    whole, facts = near(X, "whole", eps=0.1)
    assert (facts["cells"], facts["clusters_split"]) == (3, 0)
    monkeypatch.setattr(dedup, "CELL_ROWS", 60)
    split, facts = near(X, "split", eps=0.1)
    assert facts["clusters_split"] == 3
    assert facts["cells"] > 4
    assert facts["largest_cell"] <= 60
    # Duplicates that a boundary of cells separates are lost, others are not.
    assert 0.5 * len(whole) < len(split) <= len(whole)
    unit = X.astype(np.float64) / np.linalg.norm(X.astype(np.float64), axis=1, keepdims=True)
    for item in split:
        assert item["score"] == pytest.approx(unit[item["row"]] @ unit[item["kept_row"]], abs=1e-6)
        assert item["score"] >= 0.9


def test_duplicates_across_the_borders_of_clusters_are_found(near):
    X = alike(250, 10, 2)
    # Every row looks into all three clusters, so that the result is that of all rows with all.
    everywhere, facts = near(X, "everywhere", eps=0.1, probes=3, which_to_keep="random")
    own, _ = near(X, "own", eps=0.1, probes=1, which_to_keep="random")
    assert facts["pairs_across_clusters"] > 0
    assert len(everywhere) > len(own)
    i, j, _ = near_pairs(as_unit_rows(X), 0.9)
    dropped = {item["row"] for item in everywhere}
    kept = np.array([row not in dropped for row in range(250)])
    assert not (kept[i] & kept[j]).any()
    assert all(kept[item["kept_row"]] for item in everywhere)


@pytest.mark.parametrize("shard_rows", [16, 40, 10_000])
def test_a_cluster_with_many_visitors_is_read_in_parts(near, monkeypatch, shard_rows):
    X = alike(250, 10, 2)
    expected = near(X, "expected", eps=0.1, probes=2)
    monkeypatch.setattr(dedup, "_SHARD_ROWS", shard_rows)
    monkeypatch.setattr(dedup, "_HELD_ROWS", 2 * shard_rows)
    assert near(X, "parts", eps=0.1, probes=2) == expected


@pytest.mark.parametrize(("probes", "cell_rows"), [(1, 100), (2, 100), (4, 100), (6, 100), (4, 30)])
def test_each_pair_of_a_row_and_a_cluster_that_it_looks_into_is_given_once(probes, cell_rows):
    X = alike(300, 10, 7)
    rng = np.random.default_rng(0)
    near = np.stack([rng.permutation(6)[:probes] for _ in range(300)]).astype(np.int32)
    receiving = receiving_clusters(near, cell_rows)
    given = []
    for cell in make_cells(near, cell_rows, 0, X.__getitem__):
        some = np.array_split(cell.visitors, 3)
        i, j, _ = cell_pairs(cell, X[cell.rows], [(part, X[part]) for part in some], near, receiving, 0.7, 10_000)
        given += list(zip(i.tolist(), j.tolist(), strict=True))
    assert len(given) == len(set(given))
    assert all(i < j for i, j in given)
    expected = {
        (i, j)
        for i, j in zip(*(part.tolist() for part in near_pairs(X, 0.7)[:2]), strict=True)
        if near[i, 0] == near[j, 0] or (near[i, 0] in near[j]) or (near[j, 0] in near[i])
    }
    if receiving.all():
        assert set(given) == expected
    else:
        assert 0 < len(given) < len(expected)


@pytest.mark.parametrize("which", ["hard", "easy", "random"])
def test_near_duplicates_with_all_clusters_leave_no_pair(which):
    X = 3.0 * alike(400, 10, 5)
    kept_of, cosine = near_duplicates_of(X, 0.1, which_to_keep=which, n_clusters=20, probes=20)
    kept = kept_of == np.arange(400)
    i, j, _ = near_pairs(as_unit_rows(X), 0.9)
    assert not (kept[i] & kept[j]).any()
    assert kept[kept_of].all()
    assert (cosine[~kept] >= 0.9).all()
    assert (cosine[kept] == 1).all()
    again = near_duplicates_of(X, 0.1, which_to_keep=which, n_clusters=20, probes=20)
    np.testing.assert_array_equal(again[0], kept_of)
    paper = near_duplicates_of(X, 0.1, which_to_keep=which, n_clusters=20, probes=1)[0]
    assert 0 < np.count_nonzero(paper != np.arange(400)) < np.count_nonzero(~kept)


def test_near_duplicates_of_rows_that_are_all_alike_take_no_pairs():
    X = np.tile(np.array([[3.0, 4.0]]), (9_000, 1))
    kept_of, cosine = near_duplicates_of(X, 0.01)
    assert len(np.unique(kept_of)) == 1
    assert (cosine == 1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": -0.1}, "eps"),
        ({"which_to_keep": "best"}, "which_to_keep 'best' is not one of"),
        ({"probes": 0}, "probes 0"),
        ({"n_clusters": 0}, "n_clusters 0"),
    ],
)
def test_near_duplicates_say_what_is_allowed(options, message):
    with pytest.raises(RecipeError, match=message):
        near_duplicates_of(np.eye(3), **options)
