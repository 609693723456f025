"""What an audit finds in lists: one record per finding, which filters act on."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import IO, Any

EXCERPT = 1000
"""Characters of a text that a finding quotes."""
SHOWN = 5
"""Findings of a kind that the report shows."""


class Kind(StrEnum):
    """What is wrong with a list; `--drop` takes these names."""

    SCHEMA = "schema"
    LENGTH = "length"
    TASK_TALK = "task-talk"
    QUERY_COPY = "query-copy"
    EXAMPLE_COPY = "example-copy"
    DUPLICATE = "duplicate"
    CROSS_DUPLICATE = "cross-duplicate"
    CONTAMINATION = "contamination"
    EVALUATION_QUERY = "evaluation-query"
    JUDGE = "judge"
    ENCODER = "encoder"


MEANING = {
    Kind.SCHEMA: "not a list to train on: something is missing, empty, written twice, or the "
    "grades are not those of the other lists",
    Kind.LENGTH: "a passage is far too short or too long",
    Kind.TASK_TALK: "a passage talks about the task (its level, the request) instead of a subject",
    Kind.QUERY_COPY: "a passage contains the query word for word",
    Kind.EXAMPLE_COPY: "a passage copies one of the prompt's examples",
    Kind.DUPLICATE: "two passages of the list are the same or nearly so",
    Kind.CROSS_DUPLICATE: "a passage is the same, or nearly so, as one of an earlier list",
    Kind.CONTAMINATION: "a passage retells a document or a query of an evaluation collection",
    Kind.EVALUATION_QUERY: "the query is one of an evaluation collection, or nearly so",
    Kind.JUDGE: "the judge ranks the list rather the other way round (Kendall tau below 0)",
    Kind.ENCODER: "the encoder ranks the list rather the other way round (Kendall tau below 0)",
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with one list."""

    kind: Kind
    number: int
    """Of the list: 0 is the first of the file."""
    query_id: str
    doc_id: str | None
    """The passage; None: the list as a whole."""
    why: str
    evidence: dict[str, Any] = field(default_factory=dict)
    """Numbers, ids and quoted texts."""

    def line(self) -> bytes:
        """The line of findings.jsonl."""
        return f"{json.dumps(asdict(self), ensure_ascii=False)}\n".encode()


def finding_of(record: dict[str, Any]) -> Finding:
    """A line of findings.jsonl as it was."""
    return Finding(**record | {"kind": Kind(record["kind"])})


def excerpt(text: str) -> str:
    """The beginning of a text."""
    return text if len(text) <= EXCERPT else f"{text[:EXCERPT]} ..."


class Collector:
    """Writes findings as they come, counts them, and keeps a few of each kind."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.count: Counter[Kind] = Counter()
        self.lists: dict[Kind, set[int]] = {kind: set() for kind in Kind}
        """Numbers of the lists that have a finding."""
        self.examples: dict[Kind, list[Finding]] = {kind: [] for kind in Kind}

    def add(self, findings: Iterable[Finding]) -> None:
        """Take findings, in order."""
        for finding in findings:
            self._file.write(finding.line())
            self.count[finding.kind] += 1
            self.lists[finding.kind].add(finding.number)
            if len(self.examples[finding.kind]) < SHOWN:
                self.examples[finding.kind].append(finding)
