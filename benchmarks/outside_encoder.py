"""What share of a run that embeds with MiniLM is not the encoder?

The demo's own run, once, in one process; hooks of torch time the forward passes of the encoder's modules, and all else
is outside: reading, tokens, hashing, duplicates, the proxy, selection, the manifest.

    python benchmarks/outside_encoder.py [--quick]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import _measure
import click

import tamis

sys.path.insert(0, str(_measure.ROOT / "data_manifests"))
RECIPE = _measure.ROOT / "data_manifests" / "tweets.yaml"


def whole_run(limit: int | None) -> dict[str, float]:
    """Seconds of the demo's run in this process, and of them in forward passes of torch's modules."""
    import torch.nn.modules.module as modules

    depth, began, inside = 0, 0.0, 0.0

    def enter(*_: object) -> None:
        nonlocal depth, began
        if depth == 0:
            began = time.perf_counter()
        depth += 1

    def leave(*_: object) -> None:
        nonlocal depth, inside
        depth -= 1
        if depth == 0:
            inside += time.perf_counter() - began

    hooks = [
        modules.register_module_forward_pre_hook(enter),
        modules.register_module_forward_hook(leave, always_call=True),
    ]
    with tempfile.TemporaryDirectory() as folder:
        run = tamis.run(RECIPE, Path(folder) / "run", executor="sync", workers=1, limit=limit)
    for hook in hooks:
        hook.remove()
    return {"seconds": run.seconds, "forward_seconds": inside, "share_outside": 1 - inside / run.seconds}


@click.command()
@click.option("--quick", is_flag=True, help="A smoke run on a few tweets; prints, and writes nothing.")
def main(quick: bool) -> None:
    """Measure, and write results/outside_encoder.json."""
    import fetch

    fetch.tweets()
    fetch.minilm()
    whole = whole_run(256 if quick else None)
    share = _measure.aim(
        "the demo's run, share outside the encoder's forward passes",
        "the clock, one process",
        whole["share_outside"],
        at_most=0.15,
        unit="",
    )
    _measure.finish("outside_encoder", {"run": whole, "aims": [share]}, not quick)


if __name__ == "__main__":
    main()
