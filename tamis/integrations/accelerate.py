"""Our samplers in a training loop with Accelerate.

::

    accelerator = Accelerator(gradient_accumulation_steps=4)
    sampler = SeTaSampler(len(dataset), epochs=12, seed=7)  # after the Accelerator, which starts torch.distributed
    loader = DataLoader(WithIndex(dataset), sampler=sampler, batch_size=32)
    model, optimizer = accelerator.prepare(model, optimizer)
    loader = prepare_loader(accelerator, loader)
    accelerator.load_state(folder)  # where a training continues
    for epoch in range(sampler.epoch, 12):
        sampler.set_epoch(epoch)
        for ids, batch in loader:
            with accelerator.accumulate(model):
                accelerator.backward(sampler.step(ids, per_sample_losses(batch)))
                optimizer.step()
                optimizer.zero_grad()
        accelerator.save_state(folder)

The batch size is that of one process. A resumed loader yields the rest of the epoch by itself: do not call
`skip_first_batches`. Under accumulation each micro-batch is weighed on its own, and `accelerator.backward` divides
by the number of them; save after an optimizer step, because a checkpoint holds no gradients. A scheduler given to
`accelerator.prepare` takes as many steps at a time as there are processes: count its steps as len(loader) times
that number, or leave it unprepared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tamis.errors import RecipeError
from tamis.integrations.state import SamplerState, check_in_order, check_ranks, check_sampler

try:
    from accelerate.data_loader import prepare_data_loader
except ImportError as error:
    raise ImportError("tamis.integrations.accelerate needs Accelerate: pip install 'tamis[accelerate]'") from error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    from tamis.training.samplers import PlanSampler


def prepare_loader(accelerator: Accelerator, loader: DataLoader[Any]) -> SamplerLoader:
    """Makes a loader with one of our samplers part of Accelerate's training; once for each loader.

    Batches come on the accelerator's device, `accumulate` knows the last batch of an epoch, and `save_state` and
    `load_state` carry the sampler and its losses. The loader is not sharded: the sampler has done so.

    Args:
        accelerator: Of the training.
        loader: With `sampler=` one of ours, and not prepared.

    Returns:
        What to iterate instead of the loader.

    Raises:
        RecipeError: The loader's sampler is not one of ours, or was made before the processes were known; or the
            loader may give batches out of order; or the accelerator is to split or dispatch batches.
    """
    sampler = check_sampler(getattr(loader.batch_sampler, "sampler", None), "the loader's sampler")
    check_in_order(loader)
    check_ranks(sampler, accelerator.process_index, accelerator.num_processes, "make the sampler after the Accelerator")
    for name in ("split_batches", "dispatch_batches"):
        if getattr(accelerator, name):
            raise RecipeError(
                f"the Accelerator has {name}={getattr(accelerator, name)!r}, but every process has its own samples "
                "from the sampler; leave the option out, and give the loader the batch size of one process"
            )
    accelerator.register_for_checkpointing(SamplerState(sampler))
    # One process: what Accelerate would leave of the batches for this one is a part of a part.
    unsharded = prepare_data_loader(
        loader,
        accelerator.device,
        num_processes=1,
        process_index=0,
        put_on_device=accelerator.device_placement,
        non_blocking=accelerator.non_blocking,
    )
    return SamplerLoader(unsharded, sampler)


class SamplerLoader:
    """Iterates the batches of the sampler's current epoch; `accelerator.prepare` leaves it as it is.

    Attributes:
        sampler: One of ours.
    """

    def __init__(self, loader: Any, sampler: PlanSampler) -> None:
        self.sampler = sampler
        self._loader = loader

    def __len__(self) -> int:
        """The number of batches of the current epoch, from its beginning."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        """The batches of the current epoch; after `load_state`, those that remain."""
        # Accelerate sets the epoch of samplers to how often it has iterated, which is 0 in a resumed training.
        self._loader.set_epoch(self.sampler.epoch)
        return iter(self._loader)
