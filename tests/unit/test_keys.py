"""Every field that decides a result is in a key; nothing else is."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis.manifests.commit import commit
from tamis.manifests.schema import AUDIT, BODY_KEYS, SELECT
from tamis.pipelines.node import make_node
from tamis.pipelines.plan import make_plan
from tamis.pipelines.recipe import DatasetConfig, Recipe, StageConfig, TrainSection, load_recipe
from tamis.pipelines.sources import SourceFile
from tamis.pipelines.stages.commit import portable_recipe

SOURCES = (
    SourceFile("a.parquet", "/data/a.parquet", "parquet", 1000, "a" * 64, 100, ("id", "text", "label", "v", "i", "t")),
    SourceFile("b.parquet", "/data/b.parquet", "parquet", 900, "b" * 64, 90, ("id", "text", "label", "v", "i", "t")),
)
DATASET = {"path": "/data", "id": "id", "text": "text", "label": "label"}

EMBED = {"kind": "embed"}
PIXELS = {"kind": "embed", "encoder": "pixels"}
SCORE = {"kind": "score", "method": "proxy"}
CLUSTER = {"kind": "cluster"}
SENTENCE = {"kind": "embed", "encoder": "sentence: model"}
FILE_SCORE = {"kind": "score", "from": "losses.csv"}
DENSITY = {"kind": "prune", "method": "density"}
LOSS = {"kind": "prune", "method": "loss", "drop_highest": 0.1, "drop_lowest": 0.1}
FACILITY = {"kind": "select", "method": "facility_location", "budget": 0.25}
TARGETED = {"kind": "select", "method": "targeted", "budget": 0.25, "queries": "v.npy"}
CONDITIONAL = {"kind": "select", "method": "conditional", "budget": 0.25, "avoid": "v.npy"}
AGAINST = {"kind": "dedup", "against": ["eval.parquet"]}
INGENIOUS = {"kind": "select", "method": "ingenious", "budget": 0.25}
PICK = {"kind": "pick", "ids": "losses.csv"}

# For each field of each stage: the stages before, the stage in which the field matters, and another value.
# A new field without an entry fails `test_every_field_is_listed`.
ALTERNATIVES = {
    "embed": {
        "encoder": ([], EMBED, "vectors: v.npy"),
        "dim": ([], EMBED, 17),
        "max_features": ([], EMBED, 99),
        "fit_rows": ([], EMBED, 50),
        "image_size": ([], PIXELS, 14),
        "max_tokens": ([], SENTENCE, 64),
        "batch_size": ([], SENTENCE, 8),
    },
    "dedup": {
        "eps": ([EMBED], {"kind": "dedup"}, 0.04),
        "floor": ([EMBED], {"kind": "dedup"}, 0.8),
        "which_to_keep": ([EMBED], {"kind": "dedup"}, "easy"),
        "n_clusters": ([EMBED], {"kind": "dedup"}, 3),
        "fit_rows": ([EMBED], {"kind": "dedup"}, 50),
        "probes": ([EMBED], {"kind": "dedup"}, 2),
        "against": ([EMBED], {"kind": "dedup"}, ["eval.parquet"]),
        "against_action": ([EMBED], AGAINST, "drop"),
    },
    "cluster": {
        "n_clusters": ([EMBED], CLUSTER, 3),
        "iterations": ([EMBED], CLUSTER, 3),
        "fit_rows": ([EMBED], CLUSTER, 50),
    },
    "score": {
        "method": ([EMBED], FILE_SCORE, {"method": "proxy", "from": None}),
        "from_": ([EMBED], FILE_SCORE, {"from": "other.csv"}),
        "column": ([EMBED], FILE_SCORE, "l"),
        "id_column": ([EMBED], FILE_SCORE, "i"),
        "missing": ([EMBED], FILE_SCORE, "median"),
        "folds": ([EMBED], SCORE, 3),
        "fit_rows": ([EMBED], SCORE, 50),
        "c": ([EMBED], SCORE, 1.0),
        "min_accuracy": ([EMBED], SCORE, 0.1),
    },
    "prune": {
        "method": ([EMBED, CLUSTER, SCORE], DENSITY, {"method": "loss", "drop_highest": 0.1}),
        "keep": ([EMBED, CLUSTER], DENSITY, 0.5),
        "temperature": ([EMBED, CLUSTER], DENSITY, 0.2),
        "neighbours": ([EMBED, CLUSTER], DENSITY, 5),
        "balance": ([EMBED, CLUSTER], DENSITY, 0.5),
        "which_to_keep": ([EMBED, CLUSTER], DENSITY, "random"),
        "drop_highest": ([EMBED, SCORE], LOSS, 0.2),
        "drop_lowest": ([EMBED, SCORE], LOSS, 0.2),
    },
    "select": {
        "method": ([EMBED], FACILITY, "random"),
        "budget": ([EMBED], FACILITY, 0.5),
        "temperature": ([EMBED], INGENIOUS, 2.0),
        "scale_free": ([EMBED], INGENIOUS, True),
        "partition_rows": ([EMBED], FACILITY, 64),
        "per": ([EMBED], FACILITY, "label"),
        "shares": ([EMBED], {**FACILITY, "per": "label"}, {"shares": {"a": 0.5}}),
        "engine": ([EMBED], FACILITY, "sparse"),
        "stop_gain": ([EMBED], FACILITY, 0.5),
        "random_beyond": ([EMBED], FACILITY, 0.5),
        "suspects": ([EMBED, SCORE], FACILITY, "last"),
        "continue_from": ([EMBED], FACILITY, "earlier"),
        "blocks": ([EMBED], INGENIOUS, "random"),
        "trade_off": ([EMBED], {"kind": "select", "method": "graph_cut", "budget": 0.25}, 0.25),
        "ridge": ([EMBED], {"kind": "select", "method": "log_det", "budget": 0.25}, 0.5),
        "n_clusters": ([EMBED], {"kind": "select", "method": "duqgen", "budget": 0.25}, 3),
        "queries": ([EMBED], TARGETED, "w.npy"),
        "eta": ([EMBED], TARGETED, 2.0),
        "avoid": ([EMBED], CONDITIONAL, "w.npy"),
        "nu": ([EMBED], CONDITIONAL, 0.5),
    },
    "pick": {
        "ids": ([], PICK, "other.csv"),
        "column": ([], PICK, "sample_id"),
        "missing": ([], PICK, "ignore"),
    },
    "schedule": {
        "epochs": ([EMBED, SCORE], {"kind": "schedule"}, 7),
        "num_group": ([EMBED, SCORE], {"kind": "schedule"}, 4),
        "window_scale": ([EMBED, SCORE], {"kind": "schedule"}, 0.25),
        "prune_ratio": ([EMBED, SCORE], {"kind": "schedule"}, 0.1),
        "delta": ([EMBED, SCORE], {"kind": "schedule"}, 0.5),
        "rule": ([EMBED, SCORE], {"kind": "schedule"}, "code"),
    },
    "reweight": {
        "strategy": ([EMBED, SCORE], {"kind": "reweight"}, "upper"),
        "r": ([EMBED, SCORE], {"kind": "reweight"}, 0.5),
        "clip": ([EMBED, SCORE], {"kind": "reweight"}, True),
    },
}

# Rows kept before are found at ingest, and an encoder is fitted on the rows that there were then.
ALSO_CHANGED = {("select", "continue_from"): {"ingest", "embed"}}

# Fields that do not matter to the stage given: they are in the manifest's record, and nowhere else.
IRRELEVANT = [
    ([], EMBED, {"max_tokens": 64}),
    ([], EMBED, {"batch_size": 8}),
    ([], EMBED, {"image_size": 14}),
    ([], PIXELS, {"max_features": 99, "max_tokens": 64, "batch_size": 8}),
    ([], SENTENCE, {"dim": 17, "max_features": 99, "fit_rows": 50, "image_size": 14}),
    ([EMBED], {"kind": "dedup", "eps": 0.0}, {"floor": 0.8, "which_to_keep": "easy", "n_clusters": 3}),
]

MODELS = {model.model_fields["kind"].default: model for model in get_args(get_args(StageConfig)[0])}


def single(field):
    """Whether a field can have one value only."""
    return len(get_args(field.annotation)) == 1 and field.default == get_args(field.annotation)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    rng = np.random.default_rng(0)
    np.save(folder / "v.npy", rng.standard_normal((190, 3)))
    np.save(folder / "w.npy", rng.standard_normal((190, 3)))
    pq.write_table(pa.table({"text": ["a", "b"], "i": [b"x", b"y"]}), folder / "eval.parquet")
    (folder / "losses.csv").write_text("sample_id,loss\nx,1.0\n")
    (folder / "other.csv").write_text("sample_id,loss\nx,2.0\n")
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    (folder / "model" / "model.safetensors").write_bytes(b"weights")
    commit_earlier(folder / "earlier")
    return folder


def commit_earlier(folder):
    """A manifest of the first source that keeps one row."""
    rows = {"sample_id": ["x"], "row": [0], "content_hash": [b"0" * 16], "reason": [0]}
    select = {**rows, "source": [0], "source_row": [0], "rank": [0], "weight": [1.0]}
    audit = {**rows, "decision": [0], "stage": [0]}
    fields = {role: name for role, name in DATASET.items() if role != "path"} | {"image": "i"}
    sources = [{"path": "a.parquet", "rows": 1, "bytes": 1, "sha256": "a" * 64}]
    dataset = {"fingerprint": "f", "rows": 1, "schema": "s", "fields": fields, "sources": sources}
    body = dict.fromkeys(BODY_KEYS) | {"dataset": dataset, "stages": [{"name": "00-ingest"}], "reasons": ["kept"]}
    tables = {
        name: pa.table({field.name: given.get(field.name, [None]) for field in schema}, schema=schema)
        for name, given, schema in (("select", select, SELECT), ("audit", audit, AUDIT))
    }
    commit(folder, **tables, body=body | {"scores": {}, "recipe": {}, "required_features": []})


def keys(raw, folder, sources=SOURCES, out=Path("/out"), limit=None):
    """Node name -> key."""
    plan = make_plan(load_recipe(raw)[0], sources, folder, out, "/data", limit)
    return {name: node.key for name, node in plan.nodes.items()}


def recipe_of(stages, dataset=DATASET, **others):
    return {"name": "x", "dataset": dataset, "stages": list(stages), **others}


def tasks(found):
    """What a node is, without the stage's place: embed/block."""
    return {name.partition("-")[2].partition("/")[0] for name in found}


def changed(before, after):
    """Names of nodes whose keys differ or that only one of the two has, the commit left out."""
    names = before.keys() | after.keys()
    return {name for name in names if before.get(name) != after.get(name) and "-commit/" not in name}


def commit_key(found):
    (key,) = (key for name, key in found.items() if "-commit/" in name)
    return key


def test_every_field_is_listed():
    assert ALTERNATIVES.keys() == MODELS.keys()
    for kind, model in MODELS.items():
        fields = {name for name, field in model.model_fields.items() if not single(field)}
        assert ALTERNATIVES[kind].keys() == fields, kind
        for name, (_, stage, _) in ALTERNATIVES[kind].items():
            assert stage["kind"] == kind, (kind, name)


@pytest.mark.parametrize(
    ("kind", "field"), [(kind, field) for kind, fields in ALTERNATIVES.items() for field in fields]
)
def test_a_field_that_decides_the_result_changes_the_keys(folder, kind, field):
    before, stage, value = ALTERNATIVES[kind][field]
    update = value if isinstance(value, dict) else {field: value}
    other = {key: item for key, item in {**stage, **update}.items() if item is not None}
    assert other != stage
    dataset = DATASET | {"image": "i"}
    old = keys(recipe_of([*before, stage], dataset), folder)
    new = keys(recipe_of([*before, other], dataset), folder)
    assert commit_key(old) != commit_key(new)
    # Not only the record says so: a node of the stage itself is another one, and no stage before it is.
    assert tasks(changed(old, new)) == {kind} | ALSO_CHANGED.get((kind, field), set())


@pytest.mark.parametrize(("before", "stage", "update"), IRRELEVANT)
def test_a_field_that_the_method_does_not_use_changes_the_record_alone(folder, before, stage, update):
    dataset = DATASET | {"image": "i"}
    old = keys(recipe_of([*before, stage], dataset), folder)
    new = keys(recipe_of([*before, {**stage, **update}], dataset), folder)
    assert changed(old, new) == set()
    assert commit_key(old) != commit_key(new)


# --- the recipe's own fields ---

RECIPE_FIELDS = {
    "name": "other",
    "seed": 5,
    "dataset": None,  # field by field below
    "stages": None,  # above
    "train": {"epochs": 3},
    "numeric": "portable",
    "block_rows": 64,
    "max_bad_fraction": 0.01,
    "max_text_bytes": 500,
}
TRAIN_FIELDS = {
    "model": "lm",
    "epochs": 3,
    "batch_size": 7,
    "lr": 0.5,
    "weight_decay": 0.1,
    "sampler": "full",
    "prune_ratio": 0.25,
    "ceiling": 0.1,
    "weights": "upper",
    "r": 0.7,
    "clip": True,
    "warmup_steps": 5,
    "token_weights": True,
    "precision": "bfloat16",
    "image_size": 16,
    "width": 64,
    "layers": 2,
}
DATASET_FIELDS = {
    "path": "/elsewhere", "id": "label", "text": "label", "image": "i", "tokens": "t", "vectors": "v", "label": "text",
    "source": "label",
}  # fmt: skip
SEEDED = [EMBED, {"kind": "dedup"}, CLUSTER, SCORE, DENSITY, INGENIOUS]


def test_every_field_of_the_recipe_is_listed():
    assert RECIPE_FIELDS.keys() == Recipe.model_fields.keys()
    assert DATASET_FIELDS.keys() == DatasetConfig.model_fields.keys()


@pytest.mark.parametrize(
    ("field", "stages_changed"),
    [
        ("seed", {"dedup", "cluster", "score", "prune", "select"}),
        ("block_rows", {"ingest", "embed", "dedup", "cluster", "score", "prune", "select"}),
        ("max_bad_fraction", {"ingest", "embed", "dedup", "cluster", "score", "prune", "select"}),
        ("max_text_bytes", {"ingest", "embed", "dedup", "cluster", "score", "prune", "select"}),
    ],
)
def test_a_global_field_changes_the_stages_that_use_it(folder, field, stages_changed):
    old, new = keys(recipe_of(SEEDED), folder), keys(recipe_of(SEEDED, **{field: RECIPE_FIELDS[field]}), folder)
    assert tasks(changed(old, new)) == stages_changed
    assert commit_key(old) != commit_key(new)


@pytest.mark.parametrize("method", ["ingenious", "random", "stratified"])
def test_the_seed_changes_each_random_selection(folder, method):
    stages = [EMBED, {"kind": "select", "method": method, "budget": 0.5}]
    old, new = keys(recipe_of(stages), folder), keys(recipe_of(stages, seed=5), folder)
    assert "02-select/take" in changed(old, new)


def test_the_place_of_a_stage_is_in_its_seed(folder):
    select = {"kind": "select", "method": "random", "budget": 0.5}
    one = keys(recipe_of([select]), folder)
    two = keys(recipe_of([{"kind": "select", "method": "random", "budget": 1.0}, select]), folder)
    assert one["01-select/take"] != two["02-select/take"]


@pytest.mark.parametrize(
    "update",
    [{"name": "other"}, *({"train": {field: value}} for field, value in TRAIN_FIELDS.items())],
    ids=str,
)
def test_name_and_training_are_in_the_record_alone(folder, update):
    old, new = keys(recipe_of(SEEDED), folder), keys(recipe_of(SEEDED, **update), folder)
    assert changed(old, new) == set()
    assert commit_key(old) != commit_key(new)


def test_a_ceiling_of_nothing_is_not_in_the_record(folder):
    old, new = (keys(recipe_of(SEEDED, train=train), folder) for train in ({}, {"ceiling": 0.0}))
    assert commit_key(old) == commit_key(new)
    for ceiling, recorded in ((0.0, False), (0.1, True)):
        recipe = load_recipe(recipe_of(SEEDED, train={"ceiling": ceiling}))[0]
        assert ("ceiling" in portable_recipe(recipe)["train"]) == recorded


def test_every_training_field_is_above():
    fields = {name for name, field in TrainSection.model_fields.items() if not single(field)}
    assert fields == TRAIN_FIELDS.keys()


@pytest.mark.parametrize("field", ["id", "text", "image", "tokens", "vectors", "label", "source"])
def test_the_columns_of_the_dataset_are_in_the_keys(folder, field):
    old = keys(recipe_of([{"kind": "dedup", "eps": 0.0}]), folder)
    dataset = {**DATASET, field: DATASET_FIELDS[field]}
    new = keys(recipe_of([{"kind": "dedup", "eps": 0.0}], dataset), folder)
    assert tasks(changed(old, new)) == {"ingest", "dedup"}
    assert commit_key(old) != commit_key(new)


def test_the_decoder_of_images_is_in_the_keys(folder, monkeypatch):
    from tamis.pipelines.stages import embed, ingest

    dataset = {"path": "/data", "image": "i"}
    old, texts = keys(recipe_of([PIXELS], dataset), folder), keys(recipe_of([EMBED]), folder)
    for module in (ingest, embed):
        monkeypatch.setattr(module, "version_of", lambda name: f"another {name}")
    assert tasks(changed(old, keys(recipe_of([PIXELS], dataset), folder))) == {"ingest", "embed"}
    # Who has no images does not depend on it.
    assert keys(recipe_of([EMBED]), folder) == texts


@pytest.mark.parametrize("update", [{"dim": 17}, {"fit_rows": 50}, {"image_size": 14}], ids=str)
def test_the_options_of_pixels_are_in_the_keys(folder, update):
    dataset = {"path": "/data", "image": "i"}
    old, new = (keys(recipe_of([stage], dataset), folder) for stage in (PIXELS, PIXELS | update))
    assert {"01-embed/fit_pixels", "01-embed/block/00000"} <= changed(old, new)
    assert tasks(changed(old, new)) == {"embed"}


def test_tokens_are_embedded_only_where_there_is_no_text(folder):
    """Else they are in the content hashes alone."""
    both = make_plan(load_recipe(recipe_of([EMBED], DATASET | {"tokens": "t"}))[0], SOURCES, folder, Path("/out"), "d")
    alone = make_plan(
        load_recipe(recipe_of([EMBED], {"path": "d", "tokens": "t"}))[0], SOURCES, folder, Path("/out"), "d"
    )
    for name in ("01-embed/fit", "01-embed/block/00000"):
        assert "role" not in both.nodes[name].params
        assert alone.nodes[name].params["role"] == "tokens"


def test_leaving_a_column_out_changes_the_keys(folder):
    old = keys(recipe_of([EMBED]), folder)
    for field in ("id", "label"):
        dataset = {key: value for key, value in DATASET.items() if key != field}
        assert tasks(changed(old, keys(recipe_of([EMBED], dataset), folder))) == {"ingest", "embed"}


def test_the_data_are_in_the_keys(folder):
    old = keys(recipe_of([EMBED]), folder)
    other = (SOURCES[0], replace(SOURCES[1], sha256="c" * 64))
    new = keys(recipe_of([EMBED]), folder, other)
    # The first file's block is the same node still.
    assert "00-ingest/block/00000" not in changed(old, new)
    assert "00-ingest/block/00001" in changed(old, new)
    assert commit_key(old) != commit_key(new)
    # The same rows in the other order are another dataset: rows have other numbers.
    assert commit_key(keys(recipe_of([EMBED]), folder, SOURCES[::-1])) != commit_key(old)
    assert commit_key(keys(recipe_of([EMBED]), folder, limit=150)) != commit_key(old)
    # A file's name and its columns are in the dataset's fingerprint, and in no result.
    for renamed in (replace(SOURCES[1], path="c.parquet"), replace(SOURCES[1], columns=("id", "text", "label"))):
        new = keys(recipe_of([EMBED]), folder, (SOURCES[0], renamed))
        assert changed(old, new) == set()
        assert commit_key(old) != commit_key(new)


def test_a_new_file_keeps_the_embeddings_of_the_old_ones(folder):
    stages = [{"kind": "embed", "encoder": "sentence: model"}]
    more = (*SOURCES, replace(SOURCES[1], path="c.parquet", sha256="c" * 64))
    old, new = keys(recipe_of(stages), folder), keys(recipe_of(stages), folder, more)
    assert {"00-ingest/block/00000", "01-embed/block/00000", "01-embed/block/00001"}.isdisjoint(changed(old, new))


@pytest.mark.parametrize("encoder", ["vectors: v.npy", "sentence: model"])
def test_what_an_outside_file_holds_is_in_the_keys(folder, tmp_path, encoder):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    stages = [{"kind": "embed", "encoder": encoder}]
    old = keys(recipe_of(stages), folder)
    assert keys(recipe_of(stages), copy) == old
    (copy / "v.npy").write_bytes((folder / "w.npy").read_bytes())
    (copy / "model" / "model.safetensors").write_bytes(b"weightz")
    assert tasks(changed(old, keys(recipe_of(stages), copy))) == {"embed"}


def test_what_a_loss_file_holds_is_in_the_keys(folder, tmp_path):
    (tmp_path / "losses.csv").write_text((folder / "losses.csv").read_text())
    old = keys(recipe_of([FILE_SCORE]), folder)
    assert keys(recipe_of([FILE_SCORE]), tmp_path) == old
    (tmp_path / "losses.csv").write_text((folder / "other.csv").read_text())
    assert tasks(changed(old, keys(recipe_of([FILE_SCORE]), tmp_path))) == {"score"}


def test_what_a_reference_set_holds_is_in_the_keys(folder, tmp_path):
    old = keys(recipe_of([EMBED, AGAINST]), folder)
    pq.write_table(pa.table({"text": ["a", "c"]}), tmp_path / "eval.parquet")
    new = keys(recipe_of([EMBED, AGAINST]), tmp_path)
    assert tasks(changed(old, new)) == {"dedup"}
    # The reference is embedded as the dataset was.
    assert "02-dedup/encode/00000" in changed(old, keys(recipe_of([EMBED | {"dim": 17}, AGAINST]), folder))


def test_a_budget_of_bytes_leaves_the_partitions_as_they_are(folder):
    old, new = (keys(recipe_of([EMBED, FACILITY | {"budget": b}]), folder) for b in (0.25, {"bytes": 500}))
    assert changed(old, new) == {"02-select/count/00000", "02-select/rank/00000", "02-select/take"}


# --- what must change nothing ---


def test_places_are_in_no_key(folder, tmp_path):
    old = keys(recipe_of(SEEDED), folder)
    assert keys(recipe_of(SEEDED), folder, out=tmp_path) == old
    moved = tuple(replace(source, location=f"/mnt{source.location}") for source in SOURCES)
    assert keys(recipe_of(SEEDED, {**DATASET, "path": "/elsewhere"}), folder, moved) == old
    # Where the vectors, the model and the recipe lie says nothing either.
    copy = tmp_path / "deep" / "er"
    shutil.copytree(folder, copy)
    for stage, elsewhere in (
        (SENTENCE, {"kind": "embed", "encoder": f"sentence: {copy / 'model'}"}),
        (
            {"kind": "embed", "encoder": "vectors: v.npy"},
            {"kind": "embed", "encoder": f"vectors: {copy / 'v.npy'}"},
        ),
        (FILE_SCORE, {"kind": "score", "from": str(copy / "losses.csv")}),
        (AGAINST | {"eps": 0.0}, {**AGAINST, "eps": 0.0, "against": [str(copy / "eval.parquet")]}),
    ):
        assert keys(recipe_of([elsewhere]), folder) == keys(recipe_of([stage]), folder)


def test_writing_the_defaults_out_changes_nothing(folder):
    spelled = [stage | {"dim": 256, "fit_rows": 100_000} if stage["kind"] == "embed" else {**stage} for stage in SEEDED]
    assert keys(recipe_of(spelled, seed=0, block_rows=4096, train={"epochs": 12}), folder) == keys(
        recipe_of(SEEDED), folder
    )


PRINT_KEYS = """
import json, sys
from pathlib import Path
from tamis.pipelines.plan import make_plan
from tamis.pipelines.recipe import load_recipe
from tamis.pipelines.sources import SourceFile
raw, sources, folder = json.loads(sys.argv[1])
sources = tuple(SourceFile(**{**s, "columns": tuple(s["columns"])}) for s in sources)
plan = make_plan(load_recipe(raw)[0], sources, Path(folder), Path("/out"), "/data")
print(json.dumps({name: node.key for name, node in plan.nodes.items()}))
"""


def test_the_environment_is_in_no_key(folder, tmp_path):
    from dataclasses import asdict

    given = json.dumps([recipe_of(SEEDED), [asdict(source) for source in SOURCES], str(folder)])
    here = keys(recipe_of(SEEDED), folder)
    for number, zone in ((1, "Asia/Kathmandu"), (4242, "America/St_Johns")):
        environment = os.environ | {
            "PYTHONHASHSEED": str(number), "TZ": zone, "LANG": "C", "LC_ALL": "C",
            "OMP_NUM_THREADS": str(1 + number % 2), "PYTHONPATH": os.pathsep.join(sys.path),
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", PRINT_KEYS, given], env=environment, cwd=tmp_path, capture_output=True, check=True
        )
        assert json.loads(done.stdout) == here


@pytest.mark.parametrize(
    "value",
    [np.float64(0.5), np.int64(3), {1, 2}, float("nan"), float("inf"), b"x", object(), Path("/x"), {1: 2}, "\ud800"],
)
def test_a_value_without_a_stable_encoding_is_refused(value):
    with pytest.raises(TypeError, match=r"\$\.params"):
        make_node("00-x/exact", 0, "dedup.exact", {"p": [value]}, {})


def test_a_change_of_the_code_version_changes_the_key(monkeypatch):
    from tamis.pipelines.stages import dedup

    old = make_node("00-x/exact", 0, "dedup.exact", {}, {})
    monkeypatch.setitem(dedup.TASKS, "exact", replace(dedup.TASKS["exact"], version=99))
    assert make_node("00-x/exact", 0, "dedup.exact", {}, {}).key != old.key
    # The name is for people.
    monkeypatch.undo()
    assert make_node("07-y/exact", 7, "dedup.exact", {}, {}, {"file": "/x"}).key == old.key
