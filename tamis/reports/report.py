"""The report of a run: one JSON with every number, and one HTML page made of it that loads nothing from elsewhere."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tamis.manifests.atomic import write_atomic
from tamis.pipelines.finished import finished_in, readable
from tamis.reports.comparison import COMPARISON, read_comparison
from tamis.reports.funnel import funnel
from tamis.reports.sections import balance, clusters, duplicates, examples, leakage, scores, space, work
from tamis.threads import one_blas_thread

if TYPE_CHECKING:
    from pathlib import Path

    from tamis.pipelines.finished import Finished


def write_report(folder: Path) -> Path:
    """Write `report.json` and `report.html` into a run's folder; returns the page's path.

    Raises:
        OutputError: The folder holds no run, or cannot be written, or a file of the run's store is damaged.
        DamagedManifestError: Its manifest is damaged or missing.
    """
    from tamis.reports.page import render

    data = json.dumps(build_report(folder), indent=1, sort_keys=True).encode()
    page = render(json.loads(data)).encode()  # so that nothing is in the page but not in the JSON
    write_atomic(folder / "report.json", data)
    write_atomic(folder / "report.html", page)
    return folder / "report.html"


def build_report(folder: Path) -> dict[str, Any]:
    """Collect a run's numbers, section by section; what the run has no stage for is None or empty.

    Raises:
        OutputError: The folder holds no run, or a comparison that cannot be read, or a file of its store is damaged.
        DamagedManifestError: Its manifest is damaged or missing.
    """
    run = finished_in(folder)
    with readable(), one_blas_thread():  # the same last bits on any number of cores
        return {**_summary(run), **_sections(run), "comparison": read_comparison(folder / COMPARISON)}


def _summary(run: Finished) -> dict[str, Any]:
    """What the run is, what it did, what it took."""
    manifest, record = run.manifest, run.manifest.record
    stages = work.stages(run)
    proxies = [stage["facts"] for stage in stages if "out_of_fold_accuracy" in stage["facts"]]
    total = sum(stage["seconds"] for stage in stages)
    embedding = sum(stage["seconds"] for stage in stages if stage["kind"] == "embed")
    return {
        "name": record["recipe"]["name"],
        "subset_id": manifest.subset_id,
        "manifest": str(manifest.folder),
        "version": manifest.version,
        "rows": manifest.audit.num_rows,
        "kept": manifest.select.num_rows,
        "counts": record["counts"],
        "funnel": funnel(manifest),
        "budgets": work.budgets(run),
        "stages": stages,
        "seconds": round(total, 3),
        "share_outside_embedding": round(1 - embedding / total, 4) if total else None,
        "proxy": proxies[-1] if proxies else None,
        "certificate": record["certificate"],
        "schedule": record["schedule"],
        "recipe": record["recipe"],
        "limit": record["dataset"].get("limit"),
        "fingerprint": run.manifest.fingerprint,
        "files": [dict(source) for source in record["dataset"]["sources"]],
        "parent": record["parent"],
        "numeric": record["numeric"],
        "libraries": record["libraries"],
    }


def _sections(run: Finished) -> dict[str, Any]:
    """What its rows look like."""
    fates = examples.examples(run)
    near = duplicates.near_duplicates(run)
    leaks = leakage.leakage(run)
    shown = {row for fate in fates for item in fate["examples"] for row in (item["row"], item["stands_for_it"])}
    shown |= {item["row"] for stage in leaks for item in stage["first"]}
    shown |= {row for pair in (near["borderline"] if near else ()) for row in pair["rows"]}
    return {
        **space.space(run),
        "clusters": clusters.clusters(run),
        "near_duplicates": near,
        "leakage": leaks,
        "gains": scores.gains(run),
        "classes": balance.classes(run),
        "sources": balance.sources(run),
        "losses": scores.losses(run),
        "difficulty": scores.difficulty(run),
        "weights": scores.weights(run),
        "examples": fates,
        "samples": {str(item["row"]): item for item in examples.contents(run, shown - {None})},
        "contents_are_there": bool(run.stages[0].of("block")),
    }
