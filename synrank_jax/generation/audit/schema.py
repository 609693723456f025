"""A list on its own: is it whole, of sensible length, and about its subject?"""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from synrank_jax.config_generation import RulesConfig
from synrank_jax.generation.audit.findings import Finding, Kind, excerpt
from synrank_jax.generation.lists import Passage, RankingContext

FEWEST_QUERY_WORDS = 4
"""A shorter query may occur in a passage by itself."""
COMMON_PATTERN = 0.9
"""Share of lists with the same number of passages per grade, from which others are exceptions."""
# At the start of a passage: the model speaks to the user or names the level it writes for. Narrow
# enough for "Of course, no wing ..." and "Grade 3 tumours ..." to pass.
_TASK_TALK = re.compile(
    r"\W*(?:(?:sure|certainly|of course|absolutely)(?:!|[,.:] (?:here(?:'s| is| are)|i'll|i can))"
    r"|here(?:'s| is| are) (?:a|an|the|your|some) (?:\w+ ){0,3}passages?\b"
    r"|(?:i'm|i am) sorry,? but (?:i|as)\b"
    r"|i(?: cannot| can't|'m unable to| am unable to) (?:help|assist|provide|write|create|fulfill)"
    r"|as an? (?:ai|large language|language) (?:assistant|model|language)"
    r"|(?:passage|document|text) (?:\d+|[a-d])\s*[:.)\]*]"
    r"|(?:relevance|grade|level|score)\W{0,3}\d\s*[:.)\]*]"
    r"|(?:(?:perfectly|highly|partially|somewhat|fully) )?(?:ir)?relevant(?: passage)?\s*[:.)\]*])",
    re.IGNORECASE,
)

Pattern = tuple[tuple[int, int], ...]


def pattern(context: RankingContext) -> Pattern:
    """Number of passages per grade, highest first."""
    return tuple(sorted(Counter(p.grade for p in context.passages).items(), reverse=True))


def common_pattern(patterns: Counter[Pattern]) -> Pattern | None:
    """The pattern of nearly all lists; None if there is none."""
    best, count = max(patterns.items(), key=lambda item: item[1], default=((), 0))
    return best if count >= COMMON_PATTERN * patterns.total() and count else None


def shown(counts: Pattern) -> str:
    """A pattern in words."""
    return ", ".join(f"{count} of grade {grade}" for grade, count in counts)


def schema_findings(number: int, context: RankingContext) -> Iterator[Finding]:
    """What is missing, empty or written twice."""

    def found(why: str, doc_id: str | None = None) -> Finding:
        return Finding(Kind.SCHEMA, number, context.query_id, doc_id, why)

    if not context.query.strip():
        yield found("the query is empty")
    doc_ids = Counter(passage.doc_id for passage in context.passages)
    for doc_id, count in doc_ids.items():
        if count > 1:
            yield found(f"the id stands {count} times in the list", doc_id)
    if len({passage.grade for passage in context.passages}) < 2:
        yield found("all passages have the same grade: there is nothing to rank")
    for passage in context.passages:
        if not passage.text.strip():
            yield found("the passage is empty", passage.doc_id)


def text_findings(
    number: int, context: RankingContext, passage_words: list[list[str]], query_words: list[str]
) -> Iterator[Finding]:
    """Passages of a wrong length, that talk about the task, or that contain the query."""
    rules = RulesConfig()
    needle = f" {' '.join(query_words)} "
    for passage, text in zip(context.passages, passage_words, strict=True):

        def found(kind: Kind, why: str, passage: Passage = passage, **evidence: Any) -> Finding:
            quoted = {**evidence, "text": excerpt(passage.full_text())}
            return Finding(kind, number, context.query_id, passage.doc_id, why, quoted)

        if text and not rules.min_words <= len(text) <= rules.max_words:
            why = f"{len(text)} words; {rules.min_words} to {rules.max_words} are expected"
            yield found(Kind.LENGTH, why, words=len(text))
        if talk := _task_talk(passage.title) or _task_talk(passage.text):
            yield found(Kind.TASK_TALK, f"begins with {talk!r}")
        long_enough = len(query_words) >= FEWEST_QUERY_WORDS or text == query_words
        if text and query_words and long_enough and needle in f" {' '.join(text)} ":
            yield found(Kind.QUERY_COPY, "contains the query word for word", query=context.query)


def _task_talk(text: str) -> str:
    found = _TASK_TALK.match(text[:200].replace("\u2019", "'"))
    return found.group().strip() if found else ""
