"""Selectors: arrays in, a Selection out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tamis.selectors.dedup import exact_duplicates, near_pairs, resolve_pairs, resolve_rows
from tamis.selectors.density import concept_complexity, density_prune, density_quotas, inter_distance
from tamis.selectors.disparity import disparity_sum
from tamis.selectors.duqgen import cluster_shares, duqgen
from tamis.selectors.facility_location import (
    conditional,
    facility_location,
    merge_rankings,
    on_graph,
    on_kernel,
    rank_partition,
    split_into_cells,
    targeted,
)
from tamis.selectors.graph_cut import graph_cut
from tamis.selectors.groups import per_group
from tamis.selectors.ingenious import draw, draw_shares, ingenious, overlap_diagnostics, taylor_softmax
from tamis.selectors.k_center import k_center
from tamis.selectors.log_det import log_det
from tamis.selectors.loss import confidence_thresholds, drop_by_loss, suspects
from tamis.selectors.near_duplicates import near_duplicates
from tamis.selectors.reference import submodlib_selection
from tamis.selectors.selection import Selection, as_unit_rows, resolve_budget
from tamis.selectors.shares import largest_remainder, lasso_shares
from tamis.selectors.uniform import random, stratified

if TYPE_CHECKING:
    from collections.abc import Callable

REGISTRY: dict[str, Callable[..., Selection]] = {
    "conditional": conditional,
    "disparity_sum": disparity_sum,
    "duqgen": duqgen,
    "facility_location": facility_location,
    "graph_cut": graph_cut,
    "ingenious": ingenious,
    "k_center": k_center,
    "log_det": log_det,
    "random": random,
    "stratified": stratified,
    "targeted": targeted,
}
"""Every selector by the name that recipes use."""

__all__ = [
    "REGISTRY",
    "Selection",
    "as_unit_rows",
    "cluster_shares",
    "concept_complexity",
    "conditional",
    "confidence_thresholds",
    "density_prune",
    "density_quotas",
    "disparity_sum",
    "draw",
    "draw_shares",
    "drop_by_loss",
    "duqgen",
    "exact_duplicates",
    "facility_location",
    "graph_cut",
    "ingenious",
    "inter_distance",
    "k_center",
    "largest_remainder",
    "lasso_shares",
    "log_det",
    "merge_rankings",
    "near_duplicates",
    "near_pairs",
    "on_graph",
    "on_kernel",
    "overlap_diagnostics",
    "per_group",
    "random",
    "rank_partition",
    "resolve_budget",
    "resolve_pairs",
    "resolve_rows",
    "split_into_cells",
    "stratified",
    "submodlib_selection",
    "suspects",
    "targeted",
    "taylor_softmax",
]
