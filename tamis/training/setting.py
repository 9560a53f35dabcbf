"""What the trainings of a comparison share: the rows of one dataset, the subsets of them, and what is measured on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc

from tamis.errors import DataError, DatasetMismatchError, RecipeError
from tamis.manifests.schema import Decision
from tamis.training.held_out import hold_out
from tamis.training.redraws import Redraws
from tamis.training.rows import read_any, read_test
from tamis.training.trainer import planned

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tamis.manifests.reader import Manifest
    from tamis.training.learner import Samples


@dataclass(frozen=True, slots=True, eq=False)
class Subset:
    """The rows of one manifest that may be trained on.

    Attributes:
        name: Of its row in the table.
        manifest: Where it is from.
        rows: int64 [k], positions in the samples, in rank order.
        weights: float32 [k], the manifest's.
        redraws: What its recipe's training draws from, at positions in the samples; None where it draws once.
    """

    name: str
    manifest: Manifest
    rows: NDArray[np.int64]
    weights: NDArray[np.float32]
    redraws: Redraws | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """What is trained on and what is measured on.

    Attributes:
        samples: All rows that can be used, in the dataset's order.
        pool: Positions of those that may be trained on, ascending.
        test: What is measured on.
        held_out: Whether that is a part of the samples.
        subsets: One a manifest.
        known: How many rows of a test set have the content of one of the samples.
    """

    samples: Samples
    pool: NDArray[np.int64]
    test: Samples
    held_out: bool
    subsets: list[Subset]
    known: int = 0

    @property
    def measure(self) -> str:
        """What is measured: "accuracy" where there are labels, "loss" elsewhere."""
        return "loss" if self.test.labels is None else "accuracy"

    def describe(self) -> str:
        """What is measured on, in words."""
        rows = f"{len(self.test):,} held-out rows"
        if not self.held_out:
            seen = f"{self.known:,} of them have the same content as rows of the dataset, which trainings may have seen"
            return f"{rows}. {seen}" if self.known else rows
        taken = [
            f"{kept - len(subset.rows):,} of the {kept:,} of {subset.name}"
            for subset in self.subsets
            for kept in (subset.manifest.select.num_rows,)
        ]
        return (
            f"{rows}. There was no test set: they are of the dataset's {len(self.samples):,}, drawn by class where "
            f"there are any and equal contents together, and in no training; {', '.join(taken)} are among them. The "
            "selection has seen them, and near-duplicates may lie on both sides: a test set of its own is stricter"
        )


def read_setting(
    manifests: Sequence[Manifest], names: Sequence[str], dataset: str, test: str | Path | None, share: float
) -> Setting:
    """Reads all rows that any of the manifests could use, and what is measured on.

    Args:
        manifests: Of one dataset, for one model.
        names: Of their subsets.
        dataset: A file, glob or folder.
        test: Likewise, with the same columns; None holds out a part of the dataset.
        share: How much of it.

    Raises:
        DatasetMismatchError: The manifests are of different datasets, or the dataset is another one.
        RecipeError: They are for different models, or one lacks a column that its model needs.
        DataError: A file or column cannot be read, or nothing is left of a subset.
    """
    first = manifests[0]
    usable = np.zeros(first.audit.num_rows, bool)
    for name, manifest in zip(names, manifests, strict=True):
        _check_alike(names[0], first, name, manifest)
        usable |= manifest.audit["decision"].to_numpy() != Decision.QUARANTINED
    rows = np.flatnonzero(usable)
    model, size = _model(first)
    samples, contents = read_any(first, dataset, rows, model, size)
    known = 0
    if test is None:
        held = hold_out(contents, samples.labels, share)
        measured = samples.take(np.flatnonzero(held))
    else:
        held = np.zeros(len(samples), bool)
        measured, others = read_test(first, test, model, samples, size)
        known = pc.sum(pc.is_in(others, value_set=contents)).as_py() or 0
    subsets = []
    for name, manifest in zip(names, manifests, strict=True):
        where = np.searchsorted(rows, manifest.select["row"].to_numpy())
        left = ~held[where]
        if not left.any():
            raise DataError(f"all {len(where)} rows of {name} are held out; give data to measure on with --test")
        weights = manifest.select["weight"].to_numpy().astype(np.float32)
        redraws = None
        if planned(manifest).sampler == "ingenious":
            candidates = Redraws.unweighted(manifest)
            candidates = candidates.at(np.searchsorted(rows, candidates.rows))
            redraws = candidates.only(~held[candidates.rows])
        subsets.append(Subset(name, manifest, where[left], weights[left], redraws))
    return Setting(samples, np.flatnonzero(~held), measured, test is None, subsets, known)


def names_of(manifests: Sequence[str | Path], taken: Sequence[str]) -> list[str]:
    """What the subsets are called: the ends of their paths that tell them apart; names that are taken are not given."""
    if len(manifests) == 1:
        return ["selected"]
    paths = [Path(path).absolute() for path in manifests]
    common = os.path.commonpath([path.parent for path in paths])
    names = [path.relative_to(common).as_posix() for path in paths]
    return [f"subset {name}" if name in taken else name for name in names]


def _check_alike(first_name: str, first: Manifest, name: str, other: Manifest) -> None:
    if other.fingerprint != first.fingerprint:
        raise DatasetMismatchError(
            f"{name} is of the dataset {other.fingerprint}, {first_name} of {first.fingerprint}; subsets of one "
            "dataset, with the same columns, can be compared"
        )
    if other.audit.num_rows != first.audit.num_rows:
        raise DatasetMismatchError(
            f"{name} is of {other.audit.num_rows} rows of the dataset, {first_name} of {first.audit.num_rows}; runs "
            "with the same --limit can be compared"
        )
    if _model(other) != _model(first):
        raise RecipeError(
            f"{name} is for the model and image_size {_model(other)}, {first_name} for {_model(first)}; subsets for "
            "one model can be compared"
        )


def _model(manifest: Manifest) -> tuple[str, int | None]:
    """The bundled model that a recipe is for, and the size of its images."""
    section = manifest.record["recipe"].get("train", {})
    return section.get("model", "text"), section.get("image_size")
