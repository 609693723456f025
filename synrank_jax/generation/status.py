"""How a run goes: a progress bar, the table of `--status`, and the final report."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from synrank_jax.config_generation import GenerationConfig, PriceConfig
from synrank_jax.config_section import Section
from synrank_jax.files import atomic_write, write_text
from synrank_jax.generation.ledger import Query, Row, Status
from synrank_jax.generation.run import Counts

REPORT_FILE = "report.json"
FAILURES_FILE = "failures.jsonl"
LINE_EVERY_S = 30.0
"""Off a terminal, where no bar is drawn."""


class Report(Section):
    """The content of report.json."""

    prompt_hash: str
    model: str
    seed: int
    queries: int
    valid: int
    """Queries with a valid list."""
    failed: dict[str, int]
    """Failure class -> queries given up, by their last failure."""
    answers: int
    """Answers recorded, valid or not."""
    failures: dict[str, int]
    """Failure class -> answers."""
    prompt_tokens: int
    completion_tokens: int
    cost: float
    """By `price`, in its currency."""


def report_of(config: GenerationConfig, prompt_hash: str, status: Status) -> Report:
    """The final report of a run."""
    return Report(
        prompt_hash=prompt_hash,
        model=config.backend.model,
        seed=config.seed,
        queries=status.queries,
        valid=status.valid,
        failed=status.failed_queries,
        answers=status.answers,
        failures=status.failures,
        prompt_tokens=status.prompt_tokens,
        completion_tokens=status.completion_tokens,
        cost=cost(status, config.price),
    )


def write_report(folder: Path, report: Report, failed: Iterable[tuple[Query, Row]]) -> None:
    """Write report.json, and failures.jsonl with the last failure of every query without a list."""
    with atomic_write(folder / FAILURES_FILE) as file:
        for query, row in failed:
            record = query._asdict() | {"failure": row.failure, "message": row.message}
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
    write_text(folder / REPORT_FILE, report.model_dump_json(indent=2) + "\n")


def cost(status: Status, price: PriceConfig) -> float:
    """What the tokens of all recorded answers cost."""
    return (
        status.prompt_tokens * price.per_million_prompt_tokens
        + status.completion_tokens * price.per_million_completion_tokens
    ) / 1e6


def status_table(status: Status, price: PriceConfig) -> Table:
    """Progress, rate, time left, tokens and cost."""
    table = Table(title="lists", show_header=False)
    left = status.queries - status.valid - status.failed
    rows = {
        "valid": f"{status.valid:,} of {status.queries:,} queries",
        "given up": f"{status.failed:,} queries{_listed(status.failed_queries)}",
        "left": f"{left:,} queries",
        "answers": f"{status.answers:,}, of which failed: {sum(status.failures.values()):,}"
        f"{_listed(status.failures)}",
        "rate": f"{status.lists_per_s:.3g} lists/s in the last ten minutes of work",
    }
    if left and status.lists_per_s:
        rows["time left"] = duration(left / status.lists_per_s)
    per_list = status.completion_tokens / max(status.valid, 1)
    rows["tokens"] = (
        f"{status.prompt_tokens:,} sent, {status.completion_tokens:,} written "
        f"({per_list:,.0f} written for each valid list)"
    )
    spent = cost(status, price)
    if spent:
        done = status.valid + status.failed
        rows["cost"] = f"{spent:,.2f}" + (
            f", of all queries about {spent / done * status.queries:,.2f}" if done and left else ""
        )
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def duration(seconds: float) -> str:
    """Hours and minutes, or seconds."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes else f"{seconds:.0f} s"


def _listed(counts: dict[str, int]) -> str:
    said = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    return f" ({said})" if said else ""


@contextmanager
def shown_progress(status: Status) -> Iterator[Callable[[Counts], None]]:
    """A progress bar on stderr; gives the function that moves it on."""
    columns = (
        TextColumn("writing lists"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[said]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        # Queries that were given up before are looked at again, and counted then.
        task = progress.add_task("", total=status.queries, completed=status.valid, said="")

        told = 0.0

        def show(counts: Counts) -> None:
            nonlocal told
            elapsed = max(progress.tasks[task].elapsed or 0.0, 1e-3)
            said = (
                f"{counts.failed:,} given up, "
                f"{(counts.valid + counts.failed) / elapsed:.1f}/s, "
                f"{counts.completion_tokens / elapsed:,.0f} tokens/s"
            )
            if counts.stopping:
                said += ", stopping: waiting for answers under way (Ctrl-C again: do not)"
            done = status.valid + counts.valid + counts.failed
            progress.update(task, completed=done, said=said)
            if not progress.console.is_terminal and elapsed - told >= LINE_EVERY_S:
                told = elapsed
                progress.console.print(f"{done:,} of {status.queries:,} queries, {said}")

        yield show
