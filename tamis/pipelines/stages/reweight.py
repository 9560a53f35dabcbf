"""Reweight: a weight for every kept row from its loss (arXiv 2502.06733)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tamis.pipelines.node import Inputs, Output, Task
from tamis.pipelines.state import alive_rows, effect, values
from tamis.training.weights import reweight

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tamis.pipelines.plan import Add, Context, Flow
    from tamis.pipelines.recipe import ReweightConfig


def expand(config: ReweightConfig, flow: Flow, context: Context, add: Add) -> Flow:  # noqa: ARG001
    """Add the one node: column `weight`."""
    params = config.model_dump(exclude={"kind"})
    node = add(
        "reweight.loss",
        params,
        {"alive": [flow.alive], "loss": [flow.need("loss", "reweight", "a score stage")]},
    )
    return dataclasses.replace(
        flow, alive=node, effects=(*flow.effects, node), columns={**flow.columns, "weight": node}
    )


def loss(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Weigh the kept rows as one batch, scaled so that the mean weight is 1."""
    alive = alive_rows(inputs)
    share = reweight(values(inputs, "loss", "loss", alive), params["strategy"], params["r"], clip=params["clip"])
    # A small r can underflow; a weight of 0 would be a silent loss of the row.
    weight = np.maximum(np.asarray(share) * len(alive), np.finfo(np.float32).tiny).astype(np.float32)
    facts = {
        "strategy": params["strategy"],
        "largest": float(weight.max()) if len(weight) else 1.0,
        "smallest": float(weight.min()) if len(weight) else 1.0,
    }
    return Output(effect(alive, weight=pa.array(weight, pa.float32())), facts)


TASKS = {"loss": Task(loss)}
