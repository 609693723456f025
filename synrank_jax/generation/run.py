"""The run: every unfinished query gets its answers, as many at once as the backend takes.

What is asked for a query depends on the seed, the query and the failures before, and on nothing
else: neither on how many queries are under way nor on how often the run was stopped.
"""

import asyncio
import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from synrank_jax.config_generation import GenerationConfig, LevelConfig
from synrank_jax.errors import UserError
from synrank_jax.generation.answers import Slot, UnreadableError, Written, slots_of
from synrank_jax.generation.backend import Answer, Backend, Failure, Request, RequestError
from synrank_jax.generation.ledger import FINAL, Ledger, Query, Row
from synrank_jax.generation.lists import Passage, RankingContext
from synrank_jax.generation.prompt import Prompt, draw
from synrank_jax.generation.validation import Rules

FLUSH_S = 0.1
SIGNALS = (signal.SIGINT, signal.SIGTERM)
# So many failures without one valid list: it is the server, the prompt or the rules.
HOPELESS = 50


@dataclass
class Counts:
    """What this process has done, for the progress bar."""

    valid: int = 0
    failed: int = 0
    answers: int = 0
    completion_tokens: int = 0
    stopping: bool = False
    """Whether a signal came."""


class Writer:
    """Writes the lists of a run into its ledger."""

    def __init__(
        self,
        config: GenerationConfig,
        prompt: Prompt,
        rules: Rules,
        backend: Backend,
        ledger: Ledger,
        on_progress: Callable[[Counts], None] = lambda counts: None,
    ) -> None:
        """`on_progress` is called about ten times a second."""
        self._config, self._prompt, self._rules = config, prompt, rules
        self._backend, self._ledger, self._on_progress = backend, ledger, on_progress
        self._parts, self._width = parts_of(config), backend.width
        self._counts = Counts()
        self._hopeful = ledger.any_valid()
        self.stop_signal: int | None = None
        """The signal that ended the run early."""

    async def write(self) -> None:
        """Work until every query is done or given up, or a signal comes.

        The first SIGINT or SIGTERM lets answers that are under way arrive, the second does not.

        Raises:
            UserError: the backend is lost, or nothing but failures comes from it.
        """
        queries = self._ledger.unfinished(len(self._parts))
        loop, workers = asyncio.get_running_loop(), list[asyncio.Task[None]]()

        def on_signal(number: int) -> None:
            if self._counts.stopping:
                for worker in workers:
                    worker.cancel()
            self._counts.stopping, self.stop_signal = True, number

        for number in SIGNALS:
            loop.add_signal_handler(number, on_signal, number)
        try:
            async with asyncio.TaskGroup() as tasks:
                recorder = tasks.create_task(self._record())
                workers += [tasks.create_task(self._work(queries)) for _ in range(self._width)]
                await asyncio.wait(workers)
                recorder.cancel()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the others follow from it, or say the same
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)
            self._ledger.flush()
            self._on_progress(self._counts)

    async def _work(self, queries: Iterator[Query]) -> None:
        for query in queries:
            if self._counts.stopping:
                return
            if await self._list(query):
                self._counts.valid += 1
            elif not self._counts.stopping:
                self._counts.failed += 1

    async def _record(self) -> None:
        while True:
            self._ledger.flush()
            self._on_progress(self._counts)
            await asyncio.sleep(FLUSH_S)

    async def _list(self, query: Query) -> bool:
        """Whether the query has a valid answer for every part in the end."""
        rows = self._ledger.answers(query.query_id)
        accepted: list[str] = []
        for number, levels in enumerate(self._parts):
            of_part = [row for row in rows if row.part == number]
            passages = next((row.passages for row in of_part if not row.failure), None)
            if passages is None:
                failed = len(of_part)
                if any(row.failure == FINAL for row in of_part):
                    return False
                passages = await self._part(query, number, levels, failed, accepted)
                if passages is None:
                    return False
            accepted += [text for _, text in json.loads(passages)]
        return True

    async def _part(
        self, query: Query, part: int, levels: Sequence[LevelConfig], failed: int, before: list[str]
    ) -> str | None:
        """The valid answer to a part, recorded like the invalid ones before it; None if none is."""
        draws = self._prompt.draws(query.query_id, query.query)
        messages = self._prompt.messages(query.query, draws, levels)
        slots = slots_of(levels)
        schema = self._prompt.schema(slots)
        examples = [p.text for example in draws.examples for p in example.passages]
        for attempt in range(failed, self._config.rules.attempts):
            seed = draw(self._config.seed, query.query_id, f"part {part} attempt {attempt}")
            answer, failure, message, passages = Answer(""), None, None, None
            try:
                answer = await self._backend.answer(Request(messages, schema, seed % 2**31))
                written = self._read(answer, query, slots, before, examples)
                passages = json.dumps(written, ensure_ascii=False)
            except (RequestError, UnreadableError) as error:
                failure, message = error.failure, _printable(error.message)
            self._ledger.add(
                Row(
                    query.query_id,
                    part,
                    attempt,
                    failure,
                    message,
                    passages,
                    answer.prompt_tokens,
                    answer.completion_tokens,
                    time.time(),
                )
            )
            self._count(answer, failure, message)
            if passages is not None:
                return passages
            if failure == FINAL or self._counts.stopping:
                return None
        return None

    def _read(
        self,
        answer: Answer,
        query: Query,
        slots: Sequence[Slot],
        before: Sequence[str],
        examples: Sequence[str],
    ) -> list[Written]:
        if answer.refusal:
            raise UnreadableError(Failure.REFUSED, answer.text[:200])
        if answer.cut:
            most = self._config.backend.max_tokens
            raise UnreadableError(Failure.MALFORMED, f"cut at backend.max_tokens {most}")
        written = self._prompt.read(answer.text, slots)
        self._rules.check(query.query, slots, written, before, examples)
        return written

    def _count(self, answer: Answer, failure: str | None, message: str | None) -> None:
        self._counts.answers += 1
        self._counts.completion_tokens += answer.completion_tokens
        if failure is None:
            self._hopeful = True
        elif not self._hopeful and self._counts.answers >= HOPELESS:
            raise UserError(
                f"none of the first {self._counts.answers} answers is valid; the last one: "
                f"{failure} ({message}). Look at the prompt, rules, backend.max_tokens, or set "
                "backend.structured to delimiters if the server ignores schemas; `--status` counts "
                "the failures"
            )


def _printable(text: str) -> str:
    """A text that a terminal and UTF-8 can take, whatever a model or server has said."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def parts_of(config: GenerationConfig) -> list[list[LevelConfig]]:
    """The levels that each call asks for, highest first."""
    levels = sorted(config.levels, key=lambda level: -level.grade)
    return [levels] if config.prompt.mode == "list" else [[level] for level in levels]


def contexts(ledger: Ledger, config: GenerationConfig, prompt: Prompt) -> Iterator[RankingContext]:
    """The valid lists, in the order of the queries."""
    parts = parts_of(config)
    for query, rows in ledger.valid(len(parts)):
        passages = [
            Passage(f"{query.query_id}_l_{slot.grade}_d_{slot.number - 1}", slot.grade, text, title)
            for levels, row in zip(parts, rows, strict=True)
            for slot, (title, text) in zip(
                slots_of(levels), json.loads(row.passages or "[]"), strict=True
            )
        ]
        draws = prompt.draws(query.query_id, query.query)
        origin = {
            "prompt_hash": prompt.hash,
            "model": config.backend.model,
            "seed": config.seed,
            "attempts": [row.attempt + 1 for row in rows],
            "words": list(draws.words),
            "difficulty": draws.difficulty,
            "examples": [example.query_id for example in draws.examples],
        }
        yield RankingContext(query.query_id, query.query, tuple(passages), origin)
