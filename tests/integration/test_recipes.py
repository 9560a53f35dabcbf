"""Every shipped recipe runs on small data of its kind, as it is or with a smaller budget."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

import tamis
from tamis.pipelines.recipe import load_recipe

N = 240
NAMES = [
    "dbp-images", "dedup-only", "ingenious-lm", "instruction-tuning", "label-free", "label-noise", "multi-source",
    "noise-aware", "quickstart", "seta-training",
]  # fmt: skip
SMALLER = {"instruction-tuning": ["select.budget={bytes: 4000}"], "multi-source": ["select.budget={bytes: 6000}"]}


@pytest.fixture
def folder(tmp_path, make_columns):
    """Data of each kind, named as the recipes name them."""
    columns = make_columns(N)
    rng = np.random.default_rng(0)
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    sources = rng.choice(["web", "books", "code", "wiki"], N).tolist()
    pq.write_table(pa.table({**columns, "source": sources}), tmp_path / "corpus.parquet")
    lines = [{"id": name, "instruction": text} for name, text in zip(columns["id"], columns["text"], strict=True)]
    (tmp_path / "instructions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "benchmark.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[3:8]))
    (tmp_path / "packed").mkdir()
    tokens = [rng.integers(0, 300, 32).tolist() for _ in range(N)]
    pq.write_table(pa.table({"tokens": tokens}), tmp_path / "packed" / "blocks.parquet")
    for row in range(60):
        sink = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(sink, "PNG")
        path = tmp_path / "images" / f"c{row % 2}" / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sink.getvalue())
    return tmp_path


def test_all_are_listed_with_what_they_are_for(cli):
    lines = cli("recipes").stdout.splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    starts = {len(line) - len(line.split(maxsplit=1)[1]) for line in lines}
    assert len(starts) == 1  # one column of descriptions
    assert json.loads(cli("recipes", "--json").stdout) == {
        "recipes": [dict(zip(("name", "for"), line.split(maxsplit=1), strict=True)) for line in lines]
    }


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_on_data_of_its_kind(name, folder, cli):
    text = cli("recipes", name).stdout
    (folder / "recipe.yaml").write_text(text)
    overrides = SMALLER.get(name, [])
    recipe, _ = load_recipe(folder / "recipe.yaml", tuple(overrides))
    assert recipe.name == name
    result = tamis.run(folder / "recipe.yaml", folder / "run", executor="sync", overrides=tuple(overrides))
    manifest = result.open_manifest()
    counts = dict(manifest.record["counts"])
    assert counts.pop("rows") == sum(counts.values())
    assert counts["kept"] > 0
    dropping = {"prune", "select"} & {stage.kind for stage in recipe.stages}
    expected = bool(dropping) and name != "label-noise"  # no label of these texts is wrong
    assert (counts["pruned"] + counts["not_in_budget"] > 0) == expected
    if name == "instruction-tuning":
        assert not {f"r{row:04d}" for row in range(3, 8)} & set(manifest.select["sample_id"].to_pylist())
    if name == "multi-source":
        source = pq.read_table(folder / "corpus.parquet")["source"].to_pylist()
        texts = pq.read_table(folder / "corpus.parquet")["text"].to_pylist()
        spent = dict.fromkeys(source, 0)
        for row in manifest.select["row"].to_pylist():
            spent[source[row]] += len(texts[row].encode())
        longest = max(map(len, texts))
        assert 3000 - longest < spent["web"] <= 3000
        assert 1200 - longest < spent["books"] <= 1200


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_says_why_it_is_there(name, cli):
    text = cli("recipes", name).stdout
    lines = text.splitlines()
    assert lines[0].startswith("# ")
    assert lines[0].endswith(".")
    for place, line in enumerate(lines):
        if line.startswith("  - "):
            assert lines[place - 1].startswith("  # "), line
    assert max(map(len, lines)) <= 120
    yaml.safe_load(text)
