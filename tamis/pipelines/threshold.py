"""Choosing eps: the dedup stage's decision again, at another eps, from the pairs that it stored."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.errors import OutputError, RecipeError
from tamis.pipelines.node import Inputs
from tamis.pipelines.recipe import DedupConfig
from tamis.pipelines.run import COMMITTED, read_run
from tamis.pipelines.stages.dedup import near
from tamis.pipelines.state import KEPT
from tamis.pipelines.workings import MEND, readable, workings_in

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pyarrow as pa

    from tamis.pipelines.state import Rows

_STEPS = 10  # of eps, in a table from almost nothing to the floor


@dataclass(frozen=True, slots=True)
class StoredPairs:
    """A finished dedup stage with its pairs.

    Attributes:
        label: The stage's, such as `02-dedup`.
        config: Its part of the recipe.
        seed: [the recipe's seed, the stage's place].
        inputs: What its last node reads.
        rows: Rows that are left when exact duplicates are gone.
        exact_duplicates: How many were.
        command: That of the run, as far as it is known here.
        key: How `--set` names the stage.
    """

    label: str
    config: DedupConfig
    seed: tuple[int, int]
    inputs: Inputs
    rows: int
    exact_duplicates: int
    command: tuple[str, ...]
    key: str

    @property
    def largest(self) -> float:
        """The largest eps that the pairs are enough for."""
        return round(1.0 - self.config.floor, 12)

    def decide(self, eps: float) -> pa.Table:
        """What becomes of each row at this eps: the effect of the stage's own last node (`tamis.pipelines.state`).

        Raises:
            RecipeError: Pairs are not stored for this eps.
            OutputError: A file of the working folder is damaged or gone.
        """
        if not (0.0 < eps < 1.0 and 1.0 - eps >= self.config.floor - 1e-12):  # as the recipe has it
            lower = math.floor((1.0 - eps) * 1e4) / 1e4 if 0.0 < eps < 1.0 else 0.0
            raise RecipeError(
                f"eps {eps:g} was given; {self.label} stored pairs from its floor on, cosine {self.config.floor:g}, so "
                f"that eps may be above 0 and up to {self.largest:g}"
                + (f"; a lower floor computes the pairs again: {self.setting('floor', lower)}" if lower else "")
            )
        params = {"eps": eps, "which_to_keep": self.config.which_to_keep, "seed": list(self.seed)}
        with readable():
            table = near(params, self.inputs).table
        assert table is not None
        return table

    def setting(self, name: str, value: object) -> str:
        """The command that runs the recipe with another value of one of the stage's keys."""
        return shlex.join([*self.command, "--set", f"{self.key}.{name}={value}"])

    def grid(self) -> list[float]:
        """Values of eps from small to what the floor allows, the recipe's among them."""
        steps = {round(self.largest * step / _STEPS, 12) for step in range(1, _STEPS + 1)}
        return sorted({*steps, self.config.eps} - {0.0})

    def borderline(self, eps: float, count: int) -> list[dict[str, Any]]:
        """The pairs whose cosine is nearest to 1 - eps, by falling cosine.

        Returns:
            `cosine`, and for each of the two `rows`: `row`, `sample_id`, and `kept_row` and `kept_sample_id`, which
            stands for it at this eps: itself where it stays. Pairs of rows that lie where too many are alike are not
            among them: those are not stored.
        """
        with readable():
            first, second, cosine = self._pairs()
        nearest = np.lexsort((second, first, np.abs(cosine - (1.0 - eps))))[:count]
        nearest = nearest[np.lexsort((second[nearest], first[nearest], -cosine[nearest]))]
        decided, ids = self.decide(eps), self.inputs.table("index")["sample_id"]
        rows = decided["row"].to_numpy()

        def fate(row: int) -> dict[str, Any]:
            at = int(np.searchsorted(rows, row))
            kept = row if decided["decision"][at].as_py() == KEPT else decided["kept_row"][at].as_py()
            return {"row": row, "sample_id": ids[row].as_py(), "kept_row": kept, "kept_sample_id": ids[kept].as_py()}

        return [{"cosine": float(cosine[at]), "rows": [fate(int(first[at])), fate(int(second[at]))]} for at in nearest]

    def counts(self) -> dict[str, int]:
        """`pairs` that are stored, and `rows_without_stored_pairs`."""
        facts = [shard.facts for shard in self.inputs.all("pairs")]
        return {name: sum(fact[name] for fact in facts) for name in ("pairs", "rows_without_stored_pairs")}

    def _pairs(self) -> tuple[Rows, Rows, np.ndarray[Any, np.dtype[np.float64]]]:
        """The stored pairs that count: rows i < j of the dataset and their cosines."""
        found, apart = [], []
        for shard in self.inputs.all("pairs"):
            stored = self.inputs.open(shard)
            i, j, cosine = (stored[name].to_numpy() for name in ("i", "j", "cosine"))
            swept = np.isnan(cosine)
            apart.append(i[swept])
            found.append((i[~swept], j[~swept], cosine[~swept]))
        i, j, cosine = (np.concatenate(parts) for parts in zip(*found, strict=True))
        counts = ~(np.isin(i, np.concatenate(apart)) | np.isin(j, np.concatenate(apart)))
        return i[counts], j[counts], cosine[counts]


def stored_pairs(folder: Path, label: str | None = None) -> StoredPairs:
    """Find the pairs of a run's dedup stage.

    Args:
        folder: The run's.
        label: Which stage, such as `02-dedup`; not needed where only one has pairs.

    Raises:
        RecipeError: The run has no such stage, or one of exact duplicates only; or several, and none was named.
        OutputError: The folder holds no run, or the pairs are gone.
    """
    described = read_run(folder)
    planned = [stage for stage in described["stages"] if stage["kind"] == "dedup"]
    if not planned:
        raise RecipeError(f"the run in {folder} has no dedup stage: add {{kind: dedup}} after embed, and run again")
    try:
        configs = {stage["stage"]: DedupConfig.model_validate(stage["config"]) for stage in planned}
        with_pairs = [name for name, config in configs.items() if config.eps > 0]
        if not with_pairs:
            raise RecipeError(
                f"{', '.join(configs)} of {folder} has eps 0, exact duplicates only, and stored no pairs: run with an "
                "embed stage before it and, for example, --set dedup.eps=0.05"
            )
        wanted = with_pairs if label is None else [name for name in with_pairs if name == label]
        if len(wanted) != 1:
            given = "no --stage" if label is None else f"--stage {label}"
            raise RecipeError(f"{given} was given; the stages of {folder} with pairs are {', '.join(with_pairs)}")
        key = "dedup" if len(planned) == 1 else f"dedup[{list(configs).index(wanted[0])}]"
        return _opened(folder, described, wanted[0], configs[wanted[0]], key)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise OutputError(f"{folder / COMMITTED} is not as this Tamis writes it ({error!r}): run again") from error


def _opened(folder: Path, described: Mapping[str, Any], label: str, config: DedupConfig, key: str) -> StoredPairs:
    left = workings_in(folder, described)
    names = [stage["stage"] for stage in described["stages"]]
    before = described["stages"][: names.index(label) + 1]
    last = {stage["kind"]: stage["stage"] for stage in before}
    there = {stage.label: stage for stage in left.stages}
    gone = [last[kind] for kind in ("ingest", "embed", "dedup") if last[kind] not in there]
    if gone:
        raise OutputError(f"files of {', '.join(gone)} are gone from {left.work}; {MEND}")
    ingest, embed, stage = (there[last[kind]] for kind in ("ingest", "embed", "dedup"))
    # What the stage's last node reads, by role, as its `expand` has it.
    roles = {
        "index": ingest.of("index")[:1],
        "before": ingest.of("before"),
        "assigned": stage.of("gather"),
        "pairs": stage.of("pairs"),
        "embeddings": embed.of("block"),
    }
    command = ["tamis", "run", "RECIPE", "--out", str(folder)]
    command += ["--work", str(described["work"])] if described.get("work") else []
    command += ["--limit", str(described["limit"])] if described["limit"] else []
    return StoredPairs(
        label,
        config,
        (int(described["settings"]["seed"]), stage.number),
        Inputs(left.work, roles, {}),
        stage.of("gather")[0].rows,
        stage.of("exact")[0].facts["exact_duplicates"],
        tuple(command),
        key,
    )
