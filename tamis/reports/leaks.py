"""The rows of a run that leak: what each of them matches in the reference sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tamis.errors import RecipeError
from tamis.manifests.schema import DECISIONS
from tamis.pipelines.finished import finished_in, readable

if TYPE_CHECKING:
    from pathlib import Path

    from tamis.pipelines.finished import Finished, FinishedStage


def leaks(folder: Path) -> pa.Table:
    """List the matches that the dedup stages of the run in a folder found in their reference sets.

    Returns:
        As `matches_of`, of all stages.

    Raises:
        RecipeError: The run compared with no reference set.
        OutputError: The folder holds no run, or a working file is gone or damaged.
        DamagedManifestError: Its manifest is damaged or missing.
    """
    run = finished_in(folder)
    stages = comparing(run)
    if not stages:
        raise RecipeError(
            f"the run in {folder} compared with no reference set; name some and run again: "
            "{kind: dedup, against: [eval.parquet]}"
        )
    with readable():
        return pa.concat_tables([matches_of(run, stage) for stage in stages])


def comparing(run: Finished) -> list[FinishedStage]:
    """The dedup stages that have reference sets."""
    return [stage for stage in run.stages if stage.kind == "dedup" and stage.config.get("against")]


def matches_of(run: Finished, stage: FinishedStage) -> pa.Table:
    """List the matches that a dedup stage found in its reference sets.

    Returns:
        A match a row, those of a row together and the nearest first: `sample_id`, `row`, `decision` (what became of
        the row), `stage`, `reference` (the file), `reference_row`, `cosine`, `exact` (whether the content is equal),
        `matches` (how many rows of this file match; the nearest ten are listed).

    Raises:
        GoneError: The file that has them is not there any more.
        DamagedArtifactError: It is damaged.
    """
    inputs = run.needed(mark=(stage, "mark"))
    table, audit = inputs.table("mark").select(["row", "leaks"]), run.manifest.audit
    lists = table["leaks"].combine_chunks()
    match = lists.flatten()
    rows = pa.array(np.repeat(table["row"].to_numpy(), lists.value_lengths().to_numpy()), pa.int64())
    files = pa.array(list(inputs.one("mark").facts["against"]), pa.string())
    decisions = np.array(list(DECISIONS), object)[audit["decision"].take(rows).to_numpy()]
    return pa.table(
        {
            "sample_id": audit["sample_id"].take(rows),
            "row": rows,
            "decision": pa.array(decisions, pa.string()),
            "stage": pa.array([stage.label] * len(match), pa.string()),
            "reference": files.take(match.field("reference")),
            "reference_row": match.field("row"),
            **{name: match.field(name) for name in ("cosine", "exact", "matches")},
        }
    )


def one_each(matches: pa.Table) -> pa.Table:
    """The nearest match of each row, those of kept rows first, and `listed`, how many of the row's are listed."""
    _, first, listed = np.unique(matches["row"].to_numpy(), return_index=True, return_counts=True)
    kept = pc.equal(matches["decision"].take(first), "kept").to_numpy()
    order = np.argsort(~kept, kind="stable")
    return matches.take(first[order]).append_column("listed", pa.array(listed[order]))
