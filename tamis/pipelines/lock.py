"""One writer at a time in a folder."""

from __future__ import annotations

import fcntl
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tamis.errors import LockedError, OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOCK_ATTEMPTS = 5


def run_folder(out: str | Path) -> Path:
    """The run's folder as an absolute path without links; it need not be there.

    Raises:
        OutputError: It is a link to itself.
    """
    try:
        return Path(out).resolve()
    except (OSError, RuntimeError) as error:
        raise OutputError(f"cannot write to {out}: {error}; give a folder that can be written with --out") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run's folder; another run into it ends at once.

    Raises:
        OutputError: The folder cannot be made or written.
        LockedError: Another run holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".lock").open("a")
    except OSError as error:
        raise _unwritable(folder, error) from error
    with handle:
        for attempt in range(_LOCK_ATTEMPTS):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # `tamis status` looks at the lock for an instant; a run holds it.
                if attempt == _LOCK_ATTEMPTS - 1:
                    raise LockedError(
                        f"another run holds {folder}; wait for it, or give another folder with --out"
                    ) from None
                time.sleep(0.05)
            except OSError as error:
                raise _unwritable(folder, error) from error
        yield


def _unwritable(folder: Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot write to {folder}: {error.strerror or error}; give a folder that can be written with --out"
    )


def is_locked(folder: Path) -> bool:
    """Whether a run holds the folder now."""
    try:
        with (folder / ".lock").open("r") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
