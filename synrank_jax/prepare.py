"""Graded lists -> tokenised TFRecord shards and a manifest.

Reads the collections of `data.sources`, and writes `data.prepared` for training. Running it again
with the same configuration and sources only verifies the shards.
"""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from synrank_jax.cli import config_parser, parsed_config, run_command
from synrank_jax.config import Config
from synrank_jax.contract import EncodingContract, load_tokenizer, resolve_contract
from synrank_jax.data.contexts import read_contexts
from synrank_jax.data.manifest import (
    MANIFEST_FILE,
    Manifest,
    Recipe,
    TokenCounts,
    read_manifest,
    verify_shards,
)
from synrank_jax.data.prepared import write_prepared
from synrank_jax.errors import UserError
from synrank_jax.hub import model_folder


def main(argv: Sequence[str] | None = None) -> None:
    """Prepare the lists of a configuration.

    Raises:
        UserError: bad input, or the folder holds a different preparation.
    """
    parser = config_parser("prepare", __doc__ or "")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a different or damaged preparation"
    )
    args = parser.parse_args(argv)
    config = parsed_config(args)
    console = Console()
    contract = resolve_contract(config)
    folder = Path(config.data.prepared).expanduser()
    manifest = None if args.overwrite else _existing(folder, Recipe.of(config.data, contract))
    if manifest is None:
        manifest = _prepare(config, contract, folder, console)
        verdict = "prepared"
    else:
        verdict = "already prepared, and the shards are whole"
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


def _prepare(
    config: Config, contract: EncodingContract, folder: Path, console: Console
) -> Manifest:
    contexts = read_contexts(config.data)
    if contexts.excluded_pairs:
        console.print(f"{contexts.excluded_pairs} pairs of exclude.tsv are left out of the lists")
    tokenizer = load_tokenizer(model_folder(config.model.path, config.model.revision))
    columns = (TextColumn("tokenizing lists"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("", total=len(contexts.lists))
        return write_prepared(
            contexts.lists,
            tokenizer,
            contract,
            config.data,
            folder,
            on_progress=lambda lists: progress.advance(task, lists),
        )


def _summary(manifest: Manifest) -> Table:
    table = Table(title="prepared lists", show_header=False)
    rows = {
        "queries": f"{manifest.lists:,}",
        "passages": f"{manifest.passage_tokens.texts:,} ({manifest.documents:,} documents)",
        "passages per grade": _pairs(manifest.grade_counts),
        "lists per size": _pairs(manifest.size_counts),
        "query tokens": _tokens(manifest.query_tokens, manifest.contract.query_length),
        "passage tokens": _tokens(manifest.passage_tokens, manifest.contract.passage_length),
        "shards": f"{len(manifest.shards)}, {sum(s.bytes for s in manifest.shards) / 1e6:.1f} MB",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _pairs(counts: dict[int, int]) -> str:
    return ", ".join(f"{key}: {count:,}" for key, count in counts.items())


def _tokens(counts: TokenCounts, limit: int) -> str:
    return (
        f"{counts.tokens / counts.texts:.1f} on average, longest {counts.longest}, "
        f"{counts.truncated / counts.texts:.1%} cut at {limit}"
    )


if __name__ == "__main__":
    run_command(main)
