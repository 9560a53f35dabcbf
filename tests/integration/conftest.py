"""Small datasets of which it is known what must become of each row, and the command line in this process."""

import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from tamis.cli import main

CLASSES = 3


def texts_of(labels, rng):
    """Nine words a text: five of its class, four of all."""
    own = [[f"topic{c}word{i}" for i in range(12)] for c in range(CLASSES)]
    common = [f"common{i}" for i in range(20)]
    return [" ".join([*rng.choice(own[c], 5), *rng.choice(common, 4)]) for c in labels]


@pytest.fixture(scope="session")
def make_columns():
    """Columns id, text, label; text says the label."""

    def make(n=240, seed=0):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, CLASSES, n)
        return {
            "id": [f"r{i:04d}" for i in range(n)],
            "text": texts_of(labels, rng),
            "label": [f"c{label}" for label in labels],
        }

    return make


@pytest.fixture
def write(tmp_path):
    """Write columns as a Parquet file and give its path."""

    def write(columns, name="rows.parquet"):
        path = tmp_path / name
        pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), path)
        return path

    return write


@pytest.fixture
def recipe(tmp_path):
    """Write a recipe as JSON, which is YAML, and give its path."""

    def write(path, stages, name="r.yaml", dataset=None, **others):
        raw = {
            "name": "test",
            "seed": 3,
            "dataset": {"path": str(path), "id": "id", "text": "text", "label": "label"} | (dataset or {}),
            "stages": stages,
            "block_rows": 64,
            **others,
        }
        raw["dataset"] = {key: value for key, value in raw["dataset"].items() if value is not None}
        target = tmp_path / name
        target.write_text(json.dumps(raw))
        return target

    return write


@pytest.fixture
def cli():
    """Run a command of the command line; what no TamisError foresaw is raised."""

    def run(*arguments):
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def one_thread():
    """The models are so small that several threads take longer."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fresh_accelerator():
    """Accelerate keeps its state in the class, for the whole process."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture
def run(tmp_path, request):
    """Run the test's own file as so many processes, over loopback; give what each of them has at the end.

    The file may have an ENVIRONMENT, variables besides those of the ranks.
    """
    import torch

    def train(size, name, **options):
        processes = []
        for rank in range(size):
            out = str(tmp_path / f"{name}{rank}.pt")
            environment = {
                **os.environ, "WORLD_SIZE": str(size), "RANK": str(rank), "LOCAL_RANK": str(rank),
                "LOCAL_WORLD_SIZE": str(size), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1",
                "MASTER_ADDR": "127.0.0.1", **getattr(request.module, "ENVIRONMENT", {}),
            }  # fmt: skip
            given = {"store": str(tmp_path / f"{name}.store"), "out": out, "folder": str(tmp_path), **options}
            command = [sys.executable, str(request.path), json.dumps(given)]
            processes.append((subprocess.Popen(command, env=environment, stderr=subprocess.PIPE), out))
        for process, _ in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors.decode()
        return [torch.load(out, weights_only=False) for _, out in processes]

    return train
