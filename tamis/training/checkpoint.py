"""Checkpoints of a training: a content-named safetensors file, and the record that names it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import safetensors.torch

from tamis.errors import DamagedManifestError, OutputError
from tamis.manifests.atomic import hashed_name, remove, write_atomic
from tamis.manifests.canonical import sealed, unsealed

if TYPE_CHECKING:
    from pathlib import Path

    import torch

RECORD = "checkpoint.json"

_VERSION = 2


def load(folder: Path, key: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
    """The counters and tensors of the folder's checkpoint; None if there is none. Makes a missing folder.

    Args:
        folder: Where `save` wrote.
        key: The identity of the training that is to go on.

    Raises:
        OutputError: The folder cannot be made, or the checkpoint is another training's.
        DamagedManifestError: It is not what was written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror}; choose another") from error
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        body = unsealed(path.read_bytes())
        if body["key"] != key or body["version"] != _VERSION:
            raise OutputError(
                f"{path} is the checkpoint of another training (other data, options or version); "
                "give another folder, or remove this one"
            )
        name = hashed_name("checkpoint", body["tensors"]["sha256"], "safetensors")
        data = (folder / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != body["tensors"]["sha256"]:
            raise ValueError(f"{name} does not have its sha256")
        return body["counters"], safetensors.torch.load(data)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedManifestError(
            f"the checkpoint {path} is damaged: {error}; remove the folder to train from the start"
        ) from error


def save(folder: Path, key: str, counters: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Writes a checkpoint in place of the last one; at every instant one of the two is whole.

    Raises:
        OutputError: It cannot be written.
    """
    data = safetensors.torch.save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
    sha256 = hashlib.sha256(data).hexdigest()
    name = hashed_name("checkpoint", sha256, "safetensors")
    write_atomic(folder / name, data)
    body = {
        "version": _VERSION,
        "key": key,
        "counters": counters,
        "tensors": {"path": name, "sha256": sha256},
    }
    write_atomic(folder / RECORD, sealed(body))
    for old in folder.glob("checkpoint.*.safetensors"):
        if old.name != name:
            remove(old)
