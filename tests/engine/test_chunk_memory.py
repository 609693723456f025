"""Gradient caching keeps its promise: a large pool in the memory of one chunk."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "chunking.py"
# The pool's embeddings, their gradients and its scores come on top of a chunk's activations.
ROOM = 1.3


@pytest.mark.slow
def test_512_queries_in_chunks_of_32_need_little_more_than_32_queries():
    """XLA's memory analysis of the compiled steps of MiniLM, as the benchmark prints it."""
    command = [sys.executable, str(BENCHMARK), "--rounds", "0"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = {
        tuple(map(int, row[:2])): float(row[-1].removesuffix("x"))
        for row in (re.findall(r"[\d.,]+x?", line) for line in printed.splitlines() if "│" in line)
        if len(row) == 5
    }
    assert rows[32, 32] == 1.0
    assert rows[512, 32] <= ROOM < rows[512, 512], printed
