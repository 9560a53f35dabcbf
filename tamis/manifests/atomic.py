"""Files that are there whole or not at all, and named crash points for the tests that prove it."""

from __future__ import annotations

import os
import secrets
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tamis.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def crash_point(name: str) -> None:
    """Kill this process with SIGKILL if the environment variable TAMIS_CRASH_AT equals `name`.

    Fault tests set the variable; without it this does nothing.
    """
    if os.environ.get("TAMIS_CRASH_AT") == name:
        os.kill(os.getpid(), signal.SIGKILL)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a crash at any instant, sees all of it or none; replaces an old one.

    A temporary file in the same folder is written and synced, renamed to `path`, and the folder is synced.

    Args:
        path: Where to; its folder exists.
        data: The bytes.

    Raises:
        OutputError: Something could not be written. No temporary file is left.
    """
    with _explained(path, len(data)), _temporary(path, data) as temporary:
        crash_point("atomic:written")
        temporary.replace(path)
        crash_point("atomic:renamed")
        sync_folder(path.parent)


def write_once(path: Path, data: bytes) -> bool:
    """Write a file only if there is none of that name (put-if-absent by a hard link), atomically.

    Args:
        path: Where to; its folder exists and its file system knows hard links.
        data: The bytes.

    Returns:
        True if this call made the file, False if it was there with the same bytes.

    Raises:
        OutputError: There is a file with other bytes, or something could not be written. No temporary file
            is left, and a file at `path` is never removed.
    """
    with _explained(path, len(data)):
        with _temporary(path, data) as temporary:
            crash_point("atomic:written")
            made = _link(temporary, path, data)
        crash_point("atomic:linked")
        sync_folder(path.parent)
    return made


def content_name(stem: str, index: int, count: int, sha256: str, suffix: str) -> str:
    """The name of one part of a set, with the first 16 hex digits of its content's sha256.

    >>> content_name("select", 0, 3, "0123456789abcdef" * 4, ".arrow")
    'select-00000-of-00003.0123456789abcdef.arrow'
    """
    return f"{stem}-{index:05d}-of-{count:05d}.{sha256[:16]}.{suffix.removeprefix('.')}"


def hashed_name(stem: str, sha256: str, suffix: str) -> str:
    """The name of a single file, with the first 16 hex digits of its content's sha256.

    Raises:
        ValueError: `sha256` is none: what a record says must not lead to another folder.
    """
    if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise ValueError(f"{sha256[:80]!r} is no sha256")
    return f"{stem}.{sha256[:16]}.{suffix}"


def sweep(folder: Path, pattern: str = "**/.*.tmp") -> None:
    """Remove the temporary files that killed processes left in a folder tree; the caller holds its lock.

    Args:
        folder: The tree; nothing is done where there is none.
        pattern: Which files, as for `Path.glob`.

    Raises:
        OutputError: One cannot be removed.
    """
    for leftover in folder.glob(pattern):
        if not leftover.is_dir():
            remove(leftover)


def remove(path: Path) -> None:
    """Remove a file if it is there.

    Raises:
        OutputError: It cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot remove {path}: {error.strerror or error}; give a folder that can be written, then run again"
        ) from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable.

    Raises:
        OSError: The folder cannot be synced.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(temporary: Path, path: Path, data: bytes) -> bool:
    try:
        path.hardlink_to(temporary)
    except OSError as error:
        # A link that reports an error may still be there (network file systems): what counts is what is read.
        there = path.read_bytes() if path.exists() else None
        if there == data:
            return not isinstance(error, FileExistsError)
        if there is not None:
            raise OutputError(
                f"{path} exists with other bytes and is never rewritten; was another run writing here?"
            ) from error
        raise
    return True


@contextmanager
def _temporary(path: Path, data: bytes) -> Iterator[Path]:
    """A synced file with the data beside `path`, gone at the end (unless it was renamed)."""
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o666)
    try:
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _explained(path: Path, size: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error} ({size} bytes were needed in {path.parent}); "
            "free space or choose another output folder, then run again"
        ) from error
