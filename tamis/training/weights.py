"""Weights of the samples in a batch, from their losses (dynamic sample reweighting, arXiv 2502.06733).

Every function takes and returns NumPy arrays or PyTorch tensors alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from tamis.errors import DataError, NonFiniteLossError, RecipeError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

STRATEGIES = ("uniform", "linupper", "quadratic", "extremes", "upper")

Schedule = Callable[[int], float]
"""The temperature r at a step, counted from 0."""


@overload
def reweight(
    losses: NDArray[np.floating[Any]], strategy: str = ..., r: float = ..., *, clip: bool = ...
) -> NDArray[np.float64]: ...


@overload
def reweight(losses: torch.Tensor, strategy: str = ..., r: float = ..., *, clip: bool = ...) -> torch.Tensor: ...


def reweight(losses: Any, strategy: str = "linupper", r: float = 0.4, *, clip: bool = False) -> Any:
    """Weights that favour some losses of the batch over others (arXiv 2502.06733, section 3, delta = 1).

    With h_i = (2 l_i - (l_max + l_min)) / max(l_max - l_min, 1e-6), from -1 for the least loss to 1 for the
    greatest::

        linupper   s = min(h + 1, 1)    low losses count less, all above the middle count the same
        upper      s = (h + 1) / 2      the higher the loss, the more
        quadratic  s = 1 - h^2          the middle counts most
        extremes   s = |h|              both ends count most
        uniform    the plain mean

    and w = softmax(s / r). The greatest weight is at most exp(1/r) times the least. Equal losses give equal
    weights, and so does an infinite r. The batch is the global one: with several processes, join their losses
    first.

    Args:
        losses: float [m], one unreduced loss a sample, finite. Leave fully masked samples out.
        strategy: One of `STRATEGIES`; the paper's best is linupper.
        r: Temperature, above 0. The paper: 1.0 for a 124M model, 0.4 above that size.
        clip: Whether to hold every weight at or below 2/m, as the paper's theory assumes; what is cut off
            goes to the other samples in proportion (evenly to those that an r near 0 has rounded to 0), so that the
            sum stays 1.

    Returns:
        Weights [m] that sum to 1 and carry no gradient: float64 for an array, the losses' dtype (and device)
        for a tensor, float32 where that is of whole numbers.

    Raises:
        RecipeError: `strategy` or `r` is not allowed.
        DataError: The losses are not one-dimensional, or there are none.
        NonFiniteLossError: A loss is NaN or infinite; the message names the positions in the batch.

    >>> reweight(np.array([1.0, 2.0, 3.0]), "upper", r=1.0).round(3)
    array([0.186, 0.307, 0.506])
    """
    if strategy not in STRATEGIES:
        raise RecipeError(f"weights are {strategy!r}; they must be one of {', '.join(STRATEGIES)}")
    if not r > 0:
        raise RecipeError(f"r is {r}; it must be above 0")
    xp, values = _prepare(losses)
    if values.ndim != 1 or len(values) == 0:
        raise DataError(f"losses have shape {tuple(values.shape)}; one dimension with at least one loss is needed")
    finite = xp.isfinite(values)
    if not finite.all():
        bad = [i for i, good in enumerate(finite.tolist()) if not good]
        raise NonFiniteLossError(f"{len(bad)} losses of the batch are NaN or infinite, at positions {bad[:10]}")
    weights = unchecked(values, strategy, r, clip=clip)
    return weights if xp is np or not losses.is_floating_point() else weights.to(losses.dtype)


def unchecked(values: Any, strategy: str, r: float, *, clip: bool) -> Any:
    """`reweight` without its checks, for losses that have had them: float64 [m], or a float32 or float64 tensor."""
    xp = _module_of(values)
    top, bottom = values.max(), values.min()
    # A tensor's range stays where it is: to look at it would wait for its device.
    span = max(top - bottom, 1e-6) if xp is np else (top - bottom).clip(min=1e-6)
    h = ((values - bottom) - (top - values)) / span
    if strategy == "linupper":
        s = (h + 1).clip(max=1)
    elif strategy == "upper":
        s = (h + 1) / 2
    elif strategy == "quadratic":
        s = 1 - h * h
    elif strategy == "extremes":
        s = abs(h)
    else:
        s = h * 0
    weights = xp.exp((s - s.max()) / r)
    weights = weights / weights.sum()
    return _cap(xp, weights, 2 / len(values)) if clip else weights


@overload
def with_importance(
    weights: NDArray[np.floating[Any]], importance: NDArray[np.floating[Any]]
) -> NDArray[np.float64]: ...


@overload
def with_importance(weights: torch.Tensor, importance: torch.Tensor) -> torch.Tensor: ...


def with_importance(weights: Any, importance: Any) -> Any:
    """Multiplies a batch's weights by its samples' importance (the manifest's), and scales them to sum 1.

    So a sample that stands for three others counts three times as much as its neighbours, and the size of a
    step does not depend on which samples happen to meet in a batch.

    Args:
        weights: Weights [m] of the batch, as from `reweight`.
        importance: float [m], above 0, of the same kind (array or tensor).

    Returns:
        Weights [m] that sum to 1: float64 for an array, the weights' dtype for a tensor.

    Raises:
        DataError: An importance is not above 0, or is not finite, or the shapes differ.
    """
    xp, factor = _prepare(importance)
    _, base = _prepare(weights)
    if factor.shape != base.shape:
        raise DataError(f"importance has shape {tuple(factor.shape)}, the batch's weights {tuple(base.shape)}")
    if not (xp.isfinite(factor) & (factor > 0)).all():
        raise DataError("importance weights must be finite and above 0")
    # Divided by its greatest value first, so that no product overflows or vanishes.
    product = base * (factor / factor.max())
    product = product / product.sum()
    return product if xp is np else product.to(weights.dtype)


@dataclass(frozen=True, slots=True)
class LinearSchedule:
    """A temperature r that goes from one value to another in a straight line, and stays there.

    Starting high and ending low weighs nearly uniformly at first, when losses say little.

    Args:
        start: r at step 0, above 0.
        end: r from step `steps` on, above 0.
        steps: Steps from one to the other, at least 1.

    Raises:
        RecipeError: A value is out of its range.

    >>> [LinearSchedule(1.0, 0.5, steps=10)(step) for step in (0, 5, 10, 99)]
    [1.0, 0.75, 0.5, 0.5]
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        if not (0 < self.start < np.inf and 0 < self.end < np.inf) or self.steps < 1:
            raise RecipeError(
                f"start is {self.start}, end {self.end} and steps {self.steps}; start and end must be above 0 and "
                "finite, steps at least 1"
            )

    def __call__(self, step: int) -> float:
        """The temperature at a step."""
        done = min(max(step, 0), self.steps) / self.steps
        return self.start + (self.end - self.start) * done


@overload
def focal(losses: NDArray[np.floating[Any]], gamma: float = ...) -> NDArray[np.float64]: ...


@overload
def focal(losses: torch.Tensor, gamma: float = ...) -> torch.Tensor: ...


def focal(losses: Any, gamma: float = 0.5) -> Any:
    """Focal weights for contrastive losses: (1 - p)^gamma, p the positive's probability (arXiv 2506.20923).

    An InfoNCE loss is -log p, so that p = exp(-loss); multiply the losses by these weights before their mean.

    Args:
        losses: float [m], InfoNCE or cross-entropy losses, finite and at least 0.
        gamma: At least 0; 0 gives weights 1.

    Returns:
        Weights [m] in [0, 1] without gradient: float64 for an array, the losses' dtype (and device) for a tensor.

    Raises:
        RecipeError: gamma is negative or not finite.
        DataError: A loss is negative.
        NonFiniteLossError: A loss is NaN or infinite.

    >>> focal(np.array([0.0, np.log(2)]), gamma=2.0).tolist()
    [0.0, 0.25]
    """
    if not 0 <= gamma < np.inf:
        raise RecipeError(f"gamma is {gamma}; it must be at least 0 and finite")
    xp, values = _prepare(losses)
    if not xp.isfinite(values).all():
        raise NonFiniteLossError("a loss is NaN or infinite")
    if (values < 0).any():
        raise DataError(f"the least loss is {float(values.min())}; -log of a probability is at least 0")
    weights = (-xp.expm1(-values)) ** gamma
    return weights if xp is np or not losses.is_floating_point() else weights.to(losses.dtype)


def _module_of(values: Any) -> Any:
    """The module that an array or a tensor is of."""
    if isinstance(values, np.ndarray):
        return np
    import torch

    if not isinstance(values, torch.Tensor):
        raise DataError(f"expected a NumPy array or a PyTorch tensor, got {type(values).__name__}")
    return torch


def _prepare(values: Any) -> tuple[Any, Any]:
    """The module for `values` (numpy or torch), and the values, detached, in a precise enough dtype."""
    xp = _module_of(values)
    if xp is np:
        return np, values.astype(np.float64)
    detached = values.detach()
    return xp, detached if detached.dtype in (xp.float32, xp.float64) else detached.float()


def _cap(xp: Any, weights: Any, cap: float) -> Any:
    """The weights in proportion, but none above `cap`, still with sum 1. Needs cap * len(weights) >= 1."""
    # Weights that underflowed to 0 must still be able to take up what is cut off elsewhere.
    weights = weights + xp.finfo(weights.dtype).tiny
    free = weights > 0
    while True:
        held = len(weights) - int(free.sum())
        scale = (1 - cap * held) / (weights * free).sum()
        capped = xp.where(free, weights * scale, cap + 0 * weights)
        over = free & (capped > cap)
        if not over.any() or cap * (held + int(over.sum())) > 1:
            return capped.clip(max=cap)
        free = free & ~over
