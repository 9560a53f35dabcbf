import hashlib

import numpy as np
import pytest

from tamis.errors import DataError, RecipeError
from tamis.selectors.dedup import exact_duplicates, near_pairs, resolve_pairs
from tamis.selectors.selection import as_unit_rows


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


@pytest.mark.parametrize("block", [1, 7, 50, 1024])
def test_near_pairs_are_all_pairs(block):
    X = as_unit_rows(np.random.default_rng(1).normal(size=(50, 4)))
    exact = X.astype(np.float64) @ X.T.astype(np.float64)
    assert not (np.abs(exact - 0.6) < 1e-6).any()
    i, j, cosine = near_pairs(X, 0.6, block)
    expected = [(a, b) for a in range(50) for b in range(a + 1, 50) if exact[a, b] >= 0.6]
    assert list(zip(i.tolist(), j.tolist(), strict=True)) == expected
    np.testing.assert_allclose(cosine, exact[i, j], atol=1e-6)
    assert (i.dtype, j.dtype, cosine.dtype) == (np.int64, np.int64, np.float32)


def test_near_pairs_edges():
    X = np.tile(as_unit_rows(np.array([[1.0, 2.0, 3.0]])), (4, 1))
    i, j, cosine = near_pairs(X, 0.9999)
    assert list(zip(i, j, strict=True)) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert (cosine <= 1).all()
    assert [len(part) for part in near_pairs(X[:1], 0.5)] == [0, 0, 0]
    assert len(near_pairs(np.eye(3, dtype=np.float32), -1.0)[0]) == 3
    for floor, block in ((1.5, 10), (np.nan, 10), (0.5, 0)):
        with pytest.raises(RecipeError):
            near_pairs(X, floor, block)


def brute_resolve(n, pairs, eps, priority):
    """The definition, item by item, over a dictionary of similarities."""
    similar = {}
    for a, b, c in pairs:
        similar[a, b] = similar[b, a] = max(c, similar.get((a, b), -1.0))
    visited = sorted(range(n), key=lambda x: (priority[x], x))
    kept, kept_of, similarity = [], [-1] * n, [0.0] * n
    for x in visited:
        near = [(-similar[x, y], kept.index(y), y) for y in kept if similar.get((x, y), -1.0) >= 1.0 - eps]
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


def test_a_chain_keeps_its_third_item():
    # 0 - 1 - 2 with 0 and 2 unlike: the release drops 2 for the sake of 1, which is itself dropped.
    i, j, cosine = np.array([0, 1]), np.array([1, 2]), np.array([0.95, 0.96])
    kept_of, similarity = resolve_pairs(3, i, j, cosine, 0.1, np.arange(3))
    assert kept_of.tolist() == [0, 0, 2]
    assert similarity.tolist() == [1.0, 0.95, 1.0]
    kept_of, similarity = resolve_pairs(3, i, j, cosine, 0.1, np.array([1, 0, 2]))
    assert kept_of.tolist() == [1, 1, 1]
    assert similarity.tolist() == [0.95, 1.0, 0.96]


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
