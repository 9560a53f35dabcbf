"""Our samplers in torchdata's StatefulDataLoader.

::

    sampler = SeTaSampler(len(dataset), epochs=12, seed=7)
    loader = SamplerDataLoader(WithIndex(dataset), sampler, batch_size=128, num_workers=2)
    loader.load_state_dict(checkpoint["loader"])  # where a training continues
    for epoch in range(sampler.epoch, 12):
        sampler.set_epoch(epoch)
        for ids, batch in loader:
            loss = sampler.step(ids, per_sample_losses(batch))
            ...
            checkpoint["loader"] = loader.state_dict()

A StatefulDataLoader counts what it has handed out, and with workers it takes its sampler's state when it sends the
indices to them, a few batches early. Our samplers count what was trained on. So this loader's state is its sampler's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.utils.data import BatchSampler

from tamis.integrations.state import SamplerState, check_in_order, check_sampler

try:
    from torchdata.stateful_dataloader import StatefulDataLoader
except ImportError as error:
    raise ImportError("tamis.integrations.torchdata needs torchdata: pip install 'tamis[torchdata]'") from error

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from tamis.training.samplers import PlanSampler


class SamplerDataLoader(StatefulDataLoader):  # type: ignore[misc] # untyped
    """A StatefulDataLoader whose state is that of its sampler: what was trained on, and all losses.

    A state taken after any step resumes with the samples that have not been trained on, with any number of workers,
    also with another than before. The state of a dataset that has one of its own (`state_dict`) is not carried.

    Args:
        dataset: Map-style, as from `WithIndex`.
        sampler: One of ours.
        batch_size: Samples a batch, in each process.
        drop_last: Whether to leave out an epoch's last batch if it is not full.
        **options: As for StatefulDataLoader, such as `num_workers`.

    Raises:
        RecipeError: The sampler is not one of ours, or the loader may give batches out of order.
    """

    def __init__(
        self, dataset: Dataset[Any], sampler: PlanSampler, batch_size: int = 1, drop_last: bool = False, **options: Any
    ) -> None:
        self._state = SamplerState(check_sampler(sampler, "sampler"))
        # Torch's batch sampler starts the sampler with the first batch. torchdata's own starts it at once, and its
        # loader does that twice where it has workers; but a sampler yields the rest of a resumed epoch once.
        super().__init__(dataset, batch_sampler=BatchSampler(sampler, batch_size, drop_last), **options)
        check_in_order(self)

    def state_dict(self) -> dict[str, Any]:
        """Where the training is, and all losses; the same in every process."""
        return self._state.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues where `state_dict` was taken, from the next iteration on.

        Raises:
            RecipeError: The state is of another seed or number of samples.
        """
        self._state.load_state_dict(state_dict)
