"""How long a step takes at least, from what it does and the chip's published peaks.

The bound assumes that compute, memory and all links of a chip are each used fully, and at the same
time; a real step is slower. Their sum, as if none overlapped, is the pessimistic end at the same
peaks.
"""

from synrank_jax.config import Config
from synrank_jax.config_section import Section
from synrank_jax.engine.step_shapes import Lengths
from synrank_jax.engine.traffic import Collective
from synrank_jax.models.bert import BertConfig
from synrank_jax.models.flops import step_flops
from synrank_jax.parallel.chips import Chip

FLOAT32_PASSES = 6
"""bfloat16 matmuls that make one of Precision.HIGHEST on a TPU."""


class Flops(Section):
    """FLOPs of matmuls per chip and step."""

    encoder: float
    """Executed by the encoder: padding, and what is computed again, included."""
    scores: float
    """Executed for the scores of queries with passages and their gradient; always float32. They
    grow with the pool: per query with its passages."""
    model: float
    """Without padding and without what is computed again: the work that the model asks for."""


class Growth(Section):
    """What grows with the pool, bytes per chip."""

    scores_bytes: int
    """One array of scores [Q, P] in float32, of the chip's own queries."""
    gathered_bytes: int
    """Embeddings [P, D] of all passages of a pool in float32, which each chip gathers."""


class CollectiveTotal(Section):
    """All collectives of one kind, per chip and step."""

    kind: str
    count: int
    payload_bytes: float
    """What the chip puts in."""
    sent_bytes: float
    """What crosses its links in a ring over the chips that take part."""


class Roofline(Section):
    """Seconds per step at the published peaks, and what follows from them."""

    source: str
    """Where the peaks are published."""
    compute_s: float
    memory_s: float
    collectives_s: float
    bound_by: str
    step_s: float
    """The largest of the three: no step is faster."""
    unoverlapped_s: float
    """Their sum."""
    lists_per_s: float
    """Queries, each with its list, per second over all chips at `step_s`."""
    unoverlapped_lists_per_s: float
    mfu: float
    """Model FLOPs utilisation at `step_s`, relative to what the training log's is (`Chip.peak`)."""
    flops_per_byte: float
    """Arithmetic intensity: executed FLOPs per byte of main memory."""


def count_flops(
    config: Config, encoder: BertConfig, lengths: Lengths, batch_devices: int, tensor: int
) -> Flops:
    """FLOPs from the architecture; XLA's own analysis counts a loop's body once.

    Args:
        config: the whole configuration.
        encoder: architecture of its encoder.
        lengths: of the texts and rows.
        batch_devices: chips that compute different lists.
        tensor: chips that share the same lists.
    """
    queries = config.train.global_batch_size
    rows = queries // config.pool_size() * lengths.rows / batch_devices
    in_reach = config.pool_size() if config.loss.scope == "pool" else 1
    pairs = queries * in_reach * lengths.passages
    executed = step_flops(
        encoder,
        rows * lengths.row.tokens,
        rows * lengths.row_squared(config.pool_size()),
        0,
        executed=True,
        chunked=lengths.rows > batch_devices,
        remat=config.model.remat,
    )
    model = step_flops(encoder, queries * lengths.tokens, queries * lengths.squared, pairs)
    return Flops(
        encoder=executed / tensor,
        scores=step_flops(encoder, 0, 0, pairs / batch_devices),
        model=model / (batch_devices * tensor),
    )


def growth(config: Config, encoder: BertConfig, lengths: Lengths, batch_devices: int) -> Growth:
    """Sizes of the arrays that grow with the pool; arguments as `count_flops`."""
    queries = config.pool_size()
    pooled = config.loss.scope == "pool"
    passages = queries * lengths.passages if pooled else lengths.passages
    return Growth(
        scores_bytes=4 * queries // batch_devices * passages,
        gathered_bytes=4 * passages * encoder.hidden_size if pooled else 0,
    )


def totals(collectives: list[Collective]) -> tuple[CollectiveTotal, ...]:
    """Collectives added up by kind, the largest first."""
    found: dict[str, list[Collective]] = {}
    for one in collectives:
        found.setdefault(one.kind, []).append(one)
    summed = [
        CollectiveTotal(
            kind=kind,
            count=sum(one.times for one in same),
            payload_bytes=sum(one.times * one.payload_bytes for one in same),
            sent_bytes=sum(one.times * one.sent_bytes for one in same),
        )
        for kind, same in found.items()
    ]
    return tuple(sorted(summed, key=lambda total: -total.sent_bytes))


def roofline(
    config: Config, chip: Chip, chips: int, flops: Flops, memory_bytes: float, sent_bytes: float
) -> Roofline:
    """The bound of a step.

    Args:
        config: for the precision of the encoder and the batch.
        chip: its peaks.
        chips: how many.
        flops: per chip.
        memory_bytes: read and written in a chip's main memory.
        sent_bytes: over a chip's links.
    """
    dtype = config.model.compute_dtype
    parts = {
        "compute": flops.encoder / _rate(chip, dtype) + flops.scores / _rate(chip, "float32"),
        "memory": memory_bytes / chip.hbm_bandwidth,
        "collectives": sent_bytes / chip.link_bandwidth,
    }
    slowest = max(parts, key=lambda name: parts[name])
    step_s, queries = parts[slowest], config.train.global_batch_size
    return Roofline(
        source=chip.source,
        compute_s=parts["compute"],
        memory_s=parts["memory"],
        collectives_s=parts["collectives"],
        bound_by=slowest,
        step_s=step_s,
        unoverlapped_s=sum(parts.values()),
        lists_per_s=queries / step_s,
        unoverlapped_lists_per_s=queries / sum(parts.values()),
        mfu=flops.model / chip.peak(dtype)[0] / step_s,
        flops_per_byte=(flops.encoder + flops.scores) / max(memory_bytes, 1.0),
    )


def _rate(chip: Chip, dtype: str) -> float:
    """FLOP/s of matmuls at their full precision."""
    flops, peak_dtype = chip.peak(dtype)
    return flops if peak_dtype == dtype else flops / FLOAT32_PASSES
