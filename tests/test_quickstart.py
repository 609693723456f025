"""Stages of the quickstart: run once, verified afterwards, run again when something changed."""

from pathlib import Path

import pytest

from synrank_jax.config_file import load_config
from synrank_jax.quickstart import CONFIGS, FULL_CONFIGS, ROOT, Stage, stages

WRITE = "import pathlib, sys; p = pathlib.Path(sys.argv[1]); p.mkdir(exist_ok=True); "


def stage(output: Path, inputs: str = "a") -> Stage:
    code = WRITE + "f = p / 'n'; f.write_text(str(int(f.read_text()) + 1) if f.exists() else '1')"
    return Stage(["-c", code, str(output)], output, inputs)


def test_a_finished_stage_is_recognised_by_inputs_and_content(tmp_path: Path):
    made = stage(tmp_path / "out")
    assert not made.is_done()
    made.run()
    assert made.is_done()
    assert not stage(tmp_path / "out", inputs="b").is_done()
    (tmp_path / "out" / "n").write_text("altered")
    assert not made.is_done()


def test_a_stage_is_run_again_when_what_it_reads_has_changed(tmp_path: Path):
    first = stage(tmp_path / "first")
    second = Stage(stage(tmp_path / "second").command, tmp_path / "second", "a", (first.output,))
    first.run()
    second.run()
    assert second.is_done()
    first.run()
    assert first.is_done()
    assert not second.is_done()


def test_what_other_inputs_left_is_removed_and_what_a_kill_left_is_resumed(tmp_path: Path):
    output = tmp_path / "out"
    stage(output, "a").run()
    assert (output / "n").read_text() == "1"
    stage(output, "a").run()  # the command resumes: it finds its own earlier output
    assert (output / "n").read_text() == "2"
    stage(output, "b").run()
    assert (output / "n").read_text() == "1"


def test_a_stage_whose_output_is_gone_is_not_done(tmp_path: Path):
    made = stage(tmp_path / "out")
    made.run()
    (tmp_path / "out" / "n").unlink()
    (tmp_path / "out").rmdir()
    assert not made.is_done()


def test_a_failing_stage_ends_the_quickstart_with_its_exit_code(tmp_path: Path):
    failing = Stage(["-c", "raise SystemExit(7)"], tmp_path / "out", "a")
    with pytest.raises(SystemExit, match="7"):
        failing.run()
    assert not failing.is_done()


def test_the_stages_are_the_public_commands_in_order(monkeypatch):
    monkeypatch.chdir(ROOT)
    commands = [stage.command[1].removeprefix("synrank_jax.") for stage in stages(CONFIGS)]
    assert commands == [
        "prepare",
        "evaluate",
        *["train", "export", "evaluate", "export"] * 2,
    ]
    markers = [stage.marker("done") for stage in stages({**CONFIGS, **FULL_CONFIGS})]
    assert len(set(markers)) == len(markers) == 14


def test_all_losses_train_on_the_same_lists_with_the_same_lengths():
    configs = [load_config(path) for path in (*CONFIGS.values(), *FULL_CONFIGS.values())]
    assert all(config.data == configs[0].data for config in configs)
    assert all(config.encoding == configs[0].encoding for config in configs)
    assert [list(config.loss.weights()) for config in configs] == [
        ["infonce"],
        ["wasserstein"],
        ["gaussian_wasserstein"],
    ]
