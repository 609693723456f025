"""Graded lists -> tokenised TFRecord shards and a manifest.

Reads the sources of `data.sources`, mixes them by their rules, and writes `data.prepared` for
training. Running it again with the same configuration and sources goes on at the missing shards, or
only verifies them. With --dry-run it prints what the lists would be, and writes nothing but the
ingested sources, which preparing uses too. They lie in .ingest within data.prepared, and may be
deleted when the lists are prepared.

With --runner, Apache Beam writes the shards, on machines that see data.prepared under the same
path. What stands after -- are Beam's own options:

  python -m synrank_jax.prepare --config FILE.yaml --runner FlinkRunner -- --parallelism=64
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from synrank_jax.cli import config_parser, parsed_config, run_command
from synrank_jax.config import Config
from synrank_jax.contract import load_tokenizer, resolve_contract
from synrank_jax.data.beam import write_with_beam
from synrank_jax.data.contexts import RankingContext
from synrank_jax.data.manifest import (
    MANIFEST_FILE,
    Manifest,
    Recipe,
    TokenCounts,
    read_manifest,
    verify_shards,
)
from synrank_jax.data.prepared import make_job, write_prepared
from synrank_jax.data.sampling import PERCENTILES, Lengths, Sample, sample_lists
from synrank_jax.data.shards import Job
from synrank_jax.data.survey import Plan, SourceTally, Tally
from synrank_jax.errors import UserError
from synrank_jax.hub import model_folder

SAMPLED_LISTS = 1000
EXAMPLE_LISTS = 3
EXAMPLE_CHARACTERS = 240


def main(argv: Sequence[str] | None = None) -> None:
    """Prepare the lists of a configuration.

    Raises:
        UserError: bad input, or the folder holds a different preparation.
    """
    parser = config_parser("prepare", __doc__ or "")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a different or damaged preparation"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print counts, lengths and examples, and stop"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--workers",
        type=int,
        metavar="N",
        default=len(os.sched_getaffinity(0)),
        help="processes that write shards (default: the CPUs that this process may use)",
    )
    where.add_argument(
        "--runner", metavar="NAME", help="Apache Beam runner that writes the shards instead"
    )
    parser.add_argument(
        "runner_options", metavar="-- RUNNER OPTION", nargs="*", help="options of Beam's runner"
    )
    args = parser.parse_args(argv)
    if args.runner_options and args.runner is None:
        parser.error(f"{args.runner_options[0]}: what stands after -- are options of --runner")
    config = parsed_config(args)
    console = Console()
    recipe = Recipe.of(config.data, resolve_contract(config))
    folder = Path(config.data.prepared).expanduser()
    if args.runner is not None:
        folder = folder.absolute()  # workers have other working directories
    if args.dry_run:
        job = _job(config, recipe, folder, console)
        _print_dry_run(console, job, sample_lists(job, SAMPLED_LISTS, EXAMPLE_LISTS))
        return
    manifest = None if args.overwrite else _existing(folder, recipe)
    verdict = "already prepared, and the shards are whole"
    if manifest is None:
        job = _job(config, recipe, folder, console)
        manifest = _write(job, args, console)
        verdict = "prepared"
    console.print(_summary(manifest))
    print(f"{verdict}: {folder}")


def _existing(folder: Path, recipe: Recipe) -> Manifest | None:
    """The manifest in `folder` if it is of `recipe` and its shards are whole, None without one."""
    if not (folder / MANIFEST_FILE).exists():
        return None
    manifest = read_manifest(folder)
    differing = manifest.differences(recipe)
    if differing:
        raise UserError(
            f"data.prepared {folder}: holds a different preparation:\n  "
            + "\n  ".join(differing)
            + "\nchoose another folder, or replace it with --overwrite"
        )
    verify_shards(manifest, folder)
    return manifest


def _job(config: Config, recipe: Recipe, folder: Path, console: Console) -> Job:
    tokenizer = load_tokenizer(model_folder(config.model.path, config.model.revision))
    with console.status("reading the sources"):
        return make_job(recipe, tokenizer, folder)


def _write(job: Job, args: argparse.Namespace, console: Console) -> Manifest:
    tally = Plan(job.plan, job.mixture).tally
    if tally.excluded_pairs:
        console.print(f"{tally.excluded_pairs} pairs of exclude.tsv are left out of the lists")
    if tally.conflicts:
        console.print(
            f"{tally.conflicts} documents had several grades for a query; data.duplicates: "
            f"{job.recipe.data.duplicates} decided"
        )
    if args.runner is not None:
        return write_with_beam(job, args.runner, args.runner_options)
    columns = (TextColumn("tokenizing lists"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("", total=tally.lists * job.recipe.data.draws)
        return write_prepared(
            job, workers=args.workers, on_progress=lambda lists: progress.advance(task, lists)
        )


def _summary(manifest: Manifest) -> Table:
    draws = manifest.data.draws
    rows = {
        "queries": f"{manifest.lists:,}" + (f", {draws} draws of each list" if draws > 1 else ""),
        "passages": f"{manifest.passage_tokens.texts:,} ({manifest.documents:,} documents)",
        "passages per grade": _pairs(manifest.grade_counts),
        "lists per size": _pairs(manifest.size_counts),
        "query tokens": _tokens(manifest.query_tokens, manifest.contract.query_length),
        "passage tokens": _tokens(manifest.passage_tokens, manifest.contract.passage_length),
        "shards": f"{len(manifest.shards)}, {sum(s.bytes for s in manifest.shards) / 1e6:.1f} MB",
    }
    return _table("prepared lists", rows)


def _print_dry_run(console: Console, job: Job, sample: Sample) -> None:
    tally = Plan(job.plan, job.mixture).tally
    for index, source in enumerate(tally.sources):
        console.print(_source_table(index, source))
    console.print(_mixture_table(job, tally, sample))
    for context in sample.examples:
        console.print(_example(context))
    console.print("dry run: no shard was written")


def _source_table(index: int, source: SourceTally) -> Table:
    rows = {
        "queries": f"{source.queries:,}",
        "documents": f"{source.documents:,}",
        "pairs": f"{source.pairs:,}",
        "pairs per score as written": _pairs(source.scores),
        "pairs per grade, after limits and map": _pairs(source.graded),
        "passages per grade in the lists": _pairs(source.grades),
    }
    for what, missing in source.missing.items():
        if missing.count:
            rows[f"left out, unknown {what}"] = (
                f"{missing.count:,} pairs, for example {', '.join(missing.examples)}"
            )
    return _table(f"source {index}: {source.format} {source.path}", rows)


def _mixture_table(job: Job, tally: Tally, sample: Sample) -> Table:
    data = job.recipe.data
    short = sum(count for size, count in tally.sizes.items() if size < data.list_size)
    rows = {
        "queries": f"{tally.queries:,} ({data.missing_queries}), {tally.lists:,} with a list",
        "documents in the lists": f"{tally.documents:,}",
        "passages per grade": _pairs(tally.grades),
        "lists per size": _pairs(tally.sizes),
        "short lists": f"{short:,} have fewer than list_size {data.list_size}",
        "documents with several grades": f"{tally.conflicts:,} ({data.duplicates})",
        "pairs left out by exclude.tsv": f"{tally.excluded_pairs:,}",
        "draws": f"{data.draws}",
        f"query tokens, {sample.lists:,} lists": _lengths(sample.query),
        f"passage tokens, {sample.lists:,} lists": _lengths(sample.passage),
        "estimated size": f"{sample.estimated_bytes / 1e6:,.1f} MB in {data.shards} shards",
    }
    return _table("mixture", rows)


def _example(context: RankingContext) -> Table:
    table = Table(title=escape(f"query {context.query_id}: {context.query}"), title_justify="left")
    for column in ("grade", "document", "text"):
        table.add_column(column)
    for passage in context.passages:
        text = passage.text
        if len(text) > EXAMPLE_CHARACTERS:
            text = f"{text[:EXAMPLE_CHARACTERS]}..."
        table.add_row(str(passage.grade), escape(passage.doc_id), escape(text))
    return table


def _table(title: str, rows: Mapping[str, str]) -> Table:
    table = Table(title=escape(title), title_justify="left", show_header=False)
    for name, value in rows.items():
        table.add_row(name, escape(value))
    return table


def _pairs(counts: Mapping[int, int] | Mapping[str, int]) -> str:
    return ", ".join(f"{key}: {count:,}" for key, count in counts.items())


def _lengths(lengths: Lengths) -> str:
    shares = zip(PERCENTILES, lengths.percentiles, strict=True)
    quantiles = ", ".join(f"p{share}: {value}" for share, value in shares)
    return f"{quantiles}; {lengths.truncated_share:.1%} cut at {lengths.limit}"


def _tokens(counts: TokenCounts, limit: int) -> str:
    return (
        f"{counts.tokens / counts.texts:.1f} on average, longest {counts.longest}, "
        f"{counts.truncated / counts.texts:.1%} cut at {limit}"
    )


if __name__ == "__main__":
    run_command(main)
