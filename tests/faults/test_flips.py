"""Flipped bits and truncations in committed and in staged files: detected, or made again to the same bytes."""

import json
import random
import shutil

import pyarrow as pa
import pytest

import tamis
from tamis.errors import DamagedManifestError
from tamis.manifests.reader import open_manifest
from tamis.pipelines import node as node_module
from tamis.pipelines.node import DamagedArtifactError, Inputs, forget, load_record, record_name
from tamis.pipelines.run import plan_run
from tamis.pipelines.store import Folder


@pytest.fixture(scope="module")
def sound(brief_recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("sound") / "run"
    tamis.run(brief_recipe, out, executor="sync")
    return out


@pytest.fixture
def out(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def nodes(brief_recipe, out):
    """The nodes of the run by name."""
    return plan_run(brief_recipe, out).nodes


def damaged(data, draw):
    """The data with one bit flipped, or cut, and what was done."""
    if draw.random() < 0.2:
        length = draw.choice([0, 1, len(data) - 1, draw.randrange(len(data))])
        return data[:length], f"cut to {length}"
    changed, position = bytearray(data), draw.randrange(len(data))
    changed[position] ^= 1 << draw.randrange(8)
    return bytes(changed), f"flipped in byte {position}"


def spread(paths, faults, seed):
    """Damages the files in turn; gives each path and what was done while it lasts, and mends it afterwards."""
    draw = random.Random(seed)
    for turn in range(faults):
        path = paths[turn % len(paths)]
        data = path.read_bytes()
        worse, what = damaged(data, draw)
        path.write_bytes(worse)
        yield path, what
        path.write_bytes(data)


def test_every_fault_in_a_committed_file_is_detected(out, soak, tally):
    paths = sorted(path for path in (out / "manifest").rglob("*") if path.is_file())
    assert [path.name.partition("-")[0] for path in paths] == ["audit", "select", "v000001.json"]
    for path, what in spread(paths, 2000 if soak else 100, seed=1):
        with pytest.raises(DamagedManifestError) as caught:
            open_manifest(out)
        assert caught.value.exit_code == 7
        assert path.name in str(caught.value), what
        tally("bit flips and truncations, committed files", detected=1)
    open_manifest(out)


def staged(out, nodes):
    """The nodes by the files that they made: records and, where they have one, tables."""
    work = out / "work"
    files = {}
    for node in nodes.values():
        artifact = load_record(Folder(work), node.reference)
        files[work / record_name(node.reference)] = node
        if artifact.file is not None:
            files[work / artifact.file] = node
    made = {path for path in work.glob("*/*") if path.is_file()}
    assert files.keys() == made
    return files


def is_detected(work, node):
    """Whether whoever needs the node's result sees that it is damaged: it has no record, or its file is refused."""
    artifact = load_record(Folder(work), node.reference)
    if artifact is None:
        return True
    try:
        Inputs(str(work), {}, {}).open(artifact)
    except DamagedArtifactError as error:
        return error.reference == node.reference
    return False


def test_every_fault_in_a_staged_file_is_detected(out, nodes, soak, tally):
    files = staged(out, nodes)
    assert {path.suffix for path in files} == {".json", ".arrow"}
    for path, what in spread(sorted(files), 3000 if soak else 150, seed=2):
        assert is_detected(out / "work", files[path]), (path, what)
        tally("bit flips and truncations, staged files", detected=1)


def test_another_spelling_of_the_same_record_is_no_record(out, nodes):
    """Such as 1E-05 for 1e-05, which is one bit."""
    node = next(iter(nodes.values()))
    path = out / "work" / record_name(node.reference)
    path.write_bytes(path.read_bytes().replace(b'"rows":', b'"rows": '))
    assert load_record(Folder(out / "work"), node.reference) is None


def needing(nodes, reference):
    """The nodes that the result of one goes into, directly or not."""
    found = {reference}
    for node in nodes.values():  # inputs come first
        if found & {item for group in node.inputs.values() for item in group}:
            found.add(node.reference)
    return found - {reference}


def test_what_is_damaged_is_made_again(out, nodes, brief_recipe, sound, manifest_bytes, soak, tally):
    """Whatever was made from the damaged file is forgotten, so that the run needs the file."""
    expected = manifest_bytes(sound)
    files = staged(out, nodes)
    paths = sorted(files)
    for path, _ in spread(paths, 2 * len(paths) if soak else 8, seed=3):
        node = files[path]
        forget(Folder(out / "work"), needing(nodes, node.reference))
        shutil.rmtree(out / "manifest")
        run = tamis.run(brief_recipe, out, executor="sync")
        assert node.name in run.ran
        assert manifest_bytes(out) == expected
        tally("the same, in a file that a run needs", recomputed=1, identical=1)


class Trusting:
    """In place of hashlib where working files are opened: every digest is the recorded one."""

    @classmethod
    def sha256(cls, _):
        return cls()

    def hexdigest(self):
        return self

    def __ne__(self, _):
        return False


def test_without_the_digest_a_flip_in_a_staged_file_reaches_the_manifest(
    out, nodes, brief_recipe, sound, manifest_bytes, monkeypatch
):
    """The control: a weight with one bit flipped is read and committed."""
    node = next(node for node in nodes.values() if node.task == "reweight.loss")
    path = out / "work" / load_record(Folder(out / "work"), node.reference).file
    data = bytearray(path.read_bytes())
    weights = pa.ipc.open_file(bytes(data)).read_all()["weight"].combine_chunks().buffers()[1].to_pybytes()
    data[data.index(weights) + 2] ^= 1
    path.write_bytes(data)
    shutil.rmtree(out / "manifest")
    monkeypatch.setattr(node_module, "hashlib", Trusting)
    run = tamis.run(brief_recipe, out, executor="sync")
    assert run.ran == ("11-commit/manifest",)
    assert manifest_bytes(out) != manifest_bytes(sound)
    open_manifest(out)


def test_without_the_digest_flips_in_records_would_pass(out, nodes, monkeypatch):
    """The control: JSON alone reads many of the same flips without a word."""
    monkeypatch.setattr(node_module, "unsealed", lambda raw: json.loads(raw)["body"])
    files = {path: node for path, node in staged(out, nodes).items() if path.suffix == ".json"}
    assert not all(is_detected(out / "work", files[path]) for path, _ in spread(sorted(files), 100, seed=2))
