"""At equal tokens seen, does a small GPT learn more from a selected quarter of a corpus than from a random quarter?

The corpus has two domains: entries of the dictionary GCIDE, and paragraphs of the Linux kernel's documentation. 5 % of
the documents of each are held out by a hash of their text, before anything is packed or selected, less those that
nearly are in the training's (a size takes a part of both: see Scale); what is reported is the loss per token on the
held-out text of each domain, and the mean of the two. Every selection is made by `tamis.run` on the blocks of
`tamis pack`, anew for each seed; every training is the reference trainer's, with the same budget of tokens, the same
start values for all arms of a seed, and a learning rate that falls to 0 at the budget's end.

    python benchmarks/evidence/language.py [--seeds 5] [--scale cpu|gpu] [--quick]

The comparisons are fixed below, in COMPARISONS, and were before the first run. The learning rate was chosen before it,
by one training each of `full` and `random` with seed 99 on a larger corpus: at 2e-3 the two were level (4.329 and
4.322), at 3e-3 random was the better by .07 (4.310 and 4.241), which was taken for noise; at 1e-3 and 6e-3 full was
worse. One more pair went 4 times through all of a smaller corpus, and 16 times through a quarter of it: 4.255 and
4.675, so that there a selection would have more to win. The size is what one shared core carries: it was cut by two
fifths when one training (`full`, seed 1) of the first choice had finished. Seeds are outermost, and finished trainings
are kept under .cache/evidence/language: a run that is stopped goes on, and `--seeds N` with fewer seeds reports those
that are there.

`--scale gpu` is written for whoever has a GPU: all of the corpus, a model of 8 layers of width 512, bfloat16. It has
never been run: nothing in the results is of that size.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from _beside import ROOT, fetch
from _beside import measure as _measure

import tamis
from tamis.manifests.atomic import write_atomic
from tamis.manifests.canonical import digest
from tamis.pipelines.finished import finished_of
from tamis.training import Blocks, TrainConfig, fit, pack
from tamis.training.break_even import selection_seconds
from tamis.training.learner import Ragged
from tamis.training.packing import BLOCKS, TOKENIZER
from tamis.training.redraws import Redraws
from tamis.training.significance import FEWEST_SEEDS, LEVEL, differences, half_interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from tamis.manifests.reader import Manifest

CACHE = ROOT / ".cache" / "evidence" / "language"
DOMAINS = ("dictionary", "kernel")
HELD_OUT = 0.05
BUDGET = 0.25

RANDOM, RANDOM_AGAIN = "random", "random, drawn again"
FULL, FULL_LINUPPER = "full", "full, LinUpper"
ONE, TENTH, HUNDREDTH, SCALE_FREE = (f"INGENIOUS, {what}" for what in ("T = 1", "T = .1", "T = .01", "scale-free"))
FACILITY = "dedup, facility location"

# What makes each subset: the stages after the embedding.
_INGENIOUS = {"kind": "select", "method": "ingenious", "budget": BUDGET}
SELECTIONS: dict[str, list[dict[str, Any]]] = {
    RANDOM: [{"kind": "select", "method": "random", "budget": BUDGET}],
    ONE: [{**_INGENIOUS, "temperature": 1.0}],
    TENTH: [{**_INGENIOUS, "temperature": 0.1}],
    HUNDREDTH: [{**_INGENIOUS, "temperature": 0.01}],
    SCALE_FREE: [{**_INGENIOUS, "scale_free": True}],
    FACILITY: [
        {"kind": "dedup", "eps": 0.05},
        {"kind": "select", "method": "facility_location", "budget": BUDGET},
    ],
}


@dataclass(frozen=True)
class ArmOf:
    """What an arm trains on, and what it changes in the settings.

    Attributes:
        selection: Whose rows, of `SELECTIONS`; None for all of them.
        changes: Fields of `TrainConfig`.
    """

    selection: str | None
    changes: Mapping[str, Any]


_AGAIN = ", drawn again"
REDRAWN = {name + _AGAIN: name for name in (ONE, HUNDREDTH, SCALE_FREE)}
ARMS: dict[str, ArmOf] = {
    FULL: ArmOf(None, {}),
    RANDOM: ArmOf(RANDOM, {}),
    RANDOM_AGAIN: ArmOf(None, {"sampler": "random", "prune_ratio": 1 - BUDGET}),
    ONE: ArmOf(ONE, {}),
    TENTH: ArmOf(TENTH, {}),
    HUNDREDTH: ArmOf(HUNDREDTH, {}),
    SCALE_FREE: ArmOf(SCALE_FREE, {}),
    **{again: ArmOf(once, {"sampler": "ingenious"}) for again, once in REDRAWN.items()},
    FACILITY: ArmOf(FACILITY, {}),
    FULL_LINUPPER: ArmOf(None, {"weights": "linupper", "r": 1.0}),
}
# What is tested, on the mean loss of both domains, with Holm's correction over all of it. Fixed before the first run.
COMPARISONS: tuple[tuple[str, str], ...] = (
    *((name, RANDOM) for name in ARMS if name != RANDOM),
    *((name, RANDOM_AGAIN) for name in REDRAWN),
    *REDRAWN.items(),
)


@dataclass(frozen=True)
class Scale:
    """The size of everything.

    Attributes:
        train_share: How much of the documents that are not held out is trained on.
        test_share: How much of those held out is measured on.
        vocabulary: Of the tokenizer, which is fitted on the documents to train on.
        block: Tokens in a block, a sample.
        passes: How often the budget goes through all blocks; through a quarter of them, four times as often.
        config: Of every training; its seed, total_samples and warm-up are set here.
    """

    train_share: float
    test_share: float
    vocabulary: int
    block: int
    passes: float
    config: TrainConfig


SCALES = {
    "cpu": Scale(0.0167, 0.2, 1024, 64, 2, TrainConfig(epochs=1, batch_size=16, lr=2e-3, width=96, layers=2)),
    "gpu": Scale(
        1.0,
        1.0,
        8192,
        256,
        2,
        TrainConfig(epochs=1, batch_size=64, lr=6e-4, width=512, layers=8, precision="bfloat16"),
    ),
    "quick": Scale(0.002, 0.01, 300, 32, 2, TrainConfig(epochs=1, batch_size=16, width=32, layers=1)),
}


@dataclass(frozen=True)
class Corpus:
    """What is trained on and measured on.

    Attributes:
        blocks: The file of blocks to train on.
        train: The same in memory.
        tests: Of each domain, its held-out text.
        kernel: bool of each block to train on, whether it begins in the kernel's documentation.
        facts: What the results say of it.
    """

    blocks: Path
    train: Blocks
    tests: dict[str, Blocks]
    kernel: npt.NDArray[np.bool_]
    facts: dict[str, Any]


def corpus(scale: Scale, folder: Path) -> Corpus:
    """Splits the documents by their hashes, and packs them; what is in the folder already is taken from there."""
    parts: dict[str, list[list[str]]] = {"train": [], "test": []}
    for path in (fetch.gcide(), fetch.kernel_docs()):
        texts = pq.read_table(path, columns=["text"])["text"].to_pylist()
        places = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64 for text in texts]
        limits = {"train": (HELD_OUT, HELD_OUT + (1 - HELD_OUT) * scale.train_share)}
        limits["test"] = (0.0, HELD_OUT * scale.test_share)
        for part, (low, high) in limits.items():
            parts[part].append([t for t, place in zip(texts, places, strict=True) if low <= place < high])
    files = {"train": [text for texts in parts["train"] for text in texts]}
    train = _written(folder / "train" / "texts.parquet", files["train"])
    known = {}
    for name, texts in zip(DOMAINS, parts["test"], strict=True):
        files[name], known[name] = unknown(folder / name, texts, train)
    for name, texts in files.items():
        home = folder / name
        if not (home / BLOCKS).exists():
            data = _written(home / "texts.parquet", texts)
            tokenizer = None if name == "train" else folder / "train" / TOKENIZER
            pack(data, home, block=scale.block, vocabulary=scale.vocabulary, tokenizer=tokenizer)
    read = {name: _blocks(folder / name / BLOCKS) for name in files}
    # All arms, and both tests, see one vocabulary: the model is the same whatever was selected.
    whole = Blocks(read["train"].tokens, scale.vocabulary, scale.block)
    tests = {name: Blocks(read[name].tokens, scale.vocabulary, scale.block) for name in DOMAINS}
    document = pq.read_table(folder / "train" / BLOCKS, columns=["document"])["document"].to_numpy()
    facts = {
        "documents": {name: len(texts) for name, texts in files.items()},
        "megabytes": {name: sum(len(text.encode()) for text in texts) / 1e6 for name, texts in files.items()},
        "blocks": {name: len(blocks) for name, blocks in read.items()},
        "tokens": {name: len(blocks.tokens.values) for name, blocks in read.items()},
        "held_out_near_training_documents": known,
        "unigram_loss": {name: unigram_loss(whole, tests[name]) for name in DOMAINS},
    }
    kernel = document >= len(parts["train"][0])
    facts["share_of_kernel_blocks"] = float(kernel.mean())
    return Corpus(folder / "train" / BLOCKS, whole, tests, kernel, facts)


def _blocks(path: Path) -> Blocks:
    tokens = pq.read_table(path, columns=["tokens"])["tokens"].combine_chunks()
    lengths = np.append(0, np.cumsum(tokens.value_lengths().to_numpy()))
    return Blocks(Ragged(tokens.flatten().to_numpy().astype(np.int32), lengths.astype(np.int64)))


def unigram_loss(train: Blocks, test: Blocks) -> float:
    """Loss per token of a model that knows only how often each token is (add-one smoothed): what a GPT must beat."""
    counts = np.bincount(train.tokens.values, minlength=train.vocabulary) + 1.0
    return float(-np.log(counts / counts.sum())[test.tokens.values].mean())


def unknown(folder: Path, texts: list[str], train: Path) -> tuple[list[str], int]:
    """Held-out texts without those that nearly are in the training's (or in one another), at a cosine of .95.

    Returns:
        (The others, how many were near to a training document.)
    """
    data = _written(folder / "held-out.parquet", texts)
    stages = [
        {"kind": "embed", "encoder": "lsa"},
        {"kind": "dedup", "eps": 0.05, "against": [str(train)], "against_action": "drop"},
    ]
    manifest = _run(folder / "dedup", data, {"text": "text"}, stages, 0)
    kept = np.sort(manifest.select["row"].to_numpy())
    return [texts[row] for row in kept], int(_facts(manifest, "dedup")["leaks"])


def _written(path: Path, texts: list[str]) -> Path:
    """A file of texts, written if it is not there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"text": texts}), path)
    return path


def _run(out: Path, data: Path, fields: dict[str, str], stages: list[dict[str, Any]], seed: int) -> Manifest:
    dataset = {"path": str(data), **fields}
    tamis.run({"name": "language", "seed": seed, "dataset": dataset, "stages": stages}, out=out, executor="sync")
    return tamis.open_manifest(out)


def _facts(manifest: Manifest, kind: str) -> dict[str, Any]:
    """The facts of all tasks of the run's stages of a kind."""
    stages = [stage for stage in finished_of(manifest).stages if stage.kind == kind]
    return {key: value for stage in stages for made in stage.made.values() for key, value in made.facts.items()}


def select(name: str, of: Corpus, folder: Path, seed: int) -> Manifest:
    """The manifest of one selection, by the library's own run on the blocks."""
    embed = [{"kind": "embed", "encoder": "lsa"}]
    stages = SELECTIONS[name] if name == RANDOM else embed + SELECTIONS[name]
    out = folder / f"seed {seed}" / name
    return _run(out, of.blocks, {"tokens": "tokens", "text": "text"}, stages, seed)


def describe(manifest: Manifest, of: Corpus) -> dict[str, Any]:
    """What the results say of a subset."""
    rows = manifest.select["row"].to_numpy()
    overlap = _facts(manifest, "select").get("overlap")
    return {
        "subset_id": manifest.subset_id,
        "rows": len(rows),
        "seconds": selection_seconds(manifest),
        "share_of_kernel_blocks": float(of.kernel[rows].mean()),
        "overlap": overlap and {key: value / len(rows) for key, value in overlap.items()},
    }


def train(
    arm: ArmOf, manifest: Manifest | None, of: Corpus, scale: Scale, seed: int, keep: Path, device: str
) -> dict[str, Any]:
    """One training: its loss on each domain, and its time; taken from `keep` if it was finished before."""
    total = round(scale.passes * len(of.train))
    steps = total // scale.config.batch_size
    config = replace(scale.config, seed=seed, total_samples=total, **arm.changes)
    if config.weights != "uniform":
        config = replace(config, warmup_steps=steps // 20)  # 1,000 of 20,000 in the paper
    rows, redraws = np.arange(len(of.train)), None
    if config.sampler == "ingenious":
        assert manifest is not None
        redraws = Redraws.of(manifest)
        rows, redraws = redraws.rows, redraws.at(np.arange(len(redraws.rows)))
    elif manifest is not None:
        rows = np.sort(manifest.select["row"].to_numpy())
    samples = of.train.take(rows)
    content = {
        "config": asdict(config),
        "samples": samples.digest(),
        "redraws": None if redraws is None else redraws.digest(),
        "tests": [test.digest() for test in of.tests.values()],
        "device": device,
        "torch": str(torch.__version__),
    }
    path = keep / f"{digest(content)}.json"
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    out = keep / f"training {os.getpid()}"
    shutil.rmtree(out, ignore_errors=True)
    began = time.process_time()
    losses = {}
    for domain, test in of.tests.items():  # the second call finds the training finished, and only measures
        result = fit(samples, np.ones(len(rows), np.float32), test, config, out, redraws=redraws, device=device)
        losses[domain] = result.loss
        if domain == DOMAINS[0]:
            cpu_seconds = time.process_time() - began
    shutil.rmtree(out)
    found = {
        "losses": losses,
        "loss": float(np.mean(list(losses.values()))),
        "samples_seen": result.samples_seen,
        "seconds": result.seconds,
        "cpu_seconds": cpu_seconds,
    }
    write_atomic(path, json.dumps(found).encode())
    return found


def summary(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], selected: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """Means over seeds with half the width of their 95 % intervals, and the comparisons."""
    arms: dict[str, Any] = {}
    for name, trained in runs.items():
        values = {"mean": [run["loss"] for run in trained]}
        values |= {domain: [run["losses"][domain] for run in trained] for domain in DOMAINS}
        arms[name] = {
            "runs": list(trained),
            "loss": {key: float(np.mean(each)) for key, each in values.items()},
            "half_interval": {key: half_interval(each) for key, each in values.items()},
            "training_seconds": float(np.median([run["seconds"] for run in trained])),
            "training_cpu_seconds": float(np.median([run["cpu_seconds"] for run in trained])),
        }
        own = selected.get(ARMS[name].selection or "")
        if own:
            arms[name]["selections"] = list(own)
    losses = {name: [run["loss"] for run in trained] for name, trained in runs.items()}
    return {"arms": arms, "comparisons": [asdict(one) for one in differences(losses, COMPARISONS)]}


def tables(results: Mapping[str, Any]) -> str:
    """The arms and the comparisons, as Markdown."""
    facts, seeds = results["corpus"], results["seeds"]
    unigram = facts["unigram_loss"]
    lines = [
        f"{facts['tokens']['train']:,} tokens of GCIDE and of the kernel's documentation in blocks of "
        f"{results['block']}, a GPT of {results['config']['layers']} layers of width {results['config']['width']}, "
        f"{results['tokens_seen']:,} tokens seen by every training (the full data {results['passes']:g} times, a "
        f"quarter {results['passes'] / BUDGET:g} times), {seeds} seeds. Loss per token on held-out documents that "
        "are not nearly in the training's, lower is better, ± half the 95 % interval over seeds; knowing only how "
        "often each token is gives "
        f"{unigram['dictionary']:.2f} and {unigram['kernel']:.2f}.",
        "",
        "| trained on | mean of both | dictionary | kernel | kernel's share of blocks | two draws have in common "
        "| selecting, s | training, CPU s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, arm in sorted(results["arms"].items(), key=lambda item: item[1]["loss"]["mean"]):
        cells = [
            f"{arm['loss'][key]:.3f}"
            + ("" if arm["half_interval"][key] is None else f" ± {arm['half_interval'][key]:.3f}")
            for key in ("mean", *DOMAINS)
        ]
        own = arm.get("selections", [])
        share = np.mean([one["share_of_kernel_blocks"] for one in own]) if own else facts["share_of_kernel_blocks"]
        common = [one["overlap"] for one in own if one["overlap"]]
        overlap = f"{100 * np.mean([one['overlap_of_two_draws'] for one in common]):.0f} %" if common else ""
        seconds = f"{np.median([one['seconds'] for one in own]):.0f}" if own else ""
        lines.append(
            f"| {name} | {' | '.join(cells)} | {100 * share:.0f} % | {overlap} | {seconds} "
            f"| {arm['training_cpu_seconds']:.0f} |"
        )
    few = "" if seeds >= FEWEST_SEEDS else f" With fewer than {FEWEST_SEEDS} seeds none of them says anything."
    lines += [
        "",
        "The comparisons fixed before the run, on the mean of both domains, paired by seed; p of the t-test, and "
        f"after Holm's correction over all {len(results['comparisons'])}.{few}",
        "",
        "| trained on | against | difference in loss | p | corrected | |",
        "|---|---|---:|---:|---:|---|",
    ]
    for one in results["comparisons"]:
        p, corrected = ("" if value is None else f"{value:.2g}" for value in (one["p"], one["corrected"]))
        sure = one["corrected"] is not None and one["corrected"] < LEVEL and seeds >= FEWEST_SEEDS
        word = ("lower" if one["mean"] < 0 else "higher") if sure else "not distinguishable"
        lines.append(f"| {one['name']} | {one['against']} | {one['mean']:+.4f} | {p} | {corrected} | {word} |")
    return "\n".join(lines)


@click.command()
@click.option("--seeds", type=click.IntRange(2), default=5, show_default=True)
@click.option("--scale", type=click.Choice(["cpu", "gpu"]), default="cpu", show_default=True)
@click.option("--quick", is_flag=True, help="A smoke run on few texts; prints, and writes nothing.")
@click.option("--repeat", type=click.IntRange(1), default=1, hidden=True)
def main(seeds: int, scale: str, quick: bool, repeat: int) -> None:  # noqa: ARG001
    """Measure, and write results/evidence_language.json (of the GPU: evidence_language_gpu.json)."""
    name = "quick" if quick else scale
    size, device = SCALES[name], "cuda" if name == "gpu" else "cpu"
    home = CACHE / name / digest(asdict(size))[:12]
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    selected: dict[str, list[dict[str, Any]]] = {selection: [] for selection in SELECTIONS}
    with _measure.one_thread():
        of = corpus(size, home)
        for seed in range(1, (2 if quick else seeds) + 1):
            manifests = {}
            for selection in SELECTIONS:
                manifests[selection] = select(selection, of, home, seed)
                selected[selection].append(describe(manifests[selection], of))
                _say(f"seed {seed}: {selection}: {selected[selection][-1]}")
            for arm, what in ARMS.items():
                manifest = None if what.selection is None else manifests[what.selection]
                runs[arm].append(train(what, manifest, of, size, seed, home / "trainings", device))
                _say(f"seed {seed}: {arm}: {runs[arm][-1]}")
    results = {
        "corpus": of.facts,
        "seeds": len(runs[FULL]),
        "scale": name,
        "device": device,
        "threads": 1,
        "budget": BUDGET,
        "held_out": HELD_OUT,
        "block": size.block,
        "vocabulary": size.vocabulary,
        "passes": size.passes,
        "tokens_seen": runs[FULL][0]["samples_seen"] * size.block,
        "config": asdict(size.config),
        **summary(runs, selected),
    }
    _say(tables(results))
    _measure.finish("evidence_language" + "_gpu" * (name == "gpu"), results, not quick)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
