"""A finished run: what it committed, and what its stages left in the store, for those who look at it afterwards."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.errors import OutputError
from tamis.manifests.canonical import digest
from tamis.manifests.reader import open_manifest
from tamis.pipelines.node import DamagedArtifactError, Inputs
from tamis.pipelines.run import read_run, read_run_of, recorded
from tamis.pipelines.state import usable_vectors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import numpy.typing as npt
    import pyarrow as pa

    from tamis.manifests.reader import Manifest
    from tamis.pipelines.node import Artifact, Reference
    from tamis.pipelines.state import Rows

_MEND = "`tamis run` into a new folder, or with another value for that stage, makes again what it needs"


class GoneError(OutputError):
    """Files of a run's working folder are gone: they are no part of its manifest, and may be removed."""


@dataclass(frozen=True, slots=True)
class FinishedStage:
    """A stage of a finished run.

    Attributes:
        number: Its place in the run, from 0: part of its random stream's seed.
        label: Such as `02-dedup`.
        kind: Of the recipe's stage; `ingest` and `commit` are in no recipe.
        config: Its part of the recipe, as the manifest has it.
        nodes: In plan order.
        made: What they made, by their names, as far as the store still has it.
    """

    number: int
    label: str
    kind: str
    config: Mapping[str, Any]
    nodes: tuple[Reference, ...]
    made: Mapping[str, Artifact]

    def of(self, task: str) -> tuple[Artifact, ...]:
        """What the nodes of one task made, in plan order; empty unless all of it is there."""
        names = [name for name, kind, _ in self.nodes if kind == f"{self.kind}.{task}"]
        found = tuple(self.made[name] for name in names if name in self.made)
        return found if len(found) == len(names) else ()


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """A manifest, and the stages of the run that committed it.

    Attributes:
        folder: The run's.
        manifest: What it committed, verified.
        stages: In order. Where another run was finished in the folder since, those alone that both have: the keys of
            their nodes are the manifest's.
        whole: Whether these are all.
        store: Location of what they made.
        work: Where that is, as `tamis run` was told; None for its default.
    """

    folder: Path
    manifest: Manifest
    stages: tuple[FinishedStage, ...]
    whole: bool
    store: str
    work: str | None

    @property
    def seed(self) -> int:
        """The recipe's."""
        return int(self.manifest.record["seed"])

    @property
    def kept(self) -> Rows:
        """The rows of the subset, int64[k], ascending."""
        rows: Rows = np.sort(self.manifest.select["row"].to_numpy())
        return rows

    @property
    def index(self) -> pa.Table | None:
        """The table of all rows: ids, sources, labels."""
        return self.table(self.last("ingest"), "index")

    def last(self, kind: str, before: FinishedStage | None = None, **config: Any) -> FinishedStage | None:
        """The last stage of a kind whose config has these values; the last before another stage, if one is given."""
        found = (
            stage
            for stage in reversed(self.stages)
            if stage.kind == kind
            and (before is None or stage.number < before.number)
            and all(stage.config.get(name) == value for name, value in config.items())
        )
        return next(found, None)

    def inputs(self, **roles: tuple[Artifact, ...]) -> Inputs:
        """The files of these roles, for the functions that tasks read with."""
        return Inputs(self.store, roles, {})

    def needed(self, **roles: tuple[FinishedStage, str]) -> Inputs:
        """The files that tasks of stages made, by role.

        Raises:
            GoneError: Some are not there any more.
        """
        found = {role: stage.of(task) for role, (stage, task) in roles.items()}
        gone = {stage.label for role, (stage, _) in roles.items() if not found[role]}
        if gone:
            raise GoneError(f"files of {', '.join(sorted(gone))} are gone from {self.store}; {_MEND}")
        return self.inputs(**found)

    def open(self, artifact: Artifact) -> pa.Table:
        """Open a node's file.

        Raises:
            DamagedArtifactError: If the file is gone or its bytes differ from the record.
        """
        return self.inputs().open(artifact)

    def table(self, stage: FinishedStage | None, *tasks: str) -> pa.Table | None:
        """The table of the first node of one of these tasks in a stage; None where there is none any more."""
        made = [found for task in tasks if stage is not None and (found := stage.of(task))]
        return self.open(made[0][0]) if made else None

    def vectors(self, stage: FinishedStage) -> Iterator[tuple[Rows, npt.NDArray[np.float32]]]:
        """Block by block, the rows that an embed stage has usable vectors of, int64[m] ascending, and float32[m, d]."""
        start = 0
        for block in stage.of("block"):
            rows, matrix = usable_vectors(self.inputs(), block)
            if len(rows):
                yield rows + start, matrix
            start += block.facts["block_rows"]


def finished_in(folder: Path) -> Finished:
    """The run that was finished last in a folder.

    Raises:
        OutputError: The folder holds no finished run, or its manifest is another one's, or its store cannot be read.
        DamagedManifestError: Its manifest is damaged or missing.
    """
    described = read_run(folder)
    run = _finished(folder, described, open_manifest(folder))
    if not run.whole:
        raise OutputError(
            f"{folder} holds a manifest of another run than the last that was finished there: run the recipe again; "
            "what is done is not done again"
        )
    return run


def finished_of(manifest: Manifest) -> Finished:
    """What is left of the run that committed a manifest.

    Raises:
        OutputError: The manifest lies in no run's folder, or the run's store cannot be read.
    """
    return _finished(*read_run_of(manifest), manifest)


@contextmanager
def readable() -> Iterator[None]:
    """Outside of a run nothing mends a damaged working file: say what does.

    Raises:
        OutputError: For a DamagedArtifactError in the body.
    """
    try:
        yield
    except DamagedArtifactError as error:
        raise OutputError(f"{error}; {_MEND}") from error


def _finished(folder: Path, described: Mapping[str, Any], manifest: Manifest) -> Finished:
    own = [stage.get("key") for stage in manifest.stages]
    keys = [digest([key for _, _, key in stage["nodes"]]) for stage in described["stages"][:-1]]
    whole = keys == own  # the commit's own key is in no manifest: where all before it is of this run, so is the commit
    same = [whole or (number < len(own) and key == own[number]) for number, key in enumerate(keys)]
    configs = [{}, *manifest.record["recipe"]["stages"]]  # of ingest there is none
    store, artifacts = recorded(folder, described)
    stages = [
        FinishedStage(
            number,
            stage["stage"],
            stage["kind"],
            config,
            tuple((name, task, key) for name, task, key in stage["nodes"]),
            {name: artifacts[name] for name, _, _ in stage["nodes"] if name in artifacts},
        )
        for number, (stage, config, mine) in enumerate(
            zip(described["stages"], [*configs, {}], [*same, whole], strict=False)
        )
        if mine
    ]
    return Finished(folder, manifest, tuple(stages), whole, store.location, described.get("work"))
