"""Fuzz the two readers that strangers' files reach first: `open_manifest` and the recipe's parser.

    python tests/soak/fuzz.py --seconds 3600 --seed 0 --save fuzz-failures

Input number i of a seed is always the same. A worker process makes the inputs and feeds them, so that a segmentation
fault or a hang is seen from outside, with the input that caused it. Anything but an accepted input or a TamisError is
a failure: it is saved below --save, and the exit code is 1.

Damaged bytes alone never get past the sha256. Most inputs are therefore sealed again: the forger knows the format.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import multiprocessing
import os
import random
import re
import resource
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import yaml

import tamis
from tamis.errors import TamisError
from tamis.manifests import open_manifest
from tamis.manifests.canonical import canonical_json, digest
from tamis.manifests.schema import check_body, check_tables
from tamis.pipelines.recipe import load_recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "manifest-1.0"
RECIPES = Path(tamis.__file__).parent / "pipelines" / "recipes"
HANG_SECONDS = 10.0
START_SECONDS = 60.0
MEMORY_BYTES = 16 * 2**30
RECORD = "v000001.json"

NUMBERS = [
    0,
    1,
    -1,
    2,
    6,
    7,
    127,
    128,
    255,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    2**32,
    2**53,
    2**63 - 1,
    2**63,
    2**64,
    10**30,
]
VALUES = [
    None, True, False, "", "x", "../x", "/etc/passwd", "data/../../x.arrow", "\u0660" * 5, "\x00", "é5", "a" * 5000,
    0.5, -0.5, 1e308, 5e-324, [], {}, [None], {"": None}, [[]], {"name": "x"}, {"rows": 6}, *NUMBERS,
    *(-number for number in NUMBERS[3:]),
]  # fmt: skip
TOKENS = [
    "stages:", "dataset:", "name:", "seed:", "kind:", "- ", "{", "}", "[", "]", ",", ": ", "\n", "\n  ", "\t", "#",
    "&a", "*a", "!!python/object:os.system ", "<<: ", "|", ">-", "'", '"', '"\\UFFFFFFFF"', '"\\ud800"', '"\\x00"',
    "---", "...", "%YAML 1.2\n", "%TAG ! x\n", "? ", "1e3", "1e999", ".nan", "0x1F", "9" * 40, "-1", "no", "null", "~",
    "\ufeff", "\x00", "\u2028", "é", "[" * 200, "- " * 200, "{a: " * 50, "a" * 2000,
]  # fmt: skip


# --- inputs ------------------------------------------------------------------------------------------------


def mutated(data: bytes, draw: random.Random) -> bytes:
    """The bytes with one to four changes: bits, whole numbers of 1 to 8 bytes, cuts, repeats, moved pieces."""
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        size = len(changed)
        at = draw.randrange(size + 1)
        kind = draw.randrange(6)
        if kind == 0 and at < size:
            changed[at] ^= 1 << draw.randrange(8)
        elif kind in (1, 2):
            width = draw.choice([1, 2, 4, 4, 8, 8])
            at -= at % width
            number = draw.choice([*NUMBERS, draw.getrandbits(8 * width), size, at]) * draw.choice([1, -1])
            changed[at : at + width] = struct.pack("<q", (number + 2**63) % 2**64 - 2**63)[:width][: size - at]
        elif kind == 3:
            del changed[at : at + draw.choice([1, 8, 64, size])]
        elif kind == 4:
            piece = changed[at : at + draw.choice([1, 8, 64])]
            changed[at:at] = piece * draw.choice([1, 2, 8])
        else:
            start = draw.randrange(size + 1)
            piece = changed[start : start + draw.choice([4, 8, 64])]
            changed[at : at + len(piece)] = piece
    return bytes(changed)


def places(value: object, path: tuple = ()) -> list[tuple]:
    """The paths of everything inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in inner for found in [(*path, key), *places(item, (*path, key))]]


def spoiled(value: dict, draw: random.Random) -> dict:
    """A JSON mapping with one to three fields removed, replaced, doubled, renamed or nested."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice([1, 1, 2, 3])):
        found = places(value)
        if not found:
            return value
        *path, key = draw.choice(found)
        parent = value
        for step in path:
            parent = parent[step]
        kind = draw.randrange(6)
        if kind == 0:
            del parent[key]
        elif kind in (1, 2):
            parent[key] = copy.deepcopy(draw.choice(VALUES))
        elif kind == 3:
            parent[key] = [parent[key]] * draw.choice([1, 2])
        elif kind == 4 and isinstance(parent, list):
            parent.insert(draw.randrange(len(parent) + 1), copy.deepcopy(draw.choice([*parent, *VALUES])))
        elif isinstance(parent, dict):
            parent[draw.choice(["", "x", "rows", "../x", *parent])] = parent.pop(key)
    return value


def sealed(body: object) -> bytes:
    """A record that vouches for the body, as a forger would write it."""
    if isinstance(body, dict) and "subset_id" in body:
        body["subset_id"] = digest({key: value for key, value in body.items() if key != "subset_id"})
    return canonical_json({"body": body, "sha256": digest(body)})


def retyped(data: bytes, draw: random.Random) -> bytes:
    """The rows of a part with a column changed, written by Arrow in another lawful way."""
    table = pa.ipc.open_file(data).read_all()
    at = draw.randrange(table.num_columns)
    field, rows = table.schema.field(at), table.num_rows
    kind = draw.randrange(5)
    if kind == 0:
        values = [draw.choice([0, 1, 5, -1, 100, None]) for _ in range(rows)]
        column = (
            pa.array(values).cast(field.type, safe=False)
            if pa.types.is_integer(field.type)
            else pa.nulls(rows, field.type)
        )
        table = table.set_column(at, field, column)
    elif kind == 1:
        table = table.set_column(
            at, field.name, pa.nulls(rows, draw.choice([pa.null(), pa.int8(), pa.list_(field.type)]))
        )
    elif kind == 2:
        table = table.take(pa.array([draw.randrange(rows) for _ in range(draw.randrange(2 * rows))], pa.int64()))
    elif kind == 3 and pa.types.is_floating(field.type):
        values = [draw.choice([0.0, -1.0, 1e30, float("nan"), float("inf"), None]) for _ in range(rows)]
        table = table.set_column(at, field, pa.array(values, field.type))
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(
        compression=draw.choice([None, None, "lz4", "zstd"]),
        metadata_version=draw.choice([pa.ipc.MetadataVersion.V5, pa.ipc.MetadataVersion.V4]),
        use_legacy_format=draw.random() < 0.1,
    )
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        for batch in table.to_batches(max_chunksize=draw.choice([1, 3, 100])):
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def manifest_input(draw: random.Random, base: dict[str, bytes]) -> tuple[str, dict[str, bytes]]:
    """Which files of the golden manifest become what."""
    kind = draw.choice(
        ["record bytes", "part bytes", "record fields", "record fields", "part sealed", "part sealed", "part rows"]
    )
    part = draw.choice([name for name in base if name.startswith("data/")])
    if kind == "record bytes":
        return kind, {RECORD: mutated(base[RECORD], draw)}
    if kind == "part bytes":
        return kind, {part: mutated(base[part], draw)}
    body = json.loads(base[RECORD])["body"]
    if kind == "record fields":
        return kind, {RECORD: sealed(spoiled(body, draw))}
    data = mutated(base[part], draw) if kind == "part sealed" else base[part]
    if kind == "part rows":
        try:
            data = retyped(data, draw)
        except (pa.ArrowException, ValueError, TypeError):  # not every change is one that Arrow writes
            data = mutated(data, draw)
        if draw.random() < 0.3:
            data = mutated(data, draw)
    name = f"{part.split('.')[0]}.{sha256(data).hexdigest()[:16]}.arrow"
    file = next(file for file in body["files"] if file["path"] == part)
    file.update(path=name, bytes=len(data), sha256=sha256(data).hexdigest())
    if kind == "part rows" and draw.random() < 0.5:
        body = spoiled(body, draw)
    return kind, {RECORD: sealed(body), name: data}


def recipe_input(draw: random.Random, base: dict[str, bytes]) -> tuple[str, dict[str, bytes]]:
    """A recipe's text."""
    kind = draw.choice(["bytes", "tokens", "fields", "fields", "spliced"])
    text = base[draw.choice([name for name in base if name.endswith(".yaml")])]
    if kind == "bytes":
        text = mutated(text, draw)
    elif kind == "tokens":
        text = "".join(draw.choices(TOKENS, k=draw.randrange(1, 40))).encode()
    elif kind == "spliced":
        for _ in range(draw.randrange(1, 4)):
            at = draw.randrange(len(text) + 1)
            text = text[:at] + draw.choice(TOKENS).encode() + text[at + draw.choice([0, 1, 5]) :]
    else:
        text = json.dumps(spoiled(yaml.safe_load(text), draw)).encode()
    return kind, {"recipe.yaml": text}


TARGETS = {"manifest": manifest_input, "recipe": recipe_input}


def make_input(seed: int, index: int, base: dict[str, bytes]) -> tuple[str, str, dict[str, bytes]]:
    """Input number `index`: the target, the kind of change, and the files that differ."""
    draw = random.Random(f"{seed}:{index}")
    target = draw.choice(["manifest", "manifest", "recipe"])
    return target, *TARGETS[target](draw, base)


# --- targets -----------------------------------------------------------------------------------------------


def use_manifest(folder: Path) -> None:
    """Open a manifest; where that is accepted, hold it to the rules and touch every value."""
    manifest = open_manifest(folder)
    check_body(manifest.record)
    check_tables(manifest.select, manifest.audit, manifest.record)
    manifest.select.to_pylist()
    for row in manifest.audit.to_pylist():
        manifest.explain(row["sample_id"])


def use_recipe(folder: Path) -> None:
    """Load a recipe; an accepted one says the same when it is written and loaded again."""
    recipe, _ = load_recipe(folder / "recipe.yaml")
    again, _ = load_recipe(recipe.model_dump(by_alias=True, mode="json"))
    assert again == recipe, "a dumped recipe loads as another one"


USES = {"manifest": use_manifest, "recipe": use_recipe}


def base_files() -> dict[str, bytes]:
    """The sound files that the inputs are made of."""
    golden = {str(path.relative_to(GOLDEN)): path.read_bytes() for path in sorted(GOLDEN.rglob("*")) if path.is_file()}
    return golden | {path.name: path.read_bytes() for path in sorted(RECIPES.glob("*.yaml"))}


def work(connection, seed: int, first: int, scratch: str) -> None:
    """Feed inputs from number `first` on for ever, and tell the outcome of each."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    base = base_files()
    opened: list[str] = []

    def watch(event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], str):
            opened.append(os.path.realpath(arguments[0]))

    folder = Path(scratch).resolve() / "input"
    for target, sound in (("manifest", {}), ("recipe", {"recipe.yaml": base["quickstart.yaml"]})):
        lay_out(folder, sound_files(target, base) | sound)
        USES[target](folder)  # imports what it needs
    sys.addaudithook(watch)
    for index in itertools.count(first):
        target, _, files = make_input(seed, index, base)
        lay_out(folder, sound_files(target, base) | files)
        opened.clear()
        detail = ""
        try:
            USES[target](folder)
            outcome = "accepted"
            outside = [path for path in opened if not path.startswith(f"{folder}/")]
            assert not outside, f"opened {outside}"
        except TamisError as error:
            outcome = type(error).__name__
        except BaseException as error:  # whatever else comes is what is looked for
            outcome, detail = f"FAILED {type(error).__name__}", traceback.format_exc()
        connection.send((outcome, detail))


def sound_files(target: str, base: dict[str, bytes]) -> dict[str, bytes]:
    """What lies beside an input's own files."""
    return {name: data for name, data in base.items() if target == "manifest" and not name.endswith(".yaml")}


def lay_out(folder: Path, wanted: dict[str, bytes]) -> None:
    """Make a folder hold these files and no others."""
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        if wanted.get(str(path.relative_to(folder))) != path.read_bytes():
            path.unlink()
    for name, data in wanted.items():
        if not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)


# --- the watch ---------------------------------------------------------------------------------------------


def results(work, start: str, seed: int, first: int, end: float, hang_seconds: float) -> Iterator[tuple[int, str, str]]:
    """Watch one worker until the end, or until it crashes or hangs: number, outcome and detail of each input."""
    context = multiprocessing.get_context(start)
    ours, theirs = context.Pipe(duplex=False)
    index, patience = first, START_SECONDS
    with tempfile.TemporaryDirectory(prefix="tamis-fuzz-") as scratch:
        process = context.Process(target=work, args=(theirs, seed, first, scratch), daemon=True)
        process.start()
        theirs.close()
        try:
            while (left := end - time.monotonic()) > 0:
                if ours.poll(min(patience, left)):
                    yield index, *ours.recv()
                    index, patience = index + 1, hang_seconds
                elif patience < left:
                    yield index, "FAILED hang", f"no outcome after {patience:g} s"
                    return
        except EOFError:
            process.join()
            yield index, "FAILED crash", f"the worker process ended with {process.exitcode}"
        finally:
            process.kill()
            process.join()
            ours.close()


def fuzz(
    seconds: float, seed: int, save: Path, hang_seconds: float = HANG_SECONDS, work=work, start: str = "spawn"
) -> Counter:
    """Feed inputs for so long, and save those that failed, three of a kind at most.

    Returns:
        How often each (target, kind of change, outcome) came; the outcome of a failure begins with FAILED.
    """
    base = base_files()
    counts: Counter = Counter()
    alike: Counter = Counter()
    index, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        for number, outcome, detail in results(work, start, seed, index, end, hang_seconds):
            index = number + 1
            target, kind, files = make_input(seed, number, base)
            counts[target, kind, outcome] += 1
            if outcome.startswith("FAILED"):
                reason = re.sub(r"[0-9]+", "0", "".join(detail.strip().splitlines()[-1:]))[:60]
                alike[target, outcome, reason] += 1
                if alike[target, outcome, reason] <= 3:
                    folder = save / f"{target}-{seed}-{number}"
                    lay_out(folder, sound_files(target, base) | files)
                    (folder / "failure.txt").write_text(f"{target}, {kind}: {outcome}\n{detail}")
                    print(f"{outcome}: saved in {folder}\n{detail}", file=sys.stderr, flush=True)
    return counts


def main() -> int:
    """Fuzz as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, default=Path("fuzz-failures"), help="A folder for inputs that failed.")
    given = parser.parse_args()
    counts = fuzz(given.seconds, given.seed, given.save)
    for (target, kind, outcome), count in sorted(counts.items()):
        print(f"{target:<9} {kind:<14} {outcome:<28} {count:>10,}")
    for target in TARGETS:
        print(f"{target:<9} {sum(count for key, count in counts.items() if key[0] == target):>10,} executions")
    failures = sum(count for (_, _, outcome), count in counts.items() if outcome.startswith("FAILED"))
    print(f"{failures:,} failures; seed {given.seed}, {given.seconds:g} s")
    return 1 if failures or not counts else 0


if __name__ == "__main__":
    sys.exit(main())
