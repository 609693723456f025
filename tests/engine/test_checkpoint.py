"""Checkpoints: what is kept, what is damaged, what cannot be written."""

import json
import logging
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synrank_jax.config import Config
from synrank_jax.contract import EncodingContract, resolve_contract
from synrank_jax.engine.checkpoint import Checkpoints, size_bytes
from synrank_jax.engine.integrity import damage, tidy
from synrank_jax.engine.runfolder import CHECKPOINTS, check_space
from synrank_jax.engine.state import TrainState
from synrank_jax.errors import UserError


def state(step: int, size: int = 4) -> TrainState:
    """Large enough that arrays have files of their own."""
    weights = jax.random.normal(jax.random.key(step), (size, 1000))
    return TrainState({"w": weights}, {"mu": weights * 2}, jnp.int32(step))


@pytest.fixture
def contract(tiny_config: Config) -> EncodingContract:
    return resolve_contract(tiny_config)


def opened(config: Config, contract: EncodingContract, run: Path, **train) -> Checkpoints:
    config = config.model_copy(update={"train": config.train.model_copy(update=train)})
    return Checkpoints(run, config, contract, "sha")


@pytest.fixture
def saved(tiny_config: Config, contract: EncodingContract, tmp_path: Path) -> Path:
    """The folder of checkpoints 1 and 2."""
    checkpoints = opened(tiny_config, contract, tmp_path)
    for step in (1, 2):
        checkpoints.save(step, state(step), loss=1.0)
    checkpoints.close()
    return tmp_path / CHECKPOINTS


def kept(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir())


def test_the_newest_and_the_best_are_kept(
    tiny_config: Config, contract: EncodingContract, tmp_path: Path
):
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: 2.5, 5: 2.6, 6: 9.0}
    for steps in ((1, 2, 3, 4), (5, 6)):  # the second time the losses are those on the disk
        checkpoints = opened(tiny_config, contract, tmp_path, keep_checkpoints=2, keep_best=2)
        for step in steps:
            checkpoints.save(step, state(step), losses[step])
        checkpoints.close()
    assert kept(tmp_path / CHECKPOINTS) == [2, 3, 5, 6]


def test_without_keep_best_the_newest_are_kept(saved: Path, tiny_config: Config, contract):
    checkpoints = opened(tiny_config, contract, saved.parent, keep_checkpoints=1)
    checkpoints.save(3, state(3), loss=5.0)
    checkpoints.close()
    assert kept(saved) == [3]


def files(checkpoint: Path, pattern: str) -> list[Path]:
    found = [path for path in checkpoint.glob(pattern) if path.is_file()]
    assert found
    return found


@pytest.mark.parametrize("harm", ["truncated", "missing"])
@pytest.mark.parametrize(
    "pattern",
    [
        *("params/manifest.ocdbt", "params/_METADATA", "params/d/*", "optimizer/d/*"),
        *("optimizer/ocdbt.process_0/d/*", "meta/metadata"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    saved: Path, caplog: pytest.LogCaptureFixture, pattern: str, harm: str
):
    for path in files(saved / "2", pattern):
        if harm == "missing":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert damage(saved / "2") is not None
    assert tidy(saved) == 1
    assert f"{saved / '2'} is damaged and not used" in caplog.text
    assert {path.name for path in saved.iterdir()} == {"1", "2.damaged"}


def test_half_written_checkpoints_are_named_and_removed(
    saved: Path, caplog: pytest.LogCaptureFixture
):
    half = saved / "3.orbax-checkpoint-tmp-17"
    shutil.copytree(saved / "2", half)
    assert tidy(saved) == 2
    assert f"{half} was not written to the end" in caplog.text
    assert not half.exists()


def test_with_no_whole_checkpoint_nothing_is_begun_anew(saved: Path):
    for step in (1, 2):
        shutil.rmtree(saved / str(step) / "params")
    with pytest.raises(UserError, match=r"none of the 2 checkpoints .* remove it to begin anew"):
        tidy(saved)
    assert kept(saved) == [1, 2]


def test_a_folder_without_checkpoints_is_begun(tmp_path: Path):
    assert tidy(tmp_path / CHECKPOINTS) is None


def test_whole_checkpoints_are_left_alone(saved: Path, caplog: pytest.LogCaptureFixture):
    assert tidy(saved) == 2
    assert kept(saved) == [1, 2]
    assert not caplog.records


def test_a_state_comes_back_bit_for_bit(saved: Path, tiny_config: Config, contract):
    checkpoints = opened(tiny_config, contract, saved.parent)
    restored = checkpoints.restore(2, state(0))
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, restored, state(2))


def test_a_checkpoint_of_another_model_is_refused(saved: Path, tiny_config: Config, contract):
    checkpoints = opened(tiny_config, contract, saved.parent)
    with pytest.raises(UserError, match=r"weight w is \(4, 1000\) there and \(5, 1000\) in"):
        checkpoints.restore(2, state(0, size=5))
    checkpoints.close()


def test_an_optimizer_state_of_another_layout_is_refused(saved: Path, tiny_config, contract):
    checkpoints = opened(tiny_config, contract, saved.parent)
    other = state(0)._replace(opt_state={"nu": jnp.zeros(3)})
    with pytest.raises(UserError, match=r"2: state mu is \(4, 1000\) there and missing here"):
        checkpoints.restore(2, other)
    checkpoints.close()


def test_a_checkpoint_that_breaks_while_it_is_read_is_one_error(saved: Path, tiny_config, contract):
    checkpoints = opened(tiny_config, contract, saved.parent)
    for path in files(saved / "2", "params/d/*"):
        path.write_bytes(b"x")
    with pytest.raises(UserError, match=r"2 cannot be read .*: run the same command again"):
        checkpoints.restore(2, state(0))
    checkpoints.close()


@contextmanager
def full_disk() -> Iterator[None]:
    """Files may not grow beyond a few bytes: the error of a full disk, without filling one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# Orbax abandons the coroutines of its other writes.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("found_by", ["close", "save"])
def test_a_full_disk_is_one_error_and_leaves_nothing(
    saved: Path, tiny_config: Config, contract, found_by: str
):
    checkpoints = opened(tiny_config, contract, saved.parent)
    message = rf"the checkpoint of step 3 cannot be written to {saved} \(.*too large"

    def write() -> None:
        checkpoints.save(3, state(3), loss=1.0)
        if found_by == "save":
            checkpoints.save(4, state(4), loss=1.0)
        checkpoints.close()

    with full_disk(), pytest.raises(UserError, match=message):
        write()
    checkpoints.close()
    assert tidy(saved) == 2
    assert kept(saved) == [1, 2]


def test_a_disk_without_room_for_a_checkpoint_is_refused(tiny_config: Config, tmp_path: Path):
    with pytest.raises(UserError, match=r"GiB free, a checkpoint needs 9313225\.75 GiB"):
        check_space(tmp_path, 10**16, tiny_config)


def test_a_disk_without_room_for_all_checkpoints_is_warned_of(
    tiny_config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    free = shutil.disk_usage(tmp_path).free
    check_space(tmp_path, free // 10, tiny_config)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        check_space(tmp_path, free // 2, tiny_config)
    assert "2 checkpoints of" in caplog.text


def test_the_size_of_a_state_counts_all_leaves():
    assert size_bytes(state(0)) == 2 * 4 * 1000 * 4 + 4


def test_the_metadata_names_the_step(saved: Path):
    assert json.loads((saved / "2" / "meta" / "metadata").read_text())["step"] == 2
