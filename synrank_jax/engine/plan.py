"""Compile the real training step for a topology and say what it needs and how fast it can be.

No weight is allocated and no accelerator touched: state and batch are shapes.
"""

import math
import re
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.errors import JaxRuntimeError

from synrank_jax.config import Config
from synrank_jax.config_section import Section
from synrank_jax.contract import EncodingContract, contract_of_folder
from synrank_jax.engine.compilation import no_compilation_cache
from synrank_jax.engine.encoding import numerics_of
from synrank_jax.engine.hlo import Program
from synrank_jax.engine.roofline import (
    CollectiveTotal,
    Flops,
    Growth,
    Roofline,
    count_flops,
    growth,
    roofline,
    totals,
)
from synrank_jax.engine.state import LOG_TEMPERATURE, TrainState, abstract_state, split_model
from synrank_jax.engine.step import make_train_step
from synrank_jax.engine.step_shapes import Lengths, abstract_batch, step_lengths
from synrank_jax.engine.topology import devices_of
from synrank_jax.engine.traffic import collectives, traffic
from synrank_jax.hub import model_folder
from synrank_jax.models.bert import BertConfig
from synrank_jax.models.dual_encoder import DualEncoder
from synrank_jax.models.pretrained import abstract_encoder
from synrank_jax.optim import make_optimizer
from synrank_jax.parallel.chips import chip_of
from synrank_jax.parallel.mesh import (
    batch_devices,
    check_heads_divide,
    make_mesh,
    rows_per_pool,
)
from synrank_jax.types import Batch

GIB = 2**30


class Memory(Section):
    """Bytes per chip while a step runs, as the compiler lays them out."""

    arguments: int
    """Weights, optimizer state and a batch."""
    temporaries: int
    """Activations, gradients and whatever else lives within a step."""
    outputs: int
    """Results that are not written over arguments."""
    code: int
    """The program itself."""
    total: int


class Plan(Section):
    """What one configuration needs on one topology."""

    topology: str
    chip: str
    chips: int
    mesh: dict[str, int]
    pool_size: int
    global_batch_size: int
    encode_chunk_size: int
    """Queries that a device encodes at once."""
    remat: str
    lengths: str
    """Where the lengths of the texts are from."""
    row_tokens: int
    """Tokens of a packed row, padding included."""
    padding_share: float
    """Share of the rows' tokens that are padding."""
    fits: bool
    problem: str | None
    """Why it does not fit."""
    capacity_bytes: int | None
    """Memory of a chip; null where it is not known (CPU)."""
    state_bytes: int
    """Weights and optimizer state of a chip."""
    needed_bytes: float | None
    """What a step needs, state included; null where the compiler does not say."""
    compile_s: float
    flops: Flops
    growth: Growth
    memory: Memory | None = None
    """Null, as what follows, when the compiler gave no program because it would not fit."""
    bytes_accessed: float | None = None
    """XLA's figure of the bytes that a step reads and writes, on-chip memory included. It counts a
    loop's body once, so it is multiplied by the operand and result bytes of the optimized HLO with
    trip counts over the same counted once."""
    memory_bytes: float | None = None
    """Of these bytes, those of arrays that the compiler placed in main memory."""
    collectives: tuple[CollectiveTotal, ...] = ()
    unknown_loops: int | None = None
    """Loops whose trip count the program does not say; they are counted once."""
    roofline: Roofline | None = None
    """Null also for chips without published peaks (CPU)."""
    cost_per_million_lists: float | None = None
    """At `roofline.step_s` and the price given."""


class OutOfMemoryError(Exception):
    """The compiler could not make the program fit: its reason, and `needed` bytes if it says so."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        found = re.search(r"(?:required[^(]*\(|[Uu]sed )([\d.]+)([KMG])", reason)
        units = {"K": 2**10, "M": 2**20, "G": GIB}
        self.needed = float(found[1]) * units[found[2]] if found else None


class Step(NamedTuple):
    """A step and its arguments as shapes, and what it is made of."""

    function: Any
    state: TrainState
    batch: Batch
    encoder: BertConfig
    lengths: Lengths
    mesh: jax.sharding.Mesh
    devices: list[jax.Device]


def plan(
    config: Config,
    topology: str,
    *,
    assumed: tuple[int, int] | None = None,
    price: float | None = None,
) -> Plan:
    """Compile the step of a configuration for a topology.

    Args:
        config: the whole configuration.
        topology: see `devices_of`.
        assumed: see `step_lengths`.
        price: of a chip for an hour.

    Raises:
        UserError: whatever training would refuse before its first step, or no such topology.
    """
    step = abstract_step(config, topology, assumed)
    facts = _facts(config, topology, step)
    began = time.perf_counter()
    try:
        compiled = _compile(step)
    except OutOfMemoryError as error:
        facts |= {"fits": False, "problem": str(error), "needed_bytes": error.needed}
        return Plan(**facts, compile_s=time.perf_counter() - began)
    facts["compile_s"] = time.perf_counter() - began
    memory, capacity = _memory(compiled), facts["capacity_bytes"]
    fits = capacity is None or memory.total <= capacity
    problem = None if fits else f"{memory.total / GIB:.2f} GiB of {capacity / GIB:.2f}"
    program = Program(compiled.as_text())
    moved, sends = traffic(program), totals(collectives(program))
    once = dict(compiled.cost_analysis() or {}).get("bytes accessed", 0.0)
    chip, chips = chip_of(step.devices[0].device_kind), len(step.devices)
    bound, cost = None, None
    if chip:
        sent = sum(total.sent_bytes for total in sends)
        bound = roofline(config, chip, chips, facts["flops"], moved.main_bytes, sent)
        cost = price and price * chips / 3600 * 1e6 / bound.lists_per_s
    return Plan(
        **facts,
        fits=fits,
        problem=problem,
        needed_bytes=memory.total,
        memory=memory,
        bytes_accessed=once * moved.total_bytes / max(moved.once_bytes, 1),
        memory_bytes=moved.main_bytes,
        collectives=sends,
        unknown_loops=program.unknown_loops,
        roofline=bound,
        cost_per_million_lists=cost,
    )


def _facts(config: Config, topology: str, step: Step) -> dict[str, Any]:
    """What a plan says before anything is compiled."""
    lengths, devices, chips = step.lengths, batch_devices(step.mesh), len(step.devices)
    kind = step.devices[0].device_kind
    chip = chip_of(kind)
    slots = lengths.rows * lengths.row.tokens
    return {
        "topology": topology,
        "chip": chip.name if chip else kind,
        "chips": chips,
        "mesh": dict(step.mesh.shape),
        "pool_size": config.pool_size(),
        "global_batch_size": config.train.global_batch_size,
        "encode_chunk_size": config.pool_size() // lengths.rows,
        "remat": config.model.remat,
        "lengths": lengths.source,
        "row_tokens": lengths.row.tokens,
        "padding_share": 1 - lengths.tokens * config.pool_size() / slots,
        "capacity_bytes": chip.hbm_bytes if chip else None,
        "state_bytes": _shard_bytes(step.state),
        "flops": count_flops(config, step.encoder, lengths, devices, chips // devices),
        "growth": growth(config, step.encoder, lengths, devices),
    }


def abstract_step(config: Config, topology: str, assumed: tuple[int, int] | None) -> Step:
    """The train step of a topology, from the model's config.json alone; not yet traced.

    Raises:
        UserError: see `plan`.
    """
    folder = model_folder(config.model.path, config.model.revision, weights=False)
    encoder = BertConfig.read(folder)
    contract = contract_of_folder(folder, config.encoding, digest="")
    devices = devices_of(topology)
    mesh = make_mesh(config.mesh, devices)
    check_heads_divide(mesh, encoder.num_attention_heads)
    rows = rows_per_pool(mesh, config.pool_size(), config.train.encode_chunk_size)
    lengths = step_lengths(config, contract, rows, assumed)
    structure, params = abstract_weights(config, contract, folder, devices[0].platform)
    tx = make_optimizer(config.optimizer, config.train.steps or 1000)
    step = make_train_step(structure, tx, config, contract, mesh)
    state, batch = abstract_state(params, tx, mesh), abstract_batch(config, mesh, lengths)
    return Step(step, state, batch, encoder, lengths, mesh, devices)


def abstract_weights(
    config: Config, contract: EncodingContract, folder: Path, platform: str
) -> tuple[Any, Any]:
    """Structure and weights as `split_model` gives them, with shapes in place of weights."""
    encoder = abstract_encoder(folder, numerics_of(config.model, contract, platform))
    structure, params = split_model(
        DualEncoder(encoder, contract.pooling, contract.normalize, contract.dimension)
    )
    if config.loss.learn_temperature:
        params[LOG_TEMPERATURE] = jax.ShapeDtypeStruct((), jnp.float32)
    return structure, params


def _compile(step: Step) -> Any:
    try:
        with no_compilation_cache():
            return step.function.lower(step.state, step.batch).compile()
    except JaxRuntimeError as error:
        reason = str(error)
        if "RESOURCE_EXHAUSTED" not in reason:
            raise
        line = next(line for line in reason.splitlines() if "RESOURCE_EXHAUSTED" in line)
        raise OutOfMemoryError(line.removeprefix("RESOURCE_EXHAUSTED: ")) from error


def _shard_bytes(tree: Any) -> int:
    """Bytes of a chip's shards of shapes."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _memory(compiled: Any) -> Memory:
    stats = compiled.memory_analysis()
    parts = {
        "arguments": stats.argument_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "outputs": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    return Memory(**parts, total=sum(parts.values()))
