"""How programs are compiled: with options found by measurement, and once.

The persistent compilation cache makes a program that was compiled before start at once.
"""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from jax.sharding import Mesh

# What each gave is in benchmarks/PROFILE.md.
CPU_OPTIONS: dict[str, bool | str] = {
    # No matmul by YNNPACK, but by Eigen and XNNPACK.
    "xla_cpu_experimental_ynn_fusion_type": "",
    "xla_cpu_use_xnnpack": True,
    # Few arrays alive at a time, rather than many operations ready at a time.
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
}


def compiler_options(mesh: Mesh) -> dict[str, bool | str]:
    """Options of the compiler for the devices of a mesh, for `jax.jit`."""
    return _known_cpu_options() if mesh.devices.flat[0].platform == "cpu" else {}


@functools.cache
def _known_cpu_options() -> dict[str, bool | str]:
    """Those that this release of XLA has; they are no part of its interface."""
    known = {}
    for name, value in CPU_OPTIONS.items():
        try:
            jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
        except jax.errors.JaxRuntimeError:
            continue
        known[name] = value
    return known


def use_compilation_cache() -> None:
    """Keep compiled programs in the user's cache folder.

    JAX_COMPILATION_CACHE_DIR, or a folder set in `jax.config`, takes precedence.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(base) / "synrank_jax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(folder))


@contextmanager
def no_compilation_cache() -> Iterator[None]:
    """Compile anew: programs of devices that are not here cannot be read back from the cache."""
    enabled = jax.config.values["jax_enable_compilation_cache"]
    try:
        _enable_cache(False)
        yield
    finally:
        _enable_cache(enabled)


def _enable_cache(enabled: bool) -> None:
    jax.config.update("jax_enable_compilation_cache", enabled)
    reset_cache()  # JAX looks at the option once
