"""Compare several losses fairly: arms x seeds, settings tuned on validation queries, one table.

    python -m synrank_jax.compare --experiment configs/experiments/cranfield.yaml

Prints the planned number of runs and hours first. Finished runs are not run again: the same command
goes on where it was stopped, however it was stopped. In the output folder: table.txt, table.md,
table.json and plot.png; cells/ARM/seed-S with a run's metrics.jsonl and its evaluations' results.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from synrank_jax.cells import TRAINING, Runner, failure, finished, seconds
from synrank_jax.cli import run_command
from synrank_jax.errors import UserError
from synrank_jax.experiment import VALIDATION, Arm, Cell, Study, missing_collection, missing_lists
from synrank_jax.files import locked, write_text
from synrank_jax.plots import new_figure, save_png
from synrank_jax.retrieval.comparison import (
    Report,
    Tuned,
    evaluation_table,
    report_markdown,
    report_text,
)
from synrank_jax.retrieval.metrics import parse_measures
from synrank_jax.retrieval.search import load_faiss

LOG_FILE = "compare.log"
TABLE_FILES = ("table.txt", "table.md", "table.json")
PLOT_FILE = "plot.png"
FIELD = "--output"


@dataclass(frozen=True)
class Plan:
    """What is run, and why the rest is not.

    arms: those whose settings are valid and whose lists are here.
    evaluations: those whose collections are here.
    metrics: measures of every evaluation; the first is tested.
    not_run: arm or evaluation -> reason.
    """

    arms: list[Arm]
    evaluations: list[str]
    metrics: tuple[str, ...]
    not_run: dict[str, str]


def make_plan(study: Study, only: Sequence[str] | None) -> Plan:
    """Sort arms and evaluations into what can be run here and what cannot.

    Raises:
        UserError: `only` names an arm that the experiment does not have; an unknown measure; the
            evaluations differ in their measures; nothing at all can be run.
    """
    arms = study.experiment.arms
    names = [arm.name for arm in arms]
    if unknown := [name for name in only or () if name not in names]:
        raise UserError(f"--arms {unknown[0]}: the experiment has {', '.join(names)}")
    reasons = {arm.name: _why_not(study, arm, only) for arm in arms}
    valid = [arm for arm in arms if reasons[arm.name] is None]
    sections = study.final_cells(valid[0], _first_point(valid[0]))[0].evaluations if valid else {}
    reasons |= {name: missing_collection(section) for name, section in sections.items()}
    here = [name for name in sections if reasons[name] is None]
    not_run = {name: why for name, why in reasons.items() if why}
    if not here:
        lines = [f"  {name}: {why}" for name, why in not_run.items()]
        raise UserError(f"{study.file}: nothing of it can be run here:\n" + "\n".join(lines))
    metrics, *others = dict.fromkeys(section.metrics for section in sections.values())
    if others:
        raise UserError(
            f"{study.file}: evaluations: {', '.join(metrics)} in one and {', '.join(others[0])} "
            "in another; give all of them the same evaluation.metrics"
        )
    parse_measures(metrics)
    return Plan(valid, here, metrics, not_run)


def _why_not(study: Study, arm: Arm, only: Sequence[str] | None) -> str | None:
    if only and arm.name not in only:
        return "left out by --arms"
    try:
        tuning = study.tuning_cells(arm)
        cells = [*tuning, *study.final_cells(arm, _first_point(arm))]
    except UserError as error:
        return " ".join(str(error).split())
    reasons = [missing_lists(cell.config) for cell in cells if cell.trained]
    reasons += [missing_collection(cell.evaluations[VALIDATION]) for cell in tuning]
    return next((reason for reason in reasons if reason), None)


def _first_point(arm: Arm) -> tuple[str, ...]:
    return arm.tune[0] if arm.tune else ()


def plan_text(study: Study, plan: Plan) -> str:
    """Number of cells and hours, from what finished cells took, else the experiment's estimate."""
    cells = []
    for arm in plan.arms:
        finals = _final_cells(study, arm) or study.final_cells(arm, _first_point(arm))
        cells += [*study.tuning_cells(arm), *finals]
    todo = [[(cell.stage, part) for part in _open_parts(cell, plan)] for cell in cells]
    needed = [key for parts in todo for key in parts]
    lines, hours = [], 0.0
    for stage, part in dict.fromkeys(needed):
        times = [seconds(cell) for cell in cells if cell.stage == stage]
        measured = [known[part] for known in times if part in known]
        cost = statistics.fmean(measured) if measured else _estimate(study, stage, part)
        source = f"measured on {len(measured)}" if measured else "the experiment's estimate"
        count = needed.count((stage, part))
        hours += count * cost / 3600
        lines.append(f"  {stage} {part}: {count} x {cost:.0f} s ({source})")
    experiment = study.experiment
    head = [
        f"{study.file.stem}: {len(plan.arms)} of {len(experiment.arms)} arms, seeds "
        f"{', '.join(map(str, experiment.seeds))}, scored on {', '.join(plan.evaluations)}",
        f"planned: {sum(map(bool, todo))} of {len(cells)} runs, {hours:.1f} hours",
    ]
    return "\n".join([*head, *lines, *(f"not run: {k}: {why}" for k, why in plan.not_run.items())])


def _open_parts(cell: Cell, plan: Plan) -> list[str]:
    """What of a cell is still to do."""
    if failure(cell) is not None:
        return []
    wanted = [name for name in cell.evaluations if name in (*plan.evaluations, VALIDATION)]
    parts = [name for name in wanted if finished(cell, name) is None]
    return [TRAINING, *parts] if parts and cell.trained else parts


def _estimate(study: Study, stage: str, part: str) -> float:
    estimate = study.experiment.estimate
    if part != TRAINING:
        return estimate.evaluate_s
    return estimate.tune_s if stage == "tune" else estimate.train_s


def choose(study: Study, arm: Arm) -> Tuned | None:
    """The arm's settings that did best on the validation queries, the first of equals.

    None as long as a point has neither a result nor failed, or if all of them failed.
    """
    scores: list[tuple[float, tuple[str, ...]]] = []
    for cell, point in zip(study.tuning_cells(arm), arm.tune, strict=True):
        result = finished(cell, VALIDATION)
        if result is not None:
            scores.append((result.metrics[result.evaluation.metrics[0]], point))
        elif failure(cell) is None:
            return None
    if not scores:
        return None
    score, point = max(scores, key=lambda scored: scored[0])
    return Tuned(arm=arm.name, overrides=point, validation=score, candidates=len(arm.tune))


def _final_cells(study: Study, arm: Arm) -> list[Cell]:
    """The final cells, none while the arm's settings are not chosen."""
    if not arm.tune:
        return study.final_cells(arm, ())
    tuned = choose(study, arm)
    return [] if tuned is None else study.final_cells(arm, tuned.overrides)


def run(study: Study, plan: Plan) -> Report:
    """Run all cells that have no result: tuning and the first seed of every arm, then the others.

    Raises:
        UserError: see `Runner.run`.
    """
    runner = Runner([*plan.evaluations, VALIDATION])
    for number in range(len(study.experiment.seeds)):
        for arm in plan.arms:
            for cell in study.tuning_cells(arm):
                runner.run(cell)
            for cell in _final_cells(study, arm)[number : number + 1]:
                runner.run(cell)
            report = make_report(study, plan)
            write_report(study.output, report)
    return report


def make_report(study: Study, plan: Plan) -> Report:
    """Everything that is finished, whichever invocation it comes from."""
    not_run = dict(plan.not_run)
    finals: dict[str, list[Cell]] = {}
    tuned = []
    for arm in study.experiment.arms:
        try:
            finals[arm.name] = _final_cells(study, arm)
            gaps = _gaps(study, arm, plan)
            if arm in plan.arms:
                not_run |= gaps
            elif not gaps:  # left out now, but run before
                del not_run[arm.name]
        except UserError:  # settings that are not valid: the plan says so
            finals[arm.name] = []
        if finals[arm.name] and arm.tune and (chosen := choose(study, arm)):
            tuned.append(chosen)
    tables = []
    for evaluation in study.experiment.evaluations:
        found = {
            arm: [result for cell in cells if (result := finished(cell, evaluation.name))]
            for arm, cells in finals.items()
        }
        tables.append(
            evaluation_table(evaluation.name, found, study.experiment.baselines, plan.metrics)
        )
    return Report(metric=plan.metrics[0], tables=tuple(tables), tuned=tuple(tuned), not_run=not_run)


def _gaps(study: Study, arm: Arm, plan: Plan) -> dict[str, str]:
    """Cells of an arm without a result -> why."""
    finals = _final_cells(study, arm)
    cells = [*study.tuning_cells(arm), *finals]
    failures = {cell.name: why for cell in cells if (why := failure(cell)) is not None}
    waiting = {cell.name: "not reached yet" for cell in finals if _open_parts(cell, plan)}
    gaps = {f"{arm.name} {name}": why for name, why in (failures | waiting).items()}
    return gaps if finals else {**gaps, arm.name: "no settings chosen: no tuning result to go by"}


def write_report(output: Path, report: Report) -> None:
    """Write the table as text, Markdown and JSON, and the plot."""
    contents = (report_text(report), report_markdown(report), report.model_dump_json(indent=2))
    for name, content in zip(TABLE_FILES, contents, strict=True):
        write_text(output / name, content)
    save_png(_plot(report), output / PLOT_FILE)


def _plot(report: Report) -> object:
    """Mean and standard deviation of the first metric, one panel per collection."""
    tables = [table for table in report.tables if any(row.seeds for row in table.rows)]
    arms = list(dict.fromkeys(row.arm for table in report.tables for row in table.rows))
    figure = new_figure(2 + 4 * max(len(tables), 1), 1.5 + 0.35 * len(arms))
    panels = figure.subplots(1, max(len(tables), 1), sharey=True, squeeze=False)[0]
    for panel, table in zip(panels, tables, strict=False):
        for row in table.rows:
            if row.seeds:
                spread = row.metrics[report.metric]
                place = arms.index(row.arm)
                panel.errorbar(spread.mean, place, xerr=spread.sd or 0, fmt="C0o", capsize=3)
                if row.arm in table.baselines:
                    panel.axvline(spread.mean, color="0.7", linestyle=":", zorder=0)
        panel.set(title=table.name, xlabel=report.metric)
    panels[0].set_yticks(range(len(arms)), arms)
    panels[0].invert_yaxis()  # the panels share it
    return figure


def detach(study: Study, arguments: Sequence[str]) -> None:
    """Start the same command in a session of its own, so that it outlives this terminal."""
    log = study.output / LOG_FILE
    with locked(study.output, FIELD):
        pass  # nobody else is at work there
    command = [sys.executable, "-m", "synrank_jax.compare", *arguments]
    with log.open("ab") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    print(f"started process {process.pid}\nlog: {log}\ntable: {study.output / TABLE_FILES[0]}")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of `python -m synrank_jax.compare`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    file = Path(args.experiment)
    output = Path(args.output) if args.output else Path("runs") / "compare" / file.stem
    study = Study.read(file, output, args.shared)
    plan = make_plan(study, args.arms)
    print(plan_text(study, plan), flush=True)
    if args.plan:
        return
    load_faiss()  # and matplotlib: better missing now than after hours
    new_figure(1, 1)
    if args.detach:
        detach(study, [argument for argument in arguments if argument != "--detach"])
        return
    with locked(output, FIELD):
        report = run(study, plan)
    print("\n" + report_text(report))
    print(f"table: {output / TABLE_FILES[0]}, .md, .json; plot: {output / PLOT_FILE}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m synrank_jax.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # --detach is taken out of the arguments by its whole name
    )
    parser.add_argument("--experiment", metavar="FILE.yaml", required=True, help="what to compare")
    parser.add_argument("--output", metavar="FOLDER", help="default: runs/compare/EXPERIMENT")
    parser.add_argument("--shared", metavar="FOLDER", help="what {shared} in overrides stands for")
    parser.add_argument("--arms", metavar="ARM", nargs="+", help="run only these arms")
    parser.add_argument("--plan", action="store_true", help="print the plan and stop")
    parser.add_argument("--detach", action="store_true", help="run on after this terminal closes")
    return parser


if __name__ == "__main__":
    run_command(main)
