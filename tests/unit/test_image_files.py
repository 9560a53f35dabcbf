"""Images as sources: IDX files with and without labels, folders of class folders; whole or refused."""

import gzip
import hashlib
import io
import os
import random
import re
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tamis.errors import DataError, DatasetMismatchError
from tamis.manifests.canonical import digest
from tamis.pipelines import image_files
from tamis.pipelines.sources import check_unchanged, read_rows, resolve, scan, take_rows

N, SHAPE = 40, (5, 7)
PIXELS = np.random.default_rng(0).integers(0, 256, (N, *SHAPE), dtype=np.uint8)
LABELS = np.arange(N, dtype=np.uint8) % 3


def idx(array, kind=8):
    return struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder, pixels=PIXELS, labels=LABELS, stem="train-", ending="", mark="-"):
    """Both files, gzipped if the ending says so; the path of the images."""
    folder.mkdir(exist_ok=True, parents=True)
    pack = gzip.compress if ending else bytes
    images = folder / f"{stem}images{mark}idx3-ubyte{ending}"
    images.write_bytes(pack(idx(pixels)))
    if labels is not None:
        (folder / f"{stem}labels{mark}idx1-ubyte{ending}").write_bytes(pack(idx(labels)))
    return images


def png(value, side=4):
    stream = io.BytesIO()
    Image.fromarray(np.full((side, side), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write_tree(folder, names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(png(number))
    return folder


def one(path):
    (found,) = resolve(str(path))
    return scan(found)


# --- IDX


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("mark", ["-", "."])
def test_idx_round_trip(tmp_path, ending, mark):
    path = write_idx(tmp_path, ending=ending, mark=mark)
    source = one(path)
    assert (source.path, source.format, source.rows, source.columns) == (path.name, "idx", N, ("image", "label"))
    beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    parts = [
        {"name": part.name, "bytes": part.stat().st_size, "sha256": hashlib.sha256(part.read_bytes()).hexdigest()}
        for part in (path, beside)
    ]
    assert (source.bytes, source.sha256) == (sum(part["bytes"] for part in parts), digest(parts))
    for start, stop in ((0, N), (0, 0), (3, 4), (N - 1, N), (N, N)):
        table, problem = read_rows(source, ["label", "image"], start, stop)
        assert table["label"].to_pylist() == LABELS[start:stop].tolist()
        assert problem.tolist() == [0] * (stop - start)
        for image, pixels in zip(table["image"].to_pylist(), PIXELS[start:stop], strict=True):
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(image))), pixels)
    assert take_rows([source], np.array([7, 2, 2]))["label"].to_pylist() == LABELS[[7, 2, 2]].tolist()


def test_a_row_of_idx_is_a_pgm_file(tmp_path):
    source = one(write_idx(tmp_path))
    (image,) = read_rows(source, ["image"], 3, 4)[0]["image"].to_pylist()
    assert image == b"P5\n7 5\n255\n" + PIXELS[3].tobytes()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 20), st.integers(1, 30), st.integers(1, 30), st.booleans(), st.randoms(use_true_random=False))
def test_idx_of_any_shape(tmp_path_factory, n, height, width, packed, draw):
    pixels = np.frombuffer(draw.randbytes(n * height * width), np.uint8).reshape(n, height, width)
    labels = np.frombuffer(draw.randbytes(n), np.uint8)
    source = one(write_idx(tmp_path_factory.mktemp("idx"), pixels, labels, ending=".gz" if packed else ""))
    start = draw.randrange(n)
    table, _ = read_rows(source, ["image", "label"], start, n)
    assert [np.asarray(Image.open(io.BytesIO(image))).tolist() for image in table["image"].to_pylist()] == [
        image.tolist() for image in pixels[start:]
    ]
    assert table["label"].to_pylist() == labels[start:].tolist()


def test_idx_without_labels(tmp_path):
    source = one(write_idx(tmp_path, labels=None))
    assert (source.rows, source.columns) == (N, ("image",))
    with pytest.raises(DataError, match="no column 'label'"):
        read_rows(source, ["label"], 0, 1)


def test_labels_may_be_compressed_where_images_are_not(tmp_path):
    path = write_idx(tmp_path, labels=None)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(LABELS)))
    assert one(path).columns == ("image", "label")


def test_other_labels_are_other_data(tmp_path):
    path = write_idx(tmp_path)
    source = one(path)
    write_idx(tmp_path, labels=LABELS[::-1].copy())
    assert one(path).sha256 != source.sha256
    with pytest.raises(DatasetMismatchError, match="changed"):
        check_unchanged([source])
    write_idx(tmp_path)
    check_unchanged([source])


@pytest.mark.parametrize("what", ["images", "labels"])
def test_a_file_that_goes_away_is_told(tmp_path, what):
    path = write_idx(tmp_path)
    source = one(path)
    (tmp_path / f"train-{what}-idx{3 if what == 'images' else 1}-ubyte").unlink()
    with pytest.raises(DatasetMismatchError, match="changed"):
        read_rows(source, ["image", "label"], 0, 3)


def test_the_same_rows_by_file_glob_and_folder(tmp_path):
    path = write_idx(tmp_path / "d", ending=".gz")
    sources = [one(given) for given in (path, tmp_path / "d", tmp_path / "d" / "*", tmp_path / "d" / "train-*")]
    assert len(set(sources)) == 1


def test_a_folder_of_idx_files_is_all_of_them(tmp_path):
    write_idx(tmp_path, stem="train-")
    write_idx(tmp_path, PIXELS[:9], LABELS[:9], stem="t10k-", ending=".gz")
    found = [scan(file) for file in resolve(tmp_path)]
    assert [(source.path, source.rows) for source in found] == [
        ("t10k-images-idx3-ubyte.gz", 9),
        ("train-images-idx3-ubyte", N),
    ]
    assert resolve(str(tmp_path / "*")) == resolve(tmp_path)
    assert take_rows(found, np.array([0, 9]))["label"].to_pylist() == [0, 0]


def test_labels_alone_are_no_dataset(tmp_path):
    write_idx(tmp_path)
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte holds labels by its name; give the file of images"):
        resolve(str(tmp_path / "train-labels-idx1-ubyte"))
    with pytest.raises(DataError, match="holds labels by its name"):
        resolve(str(tmp_path / "*labels*"))


WHOLE = idx(PIXELS)
BAD_IDX = {
    "empty": (b"", "is no IDX file: it begins with nothing"),
    "three bytes": (WHOLE[:3], "is no IDX file: it begins with 00 00 08"),
    "text": (b"hello, world", "is no IDX file: it begins with 68 65 6c 6c"),
    "floats": (idx(PIXELS.astype(">f4"), 0x0D), "holds type 0x0d in 3 dimensions; unsigned bytes"),
    "four dimensions": (idx(PIXELS[None]), "in 4 dimensions; unsigned bytes"),
    "labels": (idx(LABELS), "in 1 dimensions; unsigned bytes"),
    "half a header": (WHOLE[:9], "is truncated in its header"),
    "no pixels": (idx(PIXELS[:, :0]), "holds images of 7 x 0 pixels"),
    "no data": (WHOLE[:16], "promises 40 x 5 x 7 = 1400 bytes, and 0 follow: it is truncated"),
    "a byte less": (WHOLE[:-1], "= 1400 bytes, and 1399 follow: it is truncated"),
    "a byte more": (WHOLE + b"\0", "= 1400 bytes, and more follow: it is followed by something else"),
    "a vast promise": (b"\0\0\x08\x03" + b"\xff" * 12 + b"x" * 50, "bytes, and 50 follow: it is truncated"),
}


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("name", BAD_IDX)
def test_idx_files_that_are_not_whole(tmp_path, name, ending):
    content, message = BAD_IDX[name]
    path = write_idx(tmp_path, ending=ending)
    path.write_bytes(gzip.compress(content) if ending else content)
    with pytest.raises(DataError, match=f"{path.name}: .*{re.escape(message)}"):
        one(path)


def test_damaged_gzip(tmp_path):
    path = write_idx(tmp_path, ending=".gz")
    whole = path.read_bytes()
    for content in (whole[:-5], whole[:200], b"\x1f\x8b" + bytes(30), WHOLE, whole[:90] + b"\xff\xff" + whole[92:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: cannot be read: "):
            one(path)


def test_labels_of_another_number(tmp_path):
    path = write_idx(tmp_path, labels=LABELS[:-1])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte holds 40 images, .*labels-idx1-ubyte 39 labels"):
        one(path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(LABELS)[:-1])
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte: its header promises 40 = 40 bytes, and 39 follow"):
        one(path)


def test_no_rows(tmp_path):
    with pytest.raises(DataError, match="has no rows"):
        one(write_idx(tmp_path, PIXELS[:0], LABELS[:0]))


def test_a_file_is_decompressed_once(tmp_path, monkeypatch):
    path = write_idx(tmp_path, ending=".gz")
    source = one(path)
    opened = []
    real = gzip.open
    monkeypatch.setattr(gzip, "open", lambda *args: opened.append(args) or real(*args))
    for start in range(N):
        read_rows(source, ["image", "label"], start, start + 1)
    assert len(opened) == 2


# --- folders


NAMES = ["cat/2.png", "cat/10.PNG", "dog/1.jpeg", "dog/z.bmp", "Ant/1.gif", "root.pgm", "ant/x.webp", "ant/y.tif"]


def test_folder_round_trip(tmp_path):
    folder = write_tree(tmp_path / "pets", NAMES)
    (folder / "README.md").write_text("x")
    source = one(folder)
    rows = sorted(NAMES)
    assert (source.path, source.format, source.rows) == ("pets", "images", len(NAMES))
    assert source.columns == ("image", "label", "path")
    parts = [
        {"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in ((name, (folder / name).read_bytes()) for name in rows)
    ]
    assert (source.bytes, source.sha256) == (sum(part["bytes"] for part in parts), digest(parts))
    for start in range(len(rows) + 1):
        for stop in range(start, len(rows) + 1):
            table, problem = read_rows(source, ["path", "image", "label"], start, stop)
            assert table["path"].to_pylist() == rows[start:stop]
            assert table["image"].to_pylist() == [(folder / name).read_bytes() for name in rows[start:stop]]
            assert table["label"].to_pylist() == [name.rpartition("/")[0] or None for name in rows[start:stop]]
            assert problem.tolist() == [0] * (stop - start)
    wanted = np.array([5, 0, 5, 7])
    assert take_rows([source], wanted)["path"].to_pylist() == [rows[row] for row in wanted]


def test_a_folder_without_folders_has_no_labels(tmp_path):
    assert one(write_tree(tmp_path / "d", ["b.png", "a.png"])).columns == ("image", "path")


@settings(max_examples=10, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_in_which_a_folder_lists_is_no_matter(tmp_path_factory, draw):
    folder = write_tree(tmp_path_factory.mktemp("d"), NAMES)
    image_files._listed.cache_clear()
    expected = one(folder)
    table = read_rows(expected, ["path", "image"], 0, len(NAMES))[0]
    real = os.walk

    def shuffled(*args, **kwargs):
        for here, folders, names in real(*args, **kwargs):
            draw.shuffle(folders)
            draw.shuffle(names)
            yield here, folders, names

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "walk", shuffled)
        image_files._listed.cache_clear()
        assert one(folder) == expected
        assert read_rows(expected, ["path", "image"], 0, len(NAMES))[0] == table


def test_hidden_files_and_folders_are_left_out(tmp_path):
    folder = write_tree(tmp_path / "d", ["a/1.png", "a/.2.png", ".thumbnails/1.png", "a/._1.png"])
    assert one(folder).rows == 1
    with pytest.raises(DataError, match="no data files"):
        resolve(write_tree(tmp_path / "hidden", [".a/1.png", ".1.png"]))


def test_the_folder_is_known_by_its_name_however_it_is_given(tmp_path, monkeypatch):
    folder = write_tree(tmp_path / "pets", NAMES)
    monkeypatch.chdir(folder)
    assert one(".").path == one("../pets").path == one(folder).path == "pets"
    assert one(".").sha256 == one(folder).sha256


def test_a_table_beside_images_is_the_data(tmp_path):
    folder = write_tree(tmp_path / "d", ["plots/1.png"])
    (folder / "rows.csv").write_text("text\nx\n")
    assert [file.path for file in resolve(folder)] == ["rows.csv"]


def test_what_is_neither_is_told(tmp_path):
    write_tree(tmp_path, ["a/1.png"])
    with pytest.raises(DataError, match=r"1\.png has the extension '\.png'.*of single images, give their folder"):
        resolve(str(tmp_path / "a" / "1.png"))
    with pytest.raises(DataError, match="of single images, give their folder"):
        resolve(str(tmp_path / "*" / "*.png"))


def test_splits_are_not_taken_for_classes(tmp_path):
    folder = write_tree(tmp_path / "d", ["train/cat/1.png", "test/dog/1.png"])
    with pytest.raises(DataError, match=r"lies more than one folder deep in .*class folders.*for example .*/d/t"):
        one(folder)
    assert one(folder / "train").columns == ("image", "label", "path")


def test_entries_that_cannot_be_read(tmp_path):
    folder = write_tree(tmp_path / "d", ["a/1.png"])
    broken = folder / "a" / "2.png"
    broken.symlink_to("nowhere.png")
    with pytest.raises(DataError, match=r"a/2\.png is no file that can be read: mend it or remove it"):
        one(folder)
    broken.unlink()
    os.mkfifo(broken)  # reading it would wait for ever
    with pytest.raises(DataError, match=r"a/2\.png is no file"):
        one(folder)
    broken.unlink()
    (folder / "b").symlink_to(folder / "a")
    with pytest.raises(DataError, match=r"d/b is a link to a folder"):
        one(folder)


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    folder = write_tree(tmp_path / "d", ["a/1.png", "b/1.png"])
    (found,) = resolve(folder)
    real = os.scandir

    def scandir(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match="d/b cannot be listed: Permission denied"):
        scan(found)


def test_a_name_that_is_not_utf8(tmp_path):
    folder = write_tree(tmp_path / "d", ["a/1.png"])
    (folder / "a" / os.fsdecode(b"\xff.png")).write_bytes(png(1))
    with pytest.raises(DataError, match="is not UTF-8: rename it"):
        one(folder)


def test_a_changed_folder_is_told(tmp_path):
    folder = write_tree(tmp_path / "d", NAMES)
    source = one(folder)
    check_unchanged([source])
    (folder / "cat" / "2.png").write_bytes(png(99))
    with pytest.raises(DatasetMismatchError, match="changed"):
        check_unchanged([source])
    (folder / "cat" / "2.png").unlink()
    image_files._listed.cache_clear()
    with pytest.raises(DatasetMismatchError, match="changed"):
        read_rows(source, ["image"], 0, source.rows)


def test_empty_files_are_rows_still(tmp_path):
    """What is wrong with an image is told of its row, at ingest."""
    folder = write_tree(tmp_path / "d", ["a/1.png", "a/2.png"])
    (folder / "a" / "1.png").write_bytes(b"")
    assert one(folder).rows == 2


def test_a_large_folder_is_not_held_in_memory(tmp_path, monkeypatch):
    folder = write_tree(tmp_path / "d", [f"{random.Random(i).randrange(5)}/{i}.png" for i in range(50)])
    read = []
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda path: read.append(path))
    assert one(folder).rows == 50
    assert not read
