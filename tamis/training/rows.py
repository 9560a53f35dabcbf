"""The rows of a manifest, read from its dataset for a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.errors import DataError, DatasetMismatchError, RecipeError
from tamis.training.image import Images
from tamis.training.learner import Ragged, Samples
from tamis.training.lm import Blocks
from tamis.training.text import Texts

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa
    from numpy.typing import NDArray

    from tamis.manifests.reader import Manifest

MODELS: dict[str, type[Texts] | type[Images] | type[Blocks]] = {"text": Texts, "image": Images, "lm": Blocks}
"""The bundled models, by name, with the samples that each takes."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainingRows:
    """Rows of a manifest's dataset to train on.

    Attributes:
        samples: k of them.
        ids: k sample ids.
        rows: int64 [k], their rows in the dataset.
        weights: float32 [k].
    """

    samples: Samples
    ids: list[str]
    rows: NDArray[np.int64]
    weights: NDArray[np.float32]


def read_training(
    manifest: Manifest,
    dataset: str | Path,
    model: str = "text",
    *,
    rows: NDArray[np.int64] | None = None,
    image_size: int | None = None,
    trust_rows: bool = False,
) -> TrainingRows:
    """Reads a manifest's rows from its dataset, after making sure that it is that dataset.

    Args:
        manifest: As from `open_manifest`.
        dataset: A file, glob or folder.
        model: One of `MODELS`.
        rows: int64 [k], any rows of the dataset, with the weight 1; None for those selected, in rank order and with
            the manifest's weights.
        image_size: Width and height of images; None if all are of one size.
        trust_rows: Instead of the whole dataset's fingerprint, check each row's id and content hash.

    Returns:
        The rows; classes are the labels that occur, in sorted order.

    Raises:
        DatasetMismatchError: It is another dataset, or with `trust_rows` another row.
        DataError: A file or column cannot be read.
        RecipeError: There is no such model, or the manifest lacks a column that it needs.
    """
    fields = _fields(manifest, model)
    if not trust_rows:
        fields = _own(fields, model)
    wanted = manifest.select if rows is None else manifest.audit.take(rows)
    rows = wanted["row"].to_numpy()
    table = _read(manifest, dataset, rows, fields, model, verify=not trust_rows)
    if trust_rows:
        _check_rows(wanted, table, fields)
    weights = wanted["weight"].to_numpy() if wanted is manifest.select else np.ones(len(rows))
    return TrainingRows(
        _samples(table, model, (), image_size), wanted["sample_id"].to_pylist(), rows, weights.astype(np.float32)
    )


def read_any(
    manifest: Manifest, dataset: str | Path, rows: NDArray[np.int64], model: str, image_size: int | None = None
) -> tuple[Samples, pa.Array]:
    """Reads any rows of a manifest's dataset, selected or not, after making sure that it is that dataset.

    Args:
        manifest: As from `open_manifest`.
        dataset: A file, glob or folder.
        rows: int64 [k], the rows in the dataset.
        model: One of `MODELS`.
        image_size: As for `read_training`.

    Returns:
        (The k samples, fixed_size_binary(16) [k], a hash of what the model reads of each but its label).

    Raises:
        TamisError: As `read_training`.
    """
    table = _read(manifest, dataset, rows, _own(_fields(manifest, model), model), model)
    return _samples(table, model, (), image_size), _contents(table)


def read_test(
    manifest: Manifest, path: str | Path, model: str, training: Samples, image_size: int | None = None
) -> tuple[Samples, pa.Array]:
    """Reads a test set with the manifest's columns, for a model of the training's samples.

    A label that training lacks is a class that the model never learns.

    Returns:
        As `read_any`, of all rows.

    Raises:
        DataError: A file or column cannot be read.
        RecipeError: As `read_training`.
    """
    from tamis.pipelines.dataset import scan_all
    from tamis.pipelines.sources import take_rows

    fields = _own(_fields(manifest, model), model)
    sources = scan_all(str(path))
    everything = np.arange(sum(source.rows for source in sources))
    table = _by_role(take_rows(sources, everything, list(dict.fromkeys(fields.values()))), fields, model)
    channels = training.pixels.shape[1] if isinstance(training, Images) else None
    return _samples(table, model, training.classes, image_size, channels), _contents(table)


def _read(
    manifest: Manifest,
    dataset: str | Path,
    rows: NDArray[np.int64],
    fields: dict[str, str],
    model: str,
    verify: bool = True,
) -> pa.Table:
    """Rows of a manifest's dataset with their columns named by role."""
    from tamis.pipelines.dataset import fingerprint_of, scan_all
    from tamis.pipelines.sources import take_rows

    sources = scan_all(str(dataset))
    if verify:
        manifest.verify_dataset(fingerprint_of(sources, manifest))
    have = sum(source.rows for source in sources)
    if rows.max(initial=-1) >= have:
        raise DatasetMismatchError(f"the manifest selects row {rows.max()}; {dataset} has {have} rows")
    return _by_role(take_rows(sources, rows, list(dict.fromkeys(fields.values()))), fields, model)


def _samples(
    table: pa.Table, model: str, classes: tuple[str, ...], image_size: int | None, channels: int | None = None
) -> Samples:
    """The samples of a table with columns named by role; its labels are known classes, then others in sorted order."""
    if model == "lm":
        tokens = table["tokens"].combine_chunks()
        lengths = tokens.value_lengths().to_numpy()
        values = tokens.flatten().to_numpy()
        if len(values) and values.max() > np.iinfo(np.int32).max:
            raise DataError(f"the largest token is {values.max()}; tokens up to 2^31 - 1 are read")
        values = values.astype(np.int32)
        return Blocks(Ragged(values, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])))
    names = table["label"].to_pylist()
    known = (*classes, *sorted(set(names) - set(classes)))
    index = {name: number for number, name in enumerate(known)}
    labels = np.array([index[name] for name in names], dtype=np.int64)
    if model == "image":
        from tamis.embeddings.images import decode

        return Images(decode(table["image"].to_pylist(), image_size, channels), labels, known)
    return Texts.of(table["text"].to_pylist(), labels, known)


def _fields(manifest: Manifest, model: str) -> dict[str, str]:
    """The dataset's columns by role, of the roles that are set; those that the model needs among them."""
    if model not in MODELS:
        raise RecipeError(f"model is {model!r}; it must be one of {', '.join(MODELS)}")
    fields = {role: str(name) for role, name in manifest.record["dataset"]["fields"].items() if name is not None}
    for role in MODELS[model].ROLES:
        if role not in fields:
            hint = "; `tamis pack` makes token blocks of texts" if role == "tokens" else ""
            raise RecipeError(
                f"training the {model} model needs a {role} column; the manifest's dataset has {', '.join(fields)}: "
                f"name it in the recipe, as in dataset: {{{role}: COLUMN}}, and run again{hint}"
            )
    return fields


def _own(fields: dict[str, str], model: str) -> dict[str, str]:
    """The columns that the model reads."""
    return {role: name for role, name in fields.items() if role in MODELS[model].ROLES}


def _by_role(table: pa.Table, fields: dict[str, str], model: str) -> pa.Table:
    """The rows with their columns named by role; nothing that the model needs is null."""
    from tamis.pipelines.stages.ingest import sample_table

    samples = sample_table(table, fields)
    for role in MODELS[model].ROLES:
        if samples[role].null_count:
            raise DataError(f"column {fields[role]!r} is null in {samples[role].null_count} of the rows to use")
    return samples


def _contents(table: pa.Table) -> pa.Array:
    """Hashes of rows with their columns named by role, but for the label: fixed_size_binary(16) [k]."""
    from tamis.pipelines.stages.ingest import CONTENT_ROLES, content_hashes

    return content_hashes(
        table, tuple(role for role in CONTENT_ROLES if role in table.column_names and role != "label")
    )


def _check_rows(select: pa.Table, samples: pa.Table, fields: dict[str, Any]) -> None:
    """Refuses samples that are not the manifest's rows, by id and by content hash."""
    from tamis.pipelines.stages.ingest import CONTENT_ROLES, content_hashes

    hashes = content_hashes(samples, tuple(role for role in CONTENT_ROLES if role in fields))
    checks = [("content", select["content_hash"].to_pylist(), hashes.to_pylist())]
    if "id" in fields:
        checks.append(("id", select["sample_id"].to_pylist(), samples["id"].to_pylist()))
    for what, expected, found in checks:
        other = [i for i, (ours, theirs) in enumerate(zip(expected, found, strict=True)) if ours != theirs]
        if other:
            names = ", ".join(
                f"{select['sample_id'][i].as_py()!r} (row {select['row'][i].as_py()})" for i in other[:10]
            )
            raise DatasetMismatchError(
                f"the {what} of {len(other)} rows to train on differs in this dataset: {names}; "
                "use the dataset that the manifest was made from, or run again on this one"
            )
