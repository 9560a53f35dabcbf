"""Datasets of images and of token blocks, from their files to an exported subset; bad ones refused or set aside."""

import gzip
import io
import json
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import tamis
from tamis.exports import FORMATS
from tamis.manifests.schema import DECISIONS
from tamis.pipelines.dataset import scan_all
from tamis.pipelines.sources import take_rows
from tamis.pipelines.stages.ingest import CONTENT_ROLES, content_hashes, sample_table

N = 150
SIDE = 12
EXACT = {"kind": "dedup", "eps": 0.0}
PIXELS = {"kind": "embed", "encoder": "pixels", "dim": 16}
LSA = {"kind": "embed", "dim": 16}
WHOLE = [
    {"kind": "dedup", "eps": 0.001},
    {"kind": "cluster", "n_clusters": 4},
    {"kind": "score", "method": "proxy", "folds": 3},
    {"kind": "select", "method": "facility_location", "budget": 0.2, "per": "label"},
]


def pixels_of(labels, seed=0):
    """A bar for each class, in some place and strength, and noise; row 3 is row 2 again."""
    rng = np.random.default_rng(seed)
    made = rng.integers(0, 40, (len(labels), SIDE, SIDE))
    for image, label in zip(made, labels, strict=True):
        at = 3 * label + int(rng.integers(3))
        image[at : at + 2] += int(rng.integers(120, 200))
    if len(made) > 3:
        made[3] = made[2]
    return made.astype(np.uint8)


LABELS = np.random.default_rng(1).integers(0, 3, N)
LABELS[3] = LABELS[2]
IMAGES = pixels_of(LABELS)


def encoded(pixels, kind="PNG"):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def write_idx(folder, ending=".gz"):
    folder.mkdir(exist_ok=True)
    pack = gzip.compress if ending else bytes
    images, labels = (folder / f"train-{name}-ubyte{ending}" for name in ("images-idx3", "labels-idx1"))
    images.write_bytes(pack(struct.pack(">I3I", 0x803, *IMAGES.shape) + IMAGES.tobytes()))
    labels.write_bytes(pack(struct.pack(">II", 0x801, N) + LABELS.astype(np.uint8).tobytes()))
    return images


def write_folder(folder):
    for i, (pixels, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
        (folder / f"class{label}").mkdir(exist_ok=True, parents=True)
        (folder / f"class{label}" / f"{i:03d}.png").write_bytes(encoded(pixels))
    return folder


def write_struct(path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [{"bytes": encoded(pixels, "PNG"), "path": f"{i}.png"} for i, pixels in enumerate(IMAGES)]
    ids = [f"i{i}" for i in range(N)]
    pq.write_table(pa.table({"id": ids, "image": pa.array(images, kind), "label": LABELS}), path)
    return path


def blocks_of(labels, seed=0):
    """Blocks of 32 tokens: most from the class's own range."""
    rng = np.random.default_rng(seed)
    blocks = [
        np.where(rng.random(32) < 0.7, 1000 * (label + 1) + rng.integers(0, 30, 32), rng.integers(0, 50, 32)).tolist()
        for label in labels
    ]
    blocks[3] = blocks[2]
    return blocks


def write_tokens(path):
    tokens = pa.array(blocks_of(LABELS), pa.list_(pa.int32()))
    pq.write_table(pa.table({"tokens": tokens, "label": LABELS}), path)
    return path


@pytest.fixture
def go(tmp_path, recipe, cli):
    """Run stages on a dataset through the command line."""

    def go(data, stages, out="out", dataset=None, code=0, **others):
        roles = {"id": None, "text": None, "image": "image"} | (dataset or {})
        path = recipe(data, stages, dataset=roles, **others)
        result = cli("run", path, "--out", tmp_path / out, "--executor", "sync", "--json")
        assert result.exit_code == code, result.output + result.stderr
        return json.loads(result.stdout) if code == 0 else result.stderr

    return go


def decisions(out):
    names = list(DECISIONS)
    manifest = tamis.open_manifest(out)
    return {row["row"]: (names[row["decision"]], manifest.reasons[row["reason"]]) for row in manifest.audit.to_pylist()}


def quarantined(out):
    return {row: reason for row, (name, reason) in decisions(out).items() if name == "quarantined"}


def stage_facts(facts, label):
    return next(stage["facts"] for stage in facts["stages"] if stage["stage"] == label)


def check_outputs(tmp_path, cli, data, fields):
    """Every verb that shows or writes rows takes them; the hashes are those of the rows that training reads."""
    out = tmp_path / "out"
    manifest = tamis.open_manifest(out)
    first = manifest.select["sample_id"][0].as_py()
    assert "kept" in cli("why", first, "--run", out).stdout
    assert cli("report", out).exit_code == 0
    page = (out / "report.html").read_text()
    assert "facility_location" in page
    assert len(page) < 200_000
    for to in FORMATS:
        result = cli("export", out, "--to", to, "--out", tmp_path / f"subset.{to}")
        assert result.exit_code == 0, result.stderr
    rows = manifest.select["row"].to_numpy()
    table = take_rows(scan_all(str(data)), rows)
    exported = pq.read_table(tmp_path / "subset.parquet").select(table.column_names)
    assert exported.to_pylist() == table.to_pylist()
    lines = [json.loads(line) for line in (tmp_path / "subset.jsonl").read_text().splitlines()]
    assert [line["tamis_id"] for line in lines] == manifest.select["sample_id"].to_pylist()
    samples = sample_table(table, fields)
    roles = tuple(role for role in CONTENT_ROLES if role in fields)
    assert content_hashes(samples, roles).to_pylist() == manifest.select["content_hash"].to_pylist()


def check_whole(facts, manifest, rows=N):
    """Row 3 is a duplicate of row 2, a fifth of each class is kept, and the embedding tells the classes."""
    assert facts["rows"] == rows
    assert stage_facts(facts, "04-score")["out_of_fold_accuracy"] > 0.95
    assert facts["counts"]["exact_dup"] >= 1
    assert facts["counts"]["quarantined"] == 0
    assert facts["kept"] == rows // 5
    assert len(manifest.record["classes"]) == 3


# --- end to end


def test_idx(tmp_path, go, cli):
    path = write_idx(tmp_path / "d")
    facts = go(path, [{**PIXELS, "image_size": SIDE}, *WHOLE])
    manifest = tamis.open_manifest(tmp_path / "out")
    check_whole(facts, manifest)
    assert manifest.record["classes"] == ["0", "1", "2"]
    assert "pillow" in manifest.record["libraries"]
    assert decisions(tmp_path / "out")[3][0] == "exact_dup"
    check_outputs(tmp_path, cli, path, {"image": "image", "label": "label"})


def test_a_folder_of_class_folders(tmp_path, go, cli):
    folder = write_folder(tmp_path / "bars")
    facts = go(folder, [PIXELS, *WHOLE], dataset={"id": "path"})
    manifest = tamis.open_manifest(tmp_path / "out")
    check_whole(facts, manifest)
    assert manifest.record["classes"] == ["class0", "class1", "class2"]
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    assert manifest.audit["sample_id"].to_pylist() == names
    check_outputs(tmp_path, cli, folder, {"id": "path", "image": "image", "label": "label"})


def test_a_struct_of_bytes_and_path(tmp_path, go, cli):
    path = write_struct(tmp_path / "rows.parquet")
    check_whole(go(path, [PIXELS, *WHOLE], dataset={"id": "id"}), tamis.open_manifest(tmp_path / "out"))
    check_outputs(tmp_path, cli, path, {"id": "id", "image": "image", "label": "label"})


def test_a_saved_dataset_with_an_image_feature(tmp_path, go):
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=3)})
    rows = {"image": [Image.fromarray(pixels) for pixels in IMAGES], "label": LABELS.tolist()}
    data = datasets.Dataset.from_dict(rows, features=features)
    datasets.disable_progress_bars()
    data.save_to_disk(str(tmp_path / "saved"))
    check_whole(go(tmp_path / "saved", [PIXELS, *WHOLE]), tamis.open_manifest(tmp_path / "out"))
    recipe = {"name": "x", "dataset": {"image": "image", "label": "label"}, "stages": [PIXELS, EXACT]}
    done = tamis.run(recipe, tmp_path / "memory", data=data, executor="sync")
    assert done.open_manifest().audit.num_rows == N


def test_tokens(tmp_path, go, cli):
    path = write_tokens(tmp_path / "rows.parquet")
    facts = go(path, [LSA, *WHOLE], dataset={"image": None, "tokens": "tokens"})
    check_whole(facts, tamis.open_manifest(tmp_path / "out"))
    check_outputs(tmp_path, cli, path, {"tokens": "tokens", "label": "label"})


def test_tokens_beside_text_count_as_content(tmp_path, go):
    """The text is embedded; two rows of one text with other tokens are no exact duplicates."""
    texts = [f"word{i} of text" for i in range(10)] * 2
    tokens = pa.array([[i, 1] for i in range(10)] + [[0, 1]] + [[i, 2] for i in range(1, 10)])
    pq.write_table(pa.table({"text": texts, "tokens": tokens, "label": ["x"] * 20}), tmp_path / "rows.parquet")
    go(tmp_path / "rows.parquet", [LSA, EXACT], dataset={"image": None, "text": "text", "tokens": "tokens"})
    assert [row for row, (name, _) in decisions(tmp_path / "out").items() if name == "exact_dup"] in ([0], [10])


def test_images_with_vectors_of_their_own(tmp_path, go):
    vectors = pa.array(np.random.default_rng(0).standard_normal((N, 4)).tolist())
    table = pq.read_table(write_struct(tmp_path / "rows.parquet")).append_column("v", vectors)
    pq.write_table(table, tmp_path / "rows.parquet")
    stages = [{"kind": "embed", "encoder": "vectors"}, *WHOLE[:2]]
    assert go(tmp_path / "rows.parquet", stages, dataset={"vectors": "v"})["counts"]["quarantined"] == 0


# --- the same result however the data lie


def test_idx_by_file_glob_and_folder(tmp_path, go):
    path = write_idx(tmp_path / "d")
    found = [
        go(given, [PIXELS, *WHOLE], out=f"out{i}")["subset_id"]
        for i, given in enumerate((path, tmp_path / "d", tmp_path / "d" / "*", tmp_path / "d" / "*images*"))
    ]
    assert len(set(found)) == 1


def test_compression_is_another_file_with_the_same_rows(tmp_path, go):
    one, other = (go(write_idx(tmp_path / f"d{i}", e), [PIXELS, *WHOLE], f"out{i}") for i, e in enumerate(("", ".gz")))
    assert one["subset_id"] != other["subset_id"]
    first, second = (tamis.open_manifest(tmp_path / f"out{i}").select for i in range(2))
    assert first == second


def test_the_same_images_in_any_container_are_the_same_samples(tmp_path, go):
    """PNG bytes in a folder, a struct and a plain column: hashes and order of the choice do not differ."""
    folder = write_folder(tmp_path / "bars")
    table = take_rows(scan_all(str(folder)), np.arange(N))
    pq.write_table(table, tmp_path / "rows.parquet")
    paths = (folder, tmp_path / "rows.parquet")
    for i, path in enumerate(paths):
        go(path, [PIXELS, *WHOLE], f"out{i}", dataset={"id": "path"})
    first, second = (tamis.open_manifest(tmp_path / f"out{i}").select for i in range(2))
    assert first == second


def test_any_executor_and_limit(tmp_path, recipe, cli, manifest_bytes):
    path = recipe(write_idx(tmp_path / "d"), [PIXELS, *WHOLE], dataset={"id": None, "text": None, "image": "image"})
    for name, options in (("sync", ["--executor", "sync"]), ("local", ["--workers", "2"])):
        result = cli("run", path, "--out", tmp_path / name, "--limit", "100", *options, "--json")
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["rows"] == 100
    assert manifest_bytes(tmp_path / "sync") == manifest_bytes(tmp_path / "local")


def test_a_plan_is_estimated(tmp_path, recipe, cli):
    path = recipe(write_idx(tmp_path / "d"), [PIXELS, *WHOLE], dataset={"id": None, "text": None, "image": "image"})
    result = cli("plan", path, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert "01-embed" in result.stdout


# --- encoders


def test_grey_and_colour_images_are_embedded_together(tmp_path, go):
    """Grey alone in the first blocks, colour in the last."""
    colour = np.repeat(IMAGES[:, :, :, None], 3, axis=3).copy()
    colour[:, :, :, 0] //= 2
    images = [encoded(IMAGES[i] if i < 100 else colour[i]) for i in range(N)]
    pq.write_table(pa.table({"image": images, "label": LABELS}), tmp_path / "rows.parquet")
    facts = go(tmp_path / "rows.parquet", [{**PIXELS, "image_size": 6}])
    assert facts["counts"]["quarantined"] == 0
    assert stage_facts(facts, "01-embed")["shape"] == [3, 6, 6]


def test_images_of_any_size_are_brought_to_one(tmp_path, go):
    images = [encoded(np.resize(IMAGES[i], (3 + i % 40, 5 + i % 17))) for i in range(N)]
    pq.write_table(pa.table({"image": images, "label": LABELS}), tmp_path / "rows.parquet")
    assert stage_facts(go(tmp_path / "rows.parquet", [PIXELS]), "01-embed")["shape"] == [1, 28, 28]


def test_images_that_are_all_one(tmp_path, go):
    """And one that is not: none is a zero vector, and those of the same pixels are near duplicates in any format."""
    images = [encoded(IMAGES[0], kind) for kind in ("PNG", "BMP", "PPM", "TIFF")] * 5
    pq.write_table(pa.table({"image": images, "label": ["x"] * 20}), tmp_path / "rows.parquet")
    facts = go(tmp_path / "rows.parquet", [PIXELS, {"kind": "dedup", "eps": 0.01}])
    assert (facts["kept"], facts["counts"]["exact_dup"], facts["counts"]["near_dup"]) == (1, 16, 3)
    assert stage_facts(facts, "01-embed")["unknown"] == 4 + 16


def test_one_image(tmp_path, go):
    pq.write_table(pa.table({"image": [encoded(IMAGES[0])], "label": ["x"]}), tmp_path / "rows.parquet")
    stages = [PIXELS, *WHOLE[:2], {"kind": "select", "method": "facility_location", "budget": 1.0}]
    assert go(tmp_path / "rows.parquet", stages)["kept"] == 1


@pytest.mark.parametrize(
    ("stage", "dataset", "code", "message"),
    [
        ({"kind": "embed"}, {}, 2, "embed with 'lsa' needs the dataset's text column; name it: dataset: "
         "{text: COLUMN}, or embed the images: encoder: pixels"),
        (PIXELS, {"image": None, "tokens": "tokens"}, 2, "embed with 'pixels' needs the dataset's image column"),
        ({"kind": "embed", "encoder": "sentence: x"}, {}, 2, "'sentence: x' needs the dataset's text column"),
        ({"kind": "embed", "encoder": "sentence: x"}, {"image": None, "tokens": "tokens"}, 2, "dataset's text column"),
        ({"kind": "embed", "encoder": "pixels: x"}, {}, 2, "its options are image_size and dim"),
        ({**PIXELS, "image_size": 65}, {}, 2, "less than or equal to 64"),
        ({**PIXELS, "image_size": 0}, {}, 2, "greater than or equal to 1"),
        ({**PIXELS, "image_size": 37}, {"image": "colour"}, 3, "give an image_size of 36 or less"),
        (PIXELS, {"image": "label"}, 3, "column 'label' is the image and holds int64; allowed are the bytes of image"),
        (PIXELS, {"image": "images"}, 3, "no column 'images'; did you mean 'image'?"),
        (EXACT, {"image": None, "tokens": "image"}, 3, "is the tokens and holds binary; allowed are lists of whole"),
        (EXACT, {"image": None}, 2, "text: COLUMN, image: COLUMN, tokens: COLUMN or vectors: COLUMN"),
    ],
)  # fmt: skip
def test_recipes_that_do_not_fit_the_data(tmp_path, go, stage, dataset, code, message):
    columns = {
        "image": [encoded(pixels) for pixels in IMAGES[:20]],
        "colour": [encoded(np.repeat(pixels[:, :, None], 3, axis=2)) for pixels in IMAGES[:20]],
        "tokens": blocks_of(LABELS)[:20],
        "label": LABELS[:20],
    }
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    assert message in go(tmp_path / "rows.parquet", [stage], dataset=dataset, code=code)


# --- bad rows


def test_bad_images_are_set_aside_each_with_its_reason(tmp_path, go):
    good = [encoded(pixels) for pixels in IMAGES[:40]]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": image, "path": None} for image in good]
    rows[1] = {"bytes": good[1][: len(good[1]) // 2], "path": None}
    rows[2] = {"bytes": b"<html>", "path": "page.html"}
    rows[5] = {"bytes": None, "path": "5.png"}
    rows[7] = None
    rows[8] = {"bytes": b"", "path": "8.png"}
    rows[11] = {"bytes": encoded(np.zeros((9000, 9000), np.uint8)), "path": "bomb.png"}
    assert len(rows[11]["bytes"]) < 100_000
    table = pa.table({"image": pa.array(rows, kind), "label": LABELS[:40]})
    pq.write_table(table, tmp_path / "rows.parquet")
    expected = {
        1: "image is damaged or truncated",
        2: "image is in none of the formats JPEG, PNG, PPM, BMP, GIF, WEBP, TIFF, or its header is damaged",
        5: "image is a path without bytes: store the files' bytes in the column",
        7: "image is null",
        8: "image is empty",
        11: "image has more than 67108864 pixels",
    }
    facts = go(tmp_path / "rows.parquet", [PIXELS, *WHOLE[:2]], max_bad_fraction=0.2)
    assert facts["counts"]["quarantined"] == 6
    assert quarantined(tmp_path / "out") == expected
    message = go(tmp_path / "rows.parquet", [PIXELS], "strict", code=3)
    assert "6 of 40 rows are bad, more than max_bad_fraction 0.001" in message
    assert "rows.parquet row 5: image is a path without bytes" in message


def test_a_whole_block_of_bad_images(tmp_path, go):
    images = [b"x" if 16 <= i < 32 else encoded(IMAGES[i]) for i in range(48)]
    pq.write_table(pa.table({"image": images, "label": LABELS[:48]}), tmp_path / "rows.parquet")
    facts = go(tmp_path / "rows.parquet", [PIXELS, *WHOLE[:2]], max_bad_fraction=0.5, block_rows=16)
    assert facts["counts"]["quarantined"] == 16
    pq.write_table(pa.table({"image": [b"x"] * 48, "label": LABELS[:48]}), tmp_path / "rows.parquet")
    message = go(tmp_path / "rows.parquet", [PIXELS], "none", code=3, max_bad_fraction=1.0)
    assert "no row is left to fit the pixels encoder on" in message


def test_a_bad_file_in_a_folder_is_set_aside(tmp_path, go):
    folder = write_folder(tmp_path / "bars")
    (folder / "class0" / "x.png").write_bytes(b"")
    (folder / "class1" / "y.jpg").write_bytes(b"not an image")
    go(folder, [PIXELS, EXACT], dataset={"id": "path"}, max_bad_fraction=0.02)
    assert sorted(quarantined(tmp_path / "out").values()) == [
        "image is empty",
        "image is in none of the formats JPEG, PNG, PPM, BMP, GIF, WEBP, TIFF, or its header is damaged",
    ]


def test_files_beside_the_class_folders_have_no_label(tmp_path, go):
    folder = write_folder(tmp_path / "bars")
    (folder / "stray.png").write_bytes(encoded(IMAGES[0]))
    go(folder, [PIXELS, EXACT], dataset={"id": "path"}, max_bad_fraction=0.02)
    assert list(quarantined(tmp_path / "out").values()) == ["label is null"]
    # Without the role it is a row like any other.
    facts = go(folder, [PIXELS, EXACT], "without", dataset={"id": "path", "label": None})
    assert facts["counts"]["quarantined"] == 0


def test_bad_tokens_are_set_aside_each_with_its_reason(tmp_path, go):
    blocks = blocks_of(LABELS)[:40]
    blocks[1], blocks[2], blocks[5], blocks[6] = None, [], [1, -1], [1, None]
    rows = [{"tokens": block, "label": "xy"[i % 2]} for i, block in enumerate(blocks)]
    lines = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "rows.jsonl").write_text(lines)
    dataset = {"image": None, "tokens": "tokens"}
    facts = go(tmp_path / "rows.jsonl", [LSA, *WHOLE[:2]], dataset=dataset, max_bad_fraction=0.1, block_rows=16)
    assert facts["counts"]["quarantined"] == 4
    assert quarantined(tmp_path / "out") == {
        1: "tokens are null",
        2: "tokens are empty",
        5: "a token is below 0",
        6: "a token is null",
    }


def test_tokens_that_are_no_whole_numbers(tmp_path, go):
    (tmp_path / "rows.jsonl").write_text('{"tokens": [1, 2]}\n{"tokens": [1.5]}\n')
    dataset = {"image": None, "tokens": "tokens", "label": None}
    message = go(tmp_path / "rows.jsonl", [EXACT], dataset=dataset, code=3)
    assert "column 'tokens' is the tokens and holds list<item: double>; allowed are lists of whole numbers" in message


def test_a_changed_image_is_another_dataset(tmp_path, go, cli):
    folder = write_folder(tmp_path / "bars")
    go(folder, [PIXELS, EXACT], dataset={"id": "path"})
    name = next(folder.rglob("*.png"))
    name.write_bytes(encoded(255 - IMAGES[0]))
    result = cli("export", tmp_path / "out", "--to", "parquet", "--out", tmp_path / "subset.parquet")
    assert result.exit_code == 6, result.stderr
