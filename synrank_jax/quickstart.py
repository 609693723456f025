"""The main job from end to end on the embedded data: what `make quickstart` runs.

    python -m synrank_jax.quickstart [--full] [--fresh]

Prepares the graded lists, scores the untrained encoder, trains it once per loss, exports each
model to PyTorch, scores the exported model with FAISS, and prints one table. Every stage is a
public command that can be run by hand; finished stages are not run again unless their inputs
changed or --fresh is given.
"""

import argparse
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from synrank_jax.cli import run_command
from synrank_jax.config import Config
from synrank_jax.config_file import load_config, to_yaml
from synrank_jax.errors import UserError
from synrank_jax.evaluation import METRICS_FILE
from synrank_jax.files import file_sha256
from synrank_jax.hub import collection_folder, model_folder
from synrank_jax.retrieval.report import comparison_table
from synrank_jax.retrieval.result import EvaluationResult

ROOT = Path(__file__).parents[1]
CONFIGS = {
    "InfoNCE": ROOT / "configs" / "quickstart_infonce.yaml",
    "Wasserstein on the grade axis": ROOT / "configs" / "quickstart.yaml",
}
FULL_CONFIGS = {"Gaussian 2-Wasserstein": ROOT / "configs" / "quickstart_gaussian.yaml"}
ZERO_SHOT = "zero-shot"


@dataclass(frozen=True)
class Stage:
    """One public command, what it must leave behind, and what that depends on.

    `inputs` is a hash of code and configuration, `needs` are folders that the command reads. Files
    beside the output say with which of these it was begun and with which content it ended.
    """

    command: list[str]
    output: Path
    inputs: str
    needs: tuple[Path, ...] = ()
    suffix: str = ""
    """Tells apart two stages that write the same folder."""

    def marker(self, state: str) -> Path:
        """The file of a state, `begun` or `done`."""
        return self.output.with_name(f"{self.output.name}{self.suffix}.{state}")

    def is_done(self) -> bool:
        """Whether the output is there, made from these inputs, and unaltered since."""
        try:
            return self.marker("done").read_text("utf-8") == self._seal(self.output)
        except OSError:
            return False

    def run(self) -> None:
        """Run the command and seal its output.

        What a kill left of the same inputs is resumed by the command itself; what was made from
        other code, settings or data is removed first, lest it be taken for new.
        """
        begun = self._seal()
        try:
            resumable = self.marker("begun").read_text("utf-8") == begun
        except OSError:
            resumable = False
        # A stage with a suffix replaces the folder of an earlier stage by itself.
        if self.output.exists() and not resumable and not self.suffix:
            print(f"\nremoving {self.output}: made from other code, settings or data")
            shutil.rmtree(self.output)
        self.marker("begun").parent.mkdir(parents=True, exist_ok=True)
        self.marker("begun").write_text(begun, "utf-8")
        print("\n$ python " + shlex.join(self.command), flush=True)
        began = time.perf_counter()
        code = subprocess.run([sys.executable, *self.command], check=False).returncode
        if code:
            raise SystemExit(code)
        self.marker("done").write_text(self._seal(self.output), "utf-8")
        print(f"  ({time.perf_counter() - began:.0f} s)", flush=True)

    def forget(self) -> None:
        """Remove the output and what is known of it."""
        shutil.rmtree(self.output, ignore_errors=True)
        for state in ("begun", "done"):
            self.marker(state).unlink(missing_ok=True)

    def _seal(self, *more: Path) -> str:
        folders = {str(folder): _folder_sha256(folder) for folder in (*self.needs, *more)}
        return json.dumps({"inputs": self.inputs, "folders": folders})


def stages(configs: dict[str, Path]) -> list[Stage]:
    """The commands in order; each one's inputs include those of the stages before it."""
    loaded = {label: load_config(path) for label, path in configs.items()}
    first_file, first = next(iter(configs.values())), next(iter(loaded.values()))
    source = _folder_sha256(Path(__file__).parent, "*.py")
    prepare = ["-m", "synrank_jax.prepare", "--config", _shown(first_file)]
    zero_shot = _evaluate(first_file, ["--zero-shot"], ZERO_SHOT, _results(first, ZERO_SHOT))
    model = model_folder(first.model.path, first.model.revision)
    sources = [collection_folder(item.path, "data.sources.path") for item in first.data.sources]
    made = [
        Stage(
            prepare,
            Path(first.data.prepared),
            _inputs(source, first, "prepare"),
            needs=(model, *sources),
        ),
        Stage(
            zero_shot,
            _results(first, ZERO_SHOT),
            _inputs(source, first, "zero-shot"),
            needs=(model, _collection(first)),
        ),
    ]
    for label, path in configs.items():
        config = loaded[label]
        inputs = _inputs(source, config, label)
        lists, run, exported = (
            Path(config.data.prepared),
            Path(config.train.output),
            _exported(config),
        )
        results = _results(config, label)
        train = ["-m", "synrank_jax.train", "--config", _shown(path)]
        export = ["-m", "synrank_jax.export", "--checkpoint", str(run), "--output", str(exported)]
        evaluate = _evaluate(path, ["--model", str(exported)], label, results)
        made += [
            Stage(train, run, inputs, needs=(lists,)),
            Stage(export, exported, inputs, needs=(run,)),
            Stage(evaluate, results, inputs, needs=(exported, _collection(config))),
            Stage(
                [*export, "--metrics", str(results / METRICS_FILE)],
                exported,
                inputs,
                needs=(run, results),
                suffix=".card",
            ),
        ]
    return made


def table(configs: dict[str, Path]) -> str:
    """Zero-shot first, then one row per trained model, from the metrics the commands wrote."""
    loaded = {label: load_config(path) for label, path in configs.items()}
    first = next(iter(loaded.values()))
    folders = {ZERO_SHOT: _results(first, ZERO_SHOT)}
    folders |= {label: _results(config, label) for label, config in loaded.items()}
    results = [
        (label, EvaluationResult.read(folder / METRICS_FILE)) for label, folder in folders.items()
    ]
    return comparison_table(results)


def _evaluate(config: Path, model: list[str], label: str, output: Path) -> list[str]:
    command = ["-m", "synrank_jax.evaluate", "--config", _shown(config), *model]
    return [*command, "--name", label, "--output", str(output)]


def _collection(config: Config) -> Path:
    if config.evaluation is None:
        raise UserError("evaluation: the quickstart's configuration needs this section")
    return collection_folder(config.evaluation.path, "evaluation.path")


def _exported(config: Config) -> Path:
    return Path(config.train.output + "-exported")


def _results(config: Config, label: str) -> Path:
    if label == ZERO_SHOT:
        return Path(config.train.output).parent / "zero-shot-results"
    return Path(config.train.output + "-results")


def _shown(path: Path) -> str:
    """Relative to here where possible, so that the printed command can be pasted."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _inputs(source: str, config: Config, stage: str) -> str:
    return hashlib.sha256(f"{source}\n{stage}\n{to_yaml(config)}".encode()).hexdigest()


def _folder_sha256(folder: Path, pattern: str = "*") -> str:
    """Hash over names and contents, without what is no result: locks, events, the model card."""
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    digest = hashlib.sha256()
    for path in sorted(folder.rglob(pattern)):
        skipped = path.name in ("lock", "README.md") or "tensorboard" in path.parts
        if path.is_file() and not skipped:
            digest.update(str(path.relative_to(folder)).encode())
            digest.update(file_sha256(path).encode())
    return digest.hexdigest()


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of `python -m synrank_jax.quickstart`."""
    parser = argparse.ArgumentParser(
        prog="python -m synrank_jax.quickstart",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--full", action="store_true", help="also train the paper's Gaussian loss")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results first")
    args = parser.parse_args(argv)
    configs = {**CONFIGS, **(FULL_CONFIGS if args.full else {})}
    missing = [str(path) for path in configs.values() if not path.is_file()]
    if missing:
        raise UserError(
            f"{', '.join(missing)}: not here; run the quickstart in a clone of the project"
        )
    began = time.perf_counter()
    planned = stages(configs)
    if args.fresh:
        for stage in planned:
            stage.forget()
    # Nothing but the installed packages is needed, so nothing may reach for the network.
    os.environ["HF_HUB_OFFLINE"] = "1"
    for stage in planned:
        if stage.is_done():
            print(f"done before, hashes verified: {stage.output}")
        else:
            stage.run()
    seconds = time.perf_counter() - began
    print(f"\nAll results are under {planned[0].output.parent}; {seconds:.0f} s.\n")
    print(table(configs))


if __name__ == "__main__":
    run_command(main)
