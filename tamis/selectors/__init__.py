"""Selectors: arrays in, a Selection out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tamis.selectors.dedup import exact_duplicates, near_pairs, resolve_pairs
from tamis.selectors.density import concept_complexity, density_prune, density_quotas, inter_distance
from tamis.selectors.facility_location import (
    facility_location,
    merge_rankings,
    rank_partition,
    split_into_cells,
)
from tamis.selectors.ingenious import draw, draw_shares, ingenious, overlap_diagnostics, taylor_softmax
from tamis.selectors.loss import drop_by_loss
from tamis.selectors.selection import Selection, as_unit_rows, resolve_budget
from tamis.selectors.shares import largest_remainder
from tamis.selectors.uniform import random, stratified

if TYPE_CHECKING:
    from collections.abc import Callable

REGISTRY: dict[str, Callable[..., Selection]] = {
    "facility_location": facility_location,
    "ingenious": ingenious,
    "random": random,
    "stratified": stratified,
}

__all__ = [
    "REGISTRY",
    "Selection",
    "as_unit_rows",
    "concept_complexity",
    "density_prune",
    "density_quotas",
    "draw",
    "draw_shares",
    "drop_by_loss",
    "exact_duplicates",
    "facility_location",
    "ingenious",
    "inter_distance",
    "largest_remainder",
    "merge_rankings",
    "near_pairs",
    "overlap_diagnostics",
    "random",
    "rank_partition",
    "resolve_budget",
    "resolve_pairs",
    "split_into_cells",
    "stratified",
    "taylor_softmax",
]
