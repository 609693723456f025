"""Prompts: files with named placeholders, filled for a query, its level and its draws.

Everything that decides what the model is asked, but for the query, is in `Prompt.hash`.
"""

import difflib
import hashlib
import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synrank_jax.config_file import load_section
from synrank_jax.config_generation import BackendConfig, GenerationConfig, LevelConfig, PromptConfig
from synrank_jax.config_section import Section
from synrank_jax.errors import UserError
from synrank_jax.generation.answers import Format, Slot, Written, slots_of
from synrank_jax.generation.lists import RankingContext, read_lists

BUNDLED = "bundled:"
FOLDER = Path(__file__).parent / "prompts"

REQUIRED = ("query", "levels", "format")
# The last two are numbers, all others texts.
PLACEHOLDERS = (*REQUIRED, "examples", "language", "difficulty", "min_words", "max_words")
EXAMPLES_SAID = (
    "For other queries, to show what the levels mean (passages of another length than asked for):\n"
)


class PromptFile(Section):
    """The content of a prompt file."""

    description: str
    """What the prompt is for, in one line."""
    titles: bool = False
    """Whether a passage has a title of its own."""
    examples: str | None = None
    """Lists JSONL file of in-context examples, beside the prompt file."""
    system: str
    """The system message. It may use the placeholders, too."""
    user: str
    """The user message."""


@dataclass(frozen=True)
class Draws:
    """What is drawn for a query, by seed and query id alone."""

    words: tuple[int, int]
    difficulty: str
    examples: tuple[RankingContext, ...]


def draw(seed: int, query_id: str, what: str) -> int:
    """An integer from 0 to 2^62 - 1 that depends on the three alone (SHA-256)."""
    digest = hashlib.sha256(json.dumps([seed, query_id, what]).encode()).digest()
    return int.from_bytes(digest[:8]) >> 2


class Prompt:
    """A prompt file with the settings of a run.

    Attributes:
        hash: SHA-256, in hexadecimal, of the prompt file, the examples, the levels, the prompt
            section, all of them as they are rendered, and the sampling settings.
    """

    def __init__(
        self,
        file: PromptFile,
        config: GenerationConfig,
        examples: Sequence[RankingContext],
        output_format: Format,
    ) -> None:
        """Put together what `load_prompt` has read and checked."""
        self.titles = file.titles
        self.format = output_format
        self.levels = sorted(config.levels, key=lambda level: -level.grade)
        self.examples = tuple(examples)
        self._file, self._prompt, self._seed = file, config.prompt, config.seed
        sampling = BackendConfig.model_fields.keys() & {"temperature", "top_p", "max_tokens"}
        drawn = Draws(self._prompt.words[0], self._prompt.difficulties[0], self.examples)
        self.hash = _hash(
            {
                "file": file.model_dump(mode="json", exclude={"description"}),
                "levels": [level.model_dump(mode="json") for level in self.levels],
                "prompt": config.prompt.model_dump(mode="json", exclude={"template", "examples"}),
                "examples": [example.record() for example in self.examples],
                "rendered": self.messages("", drawn, self.levels),
                "sampling": config.backend.model_dump(mode="json", include=sampling),
            }
        )

    def draws(self, query_id: str, query: str) -> Draws:
        """Length, reader and examples of a query; never the query itself as an example."""

        def drawn(what: str) -> int:
            return draw(self._seed, query_id, what)

        words, difficulties = self._prompt.words, self._prompt.difficulties
        others = [
            example
            for example in self.examples
            if example.query_id != query_id and example.query != query
        ]
        others.sort(key=lambda example: drawn(f"example {example.query_id}"))
        return Draws(
            words=words[drawn("words") % len(words)],
            difficulty=difficulties[drawn("difficulty") % len(difficulties)],
            examples=tuple(others[: self._prompt.examples_per_query]),
        )

    def messages(
        self, query: str, draws: Draws, asked: Sequence[LevelConfig]
    ) -> tuple[dict[str, str], ...]:
        """The chat messages that ask for the passages of the levels `asked`."""
        low, high = draws.words
        values = {
            "query": query,
            "levels": "\n".join(_level_line(level) for level in self.levels),
            "format": self.format.instruction(slots_of(asked), self.titles),
            "examples": self._shown(draws.examples, asked),
            "language": self._prompt.language,
            "difficulty": draws.difficulty,
            "min_words": low,
            "max_words": high,
        }
        return (
            {"role": "system", "content": self._file.system.format_map(values).strip()},
            {"role": "user", "content": self._file.user.format_map(values).strip()},
        )

    def schema(self, slots: Sequence[Slot]) -> dict[str, Any] | None:
        """What the server is to enforce; None for marked lines."""
        return self.format.schema(slots, self.titles) if self.format is Format.JSON else None

    def read(self, text: str, slots: Sequence[Slot]) -> list[Written]:
        """The passages of an answer; see `Format.read`."""
        return self.format.read(text, slots, self.titles)

    def _shown(self, examples: Sequence[RankingContext], asked: Sequence[LevelConfig]) -> str:
        grades = {level.grade for level in asked}
        blocks = [EXAMPLES_SAID] if examples else []
        for number, example in enumerate(examples, start=1):
            passages = [passage for passage in example.passages if passage.grade in grades]
            passages.sort(key=lambda passage: -passage.grade)
            answer = self.format.written(passages, self.titles)
            blocks.append(f"Example {number}\nQuery: {example.query}\nAnswer:\n{answer}\n")
        return "\n".join(blocks)


def load_prompt(config: GenerationConfig, output_format: Format) -> Prompt:
    """Read the prompt file and its examples.

    Raises:
        UserError: a file is missing or malformed, a placeholder is missing or unknown, or the
            examples do not have the levels of the configuration, or no titles where the prompt
            asks for them.
    """
    path = _template_path(config.prompt.template)
    file = load_section(PromptFile, path)
    _check_placeholders(file, path)
    examples = _examples(config, file, path)
    return Prompt(file, config, examples, output_format)


def _template_path(name: str) -> Path:
    if not name.startswith(BUNDLED):
        path = Path(name).expanduser()
        if not path.is_file():
            raise UserError(f"prompt.template {name!r}: no such file")
        return path
    path = FOLDER / f"{name.removeprefix(BUNDLED)}.yaml"
    if not path.is_file():
        there = ", ".join(sorted(f"{BUNDLED}{file.stem}" for file in FOLDER.glob("*.yaml")))
        raise UserError(f"prompt.template {name!r}: no such prompt; there are {there}")
    return path


def _check_placeholders(file: PromptFile, path: Path) -> None:
    used: set[str] = set()
    for key in ("system", "user"):
        try:
            fields = [
                (name, spec, conversion)
                for _, name, spec, conversion in string.Formatter().parse(getattr(file, key))
                if name is not None
            ]
        except ValueError as error:
            raise UserError(f"{path}: {key}: {error}; write a brace of the text twice") from error
        for name, spec, conversion in fields:
            if name not in PLACEHOLDERS or spec or conversion:
                near = difflib.get_close_matches(name, PLACEHOLDERS, n=1)
                hint = f"did you mean {{{near[0]}}}? " if near else ""
                written = name + (f"!{conversion}" if conversion else "") + (spec and f":{spec}")
                known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
                raise UserError(
                    f"{path}: {key}: no placeholder {{{written}}}; {hint}there are {known}, and a "
                    "brace of the text is written twice"
                )
            used.add(name)
    for name in REQUIRED:
        if name not in used:
            raise UserError(f"{path}: the placeholder {{{name}}} is missing; put it into user")


def _examples(config: GenerationConfig, file: PromptFile, path: Path) -> list[RankingContext]:
    section: PromptConfig = config.prompt
    if section.examples_per_query == 0:
        return []
    if section.examples is not None:
        place = Path(section.examples).expanduser()
    elif file.examples is not None:
        place = path.parent / file.examples
    else:
        raise UserError(
            f"prompt.examples_per_query {section.examples_per_query}: {path} names no examples; "
            "give prompt.examples, or set prompt.examples_per_query to 0"
        )
    if "{examples}" not in file.system + file.user:
        raise UserError(
            f"{path}: the placeholder {{examples}} is missing; put it into user, or set "
            "prompt.examples_per_query to 0"
        )
    examples = list(read_lists(place))
    if len(examples) <= section.examples_per_query:
        raise UserError(
            f"{place}: has {len(examples)} lists; prompt.examples_per_query "
            f"{section.examples_per_query} needs more than that, since a query is no example of "
            "its own"
        )
    want = {level.grade: level.passages for level in config.levels}
    for example in examples:
        have = example.counts()
        if have != want:
            raise UserError(
                f"{place}: list {example.query_id!r} has {_counts(have)}, the levels ask for "
                f"{_counts(want)}; give prompt.examples of these levels, or set "
                "prompt.examples_per_query to 0"
            )
        if file.titles and not all(passage.title for passage in example.passages):
            raise UserError(
                f"{place}: list {example.query_id!r} has passages without a title, but {path} asks "
                "for titles; give examples with titles, or set prompt.examples_per_query to 0"
            )
    return examples


def _counts(counts: Mapping[int, int]) -> str:
    return ", ".join(f"{count} of grade {grade}" for grade, count in sorted(counts.items()))


def _level_line(level: LevelConfig) -> str:
    plural = "s" if level.passages > 1 else ""
    return (
        f"- grade {level.grade}, {level.name}: {level.definition} "
        f"({level.passages} passage{plural})"
    )


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
