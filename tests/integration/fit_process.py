"""One process of a training: `python fit_process.py OUT KIND KILL_AT CHANGES`, with torchrun's variables."""

import json
import os
import signal
import sys
from pathlib import Path

import torch

from tamis.training import fit
from tamis.training.ranks import process_group


def main(out, kind, kill_at, changes):
    from test_models import WEIGHTS, config_of, samples_of

    def on_progress(progress):
        if progress.steps == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_default_dtype(torch.float64)
    samples, test = samples_of(kind)
    with process_group(torch.device("cpu")):
        result = fit(samples, WEIGHTS, test, config_of(kind, **changes), Path(out), on_progress)
    assert (result.ledger is None) == (int(os.environ["RANK"]) > 0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4]))
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort the interpreter's own end ("terminate called without an active exception")
