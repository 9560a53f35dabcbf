"""Where nodes keep what they make: a folder, or a prefix of an object store, which fsspec reads and writes.

A store holds small records and content-named files under names such as `embed.block/KEY.json`. What is put is there
whole or not at all, and may be put twice. Nothing else is asked of an object store: no renames, links, locks, folders.
"""

from __future__ import annotations

import mmap
import re
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import pyarrow as pa

from tamis.errors import OutputError, RecipeError, TamisError
from tamis.manifests.atomic import remove, sync_folder, write_atomic

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

_PIECE = 32 << 20  # bytes of a file that are in memory at once while it is fetched
_PATIENCE, _SLOWEST = 120.0, 1 << 18  # seconds that a request may take, and one more for so many bytes
_HERE = ("file", "local")  # schemes of fsspec for what is a folder


class Store(Protocol):
    """What tasks, plans and reports need of the place."""

    @property
    def location(self) -> str:
        """A path or a URL: what `store_at` takes, here or in a worker."""
        ...

    @property
    def fetches(self) -> bool:
        """Whether `map` takes disk of this machine."""
        ...

    def make(self, *folders: str) -> None:
        """Make ready for files in these folders; raises OutputError where nothing can be written."""
        ...

    def put(self, name: str, data: bytes | pa.Buffer) -> None:
        """Write one file, over an old one; raises OutputError."""
        ...

    def read(self, names: Iterable[str]) -> dict[str, bytes]:
        """Read small files, by name; those that are not there are left out."""
        ...

    def sizes(self, folders: Iterable[str]) -> dict[str, int]:
        """List whole folders: the bytes of each file, by name."""
        ...

    def size(self, name: str) -> int | None:
        """The bytes of one file; None where it is not there."""
        ...

    def remove(self, names: Iterable[str]) -> None:
        """Remove files; those that are not there are no error."""
        ...

    def identity(self, name: str) -> Hashable:
        """Equal as long as the file has not changed; raises OSError where there is none."""
        ...

    def map(self, name: str) -> pa.Buffer:
        """A file's bytes, memory-mapped; raises OSError where it cannot be read."""
        ...


@dataclass(frozen=True, slots=True)
class Folder:
    """A store in a file system."""

    path: Path
    fetches = False

    @property
    def location(self) -> str:
        return str(self.path)

    def make(self, *folders: str) -> None:
        for folder in (self.path, *(self.path / name for name in folders)):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                sync_folder(folder.parent)
            except OSError as error:
                raise OutputError(
                    f"cannot write to {folder.parent}: {error.strerror or error}; give a folder that can be written"
                ) from error

    def put(self, name: str, data: bytes | pa.Buffer) -> None:
        write_atomic(self.path / name, data)

    def read(self, names: Iterable[str]) -> dict[str, bytes]:
        found = {}
        for name in names:
            with suppress(OSError):
                found[name] = (self.path / name).read_bytes()
        return found

    def sizes(self, folders: Iterable[str]) -> dict[str, int]:
        found = {}
        for folder in folders:
            with suppress(OSError):
                for path in (self.path / folder).iterdir():
                    with suppress(OSError):
                        found[f"{folder}/{path.name}"] = path.stat().st_size
        return found

    def size(self, name: str) -> int | None:
        try:
            return (self.path / name).stat().st_size
        except OSError:
            return None

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            remove(self.path / name)

    def identity(self, name: str) -> Hashable:
        stat = (self.path / name).stat()
        return (str(self.path / name), stat.st_ino, stat.st_mtime_ns, stat.st_size)

    def map(self, name: str) -> pa.Buffer:
        return pa.memory_map(str(self.path / name)).read_buffer()


@dataclass(frozen=True, slots=True)
class ObjectStore:
    """A store behind fsspec. The file system is this process's own: what travels is the URL.

    Every method raises OutputError, naming the URL, where the store fails; what the libraries raised stays here, as
    much of it does not survive being sent to another process.
    """

    location: str
    files: Any
    root: str
    fetches = True

    def make(self, *folders: str) -> None:  # noqa: ARG002
        self.put(".tamis", b"what tamis keeps between tasks\n")

    def put(self, name: str, data: bytes | pa.Buffer) -> None:
        data = bytes(data)
        asked = (f"write {self.location}/{name}", self.files.pipe_file, self._path(name), data)
        self._asked(*asked, more=len(data) / _SLOWEST)

    def read(self, names: Iterable[str]) -> dict[str, bytes]:
        paths = {self._path(name): name for name in names}
        if not paths:
            return {}
        # From 0 on: without a range s3fs asks for each object's size first.
        asked = (f"read {self.location}", self.files.cat, list(paths))
        found = self._asked(*asked, more=len(paths), on_error="return", start=0)
        for path, data in list(found.items()):
            if isinstance(data, Exception):
                del found[path]
                # S3 has no range of an empty object.
                if not isinstance(data, FileNotFoundError) and self.size(paths[path]) != 0:
                    raise self._failed(f"read {self.location}/{paths[path]}", data)
        return {paths[path]: data for path, data in found.items()}

    def sizes(self, folders: Iterable[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        for folder in folders:
            with suppress(FileNotFoundError):
                listed = self._asked(f"list {self.location}/{folder}", self.files.ls, self._path(folder), detail=True)
                for item in listed:
                    name = item["name"].rpartition("/")[2]
                    found[f"{folder}/{name}" if folder else name] = int(item["size"] or 0)
        return found

    def size(self, name: str) -> int | None:
        try:
            return int(self._asked(f"read {self.location}/{name}", self.files.info, self._path(name))["size"])
        except FileNotFoundError:
            return None

    def remove(self, names: Iterable[str]) -> None:
        names = list(names)
        there = self.sizes(dict.fromkeys(name.rpartition("/")[0] for name in names))
        paths = [self._path(name) for name in names if name in there]
        if paths:
            with suppress(FileNotFoundError):
                self._asked(f"remove from {self.location}", self.files.rm, paths)

    def identity(self, name: str) -> Hashable:
        return f"{self.location}/{name}"  # content-named

    def map(self, name: str) -> pa.Buffer:
        size = self.size(name)
        if size is None:
            raise FileNotFoundError(f"{self.location}/{name} is not there")
        try:
            with tempfile.TemporaryFile() as file:  # without a name: nothing is left of it, even after a SIGKILL
                for start in range(0, size, _PIECE):
                    file.write(self._piece(name, start, min(start + _PIECE, size)))
                file.flush()
                return pa.py_buffer(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b"")
        except OSError as error:
            raise OutputError(
                f"cannot keep {name}, {size} bytes, in {tempfile.gettempdir()}: {error.strerror or error}; free space, "
                "or name another folder with TMPDIR"
            ) from error

    def _piece(self, name: str, start: int, stop: int) -> bytes:
        asked = (f"read {self.location}/{name}", self.files.cat_file, self._path(name))
        data: bytes = self._asked(*asked, more=(stop - start) / _SLOWEST, start=start, end=stop)
        return data

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    def _asked(self, doing: str, method: Callable[..., Any], *arguments: Any, more: float = 0.0, **named: Any) -> Any:
        """Call the file system; FileNotFoundError is an answer, unless it was to write. `more` are seconds to wait."""
        if getattr(self.files, "async_impl", False):
            # fsspec's own limit: s3fs's is not for a server that takes a connection and never answers a put.
            named["timeout"] = _PATIENCE + more
        try:
            return method(*arguments, **named)
        except TamisError:
            raise  # a signal came meanwhile
        except FileNotFoundError as error:
            if not doing.startswith("write"):
                raise
            failed = self._failed(doing, error)
        except Exception as error:  # of the store's own library, of the one below, or of the network
            failed = self._failed(doing, error)
        raise failed

    def _failed(self, doing: str, error: Exception) -> OutputError:
        return OutputError(
            f"cannot {doing}: {_without_secrets(f'{type(error).__name__}: {error}')}; see that the store answers, that "
            "the bucket is there, and that this environment's credentials may read, list and write it. Finished blocks "
            "are kept: the same command goes on from there"
        )


def store_at(location: str) -> Store:
    """Open what a location names.

    Args:
        location: From `check_location`.

    Raises:
        RecipeError: This process has no library for such a URL.
        OutputError: The store cannot be reached.
    """
    if "://" not in location:
        return Folder(Path(location))
    from fsspec.core import url_to_fs

    scheme = location.partition("://")[0]
    try:
        # Others write there too: a listing that is remembered would be wrong.
        files, root = url_to_fs(location, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        known = "pip install 'tamis[s3]'" if scheme == "s3" else "install fsspec's implementation of it"
        raise RecipeError(f"work is {location}: {scheme}:// cannot be used here ({error}); {known}") from error
    except Exception as error:
        raise OutputError(f"cannot reach {location}: {_without_secrets(f'{type(error).__name__}: {error}')}") from None
    return ObjectStore(location, files, root.rstrip("/"))


def check_location(work: str | Path) -> str:
    """A location for `store_at`: an absolute path, or a URL without a slash at its end.

    Raises:
        RecipeError: The URL holds credentials or what fsspec would not take literally, or names no place.
    """
    text = str(work)
    if "://" not in text:
        return str(Path(work).resolve())
    scheme, _, place = text.partition("://")
    if scheme in _HERE:
        return str(Path(place).resolve())
    if urlsplit(text).password is not None or "?" in text:
        raise RecipeError(
            f"work is {_without_secrets(text)} and more: a URL with a password or a query would be kept in logs; give "
            "it without, and the credentials in the environment (for S3 AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY)"
        )
    if not place.strip("/") or "::" in text or set(text) & set("*[]#"):
        raise RecipeError(
            f"work is {text}; it must be a folder, or a URL like s3://bucket/prefix, without any of * ? [ ] # ::"
        )
    return text.rstrip("/")


def check_reach(location: str, here: bool) -> None:
    """Refuse a store that workers cannot see.

    Args:
        location: From `check_location`.
        here: Whether all nodes run in this process.

    Raises:
        RecipeError: It is one of this process alone.
    """
    if location.startswith("memory://") and not here:
        raise RecipeError(
            f"work is {location}, which other processes do not see; give --executor sync, or a store that workers share"
        )


def _without_secrets(text: str) -> str:
    """A message in one line, its URLs without what stands before @ and after ?."""
    text = re.sub(r"(?<=://)[^/\s@]*@", "", " ".join(text.split()))
    return re.sub(r"\?[^\s\"']*", "", text)[:500]
