"""Facility location for a target set, and away from a given one."""

import itertools

import numpy as np
import pytest

from tamis.embeddings.grid import UNIT
from tamis.errors import DataError, RecipeError
from tamis.selectors import conditional, facility_location, submodlib_selection, targeted
from tamis.selectors.kernels import DenseKernel
from tamis.selectors.selection import as_unit_rows

N, D = 140, 5


def clustered(n, seed, d=D):
    rng = np.random.default_rng(seed)
    return as_unit_rows(rng.normal(size=(8, d))[rng.integers(8, size=n)] + 0.5 * rng.normal(size=(n, d)))


def cosines(X, others):
    """In float64, clamped."""
    return np.clip(as_unit_rows(X).astype(np.float64) @ as_unit_rows(others).T.astype(np.float64), 0, 1)


def quantised(X, others):
    """The kernel of X, and its rows' similarity to the nearest of others, both as int64 in units of 2^-15."""
    K = DenseKernel.of(np.vstack([as_unit_rows(X), as_unit_rows(others)])).matrix.astype(np.int64)
    return K[: len(X), : len(X)], K[: len(X), len(X) :].max(axis=1)


def rounded(values):
    return np.minimum(np.floor(values + 0.5), UNIT).astype(np.int64)


# f of a set, from the best similarity that it gives each row and the row's to the nearest of the others.


def information(best, near, eta):
    return np.minimum(best, eta * near).sum(axis=-1)


def conditional_gain(best, near, nu):
    return np.maximum(best - nu * near, 0).sum(axis=-1)


CASES = {
    "targeted": (
        lambda X, others, budget, weight: targeted(X, queries=others, budget=budget, eta=weight),
        information,
        "facility_location_mutual_information",
    ),
    "conditional": (
        lambda X, others, budget, weight: conditional(X, avoid=others, budget=budget, nu=weight),
        conditional_gain,
        "facility_location_conditional_gain",
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.mark.parametrize("weight", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_naive_greedy_on_the_formula_in_whole_numbers(case, weight, seed):
    select, f, _ = case
    X, others = clustered(N, seed), clustered(4, 100 + seed)
    K, near = quantised(X, others)
    selection = select(X, others, N, weight)
    limit = rounded(near * weight)
    best, left = np.zeros(N, np.int64), list(range(N))
    for step in range(N):
        before = f(best, limit, 1)
        gain = f(np.maximum(best, K), limit, 1) - before
        s = max(left, key=lambda j: (gain[j], -j))
        assert selection.indices[step] == s
        assert selection.gains[step] == gain[s] / UNIT
        best = np.maximum(best, K[s])
        left.remove(s)
    assert selection.engine == "exact"


@pytest.mark.parametrize("weight", [0.3, 1.0, 1.7])
def test_it_is_greedy_on_the_formula_in_float64(case, weight):
    select, f, _ = case
    X, others = clustered(N, 5), clustered(6, 105)
    K, near = cosines(X, X), cosines(X, others).max(axis=1)
    selection = select(X, others, 30, weight)
    tolerance = N * 3e-4  # of the sum of all rows' roundings to the grid
    best = np.zeros(N)
    for step, s in enumerate(selection.indices):
        gain = f(np.maximum(best, K), near, weight) - f(best, near, weight)
        assert selection.gains[step] == pytest.approx(gain[s], abs=tolerance)
        assert gain[s] >= gain.max() - tolerance
        best = np.maximum(best, K[s])
    assert selection.certificate["objective"] == pytest.approx(f(best, near, weight), abs=tolerance)
    assert selection.certificate["objective"] == selection.gains.sum()
    assert selection.certificate["ratio"] == selection.gains.sum() / selection.certificate["upper_bound"]


@pytest.mark.filterwarnings("ignore:Please import `csr_matrix`:DeprecationWarning")
@pytest.mark.parametrize("weight", [0.5, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_list_is_submodlibs_where_gains_are_distinct(case, weight, seed):
    select, f, function = case
    X, others = clustered(N, seed), clustered(5, 50 + seed)
    K, near = quantised(X, others)
    selection = select(X, others, 12, weight)
    limit, best, distinct = rounded(near * weight), np.zeros(N, np.int64), 0
    for s in selection.indices:
        gain = np.sort(f(np.maximum(best, K), limit, 1))
        if gain[-1] - gain[-2] < 2e-3 * UNIT:  # nearer than float32 kernels and rounding to the grid tell apart
            break
        best = np.maximum(best, K[s])
        distinct += 1
    key, beside = (("eta", "query"), ("hardness", "private"))["conditional" in function]
    theirs = submodlib_selection(function, X, budget=12, **{beside: others, key: weight})
    assert distinct >= 3
    assert theirs.indices[:distinct].tolist() == selection.indices[:distinct].tolist()
    np.testing.assert_allclose(theirs.gains[:distinct], selection.gains[:distinct], atol=N * 3e-4)


def test_certificates_hold_for_the_best_set(case):
    select, f, _ = case
    for seed, budget in itertools.product(range(4), (1, 2, 5, 9)):
        X, others = clustered(9, seed), clustered(2, 70 + seed)
        K, near = quantised(X, others)
        optimum = max(
            f(K[list(S)].max(axis=0), rounded(near * 0.8), 1) for S in itertools.combinations(range(9), budget)
        )
        certificate = select(X, others, budget, 0.8).certificate
        objective = certificate["objective"] * UNIT
        assert (1 - 1 / np.e) * optimum <= objective <= optimum <= certificate["upper_bound"] * UNIT
        assert set(certificate) == {"objective", "upper_bound", "ratio"}


def test_a_target_draws_the_choice_to_it_and_a_given_set_pushes_it_away():
    X = clustered(600, 11, d=16)
    others = X[:3] + np.float32(0.01)
    near = cosines(X, others).max(axis=1)
    plain = near[facility_location(X, budget=10).indices].mean()
    assert near[targeted(X, queries=others, budget=10).indices].mean() > plain + 0.1
    assert near[conditional(X, avoid=others, budget=10).indices].mean() < plain - 0.05


def test_no_weight_and_all_weight():
    X, others = np.abs(clustered(90, 1)), np.abs(clustered(3, 2))  # every row is near some query, a little
    plain = facility_location(X, budget=20)
    for same in (conditional(X, avoid=others, budget=20, nu=0), targeted(X, queries=others, budget=20, eta=1e9)):
        np.testing.assert_array_equal(same.indices, plain.indices)
        np.testing.assert_array_equal(same.gains, plain.gains)
        assert same.certificate["objective"] == plain.certificate["objective"]
    for nothing in (
        conditional(X, avoid=others, budget=20, nu=1e9),
        conditional(X, avoid=X, budget=20),
        targeted(X, queries=others, budget=20, eta=1e-9),
        targeted(X, queries=-others, budget=20),
    ):
        assert nothing.indices.tolist() == list(range(20))
        assert nothing.gains.tolist() == [0.0] * 20
        assert nothing.certificate == {"objective": 0.0, "upper_bound": 0.0, "ratio": 1.0}
    # A set that is like no row is no hindrance.
    free = conditional(X, avoid=-others, budget=20)
    np.testing.assert_array_equal(free.indices, plain.indices)
    np.testing.assert_array_equal(free.gains, plain.gains)
    # The rows themselves as the target are no limit.
    np.testing.assert_array_equal(targeted(X, queries=X, budget=20).gains, plain.gains)


def test_nothing_depends_on_memory_or_threads(case):
    X, others = clustered(500, 3), clustered(5, 4)
    name, how = ("queries", targeted) if case is CASES["targeted"] else ("avoid", conditional)
    one = how(X, **{name: others}, budget=100)
    for memory_bytes, threads in ((1, 1), (1, 2), (1 << 30, 3), (60_000, 1)):
        other = how(X, **{name: others}, budget=100, memory_bytes=memory_bytes, threads=threads, engine="exact")
        np.testing.assert_array_equal(one.indices, other.indices)
        np.testing.assert_array_equal(one.gains, other.gains)
        np.testing.assert_array_equal(one.weights, other.weights)
        assert one.certificate == other.certificate


def test_the_inputs_are_only_read(case):
    X, others = clustered(50, 3).astype(np.float64) * 3, clustered(5, 4).astype(np.float16)
    before = X.copy(), others.copy()
    for array in (X, others):
        array.setflags(write=False)
    selection = case[0](X, others, 9, 1.0)
    same = case[0](np.asfortranarray(X), others[::-1], 9, 1.0)
    np.testing.assert_array_equal(selection.indices, same.indices)
    np.testing.assert_array_equal(X, before[0])
    np.testing.assert_array_equal(others, before[1])


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1.0])
def test_weights_are_checked(case, weight):
    with pytest.raises(RecipeError, match=r"(eta|nu) .*finite"):
        case[0](np.eye(3), np.eye(3), 1, weight)


def test_no_eta_of_zero():
    with pytest.raises(RecipeError, match=r"eta 0.*above 0"):
        targeted(np.eye(3), queries=np.eye(3), budget=1, eta=0)


def test_refusals(case):
    with pytest.raises(DataError, match="2 dimensions, the embeddings 3"):
        case[0](np.eye(3), np.eye(2), 1, 1.0)
    with pytest.raises(DataError, match="only zeros"):
        case[0](np.eye(3), np.zeros((1, 3)), 1, 1.0)
    with pytest.raises(DataError, match="shape"):
        case[0](np.eye(3), np.zeros((0, 3)), 1, 1.0)
    with pytest.raises(RecipeError, match="budget"):
        case[0](np.eye(3), np.eye(3), 4, 1.0)


@pytest.mark.parametrize("engine", ["sparse", "partitioned", "dense"])
def test_only_the_exact_engine(engine):
    with pytest.raises(RecipeError, match=f"engine '{engine}'.*exact"):
        targeted(np.eye(3), queries=np.eye(3), budget=1, engine=engine)
    with pytest.raises(RecipeError, match=f"engine '{engine}'.*exact"):
        conditional(np.eye(3), avoid=np.eye(3), budget=1, engine=engine)
