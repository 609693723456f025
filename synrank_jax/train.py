"""Train a dual encoder on prepared graded lists; the same command again resumes.

    python -m synrank_jax.train --config configs/quickstart.yaml --set train.epochs=1

Everything is written to train.output: config.yaml, metrics.jsonl (one record per step, and one per
evaluation), tensorboard/, checkpoints/, and validation.json where there is a `validation`.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from rich.console import Console

from synrank_jax.cli import config_parser, parsed_config, run_command
from synrank_jax.config import Config, TrainConfig, ValidationConfig
from synrank_jax.contract import EncodingContract, resolve_contract
from synrank_jax.data.pipeline import PreparedLists, batches
from synrank_jax.engine.batches import on_devices
from synrank_jax.engine.checkpoint import Checkpoints, size_bytes
from synrank_jax.engine.compilation import use_compilation_cache
from synrank_jax.engine.distributed import coordination, joined
from synrank_jax.engine.encoding import load_model
from synrank_jax.engine.history import History
from synrank_jax.engine.hosts import Hosts, watched
from synrank_jax.engine.integrity import tidy
from synrank_jax.engine.monitor import StepMonitor
from synrank_jax.engine.peak import peak_of_devices
from synrank_jax.engine.preemption import EXIT_CODES, leave_when_terminated, stop_signals
from synrank_jax.engine.profiling import (
    CompileClock,
    StepProfiler,
    check_profile,
    profile_steps,
)
from synrank_jax.engine.runfolder import (
    CHECKPOINTS,
    check_grades,
    check_same_data,
    check_same_run,
    check_shared,
    check_space,
    claim,
    identity,
)
from synrank_jax.engine.state import (
    LOG_TEMPERATURE,
    Params,
    TrainState,
    abstract_state,
    initial_state,
    split_model,
)
from synrank_jax.engine.step import make_train_step
from synrank_jax.engine.updates import UpdateBudget
from synrank_jax.engine.validation import DevSet, Validation
from synrank_jax.errors import UserError
from synrank_jax.evaluation import read_collection
from synrank_jax.files import locked
from synrank_jax.models.bert import BertConfig
from synrank_jax.optim import learning_rate_schedule, make_optimizer
from synrank_jax.parallel.mesh import check_heads_divide, make_mesh, rows_per_pool
from synrank_jax.retrieval.metrics import parse_measures
from synrank_jax.retrieval.search import load_faiss
from synrank_jax.tracking import (
    METRICS_FILE,
    MetricsLog,
    Sink,
    TensorBoard,
    TrainProgress,
    WandB,
    require_wandb,
)
from synrank_jax.types import Batch


@dataclass(frozen=True)
class Finished:
    """What a completed run leaves."""

    state: TrainState
    folder: Path
    steps: int


def run(
    config: Config,
    dry_run: bool = False,
    on_step: Callable[[int], object] = lambda step: None,
    profile: range | None = None,
) -> Finished | None:
    """Train to the last step, from the newest checkpoint of train.output if there is one.

    With several processes each calls this; process 0 writes.

    Args:
        config: the whole configuration.
        dry_run: compile the step, print what it needs and stop; returns None.
        on_step: called with the number of completed steps after each of them.
        profile: steps to write a trace of.

    Raises:
        UserError: something in the configuration, the data or the run folder to be put right.
        SystemExit: stopped by a signal, here or on another host; all is saved.
    """
    with watched(config.train.stall_timeout) as hosts:
        return _run(config, dry_run, on_step, profile, hosts)


class Job(NamedTuple):
    """What a configuration comes to on these devices, with nothing compiled or written yet."""

    config: Config
    mesh: Mesh
    rows: int
    contract: EncodingContract
    lists: PreparedLists
    steps: int
    encoder: BertConfig
    params: Params
    tx: optax.GradientTransformationExtraArgs
    train_step: Any
    validation: Validation | None

    def due(self, step: int) -> bool:
        """Whether the model after so many steps is to be evaluated and was not."""
        return self.validation is not None and self.validation.due(step)

    def over(self, step: int) -> bool:
        """Whether the run ends with this step: it is the last, or evaluations say stop."""
        return step == self.steps or (self.validation is not None and self.validation.over())

    def batches_from(self, step: int) -> Iterator[Batch]:
        """The batches after so many steps, on the devices."""
        train = self.config.train
        host = batches(
            self.lists,
            seed=train.seed,
            global_batch_size=train.global_batch_size,
            pool_size=self.config.pool_size(),
            start_step=step,
            rows=self.rows,
            shard_index=jax.process_index(),
            shard_count=jax.process_count(),
        )
        return on_devices(host, self.mesh)


def _run(
    config: Config,
    dry_run: bool,
    on_step: Callable[[int], object],
    profile: range | None,
    hosts: Hosts,
) -> Finished | None:
    console = Console(quiet=jax.process_index() != 0, soft_wrap=True)
    use_compilation_cache()
    job = _checked(config, profile)
    steps = job.steps
    console.print(
        f"{steps} steps x {config.train.global_batch_size} of {len(job.lists)} lists, "
        f"loss pools of {config.pool_size()}; "
        f"{sum(leaf.size for leaf in job.params.values()) / 1e6:.1f} M weights on "
        f"{job.mesh.size} {jax.devices()[0].platform} device(s), "
        + " x ".join(f"{axis} {size}" for axis, size in job.mesh.shape.items())
    )
    abstract = abstract_state(job.params, job.tx, job.mesh)
    if dry_run:
        compiled = job.train_step.lower(abstract, next(job.batches_from(0))).compile()
        memory = compiled.memory_analysis()
        console.print(
            f"per device: {memory.argument_size_in_bytes / 2**20:.0f} MiB arguments, "
            f"{memory.temp_size_in_bytes / 2**20:.0f} MiB temporaries"
        )
        return None

    folder = Path(config.train.output).expanduser()
    validation = job.validation
    own = identity(
        config,
        job.contract,
        job.lists.fingerprint,
        None if validation is None else validation.sha256,
    )
    with ExitStack() as closing:

        def opened() -> tuple[int, dict[str, Any], Any]:
            closing.enter_context(locked(folder, "train.output"))
            claim(folder, config, job.contract)
            done = tidy(folder / CHECKPOINTS) or 0
            check_space(folder, size_bytes(abstract), config)
            if validation is None:
                return done, own, None
            history = validation.history
            found = History.resumed(folder, history.metric, history.collection_sha256, done)
            return done, own, found.model_dump(mode="json")

        done, first, found = hosts.first(opened)
        check_same_run(first, own)
        check_shared(folder)
        best = None
        if validation is not None:
            validation.history = History.model_validate(found)
            best = validation.best
        checkpoints = Checkpoints(folder, config, job.contract, job.lists.fingerprint, best)
        closing.callback(checkpoints.close)
        if done:
            check_same_data(
                checkpoints.data_sha256(done), job.lists.fingerprint, config.data.prepared, folder
            )
            state = checkpoints.restore(done, abstract)
            console.print(f"resuming {folder} after step {done} of {steps}")
        else:
            state = initial_state(job.params, job.tx, job.mesh)
        job.params.clear()  # the state has its own
        if job.due(done) or not job.over(done):
            state, done = _train(job, state, done, checkpoints, console, on_step, profile, hosts)
        hosts.pause()
    console.print(f"trained {done} steps; one record per step in {folder / METRICS_FILE}")
    console.print(f"checkpoint of step {done} in {folder / CHECKPOINTS / str(done)}")
    if validation is not None:
        console.print(validation.summary(done))
    return Finished(state, folder, done)


def _checked(config: Config, profile: range | None) -> Job:
    """Refuse all that can be refused before anything is compiled or written."""
    train = config.train
    mesh = make_mesh(config.mesh)
    rows = rows_per_pool(mesh, config.pool_size(), train.encode_chunk_size)
    contract = resolve_contract(config)
    dev_set = None if config.validation is None else _dev_set(config.validation)
    lists = PreparedLists(Path(config.data.prepared).expanduser())
    stored = lists.manifest.contract
    stored.require_equal(contract, config.data.prepared, "this configuration")
    check_grades(config, lists.manifest)
    steps = total_steps(train, len(lists))
    if profile is not None:
        check_profile(profile, steps)
    if train.wandb_project is not None:
        require_wandb()
    tx = make_optimizer(config.optimizer, steps, train.spike_factor)
    model = load_model(config.model, contract)
    encoder = model.encoder.config
    check_heads_divide(mesh, encoder.num_attention_heads)
    structure, params = split_model(model)
    if config.loss.learn_temperature:
        params[LOG_TEMPERATURE] = jnp.log(jnp.float32(config.loss.temperature))
    train_step = make_train_step(structure, tx, config, contract, mesh)
    validation = None
    if dev_set is not None:
        validation = Validation(config, dev_set, contract, structure, mesh, steps)
    return Job(
        config, mesh, rows, contract, lists, steps, encoder, params, tx, train_step, validation
    )


def _dev_set(section: ValidationConfig) -> DevSet:
    load_faiss()
    parse_measures(section.metrics, "validation.metrics")
    collection = read_collection(section, "validation")
    documents = collection.documents
    return DevSet(
        doc_ids=documents.ids,
        documents=documents.texts(0, len(documents)),
        queries=collection.queries,
        qrels=collection.qrels,
        excluded=collection.excluded,
        sha256=collection.sha256,
    )


def _train(
    job: Job,
    state: TrainState,
    done: int,
    checkpoints: Checkpoints,
    console: Console,
    on_step: Callable[[int], object],
    profile: range | None,
    hosts: Hosts,
) -> tuple[TrainState, int]:
    """From the state after `done` steps to that after the last, or until a signal says stop."""
    config, train, steps = job.config, job.config.train, job.steps
    folder = checkpoints.folder.parent
    peak = peak_of_devices(config.model.compute_dtype)
    console.print(f"mfu is relative to {peak.name}")
    with ExitStack() as closing:
        log = metrics_log(config, folder, done) if jax.process_index() == 0 else None
        if log is not None:
            closing.callback(log.close)
        compiling = closing.enter_context(CompileClock())
        budget = UpdateBudget(train.skip_updates)
        schedule = learning_rate_schedule(config.optimizer, steps)
        own_lists = config.loss.scope == "list"
        monitor = StepMonitor(log, schedule, job.encoder, own_lists, peak, compiling, budget)
        profiler = StepProfiler(profile, done, folder, console.print)
        closing.callback(profiler.close)
        closing.enter_context(stop_signals(hosts.stop))
        progress = closing.enter_context(TrainProgress(console, steps, done))
        source = job.batches_from(done)
        closing.push(hosts.check)
        hosts.resumed(done)

        def evaluate() -> bool:
            """Score the state; whether it is worth saving."""
            assert job.validation is not None
            hosts.pause()
            console.print(job.validation.evaluate(step, state.params, hosts.first, log))
            monitor.resume()
            return job.validation.worth_saving(step)

        step = done
        if job.due(step):  # before the first step, or a signal came where it was due
            evaluate()
        while not job.over(step):
            step += 1
            began = time.perf_counter()
            batch = next(source)
            wait_s = time.perf_counter() - began
            hosts.begin(step, batch)
            state, metrics = profiler.run(step, job.train_step, state, batch)
            hosts.dispatched(step, metrics["loss"])
            monitor.add(step, metrics, batch, wait_s)
            due = train.save_every is not None and step % train.save_every == 0
            stopping = hosts.stop.after(step)
            saving = due or step == steps or stopping is not None
            evaluating = job.due(step) and (stopping is None or step == steps)
            if saving or evaluating or step % train.log_every == 0:
                # Checks that all is finite, so a broken state is never saved.
                progress.update(step, monitor.flush(done, to_disk=saving or evaluating))
            if evaluating:
                saving = evaluate() or saving
            if saving:
                checkpoints.save(step, state, budget.mean_loss())
                done = step
            on_step(step)
            if stopping is not None and step < steps:
                console.print(f"stopped and saved after step {step}; the same command resumes")
                raise SystemExit(EXIT_CODES[stopping])
    return state, step


def total_steps(train: TrainConfig, lists: int) -> int:
    """Optimizer steps of a run over a number of lists; epochs are rounded up to whole batches."""
    if train.epochs is None:
        assert train.steps is not None  # TrainConfig: exactly one of them
        return train.steps
    return math.ceil(train.epochs * lists / train.global_batch_size)


def metrics_log(config: Config, folder: Path, done: int) -> MetricsLog:
    """The run's metrics file and the sinks that the configuration asks for."""
    train = config.train
    sinks: list[Sink] = []
    if train.tensorboard:
        sinks.append(TensorBoard(folder, done))
    if train.wandb_project is not None:
        sinks.append(WandB(folder, train.wandb_project, config.model_dump(mode="json")))
    return MetricsLog(folder, done, tuple(sinks))


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of `python -m synrank_jax.train`."""
    parser = config_parser("train", __doc__ or "")
    parser.add_argument(
        "--dry-run", action="store_true", help="compile, print what a step needs, and stop"
    )
    parser.add_argument(
        "--profile",
        metavar="START:N",
        help="write a trace of N steps, from step START on, into profile/ of the run folder",
    )
    several = parser.add_argument_group("several hosts, one process on each")
    several.add_argument(
        "--distributed",
        action="store_true",
        help="find the other processes from the environment: TPU pod, GKE, SLURM, Open MPI",
    )
    several.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    several.add_argument("--process-count", type=int, metavar="N", help="number of processes")
    several.add_argument("--process-index", type=int, metavar="I", help="this one, from 0")
    args = parser.parse_args(argv)
    config = parsed_config(args)
    profile = None if args.profile is None else profile_steps(args.profile)
    where = coordination(args.coordinator, args.process_count, args.process_index)
    if args.distributed and where is not None:
        raise UserError("--distributed finds what --coordinator says: give one of them")
    with ExitStack() as together:
        if args.distributed or where is not None:
            together.enter_context(joined(where, config.train.stall_timeout))
        run(config, dry_run=args.dry_run, profile=profile)


if __name__ == "__main__":
    leave_when_terminated()
    run_command(main)
