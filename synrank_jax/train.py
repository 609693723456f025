"""Train a dual encoder on prepared graded lists; the same command again resumes.

    python -m synrank_jax.train --config configs/quickstart.yaml --set train.epochs=1

Everything is written to train.output: config.yaml, metrics.jsonl (one record per step),
tensorboard/ and checkpoints/.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from synrank_jax.cli import config_parser, parsed_config, run_command
from synrank_jax.config import Config, TrainConfig
from synrank_jax.contract import resolve_contract
from synrank_jax.data.pipeline import PreparedLists, batches
from synrank_jax.engine.batches import on_devices
from synrank_jax.engine.checkpoint import CHECKPOINTS, Checkpoints
from synrank_jax.engine.compilation import use_compilation_cache
from synrank_jax.engine.encoding import load_model
from synrank_jax.engine.monitor import StepMonitor
from synrank_jax.engine.preemption import stop_signals
from synrank_jax.engine.runfolder import (
    check_grades,
    check_same_data,
    claim,
    locked,
)
from synrank_jax.engine.state import (
    LOG_TEMPERATURE,
    TrainState,
    abstract_state,
    initial_state,
    split_model,
)
from synrank_jax.engine.step import make_train_step
from synrank_jax.optim import learning_rate_schedule, make_optimizer
from synrank_jax.parallel.mesh import check_pool_divides, make_mesh
from synrank_jax.tracking import METRICS_FILE, MetricsLog
from synrank_jax.types import Batch


@dataclass(frozen=True)
class Finished:
    """What a completed run leaves."""

    state: TrainState
    folder: Path
    steps: int


def run(
    config: Config, dry_run: bool = False, on_step: Callable[[int], object] = lambda step: None
) -> Finished | None:
    """Train to the last step, from the newest checkpoint of train.output if there is one.

    Args:
        config: the whole configuration.
        dry_run: compile the step, print what it needs and stop; returns None.
        on_step: called with the number of completed steps after each of them.

    Raises:
        UserError: something in the configuration, the data or the run folder to be put right.
    """
    console = Console()
    use_compilation_cache()
    train = config.train
    pool_size = config.pool_size()

    # Everything that can be refused is refused before anything is compiled or written.
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    check_pool_divides(mesh, pool_size)
    contract = resolve_contract(config)
    lists = PreparedLists(Path(config.data.prepared).expanduser())
    stored = lists.manifest.contract
    stored.require_equal(contract, config.data.prepared, "this configuration")
    check_grades(config, lists.manifest)
    steps = total_steps(train, len(lists))

    schedule = learning_rate_schedule(config.optimizer, steps)
    tx = make_optimizer(config.optimizer, steps)
    structure, params = split_model(load_model(config.model, contract))
    if config.loss.learn_temperature:
        params[LOG_TEMPERATURE] = jnp.log(jnp.float32(config.loss.temperature))
    train_step = make_train_step(structure, tx, config, contract, mesh)
    console.print(
        f"{steps} steps x {train.global_batch_size} of {len(lists)} lists, "
        f"loss pools of {pool_size}; "
        f"{sum(leaf.size for leaf in params.values()) / 1e6:.1f} M weights on "
        f"{mesh.size} {jax.devices()[0].platform} device(s), data {mesh.shape['data']} x "
        f"fsdp {mesh.shape['fsdp']}"
    )

    def read_from(step: int) -> Iterator[tuple[Batch, Batch]]:
        host = batches(
            lists,
            seed=train.seed,
            global_batch_size=train.global_batch_size,
            pool_size=pool_size,
            start_step=step,
            rows=mesh.size,
            shard_index=jax.process_index(),
            shard_count=jax.process_count(),
        )
        return on_devices(host, mesh)

    if dry_run:
        _, batch = next(read_from(0))
        memory = (
            train_step.lower(abstract_state(params, tx, mesh), batch).compile().memory_analysis()
        )
        console.print(
            f"per device: {memory.argument_size_in_bytes / 2**20:.0f} MiB arguments, "
            f"{memory.temp_size_in_bytes / 2**20:.0f} MiB temporaries"
        )
        return None

    folder = Path(train.output).expanduser()
    with locked(folder), ExitStack() as closing:
        claim(folder, config, contract)
        checkpoints = Checkpoints(folder, config, contract, lists.fingerprint)
        closing.callback(checkpoints.close)
        done = checkpoints.latest_step() or 0
        if done:
            check_same_data(
                checkpoints.data_sha256(done), lists.fingerprint, config.data.prepared, folder
            )
            state = checkpoints.restore(done, abstract_state(params, tx, mesh))
            console.print(f"resuming {folder} after step {done} of {steps}")
        else:
            state = initial_state(params, tx, mesh)
        del params
        if done < steps:
            log = MetricsLog(folder, done, train.tensorboard)
            closing.callback(log.close)
            monitor = StepMonitor(log, schedule)
            stop = closing.enter_context(stop_signals())
            progress = closing.enter_context(_progress(console))
            bar = progress.add_task("train", total=steps, completed=done, note="compiling")
            source = read_from(done)
        for step in range(done + 1, steps + 1):
            began = time.perf_counter()
            host_batch, batch = next(source)
            wait_s = time.perf_counter() - began
            state, metrics = train_step(state, batch)
            monitor.add(step, metrics, host_batch, wait_s)
            due = train.save_every is not None and step % train.save_every == 0
            stopping = stop.received is not None
            saving = due or step == steps or stopping
            if saving or step % train.log_every == 0:
                # Checks that all is finite, so a broken state is never saved.
                progress.update(bar, completed=step, note=monitor.flush(done))
            if saving:
                checkpoints.save(step, state)
                done = step
            on_step(step)
            if stopping and step < steps:
                console.print(f"stopped and saved after step {step}; the same command resumes")
                raise SystemExit(128 + (stop.received or 0))
    console.print(f"trained {steps} steps; one record per step in {folder / METRICS_FILE}")
    console.print(f"checkpoint of step {steps} in {folder / CHECKPOINTS / str(steps)}")
    return Finished(state, folder, steps)


def total_steps(train: TrainConfig, lists: int) -> int:
    """Optimizer steps of a run over a number of lists; epochs are rounded up to whole batches."""
    if train.epochs is None:
        assert train.steps is not None  # TrainConfig: exactly one of them
        return train.steps
    return math.ceil(train.epochs * lists / train.global_batch_size)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of `python -m synrank_jax.train`."""
    parser = config_parser("train", __doc__ or "")
    parser.add_argument(
        "--dry-run", action="store_true", help="compile, print what a step needs, and stop"
    )
    args = parser.parse_args(argv)
    run(parsed_config(args), dry_run=args.dry_run)


if __name__ == "__main__":
    run_command(main)
