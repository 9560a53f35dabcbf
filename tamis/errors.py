"""Every error that Tamis raises on purpose, each with the exit code of the command line.

A message says what was given, what is allowed, and what to do. The codes are part of the
interface: scripts and schedulers decide on them.
"""

from __future__ import annotations


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
    """An output folder cannot be written, or a folder that was given holds no run or manifest (exit 5)."""

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
    """The run was stopped by a signal; it resumes where it was (exit 130)."""

    exit_code = 130
