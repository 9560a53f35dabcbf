"""The rows of a run that leak: what each of them matches in the reference sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from tamis.errors import RecipeError
from tamis.manifests.reader import open_manifest
from tamis.manifests.schema import DECISIONS
from tamis.pipelines.node import Inputs
from tamis.pipelines.run import read_run, recorded

if TYPE_CHECKING:
    from pathlib import Path


def leaks(folder: Path) -> pa.Table:
    """List the matches that the dedup stages of a run found in their reference sets.

    Returns:
        A match a row, those of a row together and the nearest first: `sample_id`, `row`, `decision` (what became of
        the row), `stage`, `reference` (the file), `reference_row`, `cosine`, `exact` (whether the content is equal),
        `matches` (how many rows of this file match; the nearest ten are listed).

    Raises:
        RecipeError: The run compared with no reference set.
        OutputError: The folder holds no run.
        DamagedManifestError: Its manifest is damaged or missing.
        DataError: A working file is gone or damaged; the run makes it again.
    """
    described = read_run(folder)
    manifest = open_manifest(folder)
    store, artifacts = recorded(folder, described)
    found = []
    for stage in described["stages"]:
        for name in (name for name, task, _ in stage["nodes"] if task == "dedup.mark" and name in artifacts):
            marked = artifacts[name]
            table = Inputs(store.location, {"mark": (marked,)}, {}).table("mark").select(["row", "leaks"])
            lists = table["leaks"].combine_chunks()
            match, rows = lists.flatten(), np.repeat(table["row"].to_numpy(), lists.value_lengths().to_numpy())
            files = pa.array(list(marked.facts["against"]), pa.string())
            columns = {
                "stage": pa.array([stage["stage"]] * len(match), pa.string()),
                "reference": files.take(match.field("reference")),
                "reference_row": match.field("row"),
                **{name: match.field(name) for name in ("cosine", "exact", "matches")},
            }
            at = pa.array(rows, pa.int64())
            codes = manifest.audit["decision"].take(at).to_numpy()
            found.append(
                pa.table(
                    {
                        "sample_id": manifest.audit["sample_id"].take(at),
                        "row": at,
                        "decision": pa.array(np.array(list(DECISIONS), object)[codes], pa.string()),
                        **columns,
                    }
                )
            )
    if not found:
        raise RecipeError(
            f"the run in {folder} compared with no reference set; name some and run again: "
            "{kind: dedup, against: [eval.parquet]}"
        )
    return pa.concat_tables(found)
