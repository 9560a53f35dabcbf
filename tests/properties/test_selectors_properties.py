import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tamis.embeddings.grid import UNIT
from tamis.selectors import (
    as_unit_rows,
    draw_shares,
    facility_location,
    largest_remainder,
    merge_rankings,
    rank_partition,
    resolve_budget,
    resolve_pairs,
)
from tamis.selectors.greedy import Terms, maximise
from tamis.selectors.kernels import BlockKernel, DenseKernel
from tamis.selectors.torch_kernel import TorchKernel

few = settings(max_examples=60, deadline=None)


@st.composite
def embeddings(draw, max_rows=24):
    """Small whole-number rows: exact duplicates, opposite and orthogonal rows all occur."""
    n, d = draw(st.integers(1, max_rows)), draw(st.integers(1, 4))
    X = draw(hnp.arrays(np.float32, (n, d), elements=st.integers(-3, 3).map(float)))
    X[~X.any(axis=1), 0] = 1.0
    return X


def naive(K, k):
    """Greedy by its definition, on whole numbers, ties to the lowest index."""
    K = K.astype(np.int64)
    best, chosen, gains = np.zeros(len(K), np.int64), [], []
    for _ in range(k):
        gain = np.maximum(K - best, 0).sum(axis=1)
        gain[chosen] = -1
        chosen.append(int(np.argmax(gain)))
        gains.append(int(gain[chosen[-1]]))
        best = np.maximum(best, K[chosen[-1]])
    return chosen, gains


@few
@given(embeddings(), st.data())
def test_facility_location(X, data):
    n = len(X)
    k = data.draw(st.integers(1, n))
    K = DenseKernel.of(as_unit_rows(X)).matrix
    selection = facility_location(X, budget=k)
    chosen, gains = naive(K, k)
    assert selection.indices.tolist() == chosen
    assert (selection.gains * UNIT).tolist() == gains
    assert selection.weights.sum() == n
    assert (selection.weights >= 1).all()
    unit = as_unit_rows(X).astype(np.float64)
    value = np.maximum(0, (unit @ unit[selection.indices].T).max(axis=1)).sum()
    assert abs(selection.gains.sum() - value) < 6e-4 * n
    assert selection.certificate["objective"] == selection.gains.sum()
    assert selection.certificate["objective"] <= selection.certificate["upper_bound"] <= n
    # A ranking is nested.
    np.testing.assert_array_equal(rank_partition(as_unit_rows(X), n)[0][:k], selection.indices)


@few
@given(embeddings(), st.data())
def test_every_engine_meets_what_it_promises(X, data):
    n = len(X)
    k = data.draw(st.integers(1, n))
    taken = data.draw(st.lists(st.integers(0, n - 1), max_size=n - k, unique=True))
    for how in (
        {"engine": "exact"},
        {"engine": "exact", "memory_bytes": 1},
        {"engine": "sparse"},
        {"engine": "sparse", "neighbours": 2, "probes": 1},
        {"engine": "partitioned"},
    ):
        selection = facility_location(X, budget=k, preselected=taken, **how)
        assert len(set(selection.indices.tolist()) - set(taken)) == len(selection.indices) == k
        assert (np.diff(selection.gains) <= 0).all()
        assert (selection.gains >= 0).all()
        assert (selection.weights >= 1).all()
        assert k <= selection.weights.sum() <= n - len(taken)
        certificate = selection.certificate
        assert 0 <= certificate["objective"] <= certificate["upper_bound"] <= n
        K = DenseKernel.of(as_unit_rows(X)).matrix[[*taken, *selection.indices]]
        # The nearest chosen row is sought in a few cells: what is found is at most what there is.
        assert certificate["objective"] <= K.max(axis=0).sum(dtype=np.int64) / UNIT
        if how["engine"] == "exact":
            assert certificate["objective"] == K.max(axis=0).sum(dtype=np.int64) / UNIT


@few
@given(embeddings(max_rows=40), st.data())
def test_kernels_are_alike(X, data):
    unit = as_unit_rows(X)
    n = len(unit)
    limits = hnp.arrays(np.uint16, n, elements=st.integers(0, UNIT))
    low, high = data.draw(limits), data.draw(limits)
    high = np.maximum(low, high)
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1))))
    dense = DenseKernel.of(unit)
    K = dense.matrix.astype(np.int64)
    for other in (dense, BlockKernel(unit), TorchKernel(unit, "cpu")):
        np.testing.assert_array_equal(other.gains(low, high), (np.clip(K, low, high) - low).sum(axis=1))
        gain = np.zeros(n, np.int64)
        other.take(rows, low[rows], high[rows], gain)
        np.testing.assert_array_equal(-gain, (np.clip(K[:, rows], low[rows], high[rows]) - low[rows]).sum(axis=1))
        for ours, theirs in zip(other.lists(low, high), dense.lists(low, high), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        for i in rows.tolist():
            np.testing.assert_array_equal(other.row(i), K[i])
        assert other.count(rows, low[rows]) == (low[rows, None] < K[rows]).sum()
        trace = maximise(other, Terms(n, low, high), most_pairs=data.draw(st.sampled_from([0, n, n * n])))
        expected = maximise(dense, Terms(n, low, high))
        for field in ("chosen", "gains", "best", "owner", "remaining", "bound"):
            np.testing.assert_array_equal(getattr(trace, field), getattr(expected, field))


@few
@given(embeddings(), st.randoms(use_true_random=False))
def test_gains_do_not_depend_on_the_order_of_rows_but_for_ties(X, random):
    order = list(range(len(X)))
    random.shuffle(order)
    _, gains = rank_partition(as_unit_rows(X), 1)
    _, permuted = rank_partition(as_unit_rows(X[order]), 1)
    assert gains[0] == permuted[0]


@few
@given(st.integers(0, 10_000), st.integers(2, 40))
def test_permutation_equivariance_but_for_ties(seed, n):
    rng = np.random.default_rng(seed)
    X = as_unit_rows(rng.normal(size=(n, 5)))
    k = max(1, n // 3)
    chosen, gains = rank_partition(X, k)
    order = rng.permutation(n)
    permuted, permuted_gains = rank_partition(np.ascontiguousarray(X[order]), k)
    # Two rows that cover the same ground tie: the paths may part there, and nowhere else.
    parted = np.flatnonzero(order[permuted] != chosen)
    step = int(parted[0]) if len(parted) else k
    np.testing.assert_array_equal(gains[: step + 1], permuted_gains[: step + 1])
    if step < k:
        K = DenseKernel.of(X).matrix.astype(np.int64)
        best = K[chosen[:step]].max(axis=0, initial=0)
        ours, theirs = (np.maximum(K[j] - best, 0).sum() for j in (chosen[step], order[permuted[step]]))
        assert ours == theirs


@few
@given(
    hnp.arrays(np.float64, st.integers(1, 12), elements=st.floats(0, 1e6)),
    st.data(),
)
def test_largest_remainder(weights, data):
    k = len(weights)
    caps = data.draw(hnp.arrays(np.int64, k, elements=st.integers(0, 50)))
    total = data.draw(st.integers(0, int(caps.sum())))
    shares = largest_remainder(weights, total, caps)
    assert shares.sum() == total
    assert ((shares >= 0) & (shares <= caps)).all()
    free = largest_remainder(weights, total)
    assert free.sum() == total
    if weights.sum() > 0:
        quota = total * (weights / weights.max()) / (weights / weights.max()).sum()
        assert (np.abs(free - quota) < 1 + 1e-6).all()
    # A larger weight never gets less, where no cap is in the way; of equal ones the earlier gets no less.
    order = np.lexsort((-np.arange(k), weights))
    assert (np.diff(free[order]) >= 0).all()


rankings = st.lists(
    hnp.arrays(np.float64, st.integers(0, 6), elements=st.integers(0, 4).map(float)), min_size=1, max_size=5
).map(lambda lists: [np.sort(gains)[::-1] for gains in lists])


@st.composite
def numbered(draw):
    lists = draw(rankings)
    indices = draw(st.permutations(range(sum(map(len, lists)))))
    ends = np.cumsum([len(gains) for gains in lists])
    return [
        (np.array(indices[end - len(gains) : end], np.int64), gains) for end, gains in zip(ends, lists, strict=True)
    ]


@few
@given(numbered(), st.data())
def test_merge_rankings(lists, data):
    total = sum(len(indices) for indices, _ in lists)
    if total == 0:
        return
    k = data.draw(st.integers(1, total))
    indices, gains = merge_rankings(lists, k)
    every = np.sort(np.concatenate([g for _, g in lists]))[::-1]
    np.testing.assert_array_equal(gains, every[:k])
    for listed, _ in lists:
        taken = [i for i in indices.tolist() if i in set(listed.tolist())]
        assert taken == listed.tolist()[: len(taken)]
    np.testing.assert_array_equal(indices, merge_rankings(lists[::-1], k)[0])


@few
@given(numbered(), st.integers(0, 1000), st.floats(0.01, 100), st.booleans(), st.data())
def test_draw_shares(lists, seed, temperature, scale_free, data):
    total = sum(len(indices) for indices, _ in lists)
    if total == 0:
        return
    k = data.draw(st.integers(1, total))
    indices, gains = draw_shares(lists, k, np.random.default_rng(seed), temperature, scale_free)
    assert len(set(indices.tolist())) == k
    known = {i: g for listed, values in lists for i, g in zip(listed.tolist(), values.tolist(), strict=True)}
    assert gains.tolist() == [known[i] for i in indices.tolist()]
    for listed, _ in lists:
        share = np.isin(indices, listed).sum()
        assert abs(share - k * len(listed) / total) < 1


@few
@given(st.floats(0, 1, exclude_min=True), st.integers(1, 10**9))
def test_fractions_give_at_least_one_and_at_most_all(fraction, n):
    count = resolve_budget(fraction, n)
    assert 1 <= count <= n
    assert count <= max(1, fraction * n * (1 + 1e-12) + 1e-6)
    assert count >= fraction * n - 1


@few
@given(st.integers(2, 15), st.data())
def test_resolved_items_are_kept_or_near_a_kept_one(n, data):
    pair = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda ij: ij[0] != ij[1])
    pairs = data.draw(st.lists(st.tuples(pair, st.floats(0.5, 1)), max_size=40))
    i, j = (np.array([p[0][side] for p in pairs], np.int64) for side in (0, 1))
    cosine = np.array([p[1] for p in pairs], np.float64)
    eps = data.draw(st.floats(0, 0.5))
    priority = np.array(data.draw(st.permutations(range(n))))
    kept_of, similarity = resolve_pairs(n, i, j, cosine, eps, priority)
    kept = kept_of == np.arange(n)
    near = cosine >= 1 - eps
    assert not (kept[i[near]] & kept[j[near]]).any()
    assert kept[kept_of].all()
    assert (priority[kept_of] <= priority).all()
    assert (similarity[~kept] >= 1 - eps).all()
    assert (similarity[kept] == 1).all()
