"""Prepared lists of the tiny configuration, packed for quick compilation."""

from pathlib import Path

import pytest

from synrank_jax import prepare
from synrank_jax.config import Config
from synrank_jax.config_file import to_yaml
from synrank_jax.data import packing
from synrank_jax.data.pipeline import PreparedLists


@pytest.fixture
def lists(tiny_config: Config, tmp_path: Path) -> PreparedLists:
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(tiny_config))
    prepare.main(["--config", str(path)])
    return PreparedLists(Path(tiny_config.data.prepared))


@pytest.fixture(autouse=True)
def two_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention in two blocks instead of five, which compiles in half the time."""
    monkeypatch.setattr(packing, "BLOCKS", 2)
