"""Every error that Tamis raises on purpose, each with the exit code of the command line.

A message says what was given, what is allowed, and what to do. The codes are part of the
interface: scripts and schedulers decide on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class TamisError(Exception):
    """Base of all Tamis errors.

    Attributes:
        exit_code: What the command line exits with.
    """

    exit_code = 1


class RecipeError(TamisError):
    """The recipe, or a value given for it, is wrong (exit 2)."""

    exit_code = 2


class DataError(TamisError):
    """The data cannot be used as the recipe says (exit 3)."""

    exit_code = 3


class WorkerError(TamisError):
    """A worker process died or stalled; finished tasks are kept (exit 4)."""

    exit_code = 4


class OutputError(TamisError):
    """A folder cannot be written, holds no run or manifest, or no longer what a run left there (exit 5)."""

    exit_code = 5


class DatasetMismatchError(TamisError):
    """The dataset is not the one the manifest or the run was made from (exit 6)."""

    exit_code = 6


class DamagedManifestError(TamisError):
    """A manifest's bytes are not what its commit record says, or it is not readable by this version (exit 7)."""

    exit_code = 7


class NonFiniteLossError(TamisError):
    """A training loss was NaN or infinite (exit 8).

    Attributes:
        positions: Of the samples in the dataset, where they are known.
    """

    exit_code = 8

    def __init__(self, message: str, positions: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.positions = positions


class LockedError(TamisError):
    """Another run holds the output folder (exit 75)."""

    exit_code = 75


class StoppedError(TamisError):
    """It was stopped by a signal (exit 130).

    Attributes:
        resumes: Whether the same command goes on from there.
    """

    exit_code = 130

    def __init__(self, message: str, resumes: bool = True) -> None:
        super().__init__(message)
        self.resumes = resumes


def first_of(values: Iterable[object], most: int = 10) -> str:
    """The first few of what a message is about, and how many more there are.

    >>> first_of("abcd", 3), first_of([1, 2])
    ("'a', 'b', 'c' and 1 more", '1, 2')
    """
    named = [repr(value) for value in values]
    return ", ".join(named[:most]) + (f" and {len(named) - most:,} more" if len(named) > most else "")
