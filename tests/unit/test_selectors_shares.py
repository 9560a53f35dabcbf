from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st

from tamis.errors import DataError, RecipeError
from tamis.selectors.shares import largest_remainder, lasso_shares, named_shares


def test_proportional_parts():
    assert largest_remainder(np.array([1.0, 2.0, 3.0]), 12).tolist() == [2, 4, 6]


def test_ties_go_to_the_lowest_index_exactly():
    # Quotas 4/3, 1/3, 1/3: in floating point the fraction of the first would be a little smaller.
    assert 4 / 3 - 1 < 1 / 3
    assert largest_remainder(np.array([4.0, 1.0, 1.0]), 2).tolist() == [2, 0, 0]
    for k in range(1, 30):
        assert largest_remainder(np.full(k, 0.1), k + 1).tolist() == [2] + [1] * (k - 1)


def test_caps_pass_their_excess_on_in_proportion():
    assert largest_remainder(np.array([100.0, 2.0, 1.0]), 13, np.array([4, 50, 50])).tolist() == [4, 6, 3]
    assert largest_remainder(np.array([8.0, 4.0, 2.0, 1.0]), 12, np.array([2, 2, 2, 50])).tolist() == [
        2,
        2,
        2,
        6,
    ]


def test_zero_weights_get_only_what_is_left():
    assert largest_remainder(np.array([0.0, 1.0]), 3).tolist() == [0, 3]
    assert largest_remainder(np.array([0.0, 1.0, 0.0]), 6, np.array([5, 3, 5])).tolist() == [2, 3, 1]
    assert largest_remainder(np.zeros(3), 4).tolist() == [2, 1, 1]


def test_edges():
    assert largest_remainder(np.array([5.0, 5.0]), 0).tolist() == [0, 0]
    assert largest_remainder(np.empty(0), 0).tolist() == []
    assert largest_remainder(np.array([1e-300, 1e300]), 3, np.array([3, 2])).tolist() == [1, 2]
    assert largest_remainder(np.array([3.0, 1.0]), 10, np.array([4, 6])).tolist() == [4, 6]


@pytest.mark.parametrize(
    ("weights", "total", "caps"),
    [
        ([1.0, 1.0], 5, [2, 2]),
        ([1.0, -1.0], 1, None),
        ([1.0, np.nan], 1, None),
        ([1.0, np.inf], 1, None),
        ([1.0], -1, None),
        ([1.0], 1, [-1]),
        ([1.0, 1.0], 1, [1]),
        ([], 1, None),
    ],
)
def test_refusals(weights, total, caps):
    with pytest.raises(RecipeError):
        largest_remainder(np.array(weights), total, None if caps is None else np.array(caps))


def exact_shares(weights, total):
    """Hamilton's method in fractions, without caps."""
    parts = [Fraction(x) for x in weights]
    whole = sum(parts)
    quotas = [total * x / whole for x in parts]
    shares = [int(q) for q in quotas]
    order = sorted(range(len(parts)), key=lambda p: (shares[p] - quotas[p], p))
    for p in order[: total - sum(shares)]:
        shares[p] += 1
    return shares


# Weights whose quotas are whole, whose remainders are equal or differ in the last bits, and of any size.
weights = st.one_of(
    st.integers(1, 6).map(float),
    st.integers(0, 4).map(lambda ulps: 1.0 + ulps * 2.0**-52),
    st.floats(0.01, 1),
    st.integers(1, 9).map(lambda tenths: tenths / 10),
    st.floats(1e-310, 1e300),
)


@given(st.lists(weights, min_size=1, max_size=12), st.one_of(st.integers(0, 100), st.integers(2**50, 2**58)))
@settings(max_examples=300, deadline=None)
def test_shares_are_exact(parts, total):
    assert largest_remainder(np.array(parts), total).tolist() == exact_shares(parts, total)


@pytest.mark.parametrize("kind", ["integers", "floats", "equal", "whole quotas"])
def test_many_shares_are_exact(kind):
    generator = np.random.default_rng(5)
    k = 3000
    parts = {
        "integers": generator.integers(1, 50, size=k).astype(float),
        "floats": generator.random(k) + 1e-3,
        "equal": np.full(k, 0.1),
        "whole quotas": generator.permutation(k) + 1.0,
    }[kind]
    total = 7 * int(parts.sum()) if kind == "whole quotas" else 123_457
    assert largest_remainder(parts, total).tolist() == exact_shares(parts.tolist(), total)


def test_message_shows_what_is_missing():
    with pytest.raises(RecipeError, match="cannot give out 5: the caps of 2 shares sum to 4, 1 too few"):
        largest_remainder(np.ones(2), 5, np.array([2, 2]))


# --- shares of their own ---


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_named_shares_are_what_was_asked_and_sum_to_the_total(data):
    sizes = np.array(data.draw(st.lists(st.integers(1, 60), min_size=2, max_size=7)), np.int64)
    names = [f"g{i}" for i in range(len(sizes))]
    own = data.draw(st.lists(st.sampled_from(names), unique=True, max_size=len(sizes)))
    fixed = {name: data.draw(st.one_of(st.integers(1, 30), st.floats(0.01, 0.6))) for name in own}
    total = data.draw(st.integers(1, int(sizes.sum())))
    try:
        shares = named_shares(sizes, total, fixed, names)
    except RecipeError:
        assume(fixed)
        reject()
    assert shares.sum() == total
    assert ((shares >= 0) & (shares <= sizes)).all()
    for name, share in fixed.items():
        given_ = shares[names.index(name)]
        assert given_ == share if isinstance(share, int) else abs(given_ - share * total) < 1
    others = [i for i, name in enumerate(names) if name not in fixed]
    left = total - sum(int(shares[names.index(name)]) for name in fixed)
    assert shares[others].tolist() == largest_remainder(sizes[others].astype(float), left, sizes[others]).tolist()


def test_lasso_shares_of_orthogonal_sources_are_soft_thresholds():
    rng = np.random.default_rng(0)
    W = np.linalg.qr(rng.normal(size=(20, 6)))[0]
    w = rng.normal(size=20)
    size = np.maximum(np.abs(W.T @ w) - 0.3, 0)
    np.testing.assert_allclose(lasso_shares(W, w, 0.3), size / size.sum(), atol=1e-6)


def test_lasso_shares_satisfy_the_optimality_conditions():
    rng = np.random.default_rng(1)
    W, w, penalty = rng.normal(size=(30, 8)), rng.normal(size=30), 2.0
    shares = lasso_shares(W, w, penalty)
    assert shares.sum() == pytest.approx(1)
    assert 0 < np.count_nonzero(shares) < 8
    # Of the sources that have a share, refit with their signs: the subgradient of the objective is 0 there.
    active = np.flatnonzero(shares)
    signs = np.sign(W.T @ w)[active]
    v = np.linalg.solve(W[:, active].T @ W[:, active], W[:, active].T @ w - penalty * signs)
    assert (np.sign(v) == signs).all()
    np.testing.assert_allclose(shares[active], np.abs(v) / np.abs(v).sum(), atol=1e-5)
    assert (np.abs(W.T @ (w - W[:, active] @ v)) <= penalty + 1e-5).all()


def test_lasso_shares_refuse():
    W, w = np.eye(3), np.array([1.0, 2.0, 3.0])
    with pytest.raises(RecipeError, match="must be below 3"):
        lasso_shares(W, w, 3.0)
    for penalty in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(RecipeError, match="above 0"):
            lasso_shares(W, w, penalty)
    for bad in (w[:2], np.array([1.0, np.nan, 0.0])):
        with pytest.raises(DataError, match="must be finite"):
            lasso_shares(W, bad, 0.1)
