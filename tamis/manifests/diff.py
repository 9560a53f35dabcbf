"""Subsets beside each other: which rows they share, what became of the others, and how their shares shift.

Rows are the same where their id and their content hash are, so that two versions of a dataset can be compared.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tamis.errors import DatasetMismatchError
from tamis.manifests.schema import DECISIONS, Decision

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

    from tamis.manifests.reader import Manifest

Rows = npt.NDArray[np.int64]

ABSENT = "absent"
"""The decision of a manifest on a row that is not in its dataset."""


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """Which row of one manifest's dataset is which of another's.

    Attributes:
        a: The one.
        b: The other.
        in_b: int64[rows of a], the same row in b's dataset; -1 where there is none.
        in_a: int64[rows of b], likewise.
        changed: How many rows have an id of both datasets and another content.
    """

    a: Manifest
    b: Manifest
    in_b: Rows
    in_a: Rows
    changed: int

    @property
    def rows(self) -> int:
        """Rows of both datasets."""
        return int(np.count_nonzero(self.in_b >= 0))

    @property
    def turned(self) -> Match:
        """The same, seen from b."""
        return Match(self.b, self.a, self.in_a, self.in_b, self.changed)


def match(a: Manifest, b: Manifest) -> Match:
    """Find the rows of a's dataset in b's.

    Raises:
        DatasetMismatchError: None is in both.
    """
    in_b = _places(_keys(a), _keys(b))
    found = in_b >= 0
    in_a = np.full(b.audit.num_rows, -1, np.int64)
    in_a[in_b[found]] = np.flatnonzero(found)
    of_id = _places(a.audit["sample_id"], b.audit["sample_id"]) >= 0
    changed = int(np.count_nonzero(of_id & ~found))
    if not found.any():
        hint = (
            f"; {changed} ids are in both, with other contents: were other columns named as text and label?"
            if changed
            else ""
        )
        raise DatasetMismatchError(
            f"no row is in the datasets of both {a.folder} ({a.audit.num_rows} rows) and {b.folder} "
            f"({b.audit.num_rows} rows): rows are compared by id and content{hint}; give subsets of one dataset, or of "
            "versions of it"
        )
    return Match(a, b, in_b, in_a, changed)


def _keys(manifest: Manifest) -> pa.ChunkedArray:
    """What makes each row of the audit the same as another: its content hash, then its id."""
    parts = [manifest.audit[name].cast(pa.large_binary()) for name in ("content_hash", "sample_id")]
    return pc.binary_join_element_wise(*parts, pa.scalar(b"", pa.large_binary()))


def _places(values: pa.ChunkedArray, among: pa.ChunkedArray) -> Rows:
    at = pc.fill_null(pc.index_in(values, value_set=among.combine_chunks()), -1)
    return np.asarray(at.to_numpy(), np.int64)


def kept_mask(manifest: Manifest) -> npt.NDArray[np.bool_]:
    """Which rows of the dataset a manifest keeps, bool[rows]."""
    mask: npt.NDArray[np.bool_] = manifest.audit["decision"].to_numpy() == Decision.KEPT
    return mask


def overlap(pair: Match) -> dict[str, Any]:
    """Rows kept by both (`both`), by one (`only_a`, `only_b`), `jaccard`, and `expected_jaccard` of random subsets."""
    a, b = kept_mask(pair.a), kept_mask(pair.b)
    both = int(np.count_nonzero(b[pair.in_b[a & (pair.in_b >= 0)]]))
    only_a, only_b = int(a.sum()) - both, int(b.sum()) - both
    return {
        "both": both,
        "only_a": only_a,
        "only_b": only_b,
        "jaccard": _jaccard(both, only_a + both, only_b + both),
        "expected_jaccard": expected_jaccard(only_a + both, only_b + both, len(a), len(b), pair.rows),
    }


def expected_jaccard(kept_a: int, kept_b: int, rows_a: int, rows_b: int, common: int) -> float:
    """The Jaccard index that random subsets of these sizes have, about: that of the mean size of their intersection.

    A row of both datasets is in both subsets with probability (k_a / n_a) (k_b / n_b); of one dataset and one size
    k, the mean of the hypergeometric distribution, k^2 / n.

    Args:
        kept_a: Rows of the one subset.
        kept_b: Rows of the other.
        rows_a: Rows of the dataset that the one is of; at least 1.
        rows_b: Rows of the other's.
        common: Rows of both datasets.

    >>> round(expected_jaccard(100, 100, 1000, 1000, 1000), 4)
    0.0526
    """
    return _jaccard(common * kept_a * kept_b / (rows_a * rows_b), kept_a, kept_b)


def _jaccard(both: float, kept_a: int, kept_b: int) -> float:
    """Two empty subsets are the same."""
    either = kept_a + kept_b - both
    return both / either if either else 1.0


def lost(pair: Match, examples: int = 0) -> list[dict[str, Any]]:
    """What b says of the rows that a keeps and b does not.

    Args:
        pair: The two.
        examples: How many rows to list of each group, the first in a's ranks.

    Returns:
        One item for each `stage`, `decision` and `reason` of b's ledger, in the order of its stages, with `rows` and
        `examples`: `sample_id`, `row` (in a) and `stands_for_it`, the id of the row that b keeps for it, if any. Rows
        that are not in b's dataset come last, as `absent`, of no stage.
    """
    rows = pair.a.select["row"].to_numpy()
    there = pair.in_b[rows]
    mine = there < 0
    mine[~mine] = ~kept_mask(pair.b)[there[~mine]]
    rows, there = rows[mine], there[mine]
    known = there >= 0
    audit = pair.b.audit.take(pa.array(there[known]))
    codes = np.full((len(rows), 3), np.iinfo(np.int64).max)  # the absent ones come last
    codes[known] = np.column_stack([audit[name].to_numpy() for name in ("stage", "decision", "reason")])
    kinds, kind_of, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    kind_of = kind_of.reshape(-1)
    items = []
    for number, ((stage, decision, reason), count) in enumerate(zip(kinds.tolist(), counts.tolist(), strict=True)):
        absent = stage >= len(pair.b.stages)
        first = np.flatnonzero(kind_of == number)[:examples]
        items.append(
            {
                "stage": None if absent else pair.b.stages[stage]["name"],
                "decision": ABSENT if absent else list(DECISIONS)[decision],
                "reason": "not in the dataset" if absent else pair.b.reasons[reason],
                "rows": count,
                "examples": [_example(pair, row, other) for row, other in zip(rows[first], there[first], strict=True)],
            }
        )
    return items


def _example(pair: Match, row: int, there: int) -> dict[str, Any]:
    found = None if there < 0 else pair.b.explain_row(int(there))["kept_sample_id"]
    return {"sample_id": pair.a.audit["sample_id"][int(row)].as_py(), "row": int(row), "stands_for_it": found}


def shift(a: Iterable[Hashable], b: Iterable[Hashable]) -> dict[str, Any]:
    """How the shares of groups differ between two subsets.

    Args:
        a: The group of each row of the one; None where it is not known.
        b: Of the other.

    Returns:
        `distance`, the total variation distance of the shares among the rows whose group is known, in [0, 1], or null
        where one subset has none; `unknown_a` and `unknown_b`, the other rows; and `groups`: `name`, `a` and `b`
        (rows), by falling difference of the shares.
    """
    counts = Counter(a), Counter(b)
    unknown = [count.pop(None, 0) for count in counts]
    total_a, total_b = (max(1, sum(count.values())) for count in counts)
    moved = {name: counts[1][name] / total_b - counts[0][name] / total_a for name in {**counts[0], **counts[1]}}
    names = sorted(moved, key=lambda name: (-abs(moved[name]), str(name)))
    return {
        "distance": sum(map(abs, moved.values())) / 2 if all(counts) else None,
        "unknown_a": unknown[0],
        "unknown_b": unknown[1],
        "groups": [{"name": name, "a": counts[0][name], "b": counts[1][name]} for name in names],
    }


def source_files(manifest: Manifest) -> list[str]:
    """The source file of each kept row, in rank order."""
    paths = [source["path"] for source in manifest.record["dataset"]["sources"]]
    return [paths[source] for source in manifest.select["source"].to_pylist()]


def weight_changes(pair: Match) -> dict[str, Any] | None:
    """How far the weights of the rows kept by both differ: `mean_change`, and where they differ most.

    Returns:
        `rows`, `mean_change`, `max_change`, and of the row with the largest `sample_id`, `a` and `b`; None where no
        row is kept by both.
    """
    weights = []
    for manifest in (pair.a, pair.b):
        of_row = np.full(manifest.audit.num_rows, np.nan)
        of_row[manifest.select["row"].to_numpy()] = manifest.select["weight"].to_numpy()
        weights.append(of_row)
    rows = np.flatnonzero(pair.in_b >= 0)
    a, b = weights[0][rows], weights[1][pair.in_b[rows]]
    both = ~np.isnan(a) & ~np.isnan(b)
    if not both.any():
        return None
    rows, a, b = rows[both], a[both], b[both]
    change = np.abs(b - a)
    most = int(np.argmax(change))
    return {
        "rows": len(rows),
        "mean_change": float(change.mean()),
        "max_change": float(change[most]),
        "sample_id": pair.a.audit["sample_id"][int(rows[most])].as_py(),
        "a": float(a[most]),
        "b": float(b[most]),
    }


def stability(manifests: Sequence[Manifest]) -> dict[str, Any]:
    """How alike several subsets are, as those of other seeds.

    Args:
        manifests: At least two.

    Returns:
        `jaccard` and `expected_jaccard` (of random subsets of these sizes), a matrix each; `mean_jaccard` and
        `mean_expected_jaccard` over the pairs; `kept_by`, how many rows exactly 1, 2, ... of the subsets keep;
        `kept_by_all` and `kept_by_any`.

    Raises:
        DatasetMismatchError: Two have no row in common.
    """
    m = len(manifests)
    jaccard, expected = np.eye(m), np.eye(m)
    for i in range(m):
        for j in range(i + 1, m):
            found = overlap(match(manifests[i], manifests[j]))
            jaccard[i, j] = jaccard[j, i] = found["jaccard"]
            expected[i, j] = expected[j, i] = found["expected_jaccard"]
    kept = pa.chunked_array(
        [chunk for manifest in manifests for chunk in _keys(manifest).filter(pa.array(kept_mask(manifest))).chunks],
        pa.large_binary(),
    )
    times = kept.value_counts().field("counts").to_numpy()
    pairs = np.triu_indices(m, 1)
    return {
        "jaccard": jaccard.tolist(),
        "expected_jaccard": expected.tolist(),
        "mean_jaccard": float(jaccard[pairs].mean()),
        "mean_expected_jaccard": float(expected[pairs].mean()),
        "kept_by": np.bincount(times, minlength=m + 1)[1:].tolist(),
        "kept_by_all": int(np.count_nonzero(times == m)),
        "kept_by_any": len(times),
    }
