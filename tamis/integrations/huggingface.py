"""Our samplers in transformers' Trainer.

::

    args = TrainingArguments("out", num_train_epochs=12, per_device_train_batch_size=32)
    sampler = SeTaSampler(len(dataset), epochs=12, seed=7)  # after the arguments, which start torch.distributed
    trainer = SamplerTrainer(model=model, args=args, train_dataset=dataset, sampler=sampler)
    trainer.train(resume_from_checkpoint=False)  # or True, or a checkpoint's folder

For a causal language model give also ``losses=causal_lm_losses``: a sequence's loss is the mean over its unmasked
tokens. The batches are weighed by sequences, or with ``weigh_tokens=True`` by tokens, as the Trainer alone does.

- Under `gradient_accumulation_steps` each micro-batch is weighed on its own, and the Trainer divides by the number of
  them; its `num_items_in_batch` is not used. Evaluation is as without the sampler.
- A checkpoint holds the sampler and its losses (`tamis_sampler.pt`). A training resumed in mid-epoch continues with
  the rest of the epoch, also with another number of processes, and fetches nothing to skip it.
- With epoch_size="pruned" epochs have their own lengths, but learning-rate schedules and progress bars count on epochs
  as long as the first: for them, "fixed" is right.
- Several processes train on different samples (data parallelism), in any number; no other parallelism.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.nn.functional import cross_entropy, pad
from torch.utils.data import BatchSampler, DataLoader

from tamis.errors import DataError, RecipeError
from tamis.integrations.state import SamplerState, check_in_order, check_ranks, check_sampler, remaining
from tamis.training.data import WithIndex

try:
    from transformers import Trainer
except ImportError as error:
    raise ImportError("tamis.integrations.huggingface needs transformers: pip install 'tamis[huggingface]'") from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tamis.training.samplers import PlanSampler

STATE = "tamis_sampler.pt"

_IDS = "tamis_ids"


def classification_losses(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The cross-entropy of each sample.

    Args:
        logits: float [m, classes].
        labels: int [m].

    Returns:
        [m], and None.

    Raises:
        DataError: The shapes are others, as of a language model or a regression.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or labels.is_floating_point():
        raise DataError(
            f"logits have shape {tuple(logits.shape)} and labels {tuple(labels.shape)} of {labels.dtype}; "
            "classification has [m, classes] and integers [m]: give losses=causal_lm_losses, or a function of your own"
        )
    return cross_entropy(_exact(logits), labels, reduction="none"), None


def causal_lm_losses(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The mean loss of each sequence over its tokens, each predicted from those before it; -100 masks a label.

    Args:
        logits: float [m, tokens, vocabulary].
        labels: int [m, tokens].

    Returns:
        [m], and the number of tokens [m] that each is the mean of; NaN and 0 for a sequence without any.

    Raises:
        DataError: The shapes are others.
    """
    if logits.ndim != 3 or labels.shape != logits.shape[:2]:
        raise DataError(
            f"logits have shape {tuple(logits.shape)} and labels {tuple(labels.shape)}; "
            "a causal language model has [m, tokens, vocabulary] and [m, tokens]"
        )
    targets = pad(labels[:, 1:], (0, 1), value=-100)  # so that the logits need not be copied
    losses = cross_entropy(_exact(logits).flatten(0, 1), targets.flatten(), reduction="none", ignore_index=-100)
    counts = (targets != -100).sum(1)
    return losses.view_as(targets).sum(1) / counts, counts


class SamplerTrainer(Trainer):  # type: ignore[misc] # untyped
    """A Trainer that trains on what one of our samplers yields, and whose loss is the sampler's `step`.

    Attributes:
        sampler: What the training follows.

    Args:
        *args: As for Trainer.
        sampler: One of ours, of as many samples as `train_dataset`.
        losses: Gives the loss of each sample from the model's logits and the batch's `labels`, [m] with graph, and
            how many tokens [m] each is the mean of, or None.
        weigh_tokens: Whether the number of tokens is a factor of a sample's weight.
        **kwargs: As for Trainer.

    Raises:
        RecipeError: The sampler is not one of ours, or was made before the processes were known, or an argument asks
            for what would not be done.
    """

    # The Trainer divides by the number of micro-batches.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        *args: Any,
        sampler: PlanSampler,
        losses: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]] = (
            classification_losses
        ),
        weigh_tokens: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.sampler = check_sampler(sampler, "sampler")
        self._losses = losses
        self._weigh_tokens = weigh_tokens
        check_ranks(
            sampler, self.args.process_index, self.args.world_size, "make the sampler after the TrainingArguments"
        )
        refused = {
            "label_smoothing_factor": self.args.label_smoothing_factor != 0,
            "compute_loss_func": self.compute_loss_func is not None,
            "train_sampling_strategy": self.args.train_sampling_strategy != "random",
            "ignore_data_skip": self.args.ignore_data_skip,
            "auto_find_batch_size": self.args.auto_find_batch_size,
            "tensor, context or sequence parallelism": self.get_total_train_batch_size(self.args)
            != self._batch * self.args.gradient_accumulation_steps,
        }
        for name, given in refused.items():
            if given:
                raise RecipeError(
                    f"{name} was given, but the sampler decides what is trained on and how it is weighed, and resumes "
                    "by itself; leave it out (for a loss of your own there is losses=)"
                )

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The Trainer's own loader, with the sampler, and with each sample's position in the batch; not sharded.

        Raises:
            DataError: The dataset has another number of samples than the sampler.
        """
        n = len(self.train_dataset) if hasattr(self.train_dataset, "__len__") else "an unknown number of"
        if n != self.sampler.n:
            raise DataError(
                f"train_dataset has {n} samples, and the sampler was made for {self.sampler.n}; give a map-style "
                "dataset, and make the sampler with its length"
            )
        # Its dataset and its collator have had the model's unused columns removed. Its batch sampler is not used: it
        # shards what is sharded, and fills the last batch with samples from the beginning.
        theirs = super().get_train_dataloader()
        check_in_order(theirs)
        return DataLoader(
            WithIndex(theirs.dataset),
            batch_sampler=_Batches(self.sampler, self._train_batch_size, self.args.dataloader_drop_last),
            collate_fn=_Collate(theirs.collate_fn),
            num_workers=theirs.num_workers,
            pin_memory=theirs.pin_memory,
            persistent_workers=theirs.persistent_workers,
            prefetch_factor=theirs.prefetch_factor,
            multiprocessing_context=theirs.multiprocessing_context,
            worker_init_fn=theirs.worker_init_fn,
        )

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The sampler's reduction of a training batch; what is evaluated has no positions, and is the Trainer's own.

        Raises:
            DataError: A sequence has no token to train on, or the batch has no labels.
        """
        if _IDS not in inputs:
            return super().compute_loss(model, inputs, *args, **kwargs)
        if "labels" not in inputs:
            raise DataError(f"a batch has {', '.join(inputs)}, but no labels; name the column label or labels")
        ids, labels = inputs.pop(_IDS), inputs.pop("labels")
        outputs = model(**inputs)
        losses, counts = self._losses(outputs["logits"] if isinstance(outputs, dict) else outputs[0], labels)
        if counts is not None and not counts.all():
            raise DataError(
                f"the sequences at {ids[counts == 0].tolist()} have no token to train on, all labels are -100; "
                "leave them out of the dataset, before the sampler is made"
            )
        return self.sampler.step(ids, losses, counts if self._weigh_tokens else None)

    def set_initial_training_values(self, args: Any, dataloader: DataLoader[Any]) -> tuple[Any, ...]:
        """Measured by the first epoch; as many epochs as `max_steps` may take, as later ones may be shorter."""
        self.sampler.set_epoch(0)
        epochs, *others = super().set_initial_training_values(args, dataloader)
        return max(epochs, args.max_steps), *others

    @property
    def _batch(self) -> int:
        """Samples that all processes train on at a time."""
        return int(self._train_batch_size * self.args.world_size)

    # The three below are not public in transformers. They are since 5.3 as they are in 5.23.

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            torch.save(SamplerState(self.sampler).state_dict(), Path(output_dir) / STATE)

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        """Where the training begins: the epoch, and how many of its batches are done."""
        if trial is not None:
            raise RecipeError(
                "hyperparameter_search trains one trainer many times, and the sampler would carry the losses of one "
                "trial into the next; make a trainer and a sampler for each trial"
            )
        start: tuple[int, int] = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is None:
            return start
        path = Path(resume_from_checkpoint) / STATE
        if not path.exists():
            raise RecipeError(
                f"{path} does not exist: the checkpoint is of a training without SamplerTrainer, or with "
                "save_only_model; give another, or begin anew"
            )
        SamplerState(self.sampler).load_state_dict(torch.load(path, weights_only=True))
        if remaining(self.sampler) == 0:
            return self.sampler.epoch + 1, 0
        # Whole optimizer steps, as they would be of today's size.
        accumulation = self.args.gradient_accumulation_steps
        return self.sampler.epoch, math.ceil(self.sampler.position / (self._batch * accumulation)) * accumulation

    def _run_epoch(
        self,
        model: Any,
        epoch: int,
        train_dataloader: DataLoader[Any],
        steps_in_epoch: int,  # noqa: ARG002 - of the first epoch
        num_update_steps_per_epoch: int,  # noqa: ARG002
        trial: Any,
        ignore_keys_for_eval: list[str] | None,
        start_time: float,
        resume_from_checkpoint: str | None,
        epochs_trained: int,
        steps_trained_in_current_epoch: int,
    ) -> None:
        """One epoch, of its own length."""
        self.sampler.set_epoch(epoch)
        batches = train_dataloader.batch_sampler
        assert isinstance(batches, _Batches)
        if resume_from_checkpoint is not None and epoch == epochs_trained:
            batches.done = steps_trained_in_current_epoch
        accumulation = self.args.gradient_accumulation_steps
        steps = len(batches)
        updates = math.ceil(steps / accumulation)
        if self.args.max_steps <= 0:
            # The Trainer took all epochs to be as long as the first; it stops, and saves, after so many steps.
            begun = self.state.global_step - batches.done // accumulation
            left = self.args.num_train_epochs - epoch
            if left <= 1:
                self.state.max_steps = begun + math.ceil(left * updates)
            else:
                self.state.max_steps = max(self.state.max_steps, begun + updates + math.ceil(left - 1))
        super()._run_epoch(
            model=model,
            epoch=epoch,
            train_dataloader=train_dataloader,
            steps_in_epoch=steps,
            num_update_steps_per_epoch=updates,
            trial=trial,
            ignore_keys_for_eval=ignore_keys_for_eval,
            start_time=start_time,
            resume_from_checkpoint=resume_from_checkpoint,
            epochs_trained=epochs_trained,
            steps_trained_in_current_epoch=steps_trained_in_current_epoch,
        )


class _Batches(BatchSampler):
    """The batches of an epoch; of a resumed one, empty ones in place of those done, because the Trainer skips as many.

    Attributes:
        done: How many, until the next iteration.
    """

    done = 0

    def __iter__(self) -> Iterator[list[int]]:
        done, self.done = self.done, 0
        yield from ([] for _ in range(done))
        yield from super().__iter__()

    def __len__(self) -> int:
        if not self.done:
            return super().__len__()
        rest = remaining(cast("PlanSampler", self.sampler)) / self.batch_size
        return self.done + (math.floor(rest) if self.drop_last else math.ceil(rest))


class _Collate:
    """Another collator's batch, with the positions of its samples."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self._collate = collate

    def __call__(self, pairs: list[tuple[int, Any]]) -> Any:
        batch = self._collate([sample for _, sample in pairs])
        batch[_IDS] = torch.tensor([position for position, _ in pairs])
        return batch


def _exact(logits: torch.Tensor) -> torch.Tensor:
    """At least float32, also under mixed precision."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
