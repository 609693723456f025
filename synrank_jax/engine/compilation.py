"""The persistent compilation cache: a program compiled once starts at once the next time."""

import os
from pathlib import Path

import jax


def use_compilation_cache() -> None:
    """Keep compiled programs in the user's cache folder.

    JAX_COMPILATION_CACHE_DIR, or a folder set in `jax.config`, takes precedence.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(base) / "synrank_jax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(folder))
