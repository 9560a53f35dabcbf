import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from tamis.errors import DataError, RecipeError
from tamis.selectors import _greedy
from tamis.selectors._blas import one_blas_thread
from tamis.selectors.facility_location import (
    _kernel,
    facility_location,
    merge_rankings,
    rank_partition,
    split_into_cells,
)
from tamis.selectors.selection import as_unit_rows


def clustered(n, d=8, centres=6, spread=0.35, seed=0):
    rng = np.random.default_rng(seed)
    middle = rng.normal(size=(centres, d))
    X = middle[rng.integers(centres, size=n)] + spread * rng.normal(size=(n, d))
    return as_unit_rows(X)


def f(X, S):
    """The objective in float64, as it is written."""
    X = np.asarray(X, np.float64)
    X = X / np.linalg.norm(X, axis=1, keepdims=True)
    return np.maximum(0.0, (X @ X[S].T).max(axis=1)).sum()


def naive_greedy(kernel, budget):
    """Greedy by its definition: every gain afresh at every step, in float64 (exact on whole numbers)."""
    K = kernel.astype(np.float64)
    best = np.zeros(len(K))
    chosen, gains = [], []
    for _ in range(budget):
        gain = np.maximum(K - best, 0.0).sum(axis=1)
        gain[chosen] = -1.0
        s = int(np.argmax(gain))  # the first of several
        chosen.append(s)
        gains.append(gain[s])
        best = np.maximum(best, K[s])
    return np.array(chosen), np.array(gains)


def random_kernel(n, levels, seed):
    values = np.random.default_rng(seed).integers(0, levels, size=(n, n))
    kernel = (np.maximum(values, values.T) * (_greedy.UNIT // levels)).astype(np.int32)
    np.fill_diagonal(kernel, _greedy.UNIT)
    return kernel


@pytest.mark.parametrize("levels", [2, 3, 1000])
@pytest.mark.parametrize("n", [1, 2, 3, 9, 60])
def test_greedy_is_the_naive_one_with_all_its_ties(n, levels):
    for seed in range(5):
        kernel = random_kernel(n, levels, seed)
        before = kernel.copy()
        chosen, gains = _greedy.greedy(kernel, n)
        expected, expected_gains = naive_greedy(kernel, n)
        np.testing.assert_array_equal(chosen, expected)
        np.testing.assert_array_equal(gains, expected_gains)
        np.testing.assert_array_equal(kernel, before)


def test_greedy_through_both_phases():
    kernel = _kernel(clustered(600, centres=40, spread=0.1))
    chosen, gains = _greedy.greedy(kernel, 600)
    expected, expected_gains = naive_greedy(kernel, 600)
    np.testing.assert_array_equal(chosen, expected)
    np.testing.assert_array_equal(gains, expected_gains)


def test_greedy_stays_dense_while_the_pairs_would_not_fit():
    # Rows close to one another: few rise a step, yet many pairs stay above the best.
    kernel = _kernel(clustered(300, d=3, centres=1, spread=0.2))
    expected, expected_gains = naive_greedy(kernel, 300)
    chosen, gains = _greedy.greedy(kernel, 300)
    np.testing.assert_array_equal(chosen, expected)
    np.testing.assert_array_equal(gains, expected_gains)


def test_greedy_accumulators_do_not_overflow():
    # 1,000 identical rows: the first choice takes 2^23 from each gain 1,000 times.
    kernel = np.full((1000, 1000), _greedy.UNIT, np.int32)
    chosen, gains = _greedy.greedy(kernel, 3)
    assert chosen.tolist() == [0, 1, 2]
    assert gains.tolist() == [1000 * _greedy.UNIT, 0, 0]


# submodlib reads scipy.sparse.csr, which SciPy has deprecated.
@pytest.mark.filterwarnings("ignore:Please import `csr_matrix`:DeprecationWarning")
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("optimizer", ["LazyGreedy", "NaiveGreedy"])
def test_agrees_with_submodlib(seed, optimizer):
    from submodlib import FacilityLocationFunction

    n, budget = 160, 15
    X = clustered(n, d=3, seed=seed)
    kernel = _kernel(X)
    ours, gains = rank_partition(X, budget)
    # Two rows that cover only each other tie, and submodlib takes the later: ask where there is no tie.
    for step in range(budget):
        best = kernel[ours[:step]].max(axis=0, initial=0)
        first, second = np.sort(np.maximum(kernel.astype(np.int64) - best, 0).sum(axis=1))[:-3:-1]
        assert first > second
    reference = FacilityLocationFunction(
        n=n, mode="dense", sijs=np.ascontiguousarray(kernel / _greedy.UNIT, np.float32), separate_rep=False
    )
    theirs = reference.maximize(
        budget=budget,
        optimizer=optimizer,
        stopIfZeroGain=False,
        stopIfNegativeGain=False,
        show_progress=False,
    )
    assert ours.tolist() == [item for item, _ in theirs]
    np.testing.assert_allclose(gains, [gain for _, gain in theirs], rtol=1e-5)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (6, 2), (9, 3), (12, 4), (12, 12)])
def test_greedy_guarantee_and_certificate_against_brute_force(n, k):
    for seed in range(4):
        X = np.random.default_rng(seed).normal(size=(n, 3))
        optimum = max(f(X, list(S)) for S in itertools.combinations(range(n), k))
        selection = facility_location(X, budget=k)
        certificate = selection.certificate
        assert certificate["objective"] == pytest.approx(f(X, selection.indices), abs=n * 1e-6)
        assert certificate["objective"] >= (1 - 1 / np.e) * optimum - n * 1e-6
        assert certificate["upper_bound"] >= optimum - n * 1e-6
        assert certificate["ratio"] == certificate["objective"] / certificate["upper_bound"]
        assert certificate["objective"] == pytest.approx(selection.gains.sum(), rel=1e-12)


def test_upper_bound_is_the_formula():
    X = clustered(80, seed=3)
    selection = facility_location(X, budget=10)
    value = f(X, selection.indices)
    more = sorted(f(X, [*selection.indices, j]) - value for j in range(80))[-10:]
    assert selection.certificate["upper_bound"] == pytest.approx(min(80, value + sum(more)), abs=1e-4)
    full = facility_location(X, budget=80).certificate
    assert (full["objective"], full["upper_bound"], full["ratio"]) == (80.0, 80.0, 1.0)
    assert full["coverage_mean"] == full["coverage_p95"] == 0.0


@pytest.mark.parametrize("engine", ["exact", "partitioned"])
def test_weights_and_coverage_are_those_of_the_nearest_chosen(engine):
    X = clustered(120, seed=4)
    selection = facility_location(X, budget=9, engine=engine)
    cosines = np.clip(X.astype(np.float64) @ X[selection.indices].T.astype(np.float64), 0, 1)
    nearest = np.argmax(cosines, axis=1)
    np.testing.assert_array_equal(selection.weights, np.bincount(nearest, minlength=9))
    assert selection.certificate["coverage_mean"] == pytest.approx((1 - cosines.max(axis=1)).mean(), abs=1e-6)
    assert selection.certificate["coverage_p95"] == pytest.approx(np.percentile(1 - cosines.max(axis=1), 95), abs=1e-6)


def test_identical_rows():
    X = np.tile(np.array([[1.0, 0.0, 0.0]], np.float32), (20, 1))
    selection = facility_location(X, budget=5)
    assert selection.indices.tolist() == [0, 1, 2, 3, 4]
    assert selection.gains.tolist() == [20, 0, 0, 0, 0]
    assert selection.weights.tolist() == [16, 1, 1, 1, 1]  # the first has all ties, but each has itself


def test_orthogonal_rows():
    selection = facility_location(np.eye(12), budget=12)
    assert selection.indices.tolist() == list(range(12))
    assert selection.gains.tolist() == [1.0] * 12
    assert selection.weights.tolist() == [1.0] * 12


def test_opposite_rows_count_as_zero_not_negative():
    X = np.array([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    selection = facility_location(X, budget=1)
    assert selection.indices.tolist() == [0]
    assert selection.gains.tolist() == [2.0]
    assert selection.weights.tolist() == [3.0]
    assert selection.certificate["coverage_p95"] <= 1.0


@pytest.mark.parametrize("engine", ["auto", "exact", "partitioned"])
def test_one_row(engine):
    selection = facility_location([[2.0, 1.0]], budget=1, engine=engine)
    assert selection.indices.tolist() == [0]
    assert selection.gains.tolist() == [1.0]
    assert selection.weights.tolist() == [1.0]


def test_memory_limit_names_its_knobs_and_auto_falls_back():
    X = clustered(100)
    with pytest.raises(RecipeError, match=r"40000 bytes.*39999.*engine='partitioned'.*memory_bytes"):
        facility_location(X, budget=5, engine="exact", memory_bytes=39_999)
    exact = facility_location(X, budget=5, engine="exact", memory_bytes=40_000)
    assert "block_objective" not in exact.certificate
    small = facility_location(X, budget=5, memory_bytes=4 * 30 * 30)
    assert "block_objective" in small.certificate


@pytest.mark.parametrize("memory_bytes", [0, -1, True, 1e9, "1"])
def test_memory_limit_is_checked(memory_bytes):
    with pytest.raises(RecipeError, match="memory_bytes"):
        facility_location(np.eye(3), budget=1, memory_bytes=memory_bytes)


def test_refusals():
    with pytest.raises(RecipeError, match="engine"):
        facility_location(np.eye(3), budget=1, engine="sparse")
    with pytest.raises(RecipeError):
        facility_location(np.eye(3), budget=4)
    with pytest.raises(DataError):
        facility_location(np.zeros((3, 3)), budget=1)
    with pytest.raises(RecipeError):
        rank_partition(np.eye(3, dtype=np.float32), 4)
    with pytest.raises(RecipeError):
        rank_partition(np.eye(3, dtype=np.float32), 0)


def test_one_cell_is_exact():
    X = clustered(200)
    exact = facility_location(X, budget=20, engine="exact")
    cells = facility_location(X, budget=20, engine="partitioned")
    np.testing.assert_array_equal(cells.indices, exact.indices)
    np.testing.assert_array_equal(cells.gains, exact.gains)
    np.testing.assert_array_equal(cells.weights, exact.weights)
    assert cells.certificate["block_objective"] == exact.certificate["objective"]


def test_partitioned_is_greedy_on_the_block_diagonal_kernel():
    X = clustered(90, seed=5)
    memory = 4 * 40 * 40
    cells = split_into_cells(X, max_cell_rows=40)
    assert len(cells) >= 3
    assert max(len(cell) for cell in cells) <= 40
    block = np.zeros((90, 90), np.int32)
    kernel = _kernel(X)
    for rows in cells:
        block[np.ix_(rows, rows)] = kernel[np.ix_(rows, rows)]
    expected, gains = naive_greedy(block, 25)
    selection = facility_location(X, budget=25, engine="partitioned", memory_bytes=memory)
    np.testing.assert_array_equal(selection.indices, expected)
    np.testing.assert_allclose(selection.gains, gains / _greedy.UNIT, rtol=0, atol=1e-5)
    certificate = selection.certificate
    assert certificate["block_objective"] == pytest.approx(gains.sum() / _greedy.UNIT, abs=1e-4)
    best = block[expected].max(axis=0)
    more = np.sort(np.maximum(block - best, 0).sum(axis=1))[-25:].sum()
    assert certificate["block_upper_bound"] == pytest.approx((gains.sum() + more) / _greedy.UNIT, abs=1e-4)
    assert certificate["objective"] <= f(X, selection.indices) + 1e-4
    assert certificate["upper_bound"] == 90.0


def test_cells_without_a_chosen_row_are_represented_from_elsewhere():
    X = clustered(60, seed=6)
    selection = facility_location(X, budget=1, engine="partitioned", memory_bytes=4 * 20 * 20)
    assert selection.weights.tolist() == [60.0]
    assert selection.certificate["objective"] == pytest.approx(f(X, selection.indices), abs=1e-3)


def test_cells_partition_the_rows_and_keep_neighbours_together():
    X = clustered(4000, d=16, centres=4, spread=0.05, seed=7)
    cells = split_into_cells(X)
    assert len(cells) > 1
    np.testing.assert_array_equal(np.sort(np.concatenate(cells)), np.arange(4000))
    assert all(len(rows) and (np.diff(rows) > 0).all() for rows in cells)
    within = np.mean([(X[rows] @ X[rows].T).mean() for rows in cells])
    assert within > (X @ X.T).mean() + 0.2


def test_identical_rows_still_make_bounded_cells():
    X = np.tile(np.array([[0.6, 0.8]], np.float32), (5000, 1))
    cells = split_into_cells(X, max_cell_rows=700)
    np.testing.assert_array_equal(np.sort(np.concatenate(cells)), np.arange(5000))
    assert max(map(len, cells)) <= 700


def test_kernel_is_symmetric_clamped_and_close_to_the_cosine():
    X = clustered(1500, d=33)
    kernel = _kernel(X)
    np.testing.assert_array_equal(kernel, kernel.T)
    assert (np.diag(kernel) == _greedy.UNIT).all()
    assert kernel.min() >= 0
    assert kernel.max() <= _greedy.UNIT
    exact = np.clip(X.astype(np.float64) @ X.T.astype(np.float64), 0, 1)
    np.testing.assert_allclose(kernel / _greedy.UNIT, exact, atol=1e-6)


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


@pytest.mark.parametrize("engine", ["exact", "partitioned"])
def test_the_same_for_any_thread_count(engine):
    import faiss

    X = np.random.default_rng(8).normal(size=(2500, 37)).astype(np.float32)
    before = faiss.omp_get_max_threads()
    results = []
    for threads in (1, 2):
        faiss.omp_set_num_threads(threads)
        try:
            with threadpool_limits(limits=threads, user_api="blas"):
                results.append(facility_location(X, budget=300, engine=engine))
                assert faiss.omp_get_max_threads() == threads
        finally:
            faiss.omp_set_num_threads(before)
    one, two = results
    np.testing.assert_array_equal(one.indices, two.indices)
    np.testing.assert_array_equal(one.gains, two.gains)
    np.testing.assert_array_equal(one.weights, two.weights)
    assert one.certificate == two.certificate


def test_partitions_in_parallel_threads_equal_one_by_one():
    parts = [clustered(300, seed=seed) for seed in range(6)]
    alone = [rank_partition(X, 300) for X in parts]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda X: rank_partition(X, 300), parts))
    for (i, g), (j, h) in zip(alone, together, strict=True):
        np.testing.assert_array_equal(i, j)
        np.testing.assert_array_equal(g, h)


def test_the_blas_limit_lasts_until_the_last_user_leaves():
    def threads():
        return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

    before = threads()
    with one_blas_thread():
        with one_blas_thread():
            assert set(threads()) == {1}
        assert set(threads()) == {1}
    assert threads() == before
