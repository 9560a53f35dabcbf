import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.embeddings.grid import UNIT
from tamis.errors import DataError, RecipeError
from tamis.selectors import greedy
from tamis.selectors.facility_location import (
    facility_location,
    merge_rankings,
    on_graph,
    on_kernel,
    rank_partition,
    similarity_to,
    split_into_cells,
)
from tamis.selectors.greedy import Terms, maximise, maximise_lists
from tamis.selectors.kernels import DenseKernel
from tamis.selectors.selection import as_unit_rows

ENGINES = ["exact", "sparse", "partitioned"]


def clustered(n, d=8, centres=6, spread=0.35, seed=0):
    rng = np.random.default_rng(seed)
    middle = rng.normal(size=(centres, d))
    X = middle[rng.integers(centres, size=n)] + spread * rng.normal(size=(n, d))
    return as_unit_rows(X)


def kernel_of(X):
    return DenseKernel.of(as_unit_rows(X)).matrix


def random_kernel(n, levels, seed):
    """A symmetric kernel of so many values, ties throughout; the diagonal need not be the largest."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, levels, size=(n, n))
    kernel = (np.maximum(values, values.T) * (UNIT // levels)).astype(np.uint16)
    if seed % 2:
        np.fill_diagonal(kernel, UNIT)
    return kernel


class Unseen:
    """A kernel that says it is not in memory."""

    def __init__(self, kernel):
        self._kernel, self.n, self.matrix = DenseKernel(kernel), len(kernel), np.empty((0, 0), np.uint16)

    def __getattr__(self, name):
        return getattr(self._kernel, name)


def naive(K, terms):
    """Greedy by its definition: every gain afresh at every step. K: rows x candidates."""
    K = K.astype(np.int64)
    n, m = K.shape
    best = np.zeros(n, np.int64) if terms.low is None else terms.low.astype(np.int64)
    high = np.full(n, UNIT, np.int64) if terms.high is None else terms.high.astype(np.int64)
    cost = np.ones(m) if terms.cost is None else terms.cost
    left = list(range(m)) if terms.candidates is None else terms.candidates.tolist()
    money, owner, chosen, gains = terms.money, np.full(n, -1), [], []
    while left and len(chosen) < terms.budget and sum(gains) < terms.enough:
        after = np.maximum(best[:, None], np.minimum(K, high[:, None]))
        gain = (after - best[:, None]).sum(axis=0)
        s = max(left, key=lambda j: (gain[j] / cost[j], -j))
        left.remove(s)
        if cost[s] > money:
            continue
        if gain[s] < terms.least_gain:
            break
        owner[after[:, s] > best] = len(chosen)
        best, money = after[:, s], money - cost[s]
        chosen.append(s)
        gains.append(int(gain[s]))
    remaining = (np.maximum(best[:, None], np.minimum(K, high[:, None])) - best[:, None]).sum(axis=0)
    return chosen, gains, best, owner, remaining


def assert_is_naive(trace, K, terms):
    chosen, gains, best, owner, remaining = naive(K, terms)
    assert trace.chosen.tolist() == chosen
    assert trace.gains.tolist() == gains
    np.testing.assert_array_equal(trace.best, best)
    np.testing.assert_array_equal(trace.owner, owner)
    np.testing.assert_array_equal(trace.remaining, remaining)
    assert trace.bound >= sum(gains)


def lists_of(K, pairs):
    """The pairs of a kernel, rows x candidates, by row."""
    row, column = np.nonzero(pairs)
    return np.searchsorted(row, np.arange(len(K) + 1)), column.astype(np.int32), K[row, column]


def limits(n, rng):
    low, high = np.sort(rng.integers(0, UNIT + 1, size=(2, n)), axis=0).astype(np.uint16)
    low[::3], high[1::4] = 0, UNIT
    high[::5] = low[::5]
    return low, high


def all_terms(n, m, seed):
    """Every part of Terms alone, and together."""
    rng = np.random.default_rng(seed)
    low, high = limits(n, rng)
    some = np.sort(rng.choice(m, max(1, 2 * m // 3), replace=False))
    cost = rng.choice([0.5, 1.0, 1.5, 4.0], size=m)
    return [
        Terms(m),
        Terms(max(1, m // 3)),
        Terms(m, low=low),
        Terms(m, high=high),
        Terms(m, low=low, high=high),
        Terms(len(some), candidates=some),
        Terms(m, cost=cost, money=float(cost.sum() / 3)),
        Terms(m, least_gain=UNIT),
        Terms(m, enough=n * UNIT // 2),
        Terms(max(1, m // 2), low, high, some, cost, float(cost.sum() / 2), UNIT // 4, n * UNIT // 3),
    ]


@pytest.mark.parametrize("levels", [2, 3, 8, 1000])
@pytest.mark.parametrize("n", [1, 2, 3, 9, 40])
@pytest.mark.parametrize(("first_check", "most"), [(8, None), (8, 0), (1, 1 << 40), (3, 1 << 40), (1, 0), (2, 60)])
def test_greedy_is_the_naive_one_with_all_its_ties(monkeypatch, n, levels, first_check, most):
    # most_pairs: the pairs are never listed, listed at the first check, or when only a few are left.
    monkeypatch.setattr(greedy, "_FIRST_CHECK", first_check)
    for seed in range(2):
        K = random_kernel(n, levels, seed)
        before = K.copy()
        for terms in all_terms(n, n, seed):
            assert_is_naive(maximise(DenseKernel(K), terms, most), K, terms)
            assert_is_naive(maximise(Unseen(K), terms, most), K, terms)
        np.testing.assert_array_equal(K, before)


def test_all_budgets_are_prefixes_of_one_ranking():
    K = random_kernel(25, 3, 4)
    whole = maximise(DenseKernel(K), Terms(25))
    for budget in range(1, 26):
        trace = maximise(DenseKernel(K), Terms(budget))
        np.testing.assert_array_equal(trace.chosen, whole.chosen[:budget])
        np.testing.assert_array_equal(trace.gains, whole.gains[:budget])


@pytest.mark.parametrize("shape", [(1, 1), (30, 30), (40, 13), (13, 40)])
@pytest.mark.parametrize("levels", [3, 1000])
def test_greedy_on_lists_is_the_naive_one(shape, levels):
    n, m = shape
    for seed in range(3):
        rng = np.random.default_rng(seed)
        K = (rng.integers(0, levels, size=shape) * (UNIT // levels)).astype(np.uint16)
        K[rng.random(shape) < 0.6] = 0
        by_row, by_column = lists_of(K, K > 0), lists_of(K.T, K.T > 0)
        before = [part.copy() for part in (*by_row, *by_column)]
        for terms in all_terms(n, m, seed):
            assert_is_naive(maximise_lists(by_row, by_column, terms), K, terms)
        for array, copy in zip((*by_row, *by_column), before, strict=True):
            np.testing.assert_array_equal(array, copy)


def test_pairs_at_a_rows_floor_need_not_be_listed():
    rng = np.random.default_rng(6)
    K = (rng.integers(0, 50, size=(30, 20)) * (UNIT // 50)).astype(np.uint16)
    low = np.sort(K, axis=1)[:, 12]
    terms = Terms(20, low=low)
    listed = low[:, None] < K
    assert_is_naive(maximise_lists(lists_of(K, listed), lists_of(K.T, listed.T), terms), K, terms)


def test_greedy_through_both_phases():
    # Clusters: their pairs are few soon. One cloud: few rows rise a step, yet many pairs stay above the best.
    for X in (clustered(300, centres=30, spread=0.1), clustered(200, d=3, centres=1, spread=0.2)):
        K = kernel_of(X)
        assert_is_naive(maximise(DenseKernel(K), Terms(len(X))), K, Terms(len(X)))


def values_of_all_sets(K, low, high):
    """f of every subset, by the bits of its number."""
    best = low.astype(np.int64)[None]
    for row in K.astype(np.int64):
        best = np.concatenate((best, np.maximum(best, np.minimum(row, high.astype(np.int64)))))
    return (best - low).sum(axis=1)


def bits(n):
    return (np.arange(1 << n)[:, None] >> np.arange(n)) & 1


def prefix_bound(K, low, high, trace, budget):
    """min over prefixes T, twelfths of the budget, of f(T) + the largest gains that are left."""
    bounds = []
    for length in {0, *(round(budget * part / 12) for part in range(1, 12)), budget}:
        best = np.minimum(K[trace.chosen[:length]].max(axis=0, initial=0), high)
        best = np.maximum(best, low).astype(np.int64)
        more = np.maximum(np.minimum(K, high).astype(np.int64) - best, 0).sum(axis=1)
        bounds.append((best - low).sum() + np.sort(more)[-budget:].sum())
    return min(bounds)


@pytest.mark.parametrize("n", [1, 2, 5, 8, 11])
@pytest.mark.parametrize("kind", ["ties", "rows", "limits"])
def test_the_optimum_is_between_greedys_value_and_its_bound(n, kind):
    rng = np.random.default_rng(n)
    sizes = bits(n).sum(axis=1)
    for seed in range(3):
        K = random_kernel(n, 4, seed) if kind == "ties" else kernel_of(np.random.default_rng(seed).normal(size=(n, 3)))
        low, high = limits(n, rng) if kind == "limits" else (np.zeros(n, np.uint16), np.full(n, UNIT, np.uint16))
        value = values_of_all_sets(K, low, high)
        for budget in range(1, n + 1):
            trace = maximise(DenseKernel(K), Terms(budget, low, high))
            best = int(value[sizes == budget].max())
            reached = int(trace.gains.sum())
            assert reached == value[sum(1 << s for s in trace.chosen.tolist())]
            assert (1 - (1 - 1 / budget) ** budget) * best - 1e-6 <= reached <= best <= trace.bound
            assert trace.bound == prefix_bound(K, low, high, trace, budget)
            assert (np.diff(trace.gains) <= 0).all()
            for most in (0, 1 << 40):
                assert maximise(Unseen(K), Terms(budget, low, high), most).bound == trace.bound


@pytest.mark.parametrize(("n", "seed"), [(1, 0), (4, 1), (8, 2), (10, 3), (10, 4), (11, 5)])
def test_costs_against_the_best_affordable_set(n, seed):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 3))
    K = kernel_of(X)
    value = values_of_all_sets(K, np.zeros(n, np.uint16), np.full(n, UNIT, np.uint16))
    for cost in (rng.uniform(0.2, 3.0, size=n), rng.choice([0.25, 4.0], size=n), np.ones(n)):
        for share in (0.15, 0.4, 0.8, 1.0):
            money = max(cost.min(), share * cost.sum())
            best = value[bits(n) @ cost <= money].max() / UNIT
            selection = facility_location(X, budget=n, costs=cost, max_cost=money)
            certificate = selection.certificate
            assert cost[selection.indices].sum() <= money + 1e-9
            assert certificate["objective"] == value[sum(1 << s for s in selection.indices.tolist())] / UNIT
            assert (1 - 1 / math.e) / 2 * best <= certificate["objective"] <= best <= certificate["upper_bound"]
            terms = Terms(n, cost=cost, money=money)
            by_ratio = sum(naive(K, terms)[1]) / UNIT
            alone = K[cost <= money].sum(axis=1, dtype=np.int64).max() / UNIT
            assert certificate["objective"] == max(by_ratio, alone)


def test_one_dear_row_that_beats_all_cheap_ones_is_taken():
    X = np.vstack([np.tile(np.eye(30)[:1], (100, 1)), np.eye(30)[1:]])
    cost = np.where(np.arange(129) < 100, 110.0, 1.0)  # a cheap row stands for itself, a dear one for 100
    selection = facility_location(X, budget=129, costs=cost, max_cost=110)
    assert selection.indices.tolist() == [0]
    assert selection.gains.tolist() == [100.0]
    # With preselected rows too, and none of those.
    selection = facility_location(X, budget=20, costs=cost, max_cost=110, preselected=[100, 128])
    assert selection.indices.tolist() == [0]
    selection = facility_location(X, budget=20, costs=cost, max_cost=110, preselected=[3])
    assert selection.indices.tolist() == list(range(100, 120))


def reference(kernel, budget):
    """submodlib's LazyGreedy on a float32 kernel, dense or CSR."""
    from submodlib import FacilityLocationFunction

    if scipy.sparse.issparse(kernel):
        listed = int(kernel.getnnz(axis=1).max())
        function = FacilityLocationFunction(kernel.shape[0], "sparse", sijs=kernel, num_neighbors=listed)
    else:
        function = FacilityLocationFunction(len(kernel), "dense", separate_rep=False, sijs=kernel)
    # stopIfZeroGain would stop at a gain below 1.
    chosen = function.maximize(budget, "LazyGreedy", False, False, 0.1, False, False)
    return [row for row, _ in chosen], [gain for _, gain in chosen]


# submodlib reads scipy.sparse.csr, which SciPy has deprecated.
quiet = pytest.mark.filterwarnings("ignore:Please import `csr_matrix`:DeprecationWarning")


@quiet
@pytest.mark.parametrize("levels", [2, 3, 8, 1000])
def test_the_list_and_the_gains_are_submodlibs(levels):
    for seed in range(8):
        n = 20 + 7 * seed
        K = random_kernel(n, levels, seed)
        theirs, gains = reference(np.ascontiguousarray(K / UNIT, np.float32), n - 1)
        ours = on_kernel(K, budget=n - 1, compat="submodlib")
        assert ours.indices.tolist() == theirs
        assert ours.gains.tolist() == gains
        same_ties = on_kernel(K, budget=n - 1).indices.tolist() == theirs
        assert not (levels == 2 and same_ties)  # where all ties, our own rule gives another list


@quiet
@pytest.mark.parametrize("seed", range(3))
def test_the_list_and_the_gains_are_submodlibs_on_embeddings(seed):
    K = kernel_of(clustered(400, d=5, centres=30, seed=seed))
    theirs, gains = reference(np.ascontiguousarray(K / UNIT, np.float32), 399)
    ours = on_kernel(K, budget=399, compat="submodlib")
    assert ours.indices.tolist() == theirs
    assert ours.gains.tolist() == gains


def random_graph(n, degree, levels, seed):
    rng = np.random.default_rng(seed)
    pairs = rng.random((n, n)) < degree / n
    values = np.where(pairs, rng.integers(1, levels + 1, size=(n, n)) * (UNIT // levels), 0)
    dense = np.triu(values, 1)
    return scipy.sparse.csr_matrix(((dense + dense.T + UNIT * np.eye(n, dtype=np.int64)) / UNIT).astype(np.float32))


@quiet
@pytest.mark.parametrize("levels", [1, 3, 1000])
def test_the_list_and_the_gains_are_submodlibs_on_a_graph(levels):
    for seed in range(8):
        n = 30 + 9 * seed
        graph = random_graph(n, 1 + seed, levels, seed)
        theirs, gains = reference(graph, n - 1)
        ours = on_graph(graph, budget=n - 1, compat="submodlib")
        assert ours.indices.tolist() == theirs
        assert ours.gains.tolist() == gains


def test_a_graph_is_a_kernel_whose_other_pairs_are_zero():
    for seed in range(4):
        graph = random_graph(60, 5, 4, seed)
        K = np.rint(graph.toarray() * UNIT).astype(np.uint16)
        sparse, dense = on_graph(graph, budget=60), on_kernel(K, budget=60)
        np.testing.assert_array_equal(sparse.indices, dense.indices)
        np.testing.assert_array_equal(sparse.gains, dense.gains)
        np.testing.assert_array_equal(sparse.weights, dense.weights)
        assert sparse.certificate == dense.certificate
        assert (sparse.engine, dense.engine) == ("sparse", "exact")
        for compat in (None, "submodlib"):
            threads = [on_kernel(K, budget=20, threads=t, compat=compat).indices.tolist() for t in (1, 2, 3)]
            assert threads[0] == threads[1] == threads[2]


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (np.zeros((3, 3)), "uint16"),
        (np.zeros((3, 2), np.uint16), r"\[n, n\]"),
        (np.zeros((0, 0), np.uint16), r"\[n, n\]"),
        ([[1]], "uint16"),
        (np.full((2, 2), UNIT + 1, np.uint16), "32769, more than 32768"),
    ],
)
def test_unusable_kernels(kernel, message):
    with pytest.raises(DataError, match=message):
        on_kernel(kernel, budget=1)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (scipy.sparse.csc_matrix(np.eye(3)), "csc"),
        (scipy.sparse.csr_matrix(np.ones((3, 2))), r"\(3, 2\)"),
        (scipy.sparse.csr_matrix((0, 0)), r"\(0, 0\)"),
        (scipy.sparse.csr_matrix(-np.eye(3)), r"\[0, 1\]"),
        (scipy.sparse.csr_matrix(1.5 * np.eye(3)), r"\[0, 1\]"),
        (scipy.sparse.csr_matrix(np.nan * np.eye(3)), r"\[0, 1\]"),
    ],
)
def test_unusable_graphs(graph, message):
    with pytest.raises(DataError, match=message):
        on_graph(graph, budget=1)


def f(X, S):
    """The objective in float64, as it is written."""
    X = np.asarray(X, np.float64)
    X = X / np.linalg.norm(X, axis=1, keepdims=True)
    return np.maximum(0.0, (X @ X[S].T).max(axis=1)).sum()


def same(a, b):
    np.testing.assert_array_equal(a.indices, b.indices)
    np.testing.assert_array_equal(a.gains, b.gains)
    np.testing.assert_array_equal(a.weights, b.weights)
    assert a.certificate == b.certificate
    assert a.engine == b.engine


CLUSTERED = clustered(1500, d=16, centres=60, spread=0.5, seed=1)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("how", [{}, {"stop_gain": 1.5}, {"preselected": [3, 700, 1499]}, {"costs": True}])
def test_nothing_depends_on_threads_or_device(engine, how):
    if "costs" in how:
        if engine != "exact":
            pytest.skip("costs need every pair")
        how = {"costs": np.random.default_rng(0).uniform(1, 2, size=1500), "max_cost": 80}
    one = facility_location(CLUSTERED, budget=100, engine=engine, **how)
    assert one.engine == engine
    for other in ({"threads": 2}, {"threads": 3}, {"device": "cpu"}, {"device": "cpu", "threads": 2}):
        same(one, facility_location(CLUSTERED, budget=100, engine=engine, **how, **other))


@pytest.mark.parametrize("how", [{}, {"stop_coverage": 0.7}, {"preselected": [3, 600]}, {"budget": 700}])
def test_the_exact_engine_does_not_depend_on_memory(how):
    X = CLUSTERED[:700]
    how = {"budget": 90, "engine": "exact"} | how
    dense = facility_location(X, **how)
    for memory_bytes in (1, 100_000, 2 * 700**2 - 1):
        for device in (None, "cpu"):
            same(dense, facility_location(X, memory_bytes=memory_bytes, device=device, **how))


def test_auto_is_exact_where_the_kernel_fits():
    X = CLUSTERED[:500]
    for memory_bytes, engine in ((2 * 500**2, "exact"), (2 * 500**2 - 1, "sparse")):
        chosen = facility_location(X, budget=50, memory_bytes=memory_bytes)
        assert chosen.engine == engine
        same(chosen, facility_location(X, budget=50, engine=engine))


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_the_rows_matters_only_in_ties(seed):
    rng = np.random.default_rng(seed)
    X = as_unit_rows(rng.normal(size=(300, 6)))
    order = rng.permutation(300)
    one, other = (facility_location(rows, budget=300) for rows in (X, X[order]))
    mapped = order[other.indices]
    parted = np.flatnonzero(mapped != one.indices)
    step = int(parted[0]) if len(parted) else 299
    assert step > 30
    np.testing.assert_array_equal(one.gains[: step + 1], other.gains[: step + 1])
    if len(parted):  # the lists part at a tie, where each takes its lowest index
        best = kernel_of(X)[one.indices[:step]].max(axis=0)
        gain = np.maximum(kernel_of(X).astype(np.int64) - best, 0).sum(axis=1)
        assert gain[one.indices[step]] == gain[mapped[step]] == gain.max()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("budget", "count"), [(1, 1), (0.001, 1), (0.1, 20), (37, 37), (200, 200), (1.0, 200)])
def test_the_budget_is_met(engine, budget, count):
    selection = facility_location(CLUSTERED[:200], budget=budget, engine=engine)
    assert len(selection.indices) == len(set(selection.indices.tolist())) == count
    assert (np.diff(selection.gains) <= 0).all()
    assert selection.weights.sum() == 200
    assert (selection.weights >= 1).all()


@pytest.mark.parametrize("preselected", [None, [4, 90]])
def test_weights_and_certificate_are_those_of_the_nearest_chosen(preselected):
    X = clustered(400, seed=4)
    K = kernel_of(X)
    selection = facility_location(X, budget=19, preselected=preselected)
    S = selection.indices
    before = K[:, preselected].max(axis=1) if preselected else np.zeros(400, np.uint16)
    nearest, best = K[:, S].argmax(axis=1), K[:, S].max(axis=1)  # the first of several
    mine = (best > before) if preselected else np.full(400, True)
    assert selection.weights.sum() == mine.sum()
    np.testing.assert_array_equal(selection.weights, np.bincount(nearest[mine], minlength=19))
    best = np.maximum(best, before)
    certificate = selection.certificate
    assert certificate["objective"] == best.sum(dtype=np.int64) / UNIT
    assert certificate["objective"] == pytest.approx(f(X, [*S, *(preselected or [])]), abs=0.02)
    assert certificate["objective"] == selection.gains.sum() + before.sum(dtype=np.int64) / UNIT
    assert certificate["ratio"] == certificate["objective"] / certificate["upper_bound"]
    distance = 1 - best / UNIT
    assert certificate["coverage_mean"] == pytest.approx(distance.mean(), rel=1e-12)
    assert certificate["coverage_p95"] == pytest.approx(np.percentile(distance, 95), rel=1e-12)
    assert facility_location(X, budget=19, preselected=preselected, certificate=False).certificate is None


@pytest.mark.parametrize("engine", ENGINES)
def test_the_random_figures_are_those_of_as_many_random_rows(engine):
    K = kernel_of(CLUSTERED)
    rng = np.random.default_rng(1)
    draws = [1 - K[:, rng.choice(1500, 60, replace=False)].max(axis=1) / UNIT for _ in range(40)]
    certificate = facility_location(CLUSTERED, budget=60, engine=engine).certificate
    for figure, name in ((np.mean, "mean"), (lambda x: np.percentile(x, 95), "p95")):
        expected = [figure(draw) for draw in draws]
        assert abs(certificate[f"random_coverage_{name}"] - np.mean(expected)) < 5 * np.std(expected) + 0.01
        assert certificate[f"coverage_{name}"] < certificate[f"random_coverage_{name}"]


@pytest.mark.parametrize(("engine", "share"), [("sparse", 0.99), ("partitioned", 0.98)])
@pytest.mark.parametrize("budget", [60, 150, 600])  # no fewer than there are clusters
def test_approximate_engines_come_close(engine, share, budget):
    exact = facility_location(CLUSTERED, budget=budget, engine="exact")
    selection = facility_location(CLUSTERED, budget=budget, engine=engine)
    reached = f(CLUSTERED, selection.indices)
    assert reached >= share * f(CLUSTERED, exact.indices)
    certificate = selection.certificate
    # What is sought in a few cells is at most what there is.
    assert certificate["objective"] <= reached + 0.1
    assert certificate["objective"] >= 0.99 * reached
    assert certificate["upper_bound"] == 1500
    assert certificate["listed_objective"] == selection.gains.sum()
    assert certificate["listed_objective"] <= certificate["listed_upper_bound"]
    assert certificate["listed_ratio"] == certificate["listed_objective"] / certificate["listed_upper_bound"]


def test_the_sparse_engine_that_looks_everywhere_is_the_exact_one():
    for X in (clustered(300, seed=2), np.abs(clustered(300, seed=3))):  # with cosines of 0, and without
        exact = facility_location(X, budget=100, engine="exact")
        sparse = facility_location(X, budget=100, engine="sparse", neighbours=300, probes=300)
        np.testing.assert_array_equal(sparse.indices, exact.indices)
        assert sparse.certificate["objective"] == exact.certificate["objective"]
        for name in ("coverage_mean", "coverage_p95", "random_coverage_mean", "random_coverage_p95"):
            assert sparse.certificate[name] == exact.certificate[name]
        K = kernel_of(X)[:, exact.indices]
        unique = (K.max(axis=1, keepdims=True) == K).sum(axis=1) == 1
        assert unique.mean() > 0.9
        assert np.abs(sparse.weights - exact.weights).sum() <= 2 * (~unique).sum()


@pytest.mark.parametrize("engine", ["sparse", "partitioned"])
def test_a_row_whose_cells_hold_nothing_chosen_is_represented_from_elsewhere(engine):
    X = clustered(600, centres=40, spread=0.05, seed=6)
    selection = facility_location(X, budget=3, engine=engine, probes=1)
    K = kernel_of(X)[:, selection.indices]
    assert selection.weights.sum() == 600
    # Few cells are probed, so that a nearer chosen row may be missed: no more is claimed than there is.
    assert selection.certificate["objective"] <= K.max(axis=1).sum(dtype=np.int64) / UNIT
    assert selection.certificate["objective"] >= 0.95 * K.max(axis=1).sum(dtype=np.int64) / UNIT


def test_preselected_rows_continue_a_list():
    whole = facility_location(CLUSTERED, budget=60)
    for k in (1, 20, 59):
        rest = facility_location(CLUSTERED, budget=60 - k, preselected=whole.indices[:k])
        np.testing.assert_array_equal(rest.indices, whole.indices[k:])
        np.testing.assert_array_equal(rest.gains, whole.gains[k:])
        assert rest.certificate["objective"] == whole.certificate["objective"]
        assert rest.certificate["coverage_mean"] == whole.certificate["coverage_mean"]
    # Their order, and naming one twice, say nothing; an empty list is none.
    first = whole.indices[:20].tolist()
    same(
        facility_location(CLUSTERED, budget=9, preselected=[*first[::-1], first[0]]),
        facility_location(CLUSTERED, budget=9, preselected=np.array(first, np.uint16)),
    )
    same(facility_location(CLUSTERED, budget=9, preselected=[]), facility_location(CLUSTERED, budget=9))


@pytest.mark.parametrize("engine", ENGINES)
def test_preselected_rows_are_never_chosen_again(engine):
    X = CLUSTERED[:300]
    first = facility_location(X, budget=100, engine=engine)
    for taken, budget in ((first.indices, 20), (first.indices, 200), (np.arange(299), 1)):
        rest = facility_location(X, budget=budget, engine=engine, preselected=taken)
        assert len(set(rest.indices.tolist())) == len(rest.indices) == budget
        assert not set(rest.indices.tolist()) & set(taken.tolist())
        assert (np.diff(rest.gains) <= 0).all()
        assert (rest.weights >= 1).all()
        assert rest.weights.sum() <= 300 - len(taken)
        together = f(X, [*taken, *rest.indices])
        assert rest.certificate["objective"] == pytest.approx(together, rel=0.01)


def test_preselected_rows_leave_less_to_choose():
    X = CLUSTERED[:50]
    with pytest.raises(RecipeError, match="asks for 48 new rows, but 3 of 50 are preselected; give at most 47"):
        facility_location(X, budget=48, preselected=[1, 2, 3])
    with pytest.raises(RecipeError, match="preselected"):
        facility_location(X, budget=1, preselected=np.arange(50))
    for wrong, message in (
        ([50], "row 50 of 50"),
        ([-1], "row -1 of 50"),
        ([0.5], "float64"),
        ([True], "bool"),
        ([[1]], "shape"),
    ):
        with pytest.raises(DataError, match=message):
            facility_location(X, budget=1, preselected=wrong)


@pytest.mark.parametrize("memory_bytes", [1, 1 << 30])
@pytest.mark.parametrize("preselected", [None, [3, 77]])
def test_stopping_gives_the_shortest_prefix_that_is_enough(memory_bytes, preselected):
    X = CLUSTERED[:400]
    how = {"engine": "exact", "memory_bytes": memory_bytes, "preselected": preselected}
    whole = facility_location(X, budget=300, **how)
    K = kernel_of(X)
    covered = [
        K[[*(preselected or []), *whole.indices[:k]]].max(axis=0, initial=0).sum(dtype=np.int64) / (400 * UNIT)
        for k in range(301)
    ]
    for coverage in (0.5, 0.8, 0.95, covered[7]):
        stopped = facility_location(X, budget=300, stop_coverage=coverage, **how)
        k = next(k for k in range(301) if covered[k] >= coverage)
        np.testing.assert_array_equal(stopped.indices, whole.indices[:k])
        assert stopped.certificate["coverage_mean"] <= 1 - coverage + 1e-9
        assert stopped.certificate["upper_bound"] <= 400
    for gain in (whole.gains[9], 1.0, 0.3):
        stopped = facility_location(X, budget=300, stop_gain=gain, **how)
        np.testing.assert_array_equal(stopped.indices, whole.indices[whole.gains >= gain])
    # Of all limits the first that is met counts.
    both = facility_location(X, budget=5, stop_gain=0.3, stop_coverage=0.99, **how)
    np.testing.assert_array_equal(both.indices, whole.indices[:5])


@pytest.mark.parametrize("engine", ENGINES)
def test_a_stopped_list_is_certified_for_its_own_size(engine):
    # Bounds taken on the way to the budget would say little of so few rows.
    stopped = facility_location(CLUSTERED, budget=1000, engine=engine, stop_gain=3.0)
    count = len(stopped.indices)
    assert 20 < count < 200
    assert stopped.gains[-1] >= 3.0
    # Greedy stops where no row adds 3.
    name = "" if engine == "exact" else "listed_"
    objective, bound = (stopped.certificate[name + figure] for figure in ("objective", "upper_bound"))
    assert objective < bound < objective + 3.0 * count


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_is_chosen_where_nothing_is_worth_it(engine):
    selection = facility_location(CLUSTERED[:200], budget=20, engine=engine, stop_gain=300)
    assert selection.indices.tolist() == selection.weights.tolist() == selection.gains.tolist() == []
    assert selection.certificate["objective"] == 0
    assert selection.certificate["coverage_mean"] == 1.0
    assert 0 < selection.certificate["random_coverage_mean"] < 1


@pytest.mark.parametrize("engine", ["sparse", "partitioned"])
@pytest.mark.parametrize("how", [{"costs": np.ones(1500), "max_cost": 20}, {"stop_coverage": 0.9}])
def test_what_needs_every_pair_is_refused_by_the_other_engines(engine, how):
    with pytest.raises(RecipeError, match="need every pair"):
        facility_location(CLUSTERED, budget=100, engine=engine, **how)
    assert facility_location(CLUSTERED, budget=1500, memory_bytes=10_000, **how).engine == "exact"


@pytest.mark.parametrize("engine", ["auto", "exact"])
def test_costs_keep_to_the_money(engine):
    rng = np.random.default_rng(2)
    cost = rng.uniform(0.5, 3.0, size=1500)
    for money in (cost.min(), 10.0, 100.0):
        selection = facility_location(CLUSTERED, budget=1500, engine=engine, costs=cost, max_cost=money)
        assert cost[selection.indices].sum() <= money + 1e-9
        assert selection.weights.sum() == (1500 if len(selection.indices) else 0)
    # The same costs for all are a budget.
    even = facility_location(CLUSTERED, budget=1500, engine=engine, costs=np.full(1500, 0.5), max_cost=20)
    assert len(even.indices) == 40
    counted = facility_location(CLUSTERED, budget=40, engine=engine)
    np.testing.assert_array_equal(even.indices, counted.indices)
    # The budget counts beside the money.
    assert len(facility_location(CLUSTERED, budget=7, engine=engine, costs=cost, max_cost=100).indices) == 7


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"engine": "dense"}, RecipeError, "engine 'dense' is not one of"),
        ({"memory_bytes": 0}, RecipeError, "memory_bytes 0"),
        ({"memory_bytes": 1e9}, RecipeError, "memory_bytes"),
        ({"memory_bytes": True}, RecipeError, "memory_bytes True"),
        ({"threads": 0}, RecipeError, "threads 0"),
        ({"threads": 1.0}, RecipeError, "threads"),
        ({"neighbours": 0}, RecipeError, "neighbours 0"),
        ({"probes": -1}, RecipeError, "probes -1"),
        ({"stop_gain": 0}, RecipeError, "stop_gain 0"),
        ({"stop_gain": float("nan")}, RecipeError, "stop_gain nan"),
        ({"stop_coverage": 0}, RecipeError, "stop_coverage 0"),
        ({"stop_coverage": 1.1}, RecipeError, "stop_coverage 1.1"),
        ({"costs": [1, 1, 1]}, RecipeError, "costs and max_cost together"),
        ({"max_cost": 1}, RecipeError, "costs and max_cost together"),
        ({"costs": [1, 1], "max_cost": 1}, DataError, r"costs of shape \(2,\) for 3 rows"),
        ({"costs": [1, 0, 1], "max_cost": 1}, DataError, "finite cost above 0"),
        ({"costs": [1, np.inf, 1], "max_cost": 1}, DataError, "finite cost above 0"),
        ({"costs": [1, 2, 3], "max_cost": -1}, RecipeError, "max_cost -1"),
        ({"costs": [1, 2, 3], "max_cost": 0.5}, RecipeError, "buys nothing: the cheapest row costs 1"),
        ({"budget": 4}, RecipeError, "1 more than there are"),
    ],
)
def test_refusals(how, error, message):
    with pytest.raises(error, match=message):
        facility_location(np.eye(3), **({"budget": 1} | how))


def test_unusable_embeddings_are_refused():
    with pytest.raises(DataError, match="only zeros"):
        facility_location(np.zeros((3, 3)), budget=1)


WAYS = [{"engine": engine} for engine in ENGINES] + [
    {"engine": "exact", "memory_bytes": 1},
    {"engine": "exact", "device": "cpu"},
    {"engine": "sparse", "device": "cpu"},
    {"engine": "partitioned", "device": "cpu"},
    {"engine": "sparse", "neighbours": 1, "probes": 1},
]


@pytest.fixture(params=WAYS, ids=lambda how: "-".join(map(str, how.values())))
def way(request):
    return request.param


def sees_all(way):
    """Whether few rows are all compared with one another, so that every engine is exact on them."""
    return way.get("neighbours") != 1


def test_identical_rows(way):
    X = np.tile(np.array([[1.0, 0.0, 0.0]], np.float32), (40, 1))
    selection = facility_location(X, budget=5, **way)
    assert len(set(selection.indices.tolist())) == 5
    assert selection.weights.sum() == 40
    assert (selection.weights >= 1).all()
    assert selection.certificate["objective"] == 40.0
    assert selection.certificate["coverage_p95"] == 0.0
    if way["engine"] == "exact":
        assert selection.indices.tolist() == [0, 1, 2, 3, 4]
        assert selection.gains.tolist() == [40, 0, 0, 0, 0]
        assert selection.weights.tolist() == [36, 1, 1, 1, 1]  # the first has all ties, but each has itself


def test_orthogonal_rows(way):
    selection = facility_location(np.eye(12), budget=12, **way)
    assert selection.indices.tolist() == list(range(12))
    assert selection.weights.tolist() == [1.0] * 12
    assert selection.certificate["objective"] == 12.0
    few = facility_location(np.eye(12), budget=3, **way)
    assert few.indices.tolist() == [0, 1, 2]
    assert few.weights.tolist() == [10.0, 1.0, 1.0]  # rows like none go to the first
    assert few.certificate["objective"] == 3.0
    if sees_all(way):
        assert few.gains.tolist() == [1.0] * 3


def test_opposite_rows_count_as_zero_not_negative(way):
    X = np.array([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    selection = facility_location(X, budget=1, **way)
    assert selection.certificate["coverage_p95"] <= 1.0
    assert selection.weights.tolist() == [3.0]
    if sees_all(way):
        assert selection.indices.tolist() == [0]
        assert selection.gains.tolist() == [2.0]
        assert selection.certificate["objective"] == 2.0
        both = facility_location(X, budget=2, **way)
        assert both.indices.tolist() == [0, 1]
        assert both.weights.tolist() == [2.0, 1.0]


def test_one_row(way):
    selection = facility_location([[2.0, 1.0]], budget=1, **way)
    assert selection.indices.tolist() == [0]
    assert selection.weights.tolist() == [1.0]
    assert selection.certificate["objective"] == 1.0


def test_one_dimension(way):
    X = np.array([[3.0], [-1.0], [2.0], [0.5], [-7.0]])
    selection = facility_location(X, budget=2, **way)
    assert len(set(selection.indices.tolist())) == 2
    assert selection.weights.sum() == 5
    if sees_all(way):
        assert selection.indices.tolist() == [0, 1]
        assert selection.gains.tolist() == [3.0, 2.0]
        assert selection.weights.tolist() == [3.0, 2.0]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_how_the_input_lies_in_memory_does_not_matter(way, dtype):
    X = np.random.default_rng(3).normal(size=(120, 7)).astype(dtype)
    plain = facility_location(X, budget=12, **way)
    wide = np.zeros((240, 14), dtype)
    wide[::2, ::2] = X
    frozen = X.copy()
    frozen.setflags(write=False)
    before = X.copy()
    for other in (np.asfortranarray(X), wide[::2, ::2], X[::-1].copy()[::-1], frozen, X.astype(X.dtype.newbyteorder())):
        same(plain, facility_location(other, budget=12, **way))
    np.testing.assert_array_equal(X, before)


def test_rank_partition_ranks_all_rows_by_exact_greedy():
    X = clustered(150, seed=5)
    chosen, gains = rank_partition(X, 150)
    expected = naive(kernel_of(X), Terms(150))
    assert chosen.tolist() == expected[0]
    np.testing.assert_array_equal(gains, np.array(expected[1]) / UNIT)
    few, few_gains = rank_partition(X, 9)
    np.testing.assert_array_equal(few, chosen[:9])
    np.testing.assert_array_equal(few_gains, gains[:9])
    for budget in (0, 151):
        with pytest.raises(RecipeError, match="give 1 to 150"):
            rank_partition(X, budget)


def test_partitions_in_parallel_threads_equal_one_by_one():
    parts = [clustered(200, seed=seed) for seed in range(6)]
    alone = [rank_partition(X, 200) for X in parts]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda X: rank_partition(X, 200), parts))
    for (i, g), (j, h) in zip(alone, together, strict=True):
        np.testing.assert_array_equal(i, j)
        np.testing.assert_array_equal(g, h)


def test_merged_full_rankings_are_greedy_inside_partitions():
    X = clustered(90, seed=5)
    cells = [np.arange(40), np.arange(40, 70), np.arange(70, 90)]
    K = kernel_of(X)
    block = np.zeros_like(K)
    rankings = []
    for rows in cells:
        block[np.ix_(rows, rows)] = K[np.ix_(rows, rows)]
        chosen, gains = rank_partition(X[rows], len(rows))
        rankings.append((rows[chosen], gains))
    indices, gains = merge_rankings(rankings, 90)
    expected = naive(block, Terms(90))
    assert indices.tolist() == expected[0]
    np.testing.assert_array_equal(gains * UNIT, expected[1])


def test_merge_takes_the_largest_gains_and_keeps_each_order():
    rankings = [
        (np.array([7, 2, 5]), np.array([3.0, 1.0, 1.0])),
        (np.array([4, 0]), np.array([3.0, 1.0])),
        (np.array([], np.int64), np.array([])),
    ]
    indices, gains = merge_rankings(rankings, 5)
    assert indices.tolist() == [4, 7, 0, 2, 5]
    assert gains.tolist() == [3.0, 3.0, 1.0, 1.0, 1.0]
    assert merge_rankings(rankings, 2)[0].tolist() == [4, 7]
    # A list whose ties are not in index order keeps its own order all the same.
    odd = [(np.array([9, 1]), np.array([2.0, 2.0])), (np.array([5]), np.array([2.0]))]
    assert merge_rankings(odd, 3)[0].tolist() == [5, 9, 1]
    assert indices.dtype == np.int64
    assert gains.dtype == np.float64
    for budget in (0, 6):
        with pytest.raises(RecipeError):
            merge_rankings(rankings, budget)


def test_cells_partition_the_rows_and_keep_neighbours_together():
    X = clustered(4000, d=16, centres=4, spread=0.05, seed=7)
    cells = split_into_cells(X)
    assert len(cells) == 4
    np.testing.assert_array_equal(np.sort(np.concatenate(cells)), np.arange(4000))
    assert all(len(rows) and (np.diff(rows) > 0).all() for rows in cells)
    within = np.mean([(X[rows] @ X[rows].T).mean() for rows in cells])
    assert within > (X @ X.T).mean() + 0.2
    assert [rows.tolist() for rows in split_into_cells(X[:700])] == [list(range(700))]


def test_identical_rows_still_make_bounded_cells():
    X = np.tile(np.array([[0.6, 0.8]], np.float32), (5000, 1))
    cells = split_into_cells(X, max_cell_rows=700)
    np.testing.assert_array_equal(np.sort(np.concatenate(cells)), np.arange(5000))
    assert max(map(len, cells)) <= 700
    assert len(cells) == 8


def test_similarity_to_others_is_the_kernels():
    X = clustered(2300, seed=1)
    K = kernel_of(X)
    for others in ([5], [9, 2200, 40], np.arange(0, 2300, 2)):
        for threads in (1, 2):
            np.testing.assert_array_equal(similarity_to(X, X[others], threads), K[:, others].max(axis=1))
    # More others than are compared at a time.
    np.testing.assert_array_equal(similarity_to(X[:20], np.tile(X, (2, 1))), UNIT)


few_examples = settings(max_examples=30, deadline=None)


@few_examples
@given(st.integers(1, 14), st.integers(2, 5), st.integers(0, 1000), st.data())
def test_costs_on_kernels_full_of_ties(n, levels, seed, data):
    K = random_kernel(n, levels, seed)
    cost = np.array(data.draw(st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.0]), min_size=n, max_size=n)))
    money = data.draw(st.floats(0.5, float(cost.sum())))
    terms = Terms(n, cost=cost, money=money)
    trace = maximise(DenseKernel(K), terms)
    assert_is_naive(trace, K, terms)
    value = values_of_all_sets(K, np.zeros(n, np.uint16), np.full(n, UNIT, np.uint16))
    assert value[bits(n) @ cost <= money].max() <= trace.bound
