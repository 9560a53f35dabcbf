"""The README's code runs, and its table is the one that the results give."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def workplace(tmp_path, small_dataset):
    """A folder with the data that the README speaks of, and its recipe."""
    table = pq.read_table(small_dataset)
    pq.write_table(table, tmp_path / "train.parquet")
    recipe = blocks("yaml")[0]  # the other is Dask's configuration
    loaded = yaml.safe_load(recipe)
    for section in (loaded["train"], *(stage for stage in loaded["stages"] if stage["kind"] == "schedule")):
        section["epochs"] = 2  # the README's 12 take a minute
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(loaded))
    return tmp_path


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_the_python_code_runs(number, workplace):
    script = workplace / "script.py"
    script.write_text(blocks("python")[number])
    done = subprocess.run([sys.executable, str(script)], cwd=workplace, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_recipe_is_valid(workplace):
    (workplace / "whole.yaml").write_text(blocks("yaml")[0])
    done = subprocess.run(
        [sys.executable, "-m", "tamis", "validate", "whole.yaml"], cwd=workplace, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_commands_run(small_dataset, tmp_path):
    (commands,) = blocks("sh")
    table = pq.read_table(small_dataset)
    pq.write_table(table, tmp_path / "train.parquet")
    pq.write_table(table.slice(0, 100), tmp_path / "test.parquet")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euc", commands],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "subset.parquet").is_file()


def test_every_command_exists():
    from tamis.cli import main

    commands = re.findall(r"^tamis ([a-z-]+)", README, re.MULTILINE)
    assert len(set(commands)) >= 11
    assert set(commands) <= set(main.commands)


def test_the_tables_are_written_from_the_results():
    spec = importlib.util.spec_from_file_location("readme", ROOT / "benchmarks" / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    results = json.loads((ROOT / "benchmarks" / "results" / "stages.json").read_text())
    for page in module.PAGES:
        assert module.written(page.read_text(), results) == page.read_text()
