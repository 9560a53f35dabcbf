"""Several processes on the gloo backend, over loopback: the same plan, and the weights of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tamis.errors import RecipeError
from tamis.training import PlanSampler, SeTaSampler
from tamis.training.ranks import Ranks, join, resolve

SCRIPT = Path(__file__).with_name("ddp_training.py")


@pytest.fixture
def run(tmp_path):
    """Train with so many processes; give what rank 0 saved."""

    def train(size, name, sampler="seta", batch=12, stop=-1, resume=None, tokens=False):
        out = tmp_path / f"{name}.pt"
        options = {
            "store": str(tmp_path / f"{name}.store"), "out": str(out), "sampler": sampler, "batch": batch,
            "stop": stop, "resume": resume and str(tmp_path / f"{resume}.pt"), "tokens": tokens,
        }  # fmt: skip
        environment = {**os.environ, "WORLD_SIZE": str(size), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        processes = [
            subprocess.Popen(
                [sys.executable, str(SCRIPT), json.dumps(options)],
                env={**environment, "RANK": str(rank)},
                stderr=subprocess.PIPE,
            )
            for rank in range(size)
        ]
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors.decode()
        return torch.load(out, weights_only=False)

    return train


def assert_same(one, other):
    for name, value in one["model"].items():
        torch.testing.assert_close(other["model"][name], value, rtol=1e-12, atol=1e-12)
    assert other["sampler"] == one["sampler"]
    for name in ("live", "seen", "frozen", "frozen_seen"):
        np.testing.assert_allclose(other["scores"][name], one["scores"][name], rtol=1e-6)


@pytest.mark.parametrize(("sampler", "tokens", "sizes"), [("seta", False, (2, 4)), ("infobatch", True, (2,))])
def test_several_processes_train_to_the_weights_of_one(run, sampler, tokens, sizes):
    one = run(1, "one", sampler, tokens=tokens)
    for size in sizes:
        many = run(size, f"of{size}", sampler, tokens=tokens)
        assert_same(one, many)
        assert many["lengths"] == -(-one["lengths"] // size)


def test_a_training_goes_on_with_another_number_of_processes(run):
    whole = run(1, "whole")
    for stop, first, then in ((3, 2, 1), (7, 1, 2)):
        run(first, f"cut{stop}", stop=stop)
        assert_same(whole, run(then, f"rest{stop}", resume=f"cut{stop}"))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 60])
@pytest.mark.parametrize("resumed", [0, 5, 31])
def test_every_number_of_processes_covers_the_same_plan(size, resumed):
    def sampler(rank, size):
        made = SeTaSampler(31, epochs=4, seed=3, num_replicas=size, rank=rank)
        made.load_state_dict({**made.state_dict(), "position": resumed})
        return made

    order = list(sampler(0, 1))
    parts = [list(sampler(rank, size)) for rank in range(size)]
    assert len({len(part) for part in parts}) == 1
    together = [part[i] for i in range(len(parts[0])) for part in parts]
    assert together[: len(order)] == order
    assert len(together) - len(order) < size
    assert set(together) == set(order)


def test_the_rank_is_asked_for_or_given():
    assert resolve(None, None) == Ranks(0, 1)
    assert resolve(4, 3) == Ranks(3, 4)
    for given in ((4, None), (None, 0), (2, 2), (2, -1)):
        with pytest.raises(RecipeError, match="rank"):
            resolve(*given)


def test_several_processes_need_torch_distributed():
    sampler = SeTaSampler(10, epochs=2, num_replicas=2, rank=0)
    with pytest.raises(RecipeError, match="distributed is not initialised"):
        sampler.step([1, 2], torch.ones(2))
    assert sampler.steps == 0
    losses = torch.ones(2, requires_grad=True)
    assert not join(losses, Ranks()).requires_grad


def test_global_order_is_that_of_one_process():
    plan = PlanSampler(20, SeTaSampler(20, epochs=3)._policy, seed=9)
    assert list(SeTaSampler(20, epochs=3, seed=9, num_replicas=2, rank=1)) == list(plan)[1::2]
