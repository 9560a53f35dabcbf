"""Embed: one float32 unit vector for every row, block by block."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tamis.embeddings.encoders import (
    Lsa,
    Pixels,
    as_unit,
    count_vectors,
    lonely_vector,
    model_folder,
    model_revision,
    read_vectors,
    sentence_encoder,
    stack_lists,
)
from tamis.embeddings.kmeans import evenly_spaced
from tamis.errors import DataError, RecipeError
from tamis.manifests.canonical import sha256_file
from tamis.pipelines.node import Inputs, Node, Output, Task, version_of
from tamis.pipelines.plan import Encoder
from tamis.pipelines.state import (
    KEPT,
    QUARANTINED,
    alive_rows,
    effect,
    matrix_column,
    matrix_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tamis.pipelines.plan import Add, Context, Flow
    from tamis.pipelines.recipe import EmbedConfig


# What the vectors of an encoder depend on, beside its weights and what every task depends on.
ENCODER_PACKAGES = {
    "pixels": ("pillow",),
    "sentence": ("sentence-transformers", "transformers", "tokenizers", "torch"),
    "transformers": ("transformers", "tokenizers", "torch"),
}


def expand(config: EmbedConfig, flow: Flow, context: Context, add: Add) -> Flow:
    """Fit the encoder where it needs that, encode each block, then gather what could not be encoded."""
    encoder, _, argument = (part.strip() for part in config.encoder.partition(":"))
    role = _role(config, flow)
    # The role is named where it is not the one that the encoder is made for.
    named: dict[str, Any] = {"role": role} if role == "tokens" else {}
    params: dict[str, Any] = {"encoder": encoder, **named}
    inputs: dict[str, list[Node]] = {}
    hints: dict[str, Any] = {}
    fitting = {"blocks": flow.blocks, "alive": [flow.alive]}
    if flow.fitting is not None and flow.alive is flow.index:
        fitting = {"blocks": flow.fitting[0], "alive": [flow.fitting[1]]}
    if encoder == "lsa":
        fit = {"dim": config.dim, "max_features": config.max_features, "fit_rows": config.fit_rows, **named}
        inputs["model"] = [add("embed.fit", fit, fitting)]
    elif encoder == "pixels":
        fit = {"dim": config.dim, "image_size": config.image_size, "fit_rows": config.fit_rows}
        inputs["model"] = [add("embed.fit_pixels", fit, fitting)]
        params["libraries"] = {name: version_of(name) for name in ENCODER_PACKAGES[encoder]}
    elif encoder in ("sentence", "transformers"):
        local = context.folder / argument
        hints["model"] = str(local if local.is_dir() else model_folder(argument))
        params |= {
            "revision": model_revision(hints["model"]),
            "max_tokens": config.max_tokens,
            "batch_size": config.batch_size,
            "libraries": {name: version_of(name) for name in ENCODER_PACKAGES[encoder]},
        }
    elif argument:
        path = context.folder / argument
        if not path.is_file():
            raise RecipeError(f"embed: no file of vectors at {path}")
        if count_vectors(path) != flow.dataset_rows:
            raise DataError(
                f"{path} holds {count_vectors(path)} vectors, the dataset {flow.dataset_rows} rows; the two must "
                "be equal"
            )
        hints["file"] = str(path)
        params["sha256"] = sha256_file(path)
    of_rows = encoder == "vectors" and bool(argument)
    made_by = None if of_rows else Encoder(dict(params), dict(inputs), hints)
    # Rows that an earlier stage dropped are not encoded; without such a stage a block's embedding depends
    # on nothing but the block, so that a grown dataset embeds only its new blocks.
    if flow.alive is not flow.index:
        inputs["alive"] = [flow.alive]
    start = 0
    blocks = []
    for part, block in enumerate(flow.blocks):
        stop = start + block.params["stop"] - block.params["start"]
        # Only a lookup by dataset row makes a block depend on its place in the dataset.
        place = {"start": start, "stop": stop} if of_rows or "alive" in inputs else {}
        blocks.append(add("embed.block", params | place, {"block": [block], **inputs}, part=part, hints=hints))
        start = stop
    check = add(
        "embed.check",
        {"max_bad_fraction": context.max_bad_fraction, "rows": flow.rows},
        {"blocks": blocks, "alive": [flow.alive]},
    )
    # Clusters are those of other embeddings: they end here.
    columns = {name: node for name, node in flow.columns.items() if name not in ("cluster", "cluster_dist")}
    return dataclasses.replace(
        flow,
        embeddings=tuple(blocks),
        encoder=made_by,
        alive=check,
        effects=(*flow.effects, check),
        columns=columns,
        centroids=None,
    )


def _role(config: EmbedConfig, flow: Flow) -> str:
    """The role of the column that is embedded; none where the vectors come from a file."""
    encoder, _, argument = (part.strip() for part in config.encoder.partition(":"))
    fields = flow.dataset.fields
    if encoder == "vectors" and argument:
        return ""
    role = {"vectors": "vectors", "pixels": "image"}.get(encoder, "text")
    if role in fields:
        return role
    if encoder == "lsa" and "tokens" in fields:
        return "tokens"
    # The default stays what it is called, so that a recipe and its record say which encoder ran.
    hint = ", or embed the images: encoder: pixels" if role == "text" and "image" in fields else ""
    raise RecipeError(
        f"embed with {config.encoder!r} needs the dataset's {role} column; name it: dataset: {{{role}: COLUMN}}{hint}"
    )


def _column(table: pa.Table, role: str, rows: npt.NDArray[np.int64]) -> list[Any]:
    """The content of some rows of a block; token blocks as texts whose words are the tokens' numbers."""
    values = table[role].take(pa.array(rows)).to_pylist()
    return [" ".join(map(str, tokens)) for tokens in values] if role == "tokens" else values


def _sampled(params: Mapping[str, Any], inputs: Inputs, role: str) -> Iterator[list[Any]]:
    """The content of the evenly spaced rows to fit on, block by block."""
    alive = alive_rows(inputs)
    wanted = alive[evenly_spaced(len(alive), params["fit_rows"])]
    start = 0
    for item in inputs.all("blocks"):
        stop = start + item.facts["block_rows"]
        yield _column(inputs.open(item), role, wanted[(wanted >= start) & (wanted < stop)] - start)
        start = stop


def fit(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Fit the lsa encoder on evenly spaced rows."""
    texts = [text for part in _sampled(params, inputs, params.get("role", "text")) for text in part]
    if not texts:
        raise DataError("no row is left to fit the lsa encoder on")
    model = Lsa.fit(texts, params["dim"], params["max_features"])
    table = pa.table(
        {"term": pa.array(model.terms), "idf": pa.array(model.idf), "vector": matrix_column(model.components)}
    )
    return Output(table, {"dim": model.components.shape[1], "fitted_on": len(texts), "terms": len(model.terms)})


def fit_pixels(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Fit the pixels encoder on evenly spaced rows; in grey if all of them are."""
    from tamis.embeddings.images import decode

    parts = [decode(part, params["image_size"], None) for part in _sampled(params, inputs, "image") if part]
    channels = max((part.shape[1] for part in parts), default=1)
    model = Pixels.fit((part.repeat(channels // part.shape[1], axis=1) for part in parts), params["dim"])
    table = pa.table({"mean": pa.array(model.mean), "vector": matrix_column(model.components)})
    facts = {"dim": model.components.shape[1], "fitted_on": sum(map(len, parts)), "shape": list(model.shape)}
    return Output(table, facts)


def _encode_pixels(model: Pixels, images: Sequence[bytes]) -> tuple[npt.NDArray[np.float32], int]:
    """The images' vectors, and how many of them the encoder knew nothing of."""
    from tamis.embeddings.images import decode

    channels, height, _ = model.shape
    pixels = decode(images, height, channels)
    raw = model.encode(pixels)
    unknown = np.flatnonzero(~raw.any(axis=1))
    # An image that is the mean itself is no bad row; two with the same pixels are the same.
    for i in unknown:
        raw[i] = lonely_vector(pixels[i].tobytes(), raw.shape[1])
    return raw, len(unknown)


def block(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Encode one block's rows that are still in."""
    table = inputs.open(inputs.one("block"))
    usable = table["problem"].is_null().to_numpy()
    if inputs.all("alive"):
        alive = alive_rows(inputs)
        mine = np.zeros(len(usable), bool)
        mine[alive[(alive >= params["start"]) & (alive < params["stop"])] - params["start"]] = True
        usable &= mine
    local = np.flatnonzero(usable)
    unknown = 0
    raw: npt.NDArray[Any]
    if params["encoder"] == "vectors" and "file" in inputs.hints:
        raw = read_vectors(Path(inputs.hints["file"]), params["start"], params["stop"])[local]
    elif params["encoder"] == "vectors":
        raw = (
            stack_lists(table["vectors"].take(pa.array(local)).combine_chunks(), "vectors column")
            if len(local)
            else np.zeros((0, 1))
        )
    elif params["encoder"] == "pixels":
        model_table, (channels, height, width) = inputs.table("model"), inputs.one("model").facts["shape"]
        pixels = Pixels((channels, height, width), model_table["mean"].to_numpy(), matrix_of(model_table))
        raw, unknown = _encode_pixels(pixels, _column(table, "image", local))
    else:
        texts = _column(table, params.get("role", "text"), local)
        if params["encoder"] == "lsa":
            model_table = inputs.table("model")
            model = Lsa(tuple(model_table["term"].to_pylist()), model_table["idf"].to_numpy(), matrix_of(model_table))
            raw = model.encode(texts) if texts else np.zeros((0, model.components.shape[1]))
            # A text of none but unseen words is no bad row: it is unlike everything.
            for i in np.flatnonzero(~raw.any(axis=1)):
                raw[i] = lonely_vector(texts[i], raw.shape[1])
                unknown += 1
        else:
            encode = sentence_encoder(
                inputs.hints["model"],
                params["revision"],
                params["max_tokens"],
                params["batch_size"],
                params["encoder"] == "sentence",
            )
            raw = encode(texts) if texts else encode(["-"])[:0]
    unit, bad = as_unit(raw)
    facts = {
        "block_rows": table.num_rows,
        "dim": int(unit.shape[1]),
        "encoded": len(local),
        "unknown": unknown,
        "bad": [[int(local[row]), reason] for row, reason in bad.items()],
    }
    return Output(pa.table({"row": pa.array(local, pa.int32()), "vector": matrix_column(unit)}), facts)


def check(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Set aside the rows that no vector stands for, and see that all blocks have one dimension."""
    alive = alive_rows(inputs)
    dims = {item.facts["dim"] for item in inputs.all("blocks") if item.facts["encoded"]}
    if len(dims) > 1:
        raise DataError(f"vectors differ in length between blocks: {sorted(dims)}; all must have one")
    bad: dict[int, str] = {}
    start = 0
    for item in inputs.all("blocks"):
        bad.update({start + row: reason for row, reason in item.facts["bad"]})
        start += item.facts["block_rows"]
    if len(bad) > params["max_bad_fraction"] * params["rows"]:
        shown = "; ".join(f"row {row}: {reason}" for row, reason in list(bad.items())[:10])
        raise DataError(
            f"{len(bad)} of {params['rows']} rows have no usable vector, more than max_bad_fraction "
            f"{params['max_bad_fraction']} allows: {shown}"
        )
    reasons = [bad.get(row) for row in alive.tolist()]
    decision = np.array([KEPT if reason is None else QUARANTINED for reason in reasons], np.int8)
    facts = {
        "dim": next(iter(dims), 0),
        "encoded": sum(item.facts["encoded"] for item in inputs.all("blocks")),
        "unknown": sum(item.facts["unknown"] for item in inputs.all("blocks")),
        "quarantined": int(np.count_nonzero(decision)),
    }
    return Output(effect(alive, decision, reasons), facts)


TASKS = {
    "fit": Task(
        fit, libraries=("sklearn.decomposition", "sklearn.feature_extraction.text"), packages=("scikit-learn", "scipy")
    ),
    "fit_pixels": Task(fit_pixels, libraries=("scipy.linalg",), packages=("scipy", "pillow")),
    "block": Task(block),
    "check": Task(check),
}
