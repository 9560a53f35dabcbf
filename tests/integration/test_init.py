"""tamis init: what it guesses of datasets of many shapes, and that each recipe runs as it is written."""

import csv
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

import tamis
from tamis.pipelines import guess as guessing
from tamis.pipelines.strict_yaml import load_recipe_text

N = 120


def texts(make_columns, n=N):
    return make_columns(n)["text"]


def as_csv(path, columns):
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def as_jsonl(path, columns):
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def as_parquet(path, columns):
    pq.write_table(pa.table(columns), path)


def png(row, size=8):
    sink = io.BytesIO()
    pixels = np.random.default_rng(row).integers(0, 256, (size, size), np.uint8)
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture
def shapes(tmp_path, make_columns):
    """Name -> a function that writes the dataset and gives its path."""
    text = texts(make_columns)
    label = make_columns(N)["label"]
    vectors = np.random.default_rng(0).standard_normal((N, 6)).tolist()

    def file(write, name, **columns):
        def make():
            write(tmp_path / name, columns)
            return tmp_path / name

        return make

    def class_folders():
        for row in range(60):
            path = tmp_path / "images" / f"class{row % 2}" / f"{row:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(row))
        return tmp_path / "images"

    def one_folder():
        (tmp_path / "photos").mkdir()
        for row in range(12):
            (tmp_path / "photos" / f"{row}.png").write_bytes(png(row))
        return tmp_path / "photos"

    def hugging_face():
        import datasets

        data = {"idx": list(range(N)), "sentence": text, "label": [int(name[1]) for name in label]}
        datasets.Dataset.from_dict(data).save_to_disk(tmp_path / "hf", num_shards=1)
        return tmp_path / "hf"

    def two_files():
        (tmp_path / "parts").mkdir()
        for part in range(2):
            as_jsonl(tmp_path / "parts" / f"{part}.jsonl", {"content": text[part::2], "only": [part] * (N // 2)})
        return tmp_path / "parts" / "*.jsonl"

    return {
        "csv with odd names": file(
            as_csv, "my tweets.csv", **{"Tweet ID": range(N), "The Tweet: text": text, "Sentiment": label}
        ),
        "parquet": file(as_parquet, "d.parquet", id=range(N), text=text, label=label, url=["http://x/y z"] * N),
        "jsonl without labels": file(as_jsonl, "d.jsonl", body=text, lang=["en"] * N),
        "label by content": file(as_jsonl, "stars.jsonl", review=text, stars=[i % 5 for i in range(N)]),
        "many classes": file(as_parquet, "many.parquet", text=text, category=[f"c{i % 40}" for i in range(N)]),
        "one class": file(as_parquet, "one.parquet", text=text, label=["x"] * N),
        "vectors only": file(as_parquet, "v.parquet", key=[f"k{i}" for i in range(N)], embedding=vectors),
        "vectors beside texts": file(as_parquet, "tv.parquet", text=text, vec=vectors),
        "tokens": file(as_parquet, "t.parquet", input_ids=[list(range(1 + i % 9)) for i in range(N)]),
        "instructions": file(
            as_jsonl, "i.jsonl", instruction=text, output=[f"{t} {t}" for t in text], source=["a", "b", "b"] * (N // 3)
        ),
        "class folders": class_folders,
        "one folder of images": one_folder,
        "images in a table": file(as_parquet, "img.parquet", pic=[png(i) for i in range(20)], caption=text[:20]),
        "Hugging Face": hugging_face,
        "two files": two_files,
        "copies and empty texts": file(as_parquet, "bad.parquet", text=[*text[:30], *text[:3] * 28, *[""] * 6]),
        "ids that are no ids": file(as_parquet, "ids.parquet", id=[*range(11), 10, *range(12, N)], text=text),
        "one row": file(as_parquet, "row.parquet", text=["a single row of text"]),
        "Chinese": file(as_jsonl, "zh.jsonl", head=["第"] * 30, story=[f"一二三{i}四五。" for i in range(30)]),
    }  # fmt: skip


FOUND = {
    "csv with odd names": {"id": "Tweet ID", "label": "Sentiment", "text": "The Tweet: text"},
    "parquet": {"id": "id", "label": "label", "text": "text"},
    "jsonl without labels": {"text": "body"},
    "label by content": {"label": "stars", "text": "review"},
    "many classes": {"label": "category", "text": "text"},
    "one class": {"text": "text"},
    "vectors only": {"id": "key", "vectors": "embedding"},
    "vectors beside texts": {"text": "text", "vectors": "vec"},
    "tokens": {"tokens": "input_ids"},
    "instructions": {"source": "source", "text": "instruction"},
    "class folders": {"id": "path", "image": "image", "label": "label"},
    "one folder of images": {"id": "path", "image": "image"},
    "images in a table": {"image": "pic", "text": "caption"},
    "Hugging Face": {"id": "idx", "label": "label", "text": "sentence"},
    "two files": {"text": "content"},
    "copies and empty texts": {"text": "text"},
    "ids that are no ids": {"text": "text"},
    "one row": {"text": "text"},
    "Chinese": {"text": "story"},
}
STAGES = {
    "parquet": ["embed", "dedup", "score", "select"],
    "many classes": ["embed", "dedup", "select"],
    "one class": ["embed", "dedup", "select"],
    "vectors only": ["embed", "dedup", "select"],
    "class folders": ["embed", "dedup", "score", "select"],
}
ENCODERS = {"vectors only": "vectors", "vectors beside texts": "vectors", "class folders": "pixels", "tokens": "lsa"}
PER = {"parquet": "label", "instructions": "source", "two files": "source", "many classes": None, "one class": None}


@pytest.mark.parametrize("shape", FOUND)
def test_the_recipe_runs_as_it_is(shape, shapes, tmp_path, cli):
    data, recipe = shapes[shape](), tmp_path / "r.yaml"
    result = cli("init", data, "--out", recipe, "--json")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["fields"] == FOUND[shape]
    for role, column in facts["fields"].items():
        assert f"{role}: {column!r}, " in result.stderr
    raw, _ = load_recipe_text(recipe.read_text(), "r.yaml")
    kinds = [stage["kind"] for stage in raw["stages"]]
    assert kinds == STAGES.get(shape, kinds)
    assert raw["stages"][0]["encoder"] == ENCODERS.get(shape, raw["stages"][0]["encoder"])
    (select,) = (stage for stage in raw["stages"] if stage["kind"] == "select")
    if "train" in raw:
        assert raw["train"]["sampler"] == ("random" if raw["train"]["model"] == "lm" else "full")
    assert select.get("per") == PER.get(shape, select.get("per"))
    tamis.run(recipe, tmp_path / "run", executor="sync")
    counts = dict(tamis.open_manifest(tmp_path / "run").record["counts"])
    assert counts.pop("rows") == sum(counts.values()) == facts["rows"]
    assert counts["quarantined"] == facts["bad"]


def test_it_says_why_it_took_no_id_and_no_label(shapes, tmp_path, cli, monkeypatch):
    monkeypatch.setattr(guessing, "_SAMPLED_ROWS", 50)
    result = cli("init", shapes["ids that are no ids"](), "--out", tmp_path / "a.yaml")
    assert "no id: 'id' is empty or the same in several rows" in result.stderr
    result = cli("init", shapes["one class"](), "--out", tmp_path / "b.yaml")
    assert "no label: 'label' has 1 value(s)" in result.stderr
    assert result.stdout.splitlines() == [
        f"{tmp_path / 'b.yaml'}",
        f"next: tamis run {tmp_path / 'b.yaml'} --out runs/first",
    ]


def test_the_next_step_does_not_run_into_another_recipes_folder(shapes, tmp_path, cli, monkeypatch):
    shapes["parquet"]()
    monkeypatch.chdir(tmp_path)
    assert cli("init", "d.parquet", "--out", "one.yaml").stdout.endswith("one.yaml --out runs/first\n")
    (tmp_path / "runs" / "first").mkdir(parents=True)
    assert cli("init", "d.parquet", "--out", "two.yaml").stdout.endswith("two.yaml --out runs/two\n")


def test_every_value_has_a_comment_and_any_yaml_reader_agrees(shapes, tmp_path, cli):
    recipe = tmp_path / "r.yaml"
    assert cli("init", shapes["csv with odd names"](), "--out", recipe).exit_code == 0
    assert yaml.safe_load(recipe.read_text()) == load_recipe_text(recipe.read_text(), "r.yaml")[0]
    lines = recipe.read_text().splitlines()
    assert lines[0] == "# A first recipe for my tweets.csv, by tamis init."
    stages = [place for place, line in enumerate(lines) if line.startswith("  - ")]
    assert all(lines[place - 1].startswith("  # ") for place in stages)


def test_a_relative_path_is_taken_from_the_recipe(shapes, tmp_path, cli, monkeypatch):
    shapes["parquet"]()
    (tmp_path / "recipes").mkdir()
    monkeypatch.chdir(tmp_path)
    assert cli("init", "d.parquet", "--out", "recipes/r.yaml").exit_code == 0
    assert "path: ../d.parquet" in (tmp_path / "recipes" / "r.yaml").read_text()
    assert cli("validate", "recipes/r.yaml").exit_code == 0


def test_bad_rows_beyond_those_looked_at_are_not_hidden(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(guessing, "_LOOKED_ROWS", 40)
    monkeypatch.setattr(guessing, "_BLOCK_ROWS", 20)
    found = guessing.guess(str(shapes["copies and empty texts"]()))
    assert (found.rows, found.looked, found.bad) == (N, 40, 0)


def test_it_overwrites_nothing(shapes, tmp_path, cli):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("mine")
    result = cli("init", shapes["parquet"](), "--out", recipe)
    assert (result.exit_code, result.stdout) == (5, "")
    assert "r.yaml exists and is not overwritten" in result.stderr
    assert recipe.read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("d.parquet", None, ["does not exist"]),
        ("d.jsonl", '{"a": 1, "b": true}\n', ["no column of", "a (int64), b (bool)", "tamis recipes --keys"]),
        ("d.csv", "text\n\n", ["d.csv"]),
        ("d.csv", "\ufeffid;text\n1;one, two\n", ["the header is 'id;text'", "semicolons", "with commas"]),
        ("d.csv", "id\ttext\n1\tone, two\n", ["tabs", "with commas"]),
        ("d.csv", b"id,text\n1,caf\xe9 au lait\n2,th\xe9 vert\n", ["2 of 2 rows have text that is not UTF-8"]),
        ("d.jsonl", '{"text": ""}\n{"text": " "}\n', ["none of the 2 rows", "can be used"]),
    ],
)
def test_what_is_refused(tmp_path, cli, name, content, parts):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    result = cli("init", tmp_path / name, "--out", tmp_path / "r.yaml")
    assert result.exit_code == 3, result.stderr
    for part in parts:
        assert part in result.stderr
    assert not (tmp_path / "r.yaml").exists()
