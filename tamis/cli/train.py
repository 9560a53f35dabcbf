"""Verbs of training: pack, train."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tamis.cli.common import DATA, DEVICE, FOLDER, JSON, TEST, THREADS, errors, print_facts

if TYPE_CHECKING:
    from collections.abc import Mapping


@click.command()
@FOLDER
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for checkpoints and the training ledger; default: one below DIR/training for each subset.",
)
@DATA
@TEST
@click.option("--epochs", type=click.IntRange(1), help="Epochs; default: the recipe's.")
@click.option("--batch-size", type=click.IntRange(1), help="Samples a step; default: the recipe's.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the model and of the order."
)
@DEVICE
@THREADS
@click.option(
    "--trust-rows",
    is_flag=True,
    help="Accept another dataset if every selected row has the same id and content.",
)
@click.option(
    "--checkpoint-every",
    type=click.IntRange(0),
    default=100,
    show_default=True,
    help="Steps between checkpoints; 0: at each epoch's end.",
)
@JSON
@errors
def train(
    folder: Path,
    out: Path | None,
    data: Path | None,
    test: Path | None,
    epochs: int | None,
    batch_size: int | None,
    seed: int,
    device: str,
    threads: int | None,
    trust_rows: bool,
    checkpoint_every: int,
    as_json: bool,
) -> None:
    """Train the bundled model on the manifest in DIR; run it again after a stop and it goes on.

    Several processes, one a GPU: torchrun --nproc-per-node 2 -m tamis train DIR

    Example: tamis train runs/first --test test.parquet
    """
    import os
    from dataclasses import replace

    from tamis.manifests.reader import open_manifest
    from tamis.pipelines.dataset import locate
    from tamis.pipelines.resources import usable_cores
    from tamis.progress import TrainingProgress
    from tamis.training.trainer import planned
    from tamis.training.trainer import train as train_manifest

    manifest = open_manifest(folder)
    config = replace(planned(manifest), seed=seed, checkpoint_every=checkpoint_every)
    config = replace(config, epochs=epochs or config.epochs, batch_size=batch_size or config.batch_size)
    text = manifest.record["recipe"].get("train", {}).get("model", "text") == "text"
    share = max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # torchrun's processes share them
    with TrainingProgress() as progress:
        result = train_manifest(
            folder,
            out=out or folder / "training" / manifest.subset_id[:12],
            config=config,
            dataset=locate(manifest, data),
            test=test,
            trust_rows=trust_rows,
            device=device,
            threads=threads or (1 if text else share),
            on_progress=progress.on_step,
        )
    if result.ledger is None:  # another of torchrun's processes tells
        return
    facts = {
        "test": None if test is None else str(test),
        "whole_epochs": config.epochs * manifest.select.num_rows,
        "accuracy": result.accuracy,
        "loss": result.loss,
        "samples_seen": result.samples_seen,
        "seconds": round(result.seconds, 3),
        "checkpoint": str(result.checkpoint),
        "ledger": str(result.ledger),
    }
    print_facts(facts, as_json, _show_training)


@click.command()
@click.argument("data")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A folder for the blocks; made if missing.")
@click.option("--text", default="text", show_default=True, help="The column of the texts.")
@click.option("--block", type=click.IntRange(2), default=256, show_default=True, help="Tokens in a block.")
@click.option(
    "--vocabulary", type=click.IntRange(257), default=4096, show_default=True, help="Size of the tokenizer fitted."
)
@click.option("--tokenizer", type=click.Path(path_type=Path), help="A tokenizer.json to use instead of a new one.")
@JSON
@errors
def pack(data: str, out: Path, text: str, block: int, vocabulary: int, tokenizer: Path | None, as_json: bool) -> None:
    """Cut the texts of DATA into blocks of tokens, the samples of the model lm.

    Example: tamis pack corpus.jsonl --out packed --block 256
    """
    from tamis.training.packing import pack as pack_texts

    packed = pack_texts(data, out, text=text, block=block, vocabulary=vocabulary, tokenizer=tokenizer)
    facts = {
        "path": str(packed.path),
        "tokenizer": str(packed.tokenizer),
        "blocks": packed.blocks,
        "tokens": packed.tokens,
        "documents": packed.documents,
    }
    print_facts(facts, as_json, _show_packed)


def _show_packed(facts: Mapping[str, Any]) -> str:
    return (
        f"{facts['blocks']:,} blocks, {facts['tokens']:,} tokens, of {facts['documents']:,} texts\n"
        f"blocks     {facts['path']}\n"
        f"tokenizer  {facts['tokenizer']}\n"
        f"in a recipe: dataset: {{path: {facts['path']}, tokens: tokens, text: text}} and train: {{model: lm}}"
    )


def _show_training(facts: Mapping[str, Any]) -> str:
    on = f" on {facts['test']}" if facts["test"] else " of the training samples, when they were last seen"
    lines = [] if facts["accuracy"] is None else [f"accuracy   {facts['accuracy']:.4f}{on}"]
    left_out = facts["whole_epochs"] - facts["samples_seen"]
    lines += [
        f"loss       {facts['loss']:.4f}{on}",
        f"samples    {facts['samples_seen']:,} in {facts['seconds']:.1f} s"
        + (f"; {left_out / facts['whole_epochs']:.0%} left out by the sampler" if left_out > 0 else ""),
        f"checkpoint {facts['checkpoint']}",
        f"ledger     {facts['ledger']}",
    ]
    return "\n".join(lines)
