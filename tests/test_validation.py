"""Evaluation within training: its values, what is kept and chosen, early stopping, resuming."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from synrank_jax import evaluate, export, prepare, train
from synrank_jax.config import Config, MeshConfig, ValidationConfig
from synrank_jax.config_file import to_yaml, validate_config
from synrank_jax.data import packing
from synrank_jax.engine import validation
from synrank_jax.engine.checkpoint import chosen_checkpoint, load_trained
from synrank_jax.engine.history import VALIDATION_FILE, History
from synrank_jax.engine.runfolder import CHECKPOINTS
from synrank_jax.errors import UserError
from synrank_jax.retrieval.result import EvaluationResult
from synrank_jax.tracking import read_metrics

METRICS = ("nDCG@10", "AP")
# The live weights against those read back: other widths of the batches, so other float32 sums.
VALUE = 1e-4


class Stopped(Exception):
    """Ends a run between two steps."""


def stop_at(last: int) -> Callable[[int], None]:
    def stop(step: int) -> None:
        if step == last:
            raise Stopped

    return stop


def changed(config: Config, **train_values) -> Config:
    section = config.train.model_copy(update=train_values)
    return config.model_copy(update={"train": section})


@pytest.fixture(autouse=True)
def two_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention in two blocks instead of five, which compiles in half the time."""
    monkeypatch.setattr(packing, "BLOCKS", 2)


@pytest.fixture
def config(tiny_config: Config, tmp_path: Path) -> Config:
    """Six steps, evaluated before, after every second and on the lists' own judgements."""
    path = tiny_config.data.sources[0].path
    section = ValidationConfig(path=path, split="train", metrics=METRICS, batch_size=16)
    config = tiny_config.model_copy(update={"validation": section})
    config = changed(config, eval_every=2, save_every=None)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    prepare.main(["--config", str(tmp_path / "config.yaml")])
    return config


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, float]], list[int]]:
    """Replaces what is measured by values per evaluation; returns a list of those asked for."""

    def script(values: dict[int, float]) -> list[int]:
        asked: list[int] = []
        original = validation.Validation.evaluate

        def evaluated(self, step, params, first, log):
            asked.append(step)
            monkeypatch.setattr(
                self, "_measure", lambda queries, passages: dict.fromkeys(METRICS, values[step])
            )
            return original(self, step, params, first, log)

        monkeypatch.setattr(validation.Validation, "evaluate", evaluated)
        monkeypatch.setattr(validation.Validation, "_embed", lambda *_: None)
        return asked

    return script


def records(run: Path) -> dict[int, dict[str, float]]:
    return {
        record["step"]: {name: record[f"validation/{name}"] for name in METRICS}
        for record in read_metrics(run)
        if "validation/AP" in record
    }


def saved(run: Path) -> list[int]:
    return sorted(int(path.name) for path in (run / CHECKPOINTS).iterdir())


def evaluated(config: Config, model: str, tmp_path: Path) -> EvaluationResult:
    section = config.validation
    command = ["--config", str(tmp_path / "config.yaml"), "--output", str(tmp_path / "scores")]
    for name, value in {"path": section.path, "split": "train", "metrics": "[nDCG@10, AP]"}.items():
        command += ["--set", f"evaluation.{name}={value}"]
    evaluate.main([*command, *(["--model", model] if model else ["--zero-shot", "--backend=jax"])])
    return EvaluationResult.read(tmp_path / "scores" / "metrics.json")


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh",
    [{}, {"data": 2, "fsdp": 4}, {"data": 4, "tensor": 2}],
    ids=["data", "fsdp", "tensor"],
)
def test_the_values_are_those_of_evaluate(config: Config, tmp_path: Path, mesh: dict, capsys):
    config = config.model_copy(update={"mesh": MeshConfig(**mesh)})
    train.run(changed(config, keep_checkpoints=5, save_every=2))
    found = records(tmp_path / "run")
    assert list(found) == [0, 2, 4, 6]
    assert len({values["AP"] for values in found.values()}) == 4
    capsys.readouterr()
    assert evaluated(config, "", tmp_path).metrics == pytest.approx(found[0], abs=VALUE)
    for step in (2, 6):
        model = str(tmp_path / "run" / CHECKPOINTS / str(step))
        assert evaluated(config, model, tmp_path).metrics == pytest.approx(found[step], abs=VALUE)
        assert evaluated(config, model, tmp_path).model == model


def test_the_best_checkpoint_is_kept_and_chosen(
    config: Config, tmp_path: Path, scripted: Callable, capsys
):
    scripted({0: 0.9, 2: 0.3, 4: 0.2, 6: 0.1})
    train.run(changed(config, keep_checkpoints=1))
    run = tmp_path / "run"
    assert saved(run) == [2, 6]
    printed = capsys.readouterr().out
    assert "step 2 is best of 3 by nDCG@10: 0.3000 (0.9000 before the first step)" in printed
    assert load_trained(run).step == 2
    assert load_trained(run / CHECKPOINTS / "6").step == 6
    result = evaluated(config, str(run), tmp_path)
    assert result.model == str(run / CHECKPOINTS / "2")
    assert f"{run}: step 2, best of 3 by nDCG@10: 0.3000" in capsys.readouterr().out
    export.main(["--checkpoint", str(run), "--output", str(tmp_path / "model")])
    assert "(step 2 of" in capsys.readouterr().out


def test_without_validation_the_newest_is_chosen(config: Config, tmp_path: Path):
    train.run(
        changed(config.model_copy(update={"validation": None}), eval_every=None, save_every=3)
    )
    folder, because = chosen_checkpoint(tmp_path / "run")
    assert (folder.name, because) == ("6", ", the newest")


def test_if_the_best_is_gone_the_next_one_is_named(
    config: Config, tmp_path: Path, scripted: Callable
):
    scripted({0: 0.0, 2: 0.3, 4: 0.4, 6: 0.1})
    run = tmp_path / "run"
    train.run(changed(config, keep_best=2))
    assert saved(run) == [2, 4, 6]
    shutil.rmtree(run / CHECKPOINTS / "4" / "params" / "d")
    folder, because = chosen_checkpoint(run)
    assert (folder.name, because) == ("2", ", number 2 of 3 by nDCG@10: 0.3000")


def test_a_run_ends_early_and_stays_finished(
    config: Config, tmp_path: Path, scripted: Callable, capsys
):
    asked = scripted({0: 0.9, 1: 0.2, 2: 0.3, 3: 0.3, 4: 0.1, 5: 0.5, 6: 0.4})
    config = changed(config, eval_every=1, patience=2)
    finished = train.run(config)
    assert (finished.steps, asked) == (4, [0, 1, 2, 3, 4])  # equal is not better
    assert saved(tmp_path / "run") == [2, 4]
    assert "ended early: 2 evaluations without a better one; step 2 is" in capsys.readouterr().out

    def contents() -> dict[Path, bytes]:
        files = (path for path in (tmp_path / "run").rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in files if path.name != "lock"}

    before = contents()
    assert train.run(config).steps == 4
    assert contents() == before
    assert len(asked) == 5
    assert "ended early" in capsys.readouterr().out
    # More patience goes on from there.
    assert train.run(changed(config, patience=3)).steps == 6
    assert asked[5:] == [5, 6]


@pytest.mark.parametrize("last", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_run_in_parts_ends_as_a_whole_one(
    config: Config, tmp_path: Path, scripted: Callable, last: int
):
    scripted({0: 0.1, 1: 0.3, 2: 0.2, 3: 0.4, 4: 0.4, 5: 0.3, 6: 0.6})
    config = changed(config, eval_every=1, patience=2)
    whole = train.run(config)
    other = changed(config, output=str(tmp_path / "parts"), save_every=2)
    with pytest.raises(Stopped):
        train.run(other, on_step=stop_at(last))
    parts = train.run(other)
    assert parts.steps == whole.steps == 5
    assert records(parts.folder) == records(whole.folder)
    assert History.read(parts.folder) == History.read(whole.folder)
    assert [record["step"] for record in read_metrics(parts.folder)] == [
        record["step"] for record in read_metrics(whole.folder)
    ]
    assert chosen_checkpoint(parts.folder)[0].name == chosen_checkpoint(whole.folder)[0].name == "3"


def test_a_signal_at_an_evaluation_saves_first_and_evaluates_later(
    config: Config, tmp_path: Path, scripted: Callable
):
    asked = scripted({0: 0.1, 2: 0.2, 4: 0.3, 6: 0.4})
    # Sent after step 1, it is heeded after step 2.
    with pytest.raises(SystemExit):
        train.run(config, on_step=lambda step: step == 1 and signal.raise_signal(signal.SIGTERM))
    assert (asked, saved(tmp_path / "run")) == ([0], [2])
    train.run(config)
    assert asked == [0, 2, 4, 6]
    assert list(records(tmp_path / "run")) == [0, 2, 4, 6]


@pytest.mark.slow
def test_evaluations_change_neither_weights_nor_records(config: Config, tmp_path: Path):
    with_them = train.run(config)
    plain = config.model_copy(update={"validation": None})
    without = train.run(changed(plain, eval_every=None, output=str(tmp_path / "plain")))
    exact = ("step", "loss", "grad_norm", "param_norm", "samples")
    one, other = (
        [[record[name] for name in exact] for record in read_metrics(run) if "loss" in record]
        for run in (with_them.folder, without.folder)
    )
    assert one == other


def test_another_collection_or_section_is_another_run(
    config: Config, tmp_path: Path, scripted: Callable
):
    scripted(dict.fromkeys(range(7), 0.5))
    own = tmp_path / "collection"
    shutil.copytree(config.validation.path, own)
    section = config.validation.model_copy(update={"path": str(own)})
    config = config.model_copy(update={"validation": section})
    with pytest.raises(Stopped):
        train.run(config, on_step=stop_at(3))
    with pytest.raises(UserError, match=r"train\.eval_every: 2 there, 3 now"):
        train.run(changed(config, eval_every=3))
    other = section.model_copy(update={"metrics": ("AP", "nDCG@10")})
    with pytest.raises(UserError, match=r"validation.metrics: \['nDCG@10', 'AP'\] there"):
        train.run(config.model_copy(update={"validation": other}))
    with pytest.raises(UserError, match=r"validation: {.* there, None now"):
        train.run(changed(config.model_copy(update={"validation": None}), eval_every=None))
    (tmp_path / "run" / VALIDATION_FILE).rename(tmp_path / "aside")
    with pytest.raises(UserError, match=r"validation.json: missing.*2 steps"):
        train.run(config)
    (tmp_path / "aside").rename(tmp_path / "run" / VALIDATION_FILE)
    lines = (own / "corpus.jsonl").read_text().splitlines()
    lines[0] = json.dumps({**json.loads(lines[0]), "text": "bal"})
    (own / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match="its files have changed"):
        train.run(config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train.eval_every": 2, "validation": None}, "eval_every 2 needs a collection"),
        ({"train.eval_every": None}, "never scored without train.eval_every"),
        (
            {"train.eval_every": None, "validation": None, "train.patience": 2},
            "patience 2 counts evaluations",
        ),
    ],
    ids=["no collection", "no steps", "nothing to count"],
)
def test_settings_that_do_not_go_together_are_refused(config: Config, values: dict, message: str):
    content = config.model_dump(mode="json")
    for name, value in values.items():
        *section, field = name.split(".")
        (content[section[0]] if section else content)[field] = value
    with pytest.raises(UserError, match=message):
        validate_config(content, name="config")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"metrics": ("nDGC@10",)}, "validation.metrics: 'nDGC@10' is not a measure"),
        ({"path": "nowhere"}, "validation.path 'nowhere': no such folder"),
        ({"split": "dev"}, "dev.tsv"),
    ],
    ids=["metric", "path", "split"],
)
def test_a_broken_section_is_refused_before_anything_is_written(
    config: Config, tmp_path: Path, section: dict, message: str
):
    other = config.validation.model_copy(update=section)
    with pytest.raises(UserError, match=message):
        train.run(config.model_copy(update={"validation": other}))
    assert not (tmp_path / "run").exists()


def test_dry_run_evaluates_nothing(config: Config, tmp_path: Path, scripted: Callable):
    asked = scripted({})
    assert train.run(config, dry_run=True) is None
    assert not asked
    assert not (tmp_path / "run").exists()
