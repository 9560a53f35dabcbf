import importlib
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from threadpoolctl import threadpool_limits

from tamis.errors import DataError, RecipeError
from tamis.selectors import _objectives
from tamis.selectors.disparity import disparity_sum
from tamis.selectors.duqgen import cluster_shares, duqgen
from tamis.selectors.graph_cut import graph_cut
from tamis.selectors.k_center import k_center
from tamis.selectors.log_det import log_det
from tamis.threads import one_blas_thread

# The package gives the name to the function.
duqgen_module = importlib.import_module("tamis.selectors.duqgen")

SELECTORS = {"graph_cut": graph_cut, "log_det": log_det, "k_center": k_center, "disparity_sum": disparity_sum}
few = settings(max_examples=60, deadline=None)


def normal(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def clustered(n, d=8, centres=6, spread=0.35, seed=0):
    rng = np.random.default_rng(seed)
    middle = rng.normal(size=(centres, d))
    return (middle[rng.integers(centres, size=n)] + spread * rng.normal(size=(n, d))).astype(np.float32)


def cosines(X):
    """The kernel in float64 of the rows as the selectors see them, in float32."""
    X = np.asarray(X, np.float32).astype(np.float64)
    X = (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32).astype(np.float64)
    X = X / np.linalg.norm(X, axis=1, keepdims=True)
    return X @ X.T


# The objectives as they are written.


def f_graph_cut(K, S, trade_off=0.5):
    return K[:, S].sum() - trade_off * K[np.ix_(S, S)].sum()


def f_log_det(K, S, ridge=1.0):
    return np.linalg.slogdet(K[np.ix_(S, S)] + ridge * np.eye(len(S)))[1]


def f_disparity_sum(K, S):
    return sum(1 - K[i, j] for i, j in itertools.combinations(S, 2))


OBJECTIVES = {"graph_cut": f_graph_cut, "log_det": f_log_det, "disparity_sum": f_disparity_sum}


def assert_greedy(K, f, selection, tolerance=1e-9, first=0):
    """Every choice from `first` on has the largest gain there is, to rounding, and gains are those of f."""
    S = selection.indices.tolist()
    for step in range(len(S)):
        before = f(K, S[:step]) if step else 0.0
        gain = {j: f(K, [*S[:step], j]) - before for j in range(len(K)) if j not in S[:step]}
        assert selection.gains[step] == pytest.approx(gain[S[step]], abs=tolerance)
        assert step < first or gain[S[step]] >= max(gain.values()) - tolerance


def assert_lowest_copies_first(X, indices):
    """Of identical rows the lower index is chosen first, and none is left out while a higher one is taken."""
    place = np.full(len(X), len(X))
    place[indices] = np.arange(len(indices))
    for i, j in itertools.combinations(range(len(X)), 2):
        if (X[i] == X[j]).all():
            assert place[i] <= place[j]


@st.composite
def embeddings(draw, max_rows=14):
    """Small whole-number rows: exact duplicates, opposite and orthogonal rows all occur."""
    n, d = draw(st.integers(1, max_rows)), draw(st.integers(1, 4))
    X = draw(hnp.arrays(np.float32, (n, d), elements=st.integers(-3, 3).map(float)))
    X[~X.any(axis=1), 0] = 1.0
    return X


@few
@given(embeddings(), st.data(), st.sampled_from([0, 0.3, 0.5, 2.0]))
def test_graph_cut_is_greedy_with_cosines_of_any_sign(X, data, trade_off):
    k = data.draw(st.integers(1, len(X)))
    selection = graph_cut(X, budget=k, trade_off=trade_off)
    assert len(set(selection.indices.tolist())) == k
    assert_greedy(cosines(X), lambda K, S: f_graph_cut(K, S, trade_off), selection)
    assert_lowest_copies_first(X, selection.indices)
    assert selection.certificate["objective"] == pytest.approx(selection.gains.sum(), abs=1e-9)
    assert selection.certificate["upper_bound"] >= selection.certificate["objective"]


@few
@given(embeddings(), st.data(), st.sampled_from([1e-3, 0.5, 1.0, 10.0]))
def test_log_det_is_greedy(X, data, ridge):
    k = data.draw(st.integers(1, len(X)))
    selection = log_det(X, budget=k, ridge=ridge)
    assert len(set(selection.indices.tolist())) == k
    assert_greedy(cosines(X), lambda K, S: f_log_det(K, S, ridge), selection, tolerance=1e-8)
    assert_lowest_copies_first(X, selection.indices)
    assert (np.diff(selection.gains) <= 1e-12).all()
    assert selection.indices[0] == 0
    assert 0 <= selection.certificate["ratio"] <= 1


@few
@given(embeddings(), st.data())
def test_disparity_sum_is_greedy_after_the_row_farthest_from_the_mean(X, data):
    k = data.draw(st.integers(1, len(X)))
    selection = disparity_sum(X, budget=k)
    K = cosines(X)
    assert K[selection.indices[0]].sum() <= K.sum(axis=1).min() + 1e-9
    assert_greedy(K, f_disparity_sum, selection)
    assert_lowest_copies_first(X, selection.indices)
    assert selection.certificate["objective"] == pytest.approx(selection.gains.sum(), abs=1e-9)


@few
@given(embeddings(), st.data())
def test_k_center_is_farthest_first(X, data):
    k = data.draw(st.integers(1, len(X)))
    start = data.draw(st.none() | st.integers(0, len(X) - 1))
    selection = k_center(X, budget=k, start=start)
    D = np.maximum(0, 1 - cosines(X))
    S = selection.indices.tolist()
    assert len(set(S)) == k
    if start is None:
        assert cosines(X)[S[0]].sum() >= cosines(X).sum(axis=1).max() - 1e-9
    else:
        assert S[0] == start
    for step in range(1, k):
        distance = D[S[:step]].min(axis=0)
        assert selection.gains[step] == pytest.approx(distance[S[step]], abs=1e-11)
        assert distance[S[step]] >= distance.max() - 1e-11
        # Ties to rounding go to the lowest index.
        rest = [j for j in range(len(X)) if j not in S[:step] and distance[j] >= distance.max() - 1e-13]
        assert S[step] in rest
    assert selection.gains[0] == pytest.approx(D[S[0]].max() if len(X) > 1 else 0, abs=1e-11)
    assert (np.diff(selection.gains) <= 0).all()
    nearest = D[S].min(axis=0)
    assert selection.certificate["radius"] == pytest.approx(nearest.max() if k < len(X) else 0, abs=1e-11)
    assert selection.certificate["coverage_mean"] == pytest.approx(nearest.mean(), abs=1e-6)
    assert selection.weights.sum() == len(X)
    assert (selection.weights >= 1).all()


def naive_linear(X, trade_off, budget):
    """Greedy graph cut with all gains recomputed from the kernel's sums at every step."""
    K = cosines(X)
    gain = K.sum(axis=0) - trade_off * np.diag(K)
    chosen, gains = [], []
    for _ in range(budget):
        s = int(np.argmax(gain))
        chosen.append(s)
        gains.append(gain[s])
        gain = gain - 2 * trade_off * K[s]
        gain[s] = -np.inf
    return chosen, gains


@pytest.mark.parametrize("trade_off", [0.0, 0.2, 0.5, 1.5])
@pytest.mark.parametrize("d", [3, 40])
def test_graph_cut_is_the_naive_one(d, trade_off):
    for X in (normal(400, d, seed=1), clustered(400, d, centres=20, seed=2), np.abs(normal(400, d, seed=3))):
        selection = graph_cut(X, budget=150, trade_off=trade_off)
        expected, gains = naive_linear(X, trade_off, 150)
        assert selection.indices.tolist() == expected
        np.testing.assert_allclose(selection.gains, gains, rtol=0, atol=1e-9)


@pytest.mark.parametrize("d", [2, 30])
def test_disparity_sum_is_the_naive_one(d):
    for X in (normal(400, d, seed=1), clustered(400, d, seed=2), np.abs(normal(400, d, seed=3))):
        selection = disparity_sum(X, budget=150)
        D = 1 - cosines(X)
        chosen = [int(np.argmax(D.sum(axis=1)))]
        gains = [0.0]
        while len(chosen) < 150:
            gain = D[chosen].sum(axis=0)
            gain[chosen] = -1.0
            chosen.append(int(np.argmax(gain)))
            gains.append(gain[chosen[-1]])
        assert selection.indices.tolist() == chosen
        np.testing.assert_allclose(selection.gains, gains, rtol=0, atol=1e-9)


def test_graph_cut_gains_can_rise_and_are_then_still_exact():
    # The last two rows are opposite to the first choice, so their gains rise when it is made.
    X = np.array([[1.0, 0.0], [1.0, 0.1], [1.0, -0.15], [-1.0, 0.2], [-1.0, -0.3]])
    selection = graph_cut(X, budget=5, trade_off=1.0)
    assert (np.diff(selection.gains) > 0).any()
    assert selection.indices.tolist() == naive_linear(X, 1.0, 5)[0]


def test_graph_cut_gains_do_not_rise_without_negative_cosines():
    selection = graph_cut(np.abs(normal(200, 6)), budget=200)
    assert (np.diff(selection.gains) <= 1e-9).all()
    assert (selection.gains >= -1e-9).all()  # trade_off 0.5: monotone


def test_above_one_half_gains_turn_negative_and_the_budget_is_met():
    selection = graph_cut(np.abs(normal(60, 6)), budget=60, trade_off=2.0)
    assert len(selection.indices) == 60
    assert selection.gains[-1] < 0
    assert "ratio" not in selection.certificate
    assert selection.certificate["objective"] < 0


def naive_log_det(X, ridge, budget):
    """Incremental Cholesky on the kernel (Chen et al., 2018, algorithm 1), in float64."""
    K = cosines(X)
    rows = np.zeros((budget, len(K)))
    q = np.full(len(K), 1 + ridge)
    chosen, values = [], []
    for step in range(budget):
        s = int(np.argmax(q))
        chosen.append(s)
        values.append(q[s])
        rows[step] = (K[s] + ridge * (np.arange(len(K)) == s) - rows[:step, s] @ rows[:step]) / np.sqrt(q[s])
        q = q - rows[step] ** 2
        q[s] = -np.inf
    return chosen, np.log(values)


@pytest.mark.parametrize(("n", "d", "budget"), [(300, 12, 300), (300, 12, 50), (400, 64, 200), (60, 200, 60)])
@pytest.mark.parametrize("ridge", [0.01, 1.0, 30.0])
def test_log_det_is_the_naive_one(n, d, budget, ridge):
    for X in (normal(n, d, seed=1), clustered(n, d, seed=2)):
        selection = log_det(X, budget=budget, ridge=ridge)
        expected, gains = naive_log_det(X, ridge, budget)
        np.testing.assert_allclose(selection.gains, gains, rtol=0, atol=1e-9)
        assert selection.indices.tolist() == expected


def test_log_det_of_copies_with_the_smallest_ridge():
    X = np.repeat(normal(40, 6), 5, axis=0)
    selection = log_det(X, budget=200, ridge=1e-6)
    assert sorted(selection.indices.tolist()) == list(range(200))
    assert_lowest_copies_first(X, selection.indices)
    assert (selection.gains >= math.log(1e-6)).all()
    assert selection.gains.sum() == pytest.approx(f_log_det(cosines(X), list(range(200)), 1e-6), rel=1e-6)
    # Six directions, then what copies add.
    assert (selection.gains[6:] < -9).all()


def test_log_det_computes_few_rows_exactly(monkeypatch):
    # Counted through the compiled loop's own record: a row is exact where its bound was replaced in that step.
    seen = []
    inner = _objectives._log_det_steps

    def counted(*arguments):
        inner(*arguments)
        exact, stop = arguments[5], arguments[-1]
        seen.append(int((exact >= stop - 16).sum()))

    monkeypatch.setattr(_objectives, "_log_det_steps", counted)
    log_det(normal(2000, 32), budget=160)
    assert max(seen[1:]) < 200


# submodlib reads scipy.sparse.csr, which SciPy has deprecated.
@pytest.mark.filterwarnings("ignore:Please import `csr_matrix`:DeprecationWarning")
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_submodlib(seed):
    from submodlib import DisparitySumFunction, GraphCutFunction, LogDeterminantFunction

    n, budget = 120, 20
    X = clustered(n, d=5, seed=seed)
    # Reversed, as submodlib takes the last of ties.
    K = np.ascontiguousarray(cosines(X)[::-1, ::-1], np.float32)
    np.fill_diagonal(K, 1.0)
    functions = {
        "graph_cut": GraphCutFunction(n=n, mode="dense", lambdaVal=0.5, separate_rep=False, ggsijs=K),
        "log_det": LogDeterminantFunction(n=n, mode="dense", lambdaVal=1.0, sijs=K),
        "disparity_sum": DisparitySumFunction(n=n, mode="dense", sijs=K),
    }
    for name, function in functions.items():
        ours = SELECTORS[name](X, budget=budget)
        theirs = function.maximize(
            budget=budget,
            optimizer="NaiveGreedy",
            stopIfZeroGain=False,
            stopIfNegativeGain=False,
            show_progress=False,
        )
        if name == "disparity_sum":
            # Its first row is the last of ties; ours is the one farthest from the mean. The value is theirs.
            assert function.evaluate({n - 1 - i for i in ours.indices.tolist()}) == pytest.approx(
                ours.gains.sum(), rel=1e-5
            )
            continue
        assert ours.indices.tolist() == [n - 1 - item for item, _ in theirs]
        np.testing.assert_allclose(ours.gains, [gain for _, gain in theirs], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["graph_cut", "log_det", "disparity_sum"])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (6, 2), (9, 3), (10, 5), (8, 8)])
def test_no_set_exceeds_the_upper_bound(name, n, k):
    for seed in range(3):
        for X in (normal(n, 3, seed), np.abs(normal(n, 3, seed))):
            K = cosines(X)
            f = OBJECTIVES[name]
            optimum = max(f(K, list(S)) for S in itertools.combinations(range(n), k))
            certificate = SELECTORS[name](X, budget=k).certificate
            assert certificate["upper_bound"] >= optimum - 1e-9
            assert certificate["objective"] <= optimum + 1e-9
            if n == k:
                assert certificate["upper_bound"] == pytest.approx(optimum, abs=1e-6 * n)


@pytest.mark.parametrize(("name", "parameter"), [("graph_cut", 0.0), ("graph_cut", 3.0), ("log_det", 1e-3)])
def test_upper_bounds_hold_for_any_parameter(name, parameter):
    key = {"graph_cut": "trade_off", "log_det": "ridge"}[name]
    for seed in range(6):
        X = normal(9, 2, seed)
        K = cosines(X)
        optimum = max(OBJECTIVES[name](K, list(S), parameter) for S in itertools.combinations(range(9), 3))
        certificate = SELECTORS[name](X, budget=3, **{key: parameter}).certificate
        assert certificate["objective"] <= optimum + 1e-9 <= certificate["upper_bound"] + 2e-9
        if parameter == 0.0:
            assert certificate["ratio"] == pytest.approx(1.0)  # greedy is optimal on a modular function


def test_the_log_det_bound_is_no_looser_than_its_parts():
    X = clustered(200, seed=3)
    selection = log_det(X, budget=20)
    K = cosines(X)
    value = f_log_det(K, selection.indices.tolist())
    rest = [j for j in range(200) if j not in selection.indices]
    more = sorted(f_log_det(K, [*selection.indices.tolist(), j]) - value for j in rest)[-20:]
    parts = (value + sum(more), 20 * math.log(2), 8 * math.log1p(20 / 8))
    # The gains left are known from float32 bounds.
    assert selection.certificate["upper_bound"] == pytest.approx(min(parts), rel=1e-3)
    assert selection.certificate["upper_bound"] >= min(parts) - 1e-9


@pytest.mark.parametrize(("n", "k"), [(5, 1), (7, 2), (9, 3), (10, 4)])
def test_no_centres_have_a_radius_below_the_bound(n, k):
    for seed in range(5):
        X = normal(n, 3, seed)
        D = 1 - cosines(X)
        optimum = min(D[list(S)].min(axis=0).max() for S in itertools.combinations(range(n), k))
        certificate = k_center(X, budget=k).certificate
        assert certificate["radius_lower_bound"] <= optimum + 1e-9
        assert optimum - 1e-9 <= certificate["radius"]
        # At most twice the best angle.
        assert math.acos(1 - certificate["radius"]) <= 2 * math.acos(1 - optimum) + 1e-6
    assert certificate["radius_lower_bound"] > 0


def test_k_center_weights_are_those_of_the_nearest():
    X = clustered(150, seed=4)
    selection = k_center(X, budget=12)
    nearest = np.argmax(cosines(X)[selection.indices], axis=0)
    np.testing.assert_array_equal(selection.weights, np.bincount(nearest, minlength=12))


def test_k_center_is_the_naive_one():
    for X in (normal(500, 6, 1), clustered(500, 20, centres=30, spread=0.1)):
        D = 1 - cosines(X)
        expected = [int(k_center(X, budget=1).indices[0])]
        best = D[expected[0]]
        while len(expected) < 120:
            expected.append(int(np.argmax(best)))
            best = np.minimum(best, D[expected[-1]])
        assert k_center(X, budget=120).indices.tolist() == expected
    assert int(np.argmax(cosines(X).sum(axis=0))) == expected[0]


def test_copies_are_at_distance_zero_and_lowest_first():
    X = np.tile(np.array([[0.3, 0.1, -0.7], [0.2, 0.9, 0.4]], np.float32), (6, 1))
    selection = k_center(X, budget=12, start=3)
    assert selection.indices.tolist() == [3, 0, 1, 2, *range(4, 12)]
    assert selection.gains[2:].tolist() == [0.0] * 10
    assert selection.weights.tolist() == [1.0] * 12
    assert k_center(X, budget=2, start=3).certificate["radius"] == 0.0


def test_opposite_rows():
    X = np.array([[1.0, 0.0], [-1.0, 0.0]])
    assert k_center(X, budget=2).indices.tolist() == [0, 1]  # the mean is zero: the lowest index
    assert k_center(X, budget=2).gains.tolist() == [2.0, 2.0]
    assert k_center(X, budget=1).certificate["radius_lower_bound"] == pytest.approx(1.0)
    assert disparity_sum(X, budget=2).gains.tolist() == [0.0, 2.0]
    assert graph_cut(X, budget=2).gains.tolist() == [-0.5, 0.5]
    # The second lies in the span of the first: q = 1 + 1 - 1 / 2.
    np.testing.assert_allclose(log_det(X, budget=2).gains, np.log([2, 1.5]), atol=1e-12)


@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_one_dimension_and_one_row(name):
    X = np.array([[2.0], [-1.0], [0.5], [3.0]])
    selection = SELECTORS[name](X, budget=4)
    assert sorted(selection.indices.tolist()) == [0, 1, 2, 3]
    assert np.isfinite(selection.gains).all()
    one = SELECTORS[name](X[:1], budget=1)
    assert one.indices.tolist() == [0]
    assert one.gains[0] == {"graph_cut": 0.5, "log_det": math.log(2), "k_center": 0.0, "disparity_sum": 0.0}[name]
    assert all(type(value) is float and math.isfinite(value) for value in one.certificate.values())


@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_a_smaller_budget_gives_the_first_rows_of_a_larger_one(name):
    X = clustered(200, seed=5)
    large, small = SELECTORS[name](X, budget=70), SELECTORS[name](X, budget=23)
    np.testing.assert_array_equal(large.indices[:23], small.indices)
    np.testing.assert_array_equal(large.gains[:23], small.gains)


@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_the_same_for_any_thread_count(name):
    X = normal(1500, 65)
    results = []
    for threads in (1, 2):
        with threadpool_limits(limits=threads, user_api="blas"):
            results.append(SELECTORS[name](X, budget=200))
    one, two = results
    np.testing.assert_array_equal(one.indices, two.indices)
    np.testing.assert_array_equal(one.gains, two.gains)
    assert one.certificate == two.certificate
    if one.weights is not None:
        np.testing.assert_array_equal(one.weights, two.weights)


@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_any_order_of_the_rows_gives_the_same_rows(name):
    X = normal(300, 16, seed=6)
    order = np.random.default_rng(7).permutation(300)
    if name == "log_det":
        order = np.concatenate(([0], order[order != 0]))  # all rows tie at first
    selection, permuted = SELECTORS[name](X, budget=60), SELECTORS[name](X[order], budget=60)
    np.testing.assert_array_equal(order[permuted.indices], selection.indices)
    # The sums behind the gains are exact, so the bits do not depend on the order either.
    np.testing.assert_array_equal(permuted.gains, selection.gains)


@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_refusals(name):
    with pytest.raises(RecipeError, match="budget"):
        SELECTORS[name](np.eye(3), budget=4)
    with pytest.raises(DataError):
        SELECTORS[name](np.zeros((3, 2)), budget=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda X: graph_cut(X, budget=1, trade_off=-0.1), r"trade_off -0\.1"),
        (lambda X: graph_cut(X, budget=1, trade_off=math.nan), "trade_off"),
        (lambda X: graph_cut(X, budget=1, trade_off=math.inf), r"trade_off inf.*\[0, 1e\+06\]"),
        (lambda X: graph_cut(X, budget=1, trade_off=True), "trade_off"),
        (lambda X: graph_cut(X, budget=1, trade_off="much"), "trade_off"),
        (lambda X: log_det(X, budget=1, ridge=0), "ridge 0"),
        (lambda X: log_det(X, budget=1, ridge=1e-7), "ridge"),
        (lambda X: log_det(X, budget=1, ridge=math.inf), "ridge"),
        (lambda X: log_det(X, budget=1, ridge=True), "ridge"),
        (lambda X: k_center(X, budget=1, start=3), r"start 3.*\[0, 2\]"),
        (lambda X: k_center(X, budget=1, start=-1), "start"),
        (lambda X: k_center(X, budget=1, start=1.0), "start"),
        (lambda X: duqgen(X, budget=1, rng=np.random.default_rng(0), n_clusters=0), "n_clusters"),
        (lambda X: duqgen(X, budget=1, rng=np.random.default_rng(0), n_clusters="many"), "n_clusters"),
        (lambda X: duqgen(X, budget=1, rng=np.random.default_rng(0), temperature=0), "temperature"),
        (lambda X: duqgen(X, budget=1, rng=np.random.default_rng(0), temperature=math.inf), "temperature"),
    ],
)
def test_parameters_are_checked(call, message):
    with pytest.raises(RecipeError, match=message):
        call(np.eye(3))


# DUQGen


@given(hnp.arrays(np.int64, st.integers(1, 12), elements=st.integers(1, 40)), st.data())
@few
def test_cluster_shares(sizes, data):
    budget = data.draw(st.integers(1, int(sizes.sum())))
    shares = cluster_shares(sizes, budget)
    assert shares.sum() == budget
    assert (shares <= sizes).all()
    if budget < len(sizes):
        assert set(shares.tolist()) <= {0, 1}
        assert sizes[shares == 1].min() >= sizes[shares == 0].max()
        return
    assert (shares >= 1).all()
    # A larger cluster never gets less.
    assert (np.diff(shares[np.lexsort((-np.arange(len(sizes)), sizes))]) >= 0).all()


def directions(sizes, d=8, spread=0.02, seed=0):
    """Tight clusters around the axes, of these sizes, in random order; and the cluster of each row."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return (np.eye(d)[labels] + spread * rng.normal(size=(len(labels), d))).astype(np.float32), labels


@pytest.fixture
def axes(monkeypatch):
    """k-means finds the axes: its local optima are not what these tests are about."""
    monkeypatch.setattr(
        duqgen_module, "fit_spherical", lambda sample, k, **_: np.eye(k, sample.shape[1], dtype=np.float32)
    )


def test_duqgen_draws_every_cluster_in_proportion(axes):
    X, labels = directions([60, 30, 10])
    selection = duqgen(X, budget=23, rng=np.random.default_rng(3), n_clusters=3)
    assert (selection.gains, selection.weights, selection.certificate) == (None, None, None)
    assert len(set(selection.indices.tolist())) == 23
    assert np.bincount(labels[selection.indices]).tolist() == [13, 7, 3]  # 1 + 20 x size / 100
    # The first draws of the clusters come first, the largest cluster's before the others.
    assert labels[selection.indices[:3]].tolist() == [0, 1, 2]
    assert labels[selection.indices[3:6]].tolist() == [0, 1, 2]


def test_duqgen_with_fewer_rows_than_clusters_takes_the_largest(axes):
    X, labels = directions([40, 5, 30, 20])
    selection = duqgen(X, budget=2, rng=np.random.default_rng(0), n_clusters=4)
    assert labels[selection.indices].tolist() == [0, 2]


def test_duqgen_follows_the_softmax_without_replacement(axes):
    # One cluster around (1, 0): draws of 2 of 4 rows against the probabilities worked out pair by pair.
    X = np.array([[1.0, 0.0], [0.8, 0.6], [0.6, -0.8], [0.9, 0.2]])
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    p = np.exp(unit[:, 0] / 0.3)
    p /= p.sum()
    rng = np.random.default_rng(5)
    draws = 2000
    counts = np.zeros((4, 4))
    with one_blas_thread():  # once, and not in every call
        for _ in range(draws):
            first, second = duqgen(X, budget=2, rng=rng, n_clusters=1, temperature=0.3).indices
            counts[first, second] += 1
    for i, j in itertools.permutations(range(4), 2):
        expected = p[i] * p[j] / (1 - p[i])
        assert counts[i, j] / draws == pytest.approx(expected, abs=4 * math.sqrt(expected / draws))


def test_duqgen_cold_takes_the_nearest_to_the_centre():
    X, _ = directions([50])
    centre = X.astype(np.float64) / np.linalg.norm(X, axis=1, keepdims=True)
    nearness = centre @ centre.sum(axis=0)
    selection = duqgen(X, budget=5, rng=np.random.default_rng(0), n_clusters=1, temperature=1e-9)
    assert set(selection.indices.tolist()) == set(np.argsort(-nearness)[:5].tolist())


def test_duqgen_is_seeded_and_all_can_be_drawn():
    X = normal(90, 6)
    one, two = (duqgen(X, budget=30, rng=np.random.default_rng(4)) for _ in range(2))
    np.testing.assert_array_equal(one.indices, two.indices)
    other = duqgen(X, budget=30, rng=np.random.default_rng(5))
    assert one.indices.tolist() != other.indices.tolist()
    assert sorted(duqgen(X, budget=1.0, rng=np.random.default_rng(4)).indices.tolist()) == list(range(90))
    assert duqgen(X[:1], budget=1, rng=np.random.default_rng(4)).indices.tolist() == [0]


def test_duqgen_fits_on_a_sample_of_many_rows(monkeypatch):
    X, labels = directions([900, 700], seed=1)
    fitted = []

    def fit(sample, k, *, iterations, seed):
        fitted.append(sample)
        return np.eye(k, sample.shape[1], dtype=np.float32)

    monkeypatch.setattr(duqgen_module, "fit_spherical", fit)
    selection = duqgen(X, budget=16, rng=np.random.default_rng(2), n_clusters=2)
    assert np.bincount(labels[selection.indices]).tolist() == [9, 7]
    assert len(np.unique(fitted[0], axis=0)) == 512


def test_duqgen_finds_clusters_itself():
    X, labels = directions([100, 100], seed=3)
    selection = duqgen(X, budget=10, rng=np.random.default_rng(2), n_clusters=2)
    assert np.bincount(labels[selection.indices]).tolist() == [5, 5]


def test_duqgen_auto_draws_from_sqrt_n_clusters_but_no_more_than_the_budget(monkeypatch):
    wanted = []

    def fit(sample, k, *, iterations, seed):
        wanted.append(k)
        return sample[:k]

    monkeypatch.setattr(duqgen_module, "fit_spherical", fit)
    for budget in (50, 10, 4):
        duqgen(normal(100, 6), budget=budget, rng=np.random.default_rng(2))
    assert wanted == [10, 10, 4]
