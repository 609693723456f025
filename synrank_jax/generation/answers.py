"""The two answer formats: JSON under a schema, and marked lines. Written for the prompt, read back.

An answer holds one passage for each slot asked for, highest grade first. Reading is lenient about
what surrounds the answer (code fences, a sentence before it), and strict about the slots.
"""

import json
import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from synrank_jax.config_generation import LevelConfig
from synrank_jax.generation.backend import Failure
from synrank_jax.generation.lists import Passage

MARK = re.compile(r"^=== grade (\d+), passage (\d+) ===[ \t]*$", re.MULTILINE)
END = re.compile(r"^=== end ===[ \t]*$", re.MULTILINE)
REFUSAL = re.compile(
    r"^\W*(i'?m sorry|i am sorry|sorry,|i can'?t|i cannot|i'?m unable|i am unable|i won'?t|"
    r"as an ai\b|unfortunately, i)",
    re.IGNORECASE,
)


class Slot(NamedTuple):
    """A passage to be written: of which grade, and which one of that grade, from 1."""

    grade: int
    number: int


class UnreadableError(Exception):
    """An answer without the passages asked for: its failure class, and what is wrong."""

    def __init__(self, failure: Failure, message: str) -> None:
        """Both are kept."""
        super().__init__(message)
        self.failure, self.message = failure, message


class Written(NamedTuple):
    """Title (may be empty) and text of a passage, as the model wrote them."""

    title: str
    text: str


def slots_of(levels: Sequence[LevelConfig]) -> list[Slot]:
    """The slots of the levels, highest grade first."""
    ordered = sorted(levels, key=lambda level: -level.grade)
    return [
        Slot(level.grade, number) for level in ordered for number in range(1, level.passages + 1)
    ]


class Format(StrEnum):
    """How an answer tells its passages apart."""

    JSON = "json_schema"
    DELIMITERS = "delimiters"

    def instruction(self, slots: Sequence[Slot], titles: bool) -> str:
        """What the prompt says of the format."""
        title = "a title on its first line, then " if titles else ""
        if self is Format.DELIMITERS:
            shape = "\n".join(f"{_mark(slot)}\n({title}the passage)" for slot in slots)
            return (
                "Write exactly the following, with a line of equals signs before every passage as "
                f"shown, and nothing else:\n{shape}\n=== end ==="
            )
        keys = "\n".join(f'- "{key}"' for key in self.schema(slots, titles)["properties"])
        return (
            "Answer with one JSON object and nothing else. It has exactly these keys, in this "
            f"order, each with a string:\n{keys}"
        )

    def schema(self, slots: Sequence[Slot], titles: bool) -> dict[str, Any]:
        """JSON schema of an answer: flat, a string for each slot, which every server can follow."""
        keys = [key for slot in slots for key in _keys(slot, titles)]
        return {
            "type": "object",
            "properties": {key: {"type": "string"} for key in keys},
            "required": keys,
            "additionalProperties": False,
        }

    def written(self, passages: Sequence[Passage], titles: bool) -> str:
        """Passages as an answer, for the examples of a prompt."""
        counts: dict[int, int] = {}
        blocks: list[str] = []
        record: dict[str, str] = {}
        for passage in passages:
            counts[passage.grade] = counts.get(passage.grade, 0) + 1
            slot = Slot(passage.grade, counts[passage.grade])
            lines = [passage.title, passage.text] if titles else [passage.text]
            blocks.append("\n".join([_mark(slot), *lines]))
            record |= dict(zip(_keys(slot, titles), lines, strict=True))
        if self is Format.DELIMITERS:
            return "\n".join([*blocks, "=== end ==="])
        return json.dumps(record, ensure_ascii=False, indent=1)

    def read(self, text: str, slots: Sequence[Slot], titles: bool) -> list[Written]:
        """The passages of an answer, in the order of `slots`.

        Raises:
            UnreadableError: a refusal, an answer in another format, or one with other slots.
        """
        read = _read_json if self is Format.JSON else _read_marked
        try:
            found = read(text, titles)
        except (ValueError, RecursionError) as error:
            if REFUSAL.match(text):
                raise UnreadableError(Failure.REFUSED, text.strip()[:200]) from error
            raise UnreadableError(Failure.MALFORMED, f"{error}: {text.strip()[:200]!r}") from error
        wrong = [name for name in found if name not in set(map(_key, slots))]
        missing = [_key(slot) for slot in slots if _key(slot) not in found]
        empty = [name for name, passage in found.items() if not passage.text]
        if wrong or missing or empty:
            said = [
                f"{what} {', '.join(names)}"
                for what, names in (("missing", missing), ("not asked", wrong), ("empty", empty))
                if names
            ]
            raise UnreadableError(Failure.WRONG_LEVELS, "; ".join(said)[:300])
        return [found[_key(slot)] for slot in slots]


def _mark(slot: Slot) -> str:
    return f"=== grade {slot.grade}, passage {slot.number} ==="


def _key(slot: Slot) -> str:
    return f"grade_{slot.grade}_passage_{slot.number}"


def _keys(slot: Slot, titles: bool) -> list[str]:
    return [f"{_key(slot)}_title", _key(slot)] if titles else [_key(slot)]


def _read_json(text: str, titles: bool) -> dict[str, Written]:
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        raise ValueError("no JSON object")
    # Not strict: many models write line breaks into strings as they are.
    record = json.loads(text[start : end + 1], object_pairs_hook=_no_repeats, strict=False)
    record = {str(key): _string(value) for key, value in record.items()}
    ends = [key for key in record if key.endswith("_title")] if titles else []
    found = {
        key: Written(record.get(f"{key}_title", ""), value)
        for key, value in record.items()
        if key not in ends
    }
    if without := [key for key in found if titles and not found[key].title]:
        raise ValueError(f"no title for {without[0]}")
    return found


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(record := dict(pairs)) < len(pairs):
        raise ValueError("a key is written twice")
    return record


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"not a string: {value!r}"[:100])
    value.encode()  # UTF-8 cannot hold half a surrogate pair: UnicodeEncodeError, a ValueError
    return value.strip()


def _read_marked(text: str, titles: bool) -> dict[str, Written]:
    if not (end := END.search(text)):
        raise ValueError("no line '=== end ==='")
    parts = MARK.split(text[: end.start()])
    if len(parts) == 1:
        raise ValueError("no line '=== grade ..., passage ... ==='")
    found: dict[str, Written] = {}
    for grade, number, body in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        key, title, body = _key(Slot(int(grade), int(number))), "", _string(body)
        if titles:
            title, _, body = (part.strip() for part in body.partition("\n"))
        if key in found:
            raise ValueError(f"{key} is written twice")
        found[key] = Written(title, body)
    return found
