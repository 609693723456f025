"""The persistent compilation cache: a program compiled once starts at once the next time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache


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
