"""The writer alone, over answers made here."""

import asyncio
import json
from pathlib import Path

import pytest
from serving import small_config

from synrank_jax.generation.answers import Format
from synrank_jax.generation.backend import Answer, Failure, Request, RequestError
from synrank_jax.generation.ledger import Ledger, Query, Row
from synrank_jax.generation.prompt import load_prompt
from synrank_jax.generation.run import Writer
from synrank_jax.generation.validation import Rules


class Scripted:
    """Gives the answers one after the other."""

    width = 1

    def __init__(self, answers: list[Answer | RequestError]) -> None:
        self.answers, self.requests = answers, list[Request]()

    async def check(self) -> bool:
        return True

    async def answer(self, request: Request) -> Answer:
        self.requests.append(request)
        answer = self.answers[len(self.requests) - 1]
        if isinstance(answer, RequestError):
            raise answer
        return answer

    async def close(self) -> None:
        pass


def rows_of(folder: Path, answers: list[Answer | RequestError], attempts: int) -> list[Row]:
    config = small_config(folder, "http://localhost/v1", rules={"attempts": attempts})
    ledger = Ledger(folder / "ledger.sqlite")
    ledger.set_queries([("here", Query("q", "why"))])
    prompt = load_prompt(config, Format.JSON)
    backend = Scripted(answers)
    try:
        asyncio.run(Writer(config, prompt, Rules(config.rules), backend, ledger).write())
        assert len(backend.requests) == len(answers)
        return ledger.answers("q")
    finally:
        ledger.close()


HALF = "\ud800"
HOSTILE = {
    "refusal": (Answer(f"I'm sorry {HALF}"), Failure.REFUSED),
    "marked refusal": (Answer(f"no {HALF}", refusal=True), Failure.REFUSED),
    "key": (Answer(json.dumps({HALF: "x"})), Failure.WRONG_LEVELS),
    "server": (RequestError(Failure.SERVER_ERROR, f"bad {HALF}"), Failure.SERVER_ERROR),
    "nested": (Answer('{"grade_3_passage_1": ' + "[" * 100_000 + "}"), Failure.MALFORMED),
    "escape": (Answer("I'm sorry \x1b[2J"), Failure.REFUSED),
    "control": (Answer("\x00\x1b[2J"), Failure.MALFORMED),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_comes_is_recorded_and_the_next_attempt_made(name: str, tmp_path: Path):
    hostile, failure = HOSTILE[name]
    (first, second) = rows_of(tmp_path, [hostile, Answer("")], attempts=2)
    assert (first.failure, second.failure) == (failure, Failure.MALFORMED)
    assert first.message.isprintable()  # a terminal may get to see it
    if HALF in (hostile.text if isinstance(hostile, Answer) else hostile.message):
        assert "\\ud800" in first.message


def test_a_context_too_long_is_not_tried_again(tmp_path: Path):
    error = RequestError(Failure.CONTEXT_TOO_LONG, "9000 tokens")
    (row,) = rows_of(tmp_path, [error], attempts=4)
    assert (row.failure, row.message) == ("context too long", "9000 tokens")


def test_a_cut_answer_is_malformed_whatever_it_holds(tmp_path: Path):
    (row,) = rows_of(tmp_path, [Answer("{}", cut=True, completion_tokens=7)], attempts=1)
    assert (row.failure, row.message) == ("malformed", "cut at backend.max_tokens 2048")
    assert row.completion_tokens == 7
