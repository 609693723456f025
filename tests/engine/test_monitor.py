"""What is counted of a step, and the rates made of it."""

from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_bert import small_bert

from synrank_jax.config import MeshConfig
from synrank_jax.engine import monitor as monitor_module
from synrank_jax.engine import peak as peak_module
from synrank_jax.engine.batches import to_devices
from synrank_jax.engine.counts import batch_counts
from synrank_jax.engine.monitor import StepMonitor, memory_peak
from synrank_jax.engine.peak import Peak, peak_of_devices
from synrank_jax.engine.profiling import CompileClock
from synrank_jax.engine.updates import BadUpdateError, UpdateBudget
from synrank_jax.models.flops import step_flops
from synrank_jax.parallel.mesh import make_mesh
from synrank_jax.tracking import MetricsLog, read_metrics
from synrank_jax.types import Batch, PackedTexts

ENCODER = small_bert(
    vocab_size=7,
    hidden_size=8,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=16,
)
POOLS, QUERIES, SIZE, SLOTS = 1, 8, 2, 12
# Of every list: a query of 2 tokens, passages of 3 and 5, or of 3 and none.
LENGTHS = [(2, 3, 5)] * 6 + [(2, 3, 0)] * 2


def batch(first: int = 0) -> Batch:
    """A row of 12 slots per list; only what is counted is filled in."""
    segments = np.full((POOLS, QUERIES, SLOTS), -1, np.int32)
    positions = np.zeros_like(segments)
    for row, lengths in enumerate(LENGTHS):
        kept = [length for length in lengths if length]
        tokens = sum(kept)
        segments[0, row, :tokens] = np.repeat(np.arange(len(kept)), kept)
        positions[0, row, :tokens] = np.concatenate([np.arange(length) for length in kept])
    where = np.array([lengths[1:] for lengths in LENGTHS])[None] > 0
    ids = np.arange(first, first + QUERIES, dtype=np.int32)[None]
    texts = PackedTexts(segments, positions, segments, (), segments)
    return Batch(texts, where.astype(np.float32), where, segments, segments, ids)


TOKENS = 6 * 10 + 2 * 5
SQUARED = 6 * (4 + 9 + 25) + 2 * (4 + 9)


def counted(batch: Batch) -> dict[str, float]:
    return {name: value.item() for name, value in jax.jit(batch_counts)(batch).items()}


def test_tokens_squares_and_passages_are_counted_over_all_devices():
    counts = counted(to_devices(batch(), make_mesh(MeshConfig())))
    assert counts.pop("samples") == counted(batch())["samples"]
    assert counts == {"tokens": TOKENS, "squared_lengths": SQUARED, "passages": 14}


def test_the_checksum_tells_the_order_of_the_lists():
    lists = batch()
    swapped = lists._replace(sample_ids=lists.sample_ids[:, ::-1])
    checksums = {counted(each)["samples"] for each in (lists, swapped, batch(first=1))}
    assert len(checksums) == 3


class Clock:
    """A stand-in for `time`, moved by hand."""

    def __init__(self) -> None:
        self.now = 50.0

    def perf_counter(self) -> float:
        return self.now


class Compiling:
    """A stand-in for a CompileClock that says what it is told."""

    def __init__(self, *seconds: float) -> None:
        self._seconds = iter((0.0, *seconds))

    def take(self) -> float:
        return next(self._seconds)


def metrics(loss: float, **others: float) -> dict[str, jax.Array]:
    values = {"loss": loss, "grad_norm": 1.0, "param_norm": 2.0, "skipped_updates": 0.0}
    values |= {"applied_updates": 0.0, "loss_mean": 0.5, **others}
    return {name: jnp.float32(value) for name, value in values.items()} | batch_counts(batch())


def monitor_of(
    folder: Path | None, compiling: Compiling, own_lists: bool = False, skip_updates: int = 0
) -> tuple[StepMonitor, MetricsLog | None]:
    log = None if folder is None else MetricsLog(folder, 0)
    peak = Peak(1e6, "a peak")
    budget = UpdateBudget(skip_updates)

    def rate(step: int) -> float:
        return 0.5 / (1 + step)

    return StepMonitor(log, rate, ENCODER, own_lists, peak, compiling, budget), log


@pytest.mark.parametrize(
    ("own_lists", "pairs"), [(False, 8 * 8 * 2), (True, 8 * 2)], ids=["pool", "list"]
)
def test_rates_leave_compilation_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_lists: bool, pairs: int
):
    clock = Clock()
    monkeypatch.setattr(monitor_module, "time", clock)
    monitor, log = monitor_of(tmp_path, Compiling(6.0, 0.0), own_lists)
    monitor.add(1, metrics(0.5), batch(), wait_s=1.0)
    monitor.add(2, metrics(0.25, applied_updates=1), batch(), wait_s=1.5)
    clock.now += 10  # 6 s of it compiling
    note = monitor.flush(0)
    log.close()
    first, second = read_metrics(tmp_path)
    assert [first["step"], first["loss"], first["learning_rate"]] == [1, 0.5, 0.5]
    assert [second["step"], second["loss"], second["learning_rate"]] == [2, 0.25, 0.25]
    assert [first["compile_s"], second["compile_s"]] == [6.0, 0.0]
    assert first["data_wait_s"] == 1.0
    assert first["lists"] == 8
    assert first["passages"] == 14
    assert first["tokens"] == TOKENS
    assert first["padding_share"] == pytest.approx(1 - TOKENS / (8 * 12))
    for record in (first, second):
        assert record["lists_per_s"] == 2 * 8 / 4
        assert record["tokens_per_s"] == 2 * TOKENS / 4
        flops = 2 * step_flops(ENCODER, TOKENS, SQUARED, pairs)
        assert record["mfu"] == pytest.approx(flops / 4 / 1e6, rel=1e-6)
        assert record.keys().isdisjoint({"flops", "squared_lengths", "applied_updates"})
    assert note.startswith("loss 0.2500  4.0 lists/s  mfu ")
    assert note.endswith("data wait 25%")


def test_the_next_window_starts_at_the_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clock = Clock()
    monkeypatch.setattr(monitor_module, "time", clock)
    monitor, log = monitor_of(tmp_path, Compiling(0.0, 0.0))
    for step in (1, 2):
        monitor.add(step, metrics(0.5), batch(), wait_s=0.0)
        clock.now += 4 * step
        note = monitor.flush(7)
    log.close()
    assert [record["lists_per_s"] for record in read_metrics(tmp_path)] == [2, 1]
    assert note.endswith("saved 7")


def test_a_process_that_does_not_log_still_notices_what_is_not_finite():
    monitor, _ = monitor_of(None, Compiling(0.0))
    monitor.add(3, metrics(float("nan"), skipped_updates=1), batch(), wait_s=0.0)
    with pytest.raises(BadUpdateError, match=r"step 3 \(window 3 to 3\): loss nan.*of step 2"):
        monitor.flush(2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": float("nan")}, "not finite; the update was not applied"),
        ({"loss": 1.0, "grad_norm": float("inf")}, "grad_norm inf.*not finite"),
        ({"loss": 3.0}, r"the loss is a spike, its running mean is 0\.5"),
    ],
    ids=["loss", "gradient", "spike"],
)
def test_bad_updates_are_left_out_up_to_the_budget(tmp_path: Path, values: dict, message: str):
    monitor, log = monitor_of(tmp_path, Compiling(0.0, 0.0, 0.0), skip_updates=1)
    monitor.add(1, metrics(0.5), batch(), wait_s=0.0)
    monitor.add(2, metrics(**values, skipped_updates=1, applied_updates=1), batch(), wait_s=0.0)
    monitor.flush(0)
    monitor.add(3, metrics(**values, skipped_updates=2, applied_updates=1), batch(), wait_s=0.0)
    with pytest.raises(BadUpdateError, match=f"{message}.*train.skip_updates above 1"):
        monitor.flush(0)
    log.close()
    records = read_metrics(tmp_path)
    assert [record["skipped_updates"] for record in records] == [0, 1, 2]
    # The schedule goes by applied updates: none before the first, one ever after.
    assert [record["learning_rate"] for record in records] == [0.5, 0.25, 0.25]


def test_the_mean_loss_of_a_checkpoint_is_since_the_one_before():
    budget = UpdateBudget(skip_updates=1)
    finite = {"grad_norm": 1.0, "param_norm": 1.0, "loss_mean": 1.0, "skipped_updates": 1}
    for step, loss in enumerate((1.0, 2.0, float("nan")), start=1):
        budget.check({"step": step, "loss": loss, **finite}, (1, 3), 0)
    assert budget.mean_loss() == 1.5
    budget.check({"step": 4, "loss": 4.0, **finite}, (4, 4), 3)
    assert budget.mean_loss() == 4.0
    assert budget.mean_loss() == float("inf")


def test_memory_is_that_of_the_fullest_device_or_of_the_process(monkeypatch: pytest.MonkeyPatch):
    assert memory_peak().keys() == {"host_peak_bytes"}
    # This process has JAX loaded, and fits the machine.
    assert 50e6 < memory_peak()["host_peak_bytes"] < 1e12
    devices = [
        SimpleNamespace(memory_stats=lambda peak=peak: {"peak_bytes_in_use": peak})
        for peak in (3, 5, 4)
    ]
    monkeypatch.setattr(monitor_module.jax, "local_devices", lambda: devices)
    assert memory_peak() == {"memory_peak_bytes": 5}


def fake_devices(monkeypatch: pytest.MonkeyPatch, kind: str, platform: str, count: int) -> None:
    devices = [SimpleNamespace(device_kind=kind, platform=platform)] * count
    fake = SimpleNamespace(
        devices=lambda: devices, device_count=lambda: count, process_count=lambda: 2
    )
    monkeypatch.setattr(peak_module, "jax", fake)


@pytest.mark.parametrize(
    ("kind", "dtype", "flops", "name"),
    [
        ("TPU v5 lite", "bfloat16", 4 * 197e12, "the published bfloat16 peak of 4 x v5e"),
        ("TPU v5 lite", "float32", 4 * 197e12, "the published bfloat16 peak of 4 x v5e"),
        ("NVIDIA H200", "bfloat16", 4 * 989.5e12, "the published bfloat16 peak of 4 x H200"),
        ("NVIDIA H200", "float32", 4 * 67e12, "the published float32 peak of 4 x H200"),
        ("NVIDIA T4", "float32", 4 * 3e12, "the measured float32 matmul rate of 4 x NVIDIA T4"),
        ("cpu", "float32", 2 * 3e12, "the measured float32 matmul rate of 2 x cpu"),
    ],
)
def test_the_peak_is_the_published_one_or_measured(
    monkeypatch: pytest.MonkeyPatch, kind: str, dtype: str, flops: float, name: str
):
    fake_devices(monkeypatch, kind, "cpu" if kind == "cpu" else "other", 4)
    monkeypatch.setattr(peak_module, "_matmul_rate", lambda dtype, platform: 3e12)
    peak = peak_of_devices(dtype)
    assert peak.flops == pytest.approx(flops)
    assert peak.name == f"{name}, {flops / 1e12:,.0f} TFLOP/s"


def test_the_rate_of_this_machine_is_of_the_right_order():
    # One core does some GFLOP/s; a host of hundreds of cores some ten TFLOP/s.
    assert 1e9 < peak_of_devices("float32").flops < 1e14


def test_the_compile_clock_counts_nested_spans_once_and_nothing_when_left():
    with CompileClock() as clock:
        start = clock.take()
        for begin, end in ((2.0, 3.0), (4.0, 5.0), (1.0, 6.0), (7.0, 9.0)):
            jax.monitoring.record_event_time_span("/jax/core/compile/x", begin, end)
        jax.monitoring.record_event_time_span("/jax/other", 0.0, 100.0)
        assert start == 0.0
        assert clock.take() == 7.0
        assert clock.take() == 0.0
        jax.jit(lambda x: x * 3 + 1)(jnp.arange(5)).block_until_ready()
        assert 0 < clock.take() < 60
    jax.monitoring.record_event_time_span("/jax/core/compile/x", 0.0, 1.0)
    assert clock.take() == 0.0
