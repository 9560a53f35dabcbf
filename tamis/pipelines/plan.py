"""From a recipe and its sources to the nodes of the graph, every key known before anything runs."""

from __future__ import annotations

import importlib
import itertools
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from tamis.errors import DatasetMismatchError, OutputError, RecipeError
from tamis.pipelines.node import Artifact, Json, Node, load_records, make_node
from tamis.pipelines.numeric import NATIVE
from tamis.pipelines.stages import DROPPING, KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from tamis.pipelines.recipe import DatasetConfig, Recipe
    from tamis.pipelines.sources import SourceFile
    from tamis.pipelines.store import Store


class Add(Protocol):
    """Adds a node to the plan: what a stage's `expand` is given."""

    def __call__(
        self,
        task: str,
        params: Mapping[str, Json],
        inputs: Mapping[str, Iterable[Node]],
        *,
        part: int | None = None,
        hints: Mapping[str, Json] | None = None,
    ) -> Node:
        """Make the node, keep it, and return it."""
        ...


@dataclass(frozen=True, slots=True)
class Encoder:
    """How rows are embedded that are not the dataset's: what an `embed.block` task is given beside the rows."""

    params: Mapping[str, Json]
    inputs: Mapping[str, list[Node]]
    hints: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class Flow:
    """Which node made what a stage can read.

    Attributes:
        rows: Rows that count.
        dataset_rows: Rows of the dataset; more than `rows` where the run is limited.
        blocks: The ingested blocks, in dataset order.
        index: The table of all rows: ids, hashes, labels.
        alive: The effect whose rows with decision 0 are still in.
        effects: All effects so far: the ledger.
        dataset: The recipe's dataset section.
        embeddings: The embedding blocks, aligned with `blocks`; empty before an embed stage.
        encoder: What made the embeddings; none where they are of the dataset's rows alone, from a file.
        columns: Column name -> the effect that has it.
        centroids: The centroids of the last cluster stage.
        schedule: The last schedule stage's effect, for its facts.
        selection: The last select stage's effect, for its certificate; none where rows were dropped after it.
        before: The rows that the manifest which is continued has kept; none where none is.
        fitting: The blocks that encoders are fitted on, and their index: all, or those of the manifest that is
            continued, so that what was embedded then stays as it is.
    """

    rows: int
    dataset_rows: int
    blocks: tuple[Node, ...]
    index: Node
    alive: Node
    effects: tuple[Node, ...]
    dataset: DatasetConfig
    embeddings: tuple[Node, ...] = ()
    encoder: Encoder | None = None
    columns: Mapping[str, Node] = field(default_factory=dict)
    centroids: Node | None = None
    schedule: Node | None = None
    selection: Node | None = None
    before: Node | None = None
    fitting: tuple[tuple[Node, ...], Node] | None = None

    def with_before(self, inputs: Mapping[str, Iterable[Node]]) -> dict[str, Iterable[Node]]:
        """A node's inputs, and the rows kept before if there are any: no stage drops those."""
        return {**inputs, **({} if self.before is None else {"before": [self.before]})}

    def runs(self, nodes: Sequence[Node], rows: int) -> Iterator[tuple[list[Node], int, int]]:
        """Consecutive nodes, one a block, of about so many rows together, and the rows that they span."""
        sizes = [block.params["stop"] - block.params["start"] for block in self.blocks]
        starts = list(itertools.accumulate(sizes, initial=0))
        count = max(1, rows // max(sizes))
        for first in range(0, len(nodes), count):
            some = list(nodes[first : first + count])
            yield some, starts[first], starts[first + len(some)]

    def need_embeddings(self, stage: str) -> tuple[Node, ...]:
        """Return the embedding blocks, or say which stage is missing."""
        if not self.embeddings:
            raise RecipeError(f"{stage} needs embeddings; put an embed stage before it")
        return self.embeddings

    def need(self, column: str, stage: str, remedy: str) -> Node:
        """Return the effect with a column, or say which stage would make it."""
        if column not in self.columns:
            raise RecipeError(f"{stage} needs {column}; put {remedy} before it")
        return self.columns[column]

    def before_dropping(self, kind: str) -> Flow:
        """What still holds when rows may go: no certificate, and neither schedule nor weights may be there yet."""
        last = "schedule" if self.schedule is not None else "reweight" if "weight" in self.columns else None
        if last is not None:
            raise RecipeError(f"{kind} drops rows after {last}, which is about the rows that are left; put {last} last")
        return replace(self, selection=None)

    def need_label(self, stage: str) -> None:
        """Refuse a recipe whose dataset names no label."""
        if self.dataset.label is None:
            raise RecipeError(f"{stage} needs labels; name the column: dataset: {{label: COLUMN}}")


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage of the plan: `01-embed`, with its part of the recipe."""

    label: str
    kind: str
    config: Mapping[str, Json]
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole graph.

    Attributes:
        recipe: What was asked.
        sources: The files, hashed.
        data: Where they lie.
        rows: Rows that count (all, or the first `limit`).
        limit: The row limit, if one was given.
        stages: In order, ingest first and commit last.
        nodes: Name -> node, in an order in which inputs come first.
        target: The node that commits the manifest.
    """

    recipe: Recipe
    sources: tuple[SourceFile, ...]
    data: str
    rows: int
    limit: int | None
    stages: tuple[PlannedStage, ...]
    nodes: Mapping[str, Node]
    target: Node


@dataclass(frozen=True, slots=True)
class Context:
    """What `expand` may know beside its config and the flow.

    Attributes:
        seed: [the recipe's seed, the stage's place]: the root of the stage's own random stream.
        folder: Where relative paths begin.
        max_bad_fraction: Share of rows that may be quarantined.
        block_rows: Rows in a block.
        threads: Threads that a task may use while no other can run.
    """

    seed: tuple[int, int]
    folder: Path
    max_bad_fraction: float
    block_rows: int
    threads: int = 1


def make_plan(
    recipe: Recipe,
    sources: tuple[SourceFile, ...],
    folder: Path,
    out: Path,
    data: str,
    limit: int | None = None,
    threads: int = 1,
) -> Plan:
    """Expand every stage of a recipe into nodes.

    Args:
        recipe: The recipe.
        sources: Its files, scanned.
        folder: Where the recipe's relative paths begin.
        out: The run's folder, for the commit.
        data: Where the sources lie, for people and for later verbs.
        limit: Use only the first `limit` rows.
        threads: Threads that a task may use while no other can run; no result depends on it.

    Raises:
        RecipeError: If a stage lacks what an earlier one would have made.
        DataError: If the sources have no rows.
    """
    nodes: dict[str, Node] = {}
    stages: list[PlannedStage] = []
    rows = sum(source.rows for source in sources)
    rows = rows if limit is None else min(rows, limit)

    def stage(kind: str, config: Mapping[str, Json], expand: Callable[[Add], Any]) -> Any:
        label = f"{len(stages):02d}-{kind}"
        names: list[str] = []

        def add(
            task: str,
            params: Mapping[str, Json],
            inputs: Mapping[str, Iterable[Node]],
            *,
            part: int | None = None,
            hints: Mapping[str, Json] | None = None,
        ) -> Node:
            name = f"{label}/{task.partition('.')[2]}" + (f"/{part:05d}" if part is not None else "")
            policy = NATIVE if kind == "commit" else recipe.numeric  # a commit computes nothing
            node = make_node(name, len(stages), task, params, inputs, hints, numeric=policy)
            nodes[name] = node
            names.append(name)
            return node

        result = expand(add)
        stages.append(PlannedStage(label, kind, config, tuple(names)))
        return result

    def module(kind: str) -> Any:
        return importlib.import_module(f"tamis.pipelines.stages.{KINDS.get(kind, kind)}")

    parent = parent_of(recipe, sources, folder, out)
    flow: Flow = stage("ingest", {}, partial(module("ingest").expand, recipe, sources, rows, parent))
    for config in recipe.stages:
        if config.kind in DROPPING:
            flow = flow.before_dropping(config.kind)
        context = Context((recipe.seed, len(stages)), folder, recipe.max_bad_fraction, recipe.block_rows, threads)
        dumped = config.model_dump(by_alias=True, mode="json")
        flow = stage(config.kind, dumped, partial(module(config.kind).expand, config, flow, context))
    target = stage(
        "commit",
        {},
        partial(module("commit").expand, recipe, sources, flow, stages, limit, parent, out, nodes),
    )
    return Plan(recipe, sources, data, rows, limit, tuple(stages), nodes, target)


@dataclass(frozen=True, slots=True)
class Parent:
    """The manifest that a run continues.

    Attributes:
        folder: Where it is.
        version: Its version there.
        subset_id: Its identity.
        rows: Rows of its dataset that counted.
        sources: sha256 of its dataset's files, in order.
    """

    folder: Path
    version: int
    subset_id: str
    rows: int
    sources: tuple[str, ...]


def parent_of(recipe: Recipe, sources: tuple[SourceFile, ...], folder: Path, out: Path) -> Parent | None:
    """Open the manifest that the recipe continues, if it does.

    Raises:
        RecipeError: There is none, it does not say which version of the run's own, or the columns are others.
        DatasetMismatchError: The dataset lacks files that the manifest was made of.
        DamagedManifestError: It is damaged.
    """
    given = recipe.continue_from
    if given is None:
        return None
    from tamis.manifests.reader import locate, open_manifest

    place, version = locate(folder / given)
    if version is None and place.resolve() == (out / "manifest").resolve():
        raise RecipeError(
            f"select.continue_from is {given}, where this run commits its own: name the version to go on from, such as "
            f"{place / 'v000001.json'}"
        )
    try:
        manifest = open_manifest(place, version)
    except OutputError as error:
        raise RecipeError(f"select.continue_from: {error}") from error
    dataset = manifest.record["dataset"]
    if dataset["fields"] != recipe.dataset.fields:
        raise RecipeError(
            f"select.continue_from: that manifest was made with the columns {dataset['fields']}, the recipe names "
            f"{recipe.dataset.fields}; the two must be equal"
        )
    here = {source.sha256 for source in sources}
    gone = [source["path"] for source in dataset["sources"] if source["sha256"] not in here]
    if gone:
        raise DatasetMismatchError(
            f"select.continue_from: the dataset lacks, or has changed, {len(gone)} of the files that manifest was made "
            f"of: {', '.join(gone[:10])}; add files beside the old ones, or select anew"
        )
    digests = tuple(source["sha256"] for source in dataset["sources"])
    return Parent(place, manifest.version, manifest.subset_id, dataset["rows"], digests)


def finished(plan: Plan, store: Store, home: Store) -> dict[str, Artifact]:
    """Return the records of the nodes that need not run, by node name; the commit's is in `home`, the run's own."""
    others = [node.reference for node in plan.nodes.values() if node is not plan.target]
    return {**load_records(store, others), **load_records(home, [plan.target.reference])}


def pending(plan: Plan, done: Mapping[str, Artifact]) -> list[Node]:
    """Return the nodes that must run, inputs first: those without a record that the target needs."""
    needed: set[str] = set()
    stack = [plan.target.name]
    while stack:
        name = stack.pop()
        if name in needed or name in done:
            continue
        needed.add(name)
        stack.extend(item for group in plan.nodes[name].inputs.values() for item, _, _ in group)
    return [node for name, node in plan.nodes.items() if name in needed]
