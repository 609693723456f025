"""What will training need, and how fast can it be, on machines that are not here?

    python -m synrank_jax.plan --config configs/tpu/contriever.yaml --topology v5e:2x4
    python -m synrank_jax.plan --config X --topology v5e:2x4 v6e:8x8 --chunk 8 none --price 1.2 2.7
    python -m synrank_jax.plan --config X --topology local --mean-tokens 24,160 --json plan.json

Compiles the real train step with the real compiler: of a TPU slice, named KIND:AxB (needs the extra
`plan`, but neither TPU nor network), or of this machine's devices (`local`). Prints whether it fits
the chips' memory, what a step computes, moves and sends, and the shortest time it can take at the
chips' published peaks. If one does not fit, other settings are compiled until one does.

Of the model only config.json is read. Texts are as long as those of data.prepared where it exists,
else as encoding.query_length and passage_length allow, or as --mean-tokens says.
"""

import argparse
import itertools
import json
import math
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from rich.console import Console

from synrank_jax.cli import config_parser, parsed_config, run_command
from synrank_jax.config import Config
from synrank_jax.config_section import Section
from synrank_jax.engine.plan import GIB, Memory, Plan, abstract_step, plan
from synrank_jax.engine.remedies import Remedy, changed, find_remedy
from synrank_jax.engine.topology import LOCAL
from synrank_jax.errors import UserError
from synrank_jax.files import write_text

COLUMNS = (
    *("topology", "chips", "pool", "chunk", "remat", "HBM GiB", "of", "fits", "step ms"),
    *("lists/s", "MFU", "bound by", "sent MB", "per M lists", "compile s"),
)


class Planned(Section):
    """One line of the table: a plan, and what was tried if it does not fit."""

    plan: Plan
    remedies: tuple[Remedy, ...]


def run(
    config: Config,
    topologies: Sequence[str],
    chunks: Sequence[int | None],
    prices: Sequence[float] = (),
    assumed: tuple[int, int] | None = None,
) -> list[Planned]:
    """Plan every topology with every chunk size; see `main` for the arguments.

    Raises:
        UserError: see `plan`.
    """
    console = Console(stderr=True)
    if LOCAL not in topologies:
        jax.config.update("jax_platforms", "cpu")  # leave alone whatever this machine has
    wanted = [changed(config, {"train.encode_chunk_size": chunk}) for chunk in chunks]
    for topology, one in itertools.product(topologies, wanted):
        abstract_step(one, topology, assumed)  # refuses what can be refused, before minutes pass
    found = []
    for number, topology in enumerate(topologies):
        price = prices[number % len(prices)] if prices else None

        def compiled(other: Config, topology: str = topology, price: float | None = price) -> Plan:
            chunk = other.train.encode_chunk_size or "none"
            console.print(f"compiling for {topology}, chunk {chunk}, remat {other.model.remat} ...")
            return plan(other, topology, assumed=assumed, price=price)

        for one in wanted:
            first = compiled(one)
            remedies = [] if first.fits else find_remedy(one, first, compiled)
            found.append(Planned(plan=first, remedies=tuple(remedies)))
    return found


def report(planned: Planned) -> str:
    """Everything about one plan, in words; figures are per chip and step."""
    of = planned.plan
    mesh = " x ".join(f"{axis} {size}" for axis, size in of.mesh.items() if size > 1) or "one"
    rows = [
        (of.topology, f"{of.chips} {of.chip}, {mesh}"),
        ("batch", f"{of.global_batch_size} queries in pools of {of.pool_size}"),
        ("", f"{of.encode_chunk_size} encoded at once, remat {of.remat}"),
        ("texts", of.lengths),
        ("", f"rows of {of.row_tokens:,} tokens, {of.padding_share:.1%} padding"),
        *_memory_rows(of),
        ("FLOPs", f"{_si(of.flops.encoder)} encoder, {_si(of.flops.scores)} scores"),
        ("", f"{_si(of.flops.model)} asked for by the model"),
        ("pool", f"{_si(of.growth.scores_bytes)}B scores"),
        ("", f"{_si(of.growth.gathered_bytes)}B gathered embeddings"),
        *_traffic_rows(of),
        *_speed_rows(of),
        ("compiled", f"in {of.compile_s:.0f} s"),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {text}" for name, text in rows)


def _memory_rows(of: Plan) -> Iterator[tuple[str, str]]:
    needs = _memory_text(of.memory) if of.memory else of.problem
    yield "memory", f"{_fits(of)}: {needs}"
    if of.capacity_bytes:
        yield "", f"of {_gib(of.capacity_bytes)}"
    yield "", f"{_gib(of.state_bytes)} are weights and optimizer state"


def _memory_text(memory: Memory) -> str:
    return (
        f"{_gib(memory.total)} = {_gib(memory.arguments)} arguments + "
        f"{_gib(memory.temporaries)} temporaries + {_gib(memory.outputs)} outputs + "
        f"{_gib(memory.code)} code"
    )


def _traffic_rows(of: Plan) -> Iterator[tuple[str, str]]:
    if of.memory_bytes is None or of.bytes_accessed is None:
        return
    yield "bytes", f"{_si(of.memory_bytes)}B of main memory, {_si(of.bytes_accessed)}B in all"
    for total in of.collectives:
        sent = f"{_si(total.payload_bytes)}B, {_si(total.sent_bytes)}B over the links"
        yield "sends", f"{total.count} {total.kind}: {sent}"
    if of.unknown_loops:
        yield "", f"{of.unknown_loops} loops of unknown length are counted once"


def _speed_rows(of: Plan) -> Iterator[tuple[str, str]]:
    if of.memory is None:
        return
    if (bound := of.roofline) is None:
        yield "speed", "no published peaks"
        return
    times = (bound.compute_s, bound.memory_s, bound.collectives_s)
    compute, memory, collectives = (f"{seconds * 1e3:.1f} ms" for seconds in times)
    yield "roofline", f"{compute} compute, {memory} memory, {collectives} collectives"
    yield "", f"{bound.flops_per_byte:.0f} FLOPs per byte; peaks: {bound.source}"
    yield (
        "speed",
        (
            f"at most {bound.lists_per_s:,.0f} lists/s: {bound.step_s * 1e3:.1f} ms a step, "
            f"MFU {bound.mfu:.0%}, bound by {bound.bound_by}"
        ),
    )
    yield "", f"{bound.unoverlapped_lists_per_s:,.0f} lists/s if nothing overlaps"
    if (cost := of.cost_per_million_lists) is not None:
        most = cost * bound.unoverlapped_s / bound.step_s
        yield "cost", f"at least {cost:.2f} per million lists, {most:.2f} if nothing overlaps"


def remedy_lines(planned: Planned) -> Iterator[str]:
    """What was tried where the plan does not fit."""
    for remedy in planned.remedies:
        settings = ", ".join(f"{name}={value}" for name, value in remedy.settings.items())
        memory = remedy.plan.memory
        needs = _memory_text(memory) if memory else remedy.plan.problem
        yield f"{planned.plan.topology} with {settings} {_fits(remedy.plan)}: {needs}"
    if planned.remedies and not planned.remedies[-1].plan.fits:
        yield f"{planned.plan.topology}: nothing tried fits; take a smaller train.pool_size"


def _fits(of: Plan) -> str:
    return "fits" if of.fits else "DOES NOT FIT"


def table(plans: Sequence[Plan]) -> str:
    """One line per plan; a column in which none has anything is left out."""
    columns = [column for column in zip(COLUMNS, *map(_row, plans), strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in zip(*columns, strict=True)
    )


def _row(of: Plan) -> tuple[str, ...]:
    bound, memory = of.roofline, of.memory
    speed = ("", "", "", "")
    if bound:
        speed = (
            f"{bound.step_s * 1e3:.1f}-{bound.unoverlapped_s * 1e3:.1f}",
            f"{bound.unoverlapped_lists_per_s:,.0f}-{bound.lists_per_s:,.0f}",
            f"{bound.mfu:.0%}",
            bound.bound_by,
        )
    sent = sum(total.sent_bytes for total in of.collectives)
    cost = of.cost_per_million_lists
    return (
        of.topology,
        str(of.chips),
        str(of.pool_size),
        str(of.encode_chunk_size),
        of.remat,
        f"{memory.total / GIB:.2f}" if memory else "",
        f"{of.capacity_bytes / GIB:.2f}" if of.capacity_bytes else "",
        "yes" if of.fits else "NO",
        *speed,
        f"{sent / 1e6:.1f}" if memory else "",
        f"{cost:.2f}" if cost is not None else "",
        f"{of.compile_s:.0f}",
    )


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"


def _si(value: float) -> str:
    """A number with three digits and a prefix of the SI: 1.23 G."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(value) < 999.5:
            return f"{value:.3g} {prefix}"
        value /= 1000
    return f"{value:.3g} P"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of `python -m synrank_jax.plan`."""
    parser = config_parser("plan", __doc__ or "")
    parser.add_argument(
        "--topology",
        nargs="+",
        default=[LOCAL],
        metavar="NAME",
        help="local (default), or TPU slices such as v5e:2x4, v5e:16x16, v6e:8x8, v5p:2x2x2",
    )
    parser.add_argument(
        "--chunk",
        nargs="+",
        type=_chunk,
        metavar="N",
        help="instead of train.encode_chunk_size; several are compared, none is the whole share",
    )
    parser.add_argument(
        "--price",
        nargs="+",
        type=_price,
        default=[],
        metavar="X",
        help="of a chip for an hour: one, or one for each topology",
    )
    parser.add_argument(
        "--mean-tokens",
        type=_two_lengths,
        metavar="QUERY,PASSAGE",
        help="assume that all texts have these lengths, whatever is prepared",
    )
    parser.add_argument("--json", metavar="FILE", help="also write all figures here")
    args = parser.parse_args(argv)
    if len(args.price) not in (0, 1, len(args.topology)):
        parser.error(f"--price: one, or {len(args.topology)} for as many topologies")
    config = parsed_config(args)
    if args.json and not _can_be_written(Path(args.json).absolute()):
        raise UserError(f"--json {args.json}: give a file in a folder that exists and is writable")
    chunks = args.chunk or [config.train.encode_chunk_size]
    found = run(config, args.topology, chunks, args.price, args.mean_tokens)
    print(report(found[0]) if len(found) == 1 else table([planned.plan for planned in found]))
    for planned in found:
        for line in remedy_lines(planned):
            print(line)
    if args.json:
        content = [planned.model_dump(mode="json") for planned in found]
        write_text(Path(args.json), json.dumps(content, indent=2) + "\n")


def _can_be_written(file: Path) -> bool:
    return not file.is_dir() and os.access(file.parent, os.W_OK)


def _chunk(text: str) -> int | None:
    if text == "none":
        return None
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text}: a positive number of queries, or none")
    return int(text)


def _price(text: str) -> float:
    try:
        price = float(text)
    except ValueError:
        price = math.nan
    if not 0 < price < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: a positive number, of any currency")
    return price


def _two_lengths(text: str) -> tuple[int, int]:
    parts = text.split(",")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text}: two numbers with a comma, as 24,160")
    return int(parts[0]), int(parts[1])


if __name__ == "__main__":
    # The compiler runs for minutes without a look at Python's signal handlers; nothing is left half
    # done if Ctrl-C ends the process at once.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    run_command(main)
