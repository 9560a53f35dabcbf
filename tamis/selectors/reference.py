"""Submodular functions that Tamis does not compute itself, through submodlib.

submodlib keeps the n x n kernel in memory, mostly as Python lists, so this is for thousands of rows, not for
millions. Where a function here is also a selector of Tamis, the selector does the same in a fraction of time
and memory.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.errors import DataError, RecipeError
from tamis.selectors.selection import Selection, as_unit_rows, resolve_budget
from tamis.threads import one_blas_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Float32 = npt.NDArray[np.float32]

DEFAULT_MEMORY_BYTES = 2 << 30
# Measured: our float32 kernel and submodlib's copies of it, which most functions make by way of Python lists.
_BYTES_OF_ARRAYS = 12
_BYTES_OF_LISTS = 64


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What a function is built from: unit rows (or a cover matrix), and its parameters."""

    X: Float32
    query: Float32 | None
    private: Float32 | None
    parameters: dict[str, float]


@dataclass(frozen=True, slots=True)
class _Function:
    """How submodlib computes a function.

    Attributes:
        build: Makes submodlib's object of the module and the inputs.
        lazy: Whether lazy greedy is exact: gains never rise. Elsewhere every gain is computed at every step.
        pair_bytes: Memory for each pair of rows; 0 where no n x n kernel is made.
        takes: The arguments it needs beside X.
        defaults: The parameters it takes.
        embeddings: Whether X holds embeddings; a cover matrix otherwise.
        scale: What its gains are multiplied by.
    """

    build: Callable[[Any, _Inputs], Any]
    lazy: bool
    pair_bytes: int
    takes: str | None = None
    defaults: tuple[tuple[str, float], ...] = ()
    embeddings: bool = True
    scale: float = 1.0


def _kernel(rows: Float32, columns: Float32) -> Float32:
    """Cosines, C-contiguous (submodlib misreads other strides)."""
    return np.ascontiguousarray(rows @ columns.T)


def _square(rows: Float32) -> Float32:
    """Cosines of the rows with themselves; the diagonal exactly 1."""
    kernel = _kernel(rows, rows)
    np.fill_diagonal(kernel, 1.0)
    return kernel


def _clamped(kernel: Float32) -> Float32:
    """Cosines below 0 count as 0 where a function is a maximum of similarities."""
    return np.clip(kernel, 0.0, 1.0, out=kernel)


def _facility_location(lib: Any, given: _Inputs) -> Any:
    kernel = _clamped(_square(given.X))
    return lib.FacilityLocationFunction(n=len(given.X), mode="dense", sijs=kernel, separate_rep=False)


def _graph_cut(lib: Any, given: _Inputs) -> Any:
    return lib.GraphCutFunction(
        n=len(given.X),
        mode="dense",
        lambdaVal=given.parameters["trade_off"],
        separate_rep=False,
        ggsijs=_square(given.X),
    )


def _log_det(lib: Any, given: _Inputs) -> Any:
    return lib.LogDeterminantFunction(
        n=len(given.X), mode="dense", lambdaVal=given.parameters["ridge"], sijs=_square(given.X)
    )


def _disparity_sum(lib: Any, given: _Inputs) -> Any:
    return lib.DisparitySumFunction(n=len(given.X), mode="dense", sijs=_square(given.X))


def _disparity_min(lib: Any, given: _Inputs) -> Any:
    # It takes no distance to be above 1: given half of each, gains are doubled again.
    kernel = _square(given.X)
    kernel += 1
    kernel /= 2
    return lib.DisparityMinFunction(n=len(given.X), mode="dense", sijs=_clamped(kernel))


def _set_cover(lib: Any, given: _Inputs) -> Any:
    cover = [set(np.flatnonzero(row).tolist()) for row in given.X]
    return lib.SetCoverFunction(n=len(cover), cover_set=cover, num_concepts=given.X.shape[1])


def _probabilistic_set_cover(lib: Any, given: _Inputs) -> Any:
    return lib.ProbabilisticSetCoverFunction(n=len(given.X), probs=given.X.tolist(), num_concepts=given.X.shape[1])


def _facility_location_mutual_information(lib: Any, given: _Inputs) -> Any:
    assert given.query is not None
    return lib.FacilityLocationMutualInformationFunction(
        n=len(given.X),
        num_queries=len(given.query),
        data_sijs=_clamped(_square(given.X)),
        query_sijs=_clamped(_kernel(given.X, given.query)),
        magnificationEta=given.parameters["eta"],
    )


def _facility_location_variant_mutual_information(lib: Any, given: _Inputs) -> Any:
    assert given.query is not None
    return lib.FacilityLocationVariantMutualInformationFunction(
        n=len(given.X),
        num_queries=len(given.query),
        query_sijs=_clamped(_kernel(given.X, given.query)),
        queryDiversityEta=given.parameters["eta"],
    )


def _graph_cut_mutual_information(lib: Any, given: _Inputs) -> Any:
    assert given.query is not None
    return lib.GraphCutMutualInformationFunction(
        n=len(given.X), num_queries=len(given.query), query_sijs=_kernel(given.X, given.query)
    )


def _log_det_mutual_information(lib: Any, given: _Inputs) -> Any:
    assert given.query is not None
    return lib.LogDeterminantMutualInformationFunction(
        n=len(given.X),
        num_queries=len(given.query),
        lambdaVal=given.parameters["ridge"],
        data_sijs=_square(given.X),
        query_sijs=_kernel(given.X, given.query),
        query_query_sijs=_square(given.query),
        magnificationEta=given.parameters["eta"],
    )


def _facility_location_conditional_gain(lib: Any, given: _Inputs) -> Any:
    assert given.private is not None
    return lib.FacilityLocationConditionalGainFunction(
        n=len(given.X),
        num_privates=len(given.private),
        data_sijs=_clamped(_square(given.X)),
        private_sijs=_clamped(_kernel(given.X, given.private)),
        privacyHardness=given.parameters["hardness"],
    )


def _graph_cut_conditional_gain(lib: Any, given: _Inputs) -> Any:
    assert given.private is not None
    return lib.GraphCutConditionalGainFunction(
        n=len(given.X),
        num_privates=len(given.private),
        lambdaVal=given.parameters["trade_off"],
        data_sijs=_square(given.X),
        private_sijs=_kernel(given.X, given.private),
        privacyHardness=given.parameters["hardness"],
    )


def _log_det_conditional_gain(lib: Any, given: _Inputs) -> Any:
    assert given.private is not None
    return lib.LogDeterminantConditionalGainFunction(
        n=len(given.X),
        num_privates=len(given.private),
        lambdaVal=given.parameters["ridge"],
        data_sijs=_square(given.X),
        private_sijs=_kernel(given.X, given.private),
        private_private_sijs=_square(given.private),
        privacyHardness=given.parameters["hardness"],
    )


_TRADE_OFF, _RIDGE, _ETA, _HARDNESS = ("trade_off", 0.5), ("ridge", 1.0), ("eta", 1.0), ("hardness", 1.0)
# Graph cut and the disparities have gains that rise (the first where cosines are negative). The gains of log-det
# are computed at every step because its lazy greedy does not end when rounding makes one rise.
FUNCTIONS: dict[str, _Function] = {
    "facility_location": _Function(_facility_location, True, _BYTES_OF_ARRAYS),
    "graph_cut": _Function(_graph_cut, False, _BYTES_OF_LISTS, None, (_TRADE_OFF,)),
    "log_det": _Function(_log_det, False, _BYTES_OF_LISTS, None, (_RIDGE,)),
    "disparity_sum": _Function(_disparity_sum, False, _BYTES_OF_LISTS),
    "disparity_min": _Function(_disparity_min, False, _BYTES_OF_LISTS, scale=2.0),
    "set_cover": _Function(_set_cover, True, 0, embeddings=False),
    "probabilistic_set_cover": _Function(_probabilistic_set_cover, True, 0, embeddings=False),
    "facility_location_mutual_information": _Function(
        _facility_location_mutual_information, True, _BYTES_OF_LISTS, "query", (_ETA,)
    ),
    "facility_location_variant_mutual_information": _Function(
        _facility_location_variant_mutual_information, True, 0, "query", (_ETA,)
    ),
    "graph_cut_mutual_information": _Function(_graph_cut_mutual_information, True, 0, "query"),
    "log_det_mutual_information": _Function(
        _log_det_mutual_information, False, _BYTES_OF_LISTS, "query", (_RIDGE, _ETA)
    ),
    "facility_location_conditional_gain": _Function(
        _facility_location_conditional_gain, True, _BYTES_OF_LISTS, "private", (_HARDNESS,)
    ),
    "graph_cut_conditional_gain": _Function(
        _graph_cut_conditional_gain, False, _BYTES_OF_LISTS, "private", (_TRADE_OFF, _HARDNESS)
    ),
    "log_det_conditional_gain": _Function(
        _log_det_conditional_gain, False, _BYTES_OF_LISTS, "private", (_RIDGE, _HARDNESS)
    ),
}


def submodlib_selection(
    function: str,
    X: npt.ArrayLike,
    *,
    budget: int | float,
    query: npt.ArrayLike | None = None,
    private: npt.ArrayLike | None = None,
    trade_off: float | None = None,
    ridge: float | None = None,
    eta: float | None = None,
    hardness: float | None = None,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
) -> Selection:
    """Choose rows by greedy maximisation of one of submodlib's functions over cosine similarities.

    Mutual information (names that end so) prefers rows like the query rows; conditional gain prefers rows
    unlike the private ones. Functions of the facility-location family count cosines below 0 as 0, the others
    take them as they are.

    Args:
        function: A key of `FUNCTIONS`.
        X: Embeddings, float16, float32 or float64 [n, d]; need not be normalised. For `set_cover` and
            `probabilistic_set_cover` not embeddings but which concepts each row covers: [n, concepts] in
            {0, 1}, or probabilities in [0, 1].
        budget: A fraction of n as a float in (0, 1], or a count as an integer in [1, n].
        query: Embeddings [q, d] of the rows wanted, for mutual information.
        private: Embeddings [p, d] of the rows to keep away from, for conditional gain.
        trade_off: What similarity among the chosen rows costs in graph cut, at least 0; 0.5 by default.
        ridge: What log-det adds to the diagonal, at least 1e-3; 1 by default.
        eta: How much likeness to the query counts against the rest, at least 0; 1 by default.
        hardness: How much likeness to the private rows counts, at least 0; 1 by default. It and eta are at
            most 1 with log-det, where the kernel would not be positive above.
        memory_bytes: What the kernel and submodlib's copies of it may take: 12 bytes a pair of rows for
            `facility_location`, 64 for the others that have a kernel.

    Returns:
        A Selection in the order of choice with submodlib's gains, without weights or certificate. Ties are
        submodlib's, and so is the scale: graph cut's mutual information is the plain sum of the cosines.
        With the budget n, the row that it leaves (it refuses such budgets) comes last.

    Raises:
        RecipeError: An unknown function, an argument that the function needs and lacks, or does not take, an
            unusable budget or parameter, or more rows than fit `memory_bytes`.
        DataError: Unusable embeddings (see `as_unit_rows`), cover, or query or private rows of another width;
            or gains that are not finite.
    """
    if function not in FUNCTIONS:
        raise RecipeError(f"function {function!r} is none of {', '.join(FUNCTIONS)}")
    recipe = FUNCTIONS[function]
    parameters = _parameters(
        function, recipe, {"trade_off": trade_off, "ridge": ridge, "eta": eta, "hardness": hardness}
    )
    if isinstance(memory_bytes, bool) or not isinstance(memory_bytes, (int, np.integer)) or memory_bytes < 1:
        raise RecipeError(f"memory_bytes {memory_bytes!r}: give the bytes that the kernel may take, an integer >= 1")
    rows = as_unit_rows(X) if recipe.embeddings else _cover(function, X)
    n = len(rows)
    count = resolve_budget(budget, n)
    needed = recipe.pair_bytes * n * n
    if needed > memory_bytes:
        raise RecipeError(
            f"submodlib takes {recipe.pair_bytes} x {n} x {n} = {needed} bytes for {function}, more than "
            f"memory_bytes {memory_bytes}; choose within groups or from fewer rows, or raise memory_bytes"
        )
    given = _Inputs(
        rows,
        _beside(function, "query", query, recipe, rows.shape[1]),
        _beside(function, "private", private, recipe, rows.shape[1]),
        parameters,
    )
    with warnings.catch_warnings():
        # It looks up scipy.sparse.csr, which SciPy has deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        import submodlib

        with one_blas_thread():
            built = recipe.build(submodlib, given)
    chosen, gains = _maximise(built, n, count, recipe.lazy)
    if len(set(chosen)) != count or not set(chosen) <= set(range(n)) or not np.isfinite(gains).all():
        raise DataError(
            f"submodlib returned no usable choice of {count} of {n} rows for {function}: the kernel is "
            "numerically singular; use a larger ridge, or drop duplicate rows"
        )
    return Selection(np.array(chosen, np.int64), recipe.scale * np.array(gains, np.float64), None, None)


def _maximise(built: Any, n: int, count: int, lazy: bool) -> tuple[list[int], list[float]]:
    """Submodlib's greedy choice of `count` rows and their gains, with every early stop turned off."""
    picked: list[tuple[int, float]] = []
    # It refuses a budget of n.
    asked = min(count, n - 1)
    if asked:
        picked = built.maximize(
            budget=asked,
            optimizer="LazyGreedy" if lazy else "NaiveGreedy",
            stopIfZeroGain=False,
            stopIfNegativeGain=False,
            show_progress=False,
        )
    chosen, gains = [int(row) for row, _ in picked], [float(gain) for _, gain in picked]
    if count == n:
        before = set(chosen)
        last = next(iter(set(range(n)) - before))
        chosen.append(last)
        gains.append(float(built.evaluate(before | {last})) - (float(built.evaluate(before)) if before else 0.0))
    return chosen, gains


def _parameters(function: str, recipe: _Function, given: dict[str, float | None]) -> dict[str, float]:
    """The function's parameters with their defaults, checked."""
    taken = dict(recipe.defaults)
    for name, value in given.items():
        if value is None:
            continue
        if name not in taken:
            takes = f"takes only {', '.join(taken)}" if taken else "takes no parameter"
            raise RecipeError(f"{name}={value!r}: {function} {takes}; leave it out")
        low = 1e-3 if name == "ridge" else 0.0
        high = 1.0 if name in ("hardness", "eta") and "ridge" in taken else math.inf
        if (
            isinstance(value, (bool, np.bool_))
            or not isinstance(value, (int, float, np.integer, np.floating))
            or not (math.isfinite(value) and low <= value <= high)
        ):
            raise RecipeError(f"{name} {value!r} of {function}: give a finite number in [{low:g}, {high:g}]")
        taken[name] = float(value)
    return taken


def _beside(function: str, name: str, given: npt.ArrayLike | None, recipe: _Function, width: int) -> Float32 | None:
    """Query or private rows, checked against what the function takes."""
    if recipe.takes != name:
        if given is not None:
            raise RecipeError(f"{name}: {function} takes none; leave it out")
        return None
    if given is None:
        raise RecipeError(f"{function} needs {name}: give the embeddings of its rows, [rows, {width}]")
    rows = as_unit_rows(given)
    if rows.shape[1] != width:
        raise DataError(f"{name} rows have {rows.shape[1]} dimensions and the embeddings {width}; use one encoder")
    return rows


def _cover(function: str, X: npt.ArrayLike) -> Float32:
    """A cover matrix, checked."""
    cover = np.asarray(X)
    if cover.ndim != 2 or 0 in cover.shape or cover.dtype.kind not in "fiub":
        raise DataError(f"{function}: {cover.dtype} of shape {cover.shape}; give [rows, concepts] of numbers in [0, 1]")
    values = np.ascontiguousarray(cover, np.float32)
    wrong = ~((values >= 0) & (values <= 1))
    if function == "set_cover":
        wrong = ~((values == 0) | (values == 1))
    if wrong.any():
        row, concept = (int(place) for place in np.argwhere(wrong)[0])
        allowed = "0 or 1" if function == "set_cover" else "a probability in [0, 1]"
        raise DataError(f"{function}: row {row} has {cover[row, concept]!r} for concept {concept}; give {allowed}")
    return values
