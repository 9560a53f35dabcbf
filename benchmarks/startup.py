"""How long does one wait for nothing: the help, and a run whose every task is there already?

Each is a command in a process of its own, the interpreter's start included. The run is the demo's: it hashes the data
and reads the records of all tasks. Also said: which of the heavy libraries either has imported.

    python benchmarks/startup.py [--repeat 5] [--quick]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import _measure
import click

import tamis

sys.path.insert(0, str(_measure.ROOT / "data_manifests"))
HEAVY = ("torch", "faiss", "distributed", "numba", "sklearn", "transformers")

COMMAND = """
import sys
from tamis.cli import main
try:
    main(sys.argv[1:])
finally:
    print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)
"""


def made_up(folder: Path) -> Path:
    """A recipe on a few texts, for the smoke run."""
    rows = [{"id": str(i), "text": f"word{i % 7} word{i % 11} word{i % 13}"} for i in range(200)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = {
        "name": "small",
        "dataset": {"path": str(folder / "rows.jsonl"), "id": "id", "text": "text"},
        "stages": [{"kind": "embed", "dim": 8}, {"kind": "dedup"}],
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return folder / "recipe.yaml"


def demo() -> Path:
    """The demo's recipe, its data and model fetched."""
    import fetch

    fetch.tweets()
    fetch.minilm()
    return _measure.ROOT / "data_manifests" / "tweets.yaml"


def command(*arguments: str) -> _measure.Seconds:
    """The wall time of a command."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "tamis", *arguments], check=True, stdout=subprocess.DEVNULL)
    return _measure.Seconds(time.perf_counter() - began)


def imported(*arguments: str) -> list[str]:
    """Which of the heavy libraries a command has imported at its end."""
    done = subprocess.run(
        [sys.executable, "-c", COMMAND.format(heavy=HEAVY), *arguments], check=True, capture_output=True, text=True
    )
    return list(json.loads(done.stderr.splitlines()[-1].replace("'", '"')))


@click.command()
@click.option("--repeat", type=click.IntRange(1), default=5, show_default=True)
@click.option("--quick", is_flag=True, help="A smoke run on made-up rows; prints, and writes nothing.")
def main(repeat: int, quick: bool) -> None:
    """Measure, and write results/startup.json."""
    with tempfile.TemporaryDirectory() as name:
        recipe = made_up(Path(name)) if quick else demo()
        again = ("run", str(recipe), "--out", str(Path(name) / "run"), "--json")
        tamis.run(recipe, Path(name) / "run")
        commands = {"help": ("--help",), "cached_run": again}
        times = _measure.alternate({key: partial(command, *given) for key, given in commands.items()}, repeat)
        libraries = {key: imported(*given) for key, given in commands.items()}
    aims = [
        _measure.aim("`tamis --help`", "the clock", _measure.spread(times["help"]), at_most=0.3, unit="s"),
        _measure.aim(
            "the demo's run, all of it cached", "the clock", _measure.spread(times["cached_run"]), at_most=2, unit="s"
        ),
    ]
    results = {"repeat": repeat, "seconds": times, "imported": libraries, "aims": aims}
    _measure.finish("startup", results, not quick)


if __name__ == "__main__":
    main()
