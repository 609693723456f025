"""Write graded lists for queries with an LLM, audit them, and filter them.

    python -m synrank_jax.generate --config configs/generation/scientific.yaml
    python -m synrank_jax.generate --config configs/generation/scientific.yaml --status
    python -m synrank_jax.generate --audit runs/generated/cranfield
    python -m synrank_jax.generate --filter runs/generated/cranfield --drop ... --output FOLDER

The first writes a ledger into the output folder while it works, and in the end lists.jsonl and the
same in BEIR layout (corpus.jsonl, queries.jsonl, qrels/train.tsv), ready for `prepare`. It may be
stopped or killed at any time: the same command goes on, and every query gets one valid list or a
classified failure. Ctrl-C waits for answers under way; a second one does not. A higher
rules.attempts tries failed queries again, a higher queries.limit goes on with further queries.
"""

import argparse
import asyncio
import signal
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from synrank_jax.cli import (
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    config_parser,
    parsed_section,
    run_command,
)
from synrank_jax.config_file import to_yaml
from synrank_jax.config_generation import GenerationConfig
from synrank_jax.data.queries import asked_queries
from synrank_jax.errors import UserError
from synrank_jax.files import locked, write_text
from synrank_jax.generation.answers import Format
from synrank_jax.generation.backends import open_backend
from synrank_jax.generation.ledger import FILE, Ledger, Query
from synrank_jax.generation.output import LISTS_FILE, write_lists
from synrank_jax.generation.prompt import Prompt, load_prompt
from synrank_jax.generation.run import Writer, contexts, parts_of
from synrank_jax.generation.status import report_of, shown_progress, status_table, write_report
from synrank_jax.generation.validation import Rules
from synrank_jax.lists_audit import add_arguments, audit, filter_lists

FIELD = "output"


def run(config: GenerationConfig) -> int | None:
    """Write the lists of all queries that lack one, then all output files.

    Returns:
        The signal that stopped it early; None: every query is done or given up.

    Raises:
        UserError: see the functions it calls; before anything is spent, where that can be.
    """
    folder, rules = _folder(config), Rules(config.rules)
    load_prompt(config, Format.DELIMITERS)  # a wrong prompt file is told before all else
    with locked(folder, FIELD):
        ledger = Ledger(folder / FILE)
        try:
            return asyncio.run(_run(config, folder, rules, ledger))
        finally:
            begun = bool(ledger.identity())
            ledger.close()
            if not begun:
                (folder / FILE).unlink()


async def _run(config: GenerationConfig, folder: Path, rules: Rules, ledger: Ledger) -> int | None:
    prompt = _begun_prompt(config, ledger, folder)
    ledger.set_queries(
        (text.place, Query(text.id, text.text)) for text in asked_queries(config.queries)
    )
    status = ledger.status(len(parts_of(config)), config.rules.attempts)
    stopped = None
    if prompt is None or status.valid + status.failed < status.queries:
        backend = open_backend(config.backend)
        try:
            follows_schemas = await backend.check()
            prompt = prompt or _begin(config, ledger, follows_schemas)
            write_text(folder / "config.yaml", to_yaml(config))
            with shown_progress(status) as on_progress:
                writer = Writer(config, prompt, rules, backend, ledger, on_progress)
                await writer.write()
            stopped = writer.stop_signal
        finally:
            await backend.close()
    if stopped is None:
        write_output(config, prompt, ledger)
    return stopped


def write_output(config: GenerationConfig, prompt: Prompt, ledger: Ledger) -> None:
    """Write the valid lists and the report, and say where they are."""
    folder, parts = _folder(config), len(parts_of(config))
    count = write_lists(folder, contexts(ledger, config, prompt))
    status = ledger.status(parts, config.rules.attempts)
    write_report(folder, report_of(config, prompt.hash, status), ledger.failures(parts))
    Console().print(status_table(status, config.price))
    print(f"{count:,} lists: {folder / LISTS_FILE}, and in BEIR layout beside it")


def _begin(config: GenerationConfig, ledger: Ledger, follows_schemas: bool) -> Prompt:
    """Settle the answer format, and write into the ledger what it is about."""
    best = Format.JSON if follows_schemas else Format.DELIMITERS
    structured = config.backend.structured
    prompt = load_prompt(config, best if structured == "auto" else Format(structured))
    ledger.claim(_identity(config, prompt) | {"format": prompt.format})
    return prompt


def _begun_prompt(config: GenerationConfig, ledger: Ledger, folder: Path) -> Prompt | None:
    """The prompt that the ledger was begun with; None for a new ledger.

    Raises:
        UserError: it was begun with another.
    """
    known = ledger.identity()
    if not known:
        return None
    structured = config.backend.structured
    prompt = load_prompt(config, Format(known["format"] if structured == "auto" else structured))
    for name, value in _identity(config, prompt).items():
        if known[name] != value:
            raise UserError(
                f"{FIELD} {folder}: holds lists of another run ({name} {known[name]!r} there, "
                f"{value!r} now); set another output, or go back to the settings of "
                f"{folder / 'config.yaml'}. The prompt hash is of the prompt file, its examples, "
                "levels, prompt, the answer format and the sampling settings"
            )
    return prompt


def _identity(config: GenerationConfig, prompt: Prompt) -> dict[str, str | int]:
    return {"prompt_hash": prompt.hash, "model": config.backend.model, "seed": config.seed}


def _folder(config: GenerationConfig) -> Path:
    return Path(config.output).expanduser()


def _read(config: GenerationConfig, write: bool) -> None:
    """--status and --write: from the ledger alone, also while another process works on it."""
    folder = _folder(config)
    ledger = Ledger(folder / FILE, read_only=True)
    try:
        prompt = _begun_prompt(config, ledger, folder)
        if write and prompt:
            write_output(config, prompt, ledger)
        else:
            status = ledger.status(len(parts_of(config)), config.rules.attempts)
            Console().print(status_table(status, config.price))
    finally:
        ledger.close()


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of `python -m synrank_jax.generate`."""
    parser = _parser()
    args = parser.parse_args(argv)
    if sum(map(bool, (args.config, args.audit, args.filter))) != 1:
        parser.error("give one of --config, --audit and --filter")
    if args.config and args.output:
        parser.error("--output is of --audit and --filter; with --config, --set output=FOLDER")
    if args.audit:
        audit(args, open_backend)
        return None
    if args.filter:
        filter_lists(args)
        return None
    config = parsed_section(GenerationConfig, args)
    if args.status or args.write:
        return _read(config, args.write)
    stopped = run(config)
    if stopped is not None:
        print("stopped; the same command goes on")
        raise SystemExit(EXIT_INTERRUPTED if stopped == signal.SIGINT else EXIT_PREEMPTED)
    return None


def _parser() -> argparse.ArgumentParser:
    parser = config_parser("generate", __doc__ or "", required=False)
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--status", action="store_true", help="progress, rate, time left, tokens and cost; stop"
    )
    what.add_argument(
        "--write", action="store_true", help="write the lists that are valid so far; stop"
    )
    add_arguments(parser)
    return parser


if __name__ == "__main__":
    run_command(main)
