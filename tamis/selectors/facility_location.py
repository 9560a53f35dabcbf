"""Facility location: the rows that together stand closest to all rows.

The objective is f(S) = sum_i max(0, max_{j in S} cos(i, j)). Greedy selection reaches (1 - 1/e) of the best
value (Nemhauser, Wolsey and Fisher, 1978). Cosines are whole multiples of 2^-15, computed exactly from rows on a
grid (`tamis.embeddings.grid`), on which every gain is exact: a selection does not depend on threads, blocks, the
order of summation or the processor, and ties go to the lowest index.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tamis.embeddings.grid import UNIT, cosine_scale, to_grid
from tamis.embeddings.kmeans import evenly_spaced, nearest_on_grid
from tamis.embeddings.neighbours import (
    NEIGHBOURS,
    PROBES,
    Cells,
    make_cells,
    nearest_neighbours,
    symmetric_lists,
)
from tamis.errors import DataError, RecipeError
from tamis.selectors.greedy import Terms, Trace, maximise, maximise_lists
from tamis.selectors.kernels import BlockKernel, DenseKernel, Kernel
from tamis.selectors.selection import Selection, as_unit_rows, resolve_budget
from tamis.threads import each, one_blas_thread

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    import scipy.sparse

    Bool = npt.NDArray[np.bool_]
    UInt16 = npt.NDArray[np.uint16]
    Int32 = npt.NDArray[np.int32]
    Int64 = npt.NDArray[np.int64]
    Float32 = npt.NDArray[np.float32]
    Float64 = npt.NDArray[np.float64]
    Ranking = tuple[Int64, Float64]

Engine = Literal["auto", "exact", "sparse", "partitioned"]

DEFAULT_MEMORY_BYTES = 2 << 30
ROWS_PER_CELL = 1024
LARGEST_CELL = 4 * ROWS_PER_CELL
RANKED_PROBES = 4  # cells in which a row seeks the proposals of the partitioned engine

_BYTES_A_PAIR = 2
_BYTES_A_LISTED_PAIR = 12  # column and value, by row and by candidate
_FLOOR = 0.9  # of the similarity to its farthest listed neighbour that a row is taken to have anyway
RANKED_CELL_ROWS = 300
_PROPOSALS = 3  # rows that the cells propose, in budgets
_SAMPLED_ROWS = 1024


def facility_location(
    X: npt.ArrayLike,
    *,
    budget: int | float,
    engine: Engine = "auto",
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    threads: int = 1,
    device: str | None = None,
    neighbours: int = NEIGHBOURS,
    probes: int = PROBES,
    costs: npt.ArrayLike | None = None,
    max_cost: float | None = None,
    preselected: npt.ArrayLike | None = None,
    stop_gain: float | None = None,
    stop_coverage: float | None = None,
    certificate: bool = True,
) -> Selection:
    """Choose rows by greedy facility location over cosine similarities.

    `exact` is greedy on all n^2 pairs: on a kernel of 2 bytes a pair where that fits `memory_bytes`, else on
    blocks that are recomputed, which gives the same list. `sparse` is greedy on the graph of nearest neighbours:
    a pair that is not in it counts as a little less similar than the row's farthest neighbour. `partitioned`
    ranks k-means cells of about 300 rows exactly, merges the rankings by gain, and refines: it chooses again among
    the best three budgets of them, on a thinner graph that crosses the cells. `auto` is
    exact where the kernel fits `memory_bytes`, and sparse beyond.

    Args:
        X: Embeddings, float16, float32 or float64 [n, d]; need not be normalised.
        budget: How many rows to choose: a fraction of n as a float in (0, 1], or a count as an integer in [1, n].
        engine: Which engine to use.
        memory_bytes: What the kernel, or the lists of the pairs that still matter, may take.
        threads: Threads to use. The result does not depend on it.
        device: A torch device for the products (`cuda`); None for numpy. The result does not depend on it.
        neighbours: sparse: neighbours that each row looks for.
        probes: sparse: how many of the nearest cells each row looks into.
        costs: (exact) Cost of each row > 0, [n]: the next row is the one of the largest gain per cost
            (Sviridenko, 2004), rows that no longer fit `max_cost` are passed over, and a single row that beats all
            those is taken.
        max_cost: What the costs may sum to; needs `costs`.
        preselected: Rows that are in the set already, integers [p]: they are not chosen again, and gains count
            from them. `budget` counts new rows.
        stop_gain: Stop before a gain below this.
        stop_coverage: (exact) Stop once the mean similarity of a row to its nearest chosen row reaches this, in (0, 1].
        certificate: Whether to compute the certificate.

    Returns:
        A Selection ranked by gain (per cost), its `engine` the one used, and fewer rows than the budget where a
        limit stopped it. `weights` are the numbers of rows that each chosen row represents: its nearest, of
        equally near ones the first ranked; a chosen row represents itself. They sum to n, less what preselected
        rows represent. The certificate, with cosines clamped to [0, 1], is

        - `objective`: f(S), with the preselected rows in S. In the approximate engines the nearest row is sought
          in the cells that a row probes, so that it is a lower bound.
        - `upper_bound`: what no set of this size can exceed, by submodularity: the least of f(T) + the largest
          remaining gains over some prefixes T of the list; n in the approximate engines. `ratio` is objective /
          upper_bound.
        - `listed_objective`, `listed_upper_bound`, `listed_ratio`: the same for the objective on the graph's pairs,
          which is what the approximate engines maximise (only there).
        - `coverage_mean`, `coverage_p95`: cosine distance from a row to its nearest chosen row, mean and 95th
          percentile; `random_coverage_mean`, `random_coverage_p95`: the same with as many uniform random rows,
          from a sample of at most 1,024 rows.

    Raises:
        RecipeError: An unusable budget, engine, limit or cost.
        DataError: Unusable embeddings (see `as_unit_rows`), costs or preselected rows.
    """
    unit = as_unit_rows(X)
    how = _How(len(unit), engine, memory_bytes, threads, device, neighbours, probes, certificate)
    if (costs is not None or stop_coverage is not None) and engine in ("sparse", "partitioned"):
        raise RecipeError(
            f"costs and stop_coverage need every pair, which engine {engine!r} does not look at; use 'exact'"
        )
    if costs is not None or stop_coverage is not None:
        how = dataclasses.replace(how, engine="exact")
    taken = _rows(preselected, len(unit))
    count = resolve_budget(budget, len(unit))
    if count > len(unit) - len(taken):
        raise RecipeError(
            f"budget {budget!r} asks for {count} new rows, but {len(taken)} of {len(unit)} are preselected; "
            f"give at most {len(unit) - len(taken)}"
        )
    cost, money = _costs(costs, max_cost, len(unit))
    terms = Terms(
        count,
        candidates=np.setdiff1d(np.arange(len(unit)), taken) if len(taken) else None,
        cost=cost,
        money=money,
        least_gain=0 if stop_gain is None else math.ceil(_positive(stop_gain, "stop_gain") * UNIT),
        enough=1 << 62 if stop_coverage is None else _enough(stop_coverage, len(unit)),
    )
    with one_blas_thread():
        if len(taken):
            low = similarity_to(unit, unit[taken], threads)
            terms = dataclasses.replace(terms, low=low, enough=terms.enough - int(low.sum(dtype=np.int64)))
        return how.select(unit, terms)


def targeted(
    X: npt.ArrayLike,
    *,
    queries: npt.ArrayLike,
    budget: int | float,
    eta: float = 1.0,
    engine: Literal["auto", "exact"] = "auto",
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    threads: int = 1,
) -> Selection:
    """Choose rows that represent the part of X that lies near the queries: facility-location mutual information.

    I(S; Q) = sum_i min(max_{j in S} s_ij, eta max_{q in Q} s_iq), the FLVMI of Kothawade et al. (PRISM, AAAI
    2022) and submodlib's FacilityLocationMutualInformation: facility location in which no row counts for more
    than eta times its similarity to the nearest query.

    Args:
        X: Embeddings, float [n, d].
        queries: Embeddings of the target, such as a validation set, float [q, d].
        budget: A fraction of n as a float in (0, 1], or a count as an integer in [1, n].
        eta: > 0; larger lets a row be represented better than it is itself similar to the queries.
        engine: As in `facility_location`; every pair is needed.
        memory_bytes: As in `facility_location`.
        threads: As in `facility_location`.

    Returns:
        A Selection; `objective`, `upper_bound` and `ratio` in the certificate are of I(S; Q).

    Raises:
        RecipeError: An unusable budget, engine or eta.
        DataError: Unusable embeddings, or queries of another dimension.
    """
    unit, target = as_unit_rows(X), _alike(X, queries, "queries")
    how = _exactly(len(unit), engine, memory_bytes, threads)
    with one_blas_thread():
        near = similarity_to(unit, target, threads)
        high = np.minimum(np.floor(near * _positive(eta, "eta") + 0.5), UNIT).astype(np.uint16)
        return how.select(unit, Terms(resolve_budget(budget, len(unit)), high=high))


def conditional(
    X: npt.ArrayLike,
    *,
    avoid: npt.ArrayLike,
    budget: int | float,
    nu: float = 1.0,
    engine: Literal["auto", "exact"] = "auto",
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    threads: int = 1,
) -> Selection:
    """Choose rows that represent what a given set does not: the conditional gain of facility location.

    f(S | P) = sum_i max(max_{j in S} s_ij - nu max_{p in P} s_ip, 0), the FLCG of Kothawade et al. (PRISM, AAAI
    2022) and submodlib's FacilityLocationConditionalGain.

    Args:
        X: Embeddings, float [n, d].
        avoid: Embeddings of the set P, such as data used before or private data, float [p, d].
        budget: A fraction of n as a float in (0, 1], or a count as an integer in [1, n].
        nu: >= 0, how strongly to avoid; 0 is plain facility location.
        engine: As in `facility_location`; every pair is needed.
        memory_bytes: As in `facility_location`.
        threads: As in `facility_location`.

    Returns:
        A Selection; `objective`, `upper_bound` and `ratio` in the certificate are of f(S | P).

    Raises:
        RecipeError: An unusable budget, engine or nu.
        DataError: Unusable embeddings, or a set of another dimension.
    """
    unit, given = as_unit_rows(X), _alike(X, avoid, "avoid")
    how = _exactly(len(unit), engine, memory_bytes, threads)
    if not (math.isfinite(nu) and nu >= 0):
        raise RecipeError(f"nu {nu!r}: give a finite number of at least 0")
    with one_blas_thread():
        near = similarity_to(unit, given, threads)
        low = np.minimum(np.floor(near * nu + 0.5), UNIT).astype(np.uint16)
        return how.select(unit, Terms(resolve_budget(budget, len(unit)), low=low))


def on_kernel(
    K: UInt16, *, budget: int | float, threads: int = 1, compat: Literal["submodlib"] | None = None
) -> Selection:
    """Greedy facility location on a given kernel.

    Args:
        K: uint16[n, n], symmetric, similarities in units of 2^-15, at most 2^15.
        budget: A fraction of n as a float in (0, 1], or a count as an integer in [1, n].
        threads: Threads to use. The result does not depend on it.
        compat: `submodlib` breaks ties as submodlib's LazyGreedy does, not to the lowest index.

    Returns:
        A Selection with `objective`, `upper_bound` and `ratio`.

    Raises:
        RecipeError: An unusable budget or `compat`.
        DataError: Not such a kernel (that it is symmetric is not checked).
    """
    if not (isinstance(K, np.ndarray) and K.dtype == np.uint16 and K.ndim == 2 and K.shape[0] == K.shape[1] and len(K)):
        raise DataError("the kernel must be uint16 [n, n] in units of 2^-15")
    if K.max() > UNIT:
        raise DataError(f"the kernel holds {K.max()}, more than {UNIT}, which stands for similarity 1")
    trace = maximise(
        DenseKernel(K, threads), Terms(resolve_budget(budget, len(K)), last_of_ties=_like_submodlib(compat))
    )
    return _selection(trace, "exact", _ratio(trace))


def _like_submodlib(compat: str | None) -> bool:
    if compat not in (None, "submodlib"):
        raise RecipeError(f"compat {compat!r} is neither None nor 'submodlib'")
    return compat is not None


def on_graph(
    graph: scipy.sparse.csr_matrix, *, budget: int | float, compat: Literal["submodlib"] | None = None
) -> Selection:
    """Greedy facility location on a given sparse symmetric kernel, such as `neighbour_graph`'s.

    Args:
        graph: scipy CSR [n, n], symmetric, similarities in [0, 1]; they are rounded to multiples of 2^-15. A
            pair that is not in it has similarity 0.
        budget: A fraction of n as a float in (0, 1], or a count as an integer in [1, n].
        compat: `submodlib` breaks ties as submodlib's LazyGreedy does, not to the lowest index.

    Returns:
        A Selection with `objective`, `upper_bound` and `ratio`, of the sparse objective.

    Raises:
        RecipeError: An unusable budget or `compat`.
        DataError: Not such a graph (that it is symmetric is not checked).
    """
    n = graph.shape[0]
    if graph.format != "csr" or graph.shape != (n, n) or n == 0:
        raise DataError(f"the graph is {graph.format} of shape {graph.shape}; give a square CSR matrix")
    if len(graph.data) and not (graph.data.min() >= 0 and graph.data.max() <= 1):
        raise DataError("the graph's similarities must be in [0, 1]")
    value = np.floor(graph.data * UNIT + 0.5).astype(np.uint16)
    lists = (graph.indptr.astype(np.int64), graph.indices.astype(np.int32), value)
    terms = Terms(resolve_budget(budget, n), last_of_ties=_like_submodlib(compat))
    trace = maximise_lists(lists, lists, terms)
    return _selection(trace, "sparse", _ratio(trace))


def rank_partition(
    X_unit: Float32,
    budget: int,
    preselected: npt.NDArray[np.bool_] | None = None,
    cost: npt.NDArray[np.int64] | None = None,
) -> Ranking:
    """Rank the rows of one partition by exact greedy facility location.

    Takes 2 bytes of memory a pair of rows, and one thread.

    Args:
        X_unit: float32[n, d], C-contiguous, rows of length 1 (see `as_unit_rows`; not checked again here).
        budget: How many rows to rank, in [1, n]; n ranks all, the last one included.
        preselected: bool[n], rows that are in the set already: they are not ranked, gains count beyond them, and n is
            the number of the others.
        cost: int64[n] > 0, what each row costs: the next one is that of the largest gain per cost.

    Returns:
        Positions in the partition, int64[budget], and their gains when chosen, float64[budget], in units of f
        and, per cost, never increasing.

    Raises:
        RecipeError: The budget is not in [1, n].
    """
    free = len(X_unit) if preselected is None else int(np.count_nonzero(~preselected))
    if not 1 <= budget <= free:
        raise RecipeError(f"cannot rank {budget} rows of a partition of {free}; give 1 to {free}")
    with one_blas_thread():
        terms = Terms(budget, cost=None if cost is None else cost.astype(np.float64))
        if preselected is not None and preselected.any():
            low = similarity_to(X_unit, X_unit[preselected])
            terms = dataclasses.replace(terms, low=low, candidates=np.flatnonzero(~preselected))
        trace = maximise(DenseKernel.of(X_unit), terms)
    return trace.chosen, trace.gains / UNIT


def merge_rankings(rankings: Sequence[Ranking], budget: int) -> Ranking:
    """Merge the rankings of disjoint partitions by gain.

    With full rankings (or rankings of at least `budget` rows) this is greedy on the objective in which rows
    are only represented inside their own partition.

    Args:
        rankings: Of each partition the indices, int64 (global ones, no row twice), and gains, float64.
        budget: How many rows to return, at least 1.

    Returns:
        The indices and gains of the first `budget` rows: largest gain first, ties to the lowest index, and
        the rows of one partition always in the order of its ranking.

    Raises:
        RecipeError: The rankings hold fewer rows than the budget.
    """
    ranked = sum(len(indices) for indices, _ in rankings)
    if not 1 <= budget <= ranked:
        raise RecipeError(f"cannot take {budget} rows of {len(rankings)} rankings that hold {ranked} rows in all")
    merged = heapq.merge(*(zip((-gains).tolist(), indices.tolist(), strict=True) for indices, gains in rankings))
    first = list(islice(merged, budget))
    return np.array([index for _, index in first], np.int64), -np.array([lost for lost, _ in first], np.float64)


def split_into_cells(
    X_unit: Float32, *, max_cell_rows: int = LARGEST_CELL, rows_per_cell: int = ROWS_PER_CELL
) -> list[Int64]:
    """Split rows into cells of neighbours by spherical k-means on the grid, about 1,000 rows a cell.

    The same rows give the same cells on every machine (see `fit_on_grid`).

    Args:
        X_unit: float32[n, d], C-contiguous, rows of length 1.
        max_cell_rows: A larger cell is cut, in index order, into the fewest nearly equal parts of at most
            this.
        rows_per_cell: Rows of a cell on average.

    Returns:
        The rows of each cell, int64, ascending; no cell is empty, and every row is in exactly one.
    """
    n = len(X_unit)
    wanted = max(1, round(n / rows_per_cell), -(-n // max_cell_rows))
    if wanted == 1:
        members = [np.arange(n)]
    else:
        with one_blas_thread():
            members = make_cells(X_unit, wanted, probes=1).members()
    return [part for rows in members for part in _parts(rows, max_cell_rows)]


def _parts(rows: Int64, most: int) -> list[Int64]:
    """Cut rows into the fewest nearly equal parts of at most so many."""
    return np.array_split(rows, -(-len(rows) // most))


def similarity_to(X_unit: Float32, others_unit: Float32, threads: int = 1) -> UInt16:
    """The similarity of each row to the nearest of some others. BLAS must be limited to one thread.

    Args:
        X_unit: float32[n, d], rows of length 1.
        others_unit: float32[m, d], likewise.
        threads: Threads to use.

    Returns:
        uint16[n], in units of 2^-15.
    """
    from tamis.selectors import _greedy

    others = to_grid(others_unit)
    other_rows, other_scale = others.astype(np.float32), cosine_scale(others)
    best = np.zeros(len(X_unit), np.uint16)

    def find(start: int) -> None:
        grid = to_grid(X_unit[start : start + 1024])
        rows, scale, part = grid.astype(np.float32), cosine_scale(grid), best[start : start + 1024]
        for column in range(0, len(others), 4096):
            products = rows @ other_rows[column : column + 4096].T
            cosines = np.empty(products.shape, np.uint16)
            _greedy.quantise(products, scale, other_scale[column : column + 4096], cosines)
            np.maximum(part, cosines.max(axis=1), out=part)

    each(threads, find, range(0, len(X_unit), 1024))
    return best


@dataclasses.dataclass(frozen=True, slots=True)
class _How:
    """How to maximise: the engine and its means, once n is known."""

    n: int
    engine: str
    memory_bytes: int
    threads: int
    device: str | None
    neighbours: int
    probes: int
    certificate: bool
    coverage: bool = True

    def __post_init__(self) -> None:
        if self.engine not in ("auto", "exact", "sparse", "partitioned"):
            raise RecipeError(f"engine {self.engine!r} is not one of 'auto', 'exact', 'sparse', 'partitioned'")
        for name in ("memory_bytes", "threads", "neighbours", "probes"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise RecipeError(f"{name} {value!r}: give an integer of at least 1")

    def select(self, unit: Float32, terms: Terms) -> Selection:
        fits = _BYTES_A_PAIR * self.n**2 <= self.memory_bytes
        if self.engine == "exact" or (self.engine == "auto" and fits):
            return self._exact(unit, terms, fits)
        return self._partitioned(unit, terms) if self.engine == "partitioned" else self._sparse(unit, terms)

    def _kernel(self, unit: Float32, fits: bool) -> Kernel:
        if self.device is not None:
            from tamis.selectors.torch_kernel import TorchKernel

            return TorchKernel(unit, self.device)
        return DenseKernel.of(unit, self.threads) if fits else BlockKernel(unit, self.threads)

    def _exact(self, unit: Float32, terms: Terms, fits: bool) -> Selection:
        kernel = self._kernel(unit, fits)
        most = None if len(kernel.matrix) else max(1, self.memory_bytes // _BYTES_A_LISTED_PAIR)
        trace = maximise(kernel, terms, most)
        if terms.cost is not None:
            # Gain per cost alone can be arbitrarily bad where one dear row is worth more than all cheap ones.
            affordable = np.flatnonzero(terms.cost <= terms.money) if terms.candidates is None else terms.candidates
            affordable = affordable[terms.cost[affordable] <= terms.money]
            if len(affordable):
                alone = maximise(kernel, dataclasses.replace(terms, budget=1, cost=None, candidates=affordable), most)
                trace = max(trace, dataclasses.replace(alone, bound=trace.bound), key=lambda t: int(t.gains.sum()))
        figures: dict[str, float] = {}
        if self.certificate:
            # What preselected rows cover counts; the floor of `conditional` is no part of its objective.
            base = int(terms.low.sum(dtype=np.int64)) if self.coverage and terms.low is not None else 0
            objective, bound = base + int(trace.gains.sum()), base + trace.bound
            figures = _shares("", objective, min(bound, self.n * UNIT))
            if self.coverage:
                figures |= self._coverage(unit, trace, terms)
        return _selection(trace, "exact", figures)

    def _sparse(self, unit: Float32, terms: Terms) -> Selection:
        cells = make_cells(unit, probes=self.probes, threads=self.threads, device=self.device)
        found = nearest_neighbours(cells, self.neighbours, threads=self.threads, device=self.device)
        return self._approximate(
            unit, cells, found, on_neighbours(*found, terms, threads=self.threads), terms, "sparse"
        )

    def _partitioned(self, unit: Float32, terms: Terms) -> Selection:
        cells = ranked_cells(unit, self.threads, self.device)
        members = [part for rows in cells.members() for part in _parts(rows, LARGEST_CELL)]
        allowed = np.ones(self.n, np.bool_)
        if terms.candidates is not None:
            allowed = np.isin(np.arange(self.n), terms.candidates)
        rankings: list[Ranking] = [(np.empty(0, np.int64), np.empty(0))] * len(members)
        share = _PROPOSALS * terms.budget / self.n

        def rank(cell: int) -> None:
            rows = members[cell]
            open_to = np.flatnonzero(allowed[rows])
            if not len(open_to):
                return
            most = min(len(open_to), math.ceil(3 * share * len(rows)) + 16)
            own = Terms(most, low=None if terms.low is None else terms.low[rows], candidates=open_to)
            trace = maximise(DenseKernel.of(unit[rows]), own)
            rankings[cell] = (rows[trace.chosen], trace.gains / UNIT)

        each(self.threads, rank, range(len(members)))
        proposals = proposals_of(rankings, terms.budget)
        proposed = np.zeros(self.n, np.bool_)
        proposed[proposals] = True
        found = nearest_neighbours(
            cells, max(1, self.neighbours // 2), candidates=proposed, threads=self.threads, device=self.device
        )
        trace = on_neighbours(*found, dataclasses.replace(terms, candidates=proposals), symmetric=False)
        return self._approximate(unit, cells, found, trace, terms, "partitioned")

    def _approximate(
        self, unit: Float32, cells: Cells, found: tuple[Int32, UInt16], trace: Trace, terms: Terms, engine: str
    ) -> Selection:
        """Seek each row's nearest chosen one in its list, else in the cells it probes, else among all."""
        from tamis.embeddings._neighbours import nearest_chosen

        rank = np.full(self.n, -1, np.int32)
        rank[trace.chosen] = np.arange(len(trace.chosen))
        owner, similarity = nearest_chosen(*found, rank)
        probes = np.where(owner[cells.order, None] < 0, cells.probes, -1)
        unlisted = dataclasses.replace(cells, probes=probes)
        nearest, near = nearest_neighbours(unlisted, 1, candidates=rank >= 0, threads=self.threads)
        seen = np.flatnonzero(nearest[:, 0] >= 0)
        owner[seen], similarity[seen] = rank[nearest[seen, 0]], near[seen, 0]
        lost = np.flatnonzero(owner < 0)
        if len(lost) and len(trace.chosen):
            similarity[lost] = similarity_to(unit[lost], unit[trace.chosen], self.threads)
            owner[lost] = nearest_on_grid(to_grid(unit[lost]), to_grid(unit[trace.chosen]), 1, self.threads)[:, 0]
        if terms.low is not None:
            owner[similarity <= terms.low] = -1  # a preselected row is at least as near
            similarity = np.maximum(similarity, terms.low)
        trace = dataclasses.replace(trace, best=similarity, owner=owner)
        figures: dict[str, float] = {}
        if self.certificate:
            figures = (
                _shares("", int(similarity.sum(dtype=np.int64)), self.n * UNIT)
                | _shares("listed_", int(trace.gains.sum()), trace.bound)
                | self._coverage(unit, trace, terms)
            )
        return _selection(trace, engine, figures)

    def _coverage(self, unit: Float32, trace: Trace, terms: Terms) -> dict[str, float]:
        sample = evenly_spaced(self.n, _SAMPLED_ROWS)
        open_to = np.arange(self.n) if terms.candidates is None else terms.candidates
        drawn = np.random.default_rng(0).permutation(open_to)[: max(1, len(trace.chosen))]
        random = similarity_to(unit[sample], unit[drawn], self.threads)
        if terms.low is not None:
            random = np.maximum(random, terms.low[sample])
        return _distances("", trace.best) | _distances("random_", random)


def _exactly(n: int, engine: str, memory_bytes: int, threads: int) -> _How:
    if engine not in ("auto", "exact"):
        raise RecipeError(f"engine {engine!r}: every pair is needed here, so that only 'exact' (or 'auto') can do it")
    return _How(n, "exact", memory_bytes, threads, None, NEIGHBOURS, PROBES, True, coverage=False)


def ranked_cells(X_unit: Float32, threads: int = 1, device: str | None = None) -> Cells:
    """The cells of the partitioned engine: about 300 rows each. BLAS must be limited to one thread."""
    return make_cells(X_unit, ranked_cell_count(len(X_unit)), probes=RANKED_PROBES, threads=threads, device=device)


def ranked_cell_count(n: int) -> int:
    """How many cells the partitioned engine puts n rows into."""
    return max(1, round(n / RANKED_CELL_ROWS))


def proposals_of(rankings: Sequence[Ranking], budget: int) -> Int64:
    """The rows, ascending, that merged rankings propose to the partitioned engine for a budget."""
    ranked = sum(len(rows) for rows, _ in rankings)
    return np.sort(merge_rankings(rankings, min(ranked, _PROPOSALS * budget))[0])


def on_neighbours(
    neighbours: Int32, similarity: UInt16, terms: Terms, *, symmetric: bool = True, threads: int = 1
) -> Trace:
    """Greedy facility location on the neighbours that each row found.

    A pair that is not listed is less similar than the row's last neighbour, so every row is taken to have nearly
    that similarity anyway. (As 0, it would make covering a row that is nearly covered look like covering one that
    is not.)

    Args:
        neighbours: int32[n, k] of `nearest_neighbours`.
        similarity: uint16[n, k] likewise.
        terms: What to maximise.
        symmetric: Whether a row is represented by those that find it too; False where neighbours were sought among
            a few proposals only.
        threads: Threads to use. The result does not depend on it.

    Returns:
        The trace; its gains count from that floor.
    """
    from tamis.selectors import _greedy

    floor = (similarity[:, -1] * _FLOOR).astype(np.uint16)
    terms = dataclasses.replace(terms, low=floor if terms.low is None else np.maximum(floor, terms.low))
    if symmetric:
        lists = symmetric_lists(neighbours, similarity, threads)
        return maximise_lists(lists, lists, terms)
    found = neighbours >= 0
    start = np.concatenate(([0], np.cumsum(found.sum(axis=1))))
    rows = (start, neighbours[found], similarity[found])
    return maximise_lists(rows, _greedy.transpose_lists(*rows, len(neighbours)), terms)


def _selection(trace: Trace, engine: str, figures: dict[str, float]) -> Selection:
    count = len(trace.chosen)
    owner = np.where(trace.owner < 0, 0 if trace.bare else count, trace.owner)
    owner[trace.chosen] = np.arange(count)
    weights = np.bincount(owner, minlength=count)[:count].astype(np.float32)
    return Selection(trace.chosen, trace.gains / UNIT, weights, figures or None, engine)


def _ratio(trace: Trace) -> dict[str, float]:
    return _shares("", int(trace.gains.sum()), trace.bound)


def _shares(name: str, objective: int, bound: int) -> dict[str, float]:
    return {
        f"{name}objective": objective / UNIT,
        f"{name}upper_bound": bound / UNIT,
        f"{name}ratio": objective / bound if bound else 1.0,
    }


def _distances(name: str, similarity: UInt16) -> dict[str, float]:
    distance = 1.0 - similarity / UNIT
    return {
        f"{name}coverage_mean": float(distance.mean()),
        f"{name}coverage_p95": float(np.percentile(distance, 95)),
    }


def _positive(value: Any, name: str) -> float:
    if isinstance(value, bool) or not (math.isfinite(value) and value > 0):
        raise RecipeError(f"{name} {value!r}: give a finite number above 0")
    return float(value)


def _enough(coverage: float, n: int) -> int:
    if not 0.0 < coverage <= 1.0:
        raise RecipeError(f"stop_coverage {coverage!r}: give a mean similarity in (0, 1]")
    return math.ceil(coverage * n * UNIT * (1.0 - 2.0**-50))  # a mean that is met must not be missed by rounding


def _rows(rows: npt.ArrayLike | None, n: int) -> Int64:
    if rows is None:
        return np.empty(0, np.int64)
    given = np.asarray(rows)
    if given.ndim != 1 or (len(given) and given.dtype.kind not in "iu"):
        raise DataError(f"preselected rows are {given.dtype} of shape {given.shape}; give a list of row numbers")
    if len(given) and (given.min() < 0 or given.max() >= n):
        raise DataError(f"preselected row {given.min() if given.min() < 0 else given.max()} of {n} rows")
    return np.unique(given).astype(np.int64)


def _costs(costs: npt.ArrayLike | None, max_cost: float | None, n: int) -> tuple[Float64 | None, float]:
    if (costs is None) != (max_cost is None):
        raise RecipeError("give costs and max_cost together, or neither")
    if costs is None or max_cost is None:
        return None, math.inf
    cost = np.asarray(costs, np.float64)
    if cost.shape != (n,) or not (np.isfinite(cost).all() and (cost > 0).all()):
        raise DataError(f"costs of shape {cost.shape} for {n} rows; give one finite cost above 0 for each row")
    money = _positive(max_cost, "max_cost")
    if money < cost.min():
        raise RecipeError(f"max_cost {money:g} buys nothing: the cheapest row costs {cost.min():g}")
    return cost, money


def _alike(X: npt.ArrayLike, others: npt.ArrayLike, name: str) -> Float32:
    unit = as_unit_rows(others)
    if unit.shape[1] != np.asarray(X).shape[1]:
        raise DataError(f"{name} have {unit.shape[1]} dimensions, the embeddings {np.asarray(X).shape[1]}")
    return unit
