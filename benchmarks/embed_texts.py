"""How fast are texts embedded, against sentence-transformers alone?

The first 8,192 of the demo's tweets by MiniLM. Ours is the embed stage of a run, one process a core: from the first
block's start to the last one's end, loading the model included. Theirs is `encode` of the same texts, model loaded,
sorted by length as it does itself, with its default batch size, one process with as many threads as there are cores.

    python benchmarks/embed_texts.py [--repeat 3] [--quick]
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _measure
import click
import pyarrow.parquet as pq

import tamis
from tamis.pipelines.resources import usable_cores

if TYPE_CHECKING:
    from collections.abc import Mapping

sys.path.insert(0, str(_measure.ROOT / "data_manifests"))
ROWS = 8192
MAX_TOKENS = 128  # of the embed stage


def ours(path: Path, model: Path, rows: int) -> _measure.Seconds:
    """The wall time of the embed stage's blocks."""
    recipe = {
        "name": "embed",
        "block_rows": 1024,
        "dataset": {"path": str(path), "id": "tweet_id", "text": "text"},
        "stages": [{"kind": "embed", "encoder": f"sentence: {model}", "max_tokens": MAX_TOKENS}],
    }
    blocks: list[Mapping[str, Any]] = []

    def keep(event: Mapping[str, Any]) -> None:
        if event["event"] == "node" and event["node"].startswith("01-embed/block"):
            blocks.append(event)

    with tempfile.TemporaryDirectory() as folder:
        tamis.run(recipe, Path(folder) / "run", limit=rows, on_event=keep)
    return _measure.Seconds(
        max(block["time"] for block in blocks) - min(block["time"] - block["seconds"] for block in blocks)
    )


def load(path: Path, model: Path, rows: int) -> tuple[Any, list[str]]:
    """Their model, warm, and the texts."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(usable_cores())
    encoder = SentenceTransformer(str(model), device="cpu")
    encoder.max_seq_length = MAX_TOKENS
    texts = pq.read_table(path, columns=["text"])["text"].to_pylist()[:rows]
    encoder.encode(texts[:64], show_progress_bar=False)
    return encoder, texts


def theirs(encoder: Any, texts: list[str]) -> tuple[int, ...]:
    """All texts by `encode`; the shape of the result."""
    return tuple(encoder.encode(texts, normalize_embeddings=True, show_progress_bar=False).shape)


@click.command()
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True)
@click.option("--quick", is_flag=True, help="A smoke run on a few tweets; prints, and writes nothing.")
def main(repeat: int, quick: bool) -> None:
    """Measure, and write results/embed_texts.json."""
    import fetch

    path, model = fetch.tweets()[0], fetch.minilm()
    rows = 128 if quick else ROWS

    def peer() -> _measure.Seconds:
        child = _measure.in_child(theirs, load, path, model, rows)
        assert child.result == (rows, 384)
        return _measure.Seconds(child.seconds)

    times = _measure.alternate({"ours": partial(ours, path, model, rows), "theirs": peer}, repeat)
    ratio = _measure.ratio(times)
    aims = [
        _measure.aim(f"embedding {rows:,} tweets by MiniLM", "sentence-transformers' encode", ratio, at_least=1.0),
    ]
    results = {
        "repeat": repeat,
        "rows": rows,
        "cores": usable_cores(),
        "peer": {name: metadata.version(name) for name in ("sentence-transformers", "torch")},
        "seconds": times,
        "ratio": ratio,
        "aims": aims,
    }
    _measure.finish("embed_texts", results, not quick)


if __name__ == "__main__":
    main()
