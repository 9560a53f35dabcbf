"""Write the README's table from the results: `python benchmarks/readme.py`."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- stages: written by benchmarks/readme.py -->", "<!-- end of stages -->"


def table(results: dict) -> str:
    """The table of benchmarks/stages.py as Markdown."""
    total = sum(stage["seconds"] for stage in results["stages"])
    lines = [
        f"The demo's run, {results['rows']:,} rows, {results['machine']['cores']} cores: median of "
        f"{results['repeat']} runs, {results['wall_seconds']:.0f} s of wall time, "
        f"{100 * results['share_outside_embedding']:.1f} % of the work outside embedding.",
        "",
        "| stage | tasks | share of the work | seconds of work | worker's peak memory | on disk |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {stage['stage']} | {stage['tasks']} | {100 * stage['seconds'] / total:.1f} % | {stage['seconds']:.2f} "
        f"| {stage['peak_bytes'] / 2**20:,.0f} MiB | {stage['bytes'] / 2**20:,.1f} MiB |"
        for stage in results["stages"]
    ]
    return "\n".join(lines)


def written(readme: str, results: dict) -> str:
    """The README with the table between its marks."""
    head, _, rest = readme.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{table(results)}\n{END}{tail}"


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(written(path.read_text(), json.loads((ROOT / "benchmarks/results/stages.json").read_text())))
    print(path)
