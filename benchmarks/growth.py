"""What a list costs as pools, lists and texts grow: a table and a plot.

    python benchmarks/growth.py [--loss wasserstein] [--rounds 3] [--output FOLDER]

Seconds of a training step per list (and per token) with a tiny encoder, so that what grows faster
than the work of the encoder shows: queries of a pool at 4 passages of 32 tokens; passages of a list
and tokens of a text at 64 queries. The slope is that of log seconds over log size from the row
before: 0 where a step costs the same per unit. Sides take turns; medians.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from machine import console, interleaved, print_machine
from rich.table import Table
from train_inputs import write_model
from train_sides import batch_of, compiled_step

from synrank_jax.config import Config
from synrank_jax.contract import resolve_contract
from synrank_jax.data.packing import RowShapes, needs

# What grows -> its place in (queries, passages, tokens), and the points.
SWEEPS = {
    "queries of a pool": (0, [(queries, 4, 32) for queries in (64, 256, 1024, 4096)]),
    "passages of a list": (1, [(64, passages, 32) for passages in (2, 4, 8, 16, 32)]),
    "tokens of a text": (2, [(64, 4, tokens) for tokens in (32, 64, 128, 256, 512)]),
}
GRADES = (3, 2, 1, 0)


def main() -> None:
    """Print the table and write the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--loss", default="wasserstein")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/growth"))
    args = parser.parse_args()
    print_machine("jax", "jaxlib", "numpy")
    args.output.mkdir(parents=True, exist_ok=True)
    model = write_model("tiny", args.output, dropout=0.0)
    table = Table(title=f"{args.loss}, tiny encoder, seconds of a step")
    for column in ("grows", "size", "s/step", "ms/list", "us/token", "slope per token"):
        table.add_column(column, justify="left" if column == "grows" else "right")
    _, axes = plt.subplots(1, len(SWEEPS), figsize=(12, 3.6), layout="constrained")
    for axis, (name, (grows, points)) in zip(axes, SWEEPS.items(), strict=True):
        steps = {point: stepper(args.loss, model, *point) for point in points}
        seconds = interleaved(steps, args.rounds)
        sizes = [point[grows] for point in points]
        per_token = [
            seconds[queries, passages, tokens] / (queries * (1 + passages) * tokens)
            for queries, passages, tokens in points
        ]
        for place, (point, size) in enumerate(zip(points, sizes, strict=True)):
            slope = ""
            if place:
                rise = math.log(per_token[place] / per_token[place - 1])
                slope = f"{rise / math.log(size / sizes[place - 1]):+.2f}"
            taken = seconds[point]
            row = (f"{taken:.2f}", f"{1e3 * taken / point[0]:.2f}", f"{1e6 * per_token[place]:.2f}")
            table.add_row(name, str(size), *row, slope)
        axis.loglog(sizes, [1e6 * value for value in per_token], "o-")
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.set_xlabel(name)
        axis.set_ylabel("microseconds per token")
    console.print(table)
    plotted = args.output / f"{args.loss}.png"
    plt.savefig(plotted, dpi=150)
    console.print(f"plot in {plotted}")


def stepper(loss: str, model: Path, queries: int, passages: int, tokens: int) -> Any:
    """A call that takes one training step of lists whose texts all have so many tokens."""
    config = {
        "model": {"path": str(model)},
        "encoding": {"query_length": tokens, "passage_length": tokens},
        "data": {
            "sources": [{"path": "none", "split": "train"}],
            "grades": sorted(GRADES),
            "list_size": passages,
            "prepared": "none",
        },
        "loss": {loss: 1.0},
        "optimizer": {"learning_rate": 1e-5},
        "train": {"output": "none", "steps": 100, "global_batch_size": queries},
    }
    contract = resolve_contract(Config.model_validate(config)).model_dump(mode="json")
    job = {"config": config, "contract": contract, "model": model, "length": tokens, "steps": 100}
    state, train_step = compiled_step(job)
    rng = np.random.default_rng(0)
    lengths = np.full((1, queries * (1 + passages)), tokens)
    starts = np.cumsum(lengths, axis=1) - lengths
    grades = np.tile(np.resize(GRADES, passages), (1, queries, 1))
    shapes = RowShapes(needs(lengths), tokens)
    batch = batch_of(rng.integers(1000, 30000, lengths.sum()), starts, lengths, grades, shapes)

    def step() -> None:
        nonlocal state
        state, metrics = train_step(state, batch)
        jax.block_until_ready(metrics)

    return step


if __name__ == "__main__":
    main()
