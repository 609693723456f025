"""Tests run on CPU with eight virtual devices; warnings are errors and only loopback is reachable."""

import os

# Both must stand before the first import of jax.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
ORACLES = Path(__file__).parent / "oracles"


def pytest_configure(config: pytest.Config) -> None:
    """Check shapes and dtypes of annotated functions at run time."""
    from jaxtyping import install_import_hook

    for package in ("losses", "models", "parallel"):
        install_import_hook(f"synrank_jax.{package}", "beartype.beartype")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the collections that do not ship with the project; skips where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the collections of {SHARED_DATA} are not on this machine")
    return SHARED_DATA
