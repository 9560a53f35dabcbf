"""Choosing eps: the dedup stage's decision again, at another eps, from the pairs that it stored."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.errors import RecipeError
from tamis.pipelines.finished import Finished, FinishedStage, finished_in, readable
from tamis.pipelines.stages.dedup import Compared, decide, read_compared
from tamis.pipelines.state import KEPT, NEAR_DUP

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pyarrow as pa

    from tamis.pipelines.node import Inputs

Pair = tuple[int, int, float]
"""Two rows of the dataset, the lower one first, and their cosine."""

_STEPS = 10  # of eps, in a table from almost nothing to the floor


@dataclass(frozen=True, slots=True, eq=False)
class StoredPairs:
    """A finished dedup stage with its pairs.

    Attributes:
        label: The stage's, such as `02-dedup`.
        config: Its part of the recipe.
        inputs: What its last node reads.
        compared: The same, read.
        exact_duplicates: How many rows had gone before.
        command: That of the run, as far as it is known here.
        key: How `--set` names the stage.
    """

    label: str
    config: Mapping[str, Any]
    inputs: Inputs
    compared: Compared
    exact_duplicates: int
    command: tuple[str, ...]
    key: str

    @property
    def rows(self) -> int:
        """Rows that are left when exact duplicates are gone."""
        return len(self.compared.alive)

    @property
    def largest(self) -> float:
        """The largest eps that the pairs are enough for."""
        return float(round(1.0 - self.config["floor"], 12))

    def check(self, eps: float) -> None:
        """Refuse an eps for which no pairs are stored.

        Raises:
            RecipeError: It is not in (0, `largest`].
        """
        floor = self.config["floor"]
        if not (0.0 < eps < 1.0 and 1.0 - eps >= floor - 1e-12):  # as the recipe has it
            lower = math.floor((1.0 - eps) * 1e4) / 1e4 if 0.0 < eps < 1.0 else 0.0
            raise RecipeError(
                f"eps {eps:g} was given; {self.label} stored pairs from its floor on, cosine {floor:g}, so that eps "
                f"may be above 0 and up to {self.largest:g}"
                + (f"; a lower floor computes the pairs again: {self.setting('floor', lower)}" if lower else "")
            )

    def decide(self, eps: float) -> pa.Table:
        """What becomes of each row at this eps: the effect of the stage's own last node (`tamis.pipelines.state`).

        Raises:
            RecipeError: As `check`.
            OutputError: A file of the working folder is damaged.
        """
        self.check(eps)
        with readable():
            return decide(self.compared, eps, self.inputs)

    def removed(self, eps: float, *, again: bool = True) -> int:
        """How many near duplicates there are at an eps from 0 on; without `again`, of rows whose pairs are stored.

        Raises:
            OutputError: A file of the working folder is damaged.
        """
        with readable():
            decided = decide(self.compared, eps, self.inputs, again=again)
        return int(np.count_nonzero(decided["decision"].to_numpy() == NEAR_DUP))

    def setting(self, name: str, value: object) -> str:
        """The command that runs the recipe with another value of one of the stage's keys."""
        return shlex.join([*self.command, "--set", f"{self.key}.{name}={value}"])

    def grid(self) -> list[float]:
        """Values of eps from small to what the floor allows, the recipe's among them."""
        steps = {round(self.largest * step / _STEPS, 12) for step in range(1, _STEPS + 1)}
        return sorted({*steps, self.config["eps"]} - {0.0})

    def counts(self) -> dict[str, int]:
        """`pairs` that are stored, and `rows_without_stored_pairs`."""
        facts = [shard.facts for shard in self.inputs.all("pairs")]
        return {name: sum(fact[name] for fact in facts) for name in ("pairs", "rows_without_stored_pairs")}

    def nearest(self, eps: float, count: int, close: bool | None = None) -> list[Pair]:
        """The pairs whose cosine is nearest to 1 - eps, the nearest first, ties to the lowest rows.

        Pairs of rows that lie where too many are alike are not among them: those are not stored.

        Args:
            eps: Any.
            count: The most of them.
            close: Only those from 1 - eps on; or, where false, only those below it.
        """
        i, j, cosine = self.compared.pairs
        apart = np.zeros(self.rows, np.bool_)
        for rows in self.compared.whole:
            apart[rows] = True
        counts = ~(apart[i] | apart[j])
        if close is not None:
            counts &= (cosine >= 1.0 - eps) == close
        among = np.flatnonzero(counts)
        far = np.abs(cosine[among] - (1.0 - eps))
        if len(among) > count > 0:  # sorting all takes long
            first = far <= np.partition(far, count - 1)[count - 1]
            among, far = among[first], far[first]
        chosen = among[np.lexsort((j[among], i[among], far))][:count]
        alive = self.compared.alive
        return [(int(alive[i[at]]), int(alive[j[at]]), float(cosine[at])) for at in chosen]

    def borderline(self, eps: float, count: int) -> list[dict[str, Any]]:
        """The pairs `nearest` to 1 - eps, by falling cosine.

        Returns:
            `cosine`, and for each of the two `rows`: `row`, `sample_id`, and `kept_row` and `kept_sample_id`, which
            stands for it at this eps: itself where it stays.
        """
        decided = self.decide(eps)
        rows = decided["row"].to_numpy()
        with readable():
            ids = self.inputs.table("index")["sample_id"]

        def fate(row: int) -> dict[str, Any]:
            at = int(np.searchsorted(rows, row))
            kept = row if decided["decision"][at].as_py() == KEPT else decided["kept_row"][at].as_py()
            return {"row": row, "sample_id": ids[row].as_py(), "kept_row": kept, "kept_sample_id": ids[kept].as_py()}

        found = sorted(self.nearest(eps, count), key=lambda pair: (-pair[2], pair))
        return [{"cosine": cosine, "rows": [fate(i), fate(j)]} for i, j, cosine in found]


def stored_pairs(folder: Path, label: str | None = None) -> StoredPairs:
    """Find the pairs of a dedup stage of the run in a folder.

    Args:
        folder: The run's.
        label: Which stage, such as `02-dedup`; not needed where only one has pairs.

    Raises:
        RecipeError: The run has no such stage, or one of exact duplicates only; or several, and none was named.
        OutputError: The folder holds no run, or the pairs are gone or damaged.
        DamagedManifestError: Its manifest is damaged or missing.
    """
    run = finished_in(folder)
    stages = [stage for stage in run.stages if stage.kind == "dedup"]
    if not stages:
        raise RecipeError(f"the run in {folder} has no dedup stage: add {{kind: dedup}} after embed, and run again")
    with_pairs = {stage.label: stage for stage in stages if stage.config["eps"] > 0}
    if not with_pairs:
        raise RecipeError(
            f"{', '.join(stage.label for stage in stages)} of {folder} has eps 0, exact duplicates only, and stored no "
            "pairs: run with an embed stage before it and, for example, --set dedup.eps=0.05"
        )
    wanted = list(with_pairs) if label is None else [name for name in with_pairs if name == label]
    if len(wanted) != 1:
        given = "no --stage" if label is None else f"--stage {label}"
        raise RecipeError(f"{given} was given; the stages of {folder} with pairs are {', '.join(with_pairs)}")
    return pairs_of(run, with_pairs[wanted[0]])


def pairs_of(run: Finished, stage: FinishedStage) -> StoredPairs:
    """The pairs of a dedup stage with eps > 0.

    Raises:
        GoneError: Files that its last node reads are not there any more.
        OutputError: One is damaged.
    """
    ingest, embed = run.stages[0], run.last("embed", before=stage)
    assert embed is not None  # there is no plan without
    # What the stage's last node reads, by role, as its `expand` has it.
    inputs = run.needed(
        index=(ingest, "index"), assigned=(stage, "gather"), pairs=(stage, "pairs"), embeddings=(embed, "block"),
        exact=(stage, "exact"),
    )  # fmt: skip
    # A dataset that grows has a second index, of the files that there were then.
    roles = {**inputs.artifacts, "index": inputs.all("index")[:1], "before": ingest.of("before")}
    inputs = run.inputs(**roles)
    params = {"which_to_keep": stage.config["which_to_keep"], "seed": [run.seed, stage.number]}
    with readable():
        compared = read_compared(params, inputs)
    labels = [item.label for item in run.stages if item.kind == "dedup"]
    limit = run.manifest.record["dataset"].get("limit")
    command = ["tamis", "run", "RECIPE", "--out", str(run.folder)]
    command += ["--work", run.work] if run.work else []
    command += ["--limit", str(limit)] if limit else []
    return StoredPairs(
        stage.label,
        stage.config,
        inputs,
        compared,
        inputs.one("exact").facts["exact_duplicates"],
        tuple(command),
        "dedup" if len(labels) == 1 else f"dedup[{labels.index(stage.label)}]",
    )
