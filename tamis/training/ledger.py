"""What each sample went through in a training, as it goes on and as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tamis.training.samplers import Batch
    from tamis.training.scores import ScoreTable

ELR_MOMENTUM = 0.7


class Ledger:
    """Running sums over the batches that held each of n samples.

    Attributes:
        losses: float64 [n], sum of its losses.
        weights: float64 [n], sum of its weights, as multiples of the plain mean's 1/m.
        targets: float32 [n, classes], the running targets of early-learning regularisation (ELR, arXiv 2007.00151,
            equation 9): t <- 0.7 t + 0.3 p from t = 0, p the model's probabilities. Where its largest entry is not
            the sample's label, the label may be wrong. Without classes, [n, 0].
    """

    def __init__(self, n: int, classes: int) -> None:
        self.losses: NDArray[np.float64] = np.zeros(n)
        self.weights: NDArray[np.float64] = np.zeros(n)
        self.targets: NDArray[np.float32] = np.zeros((n, classes), np.float32)

    def record(self, batch: Batch, probabilities: NDArray[np.float32] | None) -> None:
        """Takes a batch of all processes; probabilities are float32 [m, classes], or None without classes."""
        # An epoch of a fixed size can hold a sample twice in a batch.
        np.add.at(self.losses, batch.ids, batch.losses)
        np.add.at(self.weights, batch.ids, batch.weights * batch.ids.size)
        if probabilities is not None:
            old = ELR_MOMENTUM * self.targets[batch.ids]
            self.targets[batch.ids] = old + (1 - ELR_MOMENTUM) * probabilities[: batch.ids.size]

    def arrays(self) -> dict[str, NDArray[np.floating]]:
        """Everything, by name."""
        return {"losses": self.losses, "weights": self.weights, "targets": self.targets}

    def restore(self, arrays: dict[str, NDArray[np.floating]]) -> None:
        """Takes over what `arrays` gave."""
        for name, own in self.arrays().items():
            own[...] = arrays[name]

    def table(
        self, scores: ScoreTable, ids: Sequence[str], rows: NDArray[np.int64], classes: Sequence[str]
    ) -> pa.Table:
        """One row a sample.

        Args:
            scores: The last losses, and how often each sample was seen.
            ids: n sample ids.
            rows: int64 [n], the samples' rows in the dataset.
            classes: The classes' names, in the order of their numbers; fewer than there are to use the numbers.

        Returns:
            sample_id; row; last_loss and mean_loss; seen; weight_mean, as a multiple of the plain mean's weight; and
            with classes elr_target (the running target) and elr_class (its largest entry's class). Null where never
            seen, but for the first two and `seen`.
        """
        never = scores.seen == 0
        count = np.maximum(scores.seen, 1)
        columns = {
            "sample_id": pa.array(ids, pa.string()),
            "row": pa.array(rows, pa.int64()),
            "last_loss": pa.array(scores.live, pa.float32(), mask=never),
            "mean_loss": pa.array((self.losses / count).astype(np.float32), pa.float32(), mask=never),
            "seen": pa.array(scores.seen, pa.int64()),
            "weight_mean": pa.array((self.weights / count).astype(np.float32), pa.float32(), mask=never),
        }
        size = self.targets.shape[1]
        if size:
            names = np.array(classes[:size] if len(classes) >= size else [str(i) for i in range(size)], dtype=object)
            flat = pa.array(self.targets.reshape(-1))
            columns["elr_target"] = pa.FixedSizeListArray.from_arrays(flat, size, mask=pa.array(never))
            columns["elr_class"] = pa.array(names[self.targets.argmax(1)], pa.string(), mask=never)
        return pa.table(columns)
