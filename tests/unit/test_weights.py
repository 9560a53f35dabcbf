import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.errors import DataError, NonFiniteLossError, RecipeError
from tamis.training.weights import STRATEGIES, LinearSchedule, focal, reweight, with_importance

batches = st.lists(st.floats(0, 50, width=32), min_size=1, max_size=16)
temperatures = st.floats(0.05, 10)


def by_hand(losses, strategy, r):
    """The paper's formulas with delta = 1, one sample at a time."""
    top, bottom = max(losses), min(losses)
    s = []
    for loss in losses:
        h = (2 * loss - (top + bottom)) / max(top - bottom, 1e-6)
        s.append(
            {
                "linupper": min(h + 1, 1),
                "quadratic": 1 - h**2,
                "extremes": abs(h),
                "upper": (h + 1) / 2,
                "uniform": 0.0,
            }[strategy]
        )
    scaled = [math.exp((value - max(s)) / r) for value in s]
    return [value / sum(scaled) for value in scaled]


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(batches, temperatures)
@settings(deadline=None)
def test_reweight_is_the_papers_formula(strategy, losses, r):
    weights = reweight(np.array(losses), strategy, r)
    assert weights.dtype == np.float64
    np.testing.assert_allclose(weights, by_hand(losses, strategy, r), rtol=1e-9)


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(batches, temperatures, st.booleans())
@settings(deadline=None)
def test_weights_sum_to_one_and_torch_agrees_with_numpy(strategy, losses, r, clip):
    array = np.array(losses)
    weights = reweight(array, strategy, r, clip=clip)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert (weights >= 0).all()
    if clip:
        assert weights.max() <= 2 / len(losses) * (1 + 1e-12)
    tensor = reweight(torch.from_numpy(array), strategy, r, clip=clip)
    np.testing.assert_allclose(tensor.numpy(), weights, rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("loss", [0.0, 0.1, 1e30])
def test_equal_losses_give_uniform_weights(strategy, loss):
    np.testing.assert_allclose(reweight(np.full(7, loss), strategy, 0.4), 1 / 7)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_infinite_r_gives_the_plain_mean(strategy):
    losses = np.random.default_rng(0).exponential(size=9)
    np.testing.assert_allclose(reweight(losses, strategy, math.inf), 1 / 9)
    np.testing.assert_allclose(reweight(losses, strategy, 1e9), 1 / 9, rtol=1e-6)


@pytest.mark.parametrize("strategy", ["linupper", "upper", "extremes", "quadratic"])
@pytest.mark.parametrize("r", [0.4, 1.0])
def test_greatest_to_least_weight(strategy, r):
    weights = reweight(np.array([0.0, 1.0, 2.0]), strategy, r)
    assert weights.max() / weights.min() == pytest.approx(math.exp(1 / r))


def test_weights_do_not_depend_on_the_losses_scale_or_shift():
    losses = np.random.default_rng(1).exponential(size=20)
    np.testing.assert_allclose(reweight(losses * 7 + 3, "linupper"), reweight(losses, "linupper"))


def test_two_halves_joined_are_not_two_halves_apart():
    losses = np.array([0.0, 1.0, 10.0, 11.0])
    apart = np.concatenate([reweight(losses[:2]), reweight(losses[2:])]) / 2
    assert not np.allclose(reweight(losses), apart)


def test_clip_hands_on_what_it_cuts_off_in_proportion():
    losses = np.array([0.0, 0.1, 0.2, 0.3, 10.0])
    plain, clipped = reweight(losses, "upper", 0.2), reweight(losses, "upper", 0.2, clip=True)
    assert plain[4] > 0.4
    assert clipped[4] == pytest.approx(0.4)
    np.testing.assert_allclose(clipped[:4], plain[:4] * 0.6 / plain[:4].sum())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_clip_when_all_other_weights_vanish(dtype):
    losses = torch.from_numpy(np.array([0, 0, 0, 5], dtype=dtype))
    weights = reweight(losses, "upper", 1e-4, clip=True)
    np.testing.assert_allclose(weights.numpy(), [1 / 6, 1 / 6, 1 / 6, 0.5], rtol=1e-5)


def test_single_loss():
    assert reweight(np.array([3.0]), "linupper", clip=True).tolist() == [1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_torch_keeps_dtype_and_leaves_the_graph(dtype):
    losses = torch.tensor([0.1, 2.0, 3.0], dtype=dtype, requires_grad=True)
    weights = reweight(losses, "linupper", 0.4)
    assert weights.dtype == dtype
    assert not weights.requires_grad


def test_importance_multiplies_and_normalises():
    weights = with_importance(np.array([0.5, 0.25, 0.25]), np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(weights, np.array([0.5, 0.5, 0.75]) / 1.75)
    tensor = with_importance(torch.tensor([0.5, 0.5]), torch.tensor([1e-40, 3e38]))
    assert tensor.dtype == torch.float32
    assert tensor.sum().item() == pytest.approx(1)


@given(batches)
@settings(deadline=None)
def test_equal_importance_changes_nothing(losses):
    weights = reweight(np.array(losses))
    np.testing.assert_allclose(with_importance(weights, np.full(len(losses), 7.5)), weights)


@pytest.mark.parametrize("importance", [[0.0, 1.0], [-1.0, 1.0], [math.nan, 1.0], [math.inf, 1.0], [1.0]])
def test_importance_refuses(importance):
    with pytest.raises(DataError):
        with_importance(np.array([0.5, 0.5]), np.array(importance))


@pytest.mark.parametrize("losses", [np.array([1.0, np.nan, np.inf]), torch.tensor([1.0, math.nan, math.inf])])
def test_non_finite_losses_are_named(losses):
    with pytest.raises(NonFiniteLossError, match=r"\[1, 2\]"):
        reweight(losses)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((np.ones(2), "linear", 1.0), RecipeError),
        ((np.ones(2), "linupper", 0.0), RecipeError),
        ((np.ones(2), "linupper", math.nan), RecipeError),
        ((np.ones((2, 2)), "linupper", 1.0), DataError),
        ((np.ones(0), "linupper", 1.0), DataError),
        (([1.0, 2.0], "linupper", 1.0), DataError),
    ],
)
def test_reweight_refuses(arguments, error):
    with pytest.raises(error):
        reweight(*arguments)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_is_the_papers_formula(gamma):
    probabilities = np.array([1.0, 0.9, 0.5, 1e-9])
    losses = -np.log(probabilities)
    np.testing.assert_allclose(focal(losses, gamma), (1 - probabilities) ** gamma, rtol=1e-9, atol=1e-12)
    tensor = torch.tensor(losses, dtype=torch.float32, requires_grad=True)
    weights = focal(tensor, gamma)
    assert not weights.requires_grad
    np.testing.assert_allclose(weights.numpy(), (1 - probabilities) ** gamma, rtol=1e-5, atol=1e-6)


def test_focal_refuses():
    with pytest.raises(RecipeError):
        focal(np.ones(2), -1.0)
    with pytest.raises(DataError, match="at least 0"):
        focal(np.array([-0.1]))
    with pytest.raises(NonFiniteLossError):
        focal(np.array([np.nan]))


@pytest.mark.parametrize("arguments", [(0.0, 1.0, 5), (1.0, math.inf, 5), (1.0, 1.0, 0)])
def test_a_schedule_refuses(arguments):
    with pytest.raises(RecipeError):
        LinearSchedule(*arguments)


def test_weights_of_whole_numbers_are_not_whole():
    whole, given = torch.tensor([1, 2, 3]), torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(reweight(whole), reweight(given))
    torch.testing.assert_close(focal(whole), focal(given))
