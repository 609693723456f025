"""Score a model on a collection: encode, search with FAISS, measure, write a run file and metrics.

    python -m synrank_jax.evaluate --config FILE.yaml                    the untrained model.path
    python -m synrank_jax.evaluate --config FILE.yaml --model FOLDER     a run folder of train, a
        checkpoint, an exported model, or any sentence-transformers folder

Queries without judgements are not scored; judged queries that find nothing score 0.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from synrank_jax.cli import config_parser, parsed_config, run_command
from synrank_jax.config import Config, EvaluationConfig
from synrank_jax.encoders import checkpoint_of, load_encoder
from synrank_jax.errors import UserError
from synrank_jax.evaluation import (
    METRICS_FILE,
    RUN_FILE,
    evaluate_collection,
    read_collection,
    write_results,
)
from synrank_jax.retrieval.report import comparison_table
from synrank_jax.retrieval.result import EvaluationResult


def _evaluation(config: Config) -> EvaluationConfig:
    if config.evaluation is None:
        raise UserError(
            "evaluation: this section is missing, so there is no collection to score on; add "
            "`evaluation:` with at least `path:` (for example bundled:cranfield)"
        )
    return config.evaluation


def _label(model: str | None) -> str:
    return "zero-shot" if model is None else "-".join(Path(model).resolve().parts[-2:])


def _default_output(label: str, evaluation: EvaluationConfig) -> Path:
    collection = Path(evaluation.path.removeprefix("bundled:")).name
    name = re.sub(r"[^\w.-]+", "-", f"{label}-{collection}-{evaluation.split}")
    return Path("runs") / "evaluate" / name


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    args = _parser().parse_args(argv)
    config = parsed_config(args)
    evaluation = _evaluation(config)
    label = args.name or _label(args.model)
    output = Path(args.output) if args.output else _default_output(label, evaluation)
    baselines = [EvaluationResult.read(Path(path)) for path in args.baseline]
    collection = read_collection(evaluation)
    for path, baseline in zip(args.baseline, baselines, strict=True):
        baseline.require_comparable(
            collection.sha256, collection.queries.keys(), set(evaluation.metrics), path
        )
    model = args.model and checkpoint_of(args.model)
    encoder, backend = load_encoder(model, args.backend, config, evaluation.batch_size)
    result, run = evaluate_collection(
        encoder,
        evaluation,
        collection,
        label=label,
        model=model or config.model.path,
        backend=backend,
    )
    write_results(output, result, run)
    for baseline in baselines:
        print(comparison_table([(baseline.label, baseline), (label, result)]), end="\n\n")
    if not baselines:
        print(comparison_table([(label, result)]), end="\n\n")
    print(f"metrics, per query too: {output / METRICS_FILE}")
    print(f"rankings: {output / RUN_FILE}")


def _parser() -> argparse.ArgumentParser:
    parser = config_parser("evaluate", __doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", metavar="FOLDER", help="the model; left out: as --zero-shot")
    which.add_argument("--zero-shot", action="store_true", help="model.path as it is, untrained")
    parser.add_argument(
        "--backend",
        choices=("jax", "torch"),
        help="what computes the embeddings (default: jax for checkpoints, else torch)",
    )
    parser.add_argument("--name", metavar="LABEL", help="name in tables and the run file")
    parser.add_argument(
        "--output", metavar="FOLDER", help="default: runs/evaluate/LABEL-COLLECTION-SPLIT"
    )
    parser.add_argument(
        "--baseline",
        metavar="METRICS.json",
        nargs="+",
        default=[],
        help="compare with these earlier evaluations (paired p-values)",
    )
    return parser


if __name__ == "__main__":
    run_command(main)
