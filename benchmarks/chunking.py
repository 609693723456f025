"""Gradient caching: memory and time of a training step against `train.encode_chunk_size`.

    python benchmarks/chunking.py [--queries 512] [--chunk 32] [--tokens 128] [--rounds 5]

Lists of 4, every text of --tokens tokens, MiniLM, the grade-axis loss, one device. Memory is XLA's
own analysis of the compiled step: --queries in chunks of --chunk, against --chunk queries at once,
and for scale --queries at once. Time is that of steps over --timed queries, at once against chunks
of half of --chunk; the sides take turns, medians.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from machine import console, interleaved, print_machine
from rich.table import Table

from synrank_jax.config import Config
from synrank_jax.config_file import load_config
from synrank_jax.contract import resolve_contract
from synrank_jax.data.packing import RowShape, block_borders, pack
from synrank_jax.engine.batches import to_devices
from synrank_jax.engine.encoding import load_model
from synrank_jax.engine.state import abstract_state, initial_state, split_model
from synrank_jax.engine.step import make_train_step
from synrank_jax.optim import make_optimizer
from synrank_jax.parallel.mesh import make_mesh
from synrank_jax.types import Batch

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
LIST_SIZE = 4


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("queries", 512), ("chunk", 32), ("tokens", 128), ("timed", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print_machine("jax", "jaxlib", "flax", "optax")
    config = load_config(QUICKSTART)
    step = Step(config)

    table = Table(title=f"memory of a step, lists of {LIST_SIZE} x {args.tokens} tokens")
    for column in ("queries", "chunk", "arguments", "temporaries", "of the first"):
        table.add_column(column, justify="right")
    first = 0
    sizes = ((args.chunk, args.chunk), (args.queries, args.chunk), (args.queries, args.queries))
    for queries, chunk in sizes:
        memory = step.compiled(batch(queries, chunk, args.tokens)).memory_analysis()
        first = first or memory.temp_size_in_bytes
        table.add_row(
            str(queries),
            str(chunk),
            f"{memory.argument_size_in_bytes / 2**20:,.0f} MiB",
            f"{memory.temp_size_in_bytes / 2**20:,.0f} MiB",
            f"{memory.temp_size_in_bytes / first:.2f}x",
        )
    console.print(table)

    if args.rounds:
        sides = {"at once": args.timed, f"chunks of {args.chunk // 2}": args.chunk // 2}
        runs = {}
        for name, chunk in sides.items():
            host = batch(args.timed, chunk, args.tokens)
            runs[name] = step.runner(host)
        seconds = interleaved(runs, args.rounds)
        whole, chunked = seconds.values()
        console.print(
            f"{args.timed} queries: {whole:.2f} s at once, {chunked:.2f} s in chunks of "
            f"{args.chunk // 2}: {chunked / whole - 1:+.0%}"
        )


def batch(queries: int, chunk: int, tokens: int) -> Batch:
    """One pool of full-length texts in rows of `chunk` queries."""
    rng = np.random.default_rng(0)
    rows, texts = queries // chunk, chunk * (1 + LIST_SIZE)
    lengths = np.full((rows, texts), tokens)
    starts = np.arange(rows * texts).reshape(rows, texts) * tokens
    shape = RowShape(texts * tokens, (tokens,) * (len(block_borders(texts)) - 1))
    packed = pack(rng.integers(1000, 20000, rows * texts * tokens), starts, lengths, shape)
    lists = (1, queries, LIST_SIZE)
    return Batch(
        texts=jax.tree.map(lambda leaf: leaf[None], packed),
        labels=np.broadcast_to(np.float32([3, 2, 1, 0]), lists),
        where=np.ones(lists, bool),
        passage_ids=np.arange(queries * LIST_SIZE, dtype=np.int32).reshape(lists),
        excluded_ids=np.zeros((1, queries, 0), np.int32),
        sample_ids=np.arange(queries, dtype=np.int32)[None],
    )


class Step:
    """The training step of a configuration on one device."""

    def __init__(self, config: Config) -> None:
        contract = resolve_contract(config)
        structure, self._params = split_model(load_model(config.model, contract))
        self._mesh = make_mesh(config.mesh, jax.devices()[:1])
        self._tx = make_optimizer(config.optimizer, 100)
        self._step = make_train_step(structure, self._tx, config, contract, self._mesh)

    def compiled(self, host: Batch) -> Any:
        """For the batch's shapes."""
        state = abstract_state(self._params, self._tx, self._mesh)
        return self._step.lower(state, host).compile()

    def runner(self, host: Batch) -> Any:
        """A call that takes one step from where the last one ended."""
        placed = to_devices(host, self._mesh)
        # A step donates its state.
        state = initial_state(jax.tree.map(jnp.copy, self._params), self._tx, self._mesh)

        def run() -> None:
            nonlocal state
            state, metrics = self._step(state, placed)
            jax.block_until_ready(metrics)

        return run


if __name__ == "__main__":
    main()
