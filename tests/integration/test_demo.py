"""The demo's own script, on small data in place of the tweets and the encoder."""

import demo
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner


@pytest.fixture
def small_demo(small_recipe, small_dataset, tmp_path, monkeypatch):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(small_recipe))
    test = tmp_path / "test.parquet"
    pq.write_table(pq.read_table(small_dataset).slice(0, 100), test)
    monkeypatch.setattr(demo, "RECIPE", recipe)
    monkeypatch.setattr(demo.fetch, "tweets", lambda: (small_dataset, test))
    monkeypatch.setattr(demo.fetch, "minilm", lambda: None)
    return tmp_path / "run"


def test_the_demo_prints_what_it_did_and_ends_with_the_report(small_demo):
    result = CliRunner().invoke(demo.main, ["--out", str(small_demo), "--workers", "1"])
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    for begin in (
        "rows in",
        "kept",
        "Training at equal budget",
        "trained on",
        "full",
        "random",
        "selected:",
        "manifest",
    ):
        assert any(line.startswith(begin) for line in lines), begin
    assert lines[-1] == f"report    {small_demo / 'report.html'}"
    assert (small_demo / "report.html").is_file()
