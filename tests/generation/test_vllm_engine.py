"""Calls of vLLM, against stand-ins with the signatures of vLLM 0.33; the engine itself needs GPUs.

Nothing here shows that vLLM works: it shows what it would be asked.
"""

import asyncio
import sys
import types
from dataclasses import dataclass
from typing import Any

import pytest

from synrank_jax.config_generation import BackendConfig
from synrank_jax.errors import UserError
from synrank_jax.generation.backend import Failure, Request, RequestError
from synrank_jax.generation.backends import open_backend

CONFIG = BackendConfig(kind="vllm", model="owner/model", concurrency=8, max_tokens=100)


@dataclass
class StructuredOutputsParams:
    json: str | dict | None = None


class SamplingParams:
    def __init__(self, *, seed=None, temperature, top_p, max_tokens, structured_outputs=None):
        self.seed, self.max_tokens = seed, max_tokens
        self.temperature, self.top_p = temperature, top_p
        self.structured_outputs = structured_outputs


class Tokenizer:
    def apply_chat_template(self, messages, add_generation_prompt, return_dict) -> list[int]:
        assert add_generation_prompt
        assert return_dict is False
        return [0] * sum(len(message["content"].split()) for message in messages)


class LLM:
    calls: list[Any] = []  # noqa: RUF012

    def __init__(
        self,
        model,
        *,
        tensor_parallel_size=1,
        trust_remote_code=False,
        load_format="auto",
        enable_prefix_caching=None,
    ):
        if model != "owner/model":
            raise OSError(f"{model} is not there")
        assert trust_remote_code is False
        assert load_format == "safetensors"
        model_config = types.SimpleNamespace(max_model_len=150)
        self.llm_engine = types.SimpleNamespace(model_config=model_config)

    def get_tokenizer(self) -> Tokenizer:
        return Tokenizer()

    def chat(self, messages, sampling_params=None, use_tqdm=True) -> list[Any]:
        assert messages  # an empty list is one conversation, to vLLM
        self.calls.append((messages, sampling_params))
        return [
            types.SimpleNamespace(
                prompt_token_ids=[0] * 7,
                outputs=[
                    types.SimpleNamespace(
                        text=f"seed {params.seed}",
                        finish_reason="length" if params.seed == 2 else "stop",
                        token_ids=(1, 2, 3),
                    )
                ],
            )
            for params in sampling_params
        ]


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    module, params = types.ModuleType("vllm"), types.ModuleType("vllm.sampling_params")
    module.LLM, module.SamplingParams = LLM, SamplingParams
    params.StructuredOutputsParams = StructuredOutputsParams
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", params)
    LLM.calls = []


def ask(config: BackendConfig, *requests: Request) -> list:
    async def run() -> list:
        backend = open_backend(config)
        assert await backend.check()
        return await asyncio.gather(*map(backend.answer, requests), return_exceptions=True)

    return asyncio.run(run())


def request(seed: int, text: str = "a b c", schema: dict | None = None) -> Request:
    return Request(({"role": "user", "content": text},), schema, seed)


@pytest.mark.usefixtures("vllm")
def test_requests_go_together_with_their_own_seeds_and_schemas():
    schema = {"type": "object"}
    one, two, long = ask(CONFIG, request(1, schema=schema), request(2), request(3, "word " * 51))
    assert (one.text, one.cut, one.prompt_tokens, one.completion_tokens) == ("seed 1", False, 7, 3)
    assert (two.text, two.cut) == ("seed 2", True)
    assert isinstance(long, RequestError)
    assert long.failure == Failure.CONTEXT_TOO_LONG
    ((messages, params),) = LLM.calls
    assert messages == [[{"role": "user", "content": "a b c"}]] * 2
    assert [one.structured_outputs for one in params] == [StructuredOutputsParams(schema), None]
    assert {(one.temperature, one.top_p, one.max_tokens) for one in params} == {(1.0, 0.95, 100)}


@pytest.mark.usefixtures("vllm")
def test_vllm_is_not_called_with_nothing():
    (error,) = ask(CONFIG, request(3, "word " * 51))
    assert "51 tokens of prompt and backend.max_tokens 100 exceed" in str(error)
    assert LLM.calls == []


@pytest.mark.usefixtures("vllm")
def test_a_model_without_a_chat_template_is_told(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_, **__):
        raise ValueError("no template is set")

    monkeypatch.setattr(Tokenizer, "apply_chat_template", refuse)
    with pytest.raises(UserError, match=r"needs a chat template .* \(no template is set\); take"):
        ask(CONFIG, request(1))


@pytest.mark.usefixtures("vllm")
def test_a_model_that_cannot_be_loaded_is_told():
    with pytest.raises(UserError, match=r"backend.model 'x/y': vLLM cannot load it .x/y is not"):
        ask(CONFIG.model_copy(update={"model": "x/y"}), request(1))


def test_without_vllm_the_extra_is_named():
    with pytest.raises(UserError, match=r"pip install 'synrank-jax\[vllm\]'"):
        open_backend(CONFIG)
