"""A Dask scheduler that is there already, perhaps on other machines: who may be connected to, and what must fit."""

from __future__ import annotations

import ipaddress
import platform
import secrets
import socket
import time
from contextlib import contextmanager
from importlib import metadata
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tamis.errors import OutputError, RecipeError, TamisError, WorkerError
from tamis.pipelines.node import Artifact, Node, run_node
from tamis.pipelines.store import store_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tamis.pipelines.store import Store

# What a task's result may depend on, or the way to it.
_PACKAGES = (
    "tamis", "dask", "distributed", "faiss-cpu", "numba", "numpy", "pillow", "pyarrow", "scikit-learn", "scipy",
    "sentence-transformers", "submodlib-py", "tokenizers", "torch", "transformers",
)  # fmt: skip
_CONNECT_SECONDS = 30


def check_address(address: str, insecure: bool = False) -> str:
    """A scheduler's address, if one may connect to it.

    Args:
        address: Such as tls://host:8786.
        insecure: Whether tcp:// is allowed to other machines too. Who reaches a scheduler or a worker of such a cluster
            can run any code on it.

    Raises:
        RecipeError: It is no address, or not encrypted and not of this machine.
    """
    parts = urlsplit(address)
    try:
        port = parts.port
    except ValueError:
        port = None
    if "@" in parts.netloc or parts.path or parts.query or parts.fragment:
        # Not shown: it may hold a secret, which a log must not.
        raise RecipeError("scheduler has more than a host and a port; it must be like tls://host:8786")
    if parts.scheme not in ("tls", "tcp") or not parts.hostname or port is None:
        raise RecipeError(f"scheduler is {address!r}; it must be like tls://host:8786")
    if parts.scheme == "tcp" and not insecure and not _is_loopback(parts.hostname):
        raise RecipeError(
            f"scheduler {address} is not encrypted: who reaches it can run any code. Give it tls:// (Dask's settings "
            "distributed.comm.tls say where the certificates are), or say --insecure where the network is your own"
        )
    return address


@contextmanager
def connected(address: str, store: Store) -> Iterator[Any]:
    """A client of the scheduler, after seeing that its workers can do the work.

    Every worker must see the store at the same path or URL, and have the same versions: the keys of all results say
    which they are of.

    Args:
        address: From `check_address`.
        store: Where nodes keep what they make; there already.

    Raises:
        WorkerError: Nobody answers, there are no workers, or one has other versions.
        OutputError: A worker does not see the store.
    """
    from distributed import Client

    try:
        client = Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, TypeError, ValueError) as error:
        raise WorkerError(f"no answer from the scheduler {address} in {_CONNECT_SECONDS} s: {error}") from error
    token = secrets.token_hex(8)
    mark = f".seen.{token}.tmp"
    try:
        try:
            store.put(mark, token.encode())
            _check_workers(client, address, store, mark, token)
        finally:
            store.remove([mark])
        yield client
    finally:
        client.close(timeout=10)


def watch(client: Any, address: str, seconds: float) -> Callable[[], None]:
    """Something to call often, which raises WorkerError where the cluster has been gone, or empty, for so long."""
    last = asked = time.monotonic()

    def check() -> None:
        nonlocal last, asked
        now = time.monotonic()
        if now - asked < seconds / 20:
            return
        asked = now
        if _has_workers(client, seconds / 4):
            last = now
        elif now - last > seconds:
            raise WorkerError(
                f"the scheduler {address} has been gone, or without workers, for {seconds:.0f} s. Finished blocks are "
                "kept: the same command goes on from there"
            )

    return check


def checked_run(versions: Mapping[str, str], node: Node, work: str, *finished: object) -> Artifact:
    """`run_node` in a worker, which may have come after the others were checked.

    Raises:
        WorkerError: It has other versions than the process that sent the node.
    """
    other = _differences(versions_here(), versions)
    if other:
        raise WorkerError(f"a worker on {socket.gethostname()} has {other}; the versions must be equal")
    return run_node(node, work, *finished)


def versions_here() -> dict[str, str]:
    """The versions of what this process computes with; "none" of what it lacks."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def _has_workers(client: Any, timeout: float) -> bool:
    """Whether the scheduler answers, and has workers."""
    if client.status != "running":
        return False
    try:
        return bool(client.sync(client.scheduler.identity, n_workers=1, callback_timeout=timeout)["workers"])
    except (OSError, TimeoutError):
        return False


def _check_workers(client: Any, address: str, store: Store, mark: str, token: str) -> None:
    try:
        found: dict[str, tuple[str, dict[str, str]]] = client.run(_what_is_there, store.location, mark)
    except Exception as error:  # whatever an older tamis, or none, makes of it
        raise WorkerError(
            f"a worker of {address} cannot say its versions: {type(error).__name__}: {error}; "
            "install the same tamis on all"
        ) from error
    if not found:
        raise WorkerError(f"the scheduler {address} has no workers; start some, and run again")
    ours = versions_here()
    for worker, (seen, versions) in sorted(found.items()):
        if seen != token:
            raise OutputError(
                f"worker {worker} does not see {store.location} ({seen or 'another file is there'}); it and the "
                "dataset must be in a file system that all workers share, at the same path, or the former in an object "
                "store (--work s3://bucket/prefix)"
            )
        other = _differences(versions, ours)
        if other:
            raise WorkerError(f"worker {worker} has {other}; the versions must be equal, as results name them")


def _differences(theirs: Mapping[str, str], ours: Mapping[str, str]) -> str:
    """What differs, in words; nothing where all are equal."""
    return ", ".join(
        f"{name} {theirs.get(name)} (here {version})" for name, version in ours.items() if theirs.get(name) != version
    )


def _what_is_there(location: str, mark: str) -> tuple[str, dict[str, str]]:
    """What this process reads in a store, or why it cannot, and its versions."""
    try:
        text = store_at(location).read([mark]).get(mark, b"what was put there is not there").decode()
    except TamisError as error:
        text = str(error)
    return text, versions_here()


def _is_loopback(host: str) -> bool:
    try:
        return all(ipaddress.ip_address(str(found[4][0])).is_loopback for found in socket.getaddrinfo(host, None))
    except OSError:
        return False
