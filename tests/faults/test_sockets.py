"""No socket of a running job listens anywhere but on loopback."""

import subprocess
import sys
import time
from pathlib import Path

import yaml

LISTEN, LOOPBACK = "0A", "0100007F"


def descendants(pid):
    """A process and all that it started, directly or not."""
    children = {int(c) for path in Path(f"/proc/{pid}/task").glob("*/children") for c in path.read_text().split()}
    return {pid}.union(*(descendants(child) for child in children))


def listening(pids):
    """Local addresses (hexadecimal, as in /proc/net/tcp) of the listening sockets that processes hold."""
    inodes = set()
    for pid in pids:
        for handle in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = str(handle.readlink())
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return [row[1].partition(":")[0] for row in rows if row[3] == LISTEN and row[9] in inodes]


def test_every_listening_socket_is_on_loopback(small_recipe, tmp_path):
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(small_recipe))
    command = [sys.executable, "-m", "tamis", "run", str(recipe), "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    while not list(out.glob("work/ingest.block/*.json")):
        assert process.poll() is None
        time.sleep(0.02)
    found = listening(descendants(process.pid))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()
    assert len(found) >= 3  # the scheduler, and a worker with its nanny
    assert set(found) == {LOOPBACK}
