"""Training speed, side by side: ours, Trove and sentence-transformers on the same work.

    python benchmarks/train_step.py [--model minilm] [--lists cranfield-synthetic ...]
        [--sides ours:wasserstein trove-infonce st-mnrl ...]
        [--trove-python PATH] [--st-python PATH]

One process per side, each with its own trainer and optimizer step: same weights, same lists in the
same order (checked by their tokens), same lengths, batch, precision and dropout. The sides take
turns, one step each; a ratio is the median over the rounds of other's seconds by ours in the same
round. Times are from the end of a step to the end of the next, so reading and tokenising count.

Peers live in environments of their own (versions: benchmarks/README.md); sides without one are
left out. `--pretokenized` feeds our compiled step from arrays instead, without grain; the arrays of
an earlier call (of the same rounds) are used again. A JSON file of all figures goes to --output.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from machine import console, print_machine
from rich.table import Table
from train_inputs import LIST_SETS, write_lists, write_model

from synrank_jax.config import Config
from synrank_jax.contract import resolve_contract
from synrank_jax.models.bert import BertConfig
from synrank_jax.models.flops import step_flops

PEERS = ("trove-infonce", "trove-kl", "st-mnrl", "st-cached")
OURS = ("ours:wasserstein", "ours:infonce", "ours:listnet_kl", "ours:gaussian_wasserstein")
TEMPERATURE, LIST_SIZE, LEARNING_RATE = 0.05, 4, 1e-5
# InfoNCE with the top grade as the positive is one function on all three sides, and so is the first
# loss of equal weights on equal lists; float32 sums in another order.
SAME_LOSS, LOSS_TOLERANCE = ("ours:infonce", "trove-infonce", "st-mnrl", "st-cached"), 1e-3


class Side:
    """A contender's process."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        self.name = name
        self.reports: list[dict[str, Any]] = []
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed by close
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )

    def step(self) -> None:
        """Let it take a step; the first begins with the process."""
        if self.reports:
            print(file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise SystemExit(f"{self.name} ended early:\n{self._errors.read()[-4000:]}")
        self.reports.append(json.loads(line))

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._errors.close()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=("minilm", "bert-base"), default="minilm")
    parser.add_argument("--lists", nargs="+", choices=LIST_SETS, default=list(LIST_SETS))
    parser.add_argument("--sides", nargs="+", default=[*OURS, *PEERS], metavar="SIDE")
    parser.add_argument("--trove-python", help="Python of an environment with Trove")
    parser.add_argument("--st-python", default=sys.executable, help="with sentence-transformers")
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared/data")
    parser.add_argument("--queries", type=int, default=16, help="lists of a batch")
    parser.add_argument("--length", type=int, default=256, help="most tokens of a text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--torch-compile", action="store_true")
    parser.add_argument("--cold", action="store_true", help="also start once without a cache")
    parser.add_argument("--pretokenized", action="store_true", help="our step from arrays")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/train_step"))
    args = parser.parse_args()
    print_machine("jax", "jaxlib", "flax", "numpy", "torch")
    pythons = {"ours": sys.executable, "trove": args.trove_python, "st": args.st_python}
    pythons = {kind: path for kind, path in pythons.items() if path}
    sides = [side for side in args.sides if kind_of(side) in pythons]
    for side in set(args.sides) - set(sides):
        console.print(f"{side}: left out, --trove-python is not given")
    peaks = matmul_peaks(pythons, args.dtype)
    console.print(
        "matmul peak: " + ", ".join(f"{name} {x / 1e9:.0f} GFLOP/s" for name, x in peaks.items())
    )
    args.output.mkdir(parents=True, exist_ok=True)
    model = write_model(args.model, args.output / "models", args.dropout)
    figures = {}
    for name in args.lists:
        if not (source := LIST_SETS[name](args.shared)).is_dir():
            console.print(f"{name}: left out, {source} is not here")
            continue
        figures[name] = measure(args, name, source, model, sides, pythons, max(peaks.values()))
    written = args.output / f"{args.model}.json"
    written.write_text(json.dumps({"peaks": peaks, "lists": figures}, indent=1), "utf-8")
    console.print(f"all figures in {written}")


def kind_of(side: str) -> str:
    """`ours`, `trove` or `st`."""
    return side.partition("-")[0].partition(":")[0]


def matmul_peaks(pythons: dict[str, str], dtype: str) -> dict[str, float]:
    """FLOP/s of each environment's own matmul, one after the other."""
    peaks = {}
    for library, kind in (("jax", "ours"), ("torch", "trove"), ("torch", "st")):
        if kind in pythons:
            sides = str(Path(__file__).with_name("train_sides.py"))
            command = [pythons[kind], sides, "peak", library, dtype]
            told = subprocess.run(command, check=True, capture_output=True, text=True)
            peaks[f"{library} of {kind}"] = float(told.stdout.split()[-1])
    return peaks


def measure(
    args: argparse.Namespace,
    name: str,
    source: Path,
    model: Path,
    sides: list[str],
    pythons: dict[str, str],
    peak: float,
) -> dict[str, Any]:
    """Run all sides on one set of lists and print its tables; returns the reports."""
    inputs = args.output / f"{name}-{args.queries}-{args.rounds}"
    steps = 2 + args.rounds  # a first one, the rounds, and a last one that is never taken
    count = steps * args.queries
    if args.pretokenized and (inputs / "tokens.npz").exists():
        order = list(range(count))
    else:
        from synrank_jax.data.pipeline import epoch_order

        shutil.rmtree(inputs, ignore_errors=True)
        write_lists(source, inputs, count, LIST_SIZE, model, args.length)
        order = epoch_order(0, 0, count).tolist()
    with ExitStack() as closing:
        processes: dict[str, Side] = {}

        def start(side: str, cache: Path) -> None:
            job = job_of(args, side, inputs, model, order, steps)
            closing.enter_context(started(processes, side, job, pythons[kind_of(side)], cache))
            processes[side].step()

        cache = Path(closing.enter_context(tempfile.TemporaryDirectory()))
        ours = next((side for side in sides if kind_of(side) == "ours"), None)
        cold = None
        if ours is not None and args.cold:
            start(ours, cache)
            cold = processes.pop(ours)
            cold.close()
        for side in sides:
            start(side, cache)
        check_same_lists(processes)
        for number in range(args.rounds):
            # Every other round the other way round, so that nobody always comes after the same.
            for side in sides if number % 2 else sides[::-1]:
                processes[side].step()
        check_same_lists(processes)
    print_tables(args, name, processes, cold, peak, model)
    return {side: process.reports for side, process in processes.items()}


@contextmanager
def started(
    processes: dict[str, Side], side: str, job: dict[str, Any], python: str, cache: Path
) -> Iterator[None]:
    """A side's process until the end of the block."""
    with tempfile.TemporaryDirectory() as folder:
        job["output"] = str(Path(folder) / "run")
        if "config" in job:
            job["config"]["train"]["output"] = job["output"]
        written = Path(folder) / "job.json"
        written.write_text(json.dumps(job), "utf-8")
        sides = str(Path(__file__).with_name("train_sides.py"))
        environment = {
            **environment_variables(),
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "HF_HOME": folder,
        }
        processes[side] = Side(side, [python, sides, job["side"], str(written)], environment)
        try:
            yield
        finally:
            if side in processes:
                processes[side].close()


def environment_variables() -> dict[str, str]:
    """This process' own, and nobody reaches for a network."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}


def job_of(
    args: argparse.Namespace,
    side: str,
    inputs: Path,
    model: Path,
    order: list[int],
    steps: int,
) -> dict[str, Any]:
    """What a side is told."""
    job: dict[str, Any] = {
        "side": side,
        "inputs": str(inputs),
        "model": str(model),
        "order": order,
        "steps": steps,
        "queries": args.queries,
        "list_size": LIST_SIZE,
        "length": args.length,
        "temperature": TEMPERATURE,
        "learning_rate": LEARNING_RATE,
        "dtype": args.dtype,
        "compile": args.torch_compile,
    }
    if kind_of(side) != "ours":
        return job
    config = {
        "model": {
            "path": str(model),
            "dropout": args.dropout,
            "compute_dtype": args.dtype,
        },
        "encoding": {"query_length": args.length, "passage_length": args.length},
        "data": {
            "sources": [{"path": str(inputs), "split": "train"}],
            "grades": [0, 1, 2, 3],
            "list_size": LIST_SIZE,
            "prepared": str(inputs / "prepared"),
        },
        "loss": {side.partition(":")[2]: 1.0, "temperature": TEMPERATURE},
        "optimizer": {"learning_rate": LEARNING_RATE, "clip_norm": 1.0},
        "train": {
            "output": "none",
            "steps": steps,
            "global_batch_size": args.queries,
            "log_every": 1,
        },
    }
    checked = Config.model_validate(config)
    if args.pretokenized:
        contract = resolve_contract(checked).model_dump(mode="json")
        return {**job, "side": "arrays", "config": config, "contract": contract}
    if not (inputs / "prepared").exists():
        from synrank_jax import prepare

        written = inputs / "config.json"
        written.write_text(json.dumps(config), "utf-8")
        prepare.main(["--config", str(written)])
    return {**job, "side": "synrank", "config": config}


def check_same_lists(processes: dict[str, Side]) -> None:
    """Every side saw the same texts in every step, and the same function gave the same loss."""
    for reports in zip(*(process.reports for process in processes.values()), strict=True):
        tokens = {name: report["tokens"] for name, report in zip(processes, reports, strict=True)}
        if len(set(tokens.values())) > 1:
            raise SystemExit(f"the sides trained on different texts: tokens {tokens}")
    losses = {
        name: process.reports[0]["loss"] for name, process in processes.items() if name in SAME_LOSS
    }
    if losses and max(losses.values()) - min(losses.values()) > LOSS_TOLERANCE:
        raise SystemExit(f"the first loss of InfoNCE differs: {losses}")


def print_tables(
    args: argparse.Namespace,
    name: str,
    processes: dict[str, Side],
    cold: Side | None,
    peak: float,
    model: Path,
) -> None:
    """Rates of the timed steps, and start-up."""
    encoder = BertConfig.read(model)
    timed = {side: process.reports[1:] for side, process in processes.items()}
    peers = [side for side in timed if kind_of(side) != "ours"]
    median = {side: statistics.median(step["seconds"] for step in timed[side]) for side in timed}
    best = min(peers, key=median.__getitem__) if peers else None
    lists = np.load(args.output / f"{name}-{args.queries}-{args.rounds}" / "tokens.npz")
    squares = float((lists["lengths"].astype(float) ** 2).sum() / len(lists["lengths"]))
    table = Table(
        title=f"{args.model}, {name}: {args.queries} lists of {LIST_SIZE}, {args.length} tokens, "
        f"{args.dtype}, dropout {args.dropout:g}, {args.rounds} rounds"
    )
    columns = ("side", "s/step", "spread", "lists/s", "passages/s", "tokens/s", "padding", "MFU")
    for column in (*columns, "peak GB", "x best peer", "CPU x", "bound"):
        table.add_column(column, justify="left" if column == "side" else "right")
    for side, steps in timed.items():
        seconds = [step["seconds"] for step in steps]
        tokens = sum(step["tokens"] for step in steps)
        # Medians: a step of a new shape is compiled within its round.
        rate = statistics.median(step["tokens"] / step["seconds"] for step in steps)
        pairs = LIST_SIZE * args.queries**2
        utilisation = statistics.median(
            step_flops(encoder, step["tokens"], squares * args.queries, pairs) / step["seconds"]
            for step in steps
        )
        row = [
            side,
            f"{median[side]:.2f}",
            f"{min(seconds):.2f} to {max(seconds):.2f}",
            f"{args.queries / median[side]:.2f}",
            f"{LIST_SIZE * args.queries / median[side]:.1f}",
            f"{rate:,.0f}",
            f"{1 - tokens / sum(step['slots'] for step in steps):.1%}",
            f"{utilisation / peak:.0%}",
            f"{processes[side].reports[-1]['peak_bytes'] / 1e9:.2f}",
        ]
        if best is not None and side not in peers:
            bound = ratio(timed[best], steps, "slots", "tokens")
            row += [
                f"{ratio(timed[best], steps, 'seconds'):.2f}",
                f"{ratio(timed[best], steps, 'cpu_s'):.2f}",
                f"{bound:.2f}",
            ]
        table.add_row(*row)
    console.print(table)
    if best is not None:
        console.print(
            f"best peer: {best}; x best peer and CPU x: its seconds and CPU-seconds by the side's, "
            "median of the rounds; bound: its token slots by the tokens"
        )
    starts = [
        f"{side} {process.reports[0]['seconds']:.1f} s" for side, process in processes.items()
    ]
    if cold is not None:
        first = cold.reports[0]
        starts.append(
            f"{cold.name} without compiled programs {first['seconds']:.1f} s"
            + (f", {first['compile_s']:.1f} s of it compiling" if "compile_s" in first else "")
        )
    console.print("from Python's start to the end of the first step: " + "; ".join(starts))


def ratio(
    others: list[dict[str, Any]], own: list[dict[str, Any]], field: str, by: str | None = None
) -> float:
    """Median over the rounds of the other's `field` by our `by`."""
    return statistics.median(
        other[field] / step[by or field] for other, step in zip(others, own, strict=True)
    )


if __name__ == "__main__":
    main()
