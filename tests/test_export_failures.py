"""An export that cannot be finished leaves what was there before, and nothing else."""

import resource
import signal
from pathlib import Path

import pytest

from synrank_jax import export_folder
from synrank_jax.config import EncodingConfig, ModelConfig
from synrank_jax.contract import contract_of_folder
from synrank_jax.engine.encoding import load_model
from synrank_jax.errors import UserError
from synrank_jax.export_manifest import Origin, verify_folder

ORIGIN = Origin(
    checkpoint="run", step=7, data_sha256="0", model_path="tiny", base_model=None, version="0"
)


def export_tiny(source: Path, output: Path) -> None:
    given = {"pooling": "mean", "normalize": True, "similarity": "cosine"}
    lengths = {"query_length": 16, "passage_length": 16}
    contract = contract_of_folder(source, EncodingConfig.model_validate({**given, **lengths}))
    model = load_model(ModelConfig(path=str(source)), contract)
    export_folder.export_model(model, source, contract, output, card="# Tiny\n", origin=ORIGIN)


def test_ctrl_c_leaves_nothing_behind(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export_folder, "verify_parity", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_tiny(tiny_model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_an_earlier_export_is_replaced_keeps_it(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    output = tmp_path / "out"
    export_tiny(tiny_model, output)
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.suffix == ".partial":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_tiny(tiny_model, output)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    verify_folder(output)


def test_a_full_disk_is_named_and_leaves_nothing_behind(tiny_model: Path, tmp_path: Path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # less than the weights
    try:
        with pytest.raises(UserError, match=r"--output .*out: cannot be written"):
            export_tiny(tiny_model, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []
