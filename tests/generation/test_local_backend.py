"""A language model in this process: real weights files, tokenizer, sampling and grammar."""

import asyncio
import json
from pathlib import Path

import pytest
from tiny_llm import save_tiny_llm

from synrank_jax.config_generation import BackendConfig
from synrank_jax.errors import UserError
from synrank_jax.generation.answers import Format, Slot
from synrank_jax.generation.backend import Answer, Failure, Request, RequestError
from synrank_jax.generation.backends import open_backend
from synrank_jax.generation.local_backend import LocalBackend

SLOTS = [Slot(1, 1), Slot(0, 1)]
SCHEMA = Format.JSON.schema(SLOTS, titles=False)


@pytest.fixture(scope="module")
def tiny_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llm(tmp_path_factory.mktemp("llm"))


def config(folder: Path, **fields) -> BackendConfig:
    values = {"concurrency": 4, "max_tokens": 400, "top_p": 1.0} | fields
    return BackendConfig(kind="transformers", model=str(folder), **values)


def request(seed: int, text: str = "gum bal", schema: dict | None = SCHEMA) -> Request:
    return Request(({"role": "user", "content": text},), schema, seed)


def ask(settings: BackendConfig, *requests: Request) -> list:
    async def run() -> list:
        backend = open_backend(settings)
        assert await backend.check()
        try:
            return await asyncio.gather(*map(backend.answer, requests), return_exceptions=True)
        finally:
            await backend.close()

    return asyncio.run(run())


def test_every_answer_follows_the_schema(tiny_llm: Path):
    answers = ask(config(tiny_llm), *(request(seed) for seed in range(8)))
    whole = [answer for answer in answers if not answer.cut]
    assert len(whole) >= 5
    for answer in whole:
        written = Format.JSON.read(answer.text, SLOTS, titles=False)
        assert len(written) == 2
        assert list(json.loads(answer.text)) == SCHEMA["required"]
        assert answer.completion_tokens > 10
        assert (
            answer.prompt_tokens == len("user : gum bal\nassistant :") - 6
        )  # two words are a token each
    assert len({answer.text for answer in answers}) == 8


def test_without_the_grammar_the_text_is_noise(tiny_llm: Path):
    (answer,) = ask(config(tiny_llm, max_tokens=50), request(1, schema=None))
    assert answer.cut
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(answer.text)


def test_an_answer_does_not_depend_on_its_batch(tiny_llm: Path):
    others = [request(seed, "fer " * length) for seed, length in ((7, 3), (8, 40), (9, 11))]
    (alone,) = ask(config(tiny_llm), request(3))
    together = ask(config(tiny_llm), *others[:2], request(3), others[2])
    assert together[2] == alone
    assert ask(config(tiny_llm), request(4)) != [alone]


def test_temperature_zero_ignores_the_seed(tiny_llm: Path):
    greedy = config(tiny_llm, temperature=0.0, max_tokens=60)
    one, two = ask(greedy, request(1, schema=None), request(2, schema=None))
    assert one == two


def test_a_small_nucleus_leaves_the_most_probable_token(tiny_llm: Path):
    fields = {"max_tokens": 30}
    (nucleus,) = ask(config(tiny_llm, top_p=1e-6, **fields), request(1, schema=None))
    (greedy,) = ask(config(tiny_llm, temperature=0.0, **fields), request(1, schema=None))
    assert nucleus == greedy


def test_a_prompt_that_is_too_long_fails_alone(tiny_llm: Path):
    error, answer = ask(config(tiny_llm), request(0, "gum " * 2000), request(0))
    assert isinstance(error, RequestError)
    assert error.failure == Failure.CONTEXT_TOO_LONG
    assert "backend.max_tokens 400 exceed the model's context of 2048" in error.message
    assert isinstance(answer, Answer)


def test_what_is_no_model_is_told_before_anything_is_written(tmp_path: Path):
    for model in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"backend.model '.*': (not a causal|no such folder)"):
            ask(config(model), request(0))


def test_pickled_weights_are_refused(tiny_llm: Path, tmp_path: Path):
    import torch
    from safetensors.torch import load_file

    for file in tiny_llm.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(load_file(tiny_llm / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        ask(config(tmp_path), request(0))


class Recorder:
    """An engine that records its batches and fails on demand."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def load(self) -> bool:
        return False

    def generate(self, requests) -> list:
        self.batches.append([request.seed for request in requests])
        if any(request.seed == 13 for request in requests):
            raise RuntimeError("the engine broke")
        return [Answer(str(request.seed)) for request in requests]


def test_waiting_requests_are_written_together():
    async def run() -> list:
        backend = LocalBackend(engine, 4)
        assert not await backend.check()
        answers = await asyncio.gather(*(backend.answer(request(seed)) for seed in range(10)))
        await backend.close()
        return answers

    engine = Recorder()
    assert [answer.text for answer in asyncio.run(run())] == [str(seed) for seed in range(10)]
    assert engine.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_broken_engine_breaks_its_batch_and_no_other():
    async def run() -> list:
        backend = LocalBackend(Recorder(), 2)
        seeds = (1, 13, 2, 3)
        asked = (backend.answer(request(seed)) for seed in seeds)
        return await asyncio.gather(*asked, return_exceptions=True)

    broken, same, *whole = asyncio.run(run())
    assert isinstance(broken, RuntimeError)
    assert isinstance(same, RuntimeError)
    assert [answer.text for answer in whole] == ["2", "3"]
