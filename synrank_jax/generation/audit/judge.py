"""An LLM as a judge: grades single passages, without seeing the grades or the rest of the list."""

import asyncio
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from synrank_jax.config_generation import LevelConfig
from synrank_jax.errors import UserError
from synrank_jax.generation.audit.agreement import Regraded
from synrank_jax.generation.backend import Backend, Failure, Request, RequestError
from synrank_jax.generation.lists import Passage, RankingContext

_PROMPT = Path(__file__).parent / "judge.yaml"
_PLACE = re.compile(r"\{\{(\w+)\}\}")
_GRADE = re.compile(r"""\bgrade\b["'*]*\s*(?:[:=]|is)\s*["'*]*(\d{1,9})\b""", re.IGNORECASE)
_NUMBER = re.compile(r"\W*(\d{1,9})\W*")


class Judge:
    """Writes the requests and reads the answers.

    Args:
        levels: grades, names and definitions, as the passages were written for.
        structured: whether the backend follows JSON schemas.
    """

    def __init__(self, levels: Sequence[LevelConfig], structured: bool) -> None:
        self._prompt = yaml.safe_load(_PROMPT.read_text("utf-8"))
        self._grades = sorted(level.grade for level in levels)
        ordered = sorted(levels, key=lambda level: -level.grade)
        self._levels = "\n".join(f"{lv.grade} ({lv.name}): {lv.definition}" for lv in ordered)
        grade = {"type": "integer", "enum": self._grades}
        self._schema = {
            "type": "object",
            "properties": {"grade": grade},
            "required": ["grade"],
            "additionalProperties": False,
        }
        self._structured = structured

    def request(self, query: str, passage: Passage) -> Request:
        """The request for one passage; the same passage gives the same request."""
        text = f"{passage.title}\n{passage.text}".strip()
        digest = hashlib.sha256(f"{query}\n{text}".encode()).hexdigest()
        values = {
            "levels": self._levels,
            "query": query,
            "passage": text,
            "marker": digest[:16],
        }
        # One pass: a placeholder within a passage stays what it is.
        messages = tuple(
            {"role": role, "content": _PLACE.sub(lambda m: values[m[1]], self._prompt[role])}
            for role in ("system", "user")
        )
        schema = self._schema if self._structured else None
        return Request(messages, schema, seed=int(digest[-8:], 16) & 0x7FFFFFFF)

    def grade(self, answer: str) -> int | None:
        """The grade that an answer gives: a JSON object, "grade: 2", or a number alone.

        None if there is none, if it is no level, or if there are several.
        """
        try:
            found = json.loads(answer)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict):
            answer = str(found.get("grade"))
        alone = _NUMBER.fullmatch(answer)
        numbers = {int(number) for number in [alone[1]] if alone} if alone else set()
        numbers = numbers or {int(number) for number in _GRADE.findall(answer)}
        return numbers.pop() if len(numbers) == 1 and numbers <= set(self._grades) else None


async def judge_lists(
    sample: Sequence[tuple[int, RankingContext]],
    levels: Sequence[LevelConfig],
    backend: Backend,
    advance: Callable[[], None],
) -> tuple[list[Regraded], Counter[str]]:
    """Grade every passage of the sample again, `backend.width` at a time.

    Args:
        sample: number and list.
        levels: of the judge.
        backend: is closed at the end.
        advance: called after every passage.

    Returns:
        The lists in order, and why passages have no grade.

    Raises:
        UserError: the backend is out of reach, or none of the passages got a grade.
    """
    failures: Counter[str] = Counter()
    grades: list[list[int | None]] = [[None] * len(context.passages) for _, context in sample]
    tasks = ((at, place) for at, row in enumerate(grades) for place in range(len(row)))

    async def work(judge: Judge) -> None:
        for at, place in tasks:  # shared: each worker takes the next
            context = sample[at][1]
            try:
                answer = await backend.answer(judge.request(context.query, context.passages[place]))
            except RequestError as error:
                failures[error.failure] += 1
            else:
                grade = judge.grade(answer.text)
                grades[at][place] = grade
                if answer.refusal:
                    failures[Failure.REFUSED] += 1
                elif grade is None:
                    failures[Failure.MALFORMED] += 1
            advance()

    try:
        judge = Judge(levels, structured=await backend.check())
        async with asyncio.TaskGroup() as group:
            for _ in range(backend.width):
                group.create_task(work(judge))
    except ExceptionGroup as errors:  # of the workers: the first one says what is wrong
        raise errors.exceptions[0] from None
    finally:
        await backend.close()
    if sample and not any(grade is not None for row in grades for grade in row):
        reasons = ", ".join(f"{reason}: {count}" for reason, count in failures.most_common())
        raise UserError(f"--judge: not one passage got a grade ({reasons}); is it the right model?")
    regraded = [
        Regraded(number, context, tuple(row))
        for (number, context), row in zip(sample, grades, strict=True)
    ]
    return regraded, failures
