"""Our samplers under Lightning's Trainer.

::

    class Module(lightning.LightningModule):
        def setup(self, stage):  # here the processes are known
            self.sampler = SeTaSampler(len(dataset), epochs=12, seed=7)

        def train_dataloader(self):
            return DataLoader(WithIndex(dataset), sampler=self.sampler, batch_size=128)

        def training_step(self, batch, batch_idx):
            ids, batch = batch
            return self.sampler.step(ids, per_sample_losses(batch))

    trainer = Trainer(
        max_epochs=12,
        callbacks=[SamplerCallback()],
        use_distributed_sampler=False,  # with several devices
        reload_dataloaders_every_n_epochs=1,  # where epochs differ in length, with epoch_size="pruned"
    )
    trainer.fit(Module(), ckpt_path=None)  # or a checkpoint's path

A checkpoint holds the sampler and its losses, and a training resumed in mid-epoch continues with the rest of the
epoch; Lightning's warning that the loader is not resumable does not apply. Under `accumulate_grad_batches` each
micro-batch is weighed on its own, and Lightning divides by the number of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tamis.errors import RecipeError
from tamis.integrations.state import SamplerState, check_in_order, check_ranks, check_sampler
from tamis.training.samplers import IngeniousSampler, ManifestSampler

try:
    from lightning.pytorch import Callback
except ImportError as error:
    raise ImportError("tamis.integrations.lightning needs Lightning: pip install 'tamis[lightning]'") from error

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from tamis.training.samplers import PlanSampler

_KEY = "tamis"


class SamplerCallback(Callback):  # type: ignore[misc] # untyped
    """Carries the sampler in the checkpoints, and starts its epochs in time.

    The sampler is the module's attribute `sampler`, made at the latest in its `setup`.

    Raises:
        RecipeError: On `fit`, where the sampler is not one of ours, was made before the processes were known, is not
            the one that the training loader has in the end, or has epochs that Lightning would measure wrongly; or
            where the loader may give batches out of order.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses epochs of several lengths where Lightning measures the loader once."""
        sampler = _sampler(pl_module)
        check_ranks(sampler, trainer.global_rank, trainer.world_size, "make it in the module's setup()")
        same = sampler.epoch_size != "pruned" or isinstance(sampler, ManifestSampler | IngeniousSampler)
        if not same and trainer.reload_dataloaders_every_n_epochs != 1:
            raise RecipeError(
                f"reload_dataloaders_every_n_epochs is {trainer.reload_dataloaders_every_n_epochs}, so that Lightning "
                "would measure the training loader once, but with epoch_size='pruned' epochs differ in length; give "
                "Trainer(reload_dataloaders_every_n_epochs=1), or the sampler epoch_size='fixed'"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses a training loader whose sampler Lightning has replaced."""
        loader = trainer.train_dataloader
        found = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
        if found is not _sampler(pl_module):
            raise RecipeError(
                f"the training loader's sampler is {type(found).__name__}, not the module's attribute sampler; give "
                "one loader, with sampler=self.sampler, and Trainer(use_distributed_sampler=False) without "
                "overfit_batches, or Lightning replaces it"
            )
        check_in_order(loader)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the next epoch already: Lightning does so too, but only after it has measured the loader."""
        if trainer.current_epoch + 1 != trainer.max_epochs:
            _sampler(pl_module).set_epoch(trainer.current_epoch + 1)

    def on_save_checkpoint(
        self,
        trainer: Trainer,  # noqa: ARG002 - as Lightning calls it
        pl_module: LightningModule,
        checkpoint: dict[str, Any],
    ) -> None:
        """Puts the sampler and its losses into a checkpoint."""
        checkpoint[_KEY] = SamplerState(_sampler(pl_module)).state_dict()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes the sampler and its losses from a checkpoint that training continues from.

        Raises:
            RecipeError: The checkpoint is of a training without this callback, or of another sampler.
        """
        if trainer.state.fn != "fit":
            return
        if _KEY not in checkpoint:
            raise RecipeError(
                "the checkpoint holds no sampler, because it is of a training without SamplerCallback; continue that "
                "without it, or begin anew"
            )
        sampler = _sampler(pl_module)
        SamplerState(sampler).load_state_dict(checkpoint[_KEY])
        batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        at_batch_end = batches["total"]["completed"] < batches["total"]["processed"]
        if at_batch_end and batches["is_last_batch"] and sampler.epoch + 1 != trainer.max_epochs:
            # Lightning goes on with the next epoch, and starts the loader before it says so. It takes the batches done
            # for ones of that epoch, unless they are as many.
            sampler.set_epoch(sampler.epoch + 1)
            batches["current"]["completed"] = max(batches["current"]["completed"], len(sampler))


def _sampler(module: LightningModule) -> PlanSampler:
    return check_sampler(getattr(module, "sampler", None), f"{type(module).__name__}.sampler")
