"""What `plan` foretells, and what it refuses. How near it comes is measured by benchmarks/estimates.py."""

import importlib
import json
import pkgutil
import shutil

import pytest

from tamis.errors import OutputError, RecipeError
from tamis.pipelines import estimate, resources, stages

EMBED = {"kind": "embed", "encoder": "lsa", "dim": 16}
STAGES = [EMBED, {"kind": "dedup"}, {"kind": "select", "method": "facility_location", "budget": 0.1}]


def test_every_task_has_a_cost():
    modules = [
        importlib.import_module(f"tamis.pipelines.stages.{item.name}") for item in pkgutil.iter_modules(stages.__path__)
    ]
    tasks = {f"{module.__name__.rpartition('.')[2]}.{task}" for module in modules for task in module.TASKS}
    assert tasks == estimate._COSTS.keys()


@pytest.fixture
def planned(tmp_path, recipe, make_columns, write, cli):
    """What `tamis plan --json` says of some stages on so many rows."""

    def plan(stages=STAGES, rows=2000, *options):
        path = recipe(write(make_columns(rows)), stages)
        result = cli("plan", path, "--out", tmp_path / "out", "--json", *options)
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)["estimate"]

    return plan


def test_more_rows_need_more(planned):
    few, many = planned(rows=500), planned(rows=5000)
    assert all(many[name] > few[name] > 0 for name in few)


def test_more_workers_need_more_memory_and_no_more_time(planned):
    one, four = planned(STAGES, 5000, "--workers", "1"), planned(STAGES, 5000, "--workers", "4")
    assert four["peak_bytes"] > one["peak_bytes"]
    assert four["wall_seconds"] < one["wall_seconds"]
    assert four["disk_bytes"] == one["disk_bytes"]


def test_what_is_done_needs_nothing(tmp_path, planned, recipe, write, make_columns, cli):
    path = recipe(write(make_columns(2000)), STAGES)
    assert cli("run", path, "--out", tmp_path / "out", "--executor", "sync").exit_code == 0
    assert planned() == {"wall_seconds": 0.0, "peak_bytes": 0, "disk_bytes": 0}


def test_a_run_that_does_not_fit_into_memory_is_refused(tmp_path, recipe, write, make_columns, cli, monkeypatch):
    path, out = recipe(write(make_columns(500)), STAGES), tmp_path / "out"
    monkeypatch.setattr(estimate, "available_memory", lambda: 100 << 20)
    for verb in ("plan", "run"):
        result = cli(verb, path, "--out", out, "--workers", "2")
        assert result.exit_code == RecipeError.exit_code
        assert "GiB of memory" in result.stderr
        assert "0.1 GiB are available: give fewer --workers (now 2), a" in result.stderr
    assert not list(out.glob("work/*/*.arrow"))
    assert cli("run", path, "--out", out, "--executor", "sync", "--anyway").exit_code == 0


def test_a_run_that_does_not_fit_on_the_disk_is_refused(tmp_path, recipe, write, make_columns, cli, monkeypatch):
    path, out = recipe(write(make_columns(500)), STAGES), tmp_path / "out"
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda _: full)
    for verb in ("plan", "run"):
        result = cli(verb, path, "--out", out)
        assert result.exit_code == OutputError.exit_code
        assert "0.00 GiB are free: free space, give another --out, or --anyway to try" in result.stderr
    assert not list(out.glob("work/*/*.arrow"))
    assert cli("run", path, "--out", out, "--executor", "sync", "--anyway").exit_code == 0


def test_the_limit_of_a_container_counts(tmp_path, monkeypatch):
    free = resources.available_memory()
    (tmp_path / "max").write_text(str(1 << 30))
    (tmp_path / "current").write_text(str(900 << 20))
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {300 << 20}\n")
    monkeypatch.setattr(resources, "_CGROUPS", ((tmp_path / "max", tmp_path / "current"),))
    assert resources.available_memory() == min(free, 424 << 20)
    (tmp_path / "max").write_text("max")
    assert resources.available_memory() > 424 << 20


def test_the_pace_of_the_machine_scales_the_time(planned, monkeypatch):
    monkeypatch.setattr(estimate, "pace", lambda: 1.0)
    once = planned()["wall_seconds"]
    monkeypatch.setattr(estimate, "pace", lambda: 3.0)
    assert planned()["wall_seconds"] == pytest.approx(3 * once - 2 * estimate._START_SECONDS, abs=0.2)
