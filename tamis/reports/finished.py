"""A finished run as the report reads it: its manifest, and what its stages left in the store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.errors import OutputError
from tamis.manifests.canonical import digest
from tamis.manifests.reader import open_manifest
from tamis.pipelines.node import Inputs
from tamis.pipelines.run import read_run, recorded

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pyarrow as pa

    from tamis.manifests.reader import Manifest
    from tamis.pipelines.node import Artifact
    from tamis.pipelines.state import Rows


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """A finished run.

    Attributes:
        folder: The run's.
        name: The recipe's.
        manifest: What it committed, verified.
        stages: In order: `stage` (the label), `kind`, `config` (as the manifest has it), `nodes`.
        location: Where its store is.
        artifacts: What its nodes made, by name, as far as the store still has it.
    """

    folder: Path
    name: str
    manifest: Manifest
    stages: tuple[dict[str, Any], ...]
    location: str
    artifacts: Mapping[str, Artifact]

    @classmethod
    def read(cls, folder: Path) -> Finished:
        """Read what there is of a run.

        Raises:
            OutputError: The folder holds no finished run, or not the manifest's, or its store cannot be read.
            DamagedManifestError: Its manifest is damaged or missing.
        """
        described = read_run(folder)
        manifest = open_manifest(folder)
        keys = [digest([key for _, _, key in stage["nodes"]]) for stage in described["stages"][:-1]]
        if keys != [stage["key"] for stage in manifest.record["stages"]]:
            raise OutputError(
                f"{folder} holds a manifest of another run than the last that was finished there: run the recipe "
                "again; what is done is not done again"
            )
        configs = [{}, *manifest.record["recipe"]["stages"], {}]  # of ingest and commit there are none
        stages = [{**stage, "config": config} for stage, config in zip(described["stages"], configs, strict=True)]
        store, artifacts = recorded(folder, described)
        return cls(folder, described["name"], manifest, tuple(stages), store.location, artifacts)

    def last(self, kind: str, before: Mapping[str, Any] | None = None, **config: Any) -> dict[str, Any] | None:
        """The last stage of a kind whose config has these values; the last before another stage, if one is given."""
        end = len(self.stages) if before is None else self.position(before)
        found = (
            stage
            for stage in reversed(self.stages[:end])
            if stage["kind"] == kind and all(stage["config"].get(name) == value for name, value in config.items())
        )
        return next(found, None)

    def position(self, stage: Mapping[str, Any]) -> int:
        """A stage's place in the run: part of its random stream's seed."""
        return [item["stage"] for item in self.stages].index(stage["stage"])

    def made(self, stage: Mapping[str, Any] | None, task: str) -> tuple[Artifact, ...]:
        """What a stage's nodes of one task made, in plan order; empty unless all of it is there."""
        names = [name for name, kind, _ in stage["nodes"] if kind == task] if stage is not None else []
        found = tuple(self.artifacts[name] for name in names if name in self.artifacts)
        return found if len(found) == len(names) else ()

    def inputs(self, **roles: tuple[Artifact, ...]) -> Inputs:
        """The files of these roles, for the functions that tasks read with."""
        return Inputs(self.location, roles, {})

    def table(self, stage: Mapping[str, Any] | None, *tasks: str) -> pa.Table | None:
        """The table of the only node of one of these tasks in a stage; None where there is none any more."""
        for task in tasks:
            if found := self.made(stage, task):
                return self.inputs().open(found[0])
        return None

    @property
    def index(self) -> pa.Table | None:
        """The table of all rows: ids, sources, labels."""
        return self.table(self.stages[0], "ingest.index")

    @property
    def kept(self) -> Rows:
        """The rows of the subset, int64[k], ascending."""
        rows: Rows = np.sort(self.manifest.select["row"].to_numpy())
        return rows

    def generator(self, *stream: int) -> np.random.Generator:
        """A generator of the report's own, from the recipe's seed."""
        return np.random.default_rng([self.manifest.record["seed"], 0x7E90, *stream])


def rounded(values: Any, digits: int = 6) -> Any:
    """A number, or an array as a list, to so many significant digits: more would be the machine's, not the data's."""
    if isinstance(values, (int, float)):
        return float(f"{values:.{digits}g}")
    return [float(f"{value:.{digits}g}") for value in np.asarray(values).tolist()]
