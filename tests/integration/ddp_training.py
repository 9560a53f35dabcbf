"""One process of a small training: `python ddp_training.py OPTIONS`, with RANK and WORLD_SIZE (test_distributed.py)."""

import json
import os
import sys

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from tamis.training import InfoBatchSampler, SeTaSampler, WithIndex

N, D, CLASSES = 53, 6, 3


def main(options):
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{options['store']}", rank=rank, world_size=size)
    rng = np.random.default_rng(0)
    X = torch.from_numpy(rng.standard_normal((N, D)))
    y = torch.from_numpy(rng.integers(0, CLASSES, N))
    counts = rng.integers(1, 9, N)
    torch.manual_seed(1)
    model = torch.nn.Linear(D, CLASSES, dtype=torch.float64)
    common = {"epochs": 6, "seed": 5, "importance": rng.uniform(0.5, 2, N), "epoch_size": "pruned"}
    if options["sampler"] == "seta":
        sampler = SeTaSampler(N, num_group=4, strategy="linupper", warmup_steps=2, **common)
    else:
        sampler = InfoBatchSampler(N, **common)
    first = 0
    if options["resume"]:
        saved = torch.load(options["resume"], weights_only=False)
        model.load_state_dict(saved["model"])
        sampler.load_state_dict(saved["sampler"])
        sampler.scores.load_state_dict(saved["scores"])
        first = sampler.epoch
    wrapped = DistributedDataParallel(model) if size > 1 else model
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    data = WithIndex(list(zip(X, y, strict=True)))
    loader = DataLoader(data, sampler=sampler, batch_size=options["batch"] // size)
    batches = []

    def save():
        if rank == 0:
            state = {
                "model": model.state_dict(),
                "sampler": sampler.state_dict(),
                "scores": sampler.scores.state_dict(),
                "batches": batches,
                "lengths": len(sampler),
            }
            torch.save(state, options["out"])

    for epoch in range(first, 6):
        sampler.set_epoch(epoch)
        for ids, (features, labels) in loader:
            losses = torch.nn.functional.cross_entropy(wrapped(features), labels, reduction="none")
            loss = sampler.step(ids, losses, counts[ids.numpy()] if options["tokens"] else None)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            batches.append(ids.tolist())
            if sampler.steps == options["stop"]:
                save()
                return
    save()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    os._exit(0)  # gloo's threads may abort the interpreter's own end ("terminate called without an active exception")
