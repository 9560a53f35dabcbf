"""The report of a run: one JSON with every number, and one HTML page that loads nothing from elsewhere."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from tamis.errors import OutputError
from tamis.manifests.atomic import write_atomic
from tamis.manifests.reader import open_manifest
from tamis.pipelines.node import Inputs
from tamis.pipelines.run import read_run, recorded, stage_report
from tamis.reports.funnel import funnel

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tamis.manifests.reader import Manifest
    from tamis.pipelines.node import Artifact
    from tamis.pipelines.store import Store

COMPARISON = "compare.json"


def write_report(folder: Path) -> Path:
    """Write `report.json` and `report.html` into a run's folder; returns the page's path.

    Raises:
        OutputError: The folder holds no run, or cannot be written.
        DamagedManifestError: Its manifest is damaged or missing.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    report = build_report(folder)
    write_atomic(folder / "report.json", json.dumps(report, indent=1, sort_keys=True).encode())
    environment = Environment(loader=PackageLoader("tamis", "reports"), autoescape=True, undefined=StrictUndefined)
    environment.filters["mib"] = lambda value: f"{value / 2**20:,.0f} MiB"
    page = environment.get_template("report.html").render(report=report)
    write_atomic(folder / "report.html", page.encode())
    return folder / "report.html"


def build_report(folder: Path) -> dict[str, Any]:
    """Collect a run's numbers: funnel, stages with time and memory, class balance, comparison if there is one."""
    described = read_run(folder)
    manifest = open_manifest(folder)
    store, artifacts = recorded(folder, described)
    stages = [
        stage_report(stage["stage"], stage["kind"], [artifacts[n] for n, _, _ in stage["nodes"] if n in artifacts])
        for stage in described["stages"]
    ]
    proxies = [stage["facts"] for stage in stages if "out_of_fold_accuracy" in stage["facts"]]
    total = sum(stage["seconds"] for stage in stages)
    embedding = sum(stage["seconds"] for stage in stages if stage["kind"] == "embed")
    path = folder / COMPARISON
    return {
        "name": described["name"],
        "subset_id": manifest.subset_id,
        "manifest": str(manifest.folder),
        "version": manifest.version,
        "rows": manifest.audit.num_rows,
        "kept": manifest.select.num_rows,
        "counts": manifest.record["counts"],
        "funnel": funnel(manifest),
        "stages": stages,
        "seconds": round(total, 3),
        "share_outside_embedding": round(1 - embedding / total, 4) if total else None,
        "classes": _classes(store, artifacts.values(), manifest),
        "proxy": proxies[-1] if proxies else None,
        "certificate": manifest.record["certificate"],
        "schedule": manifest.record["schedule"],
        "weights": {
            "min": pc.min(manifest.select["weight"]).as_py(),
            "max": pc.max(manifest.select["weight"]).as_py(),
        },
        "recipe": manifest.record["recipe"],
        "fingerprint": manifest.fingerprint,
        "numeric": manifest.record["numeric"],
        "libraries": manifest.record["libraries"],
        "comparison": _comparison(path) if path.is_file() else None,
    }


def _comparison(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
        return {name: found[name] for name in ("note", "results", "verdict")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise OutputError(
            f"{path} holds no comparison of trainings ({error!r}): remove it, or compare again"
        ) from error


def _classes(store: Store, artifacts: Iterable[Artifact], manifest: Manifest) -> list[dict[str, Any]]:
    """Rows of each class before and after, where the dataset has labels."""
    index = next((artifact for artifact in artifacts if artifact.task == "ingest.index"), None)
    if index is None or not manifest.record.get("classes"):
        return []
    labels = Inputs(store.location, {}, {}).open(index)["label"]
    kept = labels.take(manifest.select["row"])
    return [
        {
            "class": name,
            "before": pc.sum(pc.equal(labels, code)).as_py(),
            "after": pc.sum(pc.equal(kept, code)).as_py() or 0,
        }
        for code, name in enumerate(manifest.record["classes"])
    ]
