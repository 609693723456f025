"""Runs `train`, one of whose processes sends itself a signal after a step, once.

    python signalled_train.py SIGNAL INDEX STEP MARKER [options of train]

MARKER is a file that tells a later start that it was sent.
"""

import os
import signal
import sys
from pathlib import Path

import jax

from synrank_jax import train
from synrank_jax.cli import run_command
from synrank_jax.engine.preemption import leave_when_terminated

number, index, last, marker = sys.argv[1:5]
run = train.run


def signalled(config, dry_run=False, profile=None):
    def send(step: int) -> None:
        here = step == int(last) and jax.process_index() == int(index)
        if here and not Path(marker).exists():
            Path(marker).touch()
            os.kill(os.getpid(), signal.Signals[number])

    return run(config, dry_run, send, profile)


train.run = signalled
if __name__ == "__main__":
    leave_when_terminated()
    run_command(lambda _: train.main(sys.argv[5:]))
