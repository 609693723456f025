"""Several training processes on this machine, as several hosts would run them, for trials.

    python launch/local.py --processes 2 -- --config configs/quickstart.yaml

Everything after `--` goes to `python -m synrank_jax.train`. They run on the CPU and talk over gloo.
Each line they print comes with the number of the process, and a last one says how it ended. The
exit code is that of the first process that failed. With --restarts, all are started again after a
preemption or a lost host, as the launchers of clusters do.
"""

import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import NamedTuple

from synrank_jax.cli import EXIT_HOST_LOST, EXIT_PREEMPTED, run_command
from synrank_jax.errors import UserError

TRAIN = (sys.executable, "-m", "synrank_jax.train")
# When one ends, the others name it and end by themselves; those that do not in this time are ended.
GRACE_S = 30.0
POLL_S = 0.1


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


class Child(NamedTuple):
    """A process, its number, and the thread that prints what it prints."""

    index: int
    process: subprocess.Popen[str]
    echo: threading.Thread


def commands(
    processes: int, devices: int, address: str, command: Sequence[str]
) -> list[Sequence[str]]:
    """What is run: `command` in its environment, with the options that tell of each other."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = ("JAX_PLATFORMS=cpu", f"XLA_FLAGS={flags.strip()}", "PYTHONUNBUFFERED=1")
    where = ("--coordinator", address, "--process-count", str(processes))
    return [
        ("env", *environment, *command, *where, "--process-index", str(index))
        for index in range(processes)
    ]


def start(processes: int, devices: int, command: Sequence[str]) -> list[Child]:
    """The processes; each line they print goes to our stdout after their number."""
    children = []
    address = f"127.0.0.1:{free_port()}"
    for index, words in enumerate(commands(processes, devices, address, command)):
        process = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl-C comes to us, and we forward it
        )
        thread = threading.Thread(target=echo, args=(index, process), daemon=True)
        thread.start()
        children.append(Child(index, process, thread))
    return children


def echo(index: int, process: subprocess.Popen[str]) -> None:
    """Print what a process prints."""
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            print(f"[{index}] {line}", end="", flush=True)


def wait(children: Sequence[Child], grace_s: float) -> list[int]:
    """Exit codes of all, in the order in which they ended; a failure ends the others.

    As a shell has it: 128 + the signal that ended a process.
    """
    codes: list[int] = []
    running = list(children)
    ends: float | None = None
    while running:
        for child in [child for child in running if child.process.poll() is not None]:
            child.echo.join()
            running.remove(child)
            code = child.process.returncode
            codes.append(code if code >= 0 else 128 - code)
            print(f"[{child.index}] ended with exit code {codes[-1]}", flush=True)
            if codes[-1] and ends is None:
                ends = time.monotonic() + grace_s
        if ends is not None and time.monotonic() > ends:
            for child in running:
                child.process.kill()
        time.sleep(POLL_S)
    return codes


def run(processes: int, devices: int, restarts: int, command: Sequence[str]) -> int:
    """Run until all have ended; the exit code of the first that failed, 0 if none did.

    Args:
        processes: How many.
        devices: Virtual CPU devices of each.
        restarts: How often all are started again after exit code 75 or 76.
        command: What each runs; the options that tell them of each other are added.
    """
    children: list[Child] = []
    asked = False

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        for child in children:
            if child.process.poll() is None:
                child.process.send_signal(number)

    asking = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, forward) for number in asking]
    try:
        while True:
            children[:] = start(processes, devices, command)
            failed = [code for code in wait(children, GRACE_S) if code]
            restart = bool({EXIT_PREEMPTED, EXIT_HOST_LOST} & set(failed))
            if asked or not restart or not restarts:
                break
            restarts -= 1
            print("starting all processes again", flush=True)
    finally:
        for number, handler in zip(asking, before, strict=True):
            signal.signal(number, handler)
    return failed[0] if failed else 0


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, required=True, metavar="N", help="how many")
    parser.add_argument(
        "--devices-per-process", type=int, default=1, metavar="K", help="virtual CPU devices each"
    )
    parser.add_argument(
        "--restarts", type=int, default=0, metavar="M", help="start again so often (exit 75, 76)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run none")
    parser.add_argument("arguments", nargs="+", metavar="-- ARGUMENT", help="of train")
    args = parser.parse_args(argv)
    for name, least in (("processes", 1), ("devices_per_process", 1), ("restarts", 0)):
        if (value := getattr(args, name)) < least:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least {least}")
    size, command = (args.processes, args.devices_per_process), [*TRAIN, *args.arguments]
    if args.dry_run:
        for words in commands(*size, "127.0.0.1:PORT", command):
            print(shlex.join(words))
        return
    raise SystemExit(run(*size, args.restarts, command))


if __name__ == "__main__":
    run_command(main)
