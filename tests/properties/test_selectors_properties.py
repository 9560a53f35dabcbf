import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

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

few = settings(max_examples=60, deadline=None)


@st.composite
def embeddings(draw, max_rows=24):
    """Small whole-number rows: exact duplicates, opposite and orthogonal rows all occur."""
    n, d = draw(st.integers(1, max_rows)), draw(st.integers(1, 4))
    X = draw(hnp.arrays(np.float32, (n, d), elements=st.integers(-3, 3).map(float)))
    X[~X.any(axis=1), 0] = 1.0
    return X


@few
@given(embeddings(), st.data())
def test_facility_location(X, data):
    n = len(X)
    k = data.draw(st.integers(1, n))
    selection = facility_location(X, budget=k)
    assert len(set(selection.indices.tolist())) == k
    assert (np.diff(selection.gains) <= 0).all()
    assert selection.weights.sum() == n
    assert (selection.weights >= 1).all()
    unit = as_unit_rows(X).astype(np.float64)
    value = np.maximum(0, (unit @ unit[selection.indices].T).max(axis=1)).sum()
    assert abs(selection.gains.sum() - value) < 1e-5 * n
    assert selection.certificate["objective"] <= selection.certificate["upper_bound"] <= n
    # The same gains for a smaller budget: a ranking is nested.
    np.testing.assert_array_equal(rank_partition(as_unit_rows(X), n)[0][:k], selection.indices)


@few
@given(embeddings(), st.randoms(use_true_random=False))
def test_gains_do_not_depend_on_the_order_of_rows_but_for_ties(X, random):
    order = list(range(len(X)))
    random.shuffle(order)
    _, gains = rank_partition(as_unit_rows(X), 1)
    _, permuted = rank_partition(as_unit_rows(X[order]), 1)
    assert abs(gains[0] - permuted[0]) < 1e-5 * len(X)


@few
@given(st.integers(0, 10_000), st.integers(2, 40))
def test_permutation_equivariance_without_ties(seed, n):
    rng = np.random.default_rng(seed)
    X = as_unit_rows(rng.normal(size=(n, 5)))
    k = max(1, n // 3)
    chosen, gains = rank_partition(X, k)
    order = rng.permutation(n)
    permuted, permuted_gains = rank_partition(np.ascontiguousarray(X[order]), k)
    # Two rows that cover the same ground tie to rounding, and the last bits of a product may depend on a row's
    # place in its block: the paths may part there, and nowhere else.
    parted = np.flatnonzero(order[permuted] != chosen)
    step = int(parted[0]) if len(parted) else k
    np.testing.assert_allclose(gains[: step + 1], permuted_gains[: step + 1], atol=1e-5 * n)
    assert step == k or _is_near_tie(X, chosen[:step], chosen, permuted, order)


def _is_near_tie(X, prefix, chosen, permuted, order):
    """Whether the two next choices after the common prefix add the same to rounding."""
    K = np.clip(X.astype(np.float64) @ X.T.astype(np.float64), 0, 1)
    best = K[prefix].max(axis=0) if len(prefix) else np.zeros(len(X))
    step = len(prefix)
    ours, theirs = (np.maximum(K[j] - best, 0).sum() for j in (chosen[step], order[permuted[step]]))
    return abs(ours - theirs) < 1e-4


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
