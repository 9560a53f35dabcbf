"""Image classification: a small convolutional network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import nn

from tamis.errors import DataError
from tamis.training.learner import DenseLearner, Outcome, check_labels, count_classes, digest_of, seeded, unrounded

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tamis.training.ranks import Ranks
    from tamis.training.trainer import TrainConfig

_MOMENT_ROWS = 1000
_AT_ONCE = 1 << 20  # pixels


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """Labelled images of one size.

    Attributes:
        pixels: uint8 [n, channels, height, width].
        labels: int64 [n], classes from 0.
        classes: Their names, or empty.

    Raises:
        DataError: There are none, or the shapes do not fit.
    """

    LR: ClassVar[float] = 2e-3
    ROLES: ClassVar[tuple[str, ...]] = ("image", "label")

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.dtype != np.uint8:
            raise DataError(
                f"pixels are {self.pixels.dtype} of shape {self.pixels.shape}; uint8 [n, channels, height, width] "
                "is needed"
            )
        check_labels(len(self.pixels), self.labels, "images")

    @property
    def evaluated_at_once(self) -> int:
        """See `tamis.training.learner.Samples`."""
        return max(1, _AT_ONCE // int(np.prod(self.pixels.shape[1:])))

    def __len__(self) -> int:
        """The number of images."""
        return len(self.pixels)

    def take(self, rows: NDArray[np.int64]) -> Images:
        """Some of the images, in the order given."""
        return Images(self.pixels[rows], self.labels[rows], self.classes)

    def digest(self) -> str:
        """See `tamis.training.learner.Samples`."""
        return digest_of(self.pixels, self.labels)

    def learner(self, test: Images | None, config: TrainConfig, device: torch.device, ranks: Ranks) -> DenseLearner:
        """See `tamis.training.learner.Samples`."""
        if test is not None and test.pixels.shape[1:] != self.pixels.shape[1:]:
            raise DataError(
                f"the test images are of shape {test.pixels.shape[1:]}, those to train on of {self.pixels.shape[1:]}; "
                "they must be equal: give an image_size"
            )
        classes = count_classes(self, test)
        mean, std = self._moments()
        with seeded(config.seed):
            model = SmallCNN(classes, mean, np.maximum(std, 1e-3))
        return DenseLearner(model, config.weight_decay, device, ranks)

    def _moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation of each channel, as fractions of 255, of evenly spaced images."""
        some = self.pixels[:: -(-len(self) // _MOMENT_ROWS)]
        counts = np.stack([np.bincount(some[:, c].reshape(-1), minlength=256) for c in range(some.shape[1])])
        values = np.arange(256) / 255
        mean = counts @ values / counts.sum(1)
        return mean, np.sqrt(np.maximum(counts @ values**2 / counts.sum(1) - mean**2, 0))

    def outcome(self, model: nn.Module, rows: NDArray[np.int64], device: torch.device) -> Outcome:
        """See `tamis.training.learner.DenseLearner`."""
        pixels, labels = (torch.from_numpy(part[rows]).to(device) for part in (self.pixels, self.labels))
        logits = unrounded(model(pixels))
        return Outcome(nn.functional.cross_entropy(logits, labels, reduction="none"), logits)


class SmallCNN(nn.Module):
    """Two convolutions and two linear layers, some 207,000 parameters for 10 classes; images of any size.

    Args:
        classes: Number of classes.
        mean: [channels], of the pixels as fractions of 255.
        std: [channels], likewise, above 0.
    """

    def __init__(self, classes: int, mean: NDArray[np.float64], std: NDArray[np.float64]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, (255 * torch.from_numpy(values)).to(torch.get_default_dtype()).view(1, -1, 1, 1))
        self.layers = nn.Sequential(
            nn.Conv2d(len(mean), 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True),
            nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(32 * 49, 128), nn.ReLU(), nn.Linear(128, classes),
        )  # fmt: skip

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits [m, classes] of uint8 [m, channels, height, width]."""
        logits: torch.Tensor = self.layers((pixels - self.get_buffer("mean")) / self.get_buffer("std"))
        return logits
