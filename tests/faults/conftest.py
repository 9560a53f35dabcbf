"""What the fault tests share: a recipe of every kind of stage, forked runs, what is torn, and the table at the end."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from tamis.errors import DamagedManifestError
from tamis.manifests.canonical import unsealed
from tamis.manifests.reader import open_manifest, versions

FORKED = Path(__file__).with_name("forked.py")
LIMIT = 180  # seconds that any process may take; a run takes a few


@pytest.fixture(scope="session")
def soak(request):
    """Whether all faults are wanted, not a few of each."""
    return request.config.getoption("--soak")


@pytest.fixture
def tally(request):
    """Counts a fault for the table at the end: `tally(fault, torn=0, identical=1)`; injected once, if not said."""

    def count(fault, **counts):
        request.node.user_properties.append(("fault", (fault, {"injected": 1, **counts})))

    return count


@pytest.fixture(scope="session")
def wide_recipe(small_recipe):
    """Every kind of stage, and a selection by the sparse engine before the partitioned one."""
    stages = list(small_recipe["stages"])
    at = next(i for i, stage in enumerate(stages) if stage["kind"] == "select")
    sparse = {"kind": "select", "method": "facility_location", "budget": 0.5, "per": "label", "engine": "sparse"}
    return {**small_recipe, "stages": [*stages[:at], sparse, *stages[at:]]}


@pytest.fixture(scope="session")
def recipe_file(wide_recipe, tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(yaml.safe_dump(wide_recipe))
    return path


@pytest.fixture(scope="session")
def brief_recipe(wide_recipe, tmp_path_factory):
    """The same stages on 240 of the rows, for faults that are injected by the thousand."""
    path = tmp_path_factory.mktemp("brief") / "rows.parquet"
    rows = pq.read_table(wide_recipe["dataset"]["path"]).slice(0, 240)
    pq.write_table(rows, path)
    return {**wide_recipe, "dataset": {**wide_recipe["dataset"], "path": str(path)}}


@pytest.fixture(scope="session")
def forked(recipe_file, tmp_path_factory):
    """Runs of the command line in forked processes, see `Forked`; the first is done already: `forked.undisturbed`."""
    folder = tmp_path_factory.mktemp("forked")
    process = subprocess.Popen(
        [sys.executable, FORKED, recipe_file, folder / "undisturbed"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # its threads would not be there after a fork
    )
    with process:
        assert process.stdout.readline() == "ready\n"
        yield Forked(process, folder)
        process.stdin.close()


@dataclass(frozen=True)
class Forked:
    """Starts the command line in processes forked from `server`, which runs forked.py; one at a time."""

    server: subprocess.Popen
    folder: Path

    @property
    def undisturbed(self):
        return self.folder / "undisturbed"

    def start(self, *arguments, **job):
        """Begin a run; gives the process."""
        (self.folder / "log").touch()
        job |= {"arguments": [str(argument) for argument in arguments], "log": str(self.folder / "log")}
        return psutil.Process(int(self._asked(json.dumps(job))))

    def end(self, process, kill=False):
        """Wait for the process, killed or not, and what it had started.

        Returns:
            Its exit status, how many processes hung (they took longer than `LIMIT`), and what it printed.
        """
        children = process.children(recursive=True) if kill else []
        if kill:
            process.kill()
        code = json.loads(self._asked(str(LIMIT)))
        _, alive = psutil.wait_procs(children, timeout=LIMIT)
        for left in alive:
            left.kill()
        return code, len(alive) + (code is None), (self.folder / "log").read_text()

    def run(self, *arguments, **job):
        """From `start` to `end`."""
        return self.end(self.start(*arguments, **job))

    def _asked(self, line):
        self.server.stdin.write(line + "\n")
        self.server.stdin.flush()
        return self.server.stdout.readline()


def find_torn(out):
    """Files of a run's folder that a reader would take for whole, and that are not: there may never be one."""
    torn = []
    for path in (path for path in sorted(Path(out).rglob("*")) if path.is_file()):
        named = path.name.split(".")
        data = path.read_bytes()
        try:
            if path.suffix == ".arrow":  # named by its content
                assert hashlib.sha256(data).hexdigest().startswith(named[-2])
            elif path.parent.parent.name == "work" and path.suffix == ".json":
                body = unsealed(data)
                assert body["file"] is None or (out / "work" / body["file"]).stat().st_size == body["bytes"]
            elif path.name == "scans.json":
                unsealed(data)
            elif path.suffix == ".json" and path.parent == out:
                json.loads(data)
            elif path.name == "events.jsonl":
                for line in data.splitlines():
                    json.loads(line)
        except (AssertionError, ValueError, OSError, TypeError, KeyError):
            torn.append(path)
    try:
        for version in versions(out / "manifest"):
            open_manifest(out, version)
    except DamagedManifestError:
        torn.append(out / "manifest")
    return torn


@pytest.fixture(scope="session")
def torn():
    return find_torn


@pytest.fixture(scope="session")
def recorded():
    """How many tasks of a run's folder are finished."""
    return lambda out: len(list(out.glob("work/*/*.json")))
