"""A budget for each class, cluster or source: any selector, run inside every group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.errors import DataError, RecipeError, first_of
from tamis.selectors.selection import Selection, resolve_budget
from tamis.selectors.shares import largest_remainder

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt


def per_group(
    select: Callable[[npt.NDArray[Any], int], Selection],
    X: npt.ArrayLike,
    groups: npt.ArrayLike,
    *,
    budget: int | float | Mapping[Any, int],
) -> Selection:
    """Run a selector inside every group, and merge what it chose.

    Args:
        select: Called as select(rows of one group, share) with share in [1, rows]; group after group in
            sorted order, so a generator that it holds is used in a fixed order.
        X: What the selector takes: an array of n rows, such as embeddings.
        groups: The group of each row: integers, booleans or strings [n].
        budget: A fraction of n as a float in (0, 1], or a count as an integer in [1, n]: shared in
            proportion to the sizes of the groups, exactly (largest remainder, ties to the group that sorts
            first; a small group may get none). Or a count for each group by name, 0 for groups left out.

    Returns:
        A Selection of rows of X. With gains in every part it is ranked by gain, ties to the lowest index;
        otherwise the first choices of all groups come first, then the second ones. Gains and weights are
        None where a part has none. The certificate holds `objective`, `upper_bound` and `ratio` for the sum
        of the groups' objectives at these shares where every part has the first two, and is None otherwise.

    Raises:
        RecipeError: An unusable budget, or a name that no row has.
        DataError: Groups that are not one label for each row, or a selector that returned another number of
            rows than its share.

    >>> from tamis.selectors.selection import Selection
    >>> def first(rows, share):
    ...     return Selection(np.arange(share), None, None, None)
    >>> per_group(first, np.zeros((5, 2)), ["b", "a", "b", "b", "a"], budget={"a": 1, "b": 2}).indices.tolist()
    [1, 0, 2]
    """
    rows, labels = np.asarray(X), np.asarray(groups)
    if rows.ndim == 0 or labels.ndim != 1 or len(labels) != len(rows) or labels.dtype.kind not in "iubUST":
        raise DataError(
            f"groups: {labels.dtype} of shape {labels.shape} for data of shape {rows.shape}; give one integer, "
            "boolean or string for each row"
        )
    names, group, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    shares = _shares(names, sizes.astype(np.int64), budget)
    members = np.split(np.argsort(group, kind="stable"), np.cumsum(sizes)[:-1])
    parts: list[Selection] = []
    indices: list[npt.NDArray[np.int64]] = []
    for name, own, share in zip(names.tolist(), members, shares.tolist(), strict=True):
        if share == 0:
            continue
        part = select(rows[own], share)
        if len(part.indices) != share:
            raise DataError(f"the selector returned {len(part.indices)} rows of group {name!r}, not its share {share}")
        parts.append(part)
        indices.append(own[part.indices].astype(np.int64))
    merged = np.concatenate(indices)
    gains = _joined([part.gains for part in parts])
    weights = _joined([part.weights for part in parts])
    if gains is not None:
        order = np.lexsort((merged, -gains))
    else:
        # A stable sort by rank: the groups in turn.
        order = np.argsort(np.concatenate([np.arange(len(own)) for own in indices]), kind="stable")
    return Selection(
        merged[order],
        None if gains is None else gains[order].astype(np.float64),
        None if weights is None else weights[order].astype(np.float32),
        _certificate(parts),
    )


def _joined(values: list[npt.NDArray[Any] | None]) -> npt.NDArray[Any] | None:
    """The parts' arrays one after another; None where one has none."""
    present = [value for value in values if value is not None]
    return np.concatenate(present) if len(present) == len(values) else None


def _certificate(parts: list[Selection]) -> dict[str, float] | None:
    """The sums of what every part certifies."""
    figures = [part.certificate or {} for part in parts]
    if not all("objective" in each and "upper_bound" in each for each in figures):
        return None
    objective = float(sum(each["objective"] for each in figures))
    bound = float(sum(each["upper_bound"] for each in figures))
    certificate = {"objective": objective, "upper_bound": bound}
    if objective > 0:
        certificate["ratio"] = objective / bound
    return certificate


def _shares(
    names: npt.NDArray[Any], sizes: npt.NDArray[np.int64], budget: int | float | Mapping[Any, int]
) -> npt.NDArray[np.int64]:
    """How many rows to take of each group."""
    if not isinstance(budget, Mapping):
        return largest_remainder(sizes.astype(np.float64), resolve_budget(budget, int(sizes.sum())), sizes)
    known = names.tolist()
    unknown = [name for name in budget if name not in known]
    if unknown:
        raise RecipeError(f"budget names the group {unknown[0]!r}, which no row has; there are {first_of(known)}")
    shares = np.zeros(len(known), np.int64)
    for place, (name, size) in enumerate(zip(known, sizes.tolist(), strict=True)):
        count = budget.get(name, 0)
        if isinstance(count, (bool, np.bool_)) or not isinstance(count, (int, np.integer)) or not 0 <= count <= size:
            raise RecipeError(
                f"budget {count!r} of group {name!r}, which has {size} rows: give an integer in [0, {size}]"
            )
        shares[place] = count
    if shares.sum() == 0:
        raise RecipeError("budget keeps no row of any group; give at least one group a count of at least 1")
    return shares
