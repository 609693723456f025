"""Ranking contexts as `generate` writes them: one query with its graded passages."""

import json
from collections import Counter
from collections.abc import Iterator
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
    """A query with its graded passages, highest grade first."""

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
                    yield _context(json.loads(raw.decode()))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}:{line}: not a list ({type(error).__name__}: {error}); a line is "
            '{"query_id": "q1", "query": "...", "passages": [{"id": "d1", "text": "...", '
            '"grade": 3}, ...]}'
        ) from error


def _context(record: dict[str, Any]) -> RankingContext:
    passages = [
        Passage(
            str(passage["id"]),
            _grade(passage["grade"]),
            _text(passage["text"]),
            _text(passage.get("title") or ""),
        )
        for passage in record["passages"]
    ]
    return RankingContext(
        str(record["query_id"]),
        _text(record["query"]),
        tuple(sorted(passages, key=lambda passage: -passage.grade)),
        record.get("origin") or {},
    )


def _grade(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"grade {value!r} is not 0, 1, 2, ...")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    value.encode()
    return value
