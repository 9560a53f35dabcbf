"""The reference trainer: trains a small text classifier on a manifest's rows, and writes a ledger of losses.

`fit` is the core and takes arrays; `train` is the shell around it that reads a manifest and its dataset. One
thread, one order: the same inputs give the same bits, whether the training ran through or was killed and
resumed.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from tamis.errors import (
    DamagedManifestError,
    DataError,
    DatasetMismatchError,
    NonFiniteLossError,
    OutputError,
    RecipeError,
)
from tamis.manifests.atomic import write_atomic
from tamis.manifests.canonical import canonical_json, digest, write_ipc
from tamis.manifests.reader import Manifest, open_manifest
from tamis.pipelines.lock import locked
from tamis.pipelines.stages.score import LEDGER
from tamis.selectors import dynamic
from tamis.training.samplers import PlanSampler
from tamis.training.text import Features, LazyAdamW, TextClassifier, featurise

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

SAMPLERS = ("full", "seta", "infobatch", "random")

CHECKPOINT = "checkpoint.json"

_CHECKPOINT_VERSION = 1
_EVAL_ROWS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How to train.

    Attributes:
        epochs: Passes over the data; also what SeTa and InfoBatch plan for.
        batch_size: Samples a step.
        lr: Learning rate of the first step; it falls linearly to 0 at the end of training.
        seed: Of the start values and of every epoch's order.
        sampler: "full" (everything, in random order), "seta", "infobatch" or "random".
        weights: How a batch is weighed by loss; see `tamis.training.weights.reweight`.
        r: Temperature of the weights.
        clip: Whether to hold every weight of a batch at or below 2/m.
        warmup_steps: Steps at the start that weigh uniformly.
        num_group: Loss groups of SeTa.
        window_scale: Fraction of the groups in SeTa's window.
        prune_ratio: Fraction that the sampler leaves out at random; None is the sampler's own default (0;
            InfoBatch 0.5).
        delta: Fraction of the epochs that prune.
        rule: SeTa's "paper" or "code".
        epoch_size: "pruned" or "fixed"; see `tamis.training.samplers.PlanSampler`.
        weight_decay: Of AdamW.
        total_samples: Stop after exactly so many samples, however many epochs that takes; None stops after
            `epochs`.
        checkpoint_every: Steps between checkpoints inside an epoch; 0 writes them at the ends of epochs only.
    """

    epochs: int
    batch_size: int = 128
    lr: float = 1e-2
    seed: int = 0
    sampler: str = "full"
    weights: str = "uniform"
    r: float = 0.4
    clip: bool = False
    warmup_steps: int = 0
    num_group: int = 10
    window_scale: float = 0.5
    prune_ratio: float | None = None
    delta: float = 0.875
    rule: str = "paper"
    epoch_size: str = "pruned"
    weight_decay: float = 0.01
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
        accuracy: On the test set, in 0 .. 1; None without a test set.
        loss: Mean cross-entropy on the test set; without one, the mean of the training samples' last losses.
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


def train(
    run_or_manifest: str | Path,
    *,
    out: str | Path,
    dataset: str | Path | None = None,
    epochs: int = 12,
    batch_size: int = 128,
    lr: float = 1e-2,
    seed: int = 0,
    sampler: str = "seta",
    weights: str = "linupper",
    r: float = 0.4,
    test: str | Path | None = None,
    trust_rows: bool = False,
    checkpoint_every: int = 0,
    on_progress: OnProgress | None = None,
) -> TrainResult:
    """Trains the text classifier on a manifest's rows and weights; writes checkpoints and the ledger.

    If `out` holds a checkpoint of the same training, that training is continued.

    Args:
        run_or_manifest: A run folder or a manifest folder.
        out: Folder for the checkpoint and the ledger; made if missing.
        dataset: Where the dataset is; by default where the run read it.
        epochs: See `TrainConfig`, as for all that follow up to `r`.
        batch_size: Samples a step.
        lr: Learning rate of the first step.
        seed: Of everything random.
        sampler: One of `SAMPLERS`; "seta" takes its options from the manifest's schedule, if it has one.
        weights: How a batch is weighed by loss.
        r: Temperature of the weights.
        test: A file, glob or folder with the same text and label columns, to measure accuracy on.
        trust_rows: Accept another dataset if every row of the manifest is in it, at the same place, with the
            same id and content.
        checkpoint_every: Steps between checkpoints inside an epoch.
        on_progress: Called after every step.

    Returns:
        Test accuracy, losses, counts and paths.

    Raises:
        DamagedManifestError: The manifest or the checkpoint is damaged.
        DatasetMismatchError: The dataset is not the manifest's, or `dataset` is needed to find it.
        DataError: A column is missing or unusable.
        RecipeError: An option is out of its range, or the manifest has no text or no label column.
        NonFiniteLossError: A loss became NaN or infinite; the last checkpoint is kept.
        OutputError: `out` cannot be written, or holds another training.
    """
    from tamis.pipelines.dataset import locate

    manifest = open_manifest(run_or_manifest)
    if dataset is None:
        dataset = locate(Path(run_or_manifest))
    ids, texts, labels, sample_weights, classes = load_training_rows(manifest, dataset, trust_rows=trust_rows)
    config = TrainConfig(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
        sampler=sampler,
        weights=weights,
        r=r,
        checkpoint_every=checkpoint_every,
        **_schedule_options(manifest.record["schedule"] if sampler == "seta" else None),
    )
    held_out = None if test is None else _load_test(manifest, test, classes)
    return fit(
        texts,
        labels,
        sample_weights,
        held_out,
        config,
        Path(out),
        on_progress,
        ids=ids,
        rows=manifest.select["row"].to_numpy(),
    )


def load_training_rows(
    manifest: Manifest, dataset: str | Path, *, trust_rows: bool = False
) -> tuple[list[str], list[str], NDArray[np.int64], NDArray[np.float32], list[str]]:
    """Reads a manifest's rows from its dataset, in rank order, after making sure that it is that dataset.

    Args:
        manifest: As from `open_manifest`.
        dataset: A file, glob or folder.
        trust_rows: Instead of the whole dataset's fingerprint, check each selected row's id and content hash.

    Returns:
        (sample ids, texts, labels int64 [k] as positions in the classes, weights float32 [k], classes in
        sorted order).

    Raises:
        DatasetMismatchError: It is another dataset, or with `trust_rows` another row.
        DataError: A file or column cannot be read.
        RecipeError: The manifest names no text or no label column.
    """
    from tamis.pipelines.dataset import fingerprint_of, scan_all
    from tamis.pipelines.sources import take_rows

    fields = _fields(manifest)
    sources = scan_all(str(dataset))
    if not trust_rows:
        manifest.verify_dataset(fingerprint_of(sources, manifest))
    rows = manifest.select["row"].to_numpy()
    have = sum(source.rows for source in sources)
    if rows.max(initial=-1) >= have:
        raise DatasetMismatchError(f"the manifest selects row {rows.max()}; {dataset} has {have} rows")
    table = take_rows(sources, rows, list(dict.fromkeys(fields.values())))
    samples = _samples(table, fields)
    if trust_rows:
        _check_rows(manifest.select, samples, fields)
    names = samples["label"].to_pylist()
    classes = sorted(set(names))
    index = {name: number for number, name in enumerate(classes)}
    labels = np.array([index[name] for name in names], dtype=np.int64)
    weights = manifest.select["weight"].to_numpy().astype(np.float32)
    return manifest.select["sample_id"].to_pylist(), samples["text"].to_pylist(), labels, weights, classes


def fit(
    texts: Sequence[str],
    labels: NDArray[np.int64],
    sample_weights: NDArray[np.float32],
    test: tuple[Sequence[str], NDArray[np.int64]] | None,
    config: TrainConfig,
    out: Path | None = None,
    on_progress: OnProgress | None = None,
    *,
    ids: Sequence[str] | None = None,
    rows: NDArray[np.int64] | None = None,
) -> TrainResult:
    """Trains the text classifier on texts and labels.

    Args:
        texts: k texts.
        labels: int64 [k], classes from 0.
        sample_weights: float32 [k] above 0.
        test: Texts and labels to measure accuracy on, or None.
        config: How to train.
        out: Folder for checkpoints and ledger, made if missing; a checkpoint of the same training in it is
            continued. None keeps nothing.
        on_progress: Called after every step.
        ids: k sample ids, for the ledger and for errors; by default the positions.
        rows: int64 [k], the samples' rows in the dataset, for the ledger; by default the positions.

    Returns:
        Test accuracy, losses, counts and paths.

    Raises:
        DataError: The arrays do not fit together, or there are no samples.
        RecipeError: An option is out of its range.
        NonFiniteLossError: A loss became NaN or infinite; the message names the samples, and the last
            checkpoint is kept.
        OutputError: `out` cannot be written, or holds another training.
        LockedError: Another training writes to `out` now.
        DamagedManifestError: The checkpoint in `out` is damaged.
    """
    held_out = None if test is None else (featurise(test[0]), test[1])
    return fit_features(
        featurise(texts), labels, sample_weights, held_out, config, out, on_progress, ids=ids, rows=rows
    )


def fit_features(
    features: Features,
    labels: NDArray[np.int64],
    sample_weights: NDArray[np.float32],
    test: tuple[Features, NDArray[np.int64]] | None,
    config: TrainConfig,
    out: Path | None = None,
    on_progress: OnProgress | None = None,
    *,
    ids: Sequence[str] | None = None,
    rows: NDArray[np.int64] | None = None,
) -> TrainResult:
    """`fit`, for texts that are features already."""
    n = len(features)
    _check(n, labels, sample_weights, test, config)
    ids = [str(i) for i in range(n)] if ids is None else ids
    rows = np.arange(n) if rows is None else rows
    if len(ids) != n or len(rows) != n:
        raise DataError(f"{n} texts were given with {len(ids)} ids and {len(rows)} rows; the counts must be equal")
    classes = 1 + max(int(part.max(initial=0)) for part in (labels, labels if test is None else test[1]))
    with _one_thread(), nullcontext() if out is None else locked(out):
        state = _State(features, classes, sample_weights, config)
        store = None if out is None else _Store(out, _key(features, labels, sample_weights, ids, rows, classes, config))
        if store is not None:
            store.load(state)
        _run(state, features, torch.from_numpy(labels), config, store, on_progress, ids)
        accuracy, loss = None, float(np.nanmean(state.sampler.scores.live))
        if test is not None:
            accuracy, loss = _evaluate(state.model, *test)
    ledger = None if out is None else _write_ledger(out / LEDGER, state, ids, rows)
    return TrainResult(
        accuracy, loss, state.samples_seen, state.seconds, None if out is None else out / CHECKPOINT, ledger
    )


class _State:
    """All that a training changes, and that a checkpoint therefore holds."""

    def __init__(
        self, features: Features, classes: int, sample_weights: NDArray[np.float32], config: TrainConfig
    ) -> None:
        n = len(features)
        self.model = TextClassifier(classes, torch.Generator().manual_seed(config.seed))
        self.optimiser = LazyAdamW(self.model, config.weight_decay)
        self.sampler = PlanSampler(
            n,
            _policy(config),
            seed=config.seed,
            epoch_size=config.epoch_size,
            strategy=config.weights,
            r=config.r,
            clip=config.clip,
            warmup_steps=config.warmup_steps,
            importance=sample_weights,
        )
        self.loss_sum = np.zeros(n, dtype=np.float64)
        self.weight_sum = np.zeros(n, dtype=np.float64)
        self.samples_seen = 0
        self.seconds = 0.0
        self.done = False
        # The rows of the table that training can touch; all others stay zero, and out of the checkpoint.
        self._used = torch.from_numpy(np.unique(features.buckets).astype(np.int64))

    def counters(self) -> dict[str, Any]:
        """The part that goes into the checkpoint's record."""
        return {
            "sampler": self.sampler.state_dict(),
            "samples_seen": self.samples_seen,
            "seconds": self.seconds,
            "done": self.done,
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """The part that goes into the checkpoint's tensor file."""
        found = {"used": self._used}
        for name, value in self.model.named_parameters():
            for kind, tensor in zip(("", ".mean", ".square"), (value, *self.optimiser.moments[name]), strict=True):
                found[f"model.{name}{kind}"] = tensor.detach()[self._used] if name == "table" else tensor.detach()
        scores = self.sampler.scores.state_dict()
        for name in ("live", "seen", "frozen", "frozen_seen"):
            found[f"scores.{name}"] = torch.from_numpy(scores[name])
        found["ledger.loss_sum"] = torch.from_numpy(self.loss_sum)
        found["ledger.weight_sum"] = torch.from_numpy(self.weight_sum)
        return found

    def restore(self, counters: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        """Takes over what `counters` and `tensors` gave."""
        for name, value in self.model.named_parameters():
            for kind, tensor in zip(("", ".mean", ".square"), (value, *self.optimiser.moments[name]), strict=True):
                with torch.no_grad():
                    target = self._used if name == "table" else slice(None)
                    tensor[target] = tensors[f"model.{name}{kind}"]
        self.sampler.load_state_dict(counters["sampler"])
        scores: dict[str, Any] = {
            name: tensors[f"scores.{name}"].numpy() for name in ("live", "seen", "frozen", "frozen_seen")
        }
        self.sampler.scores.load_state_dict({"version": self.sampler.scores.state_dict()["version"], **scores})
        self.optimiser.steps = self.sampler.steps
        self.loss_sum = tensors["ledger.loss_sum"].numpy().copy()
        self.weight_sum = tensors["ledger.weight_sum"].numpy().copy()
        self.samples_seen, self.seconds, self.done = (
            counters["samples_seen"],
            counters["seconds"],
            counters["done"],
        )


class _Store:
    """A folder with the last checkpoint: a content-named tensor file, and the record that names it."""

    def __init__(self, folder: Path, key: str) -> None:
        self._folder = folder
        self._key = key

    def load(self, state: _State) -> None:
        """Restores the state from the folder's checkpoint, if there is one; makes a missing folder."""
        import safetensors.torch

        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the folder {self._folder}: {error.strerror}; choose another") from error
        path = self._folder / CHECKPOINT
        if not path.exists():
            return
        try:
            raw = path.read_bytes()
            record = json.loads(raw)
            body = record["body"]
            if record["sha256"] != digest(body) or raw != canonical_json(record):
                raise ValueError("its sha256 does not match")
            if body["key"] != self._key or body["version"] != _CHECKPOINT_VERSION:
                raise OutputError(
                    f"{path} is the checkpoint of another training (other data, options or version); "
                    "give another folder, or remove this one"
                )
            tensors = (self._folder / body["tensors"]["path"]).read_bytes()
            if hashlib.sha256(tensors).hexdigest() != body["tensors"]["sha256"]:
                raise ValueError(f"{body['tensors']['path']} does not have its sha256")
            state.restore(body["counters"], safetensors.torch.load(tensors))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedManifestError(
                f"the checkpoint {path} is damaged: {error}; remove the folder to train from the start"
            ) from error

    def save(self, state: _State) -> None:
        """Writes a checkpoint in place of the last one; at every instant one of the two is whole."""
        import safetensors.torch

        data = safetensors.torch.save(state.tensors())
        sha256 = hashlib.sha256(data).hexdigest()
        name = f"checkpoint.{sha256[:16]}.safetensors"
        write_atomic(self._folder / name, data)
        body = {
            "version": _CHECKPOINT_VERSION,
            "key": self._key,
            "counters": state.counters(),
            "tensors": {"path": name, "sha256": sha256},
        }
        write_atomic(self._folder / CHECKPOINT, canonical_json({"body": body, "sha256": digest(body)}))
        for old in self._folder.glob("checkpoint.*.safetensors"):
            if old.name != name:
                old.unlink(missing_ok=True)


def _run(
    state: _State,
    features: Features,
    labels: torch.Tensor,
    config: TrainConfig,
    store: _Store | None,
    on_progress: OnProgress | None,
    ids: Sequence[str],
) -> None:
    """Trains from where the state is to the end."""
    sampler = state.sampler
    while not state.done:
        order = np.fromiter(sampler, dtype=np.int64)
        for start in range(0, order.size, config.batch_size):
            batch = order[start : start + config.batch_size]
            if config.total_samples is not None:
                batch = batch[: config.total_samples - state.samples_seen]
            began = time.perf_counter()
            loss = _step(state, features.take(batch), labels[batch], batch, _progress(state, config), config, ids)
            state.seconds += time.perf_counter() - began
            if store is not None and config.checkpoint_every and sampler.steps % config.checkpoint_every == 0:
                store.save(state)
            if on_progress is not None:
                on_progress(
                    Progress(sampler.epoch, sampler.position, len(sampler), sampler.steps, state.samples_seen, loss)
                )
            if state.samples_seen == config.total_samples:
                break
        if config.total_samples is None:
            state.done = sampler.epoch + 1 == config.epochs
        else:
            state.done = state.samples_seen == config.total_samples
        if not state.done:
            sampler.set_epoch(sampler.epoch + 1)
        if store is not None:
            store.save(state)


def _step(
    state: _State,
    features: Features,
    labels: torch.Tensor,
    batch: NDArray[np.int64],
    progress: float,
    config: TrainConfig,
    ids: Sequence[str],
) -> float:
    """One optimiser step; returns the weighted loss."""
    where, block, logits = state.model.gather(features)
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    values = losses.detach().numpy()
    bad = batch[~np.isfinite(values)]
    if bad.size:
        names = ", ".join(repr(ids[i]) for i in bad[:10])
        raise NonFiniteLossError(
            f"at step {state.sampler.steps} the loss of {bad.size} samples is NaN or infinite: {names}; "
            "the last checkpoint is kept. Lower lr, or look at these samples"
        )
    weights = state.sampler.observe(batch, losses)
    loss = (weights * losses).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    state.optimiser.step(where, block, config.lr * (1 - progress))
    # An epoch of "fixed" size can hold a sample twice in a batch.
    np.add.at(state.loss_sum, batch, values)
    np.add.at(state.weight_sum, batch, weights.numpy() * batch.size)
    state.samples_seen += batch.size
    return loss.item()


def _progress(state: _State, config: TrainConfig) -> float:
    """How much of the training is done, in 0 .. 1. Pruned epochs count as whole ones."""
    if config.total_samples is not None:
        return state.samples_seen / config.total_samples
    sampler = state.sampler
    return (sampler.epoch + sampler.position / len(sampler)) / config.epochs


@torch.no_grad()
def _evaluate(model: TextClassifier, features: Features, labels: NDArray[np.int64]) -> tuple[float, float]:
    """Accuracy and mean cross-entropy."""
    correct, total = 0, 0.0
    for start in range(0, len(features), _EVAL_ROWS):
        rows = np.arange(start, min(start + _EVAL_ROWS, len(features)))
        logits = model(features.take(rows))
        target = torch.from_numpy(labels[rows])
        correct += int((logits.argmax(1) == target).sum())
        total += float(torch.nn.functional.cross_entropy(logits.double(), target, reduction="sum"))
    return correct / len(features), total / len(features)


def _write_ledger(path: Path, state: _State, ids: Sequence[str], rows: NDArray[np.int64]) -> Path:
    """One row a sample: sample_id, row, last_loss, mean_loss, seen, weight_mean (null where never seen).

    weight_mean is the mean over the batches that held the sample, as a multiple of the plain mean's 1/m.
    """
    scores = state.sampler.scores
    never = scores.seen == 0
    count = np.maximum(scores.seen, 1)
    table = pa.table(
        {
            "sample_id": pa.array(ids, pa.string()),
            "row": pa.array(rows, pa.int64()),
            "last_loss": pa.array(scores.live, pa.float32(), mask=never),
            "mean_loss": pa.array((state.loss_sum / count).astype(np.float32), pa.float32(), mask=never),
            "seen": pa.array(scores.seen, pa.int64()),
            "weight_mean": pa.array((state.weight_sum / count).astype(np.float32), pa.float32(), mask=never),
        }
    )
    write_ipc(table, path)
    return path


def _policy(config: TrainConfig) -> dynamic.Policy:
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
    if config.sampler == "random":
        return partial(dynamic.random, **pruning)
    return dynamic.random


def _check(
    n: int,
    labels: NDArray[np.int64],
    sample_weights: NDArray[np.float32],
    test: tuple[Features, NDArray[np.int64]] | None,
    config: TrainConfig,
) -> None:
    """Refuses what the parts below do not refuse themselves."""
    if config.sampler not in SAMPLERS:
        raise RecipeError(f"sampler is {config.sampler!r}; it must be one of {', '.join(SAMPLERS)}")
    if config.sampler == "full" and config.prune_ratio:
        raise RecipeError("sampler full leaves nothing out, but prune_ratio was given; use sampler random")
    for name, least in (("epochs", 1), ("batch_size", 1), ("total_samples", 1), ("checkpoint_every", 0)):
        value = getattr(config, name)
        if value is not None and value < least:
            raise RecipeError(f"{name} is {value}; it must be at least {least}")
    if not 0 < config.lr < np.inf:
        raise RecipeError(f"lr is {config.lr}; it must be above 0 and finite")
    if n == 0:
        raise DataError("there are 0 texts to train on; at least one is needed")
    if len(labels) != n or len(sample_weights) != n:
        raise DataError(f"{n} texts, {len(labels)} labels and {len(sample_weights)} weights; the counts must be equal")
    if test is not None and (len(test[0]) != len(test[1]) or len(test[1]) == 0):
        raise DataError(
            f"the test set has {len(test[0])} texts and {len(test[1])} labels; equal counts above 0 are needed"
        )
    for part in (labels, np.zeros(0, np.int64) if test is None else test[1]):
        if part.dtype != np.int64 or part.min(initial=0) < 0:
            raise DataError(f"labels must be int64 from 0, got {part.dtype} from {part.min(initial=0)}")


def _key(
    features: Features,
    labels: NDArray[np.int64],
    sample_weights: NDArray[np.float32],
    ids: Sequence[str],
    rows: NDArray[np.int64],
    classes: int,
    config: TrainConfig,
) -> str:
    """Identity of a training: everything that its result depends on."""
    content = hashlib.sha256()
    for array in (features.buckets, features.offsets, labels, sample_weights, rows):
        content.update(np.ascontiguousarray(array).tobytes())
    options = {name: value for name, value in asdict(config).items() if name != "checkpoint_every"}
    return digest({"config": options, "classes": classes, "content": content.hexdigest(), "ids": list(ids)})


def _schedule_options(schedule: Any) -> dict[str, Any]:
    """SeTa's options as the manifest's schedule has them."""
    names = ("num_group", "window_scale", "prune_ratio", "delta", "rule")
    return {} if not schedule else {name: schedule[name] for name in names if name in schedule}


def _fields(manifest: Manifest) -> dict[str, str]:
    """The dataset's columns by role, of the roles that are set; text and label among them."""
    fields = {role: str(name) for role, name in manifest.record["dataset"]["fields"].items() if name is not None}
    for role in ("text", "label"):
        if role not in fields:
            raise RecipeError(
                f"training needs a {role} column; the manifest's dataset has {', '.join(fields)}: "
                f"name it in the recipe, as in dataset: {{{role}: COLUMN}}, and run again"
            )
    return fields


def _samples(table: pa.Table, fields: dict[str, str]) -> pa.Table:
    """The rows with their columns named by role; no text or label is null."""
    from tamis.pipelines.stages.ingest import sample_table

    samples = sample_table(table, fields)
    for role in ("text", "label"):
        if samples[role].null_count:
            raise DataError(f"column {fields[role]!r} is null in {samples[role].null_count} of the rows to use")
    return samples


def _check_rows(select: pa.Table, samples: pa.Table, fields: dict[str, str]) -> None:
    """Refuses samples that are not the manifest's rows, by id and by content hash."""
    from tamis.pipelines.stages.ingest import content_hashes

    hashes = content_hashes(samples, tuple(role for role in ("text", "vectors", "label") if role in fields))
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
                f"the {what} of {len(other)} selected rows differs in this dataset: {names}; "
                "use the dataset that the manifest was made from, or run again on this one"
            )


def _load_test(manifest: Manifest, path: str | Path, classes: list[str]) -> tuple[list[str], NDArray[np.int64]]:
    """Texts and labels of a test set; a label that training lacks becomes a class that it never learns."""
    from tamis.pipelines.dataset import scan_all
    from tamis.pipelines.sources import take_rows

    fields = {role: name for role, name in _fields(manifest).items() if role in ("text", "label")}
    sources = scan_all(str(path))
    everything = np.arange(sum(source.rows for source in sources))
    samples = _samples(take_rows(sources, everything, list(dict.fromkeys(fields.values()))), fields)
    names = samples["label"].to_pylist()
    index = {name: number for number, name in enumerate([*classes, *sorted(set(names) - set(classes))])}
    return samples["text"].to_pylist(), np.array([index[name] for name in names], dtype=np.int64)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One numeric thread inside, so that sums have one order; the caller's setting afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
