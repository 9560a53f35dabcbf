"""Schedule: difficulty groups by loss, and the window of groups that each epoch trains on (SeTa)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tamis.pipelines.node import Inputs, Output, Task
from tamis.pipelines.state import alive_rows, effect, values
from tamis.selectors.dynamic import anneals, kmeans_1d, seta_window

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tamis.pipelines.plan import Add, Context, Flow
    from tamis.pipelines.recipe import ScheduleConfig


def expand(config: ScheduleConfig, flow: Flow, context: Context, add: Add) -> Flow:  # noqa: ARG001
    """Add the one node: column `difficulty`, and the windows as facts."""
    params = config.model_dump(exclude={"kind", "method"})
    node = add(
        "schedule.seta",
        params,
        {"alive": [flow.alive], "loss": [flow.need("loss", "schedule", "a score stage")]},
    )
    columns = {**flow.columns, "difficulty": node}
    return dataclasses.replace(flow, alive=node, effects=(*flow.effects, node), columns=columns, schedule=node)


def seta(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Group the losses by exact one-dimensional k-means, easy to hard, and lay out the epochs' windows."""
    alive = alive_rows(inputs)
    difficulty = kmeans_1d(values(inputs, "loss", "loss", alive), params["num_group"])
    groups = int(difficulty.max()) + 1 if len(difficulty) else 1
    windows = [
        [0, groups]
        if anneals(epoch, params["epochs"], params["delta"])
        else list(seta_window(epoch, groups, params["window_scale"], params["rule"]))
        for epoch in range(params["epochs"])
    ]
    sizes = np.bincount(difficulty, minlength=groups)
    seen = sum(int(sizes[start:stop].sum()) for start, stop in windows) * (1 - params["prune_ratio"])
    facts = {
        "method": "seta",
        "groups": groups,
        "group_sizes": sizes.tolist(),
        "windows": windows,
        **params,
        "samples_seen": round(seen),
        "samples_of_full_epochs": len(alive) * params["epochs"],
    }
    return Output(effect(alive, difficulty=pa.array(difficulty, pa.int16())), facts)


TASKS = {"seta": Task(seta, version=2)}
