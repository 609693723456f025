"""Ranking contexts as `generate` writes them: one query with its graded passages."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synrank_jax.errors import UserError


@dataclass(frozen=True)
class Passage:
    """A passage of a list."""

    doc_id: str
    grade: int
    text: str
    title: str = ""

    def full_text(self) -> str:
        """Title and text joined by a space, as `prepare` reads it."""
        return f"{self.title} {self.text}".strip()


@dataclass(frozen=True)
class RankingContext:
    """A query with its graded passages."""

    query_id: str
    query: str
    passages: tuple[Passage, ...]
    origin: dict[str, Any]
    """Where it comes from: prompt_hash, model, seed, attempts, words, difficulty; empty if
    unknown."""

    def counts(self) -> dict[int, int]:
        """Grade -> number of passages."""
        return dict(Counter(passage.grade for passage in self.passages))

    def record(self) -> dict[str, Any]:
        """The line of a lists JSONL file."""
        passages = [
            {"id": p.doc_id, **({"title": p.title} if p.title else {}), "text": p.text}
            | {"grade": p.grade}
            for p in self.passages
        ]
        return {
            "query_id": self.query_id,
            "query": self.query,
            "passages": passages,
            **({"origin": self.origin} if self.origin else {}),
        }


def read_lists(path: Path) -> Iterator[RankingContext]:
    """The lists of a lists JSONL file, one at a time.

    Raises:
        UserError: the file is missing, or a line is not a list.
    """
    line = 0
    try:
        with path.open("rb") as file:
            for line, raw in enumerate(file, start=1):  # noqa: B007 (for the error)
                if raw.strip():
                    yield context_of(_object(json.loads(raw.decode())))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}:{line}: not a list ({error}); a line is "
            '{"query_id": "q1", "query": "...", "passages": [{"id": "d1", "text": "...", '
            '"grade": 3}, ...]}'
        ) from error


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("no object")
    return value


def context_of(record: Mapping[str, Any]) -> RankingContext:
    """A record of a lists JSONL file as a ranking context.

    Raises:
        ValueError: it is none; says what is missing or wrong.
    """
    passages = record.get("passages")
    if not isinstance(passages, list) or not passages:
        raise ValueError("passages: not a list with at least one passage")
    origin = record.get("origin") or {}
    if not isinstance(origin, dict):
        raise ValueError("origin: not an object")
    return RankingContext(
        query_id=_text(record, "query_id", identifier=True),
        query=_text(record, "query"),
        passages=tuple(_passage(number, item) for number, item in enumerate(passages, start=1)),
        origin=origin,
    )


def _passage(number: int, item: Any) -> Passage:
    if not isinstance(item, dict):
        raise ValueError(f"passage {number}: not an object")
    grade = item.get("grade")
    if isinstance(grade, bool) or not isinstance(grade, int) or grade < 0:
        raise ValueError(f"passage {number}: grade {grade!r} is not an integer from 0")
    try:
        return Passage(
            doc_id=_text(item, "id", identifier=True),
            grade=grade,
            text=_text(item, "text"),
            title=_text(item, "title") if item.get("title") is not None else "",
        )
    except ValueError as error:
        raise ValueError(f"passage {number}: {error}") from error


def _text(record: Mapping[str, Any], name: str, identifier: bool = False) -> str:
    value = record.get(name)
    if identifier and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or (identifier and not value):
        raise ValueError(f"{name}: {value!r} is not a text")
    if identifier and any(mark in value for mark in "\t\r\n"):
        raise ValueError(f"{name}: {value!r} has a tab or a line break, which qrels cannot hold")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}: has half of a surrogate pair, which is no text") from error
    return value
