import itertools

import numpy as np
import pytest

from tamis.errors import DataError, RecipeError
from tamis.selectors.graph_cut import graph_cut
from tamis.selectors.log_det import log_det
from tamis.selectors.reference import FUNCTIONS, submodlib_selection

N, D = 24, 5


def unit(n, seed, positive=False):
    X = np.random.default_rng(seed).normal(size=(n, D))
    X = np.abs(X) if positive else X
    return (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32).astype(np.float64)


X, Q = unit(N, 1), unit(3, 2)
COVER = {
    "set_cover": np.random.default_rng(3).random((N, 40)) < 0.1,
    "probabilistic_set_cover": np.random.default_rng(4).random((N, 7)) * 0.5,
}


def arguments(name, X=X):
    beside = FUNCTIONS[name].takes
    return (COVER.get(name, X)[: len(X)], {beside: Q} if beside else {})


def log_determinant(K):
    return np.linalg.slogdet(K + np.eye(len(K)))[1]


def conditional_log_det(S, with_these):
    """log det of S given other rows, K + I throughout."""
    return log_determinant(np.vstack([S, with_these]) @ np.vstack([S, with_these]).T) - log_determinant(
        with_these @ with_these.T
    )


# The functions as their papers write them (Iyer et al., 2021; Kothawade et al., 2022), with every parameter at its
# default. K: rows with rows, B: rows with query or private rows; clamped for facility location.
def written(name, S):
    K, B = X @ X.T, X @ Q.T
    np.fill_diagonal(K, 1.0)
    plus, plus_b = np.clip(K, 0, 1), np.clip(B, 0, 1)
    pairs = list(itertools.combinations(S, 2))
    cover = COVER.get(name)
    return {
        "facility_location": lambda: plus[:, S].max(axis=1).sum(),
        "graph_cut": lambda: K[:, S].sum() - 0.5 * K[np.ix_(S, S)].sum(),
        "log_det": lambda: log_determinant(X[S] @ X[S].T),
        "disparity_sum": lambda: sum(1 - K[i, j] for i, j in pairs),
        "disparity_min": lambda: min(1 - K[i, j] for i, j in pairs) if pairs else 0.0,
        "set_cover": lambda: cover[S].any(axis=0).sum(),
        "probabilistic_set_cover": lambda: (1 - np.prod(1 - cover[S], axis=0)).sum(),
        "facility_location_mutual_information": lambda: np.minimum(plus[:, S].max(axis=1), plus_b.max(axis=1)).sum(),
        "facility_location_variant_mutual_information": lambda: (
            plus_b[S].max(axis=0).sum() + plus_b[S].max(axis=1).sum()
        ),
        "graph_cut_mutual_information": lambda: 2 * B[S].sum(),
        "log_det_mutual_information": lambda: log_determinant(X[S] @ X[S].T) - conditional_log_det(X[S], Q),
        "facility_location_conditional_gain": lambda: np.maximum(plus[:, S].max(axis=1) - plus_b.max(axis=1), 0).sum(),
        "graph_cut_conditional_gain": lambda: K[:, S].sum() - 0.5 * K[np.ix_(S, S)].sum() - 2 * 0.5 * B[S].sum(),
        "log_det_conditional_gain": lambda: conditional_log_det(X[S], Q),
    }[name]()


# What submodlib multiplies its value by (it drops the constant).
SCALE = {"graph_cut_mutual_information": 0.5}


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_greedy_on_the_function_as_it_is_written(name):
    data, beside = arguments(name)
    selection = submodlib_selection(name, data, budget=6, **beside)
    S = selection.indices.tolist()
    assert len(set(S)) == 6
    assert (selection.weights, selection.certificate) == (None, None)
    scale = SCALE.get(name, 1.0)
    for step in range(6):
        before = scale * written(name, S[:step]) if step else 0.0
        gain = {j: scale * written(name, [*S[:step], j]) - before for j in range(N) if j not in S[:step]}
        assert selection.gains[step] == pytest.approx(gain[S[step]], abs=2e-5)
        assert gain[S[step]] >= max(gain.values()) - 2e-5


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_all_rows(name, rows):
    data, beside = arguments(name, X[:rows])
    selection = submodlib_selection(name, data, budget=1.0, **beside)
    assert sorted(selection.indices.tolist()) == list(range(rows))
    assert np.isfinite(selection.gains).all()
    if rows > 1:
        fewer = submodlib_selection(name, data, budget=rows - 1, **beside)
        np.testing.assert_array_equal(fewer.indices, selection.indices[:-1])
        np.testing.assert_array_equal(fewer.gains, selection.gains[:-1])


def test_the_gain_of_the_last_row_is_what_it_adds():
    for name in ("facility_location", "disparity_sum", "disparity_min", "log_det"):
        selection = submodlib_selection(name, X, budget=N)
        assert selection.gains.sum() == pytest.approx(written(name, list(range(N))), abs=1e-4)


def test_it_is_what_tamis_computes_itself():
    theirs, ours = submodlib_selection("graph_cut", X, budget=8), graph_cut(X, budget=8)
    np.testing.assert_array_equal(theirs.indices, ours.indices)
    np.testing.assert_allclose(theirs.gains, ours.gains, atol=1e-4)
    # All rows tie at first: submodlib takes the last, ours the first.
    theirs = submodlib_selection("log_det", X[::-1], budget=8)
    np.testing.assert_array_equal(N - 1 - theirs.indices, log_det(X, budget=8).indices)


def test_parameters_reach_the_function():
    for name, key, value in (
        ("graph_cut", "trade_off", 0.1),
        ("log_det", "ridge", 0.1),
        ("facility_location_mutual_information", "eta", 0.2),
        ("facility_location_conditional_gain", "hardness", 0.3),
        ("log_det_conditional_gain", "hardness", 0.3),
    ):
        data, beside = arguments(name)
        default = submodlib_selection(name, data, budget=5, **beside)
        other = submodlib_selection(name, data, budget=5, **beside, **{key: value})
        assert not np.allclose(default.gains, other.gains)
    one = submodlib_selection("graph_cut", X, budget=5, trade_off=0.1)
    np.testing.assert_allclose(one.gains, graph_cut(X, budget=5, trade_off=0.1).gains, atol=1e-4)


def test_duplicates_do_not_stop_it():
    copies = np.repeat(X[:6], 5, axis=0)
    for name, recipe in FUNCTIONS.items():
        if recipe.embeddings:
            beside = {recipe.takes: Q} if recipe.takes else {}
            assert len(set(submodlib_selection(name, copies, budget=20, **beside).indices.tolist())) == 20


def test_it_is_quiet(capfd):
    for name in FUNCTIONS:
        data, beside = arguments(name)
        submodlib_selection(name, data, budget=3, **beside)
    assert capfd.readouterr() == ("", "")


def test_strided_input_is_not_misread():
    wide = np.zeros((N, 2 * D), np.float32)
    wide[:, ::2] = X
    for strided in (wide[:, ::2], np.asfortranarray(X)):
        np.testing.assert_array_equal(
            submodlib_selection("facility_location", strided, budget=6).indices,
            submodlib_selection("facility_location", X, budget=6).indices,
        )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: submodlib_selection("facility", X, budget=1), RecipeError, "'facility' is none of facility_location,"),
        (lambda: submodlib_selection("graph_cut", X, budget=0), RecipeError, "budget"),
        (lambda: submodlib_selection("graph_cut", X, budget=1, ridge=1.0), RecipeError, "takes only trade_off"),
        (lambda: submodlib_selection("disparity_sum", X, budget=1, eta=1.0), RecipeError, "takes no parameter"),
        (lambda: submodlib_selection("graph_cut", X, budget=1, trade_off=-1), RecipeError, "trade_off -1"),
        (lambda: submodlib_selection("graph_cut", X, budget=1, trade_off=True), RecipeError, "trade_off"),
        (lambda: submodlib_selection("log_det", X, budget=1, ridge=1e-4), RecipeError, "ridge"),
        (lambda: submodlib_selection("graph_cut", X, budget=1, query=Q), RecipeError, "query: graph_cut takes none"),
        (
            lambda: submodlib_selection("graph_cut_mutual_information", X, budget=1),
            RecipeError,
            "needs query",
        ),
        (
            lambda: submodlib_selection("graph_cut_mutual_information", X, budget=1, query=Q[:, :4]),
            DataError,
            "4 dimensions and the embeddings 5",
        ),
        (
            lambda: submodlib_selection("log_det_conditional_gain", X, budget=1, private=Q, hardness=1.5),
            RecipeError,
            "hardness",
        ),
        (
            lambda: submodlib_selection("graph_cut", X, budget=1, memory_bytes=64 * N * N - 1),
            RecipeError,
            r"64 x 24 x 24 = 36864 bytes.*36863.*memory_bytes",
        ),
        (lambda: submodlib_selection("graph_cut", X, budget=1, memory_bytes=True), RecipeError, "memory_bytes"),
        (lambda: submodlib_selection("graph_cut", np.zeros((3, 2)), budget=1), DataError, "only zeros"),
        (lambda: submodlib_selection("set_cover", X, budget=1), DataError, "row 0 .*give 0 or 1"),
        (lambda: submodlib_selection("set_cover", np.ones(3), budget=1), DataError, "shape"),
        (
            lambda: submodlib_selection("probabilistic_set_cover", np.full((3, 2), 1.5), budget=1),
            DataError,
            "probability",
        ),
        (
            lambda: submodlib_selection("probabilistic_set_cover", np.full((3, 2), np.nan), budget=1),
            DataError,
            "probability",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
