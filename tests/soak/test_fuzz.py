"""The fuzzer finds nothing in five seconds, and would find what there is."""

import faulthandler
import importlib.util
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tamis.errors import DamagedManifestError
from tamis.manifests import open_manifest


@pytest.fixture(scope="module")
def fuzzer():
    spec = importlib.util.spec_from_file_location("fuzz", Path(__file__).with_name("fuzz.py"))
    sys.modules["fuzz"] = module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(Path(__file__).parent))  # the worker process imports it by name
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(Path(__file__).parent))
    del sys.modules["fuzz"]


def test_five_seconds_find_nothing(fuzzer, tmp_path):
    counts = fuzzer.fuzz(5.0, seed=1, save=tmp_path / "failures")
    assert {target for target, _, _ in counts} == {"manifest", "recipe"}
    assert not [outcome for _, _, outcome in counts if outcome.startswith("FAILED")]
    assert not (tmp_path / "failures").exists()


def test_an_input_depends_on_seed_and_number_only(fuzzer):
    base = fuzzer.base_files()
    first, again = ([fuzzer.make_input(3, index, base) for index in range(200)] for _ in range(2))
    assert first == again
    assert first != [fuzzer.make_input(4, index, base) for index in range(200)]
    manifests = {"record bytes", "part bytes", "record fields", "part sealed", "part rows"}
    assert {kind for _, kind, _ in first} == manifests | {"bytes", "tokens", "fields", "spliced"}


def test_a_sealed_input_gets_past_the_hashes(fuzzer, tmp_path):
    """Else only the sha256 would be tested: what refuses them is what comes after it."""
    base = fuzzer.base_files()
    said = []
    for index in range(400):
        target, kind, files = fuzzer.make_input(5, index, base)
        if target == "manifest" and kind in ("record fields", "part sealed", "part rows"):
            fuzzer.lay_out(tmp_path / "m", fuzzer.sound_files(target, base) | files)
            try:
                open_manifest(tmp_path / "m")
                said.append("")
            except DamagedManifestError as error:
                said.append(str(error))
    assert len(said) > 100
    assert not [message for message in said if "sha256 does not match" in message or "bytes are not those" in message]
    assert any("its schema is" in message for message in said)
    assert any("contradicts itself" in message for message in said)


def raises(connection, *_):
    connection.send(("accepted", ""))
    connection.send(("FAILED ValueError", "Traceback: ValueError"))
    time.sleep(60)


def crashes(connection, *_):
    connection.send(("accepted", ""))
    faulthandler.disable()
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(connection, *_):
    connection.send(("accepted", ""))
    time.sleep(60)


@pytest.mark.parametrize(
    ("work", "outcome", "said", "patience"),
    [
        (raises, "FAILED ValueError", "Traceback: ValueError", 60.0),
        (crashes, "FAILED crash", "the worker process ended with -11", 60.0),
        (hangs, "FAILED hang", "no outcome after 0.5 s", 0.5),
    ],
)
def test_it_tells_and_saves_what_fails(fuzzer, tmp_path, work, outcome, said, patience):
    counts = fuzzer.fuzz(2.0, seed=2, save=tmp_path, hang_seconds=patience, work=work, start="fork")
    assert {result for _, _, result in counts} == {"accepted", outcome}
    for saved in tmp_path.iterdir():
        assert (saved / "failure.txt").read_text().endswith(said)
        _, seed, index = saved.name.split("-")
        _, _, files = fuzzer.make_input(int(seed), int(index), fuzzer.base_files())
        assert all((saved / name).read_bytes() == data for name, data in files.items())
    assert sorted(tmp_path.iterdir())[0].name.endswith("-1")  # number 0 was accepted
