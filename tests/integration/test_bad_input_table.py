"""A table of inputs that must be refused: each has a name, an exit code, and what the message must say.

Every case has a folder of its own with a sound dataset `rows.parquet` and a sound recipe. Its actions spoil something,
then its command is run. A refusal is one message on standard error, with what was given and what is allowed or to do;
nothing on standard output, no traceback. `finished` is a finished run of the sound recipe. What is accepted, or set
aside row by row, is in `test_bad_input.py`.
"""

import ctypes
import gzip
import hashlib
import io
import json
import os
import shlex
import shutil
import signal
import struct
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from annotated_types import Ge, Gt, Le, Lt, MultipleOf

import tamis
from tamis.manifests.canonical import canonical_json, digest, ipc_bytes
from tamis.pipelines.recipe import STAGE_MODELS, DatasetConfig, Recipe, TrainSection

N = 60
EMBED = {"kind": "embed", "encoder": "lsa", "dim": 16}
EXACT = {"kind": "dedup", "eps": 0.0}
CLUSTER = {"kind": "cluster"}
RANDOM = {"kind": "select", "method": "random", "budget": 0.5}
PROXY = {"kind": "score", "method": "proxy"}
LOSSES = {"kind": "score", "from": "losses.csv"}

VALIDATE = "validate recipe.yaml"
RUN = "run recipe.yaml --out out --executor sync"


@dataclass
class Place:
    """A case's folder and the recipe that is written into it, unless an action has written one."""

    folder: Path
    recipe: dict[str, Any] = field(default_factory=dict)

    def path(self, name):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


# --- actions: each takes a place and spoils something ---


def written(name, content):
    """A file with these bytes or this text, or made by a function of its path."""

    def act(place):
        path = place.path(name)
        if callable(content):
            content(path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return act


def dataset(**keys):
    """Other keys of the recipe's dataset; None leaves one out."""

    def act(place):
        merged = place.recipe["dataset"] | keys
        place.recipe["dataset"] = {key: value for key, value in merged.items() if value is not None}

    return act


def data(name, content, **keys):
    """Another file of rows."""

    def act(place):
        written(name, content)(place)
        dataset(path=name, **keys)(place)

    return act


def column(name, values):
    """A column of rows.parquet is another one, or is new."""

    def act(place):
        path = place.folder / "rows.parquet"
        table = pq.read_table(path)
        table = table.drop_columns(name) if name in table.column_names else table
        pq.write_table(table.append_column(name, values if isinstance(values, pa.Array) else pa.array(values)), path)

    return act


def stages(*given):
    return setting(stages=list(given))


def setting(**keys):
    """Other keys of the recipe."""
    return lambda place: place.recipe.update(keys)


def without(key):
    return lambda place: place.recipe.pop(key)


def recipe(text):
    """Another recipe, as text."""
    return written("recipe.yaml", text)


def made(make):
    """Whatever else: a function of the folder."""
    return lambda place: make(place.folder)


def pipe(name):
    return written(name, os.mkfifo)


def empty_folder(name):
    return written(name, Path.mkdir)


def link(name, target):
    return written(name, lambda path: path.symlink_to(target))


def forged(change):
    """The finished run's record, changed and sealed again."""

    def act(place):
        path = place.folder / "finished" / "manifest" / "v000001.json"
        body = json.loads(path.read_bytes())["body"]
        change(body)
        body["subset_id"] = digest({key: value for key, value in body.items() if key != "subset_id"})
        path.write_bytes(canonical_json({"body": body, "sha256": digest(body)}))

    return act


def part(change):
    """The finished run's audit file, changed."""

    def act(place):
        (path,) = (place.folder / "finished" / "manifest" / "data").glob("audit-*")
        change(path)

    return act


def forged_rows(place):
    """Two dropped rows of the finished run stand for each other."""
    folder = place.folder / "finished" / "manifest"
    (path,) = (folder / "data").glob("audit-*")
    audit = pa.ipc.open_file(path.read_bytes()).read_all()
    dropped = np.flatnonzero(audit["decision"].to_numpy())[:2].tolist()
    stands = [dropped[1] if row == dropped[0] else dropped[0] if row == dropped[1] else None for row in range(N)]
    at = audit.schema.get_field_index("kept_row")
    data = ipc_bytes(audit.set_column(at, audit.schema.field(at), pa.array(stands, pa.int64())))
    sha256 = hashlib.sha256(data).hexdigest()
    name = f"data/audit-00000-of-00001.{sha256[:16]}.arrow"
    (folder / name).write_bytes(data)
    forged(lambda body: body["files"][1].update(path=name, sha256=sha256, bytes=len(data)))(place)


def flip(path, place=0.5):
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)


# --- contents ---

ROW = '{"id": "a", "text": "t", "label": "x"}\n'


def table(**columns):
    return pa.table({"id": ["a", "b"], "text": ["one", "two"], "label": ["x", "y"]} | columns)


def parquet(rows):
    sink = io.BytesIO()
    pq.write_table(rows, sink)
    return sink.getvalue()


def arrow(rows, new=pa.ipc.new_file):
    sink = io.BytesIO()
    with new(sink, rows.schema) as writer:
        for batch in rows.to_batches(max_chunksize=1):
            writer.write_batch(batch)
    return sink.getvalue()


def wild_offsets():
    """An Arrow file in which a text begins far outside of the file."""
    _, offsets, texts = pa.array(["one", "two"]).buffers()
    wild = np.frombuffer(offsets, np.int32).copy()
    wild[1] = 2**30
    forged = pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(wild.tobytes()), texts])
    return arrow(table(text=forged).combine_chunks(), lambda sink, schema: pa.ipc.new_file(sink, schema))


def npy(array, **options):
    sink = io.BytesIO()
    np.save(sink, array, **options)
    return sink.getvalue()


def npy_header(shape, dtype="<f4", before=""):
    """An npy file that promises more than it holds."""
    header = before + f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + b"\0" * 16


def npz():
    sink = io.BytesIO()
    np.savez(sink, a=np.zeros((N, 2)))
    return sink.getvalue()


def safetensors(header, body=b""):
    raw = json.dumps(header).encode() if isinstance(header, dict) else header
    return struct.pack("<Q", len(raw)) + raw + body


def idx(shape, body=None, magic=None):
    head = magic or bytes([0, 0, 8, len(shape)])
    return head + struct.pack(f">{len(shape)}I", *shape) + (bytes(int(np.prod(shape))) if body is None else body)


def saved(state=None, **files):
    """A folder as `datasets.save_to_disk` leaves it."""

    def make(path):
        path.mkdir()
        (path / "dataset_info.json").write_text("{}")
        state_text = (
            state if isinstance(state, str) else json.dumps(state or {"_data_files": [{"filename": "data.arrow"}]})
        )
        (path / "state.json").write_text(state_text)
        for name, content in files.items():
            (path / f"{name}.arrow").write_bytes(content)

    return make


def images(*names):
    """A folder of tiny images."""

    def make(path):
        for name in names:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(b"P5\n1 1\n255\n\0")

    return make


def spoil_page(folder):
    path = folder / "rows.parquet"
    pq.write_table(pq.read_table(path), path, compression="zstd", write_page_checksum=True, use_dictionary=False)
    flip(path, 0.33)


IMAGE = {"id": None, "text": None, "image": "image"}
VECTORS = {"kind": "embed", "encoder": "vectors: v.npy"}
COLUMN_VECTORS = (dataset(vectors="v"), stages({"kind": "embed", "encoder": "vectors"}))


def vectors(content, name="v.npy"):
    return [written(name, content), stages({"kind": "embed", "encoder": f"vectors: {name}"})]


def losses(*lines, head="sample_id,loss"):
    return [written("losses.csv", "\n".join([head, *lines]) + "\n"), stages(LOSSES)]


SOUND = [f"r{i:04d},{i / 7:.4f}" for i in range(N)]


# --- the table: name -> actions, command, exit code, parts of the message ---

FILES = {
    "no such file": ([dataset(path="none.parquet")], VALIDATE, 3,
        "none.parquet does not exist; a file, a glob or a folder"),
    "a glob without a match": ([dataset(path="*.csv")], VALIDATE, 3, "*.csv matches no file"),
    "a file of another kind": ([data("rows.xlsx", b"PK")], VALIDATE, 3, "'.xlsx'", ".parquet", ".jsonl", ".csv"),
    "a file without an extension": ([data("rows", b"x")], VALIDATE, 3, "the extension ''", ".parquet"),
    "a pickle": ([data("rows.pkl", b"\x80\x04.")], VALIDATE, 3, "'.pkl'", ".parquet"),
    "a web address": ([dataset(path="https://h/rows.parquet")], VALIDATE, 3, "https://... is a remote address",
        "copy it"),
    "a bucket": ([dataset(path="s3://bucket/rows.parquet")], VALIDATE, 3, "s3://... is a remote address",
        "copy it here"),
    "an empty folder": ([data("rows", Path.mkdir)], VALIDATE, 3, "has no data files", ".parquet"),
    "a folder named as a file": ([data("rows.csv", Path.mkdir)], VALIDATE, 3, "rows.csv has no data files", ".parquet"),
    "a pipe": ([data("rows.csv", os.mkfifo)], VALIDATE, 3, "rows.csv is no regular file", "give a file"),
    "a pipe in a folder": ([data("d/rows.csv", os.mkfifo), dataset(path="d")], VALIDATE, 3,
        "rows.csv is no regular file"),
    "a pipe by a glob": ([data("rows.csv", os.mkfifo), dataset(path="*.csv")], VALIDATE, 3, "*.csv matches no file"),
    "a device": ([data("rows.csv", lambda path: path.symlink_to("/dev/zero"))], VALIDATE, 3,
        "rows.csv is no regular file"),
    "a link to itself": ([data("rows.csv", lambda path: path.symlink_to(path))], VALIDATE, 3,
        "rows.csv does not exist"),
    "a link to itself in a folder": ([data("d/rows.csv", lambda path: path.symlink_to(path)), dataset(path="d")],
        VALIDATE, 3, "rows.csv is a link to nothing: mend it or remove it"),
    "a broken link": ([data("rows.csv", lambda path: path.symlink_to("gone"))], VALIDATE, 3, "rows.csv does not exist"),
    "a file that may not be read": ([made(lambda folder: (folder / "rows.parquet").chmod(0))], VALIDATE, 3,
        "rows.parquet", "Permission denied"),
    "a name that is too long": ([dataset(path="x" * 300 + ".csv")], VALIDATE, 2,
        "dataset.path: a path of more than 2048 bytes, or"),
    "a name with NUL": ([dataset(path="a\0.csv")], VALIDATE, 3, "does not exist"),
    "a name that is not UTF-8": ([written(os.fsdecode(b"d/r\xff.jsonl"), ROW), dataset(path="d")], VALIDATE, 3,
        "is not UTF-8: rename it"),
    "no bytes": ([data("rows.jsonl", b"")], VALIDATE, 3, "rows.jsonl: is empty (0 bytes)", "write it again"),
    "no rows of parquet": ([data("e.parquet", parquet(table().slice(0, 0)))], VALIDATE, 3, "e.parquet: has no rows"),
    "no rows of csv": ([data("e.csv", "id,text,label\n")], VALIDATE, 3, "e.csv: has no rows", "write it again"),
    "no rows of jsonl": ([data("e.jsonl", "\n\n \n")], VALIDATE, 3, "e.jsonl: has no rows"),
    "no rows of arrow": ([data("e.arrow", arrow(table().slice(0, 0)))], VALIDATE, 3, "e.arrow: has no rows"),
    "a parquet of four bytes": ([data("t.parquet", parquet(table())[:4])], VALIDATE, 3,
        "t.parquet: not a whole, valid parquet"),
    "a parquet of 100 bytes": ([data("t.parquet", parquet(table())[:100])], VALIDATE, 3,
        "t.parquet: not a whole, valid parquet"),
    "half a parquet": ([data("t.parquet", parquet(table())[:600])], VALIDATE, 3,
        "t.parquet: not a whole, valid parquet"),
    "a parquet without its last bytes": ([data("t.parquet", parquet(table())[:-8])], VALIDATE, 3,
        "not a whole, valid parquet"),
    "a parquet of noise": ([data("t.parquet", b"PAR1" + bytes(range(256)) + b"PAR1")], VALIDATE, 3,
        "not a whole, valid parquet"),
    "csv named parquet": ([data("t.parquet", "id,text,label\na,b,c\n")], VALIDATE, 3,
        "t.parquet: not a whole, valid parquet"),
    "parquet named jsonl": ([data("t.jsonl", parquet(table()))], VALIDATE, 3, "t.jsonl:1: not a JSON object"),
    "parquet named csv": ([data("t.csv", parquet(table()))], VALIDATE, 3, "t.csv"),
    "gzip named jsonl": ([data("t.jsonl", gzip.compress(ROW.encode()))], VALIDATE, 3, "t.jsonl:1: not a JSON object"),
    "half an arrow file": ([data("t.arrow", arrow(table())[:300])], VALIDATE, 3,
        "t.arrow: not a whole, valid arrow file"),
    "an arrow stream without its end": ([data("t.arrow", arrow(table(), pa.ipc.new_stream)[:-8])], VALIDATE, 3,
        "t.arrow", "no end mark: it is truncated"),
    "an arrow file of noise": ([data("t.arrow", b"ARROW1\0\0" + b"\xff" * 99)], VALIDATE, 3,
        "t.arrow: not a whole, valid arrow"),
    "three bytes of arrow": ([data("t.arrow", b"ARR")], VALIDATE, 3, "t.arrow: not a whole, valid arrow file"),
    "arrow texts that lie outside of the file": ([data("t.arrow", wild_offsets())], VALIDATE, 3, "t.arrow"),
    "an arrow file with a column twice": ([data("t.arrow", arrow(pa.table([["a"], ["b"]], ["text", "text"])))],
        VALIDATE, 3, "['text'] are there twice"),
    "a csv with a column twice": ([data("t.csv", "id,id,text,label\n1,2,t,x\n")], VALIDATE, 3, "['id'] are there twice",
        "rename"),
    "a ragged csv": ([data("t.csv", "id,text,label\na,one,x\nb,two, and more,y\n")], VALIDATE, 3,
        "t.csv: row 1 has 4 fields, the header names 3", "quote"),
    "a csv with a blank first line": ([data("t.csv", "\nid,text,label\na,b,c\n")], VALIDATE, 3,
        "the first line is blank"),
    "a csv with an open quote": ([data("t.csv", 'id,text,label\na,"one,x\n')], VALIDATE, 3, "t.csv: row 0 is not CSV",
        "quote"),
    "a csv with an open quote in its header": ([data("t.csv", 'id,"text,label\na,b,c\n')], VALIDATE, 3, "t.csv"),
    "a csv in UTF-16": ([data("t.csv", "id,text,label\na,b,c\n".encode("utf-16"))], VALIDATE, 3, "t.csv",
        "is not UTF-8"),
    "a jsonl in UTF-16": ([data("t.jsonl", ROW.encode("utf-16"))], VALIDATE, 3, "t.jsonl:1: not a JSON object"),
    "half a JSON object": ([data("t.jsonl", ROW + '{"id": "b", \n')], VALIDATE, 3, "t.jsonl:2: not a JSON object"),
    "a JSON array": ([data("t.json", f"[{ROW}]\n")], VALIDATE, 3, "t.json:1", "one object a line is read"),
    "a JSON number": ([data("t.jsonl", ROW + "17\n")], VALIDATE, 3,
        "t.jsonl:2: a JSON number; one object a line is read"),
    "JSON with NaN": ([data("t.jsonl", '{"text": NaN}\n')], VALIDATE, 3, "t.jsonl:1", "NaN is no JSON; write null"),
    "JSON with a key twice": ([data("t.jsonl", '{"text": "a", "text": "b"}\n')], VALIDATE, 3, "a key is there twice"),
    "deep JSON": ([data("t.jsonl", '{"text": ' + "[" * 99_999 + "\n")], VALIDATE, 3, "t.jsonl:1: not a JSON object"),
    "a JSON number of 5000 digits": ([data("t.jsonl", '{"text": ' + "9" * 5000 + "}\n")], VALIDATE, 3,
        "t.jsonl:1: not a JSON"),
    "mixed types in JSON": ([data("t.jsonl", ROW + '{"id": "b", "text": 3, "label": "x"}\n')], VALIDATE, 3,
        "t.jsonl:2: column 'text' is a number here and a string on line 1"),
    "JSON with a text here and a list there": ([data("t.jsonl", ROW + '{"id": ["b"], "text": "t"}\n')], VALIDATE, 3,
        "t.jsonl:2: column 'id' is a list here and a string on line 1"),
    "JSON lists of texts and numbers": ([data("t.jsonl", '{"text": "a", "v": [1]}\n{"text": "b", "v": ["x"]}\n',
        id=None, label=None, vectors="v"), stages(RANDOM)], RUN, 3, "column 'v' has no one type"),
    "a saved dataset without its data": ([data("s", saved())], VALIDATE, 3, "s: not a whole, valid hf file",
        "data.arrow"),
    "a saved dataset with half its data": ([data("s", saved(data=arrow(table(), pa.ipc.new_stream)[:-9]))], VALIDATE, 3,
        "s: not a whole"),
    "a saved dataset that names a file outside": ([data("s",
        saved({"_data_files": [{"filename": "../rows.parquet"}]}))], VALIDATE, 3,
        "'../rows.parquet' outside the folder"),
    "a saved dataset without a state": ([data("s", saved("{"))], VALIDATE, 3, "s: not a whole, valid hf file"),
    "a saved dataset whose state is a list": ([data("s", saved("[]"))], VALIDATE, 3, "s: not a whole, valid hf file"),
    "a saved dataset whose state is deep": ([data("s", saved("[" * 99_999))], VALIDATE, 3,
        "s: not a whole, valid hf file"),
    "a saved dataset that names numbers": ([data("s", saved({"_data_files": [{"filename": 3}]}))], VALIDATE, 3,
        "s: not a whole"),
    "a saved dataset of no files": ([data("s", saved({"_data_files": []}))], VALIDATE, 3, "s:"),
    "several saved datasets": ([written("s/dataset_dict.json", '{"splits": ["train", "test"]}'), dataset(path="s")],
        VALIDATE, 3, "holds the splits ['test', 'train'] of a dataset; name the folder of one of them, such as"),
    "splits that are not there": ([written("s/dataset_dict.json", "{"), dataset(path="s")], VALIDATE, 3,
        "s holds the splits []", "name"),
    "images in no file": ([data("t-images-idx3-ubyte", b"", **IMAGE)], VALIDATE, 3, "is empty (0 bytes)"),
    "images that are no IDX": ([data("t-images-idx3-ubyte", b"GIF89a", **IMAGE, label=None)], VALIDATE, 3,
        "is no IDX file", "47 49"),
    "images of other numbers": ([data("t-images-idx3-ubyte", idx((1, 2, 2), magic=b"\0\0\x0d\3"), **IMAGE, label=None)],
        VALIDATE, 3, "type 0x0d", "0x08"),
    "images with half a header": ([data("t-images-idx3-ubyte", b"\0\0\x08\x03\0\0", **IMAGE, label=None)], VALIDATE, 3,
        "truncated in its header"),
    "half the images": ([data("t-images-idx3-ubyte", idx((2, 2, 2), bytes(7)), **IMAGE, label=None)], VALIDATE, 3,
        "promises 2 x 2 x 2", "truncated"),
    "more than the images": ([data("t-images-idx3-ubyte", idx((1, 2, 2), bytes(9)), **IMAGE, label=None)], VALIDATE, 3,
        "followed by something else"),
    "images without end": ([data("t-images-idx3-ubyte", idx((2**32 - 1, ) * 3, b""), **IMAGE, label=None)], VALIDATE, 3,
        "truncated"),
    "images without pixels": ([data("t-images-idx3-ubyte", idx((3, 0, 2), b""), **IMAGE, label=None)], VALIDATE, 3,
        "images of 2 x 0 pixels"),
    "half a gzip of images": ([data("t-images-idx3-ubyte.gz", gzip.compress(idx((1, 9, 9)))[:30], **IMAGE, label=None)],
        VALIDATE, 3, "cannot be read"),
    "no gzip of images": ([data("t-images-idx3-ubyte.gz", idx((1, 2, 2)), **IMAGE, label=None)], VALIDATE, 3,
        "cannot be read"),
    "fewer labels than images": ([data("t-images-idx3-ubyte", idx((2, 2, 2)), **IMAGE), written("t-labels-idx1-ubyte",
        idx((1, )))], VALIDATE, 3, "holds 2 images", "1 labels; the two must be equal"),
    "labels in place of images": ([data("t-labels-idx1-ubyte", idx((1, )), **IMAGE)], VALIDATE, 3,
        "holds labels by its name; give"),
    "one image": ([data("x.png", b"\x89PNG", **IMAGE)], VALIDATE, 3, "'.png'", "of single images, give their folder"),
    "class folders two levels deep": ([data("d", images("train/cat/x.pgm"), **IMAGE)], VALIDATE, 3,
        "more than one folder deep", "train"),
    "class folders that are links": ([data("d", images("cat/x.pgm"), **IMAGE), link("d/dog", "cat")], VALIDATE, 3,
        "dog is a link to a folder", "put the folder"),
    "an image that is a broken link": ([data("d", images("cat/x.pgm"), **IMAGE), link("d/cat/y.png", "gone")], VALIDATE,
        3, "y.png is no file", "mend it or remove it"),
    "an image that is a pipe": ([data("d", images("cat/x.pgm"), **IMAGE), pipe("d/cat/y.png")], VALIDATE, 3,
        "y.png is no file"),
    "the run's folder inside the dataset": ([written("d/rows.jsonl", ROW), written("d/out/x.jsonl", ROW),
        dataset(path="d")], "run recipe.yaml --out d/out", 2, "holds files of the dataset d", "outside of it"),
}  # fmt: skip

COLUMNS = {
    "a missing column": ([dataset(text="texts")], VALIDATE, 3, "no column 'texts'; did you mean 'text'?",
        "id, text, label"),
    "a missing label": ([dataset(label="class")], VALIDATE, 3, "rows.parquet: no column 'class'",
        "its columns are id, text, label"),
    "one file that lacks a column": ([data("d/a.parquet", parquet(table())), written("d/b.parquet",
        parquet(table().drop_columns("label"))), dataset(path="d")], VALIDATE, 3, "b.parquet: no column 'label'"),
    "texts that are numbers": ([column("text", range(N))], VALIDATE, 3,
        "column 'text' is the text and holds int64; allowed are strings"),
    "texts that are bytes": ([column("text", [b"x"] * N)], VALIDATE, 3,
        "column 'text' is the text and holds binary; allowed are strings"),
    "texts that are lists": ([column("text", [["x"]] * N)], VALIDATE, 3, "column 'text' is the text and holds list<"),
    "texts that are structs": ([column("text", [{"a": "x"}] * N)], VALIDATE, 3,
        "column 'text' is the text and holds struct<"),
    "ids that are fractions": ([column("id", np.arange(N) / 2)], VALIDATE, 3,
        "is the id and holds double; allowed are strings and whole"),
    "labels that are lists": ([column("label", [[1]] * N)], VALIDATE, 3, "column 'label' is the label and holds list<"),
    "labels that are times": ([column("label", pa.array([0] * N, pa.timestamp("s")))], VALIDATE, 3,
        "holds timestamp[ms]; allowed are"),
    "images that are texts": ([dataset(image="text", text=None)], VALIDATE, 3,
        "column 'text' is the image and holds string; allowed are"),
    "tokens that are fractions": ([column("v", [[0.5]] * N), dataset(tokens="v")], VALIDATE, 3,
        "column 'v' is the tokens and holds list<", "lists of whole numbers"),
    "vectors that are numbers": ([column("v", [1.0] * N), *COLUMN_VECTORS], VALIDATE, 3,
        "is the vectors and holds double", "lists of numbers"),
    "vectors that are texts": ([column("v", ["x"] * N), *COLUMN_VECTORS], VALIDATE, 3,
        "is the vectors and holds string", "lists of numbers"),
    "vectors of texts": ([column("v", [["x"]] * N), *COLUMN_VECTORS], VALIDATE, 3, "is the vectors and holds list<",
        "lists of numbers"),
    "vectors of vectors": ([column("v", [[[1.0]]] * N), *COLUMN_VECTORS], VALIDATE, 3, "is the vectors and holds list<",
        "lists of numbers"),
    "an id that is null": ([column("id", [None, *map(str, range(N - 1))])], RUN, 3, "1 rows have no id in column 'id'",
        "rows.parquet row 0"),
    "two ids that are equal": ([column("id", ["a", "a", *map(str, range(N - 2))])], RUN, 3,
        "'a' at rows.parquet row 0 and rows.parquet row 1", "Ids must be unique"),
    "too many bad rows": ([column("text", [None] * 3 + ["t"] * (N - 3))], RUN, 3, "3 of 60 rows are bad",
        "rows.parquet row 2: text is null", "raise max_bad_fraction"),
    "one bad row where none is allowed": ([column("text", [""] + ["t"] * (N - 1)), setting(max_bad_fraction=0.0)], RUN,
        3, "1 of 60 rows are bad", "row 0: text is empty"),
    "nothing but bad rows": ([column("text", [""] * N), setting(max_bad_fraction=1.0), stages(EXACT)], RUN, 3,
        "no row is left"),
    "no row left to select": ([column("text", [""] * N), setting(max_bad_fraction=1.0)], RUN, 2,
        "only 0 rows reach this stage"),
    "no row left to embed": ([column("text", [""] * N), setting(max_bad_fraction=1.0), stages(EMBED)], RUN, 3,
        "no row is left to fit the lsa encoder on"),
    "a page of parquet that is damaged": ([made(spoil_page)], RUN, 3, "rows.parquet"),
}  # fmt: skip

EMBEDDINGS = {
    "no file of vectors": ([stages(VECTORS)], VALIDATE, 2, "no file of vectors at", "v.npy"),
    "a folder of vectors": ([empty_folder("v.npy"), stages(VECTORS)], VALIDATE, 2, "no file of vectors at", "v.npy"),
    "a pipe of vectors": ([pipe("v.npy"), stages(VECTORS)], VALIDATE, 2, "no file of vectors at", "v.npy"),
    "one vector too few": (vectors(npy(np.ones((N - 1, 4)))), VALIDATE, 3,
        "v.npy holds 59 vectors, the dataset 60 rows"),
    "one vector too many": (vectors(npy(np.ones((N + 1, 4)))), VALIDATE, 3,
        "v.npy holds 61 vectors, the dataset 60 rows"),
    "an array of objects": (vectors(npy(np.array([[1.0], "x"], dtype=object), allow_pickle=True)), VALIDATE, 3, "v.npy",
        "Python objects"),
    "an array of whole numbers": (vectors(npy(np.ones((N, 2), int))), VALIDATE, 3, "v.npy",
        "holds int64 of shape (60, 2)"),
    "an array of complex numbers": (vectors(npy(np.ones((N, 2), complex))), VALIDATE, 3, "v.npy",
        "holds complex128 of shape (60, 2)"),
    "an array of one dimension": (vectors(npy(np.ones(N))), VALIDATE, 3, "v.npy", "holds float64 of shape (60,)"),
    "an array of three dimensions": (vectors(npy(np.ones((N, 2, 2)))), VALIDATE, 3, "v.npy",
        "holds float64 of shape (60, 2, 2)"),
    "vectors of no numbers": (vectors(npy(np.ones((N, 0)))), RUN, 3, "v.npy"),
    "an array of no bytes": (vectors(b""), VALIDATE, 3, "v.npy: cannot read vectors"),
    "an array of noise": (vectors(b"nothing of the kind"), VALIDATE, 3, "v.npy: cannot read vectors"),
    "half an array": (vectors(npy(np.ones((N, 4)))[:300]), VALIDATE, 3, "v.npy: cannot read vectors"),
    "an array that promises a petabyte": (vectors(npy_header((10**14, 4))), VALIDATE, 3, "v.npy: cannot read vectors"),
    "an array of a negative shape": (vectors(npy_header((-1, 4))), VALIDATE, 3, "v.npy: cannot read vectors"),
    "an array with an open bracket in its header": (vectors(npy_header("(60, 4")), VALIDATE, 3,
        "v.npy: cannot read vectors"),
    "an array with a comma before its header": (vectors(npy_header((60, 4), before=",")), VALIDATE, 3,
        "v.npy: cannot read vectors"),
    "an array of another byte order": (vectors(npy_header((60, 4), "nonsense")), VALIDATE, 3,
        "v.npy: cannot read vectors"),
    "an archive named npy": (vectors(npz()), VALIDATE, 3, "v.npy: cannot read vectors"),
    "vectors of torch": (vectors(b"PK\x03\x04", "v.pt"), VALIDATE, 3, "v.pt",
        "pickled formats can run code and are refused"),
    "vectors in a pickle": (vectors(b"\x80\x04.", "v.pkl"), VALIDATE, 3, "v.pkl",
        "pickled formats can run code and are refused"),
    "vectors in a text": (vectors(b"1 2", "v.txt"), VALIDATE, 3, "v.txt", "npy"),
    "safetensors of noise": (vectors(b"\x08\0\0\0\0\0\0\0garbage!", "v.safetensors"), VALIDATE, 3,
        "v.safetensors: cannot read vectors"),
    "safetensors of an endless header": (vectors(struct.pack("<Q", 2**62), "v.safetensors"), VALIDATE, 3,
        "v.safetensors: cannot read"),
    "safetensors without a tensor": (vectors(safetensors({}), "v.safetensors"), VALIDATE, 3, "v.safetensors"),
    "safetensors of two tensors": (vectors(safetensors({n: {"dtype": "F32", "shape": [1, 1], "data_offsets": [i * 4,
        i * 4 + 4]} for i, n in enumerate("ab")}, bytes(8)), "v.safetensors"), VALIDATE, 3, "v.safetensors"),
    "safetensors beyond the file": (vectors(safetensors({"a": {"dtype": "F32", "shape": [9, 9], "data_offsets": [0,
        324]}}), "v.safetensors"), VALIDATE, 3, "cannot read"),
    "parquet vectors of noise": (vectors(b"PAR1", "v.parquet"), VALIDATE, 3, "v.parquet: cannot read vectors"),
    "parquet of two columns of vectors": (vectors(parquet(pa.table({"a": [[1.0]], "b": [[1.0]]})), "v.parquet"),
        VALIDATE, 3, "has 2 list columns (a, b); give a file with one"),
    "parquet without vectors": (vectors(parquet(pa.table({"a": [1.0]})), "v.parquet"), VALIDATE, 3,
        "has 0 list columns (none)"),
    "ragged parquet vectors": (vectors(parquet(pa.table({"a": [[1.0], [1.0, 2.0]] * 30})), "v.parquet"), RUN, 3,
        "vectors differ in length: row 0 has 1, row 1 has 2"),
    "empty parquet vectors": (vectors(parquet(pa.table({"a": pa.array([[]] * N, pa.list_(pa.float32()))})),
        "v.parquet"), RUN, 3, "empty lists"),
    "parquet vectors of text": (vectors(parquet(pa.table({"a": [["x"]] * N})), "v.parquet"), RUN, 3,
        "cannot read vectors"),
    "arrow vectors of noise": (vectors(b"ARROW1\0\0" + b"\xff" * 99, "v.arrow"), VALIDATE, 3,
        "v.arrow: cannot read vectors"),
    "half an arrow file of vectors": (vectors(arrow(pa.table({"a": [[1.0]] * N}))[:400], "v.arrow"), VALIDATE, 3,
        "v.arrow: cannot read vectors"),
    "too many bad vectors": (vectors(npy(np.full((N, 2), np.nan))), RUN, 3, "60 of 60 rows have no usable vector",
        "row 0: vector has NaN"),
    "ragged vectors in a column": ([column("v", [[1.0]] * (N - 1) + [[1.0, 2.0]]), *COLUMN_VECTORS], RUN, 3,
        "row 0 has 1, row 59 has 2"),
    "empty vectors in a column": ([column("v", pa.array([[]] * N, pa.list_(pa.float32()))), *COLUMN_VECTORS], RUN, 3,
        "vectors are empty lists"),
    "vectors of other lengths in another block": ([column("v", [[1.0, 2.0]] * 16 + [[1.0]] * (N - 16)), *COLUMN_VECTORS,
        setting(block_rows=16)], RUN, 3, "between blocks: [1, 2]"),
    "vectors on a path that is too long": ([stages({**EMBED, "encoder": f"vectors: {'x/' * 3000}"})], VALIDATE, 2,
        "more than 2048 bytes"),
    "vectors in a name that is too long": ([stages({**EMBED, "encoder": f"vectors: {'x' * 300}"})], VALIDATE, 2,
        "with a name of more than 255 bytes"),
    "a model that is not there": ([stages({"kind": "embed", "encoder": "sentence: nobody/none"})], VALIDATE, 2,
        "no model at 'nobody/none'", "safetensors"),
    "a model that is a pickle": ([written("m/pytorch_model.bin", b"\x80\x04."), stages({"kind": "embed",
        "encoder": "transformers: m"})], VALIDATE, 2, "has no .safetensors beside it", "refused"),
    "a model of noise": ([written("m/model.safetensors", b"noise"), written("m/config.json", "{}"),
        stages({"kind": "embed", "encoder": "transformers: m"})], RUN, 2, "the model in", "cannot be loaded",
        "give a folder"),
}  # fmt: skip

STAGES = {
    "dedup without embeddings": ([stages({"kind": "dedup"})], VALIDATE, 2,
        "dedup with eps > 0 needs embeddings; put an embed stage before it"),
    "cluster without embeddings": ([stages(CLUSTER)], VALIDATE, 2, "cluster needs embeddings"),
    "a proxy without embeddings": ([stages(PROXY)], VALIDATE, 2, "needs embeddings"),
    "a proxy without labels": ([dataset(label=None), stages(EMBED, PROXY)], VALIDATE, 2,
        "needs labels; name the column: dataset: {label: COLUMN}"),
    "prune without losses": ([stages({"kind": "prune", "method": "loss", "drop_highest": 0.1})], VALIDATE, 2,
        "needs loss; put a score stage"),
    "prune without clusters": ([stages(EMBED, {"kind": "prune", "method": "density"})], VALIDATE, 2,
        "needs cluster; put a cluster stage before it"),
    "schedule without losses": ([stages({"kind": "schedule"})], VALIDATE, 2, "schedule needs loss"),
    "reweight without losses": ([stages({"kind": "reweight"})], VALIDATE, 2, "reweight needs loss"),
    "select without embeddings": ([stages({"kind": "select", "method": "k_center", "budget": 3})], VALIDATE, 2,
        "needs embeddings"),
    "select without labels": ([dataset(label=None), stages({**RANDOM, "method": "stratified"})], VALIDATE, 2,
        "needs labels"),
    "select per label without labels": ([dataset(label=None), stages({**RANDOM, "per": "label"})], VALIDATE, 2,
        "needs labels"),
    "select per cluster without clusters": ([stages({**RANDOM, "per": "cluster"})], VALIDATE, 2, "needs cluster"),
    "embed without texts": ([column("v", [[1.0]] * N), dataset(text=None, vectors="v"), stages(EMBED)], VALIDATE, 2,
        "embed with 'lsa' needs the dataset's text column"),
    "embed without a column of vectors": ([stages({"kind": "embed", "encoder": "vectors"})], VALIDATE, 2,
        "needs the dataset's vectors column"),
    "pixels without images": ([stages({"kind": "embed", "encoder": "pixels"})], VALIDATE, 2,
        "needs the dataset's image column"),
    "dropping after schedule": ([*losses(*SOUND), stages(LOSSES, {"kind": "schedule"}, RANDOM)], VALIDATE, 2,
        "put schedule last"),
    "a budget above the dataset": ([stages({**RANDOM, "budget": 61})], VALIDATE, 2,
        "select.budget is 61, but the dataset has 60 rows"),
    "a budget above what is left": ([column("text", ["same"] * 39 + [f"t{i}" for i in range(21)]), column("label",
        ["x"] * N), stages(EXACT, RANDOM)], RUN, 2,
        "select.budget 0.5 of 60 rows is 30, but only 22 rows reach this stage"),
    "keeping more than there is": ([stages(EMBED, CLUSTER, {"kind": "prune", "method": "density", "keep": 61})], RUN, 2,
        "prune.keep is 61, but only 60 rows"),
    "a target that is not there": ([stages(EMBED, {**RANDOM, "method": "targeted", "queries": "q.npy"})], VALIDATE, 2,
        "q.npy"),
    "a target of another dimension": ([written("q.npy", npy(np.ones((2, 3)))), stages(EMBED, {**RANDOM,
        "method": "targeted", "queries": "q.npy"})], RUN, 3, "3", "16"),
    "a target of NaN": ([written("q.npy", npy(np.full((2, 16), np.nan))), stages(EMBED, {**RANDOM, "method": "targeted",
        "queries": "q.npy"})], RUN, 3, "q.npy: 2 of 2 vectors", "row 0: vector has NaN or infinity",
        "mend or remove them"),
    "a target without a vector": ([written("q.npy", npy(np.ones((0, 16)))), stages(EMBED, {**RANDOM,
        "method": "targeted", "queries": "q.npy"})], VALIDATE, 2, "q.npy holds no vectors"),
    "no file of losses": ([stages(LOSSES)], VALIDATE, 2, "no file of losses at", "losses.csv"),
    "losses in a name that is too long": ([stages({**LOSSES, "from": "x" * 300})], VALIDATE, 2,
        "with a name of more than 255 bytes"),
    "a pipe of losses": ([pipe("losses.csv"), stages(LOSSES)], VALIDATE, 2, "losses.csv"),
    "losses of a folder without a ledger": ([empty_folder("t"), stages({**LOSSES, "from": "t"})], VALIDATE, 2,
        "no file of losses at", "give a table, or the folder of one training"),
    "losses of a damaged ledger": ([written("t/ledger.json", "{}"), stages({**LOSSES, "from": "t"})], VALIDATE, 7,
        "ledger.json is damaged"),
    "losses in another kind of file": ([written("losses.txt", "x"), stages({**LOSSES, "from": "losses.txt"})], RUN, 3,
        "'.txt'", ".csv"),
    "no bytes of losses": ([written("losses.csv", b""), stages(LOSSES)], RUN, 3, "losses.csv", "empty"),
    "losses in another column": (losses(*SOUND, head="sample_id,losses"), RUN, 3,
        "no column 'loss'; did you mean 'losses'?"),
    "losses with other ids": (losses(*SOUND, head="id,loss"), RUN, 3, "losses.csv: no column 'sample_id'"),
    "losses that are missing": (losses(*SOUND[12:]), RUN, 3, "losses.csv has no loss for 12 of 60 rows", "r0000, r0001",
        "give one for each"),
    "losses of nobody": ([*losses("other,1.0"), stages({**LOSSES, "missing": "median"})], RUN, 3,
        "no loss for any of the 60 rows"),
    "losses twice": (losses(*SOUND, "r0003,0.5"), RUN, 3, "column 'sample_id' holds 1 ids more than once: r0003"),
    "losses that are text": (losses(*SOUND[1:], "r0000,high"), RUN, 3, "column 'loss' holds no numbers", "high",
        "score.column"),
    "a loss that is NaN": (losses(*SOUND[1:], "r0000,nan"), RUN, 3, "losses.csv: 1 losses are NaN or infinite: r0000"),
    "a loss that is infinite": (losses(*SOUND[1:], "r0000,-inf"), RUN, 3,
        "losses.csv: 1 losses are NaN or infinite: r0000"),
    "a proxy on one row": ([made(lambda f: pq.write_table(pq.read_table(f / "rows.parquet").slice(0, 1),
        f / "rows.parquet")), stages(EMBED, PROXY)], RUN, 3, "score with 5 folds needs at least 10 rows; 1 are left"),
    "a proxy on one class": ([column("label", ["same"] * N), stages(EMBED, PROXY)], RUN, 3, "at least two labels"),
    "a proxy below what was asked": ([stages(EMBED, {**PROXY, "min_accuracy": 1.0})], RUN, 3,
        "not above 1.0000 (min_accuracy)"),
    "a proxy of noise": ([column("label", list(np.random.default_rng(0).permutation(["x"] * 42 + ["y"] * 18))),
        stages(EMBED, PROXY)], RUN, 3, "the proxy's out-of-fold accuracy is 0.", "check the labels"),
    "a schedule of another length": ([setting(stages=[LOSSES, {"kind": "schedule", "epochs": 3}], train={"epochs": 4})],
        VALIDATE, 2, "schedule plans 3 epochs and train has 4; give one number"),
}  # fmt: skip

SOUND_TEXT = "name: x\ndataset: {path: rows.parquet, text: text}\nstages: [{kind: dedup, eps: 0.0}]\n"

RECIPES = {
    "no recipe": ([], "validate none.yaml", 2, "none.yaml: cannot read the recipe"),
    "a recipe that is a folder": ([empty_folder("recipe.yaml")], VALIDATE, 2, "recipe.yaml: cannot read the recipe"),
    "a recipe that is a pipe": ([pipe("recipe.yaml")], VALIDATE, 2, "recipe.yaml: cannot read the recipe"),
    "a recipe that is a link to itself": ([link("recipe.yaml", "recipe.yaml")], VALIDATE, 2,
        "recipe.yaml: cannot read the recipe"),
    "a recipe that may not be read": ([recipe(SOUND_TEXT), made(lambda f: (f / "recipe.yaml").chmod(0))], VALIDATE, 2,
        "cannot read the recipe", "Permission denied"),
    "an empty recipe": ([recipe("")], VALIDATE, 2,
        "recipe.yaml:1: the recipe is empty; a mapping with stages is needed"),
    "a recipe of comments": ([recipe("# nothing\n")], VALIDATE, 2, "the recipe is empty"),
    "a recipe that is a list": ([recipe("- a\n")], VALIDATE, 2, "recipe.yaml:1: the recipe is not a mapping"),
    "a recipe that is no YAML": ([recipe("name: [\n")], VALIDATE, 2, "recipe.yaml:2: not valid YAML"),
    "a recipe with a tab": ([recipe("name: x\n\tseed: 1\n")], VALIDATE, 2, "recipe.yaml:2: not valid YAML"),
    "a recipe in two documents": ([recipe(SOUND_TEXT + "---\n" + SOUND_TEXT)], VALIDATE, 2,
        "recipe.yaml:4: a second document starts here"),
    "a recipe of noise": ([recipe(b"\x00\xff\xfe\x80")], VALIDATE, 2, "recipe.yaml: cannot read the recipe"),
    "a recipe in UTF-16": ([recipe(SOUND_TEXT.encode("utf-16"))], VALIDATE, 2, "cannot read the recipe", "utf-8"),
    "a recipe with NUL": ([recipe("name: x\0\n")], VALIDATE, 2, "recipe.yaml:1: not a text character"),
    "a recipe with half a character": ([recipe('name: "\\ud800"\n')], VALIDATE, 2, "recipe.yaml:1:", "lone surrogate"),
    "a recipe with a key of half a character": ([recipe('"\\ud800": 1\n')], VALIDATE, 2, "recipe.yaml:1:",
        "lone surrogate"),
    "a recipe with no such character": ([recipe('name: "\\UFFFFFFFF"\n')], VALIDATE, 2,
        "recipe.yaml:1: not valid YAML"),
    "a recipe above 256 KiB": ([recipe("# " + "x" * 300_000)], VALIDATE, 2, "300002 bytes; at most 262144 are allowed"),
    "a recipe 40 levels deep": ([recipe("name: " + "[" * 40)], VALIDATE, 2, "nested more than 32 levels deep"),
    "a recipe 100,000 levels deep": ([recipe("name: " + "[" * 100_000)], VALIDATE, 2,
        "nested more than 32 levels deep"),
    "an anchor": ([recipe("name: &a x\n")], VALIDATE, 2,
        "recipe.yaml:1: the anchor &a is not allowed; write values out"),
    "an alias": ([recipe("name: *a\n")], VALIDATE, 2, "recipe.yaml:1: the alias *a is not allowed"),
    "a merge key": ([recipe("dataset:\n  <<: {path: x}\n")], VALIDATE, 2,
        "recipe.yaml:2: the merge key << is not allowed"),
    "a tag": ([recipe("name: !!python/object:os.system x\n")], VALIDATE, 2, "recipe.yaml:1: the tag",
        "is not allowed; write a plain value"),
    "a key that is a list": ([recipe("? [a]\n: b\n")], VALIDATE, 2, "recipe.yaml:1: a key is not a plain word"),
    "a key twice": ([recipe("name: x\nname: y\n")], VALIDATE, 2,
        "recipe.yaml:2: the key 'name' is there twice, first on line 1"),
    "an unknown key": ([setting(sed=1)], VALIDATE, 2, "sed: unknown key; did you mean 'seed'? allowed:"),
    "an unknown key of the dataset": ([dataset(txt="text")], VALIDATE, 2,
        "dataset.txt: unknown key; did you mean 'text'?"),
    "an unknown key of a stage": ([stages({**EXACT, "epsilon": 1})], VALIDATE, 2,
        "stages.0.epsilon: unknown key; did you mean 'eps'?"),
    "an unknown key of train": ([setting(train={"epoch": 3})], VALIDATE, 2,
        "train.epoch: unknown key; did you mean 'epochs'?"),
    "an unknown stage": ([stages({"kind": "dedupe"})], VALIDATE, 2,
        "no stage of kind 'dedupe'; did you mean 'dedup'? allowed:"),
    "a stage without a kind": ([stages({"eps": 0.0})], VALIDATE, 2, "stages.0: no stage of kind None",
        "allowed: embed, dedup"),
    "a stage that is a word": ([stages("dedup")], VALIDATE, 2, "stages.0:", "dedup"),
    "a stage whose kind is a list": ([stages({"kind": ["dedup"]})], VALIDATE, 2,
        "stages.0: no stage of kind ['dedup']"),
    "no stages": ([without("stages")], VALIDATE, 2, "stages: missing; add it"),
    "an empty list of stages": ([stages()], VALIDATE, 2, "stages: the list is empty; give at least one stage"),
    "stages that are a mapping": ([setting(stages={"kind": "dedup"})], VALIDATE, 2, "stages:"),
    "no dataset": ([without("dataset")], VALIDATE, 2, "dataset: missing; add it"),
    "a dataset that is a path": ([setting(dataset="rows.parquet")], VALIDATE, 2, "dataset:", "rows.parquet"),
    "a dataset of no column": ([dataset(text=None)], VALIDATE, 2,
        "name the column that holds the samples: text: COLUMN"),
    "no name": ([without("name")], VALIDATE, 2, "name: missing; add it"),
    "a name that is a path": ([setting(name="../x")], VALIDATE, 2, "name:", "'../x'"),
    "a name of 101 letters": ([setting(name="x" * 101)], VALIDATE, 2, "name:"),
    "a name with a line break": ([setting(name="x\n")], VALIDATE, 2, "name:"),
    "1e3 as a seed": ([recipe("seed: 1e3\n")], VALIDATE, 2, "seed:", "1000.0"),
    "no as a boolean": ([recipe("name: x\nstages: [{kind: reweight, clip: no}]\n")], VALIDATE, 2, "stages.0.clip:",
        "'no'"),
    "a count that is a time": ([recipe("name: x\nstages: [{kind: embed, dim: 1:30}]\n")], VALIDATE, 2, "stages.0.dim:",
        "'1:30'"),
    "a budget of nothing": ([stages({**RANDOM, "budget": 0})], VALIDATE, 2,
        "stages.0.budget: 0 is not a count: the least is 1"),
    "a budget below nothing": ([stages({**RANDOM, "budget": -0.5})], VALIDATE, 2,
        "budget: -0.5 is not a fraction in (0, 1]"),
    "a budget of 1.5": ([stages({**RANDOM, "budget": 1.5})], VALIDATE, 2,
        "budget: 1.5 is not a fraction in (0, 1]; for a count, write"),
    "a budget of NaN": ([recipe("stages: [{kind: select, method: random, budget: .nan}]\n")], VALIDATE, 2,
        "budget: '.nan' is not an amount"),
    "a budget in per cent": ([stages({**RANDOM, "budget": "25 %"})], VALIDATE, 2,
        "budget: '25 %' is not an amount: give a fraction such as 0.25"),
    "a budget that is true": ([stages({**RANDOM, "budget": True})], VALIDATE, 2, "budget: True is not an amount"),
    "a budget that is null": ([stages({**RANDOM, "budget": None})], VALIDATE, 2, "budget: None is not an amount"),
    "a budget of no bytes": ([stages({**RANDOM, "budget": {"bytes": 0}})], VALIDATE, 2,
        "budget: {'bytes': 0} is not an amount", "{tokens: 1000000}"),
    "a budget of tokens without any": ([stages({**RANDOM, "budget": {"tokens": 9}})], VALIDATE, 2,
        "needs the dataset's tokens column"),
    "a budget of bytes without any": ([column("t", [[1]] * N), dataset(text=None, tokens="t"),
        stages({**RANDOM, "budget": {"bytes": 9}})], VALIDATE, 2, "needs the dataset's text or image column"),
    "shares of nobody": ([stages({**RANDOM, "shares": {"c1": 0.5}})], VALIDATE, 2, "name them: per: label"),
    "shares of an unknown class": ([stages({**RANDOM, "per": "label", "shares": {"c9": 0.5}})], RUN, 2,
        "shares name 'c9', of which there is no row here; there are 'c0'"),
    "a reference set that is missing": ([stages({**EXACT, "against": ["none.parquet"]})], VALIDATE, 3,
        "none.parquet does not exist"),
    "the dataset as its own reference set": ([stages({**EXACT, "against": ["rows.parquet"]})], VALIDATE, 2,
        "rows.parquet holds a file of the dataset itself; leave it out"),
    "a reference set on another machine": ([stages({**EXACT, "against": ["https://u:p@h/x"]})], VALIDATE, 2,
        "https://... is a remote address"),
    "no budget": ([stages({"kind": "select", "method": "random"})], VALIDATE, 2, "stages.0.budget: missing; add it"),
    "zero clusters": ([stages(EMBED, {**CLUSTER, "n_clusters": 0})], VALIDATE, 2, "n_clusters", "the least is 1"),
    "clusters that are a word": ([stages(EMBED, {**CLUSTER, "n_clusters": "some"})], VALIDATE, 2, "n_clusters",
        "'some'"),
    "eps below the floor": ([stages({"kind": "dedup", "eps": 0.5})], VALIDATE, 2,
        "below the floor 0.9; lower floor or eps"),
    "two sources of losses": ([stages({**LOSSES, "method": "proxy"})], VALIDATE, 2,
        "give either `method: proxy` or `from: FILE`"),
    "folds for a file of losses": ([stages({**LOSSES, "folds": 3})], VALIDATE, 2, "folds does not belong to from"),
    "an option of another method": ([stages({**RANDOM, "ridge": 2.0})], VALIDATE, 2,
        "ridge does not belong to method random"),
    "a target without queries": ([stages({**RANDOM, "method": "targeted"})], VALIDATE, 2,
        "method targeted needs `queries: FILE`"),
    "pruning everything": ([stages({"kind": "prune", "method": "loss", "drop_highest": 0.5, "drop_lowest": 0.5})],
        VALIDATE, 2, "together in (0, 1)"),
    "an unknown encoder": ([stages({**EMBED, "encoder": "bert"})], VALIDATE, 2, "'bert' is not an encoder; one of lsa"),
    "an encoder without a model": ([stages({**EMBED, "encoder": "sentence:"})], VALIDATE, 2,
        "sentence needs a folder or hub name"),
    "pixels with a model": ([stages({**EMBED, "encoder": "pixels: x"})], VALIDATE, 2, "pixels has no weights to name"),
    "everything wrong at once": ([setting(seed=-1, block_rows="x", more=1)], VALIDATE, 2, "seed:", "block_rows:",
        "more: unknown key"),
    "an override without a value": ([], f"{VALIDATE} --set seed", 2, "--set 'seed': write it as stage.key=value"),
    "an override of nothing": ([], f"{VALIDATE} --set =1", 2, "--set '=1': write it as stage.key=value"),
    "an override of no stage": ([], f"{VALIDATE} --set prune.keep=1", 2,
        "no stage 'prune' in this recipe; it has select, and dataset and train"),
    "an override too deep": ([], f"{VALIDATE} --set a.b.c=1", 2, "'a.b.c' is too deep; write stage.key=value"),
    "an override of a second stage": ([], f"{VALIDATE} --set select[1].budget=1", 2,
        "has 1 stage(s) of kind select, counted from 0"),
    "an override of one of two": ([stages(EXACT, EXACT)], f"{VALIDATE} --set dedup.eps=0", 2,
        "say which: dedup[0] to dedup[1]"),
    "an override by a broken index": ([], f"{VALIDATE} --set select[x].budget=1", 2, "'select[x]' is not a stage"),
    "an override of an unknown key": ([], f"{VALIDATE} --set select.budge=1", 2,
        "stages.0.budge: unknown key; did you mean 'budget'?"),
    "an override of no YAML": ([], f"{VALIDATE} --set select.budget=[", 2, "--set select.budget=[:1", "not valid YAML"),
    "an override by a tag": ([], f"{VALIDATE} --set 'seed=!!int 3'", 2, "the tag", "is not allowed"),
    "an override that adds lines": ([], f"{VALIDATE} --set 'seed=1\nname: y'", 2,
        "one value is allowed, 2 were given; repeat --set"),
    "an override of a wrong type": ([], f"{VALIDATE} --set select.budget=half", 2, "budget: 'half' is not an amount"),
    "an override of stages by a word": ([], f"{VALIDATE} --set stages=x", 2, "stages:", "'x'"),
    "an override of a dataset that is a word": ([setting(dataset="x")], f"{VALIDATE} --set dataset.id=a", 2,
        "dataset is not a mapping; mend"),
    "an override of stages that are none": ([setting(stages=["x"])], f"{VALIDATE} --set seed=1", 2,
        "stages are not a list of mappings; mend"),
}  # fmt: skip

OPTIONS = {
    "no rows by --limit": ([], f"{RUN} --limit 0", 2, "'--limit': 0 is not in the range x>=1"),
    "fewer than no rows by --limit": ([], "plan recipe.yaml --out out --limit -3", 2,
        "'--limit': -3 is not in the range x>=1"),
    "a --limit that is a word": ([], f"{RUN} --limit ten", 2, "'--limit': 'ten' is not a valid integer"),
    "no --workers": ([], f"{RUN} --workers 0", 2, "'--workers': 0 is not in the range x>=1"),
    "half a worker": ([], "plan recipe.yaml --out out --workers 0.5", 2, "'--workers': '0.5' is not a valid integer"),
    "no time": ([], f"{RUN} --timeout 0", 2, "'--timeout': 0.0 is not in the range x>0"),
    "a --timeout of NaN": ([], f"{RUN} --timeout nan", 2, "timeout is nan; it must be above 0 seconds"),
    "another --executor": ([], "run recipe.yaml --out out --executor threads", 2,
        "'threads' is not one of 'local', 'sync'"),
    "no --out": ([], "run recipe.yaml", 2, "Missing option '--out'"),
    "an unknown option": ([], f"{RUN} --budget 3", 2, "No such option", "--budget"),
    "an unknown verb": ([], "sift recipe.yaml", 2, "No such command 'sift'"),
    "no recipe named": ([], "validate", 2, "Missing argument 'RECIPE'"),
    "a scheduler without TLS": ([], f"{RUN} --scheduler tcp://10.0.0.7:8786", 2, "tcp://10.0.0.7:8786", "--insecure"),
    "a scheduler that is no address": ([], f"{RUN} --scheduler nonsense", 2, "more than a host and a port", "tls://"),
    "a scheduler of another kind": ([], f"{RUN} --scheduler http://127.0.0.1:1", 2, "http://127.0.0.1:1", "tls://"),
    "an unknown shipped recipe": ([], "recipes quickstar", 2, "no recipe 'quickstar'; shipped are", "quickstart"),
    "a recipe that is there already": ([], "init rows.parquet", 5, "recipe.yaml exists and is not overwritten"),
    "a first recipe for nothing": ([], "init none.parquet --out r.yaml", 3, "none.parquet does not exist"),
    "a first recipe for numbers": ([written("n.jsonl", '{"a": 1}\n')], "init n.jsonl --out r.yaml", 3,
        "looks like texts, images, token blocks or vectors", "a (int64)", "tamis recipes --keys"),
    "a first recipe into no folder": ([], "init rows.parquet --out none/r.yaml", 5, "none"),
    "leaks of a run without references": ([], "leaks finished", 2, "compared with no reference set", "against:"),
    "leaks of no run": ([], "leaks none", 5, "holds no run"),
    "an unknown export": ([], "export finished --to xml --out x", 2,
        "'xml' is not one of 'parquet', 'jsonl', 'ids', 'hf', 'npy', 'mds', 'webdataset'"),
    "a shard of nothing": ([], "export finished --to mds --shard-mb 0 --out x", 2,
        "'--shard-mb': 0 is not in the range"),
    "shards of what has none": ([], "export finished --to ids --shard-mb 9 --out x", 2,
        "--shard-mb is for mds and webdataset", "leave it out"),
    "a description of a list": ([], "export finished --to ids --croissant --out x", 2, "Croissant cannot say",
        "describe parquet, jsonl, hf"),
    "an epoch less than one": ([], "train finished --epochs 0", 2, "'--epochs': 0 is not in the range x>=1"),
    "a batch of nothing": ([], "train finished --batch-size 0", 2, "'--batch-size': 0 is not in the range x>=1"),
    "a seed below 0": ([], "train finished --seed -1", 2, "'--seed': -1 is not in the range x>=0"),
    "a block of one token": ([], "pack rows.parquet --out packed --block 1", 2,
        "'--block': 1 is not in the range x>=2"),
    "a vocabulary below the bytes": ([], "pack rows.parquet --out packed --vocabulary 256", 2,
        "256 is not in the range x>=257"),
}  # fmt: skip


def run_json(text, name="run.json"):
    return written(f"finished/{name}", text)


VERBS = {
    "out is a file": ([written("out", "x")], RUN, 5, "cannot write to", "give a folder that can be written with --out"),
    "out is below a file": ([written("file", "x")], "run recipe.yaml --out file/out --executor sync", 5,
        "cannot write to", "--out"),
    "out may not be written": ([written("out", Path.mkdir), made(lambda f: (f / "out").chmod(0o500))], RUN, 5,
        "cannot write to", "Permission denied"),
    "a file for the work": ([written("out/work", "x")], RUN, 5, "cannot write to", "out"),
    "a file for the manifest": ([written("out/manifest", "x")], RUN, 5, "out/manifest"),
    "a folder for the events": ([empty_folder("out/events.jsonl")], RUN, 5, "events.jsonl",
        "free space or give another --out"),
    "a folder for the description": ([empty_folder("out/run.json")], RUN, 5, "run.json"),
    "a folder for the report": ([empty_folder("finished/report.html")], "report finished", 5, "report.html"),
    "the status of nothing": ([], "status none", 5, "none holds no run", "give the folder that was --out of tamis run"),
    "the status of an empty folder": ([empty_folder("d")], "status d", 5, "d holds no run"),
    "the status of a file": ([], "status rows.parquet", 5, "rows.parquet holds no run"),
    "the status of half a description": ([run_json("{", "attempt.json")], "status finished", 5, "finished holds no run",
        "attempt.json"),
    "the status of a list": ([run_json("[]", "attempt.json")], "status finished", 5, "finished holds no run",
        "attempt.json"),
    "the status of no stages": ([run_json("{}", "attempt.json")], "status finished", 5, "finished holds no run",
        "attempt.json"),
    "the status of deep JSON": ([run_json("[" * 99_999, "attempt.json")], "status finished", 5,
        "finished holds no run"),
    "a report of nothing": ([], "report none", 5, "none holds no run", "give the folder that was --out of tamis run"),
    "a report of a comparison of noise": ([written("finished/compare.json", "{")], "report finished", 5,
        "compare.json holds no comparison", "remove"),
    "a report of a comparison of nothing": ([written("finished/compare.json", "[]")], "report finished", 5,
        "compare.json holds no comparison"),
    "out is a link to itself": ([link("out", "out")], RUN, 5, "cannot write to", "out",
        "give a folder that can be written with --out"),
    "out has a name that is too long": ([], f"run recipe.yaml --out {'x' * 300} --executor sync", 5, "cannot write to",
        "--out"),
    "a plan into a link to itself": ([link("out", "out")], "plan recipe.yaml --out out", 5, "cannot write to", "--out"),
    "why of a name that is too long": ([], f"why r0000 --run {'x' * 300}", 5, "has no commit record"),
    "why of a link to itself": ([link("loop", "loop")], "why r0000 --run loop", 5, "loop has no commit record",
        "Too many levels"),
    "why of a folder that may not be read": ([made(lambda f: (f / "finished").chmod(0))], "why r0000 --run finished", 5,
        "finished has no commit record", "Permission denied"),
    "the status of a name that is too long": ([], f"status {'x' * 300}", 5, "holds no run"),
    "an export to a name that is too long": ([], f"export finished --to ids --out {'x' * 300}", 5, "cannot write"),
    "a training on a name that is too long": ([], f"train finished --data {'x' * 300}", 3, "cannot be looked at"),
    "a report of a description that is a list": ([run_json("[]")], "report finished", 5, "finished holds no run",
        "run.json"),
    "why of nothing": ([], "why r0000 --run none", 5, "none has no commit record", "it does not exist",
        "give the folder of a run"),
    "why of a file": ([], "why r0000 --run rows.parquet", 5, "rows.parquet has no commit record",
        "Not a directory"),
    "why of an empty folder": ([empty_folder("d")], "why r0000 --run d", 5, "nothing was committed here",
        "the folder of a run that has ended"),
    "why of no such version": ([], "why r0000 --run finished/manifest/v000007.json", 5, "v000007.json does not exist",
        "versions there are [1]"),
    "why of no such row": ([], "why --row 60 --run finished", 3, "there is no row 60", "its rows are 0 to 59"),
    "why of nobody": ([], "why --run finished", 2, "give an ID or --row N"),
    "why of two": ([], "why r0000 --row 3 --run finished", 2, "give an ID or --row N"),
    "why of other data without texts": ([], "why r0000 --run finished --data rows.parquet", 2, "give --text"),
    "why with texts of other data": ([column("text", ["x"] * N)], "why r0000 --run finished --text --data rows.parquet",
        6, "fingerprint"),
    "why with texts of data that are gone": ([], "why r0000 --run finished --text --data gone.parquet", 3,
        "gone.parquet does not exist"),
    "why of bytes that are no text": ([], "why '\udcff' --run finished", 3, "no sample has the id '\\udcff'"),
    "a diff of one": ([], "diff finished", 2, "give at least two"),
    "a diff with nothing": ([], "diff finished none", 5, "none has no commit record"),
    "a diff of three with rows": ([], "diff finished finished finished --rows 1", 2, "lists rows of two subsets"),
    "a diff of other data": ([column("text", [f"x{i}" for i in range(N)]),
        lambda place: tamis.run(place.recipe, place.folder / "other", executor="sync")], "diff finished other", 6,
        "no row is in the datasets of both", "60 ids are in both, with other contents"),
    "a threshold of nothing": ([], "dedup-threshold none", 5, "none holds no run"),
    "a threshold of no dedup": ([], "dedup-threshold finished", 2, "has no dedup stage", "add {kind: dedup}"),
    "a threshold that is no number": ([], "dedup-threshold finished --eps x", 2, "'x' is not a valid float"),
    "a threshold with texts of no pairs": ([], "dedup-threshold finished --text", 2, "give --pairs N"),
    "a threshold with data of no texts": ([], "dedup-threshold finished --data rows.parquet", 2, "give --text"),
    "a threshold of a run that describes nothing": ([run_json(json.dumps({
        "name": "x", "data": "x", "rows": 1, "limit": None, "settings": {}, "sources": {},
        "stages": [{"stage": "00-dedup", "kind": "dedup", "config": {}, "nodes": []}]}))],
        "dedup-threshold finished", 5, "a manifest of another run than the last", "run the recipe again"),
    "why of a stranger": ([], "why nobody --run finished", 3, "no sample has the id 'nobody' among the 60 rows",
        "compared as text, exactly"),
    "why of no id": ([], "why '' --run finished", 3, "no sample has the id ''"),
    "an export of nothing": ([], "export none --to ids --out ids", 5, "none has no commit record"),
    "an export over a file": ([written("ids", "x")], "export finished --to ids --out ids", 5,
        "ids exists and is not overwritten: choose another"),
    "an export over a link": ([link("ids", "gone")], "export finished --to ids --out ids", 5,
        "ids exists and is not overwritten"),
    "an export into no folder": ([], "export finished --to parquet --out no/x.parquet", 5, "cannot write no/x.parquet"),
    "an export of other data": ([column("text", ["x"] * N)], "export finished --to jsonl --out x --data rows.parquet",
        6, "fingerprint"),
    "an export of data that are gone": ([], "export finished --to jsonl --out x --data gone.parquet", 3,
        "gone.parquet does not exist"),
    "an export of a run that does not say where": ([run_json("[]")], "export finished --to jsonl --out x", 6, "--data"),
    "a training of nothing": ([], "train none", 5, "none has no commit record"),
    "a training on other data": ([column("text", ["x"] * N)], "train finished --data rows.parquet --epochs 1", 6,
        "fingerprint"),
    "a training on other rows, trusted": ([column("text", ["x"] * N)],
        "train finished --data rows.parquet --epochs 1 --trust-rows", 6, "content"),
    "a training on data that are gone": ([], "train finished --data gone.parquet", 3, "gone.parquet does not exist"),
    "a training on a pipe": ([pipe("p.csv")], "train finished --data p.csv", 3, "p.csv is no regular file"),
    "a training into a file": ([written("t", "x")], "train finished --out t/x --epochs 1", 5, "t/x"),
    "a training on no such device": ([], "train finished --device abacus --epochs 1", 2, "abacus", "cpu"),
    "a training tested on nothing": ([], "train finished --test gone.parquet --epochs 1", 3,
        "gone.parquet does not exist"),
    "a training tested without labels": ([column("class", ["x"] * N),
        made(lambda f: pq.write_table(pq.read_table(f / "rows.parquet").drop_columns("label"), f / "t.parquet"))],
        "train finished --test t.parquet --epochs 1", 3, "no column 'label'"),
    "a training that goes on from noise": ([written("t/checkpoint.json", "noise")], "train finished --out t --epochs 1",
        7, "checkpoint.json is damaged", "remove the folder to train from the start"),
    "nothing to pack": ([], "pack none.jsonl --out packed", 3, "none.jsonl does not exist"),
    "no texts to pack": ([], "pack rows.parquet --out packed --text body", 3, "no column 'body'", "its columns are"),
    "numbers to pack": ([column("n", range(N))], "pack rows.parquet --out packed --text n", 3,
        "column 'n' is the text and holds int64"),
    "packing into a file": ([written("packed", "x")], "pack rows.parquet --out packed", 5, "packed"),
    "packing with no tokenizer": ([], "pack rows.parquet --out packed --tokenizer none.json", 3,
        "none.json is not a tokenizer file"),
    "packing with a tokenizer of noise": ([written("t.json", "{")], "pack rows.parquet --out packed --tokenizer t.json",
        3, "t.json is not a tokenizer file"),
}  # fmt: skip

MANIFESTS = {
    "classes that are a number": ([forged(lambda body: body.update(classes=7))], "report finished", 7,
        "classes is not a list"),
    "a plan of training that is a word": ([forged(lambda body: body["recipe"]["train"].update(epochs="x"))],
        "train finished --epochs 1", 7, "how to train", "epochs"),
    "rows that stand for each other": ([forged_rows], "why r0000 --run finished", 7, "kept_row"),
    "a bit of the audit": ([part(flip)], "why r0000 --run finished", 7, "audit-00000",
        "restore it from a copy or run again"),
    "half of the audit": ([part(lambda path: os.truncate(path, 500))], "why r0000 --run finished", 7, "audit-00000",
        "is damaged"),
    "no audit": ([part(Path.unlink)], "export finished --to ids --out ids", 7, "audit-00000", "is damaged"),
    "an audit that is a pipe": ([part(lambda path: (path.unlink(), os.mkfifo(path)))], "status finished", 7,
        "audit-00000", "not a regular file"),
    "an audit that is a link": ([part(lambda path: (shutil.move(path, "a.arrow"),
        path.symlink_to(Path("a.arrow").absolute())))], "report finished", 7, "audit-00000"),
    "a record of no bytes": ([written("finished/manifest/v000001.json", b"")], "status finished", 7,
        "v000001.json is damaged"),
    "a record of noise": ([written("finished/manifest/v000001.json", b"\xff")], "train finished", 7,
        "v000001.json is damaged"),
    "a record of deep JSON": ([written("finished/manifest/v000001.json", b"[" * 99_999)], "why r0 --run finished", 7,
        "v000001.json is damaged"),
    "a record that was edited": ([written("finished/manifest/v000001.json", b'{"body":{},"sha256":"0"}')],
        "why r0000 --run finished", 7, "its sha256 does not match"),
    "a newer major version": ([forged(lambda body: body.update(version=[2, 0]))], "why r0000 --run finished", 7,
        "version 2.0", "1.x", "newer one"),
    "a feature of the future": ([forged(lambda body: body.update(required_features=["x"]))], "why r0000 --run finished",
        7, "['x']", "does not know"),
    "a feature that is a list": ([forged(lambda body: body.update(required_features=[["x"]]))],
        "why r0000 --run finished", 7, "[['x']]"),
    "a path above the folder": ([forged(lambda body: body["files"][0].update(path="../x"))], "why r0000 --run finished",
        7, "'../x' is not a plain part"),
    "an absolute path": ([forged(lambda body: body["files"][0].update(path="/etc/passwd"))],
        "export finished --to ids --out ids", 7, "'/etc/passwd'"),
    "one part too few": ([forged(lambda body: body["files"].pop())], "why r0000 --run finished", 7,
        "are not complete and of one set"),
    "one part twice": ([forged(lambda body: body["files"].append(body["files"][0]))], "why r0000 --run finished", 7,
        "is a second part of that number"),
    "a count that is wrong": ([forged(lambda body: body["counts"].update(kept=1))], "report finished", 7,
        "contradicts itself: counts"),
    "a source of 10^30 rows": ([forged(lambda body: body["dataset"]["sources"][0].update(rows=10**30))],
        "train finished", 7, "sources"),
    "a dataset of other rows": ([forged(lambda body: body["dataset"].update(rows=61))], "train finished", 7,
        "the audit has 60 rows, the dataset 61"),
    "a manifest whose recipe is a list": ([forged(lambda body: body.update(recipe=[]))], "train finished", 7,
        "recipe is not a mapping"),
    "a train section that is a word": ([forged(lambda body: body["recipe"].update(train="x"))],
        "train finished --epochs 1", 7, "recipe.train"),
    "a dataset without fields": ([forged(lambda body: body["dataset"].pop("fields"))], "train finished --epochs 1", 7,
        "dataset.fields"),
    "a certificate that is a word": ([forged(lambda body: body.update(certificate="x"))], "report finished", 7,
        "certificate"),
    "a schedule that is a word": ([forged(lambda body: body.update(schedule="x"))], "train finished --epochs 1", 7,
        "schedule"),
    "another dataset's fingerprint": ([forged(lambda body: body["dataset"].update(fingerprint="0" * 64))],
        "export finished --to jsonl --out x", 6, "fingerprint"),
}  # fmt: skip

CASES = {**FILES, **COLUMNS, **EMBEDDINGS, **STAGES, **RECIPES, **OPTIONS, **VERBS, **MANIFESTS}


# --- running them ---


@pytest.fixture(scope="module")
def finished(tmp_path_factory, make_columns):
    """The sound dataset, and a run of the sound recipe on it."""
    from click.testing import CliRunner

    from tamis.cli import main

    folder = tmp_path_factory.mktemp("finished")
    place = sound_place(folder, make_columns)
    (folder / "recipe.yaml").write_text(json.dumps(place.recipe))
    out = str(folder / "finished")
    result = CliRunner().invoke(main, ["run", str(folder / "recipe.yaml"), "--out", out, "--executor", "sync"])
    assert result.exit_code == 0, result.output
    return folder / "finished"


def sound_place(folder, make_columns):
    pq.write_table(pa.table(make_columns(N)), folder / "rows.parquet")
    columns = {"id": "id", "text": "text", "label": "label"}
    return Place(folder, {"name": "bad", "dataset": {"path": "rows.parquet", **columns}, "stages": [RANDOM]})


@pytest.fixture
def unprivileged():
    """As root, permissions count for nothing: the capabilities to pass over them are given up for a while."""
    if os.geteuid():
        yield
        return
    libc = ctypes.CDLL(None)
    header, before = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, before) == 0
    reduced = (ctypes.c_uint32 * 6)(*before)
    reduced[0] &= ~0b110  # the effective set without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    assert libc.capset(header, reduced) == 0
    yield
    assert libc.capset(header, before) == 0


@pytest.fixture
def impatient():
    """What hangs, such as on a pipe, is interrupted."""

    def stop(*_):
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def lay_out(tmp_path, monkeypatch, make_columns, finished):
    """Make a case's folder and go there."""

    def lay_out(actions):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        place = sound_place(tmp_path, make_columns)
        shutil.copytree(finished, tmp_path / "finished")
        for act in actions:
            act(place)
        if not os.path.lexists(tmp_path / "recipe.yaml"):
            (tmp_path / "recipe.yaml").write_text(json.dumps(place.recipe))

    return lay_out


def check_refusal(code, stdout, stderr, expected, parts):
    assert code == expected, stderr
    assert stdout == ""
    assert stderr.count("tamis: ") + stderr.count("Error: ") == 1, stderr
    assert "Traceback" not in stderr
    assert parts
    for part in parts:
        assert part in stderr, stderr


@pytest.mark.usefixtures("impatient", "unprivileged")
@pytest.mark.parametrize("case", CASES)
def test_it_is_refused(case, lay_out, cli):
    actions, command, code, *parts = CASES[case]
    lay_out(actions)
    result = cli(*shlex.split(command))
    check_refusal(result.exit_code, result.stdout, result.stderr, code, parts)


@pytest.mark.parametrize(
    "case",
    [
        "a pipe",
        "arrow texts that lie outside of the file",
        "an array of objects",
        "a recipe that is a pipe",
        "no rows by --limit",
        "the status of deep JSON",
        "rows that stand for each other",
        "a bit of the audit",
    ],
)
def test_it_is_refused_in_a_process_of_its_own(case, lay_out):
    actions, command, code, *parts = CASES[case]
    lay_out(actions)
    arguments = [sys.executable, "-m", "tamis", *shlex.split(command)]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    check_refusal(result.returncode, result.stdout, result.stderr, code, parts)


def test_the_table_is_long():
    groups = [FILES, COLUMNS, EMBEDDINGS, STAGES, RECIPES, OPTIONS, VERBS, MANIFESTS]
    assert len(CASES) == sum(map(len, groups))  # no name is there twice
    assert len(CASES) >= 350


# --- every key of a recipe: another type, and just out of its range ---

SECTIONS = {"": Recipe, "dataset": DatasetConfig, "train": TrainSection, **STAGE_MODELS}
SOUND_SECTIONS = {
    "dataset": {"path": "rows.parquet", "text": "text"},
    "train": {},
    "score": {"kind": "score", "method": "proxy"},
    "prune": {"kind": "prune", "method": "loss", "drop_highest": 0.1},
    "select": RANDOM,
}
OWN_TABLE = {"kind", "dataset", "stages", "train"}  # in RECIPES, by hand


def outside(bound):
    """The nearest round number that a bound refuses."""
    match bound:
        case Ge(ge=least):
            return least - 1
        case Gt(gt=least):
            return least
        case Le(le=most):
            return most + 1
        case Lt(lt=most):
            return most
        case MultipleOf(multiple_of=step):
            return step + 1
    return None


def keys():
    """Section, key and a value that it must refuse."""
    for section, model in SECTIONS.items():
        for name, info in model.model_fields.items():
            if name not in OWN_TABLE:
                values = [[1], {"a": 1}, *filter(lambda value: value is not None, map(outside, info.metadata))]
                yield from ((section, info.alias or name, value) for value in values)


@pytest.mark.parametrize(("section", "key", "value"), list(keys()), ids=lambda part: str(part) or "recipe")
def test_every_key_refuses_what_it_is_not_made_for(section, key, value, tmp_path, cli):
    whole = {"name": "x", "dataset": SOUND_SECTIONS["dataset"], "stages": [EXACT]}
    spoiled = {**SOUND_SECTIONS.get(section, {"kind": section}), key: value}
    if section == "":
        whole[key], where = value, key
    elif section in ("dataset", "train"):
        whole[section], where = spoiled, f"{section}.{key}"
    else:
        whole["stages"], where = [spoiled], f"stages.0.{key}"
    (tmp_path / "r.yaml").write_text(json.dumps(whole))
    result = cli("validate", tmp_path / "r.yaml")
    check_refusal(result.exit_code, result.stdout, result.stderr, 2, [f"{where}: ", str(value)])
