"""Score a model on collections: encode, search with FAISS, measure, compare, write a report.

    python -m synrank_jax.evaluate --config FILE.yaml                    the untrained model.path
    python -m synrank_jax.evaluate --config FILE.yaml --model FOLDER     a run folder of train, a
        checkpoint, an exported model, or any sentence-transformers folder
    python -m synrank_jax.evaluate --suite SUITE.yaml --model MODEL      on many collections; MODEL
        may also be bundled:NAME or a hub id, and --config FILE.yaml gives settings of its own

Queries without judgements are not scored; judged queries that find nothing score 0. The output
folder has metrics.json, run.trec, report.html, report.json and plots/.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synrank_jax.cli import config_parser, parsed_config, run_command
from synrank_jax.config import EvaluationConfig
from synrank_jax.config_file import load_section
from synrank_jax.config_suite import SuiteConfig
from synrank_jax.encoders import (
    Backend,
    Encoder,
    TorchEncoder,
    add_model_options,
    checkpoint_of,
    load_encoder,
    named_encoder,
)
from synrank_jax.errors import UserError
from synrank_jax.evaluation import (
    METRICS_FILE,
    evaluate_collection,
    evaluation_section,
    read_collection,
    write_results,
)
from synrank_jax.files import make_folder
from synrank_jax.plots import new_figure
from synrank_jax.retrieval.baselines import read_baselines
from synrank_jax.retrieval.files import RUN_FILE
from synrank_jax.retrieval.report_page.facts import ReportInput
from synrank_jax.retrieval.report_page.write import PAGE_FILE, write_report
from synrank_jax.retrieval.suite import suite_table
from synrank_jax.retrieval.summary import summarise, summary_table
from synrank_jax.suites import SUITE_FILE, read_suite, run_suite
from synrank_jax.tracking import METRICS_FILE as LOG_FILE
from synrank_jax.tracking import read_metrics


def _label(model: str | None) -> str:
    if model is None:
        return "zero-shot"
    return "-".join(Path(model).resolve().parts[-2:]) if Path(model).exists() else model


def _default_output(label: str, evaluation: EvaluationConfig) -> Path:
    collection = Path(evaluation.path.removeprefix("bundled:")).name
    name = re.sub(r"[^\w.-]+", "-", f"{label}-{collection}-{evaluation.split}")
    return Path("runs") / "evaluate" / name


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    args = _parser().parse_args(argv)
    if args.suite is not None:
        _main_suite(args)
        return
    _refuse(args, "suite", "--collections", "--skip-missing", "--baseline-suite")
    if args.config is None:
        raise UserError("give --config FILE.yaml, or --suite SUITE.yaml --model MODEL")
    config = parsed_config(args)
    evaluation = evaluation_section(config)
    label = args.name or _label(args.model)
    output = Path(args.output) if args.output else _default_output(label, evaluation)
    new_figure(1, 1)  # better missing now than after the encoding
    history = _history(args.run_folder, args.model)
    collection = read_collection(evaluation)
    baselines = read_baselines(
        args.baseline, args.baseline_run, args.bm25, collection, evaluation, label
    )
    model = args.model and checkpoint_of(args.model)
    make_folder(output, "--output")
    encoder, backend = load_encoder(model, args.backend, config, evaluation.batch_size)
    result, run = evaluate_collection(
        encoder,
        evaluation,
        collection,
        label=label,
        model=model or config.model.path,
        backend=backend,
        embeddings=args.embeddings,
    )
    write_results(output, result, run)
    summaries = summarise(result.per_query, baselines)
    write_report(
        output,
        ReportInput(
            result=result,
            run=run,
            qrels=collection.qrels,
            queries=collection.queries,
            text_of=collection.documents.text,
            baselines=baselines,
            summaries=summaries,
            history=history,
        ),
    )
    print(summary_table(result, summaries), end="\n\n")
    print(f"metrics, per query too: {output / METRICS_FILE}")
    print(f"rankings: {output / RUN_FILE}")
    print(f"report: {output / PAGE_FILE}")


def _history(run_folder: str | None, model: str | None) -> list[dict[str, Any]]:
    """Records of the training: of --run-folder, or of the model where it is a run folder."""
    if run_folder is None and model is not None and (Path(model) / LOG_FILE).is_file():
        run_folder = model
    if run_folder is None:
        return []
    try:
        return read_metrics(Path(run_folder))
    except (OSError, ValueError) as error:
        raise UserError(
            f"--run-folder {run_folder}: no readable {LOG_FILE} of a training there ({error})"
        ) from error


def _main_suite(args: argparse.Namespace) -> None:
    _refuse(args, None, "--baseline", "--baseline-run", "--bm25", "--run-folder", "--embeddings")
    suite = load_section(SuiteConfig, args.suite)
    settings = EvaluationConfig(path=suite.name)  # the path is each collection's own
    if args.config is not None:
        config = parsed_config(args)
        settings = config.evaluation or settings
    elif args.model is None or args.backend or args.overrides or args.print_config:
        raise UserError(
            "--suite needs --model, or --config with model.path; --backend, --set and "
            "--print-config need --config"
        )
    collections, missing = read_suite(suite, settings, args.collections, args.skip_missing)
    label = args.name or _label(args.model)
    name = re.sub(r"[^\w.-]+", "-", f"{label}-{suite.name}")
    output = Path(args.output) if args.output else Path("runs") / "evaluate" / name
    if args.config is not None:
        checkpoint = args.model and checkpoint_of(args.model)
        encoder, backend = load_encoder(checkpoint, args.backend, config, settings.batch_size)
        model = checkpoint or config.model.path
    else:
        model = checkpoint_of(args.model)
        encoder, backend = _named(model, settings.batch_size)
    result = run_suite(
        suite,
        collections,
        encoder,
        backend,
        output,
        label=label,
        model=model,
        missing=missing,
        baselines=args.baseline_suite,
    )
    print(suite_table(suite, result), end="\n\n")
    print(f"all figures and where they come from: {output / SUITE_FILE}")


def _named(model: str, batch_size: int) -> tuple[Encoder, Backend]:
    encoder = named_encoder(model, batch_size)
    return encoder, "torch" if isinstance(encoder, TorchEncoder) else "jax"


def _refuse(args: argparse.Namespace, needed: str | None, *options: str) -> None:
    """Refuse options of the other way to call the command."""
    for option in options:
        if getattr(args, option.removeprefix("--").replace("-", "_")):
            way = f"goes with --{needed}" if needed else "is of a single collection, not of --suite"
            raise UserError(f"{option} {way}; leave it out")


def _parser() -> argparse.ArgumentParser:
    parser = config_parser("evaluate", __doc__ or "", required=False)
    add_model_options(parser)
    _add_suite_options(parser)
    parser.add_argument("--name", metavar="LABEL", help="name in tables and the run file")
    parser.add_argument(
        "--output", metavar="FOLDER", help="default: runs/evaluate/LABEL-COLLECTION-SPLIT"
    )
    parser.add_argument(
        "--baseline",
        metavar="METRICS.json",
        nargs="+",
        default=[],
        help="compare with these earlier evaluations",
    )
    parser.add_argument(
        "--baseline-run",
        metavar="FILE.trec",
        nargs="+",
        default=[],
        help="compare with these TREC run files",
    )
    parser.add_argument("--bm25", action="store_true", help="compare with BM25")
    parser.add_argument(
        "--run-folder",
        metavar="FOLDER",
        help="show the training curves of this run (default: --model, where it is a run folder)",
    )
    return parser


def _add_suite_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--suite", metavar="SUITE.yaml", help="evaluate on these collections")
    parser.add_argument(
        "--collections",
        type=Path,
        metavar="FOLDER",
        help="has collections of the suite as BEIR-layout folders NAME; the others are downloaded",
    )
    parser.add_argument(
        "--skip-missing", action="store_true", help="leave out collections that cannot be had"
    )
    parser.add_argument(
        "--baseline-suite",
        type=Path,
        metavar="SUITE.json",
        nargs="+",
        default=[],
        help="compare each collection with these earlier runs of the suite",
    )


if __name__ == "__main__":
    run_command(main)
