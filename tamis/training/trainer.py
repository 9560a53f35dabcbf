"""The reference trainer: trains a bundled model on a manifest's rows, and writes a ledger of losses.

`fit` is the core and takes samples in memory; `train` is the shell around it that reads a manifest and its dataset.
On a CPU the same inputs and number of threads give the same bits, whether the training ran through or was killed and
resumed. Under torchrun each process takes its share of every batch, and all of them end with the same model.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from tamis.errors import DamagedManifestError, DataError, NonFiniteLossError, OutputError, RecipeError, TamisError
from tamis.manifests.atomic import sweep
from tamis.manifests.canonical import digest
from tamis.manifests.ledger import commit_ledger
from tamis.manifests.reader import open_manifest
from tamis.pipelines.lock import locked
from tamis.selectors import dynamic
from tamis.training import checkpoint
from tamis.training.learner import Learner, Samples, count_classes, digest_of
from tamis.training.ledger import Ledger
from tamis.training.ranks import Ranks, join, process_group, resolve
from tamis.training.redraws import Redraws
from tamis.training.rows import read_test, read_training
from tamis.training.samplers import PlanSampler

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from tamis.manifests.reader import Manifest

SAMPLERS = ("full", "seta", "infobatch", "random", "hard", "ingenious")
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How to train.

    Attributes:
        epochs: Passes over the data; also what SeTa and InfoBatch plan for.
        batch_size: Samples a step, of all processes together.
        lr: Learning rate of the first step; it falls linearly to 0 at the end of training. None is the model's own.
        seed: Of the start values and of every epoch's order.
        sampler: "full" (everything, in random order), "seta", "infobatch", "random", "hard" (the highest losses), or
            "ingenious" (the draw of an INGENIOUS manifest, and every epoch another from its gains).
        weights: How a batch is weighed by loss; see `tamis.training.weights.reweight`.
        r: Temperature of the weights.
        clip: Whether to hold every weight of a batch at or below 2/m.
        warmup_steps: Steps at the start that weigh uniformly.
        token_weights: Whether a block of tokens weighs as much as it has tokens; language models only.
        num_group: Loss groups of SeTa.
        window_scale: Fraction of the groups in SeTa's window.
        prune_ratio: Fraction that the sampler leaves out; None is the sampler's own default (0; InfoBatch and hard
            0.5).
        delta: Fraction of the epochs that prune.
        rule: SeTa's "paper" or "code".
        ceiling: Fraction of the seen samples, those of the highest losses, that every epoch leaves out; see
            `tamis.selectors.dynamic.with_ceiling`.
        epoch_size: "pruned" or "fixed"; see `tamis.training.samplers.PlanSampler`.
        weight_decay: Of AdamW.
        precision: "float32", or "bfloat16" for automatic mixed precision.
        width: Width of the language model, a multiple of 32.
        layers: Layers of the language model.
        total_samples: Stop after exactly so many samples, however many epochs that takes; None stops after
            `epochs`. Of w processes each does as many: the last step may go beyond by up to w - 1.
        checkpoint_every: Steps between checkpoints inside an epoch; 0 writes them at the ends of epochs only.
    """

    epochs: int
    batch_size: int = 128
    lr: float | None = None
    seed: int = 0
    sampler: str = "full"
    weights: str = "uniform"
    r: float = 0.4
    clip: bool = False
    warmup_steps: int = 0
    token_weights: bool = False
    num_group: int = 10
    window_scale: float = 0.5
    prune_ratio: float | None = None
    delta: float = 0.875
    rule: str = "paper"
    ceiling: float = 0.0
    epoch_size: str = "pruned"
    weight_decay: float = 0.01
    precision: str = "float32"
    width: int = 128
    layers: int = 4
    total_samples: int | None = None
    checkpoint_every: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the training is, after a step.

    Attributes:
        epoch: From 0.
        position: Samples of this epoch that are done.
        epoch_samples: Samples that this epoch has.
        steps: Steps since the start.
        samples_seen: Samples since the start.
        loss: The step's weighted loss.
    """

    epoch: int
    position: int
    epoch_samples: int
    steps: int
    samples_seen: int
    loss: float


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What came of a training.

    Attributes:
        accuracy: On the test set, in 0 .. 1; None without a test set, and for a language model.
        loss: Mean cross-entropy on the test set (a language model's by token); without one, the mean of the training
            samples' last losses.
        samples_seen: How many samples the training went through, counting repetitions.
        seconds: Time of the training steps, over all resumptions; reading, features and evaluation are not in
            it.
        checkpoint: The last checkpoint's record, or None if no folder was given.
        ledger: The training ledger, or None if no folder was given.
    """

    accuracy: float | None
    loss: float
    samples_seen: int
    seconds: float
    checkpoint: Path | None
    ledger: Path | None


OnProgress = Callable[[Progress], None]


def planned(manifest: Manifest) -> TrainConfig:
    """How the manifest's recipe says to train: its `train` section, and for SeTa its schedule.

    `dataclasses.replace` changes what should be otherwise.
    """
    section = manifest.record["recipe"].get("train", {})
    names = {field.name for field in fields(TrainConfig)}
    given: dict[str, Any] = {"epochs": 12, "sampler": "seta", "weights": "linupper"}
    given |= {name: value for name, value in section.items() if name in names and value is not None}
    if given["sampler"] == "seta":
        schedule = manifest.record["schedule"] or {}
        options = ("num_group", "window_scale", "prune_ratio", "delta", "rule")
        given = {name: schedule[name] for name in options if name in schedule} | given
    try:
        return TypeAdapter(TrainConfig).validate_python(given)
    except ValidationError as error:
        raise DamagedManifestError(f"the manifest's recipe does not say how to train: {error}") from error


def train(
    run_or_manifest: str | Path,
    *,
    out: str | Path,
    config: TrainConfig | None = None,
    dataset: str | Path | None = None,
    test: str | Path | None = None,
    trust_rows: bool = False,
    device: str = "cpu",
    threads: int = 1,
    on_progress: OnProgress | None = None,
) -> TrainResult:
    """Trains a bundled model on a manifest's rows and weights; writes checkpoints and the ledger.

    The model is the one of the recipe's `train` section. With the sampler "ingenious" the rows are all that the
    manifest's draw could take, and the ledger tells of them. If `out` holds a checkpoint of the same training, that
    training is continued. Under torchrun every process calls this alike, and the first writes.

    Args:
        run_or_manifest: A run folder or a manifest folder.
        out: Folder for the checkpoint and the ledger; made if missing. Several processes need to see the same one.
        config: How to train; by default as `planned`.
        dataset: Where the dataset is; by default where the run read it.
        test: A file, glob or folder with the same columns, to measure on.
        trust_rows: Accept another dataset if every row of the manifest is in it, at the same place, with the
            same id and content.
        device: "cpu", "cuda", "cuda:1", ..., or "auto" for a GPU where there is one.
        threads: CPU threads of the training.
        on_progress: Called after every step, in the first process.

    Returns:
        Test accuracy, losses, counts and paths.

    Raises:
        DamagedManifestError: The manifest or the checkpoint is damaged.
        DatasetMismatchError: The dataset is not the manifest's, or `dataset` is needed to find it.
        DataError: A column is missing or unusable.
        RecipeError: An option is out of its range, or the manifest lacks a column that the model needs.
        NonFiniteLossError: A loss became NaN or infinite; the last checkpoint is kept.
        OutputError: `out` cannot be written, or holds another training.
    """
    from tamis.pipelines.dataset import locate

    manifest = open_manifest(run_or_manifest)
    if dataset is None:
        dataset = locate(manifest)
    section = manifest.record["recipe"].get("train", {})
    model, size = section.get("model", "text"), section.get("image_size")
    config = planned(manifest) if config is None else config
    redraws = Redraws.unweighted(manifest) if config.sampler == "ingenious" else None
    rows = None if redraws is None else redraws.rows
    read = read_training(manifest, dataset, model, rows=rows, image_size=size, trust_rows=trust_rows)
    held_out = None if test is None else read_test(manifest, test, model, read.samples, size)[0]
    with process_group(choose_device(device)):
        return fit(
            read.samples,
            read.weights,
            held_out,
            config,
            Path(out),
            on_progress,
            ids=read.ids,
            rows=read.rows,
            redraws=None if redraws is None else redraws.at(np.arange(len(read.rows))),
            device=device,
            threads=threads,
        )


def fit(
    samples: Samples,
    sample_weights: NDArray[np.float32],
    test: Samples | None,
    config: TrainConfig,
    out: Path | None = None,
    on_progress: OnProgress | None = None,
    *,
    ids: Sequence[str] | None = None,
    rows: NDArray[np.int64] | None = None,
    redraws: Redraws | None = None,
    device: str = "cpu",
    threads: int = 1,
) -> TrainResult:
    """Trains a model on samples: a `Texts`, `Images` or `Blocks`.

    Args:
        samples: k of them.
        sample_weights: float32 [k] above 0.
        test: Samples of the same kind to measure on, or None.
        config: How to train.
        out: Folder for checkpoints and ledger, made if missing; a checkpoint of the same training in it is
            continued. None keeps nothing.
        on_progress: Called after every step, in the first process.
        ids: k sample ids, for the ledger and for errors; by default the positions.
        rows: int64 [k], the samples' rows in the dataset, for the ledger; by default the positions.
        redraws: What the sampler "ingenious" draws from, at positions in the samples; None for every other sampler.
        device: As for `train`.
        threads: CPU threads of the training; the caller's setting comes back afterwards.

    Returns:
        Test accuracy, losses, counts and paths.

    Raises:
        DataError: The arguments do not fit together.
        RecipeError: An option is out of its range.
        NonFiniteLossError: A loss became NaN or infinite; the message names the samples, and the last
            checkpoint is kept.
        OutputError: `out` cannot be written, or holds another training.
        LockedError: Another training writes to `out` now.
        DamagedManifestError: The checkpoint in `out` is damaged.
    """
    n = len(samples)
    ranks = resolve(None, None)
    if config.lr is None:
        config = replace(config, lr=samples.LR)
    _check(samples, sample_weights, test, config, ranks)
    if (redraws is None) == (config.sampler == "ingenious"):
        raise RecipeError(
            f"sampler is {config.sampler!r} and redraws were {'not ' * (redraws is None)}given; the sampler ingenious, "
            "and no other, needs them: Redraws.of(manifest)"
        )
    if redraws is not None and redraws.rows.max(initial=-1) >= n:
        raise DataError(
            f"the redraws have the position {redraws.rows.max()}, and there are {n} samples; use Redraws.at"
        )
    ids = [str(i) for i in range(n)] if ids is None else ids
    rows = np.arange(n) if rows is None else rows
    if len(ids) != n or len(rows) != n:
        raise DataError(f"{n} samples were given with {len(ids)} ids and {len(rows)} rows; the counts must be equal")
    first = ranks.rank == 0
    with _threads(threads), _alone_in(out if first else None, ranks):
        policy = _policy(config) if redraws is None else redraws.policy(config.seed)
        state = _State(samples, test, sample_weights, config, policy, choose_device(device), ranks)
        key = _key(samples, state.learner, sample_weights, ids, rows, redraws, config)
        if out is not None:
            state.load(out, key)
        save = partial(state.save, out, key) if out is not None and first else None
        _run(state, samples, config, save, on_progress if first else None, ids)
        accuracy, loss = None, float(np.nanmean(state.sampler.scores.live))
        if test is not None:
            accuracy, loss = _evaluate(state.learner, test)
        path = None
        if out is not None and first:
            names = max(samples.classes, () if test is None else test.classes, key=len)
            table = state.ledger.table(state.sampler.scores, ids, rows, names)
            path = commit_ledger(out, table, {"training": key, "samples_seen": state.samples_seen})
    record = None if out is None else out / checkpoint.RECORD
    return TrainResult(accuracy, loss, state.samples_seen, state.seconds, record, path)


class _State:
    """All that a training changes, and that a checkpoint therefore holds."""

    def __init__(
        self,
        samples: Samples,
        test: Samples | None,
        sample_weights: NDArray[np.float32],
        config: TrainConfig,
        policy: dynamic.Policy,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        self.ranks = ranks
        self.device = device
        self.learner: Learner = samples.learner(test, config, device, ranks)
        self.sampler = PlanSampler(
            len(samples),
            policy,
            seed=config.seed,
            epoch_size=config.epoch_size,
            strategy=config.weights,
            r=config.r,
            clip=config.clip,
            warmup_steps=config.warmup_steps,
            importance=sample_weights,
        )
        self.ledger = Ledger(len(samples), count_classes(samples, test))
        self.samples_seen = 0
        self.seconds = 0.0
        self.done = False

    def save(self, folder: Path, key: str) -> None:
        """Writes a checkpoint."""
        counters = {
            "sampler": self.sampler.state_dict(),
            "samples_seen": self.samples_seen,
            "seconds": self.seconds,
            "done": self.done,
        }
        scores = self.sampler.scores.state_dict()
        arrays = {f"ledger.{name}": array for name, array in self.ledger.arrays().items()}
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        tensors |= {f"scores.{name}": tensor for name, tensor in scores.items() if name != "version"}
        tensors |= {f"learner.{name}": tensor for name, tensor in self.learner.tensors().items()}
        checkpoint.save(folder, key, counters, tensors)

    def load(self, folder: Path, key: str) -> None:
        """Goes on from the folder's checkpoint, if there is one."""
        found = checkpoint.load(folder, key)
        if found is not None:
            counters, tensors = found

            def part(prefix: str) -> dict[str, torch.Tensor]:
                return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

            self.learner.restore(part("learner."))
            self.ledger.restore({name: tensor.numpy() for name, tensor in part("ledger.").items()})
            version = self.sampler.scores.state_dict()["version"]
            self.sampler.scores.load_state_dict({"version": version, **part("scores.")})
            self.sampler.load_state_dict(counters["sampler"])
            self.samples_seen, self.seconds = counters["samples_seen"], counters["seconds"]
            self.done = counters["done"]
        steps = join(torch.tensor([self.sampler.steps]), self.ranks)
        if (steps != steps[0]).any():
            raise OutputError(
                f"the processes found checkpoints of steps {steps.tolist()} in {folder}; "
                "all of them must see the same folder"
            )


def _run(
    state: _State,
    samples: Samples,
    config: TrainConfig,
    save: Callable[[], None] | None,
    on_progress: OnProgress | None,
    ids: Sequence[str],
) -> None:
    """Trains from where the state is to the end."""
    sampler = state.sampler
    share = config.batch_size // state.ranks.size
    while not state.done:
        order = np.fromiter(sampler, dtype=np.int64)
        for start in range(0, order.size, share):
            batch = order[start : start + share]
            if config.total_samples is not None:
                left = config.total_samples - state.samples_seen
                if left <= 0:
                    break
                batch = batch[: -(-left // state.ranks.size)]
            began = time.perf_counter()
            loss = _step(state, samples, batch, _progress(state, config), config, ids)
            state.seconds += time.perf_counter() - began
            if save is not None and config.checkpoint_every and sampler.steps % config.checkpoint_every == 0:
                save()
            if on_progress is not None:
                on_progress(
                    Progress(
                        sampler.epoch, sampler.position, sampler.epoch_samples, sampler.steps, state.samples_seen, loss
                    )
                )
        if config.total_samples is None:
            state.done = sampler.epoch + 1 == config.epochs
        else:
            state.done = state.samples_seen >= config.total_samples
        if not state.done:
            sampler.set_epoch(sampler.epoch + 1)
        if save is not None:
            save()


def _step(
    state: _State,
    samples: Samples,
    batch: NDArray[np.int64],
    progress: float,
    config: TrainConfig,
    ids: Sequence[str],
) -> float:
    """One optimiser step; returns the weighted loss of all processes' batch."""
    joined = join(torch.from_numpy(batch), state.ranks).numpy()
    real = min(len(joined), state.sampler.epoch_samples - state.sampler.position)
    with torch.autocast(state.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        outcome = state.learner.outcome(samples, batch, joined, real)
    try:
        weights = state.sampler.observe(batch, outcome.losses, outcome.token_counts if config.token_weights else None)
    except NonFiniteLossError as error:
        names = ", ".join(repr(ids[i]) for i in error.positions[:10])
        raise NonFiniteLossError(
            f"at step {state.sampler.steps} the loss of {len(error.positions)} samples is NaN or infinite: {names}; "
            "the last checkpoint is kept. Lower lr, or look at these samples",
            error.positions,
        ) from error
    (weights * outcome.losses).sum().backward()  # type: ignore[no-untyped-call]
    assert config.lr is not None
    state.learner.update(config.lr * (1 - progress))
    seen = state.sampler.last
    assert seen is not None
    probabilities = None
    if outcome.logits is not None:
        probabilities = join(outcome.logits.detach().float().softmax(1), state.ranks).cpu().numpy()
    state.ledger.record(seen, probabilities)
    state.samples_seen += seen.ids.size
    return float(seen.weights @ seen.losses)


def _progress(state: _State, config: TrainConfig) -> float:
    """How much of the training is done, in 0 .. 1. Pruned epochs count as whole ones."""
    if config.total_samples is not None:
        return state.samples_seen / config.total_samples
    sampler = state.sampler
    return (sampler.epoch + sampler.position / sampler.epoch_samples) / config.epochs


@torch.no_grad()
def _evaluate(learner: Learner, samples: Samples) -> tuple[float | None, float]:
    """Accuracy, where there are labels, and mean cross-entropy."""
    n, correct, total, count = len(samples), 0, 0.0, 0.0
    labels = samples.labels
    for start in range(0, n, samples.evaluated_at_once):
        rows = np.arange(start, min(start + samples.evaluated_at_once, n))
        outcome = learner.outcome(samples, rows)
        counts = torch.ones_like(outcome.losses) if outcome.token_counts is None else outcome.token_counts
        total += float((outcome.losses.double() * counts).sum())
        count += float(counts.double().sum())
        if labels is not None and outcome.logits is not None:
            correct += int((outcome.logits.argmax(1).cpu().numpy() == labels[rows]).sum())
    return None if labels is None else correct / n, total / count


def _policy(config: TrainConfig) -> dynamic.Policy:
    return dynamic.with_ceiling(_uncapped(config), config.ceiling)


def _uncapped(config: TrainConfig) -> dynamic.Policy:
    pruning: dict[str, Any] = {} if config.prune_ratio is None else {"prune_ratio": config.prune_ratio}
    if config.sampler == "seta":
        return partial(
            dynamic.seta,
            epochs=config.epochs,
            num_group=config.num_group,
            window_scale=config.window_scale,
            delta=config.delta,
            rule=config.rule,
            **pruning,
        )
    if config.sampler == "infobatch":
        return partial(dynamic.infobatch, epochs=config.epochs, delta=config.delta, **pruning)
    if config.sampler == "hard":
        return partial(dynamic.hard_first, epochs=config.epochs, delta=config.delta, **pruning)
    return partial(dynamic.random, **pruning)


def _check(
    samples: Samples,
    sample_weights: NDArray[np.float32],
    test: Samples | None,
    config: TrainConfig,
    ranks: Ranks,
) -> None:
    """Refuses what the parts below do not refuse themselves."""
    for name, allowed in (("sampler", SAMPLERS), ("precision", PRECISIONS)):
        if getattr(config, name) not in allowed:
            raise RecipeError(f"{name} is {getattr(config, name)!r}; it must be one of {', '.join(allowed)}")
    for name in ("prune_ratio", "ceiling"):
        if config.sampler == "full" and getattr(config, name):
            raise RecipeError(f"sampler full leaves nothing out, but {name} was given; use sampler random")
    least = {"epochs": 1, "batch_size": 1, "total_samples": 1, "checkpoint_every": 0, "layers": 1, "width": 32}
    for name, bound in least.items():
        value = getattr(config, name)
        if value is not None and value < bound:
            raise RecipeError(f"{name} is {value}; it must be at least {bound}")
    if config.batch_size % ranks.size:
        raise RecipeError(f"batch_size is {config.batch_size}; {ranks.size} processes must be able to share it")
    if not 0 <= config.seed < 2**63:
        raise RecipeError(f"seed is {config.seed}; it must be in 0 .. 2^63 - 1")
    if config.width % 32:
        raise RecipeError(f"width is {config.width}; it must be a multiple of 32")
    if config.lr is None or not 0 < config.lr < np.inf:
        raise RecipeError(f"lr is {config.lr}; it must be above 0 and finite")
    if len(sample_weights) != len(samples):
        raise DataError(f"{len(samples)} samples and {len(sample_weights)} weights; the counts must be equal")
    if test is not None and type(test) is not type(samples):
        raise DataError(
            f"the test samples are {type(test).__name__}, those to train on {type(samples).__name__}; "
            "they must be of one kind"
        )
    if test is not None:
        common = min(len(samples.classes), len(test.classes))
        if samples.classes[:common] != test.classes[:common]:
            raise DataError(
                f"the classes to train on are {samples.classes[:10]}, those of the test {test.classes[:10]}; labels "
                "are positions in them, so that they must begin alike"
            )


def _key(
    samples: Samples,
    learner: Learner,
    sample_weights: NDArray[np.float32],
    ids: Sequence[str],
    rows: NDArray[np.int64],
    redraws: Redraws | None,
    config: TrainConfig,
) -> str:
    """Identity of a training: everything that its result depends on, but the machine and its threads."""
    options = {name: value for name, value in asdict(config).items() if name != "checkpoint_every"}
    content = {
        "samples": samples.digest(),
        "shapes": {name: list(tensor.shape) for name, tensor in learner.tensors().items()},
        "weights": digest_of(sample_weights, rows),
        "ids": list(ids),
    }
    if redraws is not None:
        content["redraws"] = [redraws.digest(), digest_of(redraws.rows)]
    return digest({"config": options, **content})


def choose_device(name: str) -> torch.device:
    """The device of a name; under torchrun "cuda" is this process's own GPU.

    Raises:
        RecipeError: There is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RecipeError(f"device is {name!r}; it must be auto, cpu, cuda or cuda:NUMBER") from error
    if device.type == "cuda":
        if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
            raise RecipeError(f"device is {name!r}, and PyTorch sees {torch.cuda.device_count()} GPUs here; use cpu")
        torch.cuda.set_device(device)
    elif device.type != "cpu":
        raise RecipeError(f"device is {name!r}; it must be auto, cpu, cuda or cuda:NUMBER")
    return device


@contextmanager
def _alone_in(folder: Path | None, ranks: Ranks) -> Iterator[None]:
    """Holds the folder's lock, if there is one to hold; where the first process cannot, all of them raise."""
    with ExitStack() as held:
        failed: TamisError | None = None
        try:
            if folder is not None:
                held.enter_context(locked(folder))
                sweep(folder)
        except TamisError as error:
            failed = error
        told = join(torch.tensor([failed is not None]), ranks)
        if failed is not None:
            raise failed
        if told.any():
            raise OutputError("the first process cannot write to the folder of the training; its message says why")
        yield


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """So many numeric threads inside, since sums depend on them; the caller's setting afterwards."""
    if count < 1:
        raise RecipeError(f"threads is {count}; it must be at least 1")
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
