"""An experiment on the tiny model: plan, resumption cell by cell, tuning, and the table."""

import json
import os
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from stand_in_encoder import StandInEncoder

from synrank_jax import cells, compare, train
from synrank_jax.cells import FAILED_FILE
from synrank_jax.config import Config
from synrank_jax.contract import resolve_contract
from synrank_jax.engine.runfolder import CHECKPOINTS
from synrank_jax.engine.updates import BadUpdateError
from synrank_jax.errors import UserError
from synrank_jax.experiment import Study
from synrank_jax.files import locked
from synrank_jax.retrieval.comparison import Report
from synrank_jax.retrieval.result import EvaluationResult

# A few sums of float64.
ROUNDING = 1e-12
INFONCE = ["loss.wasserstein=0", "loss.infonce=1"]
RATES = [["optimizer.learning_rate=0.002"], ["optimizer.learning_rate=0.001"]]


class Desk:
    """An experiment file, its output folder, and how often train.run was called."""

    def __init__(self, folder: Path, values: dict[str, Any]) -> None:
        self.file = folder / "tiny.yaml"
        self.output = folder / "out"
        self.values = values
        self.trained: list[str] = []

    def main(self, *arguments: str, **changes: Any) -> None:
        self.file.write_text(yaml.safe_dump({**self.values, **changes}))
        paths = ["--experiment", str(self.file), "--output", str(self.output)]
        compare.main([*paths, *arguments])

    def cell(self, arm: str, name: str) -> Path:
        return self.output / "cells" / arm / name

    def report(self) -> Report:
        return Report.model_validate_json((self.output / "table.json").read_text())


class BagOfWords(StandInEncoder):
    """Stands for a trained model: the same words are near, by how much depends on the config."""

    def __init__(self, config: Config, trained: bool) -> None:
        self.contract = resolve_contract(config)
        self.seed = (
            round(config.optimizer.learning_rate * 1e6) + config.train.seed if trained else 0
        )
        self.weights_sha256 = str(self.seed)

    def encode(self, texts: Sequence[str], side: str) -> NDArray[np.float32]:
        def vector(word: str) -> NDArray[np.float64]:
            return np.random.default_rng([self.seed, zlib.crc32(word.encode())]).normal(size=8)

        return np.array([sum(map(vector, text.split())) for text in texts], np.float32)


@pytest.fixture
def real_desk(tiny_config: Config, tiny_lists: Path, tmp_path: Path) -> Desk:
    values = tiny_config.model_dump(mode="json")
    values["train"] |= {"steps": 2, "save_every": None}
    values["evaluation"] = {"path": str(tiny_lists), "split": "train", "metrics": ["nDCG@10", "AP"]}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(values))
    return Desk(
        tmp_path,
        {
            "base": "base.yaml",
            "seeds": [0, 1],
            "evaluations": [{"name": "tiny"}],
            "arms": [
                {"name": "zero-shot", "train": False},
                {"name": "infonce", "set": INFONCE},
                {"name": "wasserstein"},
            ],
            "estimate": {"tune_s": 60, "train_s": 3600, "evaluate_s": 1800},
        },
    )


@pytest.fixture
def desk(real_desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """With stand-ins for training and for the encoder; everything else is real."""

    def fake_run(config: Config) -> None:
        folder = Path(config.train.output)
        real_desk.trained.append("/".join(folder.parts[-2:]))
        (folder / CHECKPOINTS / "2").mkdir(parents=True, exist_ok=True)

    def fake_encoder(model: str | None, backend: str, config: Config, batch_size: int) -> Any:
        assert model is None or (Path(model) / CHECKPOINTS / "2").is_dir()
        return BagOfWords(config, model is not None), backend

    monkeypatch.setattr(train, "run", fake_run)
    monkeypatch.setattr(cells, "load_encoder", fake_encoder)
    return real_desk


def test_the_plan_counts_runs_and_hours_and_writes_nothing(desk: Desk, capsys):
    desk.main("--plan")
    out = capsys.readouterr().out
    assert "3 of 3 arms, seeds 0, 1, scored on tiny" in out
    # 2 arms x 2 seeds of an hour, and with zero-shot 5 evaluations of half an hour.
    assert "planned: 5 of 5 runs, 6.5 hours" in out
    assert "final (training): 4 x 3600 s (the experiment's estimate)" in out
    assert not desk.output.exists()


@pytest.mark.slow
def test_two_arms_are_trained_and_compared(real_desk: Desk):
    arms = [{"name": "zero-shot", "train": False}, {"name": "infonce", "set": INFONCE}]
    real_desk.main(seeds=[0], arms=arms)
    folder = real_desk.cell("infonce", "seed-0")
    assert (folder / "metrics.jsonl").read_text().count("\n") == 2
    assert not list(real_desk.output.rglob(CHECKPOINTS))
    results = [
        EvaluationResult.read(cell / "results/tiny/metrics.json")
        for cell in (real_desk.cell("zero-shot", "untrained"), folder)
    ]
    assert {result.backend for result in results} == {"jax"}
    (table,) = real_desk.report().tables
    (difference,) = table.rows[1].differences
    means = [result.metrics["nDCG@10"] for result in results]
    assert difference.difference == pytest.approx(means[1] - means[0], abs=ROUNDING)
    assert means[0] != means[1]


def test_all_arms_and_seeds_end_in_one_table(desk: Desk, capsys):
    desk.main()
    assert desk.trained == [
        *("infonce/seed-0", "wasserstein/seed-0", "infonce/seed-1", "wasserstein/seed-1")
    ]
    (table,) = desk.report().tables
    assert [(row.arm, row.seeds) for row in table.rows] == [
        *(("zero-shot", 1), ("infonce", 2), ("wasserstein", 2))
    ]
    rows = {row.arm: row for row in table.rows}
    assert [d.baseline for d in rows["wasserstein"].differences] == ["infonce", "zero-shot"]
    assert [d.baseline for d in rows["infonce"].differences] == ["zero-shot"]
    assert rows["zero-shot"].metrics["nDCG@10"].sd is None
    assert rows["infonce"].metrics["nDCG@10"].sd > 0
    runs = [
        EvaluationResult.read(desk.cell("infonce", f"seed-{seed}") / "results/tiny/metrics.json")
        for seed in (0, 1)
    ]
    expected = (runs[0].metrics["AP"] + runs[1].metrics["AP"]) / 2
    assert rows["infonce"].metrics["AP"].mean == pytest.approx(expected, abs=ROUNDING)
    assert not list(desk.output.rglob(CHECKPOINTS))
    assert (desk.output / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert (desk.output / "table.txt").read_text() in capsys.readouterr().out
    assert "| infonce | 2 | " in (desk.output / "table.md").read_text()
    # The same command again trains nothing, and plans with what was measured.
    before = (desk.output / "table.json").read_bytes()
    desk.main()
    assert len(desk.trained) == 4
    assert "planned: 0 of 5 runs, 0.0 hours" in capsys.readouterr().out
    assert (desk.output / "table.json").read_bytes() == before
    # Leaving an arm out does not forget its results.
    desk.main("--arms", "zero-shot")
    assert (desk.output / "table.json").read_bytes() == before


def test_goes_on_after_a_break_in_the_second_cell(desk: Desk, monkeypatch):
    class Killed(Exception):
        pass

    real = cells.evaluate_collection

    def break_at_second(*args: Any, **named: Any) -> Any:
        if named["label"] == "infonce":
            raise Killed
        return real(*args, **named)

    monkeypatch.setattr(cells, "evaluate_collection", break_at_second)
    with pytest.raises(Killed):
        desk.main()
    assert (desk.cell("zero-shot", "untrained") / "results/tiny/metrics.json").exists()
    assert (desk.cell("infonce", "seed-0") / CHECKPOINTS / "2").exists()
    monkeypatch.setattr(cells, "evaluate_collection", real)
    stamp = (desk.cell("zero-shot", "untrained") / "results/tiny/metrics.json").stat().st_mtime_ns
    desk.main()
    again = (desk.cell("zero-shot", "untrained") / "results/tiny/metrics.json").stat().st_mtime_ns
    assert again == stamp
    assert all(row.seeds for row in desk.report().tables[0].rows)


def test_a_half_written_result_is_made_again(desk: Desk, caplog):
    desk.main("--arms", "zero-shot", "infonce")
    metrics = desk.cell("infonce", "seed-1") / "results/tiny/metrics.json"
    whole = metrics.read_text()
    metrics.write_text(whole[: len(whole) // 2])
    desk.trained.clear()
    desk.main("--arms", "zero-shot", "infonce")
    assert desk.trained == ["infonce/seed-1"]
    assert "not whole" in caplog.text
    # The same run on the same data.
    assert json.loads(metrics.read_text())["per_query"] == json.loads(whole)["per_query"]


def test_kill_9_after_training_then_the_same_command(desk: Desk):
    desk.main("--plan")
    killed = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from synrank_jax import compare, train\n"
        "def kill(config):\n"
        f"    (Path(config.train.output) / {CHECKPOINTS!r} / '2').mkdir(parents=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "train.run = kill\n"
        "compare.main([*sys.argv[1:], '--arms', 'infonce'])\n"
    )
    paths = ["--experiment", str(desk.file), "--output", str(desk.output)]
    process = subprocess.run([sys.executable, "-c", killed, *paths], check=False)
    assert process.returncode == -9
    assert (desk.cell("infonce", "seed-0") / CHECKPOINTS).exists()
    desk.main()
    assert desk.trained[0] == "infonce/seed-0"
    assert [row.seeds for row in desk.report().tables[0].rows] == [1, 2, 2]
    assert not list(desk.output.rglob(CHECKPOINTS))


def test_tuning_takes_the_best_point_on_the_validation_queries(desk: Desk, tmp_path, capsys):
    (tmp_path / "queries.txt").write_text("q1\nq2\nq3\nq4\n")
    queries = f"evaluation.queries={tmp_path / 'queries.txt'}"
    arms = [
        {"name": "zero-shot", "train": False},
        {"name": "infonce", "set": INFONCE, "tune": RATES},
    ]
    desk.main(seeds=[0], arms=arms, tuning={"set": [queries, "encoding.passage_length=16"]})
    points = [
        EvaluationResult.read(desk.cell("infonce", name) / "results/validation/metrics.json")
        for name in ("tune-1", "tune-2")
    ]
    assert {point.queries for point in points} == {4}
    assert {point.contract.passage_length for point in points} == {16}
    scores = [point.metrics["nDCG@10"] for point in points]
    (tuned,) = desk.report().tuned
    assert tuned.validation == max(scores)
    assert list(tuned.overrides) == RATES[scores.index(max(scores))]
    assert tuned.overrides[0] in capsys.readouterr().out
    final = yaml.safe_load((desk.cell("infonce", "seed-0") / "config.yaml").read_text())
    assert tuned.overrides == (f"optimizer.learning_rate={final['optimizer']['learning_rate']}",)
    assert final["encoding"]["passage_length"] == 32


def test_what_cannot_be_run_stays_in_the_table_with_the_reason(desk: Desk, tmp_path, capsys):
    arms = [
        *desk.values["arms"][:2],
        {"name": "novel", "set": ["loss.novel_loss=1"]},
        {"name": "elsewhere", "set": ["data.sources=[{path: '{shared}/lists'}]"]},
    ]
    evaluations = [{"name": "tiny"}, {"name": "far", "set": ["evaluation.path={shared}/far"]}]
    desk.main(arms=arms, evaluations=evaluations, seeds=[0])
    report = desk.report()
    assert "no such key" in report.not_run["novel"]
    assert "--shared" in report.not_run["elsewhere"]
    assert "--shared" in report.not_run["far"]
    tiny, far = report.tables
    assert [row.seeds for row in tiny.rows] == [1, 1, 0, 0]
    assert [row.seeds for row in far.rows] == [0, 0, 0, 0]
    text = (desk.output / "table.txt").read_text()
    assert text.count("not run  ") + text.count("not run\n") >= 6
    # With the folder given, what is still absent is named.
    capsys.readouterr()
    desk.main("--plan", "--shared", str(tmp_path), arms=arms, evaluations=evaluations)
    assert f"{tmp_path}/far': no such folder" in capsys.readouterr().out


def test_a_training_that_diverges_fails_alone_and_only_once(desk: Desk, monkeypatch):
    fake = train.run

    def diverge(config: Config) -> None:
        if config.loss.infonce:
            desk.trained.append("diverged")
            raise BadUpdateError("step 2: loss nan")
        fake(config)

    monkeypatch.setattr(train, "run", diverge)
    desk.main(seeds=[0])
    desk.main(seeds=[0])
    assert desk.trained == ["diverged", "wasserstein/seed-0"]
    report = desk.report()
    assert report.not_run == {"infonce seed-0": "step 2: loss nan"}
    assert [row.seeds for row in report.tables[0].rows] == [1, 0, 1]
    assert report.tables[0].baselines == ("zero-shot",)
    assert (desk.cell("infonce", "seed-0") / FAILED_FILE).exists()


def test_results_of_other_settings_are_not_taken_over(desk: Desk):
    desk.main("--arms", "zero-shot", "infonce", seeds=[0])
    with pytest.raises(UserError, match=r"optimizer\.learning_rate: 0\.001 there, 0\.5 now"):
        desk.main("--arms", "infonce", seeds=[0], set=["optimizer.learning_rate=0.5"])
    with pytest.raises(UserError, match="other evaluation settings"):
        desk.main("--arms", "infonce", seeds=[0], set=["evaluation.top_k=10"])


def test_results_of_other_lists_are_not_taken_over(desk: Desk, tmp_path: Path, tiny_lists: Path):
    desk.main("--arms", "infonce", seeds=[0])
    lines = (tiny_lists / "queries.jsonl").read_text().splitlines()
    queries = [json.loads(line)["_id"] for line in lines]
    subset = tmp_path / "subset.txt"
    subset.write_text("\n".join(queries[:12]))
    fewer = f"data.sources=[{{path: {tiny_lists}, queries: {subset}}}]"
    with pytest.raises(UserError, match=r"infonce/seed-0: trained on lists with fingerprint"):
        desk.main("--arms", "infonce", seeds=[0], set=[fewer])


def test_two_processes_do_not_share_an_output_folder(desk: Desk):
    with (
        locked(desk.output, "--output"),
        pytest.raises(UserError, match=r"--output .*in use by process"),
    ):
        desk.main()


@pytest.mark.slow
def test_detached_it_says_where_log_and_table_are(real_desk: Desk, capsys, monkeypatch):
    started = []

    class Remembered(subprocess.Popen):
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            started.append(self)

    monkeypatch.setattr(compare.subprocess, "Popen", Remembered)
    real_desk.main("--detach", "--arms", "zero-shot")
    out = capsys.readouterr().out
    log = real_desk.output / "compare.log"
    assert f"log: {log}" in out
    assert f"table: {real_desk.output / 'table.txt'}" in out
    (process,) = started
    assert os.getsid(process.pid) == process.pid
    assert process.wait(timeout=300) == 0, log.read_text()
    assert "plot:" in log.read_text()
    assert (real_desk.output / "table.txt").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": [0]}, "sedes: no such key.*did you mean 'seeds'"),
        ({"seeds": [0, 0]}, "seeds: 0 given twice"),
        ({"baselines": ["infonc"]}, "baselines: 'infonc' is not an arm"),
        ({"arms": [{"name": "a b"}], "baselines": []}, r"arms\.0\.name"),
        ({"evaluations": [{"name": "t", "set": ["loss.infonce=1"]}]}, "begin with `evaluation.`"),
        (
            {"arms": [{"name": "a", "tune": RATES}, {"name": "b"}], "baselines": []},
            "as many points as the others, not a 2, b 0",
        ),
        ({"arms": [{"name": "a", "tune": RATES}], "baselines": []}, "tuning: "),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_wrong_experiment_file_is_refused_with_the_field(desk: Desk, changes: dict, message: str):
    with pytest.raises(UserError, match=message):
        desk.main("--plan", **changes)


def test_an_unknown_arm_is_refused(desk: Desk):
    with pytest.raises(UserError, match=r"--arms listmle: .*zero-shot, infonce, wasserstein"):
        desk.main("--arms", "listmle")


def test_nothing_to_run_says_why(desk: Desk):
    with pytest.raises(UserError, match=r"(?s)nothing of it.*infonce: left out.*zero-shot/nowhere"):
        desk.main(
            *("--arms", "zero-shot"),
            evaluations=[{"name": "t", "set": ["evaluation.path=zero-shot/nowhere"]}],
        )


EXPERIMENTS = Path(__file__).parents[1] / "configs" / "experiments"


@pytest.mark.parametrize("name", ["cranfield", "nfcorpus_synthetic", "nfcorpus_real"])
def test_every_cell_of_the_shipped_experiments_is_a_valid_configuration(name: str):
    study = Study.read(EXPERIMENTS / f"{name}.yaml", Path("out"), shared="shared")
    for arm in study.experiment.arms:
        cells = [*study.tuning_cells(arm), *study.final_cells(arm, ())]
        assert len(cells) == (4 + 3 if arm.train else 1)
        assert len({cell.folder for cell in cells}) == len(cells)
        # One loss per arm, and no test query in the choice of its settings.
        for cell in cells:
            assert len(cell.config.loss.weights()) == 1
            sections = cell.evaluations.values()
            assert {section.split for section in sections} <= (
                {"train", "dev"} if cell.stage == "tune" else {"test"}
            )
