"""What the matmuls of a machine can reach: the denominator of the utilisation (MFU)."""

import time
from dataclasses import dataclass
from functools import cache

import jax
import jax.numpy as jnp

from synrank_jax.parallel.chips import chip_of

MEASURE_S = 0.1
# Large enough to keep the units busy, small enough to measure several of them in that time.
CPU_SIZE, ACCELERATOR_SIZE = 1024, 4096


@dataclass(frozen=True)
class Peak:
    """A peak over all devices of a run.

    flops: FLOP/s. name: what it is the peak of, for the console.
    """

    flops: float
    name: str


def peak_of_devices(compute_dtype: str) -> Peak:
    """The peak of all devices of all hosts for matmuls of `float32` or `bfloat16`.

    The published one where the chip is listed (`Chip.peak`). On CPU, whose virtual devices share
    it, and on other GPUs it is measured in 0.1 to 0.2 s on one device, by every process at the same
    time.
    """
    device, devices = jax.devices()[0], jax.device_count()
    chip = chip_of(device.device_kind)
    if chip is not None:
        flops, dtype = chip.peak(compute_dtype)
        return _peak(flops, f"the published {dtype} peak of", devices, chip.name)
    count = jax.process_count() if device.platform == "cpu" else devices
    flops = _matmul_rate(compute_dtype, device.platform)
    return _peak(flops, f"the measured {compute_dtype} matmul rate of", count, device.device_kind)


def _peak(flops: float, what: str, count: int, of: str) -> Peak:
    total = flops * count
    size, unit = (1e12, "TFLOP/s") if total >= 1e12 else (1e9, "GFLOP/s")
    return Peak(total, f"{what} {count} x {of}, {total / size:,.0f} {unit}")


@cache
def _matmul_rate(dtype: str, platform: str) -> float:
    """FLOP/s of one device: the fastest of a few square matmuls, as the encoder multiplies."""
    size = CPU_SIZE if platform == "cpu" else ACCELERATOR_SIZE
    exact = jax.lax.Precision.HIGHEST if dtype == "float32" else jax.lax.Precision.DEFAULT
    multiply = jax.jit(lambda x: jnp.matmul(x, x, precision=exact))
    matrix = jnp.ones((size, size), dtype)
    multiply(matrix).block_until_ready()
    fastest = float("inf")
    began = time.perf_counter()
    while time.perf_counter() - began < MEASURE_S:
        started = time.perf_counter()
        multiply(matrix).block_until_ready()
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * size**3 / fastest
