"""Two subsets beside each other, against arithmetic on Python's own sets."""

import collections
import itertools

import numpy as np
import pyarrow as pa
import pytest

from tamis.errors import DatasetMismatchError
from tamis.manifests import open_manifest
from tamis.manifests.commit import commit
from tamis.manifests.diff import (
    expected_jaccard,
    lost,
    match,
    overlap,
    shift,
    source_files,
    stability,
    weight_changes,
)
from tamis.manifests.schema import AUDIT, DECISIONS, select_schema

STAGES = ["00-ingest", "01-dedup", "02-select"]
REASONS = ["kept", "too close", "not UTF-8", "not in the budget"]
FATES = {"near_dup": (1, 1), "quarantined": (0, 2), "not_in_budget": (2, 3), "kept": (2, 0)}  # stage and reason


def subset(folder, rows, kept, fates=None, weights=None):
    """A committed manifest.

    Args:
        folder: Where.
        rows: (id, content) of each row.
        kept: Rows in rank order.
        fates: Decision on others, by row, with the row that stands for it; by default they are not in the budget.
        weights: Of the kept rows.
    """
    n, fates = len(rows), fates or {}
    decisions = ["kept" if row in kept else fates.get(row, ("not_in_budget", None))[0] for row in range(n)]
    hashes = [content.encode().ljust(16, b".") for _, content in rows]
    audit = pa.table(
        {
            "sample_id": [name for name, _ in rows],
            "row": range(n),
            "content_hash": pa.array(hashes, pa.binary(16)),
            "decision": [DECISIONS[decision] for decision in decisions],
            "stage": [FATES[decision][0] for decision in decisions],
            "reason": [FATES[decision][1] for decision in decisions],
            "kept_row": pa.array([fates.get(row, (None, None))[1] for row in range(n)], pa.int64()),
            "score": pa.nulls(n, pa.float64()),
            "partition": pa.nulls(n, pa.int32()),
        },
        schema=AUDIT,
    )
    schema = select_schema([])
    first = n // 2
    given = {
        "sample_id": [rows[row][0] for row in kept],
        "row": kept,
        "source": [int(row >= first) for row in kept],
        "source_row": [row - first if row >= first else row for row in kept],
        "content_hash": [hashes[row] for row in kept],
        "rank": range(len(kept)),
        "weight": [1.0] * len(kept) if weights is None else weights,
        "reason": [0] * len(kept),
    }
    select = pa.table(
        [pa.array(given.get(field.name, [None] * len(kept)), field.type) for field in schema], schema=schema
    )
    halves = (("a", first), ("b", n - first))
    files = [{"path": name, "bytes": 1, "sha256": "a" * 64, "rows": size} for name, size in halves]
    body = {
        "dataset": {"fingerprint": "f" * 64, "rows": n, "schema": "s", "fields": {"text": "text"}, "sources": files},
        "recipe": {"name": "tiny"},
        "seed": 1,
        "stages": [{"name": name} for name in STAGES],
        "reasons": REASONS,
        "numeric": {},
        "libraries": {},
        "weight_semantics": "",
        "scores": {},
        "certificate": None,
        "schedule": None,
        "parent": None,
        "required_features": [],
    }
    commit(folder, select=select, audit=audit, body=body)
    return open_manifest(folder)


def universe(n, version=""):
    return [(f"id{row}", f"text{row}{version}") for row in range(n)]


def kept_keys(manifest):
    return {(row["sample_id"], row["content_hash"]) for row in manifest.select.to_pylist()}


def all_keys(manifest):
    return {(row["sample_id"], row["content_hash"]) for row in manifest.audit.to_pylist()}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A of 60 rows; B of 50 of them in another order, 5 with another content, and 10 new ones."""
    rng = np.random.default_rng(3)
    rows = universe(60)
    others = [rows[row] for row in rng.permutation(60)[:50]]
    others = [(name, f"{content}!") if place < 5 else (name, content) for place, (name, content) in enumerate(others)]
    others += [(f"new{row}", "new") for row in range(10)]
    kept_a, kept_b = rng.permutation(60)[:25].tolist(), rng.permutation(60)[:20].tolist()
    free = [row for row in range(60) if row not in kept_b]
    fates = {free[0]: ("quarantined", None)} | dict.fromkeys(free[1:12], ("near_dup", kept_b[0]))
    folder = tmp_path_factory.mktemp("pair")
    a = subset(folder / "a", rows, kept_a, weights=rng.random(25).astype(np.float32) + 0.5)
    return a, subset(folder / "b", others, kept_b, fates, rng.random(20).astype(np.float32) + 0.5)


def test_rows_are_matched_by_id_and_content(pair):
    a, b = pair
    found = match(a, b)
    assert found.rows == len(all_keys(a) & all_keys(b)) == 45
    assert found.changed == 5
    for row, there in enumerate(found.in_b.tolist()):
        mine = a.audit.slice(row, 1).to_pylist()[0]
        if there < 0:
            assert (mine["sample_id"], mine["content_hash"]) not in all_keys(b)
        else:
            theirs = b.audit.slice(there, 1).to_pylist()[0]
            assert (mine["sample_id"], mine["content_hash"]) == (theirs["sample_id"], theirs["content_hash"])
            assert found.in_a[there] == row
    assert np.count_nonzero(found.in_a >= 0) == 45
    assert found.turned.in_b is found.in_a


def test_overlap(pair):
    a, b = pair
    one, two = kept_keys(a), kept_keys(b)
    assert overlap(match(a, b)) == {
        "both": len(one & two),
        "only_a": len(one - two),
        "only_b": len(two - one),
        "jaccard": len(one & two) / len(one | two),
        "expected_jaccard": expected_jaccard(25, 20, 60, 60, 45),
    }
    assert len(one & two) > 0
    assert overlap(match(a, a))["jaccard"] == 1


@pytest.mark.parametrize("turned", [False, True])
def test_what_the_other_says_of_those_that_went(pair, turned):
    a, b = pair[::-1] if turned else pair
    there = {(row["sample_id"], row["content_hash"]): row for row in b.audit.to_pylist()}
    wanted, members = collections.Counter(), collections.defaultdict(list)
    for row in a.select.to_pylist():
        key = (row["sample_id"], row["content_hash"])
        if key in kept_keys(b):
            continue
        other = there.get(key)
        fate = (
            (None, "absent", "not in the dataset")
            if other is None
            else (STAGES[other["stage"]], list(DECISIONS)[other["decision"]], REASONS[other["reason"]])
        )
        wanted[fate] += 1
        stands = None if other is None or other["kept_row"] is None else b.audit["sample_id"][other["kept_row"]].as_py()
        members[fate].append({"sample_id": row["sample_id"], "row": row["row"], "stands_for_it": stands})
    found = lost(match(a, b), 2)
    assert {(item["stage"], item["decision"], item["reason"]): item["rows"] for item in found} == wanted
    for item in found:
        assert item["examples"] == members[item["stage"], item["decision"], item["reason"]][:2]
    stages = [STAGES.index(item["stage"]) if item["stage"] else 9 for item in found]
    assert stages == sorted(stages)
    assert stages[-1] == 9
    assert all(item["examples"] == [] for item in lost(match(a, b)))
    assert lost(match(a, a)) == []


def test_weights(pair):
    a, b = pair
    one, two = ({row["sample_id"]: row for row in manifest.select.to_pylist()} for manifest in (a, b))
    both = [name for name in one if name in two and one[name]["content_hash"] == two[name]["content_hash"]]
    changes = {name: abs(one[name]["weight"] - two[name]["weight"]) for name in both}
    found = weight_changes(match(a, b))
    assert found["rows"] == len(both)
    assert found["mean_change"] == pytest.approx(np.mean(list(changes.values())))
    assert found["max_change"] == max(changes.values()) == changes[found["sample_id"]]
    assert (found["a"], found["b"]) == tuple(side[found["sample_id"]]["weight"] for side in (one, two))


def test_without_a_common_row_there_are_no_weights(tmp_path):
    rows = universe(6)
    one, two = subset(tmp_path / "a", rows, [0, 1]), subset(tmp_path / "b", rows, [2])
    pair = match(one, two)
    assert weight_changes(pair) is None
    assert overlap(pair)["jaccard"] == 0
    assert source_files(one) == ["a", "a"]
    assert source_files(subset(tmp_path / "c", rows, [5, 0])) == ["b", "a"]


def test_two_empty_subsets_are_the_same(tmp_path):
    one = subset(tmp_path / "a", universe(3), [])
    assert overlap(match(one, one))["jaccard"] == 1
    assert lost(match(one, one)) == []


@pytest.mark.parametrize(
    ("rows", "hint"),
    [
        (universe(4, "!"), "4 ids are in both, with other contents"),
        ([("x", "text0"), ("y", "text1")], "by id and content;"),
    ],
)
def test_subsets_of_datasets_with_nothing_in_common_are_refused(tmp_path, rows, hint):
    one, two = subset(tmp_path / "a", universe(4), [0]), subset(tmp_path / "b", rows, [0])
    with pytest.raises(DatasetMismatchError, match=f"no row is in .*a.*4 rows.*{hint}"):
        match(one, two)


def test_shift():
    found = shift(["x", "x", "y", None], ["y", "z"])
    assert found["distance"] == pytest.approx((2 / 3 + 1 / 6 + 1 / 2) / 2)
    assert (found["unknown_a"], found["unknown_b"]) == (1, 0)
    assert found["groups"] == [
        {"name": "x", "a": 2, "b": 0},
        {"name": "z", "a": 0, "b": 1},
        {"name": "y", "a": 1, "b": 1},
    ]
    assert shift([1, 2], [2, 1])["distance"] == 0
    assert shift([1], [2])["distance"] == 1
    assert shift([None], [2])["distance"] is None


@pytest.mark.parametrize(("rows_a", "rows_b", "common", "a", "b"), [(300, 300, 300, 60, 90), (300, 200, 150, 100, 50)])
def test_the_expected_jaccard_is_that_of_random_draws(rows_a, rows_b, common, a, b):
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(2000):
        one = rng.permutation(rows_a)[:a]
        two = rng.permutation(rows_b)[:b]
        both = len(set(one[one < common].tolist()) & set(two[two < common].tolist()))
        seen.append(both / (a + b - both))
    assert expected_jaccard(a, b, rows_a, rows_b, common) == pytest.approx(np.mean(seen), rel=0.02)


def test_stability(tmp_path):
    rng = np.random.default_rng(1)
    rows = universe(40)
    draws = [rng.permutation(40)[:size].tolist() for size in (10, 15, 12)]
    manifests = [subset(tmp_path / str(place), rows, kept) for place, kept in enumerate(draws)]
    found = stability(manifests)
    sets = [set(draw) for draw in draws]
    for i, j in itertools.product(range(3), repeat=2):
        assert found["jaccard"][i][j] == len(sets[i] & sets[j]) / len(sets[i] | sets[j])
        assert found["expected_jaccard"][i][j] == (
            1 if i == j else expected_jaccard(len(sets[i]), len(sets[j]), 40, 40, 40)
        )
    pairs = [(0, 1), (0, 2), (1, 2)]
    assert found["mean_jaccard"] == pytest.approx(np.mean([found["jaccard"][i][j] for i, j in pairs]))
    assert found["mean_expected_jaccard"] == pytest.approx(np.mean([found["expected_jaccard"][i][j] for i, j in pairs]))
    times = collections.Counter(itertools.chain(*draws))
    assert found["kept_by"] == [sum(count == m for count in times.values()) for m in (1, 2, 3)]
    assert found["kept_by_all"] == len(set.intersection(*sets))
    assert found["kept_by_any"] == len(set.union(*sets))
