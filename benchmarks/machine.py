"""What the benchmarks share: the machine's description and fair turns."""

import importlib.metadata
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

console = Console(width=120)


def print_machine(*packages: str) -> None:
    """Processor, load and versions."""
    names = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    console.print(f"{names[0]}, {os.cpu_count()} cores, load {load}, {platform.platform()}")
    console.print(f"Python {platform.python_version()}, {versions}")


def interleaved(contenders: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each contender, after one call to warm up."""
    for run in contenders.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    order = random.Random(0)  # noqa: S311
    for _ in range(rounds):
        # Shuffled: threads that one library leaves spinning slow down whoever comes next.
        for name in order.sample(list(contenders), len(contenders)):
            start = time.perf_counter()
            contenders[name]()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}
