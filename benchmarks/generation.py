"""Lists per second and memory of `generate`, and what the ledger costs.

    python benchmarks/generation.py [--part lists ledger] [--queries 10000] [--rounds 3]

lists: the whole command, start to last output file, against the scripted server of the tests, which
answers at once (60 words a passage) on the same cores; with the shipped web prompt, every passage
recognised as English, and 64 requests under way. The rate is that of the bar: without start-up,
with writing the output. Memory is sampled once a second; --queries 200000 shows whether it grows.
ledger: rows of 3 kB committed in batches of 25 (a tenth of a second at 250 lists/s) by SQLite in
WAL mode with synchronous FULL (the ledger) and NORMAL, and by JSON lines with fsync; the SQLite
sides keep their index, the JSON lines side must be read whole at every start.
"""

import argparse
import json
import os
import re
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import yaml
from machine import console, interleaved, print_machine
from rich.table import Table

SERVER = Path(__file__).parents[1] / "tests" / "generation" / "scripted_server.py"
ROWS, BATCH = 5000, 25


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--part", nargs="+", choices=("lists", "ledger"), default=["lists", "ledger"]
    )
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print_machine("openai", "aiohttp", "rich", "pydantic")
    with tempfile.TemporaryDirectory() as folder:
        if "ledger" in args.part:
            ledger_table(Path(folder), args.rounds)
        if "lists" in args.part:
            lists_table(Path(folder), args.queries, args.rounds)


def lists_table(folder: Path, queries: int, rounds: int) -> None:
    """Rate and memory of whole runs."""
    table = Table(title=f"generate, {queries:,} queries, server on the same cores")
    for name in ("round", "lists/s", "whole command", "MB at 10 %", "50 %", "100 % of the time"):
        table.add_column(name, justify="right")
    rates = []
    for number in range(rounds):
        with subprocess.Popen(
            [sys.executable, SERVER], stdout=subprocess.PIPE, text=True
        ) as server:
            try:
                assert server.stdout is not None
                port = int(server.stdout.readline())
                seconds, rate, memory = one_run(folder / str(number), queries, port)
            finally:
                server.kill()
        rates.append(rate)
        at = [memory[min(int(share * len(memory)), len(memory) - 1)] for share in (0.1, 0.5, 1)]
        table.add_row(
            str(number + 1), f"{rate:.0f}", f"{seconds:.0f} s", *(f"{value:.0f}" for value in at)
        )
    console.print(table)
    console.print(f"median {statistics.median(rates):.0f} lists/s")


def one_run(folder: Path, queries: int, port: int) -> tuple[float, float, list[float]]:
    """(seconds, lists per second of work, resident MB once a second)."""
    folder.mkdir()
    (folder / "queries.tsv").write_text(
        "".join(f"q{n}\twhat is known about subject number {n}\n" for n in range(queries))
    )
    config = {
        "queries": {"path": str(folder / "queries.tsv")},
        "backend": {"model": "scripted", "endpoints": [f"http://127.0.0.1:{port}/v1"]},
        "rules": {"language_code": "en"},
        "output": str(folder / "out"),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "synrank_jax.generate", "--config", folder / "config.yaml"]
    began, memory = time.monotonic(), list[float]()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            if resident := re.search(r"VmRSS:\s+(\d+)", status):
                memory.append(int(resident[1]) / 1000)
            time.sleep(1)
        assert process.returncode == 0
    seconds = time.monotonic() - began
    with sqlite3.connect(folder / "out" / "ledger.sqlite") as ledger:
        ((rows, first, last),) = ledger.execute("SELECT count(*), min(at), max(at) FROM answers")
    assert rows == queries
    return seconds, rows / (last - first), memory


def ledger_table(folder: Path, rounds: int) -> None:
    """Rows per second of the three ways."""
    row = json.dumps({"passages": ["word " * 150] * 4})
    sides: dict[str, Callable[[], object]] = {
        "SQLite, WAL, FULL": lambda: sqlite_rows(folder, "FULL", row),
        "SQLite, WAL, NORMAL": lambda: sqlite_rows(folder, "NORMAL", row),
        "JSON lines, fsync": lambda: json_rows(folder, row),
    }
    seconds = interleaved(sides, rounds)
    table = Table(title=f"{ROWS:,} rows of {len(row):,} bytes, commits of {BATCH}")
    for name in ("", "rows/s"):
        table.add_column(name, justify="right")
    for name, median in seconds.items():
        table.add_row(name, f"{ROWS / median:,.0f}")
    console.print(table)


def sqlite_rows(folder: Path, synchronous: str, row: str) -> None:
    """Write the rows, then remove them."""
    path = folder / "rows.sqlite"
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute(f"PRAGMA synchronous = {synchronous}")
    database.execute(
        "CREATE TABLE rows (id TEXT, part INTEGER, attempt INTEGER, text TEXT, "
        "PRIMARY KEY (id, part, attempt)) WITHOUT ROWID"
    )
    for start in range(0, ROWS, BATCH):
        database.execute("BEGIN")
        database.executemany(
            "INSERT INTO rows VALUES (?, 0, 0, ?)", [(f"q{start + n}", row) for n in range(BATCH)]
        )
        database.execute("COMMIT")
    database.close()
    path.unlink()


def json_rows(folder: Path, row: str) -> None:
    """Write the rows, then remove them."""
    path = folder / "rows.jsonl"
    with path.open("w") as file:
        for start in range(0, ROWS, BATCH):
            file.write("".join(f'{{"id": "q{start + n}", "row": {row}}}\n' for n in range(BATCH)))
            file.flush()
            os.fsync(file.fileno())
    path.unlink()


if __name__ == "__main__":
    main()
