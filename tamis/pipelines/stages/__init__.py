"""The stages. Each module has `expand`, which adds the stage's nodes to a plan, and `TASKS`, which run them.

The run never learns what a stage means: it knows nodes, files and counts.
"""

from __future__ import annotations

# The kinds that may drop rows.
DROPPING = ("embed", "dedup", "prune", "select", "pick")

# The `kind` of a recipe's stage -> the module that expands it.
KINDS = {
    "embed": "embed",
    "dedup": "dedup",
    "cluster": "cluster",
    "score": "score",
    "prune": "prune",
    "select": "select",
    "pick": "pick",
    "schedule": "schedule",
    "reweight": "reweight",
}
