"""Per-step metrics: kept on the devices between flushes, so that the loop never waits for them."""

import resource
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from synrank_jax.engine.peak import Peak
from synrank_jax.engine.profiling import CompileClock
from synrank_jax.engine.updates import UpdateBudget
from synrank_jax.models.bert import BertConfig
from synrank_jax.models.flops import step_flops
from synrank_jax.tracking import MetricsLog
from synrank_jax.types import Batch


class _Step(NamedTuple):
    """A dispatched step: device metrics, and what the host knows of it."""

    step: int
    metrics: Any
    slots: int
    shape: tuple[int, int, int]
    wait_s: float
    compile_s: float


class StepMonitor:
    """Collects the metrics of dispatched steps and writes them at the next flush.

    Args:
        log: Where records go; None on all processes but one.
        schedule: Completed updates -> learning rate.
        encoder: Architecture, for the FLOPs of a step.
        own_lists: Queries are scored with their own list only (`scope: list`).
        peak: What the utilisation is relative to.
        compiling: The clock of compilations, which are no part of the rates.
        budget: Stops the run when too many updates were bad.
    """

    def __init__(
        self,
        log: MetricsLog | None,
        schedule: Callable[[int], Any],
        encoder: BertConfig,
        own_lists: bool,
        peak: Peak,
        compiling: CompileClock,
        budget: UpdateBudget,
    ) -> None:
        self._log = log
        self._schedule = schedule
        self._encoder = encoder
        self._own_lists = own_lists
        self._peak = peak
        self._compiling = compiling
        self._budget = budget
        self._pending: list[_Step] = []
        compiling.take()  # what was compiled before is not of this window
        self._window_began = time.perf_counter()

    def add(self, step: int, metrics: Any, batch: Batch, wait_s: float) -> None:
        """Remember a dispatched step: device metrics, its global batch, seconds waited for data."""
        slots, shape = batch.texts.segment_ids.size, batch.labels.shape
        self._pending.append(_Step(step, metrics, slots, shape, wait_s, self._compiling.take()))

    def flush(self, last_checkpoint: int, to_disk: bool = False) -> str:
        """Wait for the pending steps, write their records, and return a note for the console.

        Rates are those of the window since the last flush, compilation left out.

        Args:
            last_checkpoint: its step, 0 before the first.
            to_disk: the records survive a crash of the machine, as those of a checkpoint must.

        Raises:
            BadUpdateError: names the first step that was bad beyond the budget.
        """
        pending, self._pending = self._pending, []
        fetched = jax.device_get([each.metrics for each in pending])
        seconds = time.perf_counter() - self._window_began
        records = [
            self._record(each, metrics) for each, metrics in zip(pending, fetched, strict=True)
        ]
        window = self._window(records, seconds)
        steps = pending[0].step, pending[-1].step
        try:
            for record in records:
                self._write({**record, **window})
                self._budget.check(record, steps, last_checkpoint)
        finally:
            if self._log is not None:
                self._log.flush(to_disk)
        self._window_began = time.perf_counter()
        waited = sum(record["data_wait_s"] for record in records)
        return (
            f"loss {records[-1]['loss']:.4f}  {window['lists_per_s']:.1f} lists/s  "
            f"mfu {window['mfu']:.1%}  data wait {waited / seconds:.0%}"
            + (f"  saved {last_checkpoint}" if last_checkpoint else "")
        )

    def resume(self) -> None:
        """What happened since the last flush, such as an evaluation, is of no window."""
        self._compiling.take()
        self._window_began = time.perf_counter()

    def _record(self, step: _Step, metrics: dict[str, Any]) -> dict[str, Any]:
        """One step's own values, and its FLOPs."""
        pools, queries, size = step.shape
        pairs = pools * queries * (size if self._own_lists else queries * size)
        tokens, squared = int(metrics["tokens"]), float(metrics["squared_lengths"])
        return {
            "step": step.step,
            **{name: value.item() for name, value in metrics.items()},
            "learning_rate": float(self._schedule(int(metrics["applied_updates"]))),
            "samples": f"{int(metrics['samples']):08x}",
            "lists": pools * queries,
            "padding_share": 1 - tokens / step.slots,
            "data_wait_s": step.wait_s,
            "compile_s": step.compile_s,
            "flops": step_flops(self._encoder, tokens, squared, pairs),
        }

    def _window(self, records: list[dict[str, Any]], seconds: float) -> dict[str, float]:
        """Rates and memory of a window of so many seconds."""

        def total(name: str) -> float:
            return float(sum(record[name] for record in records))

        steady = seconds - total("compile_s")
        return {
            "lists_per_s": total("lists") / steady,
            "tokens_per_s": total("tokens") / steady,
            "mfu": total("flops") / steady / self._peak.flops,
            **memory_peak(),
        }

    def _write(self, record: dict[str, Any]) -> None:
        # They only serve the rates.
        unwritten = ("step", "flops", "squared_lengths", "applied_updates")
        written = {name: value for name, value in record.items() if name not in unwritten}
        if self._log is not None:
            self._log.write(record["step"], written)


def memory_peak() -> dict[str, int]:
    """High-water mark: `memory_peak_bytes` of the fullest local device since the process began.

    Where the backend does not tell, as on CPU, `host_peak_bytes`, the process' resident memory.
    """
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    if all("peak_bytes_in_use" in each for each in stats):
        return {"memory_peak_bytes": max(each["peak_bytes_in_use"] for each in stats)}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"host_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
