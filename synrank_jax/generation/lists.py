"""Ranking contexts as `generate` writes them: one query with its graded passages."""

from dataclasses import dataclass
from typing import Any


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
