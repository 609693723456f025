"""An experiment: arms x seeds on the same data, settings tuned on validation queries.

    base: base.yaml                 # a config file, relative to this one
    set: [train.epochs=2]           # overrides of every run, written as for --set
    seeds: [0, 1, 2]
    baselines: [infonce, zero-shot] # every arm is compared with these
    tuning: {set: [evaluation.split=train, evaluation.queries=validation.txt]}
    evaluations:
      - {name: cranfield-test, set: ['evaluation.path=bundled:cranfield']}
    arms:
      - {name: zero-shot, train: false}
      - name: infonce
        set: [loss.infonce=1]
        tune: [[loss.temperature=0.05], [loss.temperature=0.1]]

A `{shared}` in an override is replaced by the folder given with --shared.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from synrank_jax.config import Config, EvaluationConfig
from synrank_jax.config_file import load_config, load_section
from synrank_jax.config_section import PositiveFloat, Section
from synrank_jax.errors import UserError
from synrank_jax.hub import collection_folder

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
"""Names of arms and evaluations are names of folders too."""
Overrides = tuple[str, ...]

SHARED = "{shared}"
NOT_GIVEN = "<--shared>"
VALIDATION = "validation"


class Arm(Section):
    """One row of the table: a way to train, or the untrained model."""

    name: Name
    train: bool = True
    """False: `model.path` as it is."""
    set: Overrides = ()
    """What makes this arm, for example [loss.infonce=1]."""
    tune: tuple[Overrides, ...] = ()
    """Settings of which the best on the validation queries is trained with every seed."""


class Evaluation(Section):
    """One collection that every arm is scored on."""

    name: Name
    set: Overrides = ()
    """Overrides of the evaluation section, each `evaluation.field=value`."""

    @model_validator(mode="after")
    def _only_evaluation(self) -> Self:
        for override in self.set:
            if not override.startswith("evaluation."):
                raise ValueError(f"set: {override!r} does not begin with `evaluation.`")
        return self


class Tuning(Section):
    """How the points of `tune` are compared: trained with the first seed, scored once."""

    set: Overrides
    """Overrides of every tuning run; its evaluation section names the validation queries, and the
    first of its metrics decides."""


class Estimate(Section):
    """Seconds of what has not been measured yet, for the plan."""

    tune_s: PositiveFloat
    """Training of one tuning point."""
    train_s: PositiveFloat
    """Training of one arm with one seed."""
    evaluate_s: PositiveFloat
    """One evaluation."""


class Experiment(Section):
    """The experiment file."""

    base: str
    set: Overrides = ()
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    baselines: tuple[str, ...] = ("infonce", "zero-shot")
    tuning: Tuning | None = None
    evaluations: Annotated[tuple[Evaluation, ...], Field(min_length=1)]
    arms: Annotated[tuple[Arm, ...], Field(min_length=1)]
    estimate: Estimate

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _require_distinct("arms", [arm.name for arm in self.arms])
        _require_distinct("evaluations", [evaluation.name for evaluation in self.evaluations])
        _require_distinct("seeds", list(map(str, self.seeds)))
        names = {arm.name for arm in self.arms}
        if unknown := [name for name in self.baselines if name not in names]:
            raise ValueError(
                f"baselines: {unknown[0]!r} is not an arm ({', '.join(sorted(names))})"
            )
        points = {arm.name: len(arm.tune) for arm in self.arms if arm.train}
        if len(set(points.values())) > 1:
            counts = ", ".join(f"{name} {count}" for name, count in points.items())
            raise ValueError(
                f"tune: every trained arm gets as many points as the others, not {counts}"
            )
        if any(points.values()) and self.tuning is None:
            raise ValueError("tuning: the arms have points to tune, so say how they are compared")
        if any(arm.tune for arm in self.arms if not arm.train):
            raise ValueError("tune: an arm that is not trained has nothing to tune")
        return self


def _require_distinct(field: str, names: list[str]) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{field}: {', '.join(twice)} given twice")


@dataclass(frozen=True)
class Cell:
    """One training run (or the untrained model) and the evaluations of its model.

    Cells of one stage take about the same time.
    """

    arm: str
    name: str
    stage: Literal["tune", "final"]
    config: Config
    evaluations: dict[str, EvaluationConfig]
    trained: bool

    @property
    def folder(self) -> Path:
        """Run folder; the results of the evaluations lie in it too."""
        return Path(self.config.train.output)

    def results(self, evaluation: str) -> Path:
        """Folder of one evaluation's run file and metrics."""
        return self.folder / "results" / evaluation


@dataclass(frozen=True)
class Study:
    """An experiment together with where its data are and where its results go."""

    file: Path
    experiment: Experiment
    output: Path
    shared: str | None

    @classmethod
    def read(cls, file: Path, output: Path, shared: str | None) -> Self:
        """Read the experiment file.

        Raises:
            UserError: lists every error in it with its dotted path.
        """
        return cls(file, load_section(Experiment, file), output, shared)

    def tuning_cells(self, arm: Arm) -> list[Cell]:
        """One cell per point of the arm's grid.

        Raises:
            UserError: an override is not valid (as in `final_cells`).
        """
        cells = []
        for number, point in enumerate(arm.tune, start=1):
            assert self.experiment.tuning is not None  # Experiment: tune needs tuning
            overrides = (*arm.set, *self.experiment.tuning.set, *point)
            name = f"tune-{number}"
            config = self._config(arm, name, self.experiment.seeds[0], overrides)
            cells.append(Cell(arm.name, name, "tune", config, {VALIDATION: _of(config)}, True))
        return cells

    def final_cells(self, arm: Arm, point: Overrides) -> list[Cell]:
        """One cell per seed with the chosen settings; a single one if the arm is not trained."""
        cells = []
        for seed in self.experiment.seeds if arm.train else self.experiment.seeds[:1]:
            name = f"seed-{seed}" if arm.train else "untrained"
            overrides = (*arm.set, *point)
            evaluations = {
                evaluation.name: _of(self._config(arm, name, seed, (*overrides, *evaluation.set)))
                for evaluation in self.experiment.evaluations
            }
            config = self._config(arm, name, seed, overrides)
            cells.append(Cell(arm.name, name, "final", config, evaluations, arm.train))
        return cells

    def _config(self, arm: Arm, name: str, seed: int, overrides: Sequence[str]) -> Config:
        texts = [*self.experiment.set, *overrides, f"train.seed={seed}"]
        # Braces mean something in YAML, so they never stay.
        texts = [text.replace(SHARED, self.shared or NOT_GIVEN) for text in texts]
        config = load_config(self.file.parent / self.experiment.base, texts)
        recipe = json.dumps(
            [
                config.model.model_dump(include={"path", "revision"}),
                config.encoding.model_dump(),
                config.data.model_dump(exclude={"prepared"}),
            ]
        )
        lists = self.output / "lists" / hashlib.sha256(recipe.encode()).hexdigest()[:12]
        train = config.train.model_copy(
            update={"output": str(self.output / "cells" / arm.name / name)}
        )
        data = config.data.model_copy(update={"prepared": str(lists)})
        return config.model_copy(update={"data": data, "train": train})


def _of(config: Config) -> EvaluationConfig:
    if config.evaluation is None:
        raise UserError("evaluation.path: required, but neither the base nor an override gives it")
    return config.evaluation


def missing_lists(config: Config) -> str | None:
    """Why this configuration's training lists cannot be read here; None if they can."""
    for source in config.data.sources:
        for field, path in (("path", source.path), ("corpus", source.corpus)):
            if path is None or path.startswith("hub:") or Path(path).expanduser().is_file():
                continue
            if reason := _missing_folder(path, f"data.sources.{field}"):
                return reason
    return None


def missing_collection(evaluation: EvaluationConfig) -> str | None:
    """Why this collection cannot be scored here; None if it can."""
    return _missing_folder(evaluation.path, "evaluation.path")


def _missing_folder(path: str, field: str) -> str | None:
    if NOT_GIVEN in path:
        return f"{field} {path}: say with --shared where that is"
    try:
        collection_folder(path, field)
    except UserError as error:
        return str(error)
    return None
