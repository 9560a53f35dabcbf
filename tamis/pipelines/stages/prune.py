"""Prune: by concept complexity with exact quotas (DBP), by loss, or by labels that are likely wrong."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.errors import RecipeError
from tamis.pipelines.node import Inputs, Output, Task
from tamis.pipelines.state import KEPT, PRUNED, Rows, alive_rows, effect, generator, kept_before, matrix_of, values
from tamis.selectors.density import concept_complexity, density_prune, density_quotas, inter_distance
from tamis.selectors.loss import drop_by_loss
from tamis.selectors.selection import resolve_budget

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tamis.pipelines.plan import Add, Context, Flow
    from tamis.pipelines.recipe import PruneConfig


def expand(config: PruneConfig, flow: Flow, context: Context, add: Add) -> Flow:
    """Add the one node that decides."""
    inputs = flow.with_before({"alive": [flow.alive], "index": [flow.index]})
    if config.method == "loss":
        params: dict[str, Any] = {"drop_highest": config.drop_highest, "drop_lowest": config.drop_lowest}
        inputs["loss"] = [flow.need("loss", "prune by loss", "a score stage")]
        node = add("prune.loss", params, inputs)
    elif config.method == "label_noise":
        inputs["suspect"] = [flow.need("suspect", "prune by label_noise", "a score stage with method proxy")]
        node = add("prune.label_noise", {}, inputs)
    else:
        params = {
            "keep": config.keep,
            "temperature": config.temperature,
            "neighbours": config.neighbours,
            "balance": config.balance,
            "which_to_keep": config.which_to_keep,
            "seed": list(context.seed),
        }
        inputs["cluster"] = [flow.need("cluster", "prune by density", "a cluster stage")]
        assert flow.centroids is not None  # made by the same stage as the column
        inputs["centroids"] = [flow.centroids]
        node = add("prune.density", params, inputs)
    return dataclasses.replace(flow, alive=node, effects=(*flow.effects, node))


def loss(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Drop the tails of the losses."""
    alive, order = canonical(inputs)
    losses = values(inputs, "loss", "loss", alive)
    kept = drop_by_loss(losses[order], drop_highest=params["drop_highest"], drop_lowest=params["drop_lowest"])
    stays = np.zeros(len(alive), bool)
    stays[order[kept]] = True
    stays |= kept_before(inputs, alive)
    tails = [f"{name} {params[name]:g}" for name in ("drop_highest", "drop_lowest") if params[name]]
    table = effect(
        alive,
        np.where(stays, KEPT, PRUNED).astype(np.int8),
        f"loss in the tail: {', '.join(tails)}",
        score=losses,
    )
    facts = {
        "pruned": int(np.count_nonzero(~stays)),
        "largest_kept_loss": float(losses[stays].max()) if len(kept) else None,
    }
    return Output(table, facts)


def label_noise(params: Mapping[str, Any], inputs: Inputs) -> Output:  # noqa: ARG001 - one shape for all tasks
    """Drop the rows whose label the proxy contradicts confidently."""
    alive = alive_rows(inputs)
    stays = ~values(inputs, "suspect", "suspect", alive) | kept_before(inputs, alive)
    reason = "label likely wrong: the proxy is confident of another class"
    return Output(
        effect(alive, np.where(stays, KEPT, PRUNED).astype(np.int8), reason), {"pruned": int(np.count_nonzero(~stays))}
    )


def density(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Keep each cluster's quota, set by its complexity (arXiv 2401.04578)."""
    alive, order = canonical(inputs)
    labels = values(inputs, "cluster", "cluster", alive)[order].astype(np.int64)
    distance = values(inputs, "cluster", "cluster_dist", alive)[order].astype(np.float64)
    centroids = matrix_of(inputs.table("centroids"))
    sizes = np.bincount(labels, minlength=len(centroids))
    if isinstance(params["keep"], int) and params["keep"] > len(alive):
        raise RecipeError(f"prune.keep is {params['keep']}, but only {len(alive)} rows reach this stage")
    keep = resolve_budget(params["keep"], len(alive))
    d_intra = np.bincount(labels, weights=distance, minlength=len(centroids)) / np.maximum(sizes, 1)
    complexity = concept_complexity(d_intra, inter_distance(centroids, params["neighbours"]))
    quotas = density_quotas(complexity, sizes, keep, params["temperature"], params["balance"])
    kept = density_prune(labels, distance, quotas, params["which_to_keep"], generator(params))
    stays = np.zeros(len(alive), bool)
    stays[order[kept]] = True
    stays |= kept_before(inputs, alive)
    score = np.empty(len(alive))
    score[order] = distance
    reason = f"beyond its cluster's quota ({params['which_to_keep']} first)"
    table = effect(alive, np.where(stays, KEPT, PRUNED).astype(np.int8), reason, score=score)
    filled = quotas[sizes > 0]
    facts = {
        "pruned": int(np.count_nonzero(~stays)),
        "smallest_quota": int(filled.min()),
        "largest_quota": int(filled.max()),
    }
    return Output(table, facts)


def canonical(inputs: Inputs) -> tuple[Rows, Rows]:
    """Return the alive rows, and the positions among them by (content hash, id): ties go to the first."""
    alive = alive_rows(inputs)
    return alive, np.argsort(values(inputs, "index", "order", alive))


TASKS = {"loss": Task(loss), "label_noise": Task(label_noise), "density": Task(density, version=2)}
