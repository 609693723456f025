"""Lists without what an audit found, and a written record of what was dropped or relabelled."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from synrank_jax.errors import UserError
from synrank_jax.files import atomic_write, file_sha256, make_folder, write_text
from synrank_jax.generation.audit.agreement import Regrader
from synrank_jax.generation.audit.findings import Finding, Kind, finding_of
from synrank_jax.generation.audit.summary import (
    AUDIT_FILE,
    FINDINGS_FILE,
    REGRADES_FILE,
    ListsAudit,
)
from synrank_jax.generation.lists import RankingContext
from synrank_jax.generation.output import json_line, write_lists

DROPPED_FILE = "dropped.jsonl"
FILTER_FILE = "filter.json"
"""What was asked for; marks a folder as that of a filter."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Audited:
    """An audit that filters act on."""

    folder: Path
    report: ListsAudit


@dataclass
class Counts:
    """Lists that went through a filter."""

    read: int = 0
    relabelled: int = 0
    written: int = 0


def kinds_of(text: str | None) -> set[Kind]:
    """The kinds that --drop names.

    Raises:
        UserError: there is no such kind.
    """
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    for name in names:
        if name not in set(Kind):
            raise UserError(f"--drop {name}: no such kind; there are {', '.join(Kind)}")
    return set(map(Kind, names))


def read_audit(folder: Path, lists: str) -> Audited:
    """The audit in a folder; `lists` is what it should be of.

    Raises:
        UserError: there is none, or its files do not belong together.
    """
    file = folder / AUDIT_FILE
    try:
        report = ListsAudit.model_validate_json(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file}: no readable audit ({type(error).__name__}); run --audit {lists} first, or "
            "give its folder with --findings"
        ) from error
    for name, sha256 in (
        (FINDINGS_FILE, report.findings_sha256),
        (REGRADES_FILE, report.regrades_sha256),
    ):
        if not (folder / name).is_file() or file_sha256(folder / name) != sha256:
            raise UserError(f"{folder / name}: is not that of {AUDIT_FILE}; audit anew")
    return Audited(folder, report)


def write_filtered(
    audited: Audited,
    lists: Iterable[RankingContext | Finding],
    drop: set[Kind],
    relabel: Regrader | None,
    output: Path,
) -> Counts:
    """Write what is left of the lists to the folder `output`, with dropped.jsonl.

    A finding drops its whole list: the levels were written against each other, and without one of
    them the others mean something else. A list that cannot be read is always dropped.

    Raises:
        UserError: the audit did not look for a kind, or has no such grades; the folder holds
            something else; not one list is left.
    """
    found = audited.report.found
    for kind in sorted(drop - found.keys()):
        raise UserError(f"--drop {kind}: the audit in {audited.folder} did not look for it")
    if relabel is not None and Kind(relabel) not in found:
        raise UserError(
            f"--relabel {relabel}: the audit in {audited.folder} has no grades of it; audit again "
            f"with --{relabel}"
        )
    _claim(output, audited.report, drop, relabel)
    reasons: dict[int, list[Finding]] = {}
    for row in _rows(audited.folder / FINDINGS_FILE):
        if (finding := finding_of(row)).kind in drop:
            reasons.setdefault(finding.number, []).append(finding)
    regrades = {
        (row["number"], row["doc_id"]): row["regrade"]
        for row in _rows(audited.folder / REGRADES_FILE)
        if row["by"] == relabel
    }
    counts, why = Counts(), f"graded again by the {relabel}"

    def left() -> Iterator[RankingContext]:
        # Whole before write_lists shows lists.jsonl: no lists without the record.
        with atomic_write(output / DROPPED_FILE) as file:
            for number, row in enumerate(lists):
                counts.read += 1
                if isinstance(row, Finding):
                    kept, records = None, [_dropped(row)]
                elif number in reasons:
                    kept, records = None, list(map(_dropped, reasons[number]))
                else:
                    kept, records = _relabelled(number, row, regrades, why)
                file.writelines(map(json_line, records))
                if kept is not None:
                    counts.relabelled += bool(records)
                    counts.written += 1
                    yield kept
            if not counts.written:
                raise UserError(
                    f"--output {output}: not one of {counts.read:,} lists is left; drop less "
                    "(no lists were written)"
                )

    write_lists(output, left())
    return counts


def _dropped(finding: Finding) -> Record:
    why = f"{finding.kind}: {finding.why}"
    return _record(finding.query_id, finding.doc_id, "list dropped", why, finding.evidence)


def _claim(output: Path, report: ListsAudit, drop: set[Kind], relabel: str | None) -> None:
    """Make `output` the folder of this filter, or go on with it."""
    asked = {
        "lists": report.name,
        "lists_sha256": report.lists_sha256,
        "findings_sha256": report.findings_sha256,
        "regrades_sha256": report.regrades_sha256,
        "drop": sorted(drop),
        "relabel": relabel,
    }
    record, file = json.dumps(asked, ensure_ascii=False, indent=2) + "\n", output / FILTER_FILE
    if file.is_file():
        if file.read_text("utf-8") != record:
            raise UserError(
                f"--output {output}: holds the lists of another filter (see {FILTER_FILE}); give "
                "another folder"
            )
        return
    if output.is_dir() and any(output.iterdir()):
        raise UserError(f"--output {output}: is not empty; give a new folder")
    make_folder(output, "--output")
    write_text(file, record)


def _rows(file: Path) -> Iterator[Record]:
    with file.open(encoding="utf-8", newline="\n") as lines:
        yield from map(json.loads, lines)


def _relabelled(
    number: int, context: RankingContext, regrades: Mapping[tuple[int, str], int | None], why: str
) -> tuple[RankingContext | None, list[Record]]:
    """The list with its new grades, best first, None if they are all equal; and what was done."""
    passages, records = [], []
    for passage in context.passages:
        grade = regrades.get((number, passage.doc_id))
        if grade is not None and grade != passage.grade:
            what = f"passage relabelled {passage.grade} -> {grade}"
            evidence = {"grade": passage.grade, "regrade": grade}
            records.append(_record(context.query_id, passage.doc_id, what, why, evidence))
            passage = replace(passage, grade=grade)
        passages.append(passage)
    if records and len({passage.grade for passage in passages}) < 2:
        why = "relabelled, all its passages have the same grade"
        return None, [*records, _record(context.query_id, None, "list dropped", why, {})]
    passages.sort(key=lambda passage: -passage.grade)  # stable
    return replace(context, passages=tuple(passages)), records


def _record(
    query_id: str, doc_id: str | None, what: str, why: str, evidence: Mapping[str, Any]
) -> Record:
    return {
        "query_id": query_id,
        "doc_id": doc_id,
        "what": what,
        "why": why,
        "evidence": evidence,
    }
