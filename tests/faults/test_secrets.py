"""A secret that was given in an address, in the environment or in an override is in no file of a run's folder."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from tamis.cli import main
from tamis.manifests.reader import open_manifest

SECRET = "S3cr3tT0k3nS3cr3t"
VARIABLES = ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DASK_DISTRIBUTED__TOKEN", "http_proxy")
ADDRESS = f"https://user:{SECRET}@host.invalid/rows.parquet?sig={SECRET}"


def holding(folder):
    """The files of a folder in which the secret is, or in whose name."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in paths if SECRET in str(path.relative_to(folder)) or SECRET.encode() in path.read_bytes()]


@pytest.fixture
def tamis_run(tmp_path, brief_recipe):
    """Run the command line; gives its exit code and all that it printed."""
    recipe = tmp_path / "recipe.yaml"

    def run(changes=(), *overrides, executor=("--executor", "sync")):
        recipe.write_text(yaml.safe_dump({**brief_recipe, **dict(changes)}))
        options = [part for override in overrides for part in ("--set", override)]
        arguments = ["run", str(recipe), "--out", str(tmp_path / "run"), *executor, *options]
        result = CliRunner().invoke(main, arguments)
        return result.exit_code, result.output + result.stderr

    return run


def test_a_secret_in_the_environment(tamis_run, tmp_path, monkeypatch, tally):
    for name in VARIABLES:
        monkeypatch.setenv(name, SECRET)
    out = tmp_path / "run"
    code, printed = tamis_run(executor=("--workers", "1"))
    assert code == 0, printed
    assert CliRunner().invoke(main, ["report", str(out)]).exit_code == 0
    assert CliRunner().invoke(main, ["export", str(out), "--to", "jsonl", "--out", str(out / "x.jsonl")]).exit_code == 0
    assert SECRET not in printed
    assert holding(out) == []
    assert {"run.json", "attempt.json", "events.jsonl", "report.html", "report.json"} <= {p.name for p in out.iterdir()}
    for _ in VARIABLES:
        tally("a secret in the environment, an address or an override", detected=1)


OVERRIDES = [
    f"dataset.path={ADDRESS}",
    f"dataset.path=s3://{SECRET}@bucket/rows/*.parquet",
    f"score.from={ADDRESS}",
    f"embed.encoder='sentence: {ADDRESS}'",
    f"embed.encoder='transformers: {ADDRESS}'",
    f"embed.encoder='vectors: {ADDRESS}'",
    f"select[0].queries={ADDRESS}",
    f"select[0].avoid={ADDRESS}",
]


@pytest.mark.parametrize("override", OVERRIDES, ids=lambda override: override[:22])
def test_a_secret_in_an_address_of_an_override(override, tamis_run, tmp_path, tally):
    stages = [
        {"kind": "embed", "encoder": "lsa", "dim": 16},
        {"kind": "score", "from": "losses.csv"},
        {"kind": "select", "method": "targeted" if "queries" in override else "conditional", "budget": 9}
        | ({"queries": "q.npy"} if "queries" in override else {"avoid": "q.npy"}),
        {"kind": "select", "method": "random", "budget": 5},
    ]
    code, printed = tamis_run({"stages": stages}, override)
    assert code in (2, 3), printed
    assert "is a remote address; files on this machine are read" in printed
    assert SECRET not in printed
    assert holding(tmp_path / "run") == []
    tally("a secret in the environment, an address or an override", detected=1)


def test_an_address_of_a_scheduler_holds_no_secret(tamis_run, tmp_path):
    for address in (f"tls://user:{SECRET}@127.0.0.1:9", f"tls://127.0.0.1:9?x={SECRET}", f"tls://127.0.0.1:9/{SECRET}"):
        code, printed = tamis_run(executor=("--scheduler", address))
        assert code == 2, printed
        assert "it must be like tls://host:8786" in printed
        assert SECRET not in printed
        assert holding(tmp_path) == []


def test_where_files_lie_is_in_no_manifest_and_no_report(tamis_run, tmp_path, brief_recipe):
    """Only run.json and attempt.json say it, for the verbs that read the dataset again."""
    folder = tmp_path / f"at-{SECRET}"
    folder.mkdir()
    rows = pq.read_table(brief_recipe["dataset"]["path"])
    pq.write_table(rows, folder / "rows.parquet")
    np.save(folder / "q.npy", np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32))
    np.save(folder / "v.npy", np.random.default_rng(1).standard_normal((rows.num_rows, 4)).astype(np.float32))
    losses = pa.table({"sample_id": rows["id"], "loss": np.random.default_rng(2).random(rows.num_rows)})
    pq.write_table(losses, folder / "losses.parquet")
    stages = [
        {"kind": "embed", "encoder": f"vectors: {folder / 'v.npy'}"},
        {"kind": "score", "from": str(folder / "losses.parquet")},
        {"kind": "select", "method": "targeted", "budget": 50, "queries": str(folder / "q.npy")},
        {"kind": "select", "method": "conditional", "budget": 9, "avoid": str(folder / "q.npy")},
    ]
    dataset = {**brief_recipe["dataset"], "path": str(folder / "rows.parquet")}
    code, printed = tamis_run({"stages": stages, "dataset": dataset})
    assert code == 0, printed
    out = tmp_path / "run"
    assert CliRunner().invoke(main, ["report", str(out)]).exit_code == 0
    assert {path.name for path in holding(out)} == {"run.json", "attempt.json"}  # the control: it finds it there
    recorded = open_manifest(out).record["recipe"]["stages"]
    assert [recorded[2]["queries"], recorded[3]["avoid"]] == ["file", "file"]
