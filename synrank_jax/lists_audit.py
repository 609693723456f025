"""Audit of graded lists and the filters that act on it: joins generation's checks with the readers
of collections, BM25, encoders and plots.
"""

import argparse
import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from synrank_jax.config_file import load_section
from synrank_jax.config_generation import BackendConfig, GenerationConfig
from synrank_jax.data import beir
from synrank_jax.data.lines import existing_file
from synrank_jax.encoders import Encoder, named_encoder
from synrank_jax.errors import UserError
from synrank_jax.files import atomic_write, file_sha256, make_folder, write_text
from synrank_jax.generation.audit import agreement, filters, leakage
from synrank_jax.generation.audit.agreement import Agreement, Regraded
from synrank_jax.generation.audit.checks import Checks, Sample
from synrank_jax.generation.audit.duplicates import load_rensa
from synrank_jax.generation.audit.findings import Collector, Finding, Kind
from synrank_jax.generation.audit.judge import judge_lists
from synrank_jax.generation.audit.report import page
from synrank_jax.generation.audit.summary import (
    AUDIT_FILE,
    FINDINGS_FILE,
    REGRADES_FILE,
    Found,
    ListsAudit,
    Shape,
    summary_text,
)
from synrank_jax.generation.backend import Backend
from synrank_jax.generation.lists import RankingContext
from synrank_jax.generation.output import LISTS_FILE, json_line
from synrank_jax.graded_lists import (
    TRAIN,
    Lists,
    documents,
    evaluation_queries,
    examples,
    open_lists,
)
from synrank_jax.hub import collection_folder
from synrank_jax.plots import new_figure
from synrank_jax.retrieval.bm25 import Bm25, load_bm25s

PAGE_FILE = "audit.html"
BUNDLED = "bundled:"
MOST_SHAPES = 10
BATCH = 64
"""Texts that the encoder takes at once."""

OpenBackend = Callable[[BackendConfig], Backend]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of audit and filters."""
    audit = parser.add_argument_group("audit", "what is wrong with graded lists").add_argument
    audit(
        "--audit",
        metavar="DIR",
        help=f"a folder with {LISTS_FILE}, or in BEIR layout (also {BUNDLED}NAME)",
    )
    audit("--split", default=TRAIN, help="judgements of a BEIR-layout DIR (default: train)")
    audit(
        "--against",
        metavar="FOLDER",
        nargs="+",
        default=[],
        help=f"evaluation collections that must not be retold (BEIR layout or {BUNDLED}NAME)",
    )
    audit("--examples", metavar="FILE.jsonl", help="the prompt's in-context examples, as lists")
    audit("--judge", metavar="CONFIG.yaml", help="its model grades a sample again")
    audit("--encoder", metavar="MODEL", help="its scores order a sample again")
    audit(
        "--sample",
        metavar="N",
        type=_positive,
        default=1000,
        help="lists that leakage and agreement are measured on (default: 1000)",
    )
    audit(
        "--output",
        metavar="FOLDER",
        help=f"of the audit (default: DIR/audit, runs/audit/NAME for {BUNDLED}NAME) or of --filter",
    )
    change = parser.add_argument_group("filter", "lists without what an audit found").add_argument
    change("--filter", metavar="DIR", help="write what is left of these audited lists to --output")
    change("--drop", metavar="KIND[,KIND...]", help=f"drop lists with: {', '.join(Kind)}")
    change("--relabel", choices=("judge", "encoder"), help="take the grades of a second opinion")
    change("--findings", metavar="FOLDER", help="where the audit is, if it had an --output")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: at least 1")
    return value


def audit_folder(path: str, output: str | None) -> Path:
    """Where the audit of a folder is written."""
    if output is not None:
        return Path(output).expanduser()
    if path.startswith(BUNDLED):
        return Path("runs") / "audit" / path.removeprefix(BUNDLED)
    return Path(path).expanduser() / "audit"


def audit(args: argparse.Namespace, open_backend: OpenBackend) -> ListsAudit:
    """`--audit`: check all lists, measure a sample, and write findings, figures and the page.

    Args:
        args: of `add_arguments`.
        open_backend: opens the judge's model.

    Raises:
        UserError: of the input; a package or the judge is missing.
    """
    # Better missing now than after an hour.
    load_rensa()
    load_bm25s()
    new_figure(1, 1)
    judge = _reachable_judge(args.judge, open_backend) if args.judge else None
    encoder = _encoder(args.encoder) if args.encoder else None
    lists = open_lists(args.audit, args.split, "--audit")
    sha256 = lists.sha256()
    checks, sample = _checks(args), Sample(args.sample)
    output = audit_folder(args.audit, args.output)
    make_folder(output, "--output")
    with atomic_write(output / FINDINGS_FILE) as file:
        findings = Collector(file)
        count = _check(lists, checks, sample, findings)
        chosen = sample.lists()
        opinions = [_judged(chosen, judge, args.judge, open_backend)] if judge else []
        opinions += [_encoded(chosen, encoder, args.encoder)] if encoder else []
        for opinion, regraded in opinions:
            findings.add(agreement.disagreements(opinion.by, opinion.name, regraded))
    with atomic_write(output / REGRADES_FILE) as file:
        for opinion, regraded in opinions:
            for row in regraded:
                file.writelines(map(json_line, row.records(opinion.by)))
    contexts = [context for _, context in chosen]
    report = ListsAudit(
        name=args.audit,
        split=lists.split,
        lists_sha256=sha256,
        findings_sha256=file_sha256(output / FINDINGS_FILE),
        regrades_sha256=file_sha256(output / REGRADES_FILE),
        lists=count,
        passages=checks.passages,
        shapes=tuple(
            Shape(passages=dict(shape), lists=number)
            for shape, number in checks.patterns.most_common(MOST_SHAPES)
        ),
        found={
            kind: Found(findings=findings.count[kind], lists=len(findings.lists[kind]))
            for kind in _looked_for(args)
        },
        against=tuple(args.against),
        single_runs=checks.single_runs,
        leakage=leakage.measure(contexts, _overlap(contexts)),
        agreements=tuple(opinion for opinion, _ in opinions),
    )
    write_text(output / PAGE_FILE, page(report, findings.examples))
    # At the end: a filter takes the findings only with the figures that belong to them.
    write_text(output / AUDIT_FILE, report.model_dump_json(indent=2) + "\n")
    print(summary_text(report))
    print(f"report: {output / PAGE_FILE}; figures: {output / AUDIT_FILE}")
    return report


def _checks(args: argparse.Namespace) -> Checks:
    """The checks, with the evaluation collections and examples read."""
    folders = {path: collection_folder(path, "--against") for path in args.against}
    for path, folder in folders.items():
        if existing_file(folder, beir.CORPUS_FILE) is None:
            raise UserError(f"--against {path}: has no {beir.CORPUS_FILE}; {beir.PARTS}")
    texts = (target for path, folder in folders.items() for target in documents(folder, path))
    return Checks(
        _counted("read collections", texts) if folders else (),
        (target for path, folder in folders.items() for target in evaluation_queries(folder, path)),
        examples(args.examples) if args.examples else (),
    )


def _looked_for(args: argparse.Namespace) -> Iterator[Kind]:
    asked = {
        Kind.EXAMPLE_COPY: args.examples,
        Kind.CONTAMINATION: args.against,
        Kind.EVALUATION_QUERY: args.against,
        Kind.JUDGE: args.judge,
        Kind.ENCODER: args.encoder,
    }
    yield from (kind for kind in Kind if asked.get(kind, True))


def _check(lists: Lists, checks: Checks, sample: Sample, findings: Collector) -> int:
    """Both readings of all lists; returns their number."""
    count = 0
    for number, row in enumerate(_counted("check lists", lists.read())):
        count += 1
        if isinstance(row, Finding):
            findings.add([row])
        else:
            findings.add(checks.first(number, row))
            sample.add(number, row)
    if not count:
        raise UserError(f"{lists.files[0]}: has no list; give a folder with graded lists")
    if checks.again():
        for number, row in enumerate(_counted("compare lists", lists.read(), count)):
            if not isinstance(row, Finding):
                findings.add(checks.second(number, row))
    return count


def _counted(what: str, rows: Iterable[Any], total: int | None = None) -> Iterator[Any]:
    """The rows, counted by a bar on stderr."""
    with _progress(what) as progress:
        task = progress.add_task("", total=total)
        for row in rows:
            yield row
            progress.advance(task)


def _progress(what: str) -> Progress:
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True))


def _overlap(sample: Sequence[RankingContext]) -> list[list[float]] | None:
    """BM25 score of every passage with its query, the sample being the corpus."""
    keys = [[f"{n}:{at}" for at in range(len(c.passages))] for n, c in enumerate(sample)]
    texts = {
        key: passage.full_text()
        for context, row in zip(sample, keys, strict=True)
        for key, passage in zip(row, context.passages, strict=True)
    }
    if not any(text.strip() for text in texts.values()):
        return None
    index = Bm25(texts)
    scores = []
    for context, row in zip(sample, keys, strict=True):
        found = index.search(context.query, 1, also=row)
        scores.append([found.get(key, 0.0) for key in row])
    return scores


Chosen = Sequence[tuple[int, RankingContext]]


def _reachable_judge(path: str, open_backend: OpenBackend) -> GenerationConfig:
    config = load_section(GenerationConfig, path)

    async def reach() -> None:
        backend = open_backend(config.backend)
        try:
            await backend.check()
        finally:
            await backend.close()

    if config.backend.kind == "openai":  # the others would load their model twice
        asyncio.run(reach())
    return config


def _judged(
    sample: Chosen,
    config: GenerationConfig,
    path: str,
    open_backend: OpenBackend,
) -> tuple[Agreement, list[Regraded]]:
    known = {level.grade for level in config.levels}
    for _, context in sample:
        for passage in context.passages:
            if passage.grade not in known:
                raise UserError(
                    f"--judge {path}: its levels have the grades {sorted(known)}, but passage "
                    f"{passage.doc_id!r} has grade {passage.grade}; give the lists' own levels"
                )
    total = sum(len(context.passages) for _, context in sample)
    with _progress("judge passages") as progress:
        task = progress.add_task("", total=total)
        backend = open_backend(config.backend)
        work = judge_lists(sample, config.levels, backend, lambda: progress.advance(task))
        regraded, failures = asyncio.run(work)
    return agreement.measure("judge", config.backend.model, regraded, failures), regraded


def _encoder(name: str) -> Encoder:
    try:
        return named_encoder(name, BATCH)
    except UserError as error:
        raise UserError(f"--encoder {name}: {error}") from error


def _encoded(sample: Chosen, encoder: Encoder, name: str) -> tuple[Agreement, list[Regraded]]:
    cosine = encoder.contract.similarity == "cosine"
    regraded = []
    for start in _counted("encode lists", range(0, len(sample), BATCH), -(-len(sample) // BATCH)):
        block = sample[start : start + BATCH]
        queries = encoder.encode([context.query for _, context in block], "query")
        texts = [passage.full_text() for _, context in block for passage in context.passages]
        passages = encoder.encode(texts, "passage")
        if cosine:
            queries, passages = _unit(queries), _unit(passages)
        at = 0
        for (number, context), query in zip(block, queries, strict=True):
            size = len(context.passages)
            scores = tuple(float(score) for score in passages[at : at + size] @ query)
            at += size
            grades = agreement.ranks_as_grades([p.grade for p in context.passages], scores)
            regraded.append(Regraded(number, context, grades, scores))
    return agreement.measure("encoder", name, regraded, {}), regraded


def _unit(rows: Any) -> Any:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def filter_lists(args: argparse.Namespace) -> int:
    """`--filter`: write the lists that are left, and a record of what was dropped or relabelled.

    Returns:
        Number of lists written.

    Raises:
        UserError: there is no audit of these very lists; it did not look for a kind; the output
            holds something else; nothing would be left.
    """
    kinds = filters.kinds_of(args.drop)
    if not kinds and args.relabel is None:
        raise UserError("--filter: give --drop, --relabel or both")
    if args.output is None:
        raise UserError("--filter: give --output, the folder of the lists that are left")
    audited = filters.read_audit(audit_folder(args.filter, args.findings), args.filter)
    lists = open_lists(args.filter, audited.report.split or TRAIN, "--filter")
    if lists.sha256() != audited.report.lists_sha256:
        raise UserError(
            f"--filter {args.filter}: the lists are not those that were audited; audit anew"
        )
    rows = _counted("filter lists", lists.read(), audited.report.lists)
    output = Path(args.output).expanduser()
    counts = filters.write_filtered(audited, rows, kinds, args.relabel, output)
    print(
        f"{counts.written:,} of {counts.read:,} lists written, {counts.relabelled:,} of them "
        f"relabelled: {output}"
    )
    print(f"what was done and why: {output / filters.DROPPED_FILE}")
    return counts.written
