"""A language model in this process: real weights files, tokenizer, sampling and grammar."""

import asyncio
import json
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest

from synrank_jax.config_generation import BackendConfig
from synrank_jax.errors import UserError
from synrank_jax.generation.answers import Format, Slot
from synrank_jax.generation.backend import Answer, Failure, Request, RequestError
from synrank_jax.generation.backends import open_backend
from synrank_jax.generation.transformers_engine import Sampler

SLOTS = [Slot(1, 1), Slot(0, 1)]
SCHEMA = Format.JSON.schema(SLOTS, titles=False)


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


def test_tokens_are_drawn_as_often_as_temperature_and_nucleus_say():
    import torch

    draws, temperature = 4000, 0.5
    settings = config(Path("none"), temperature=temperature, top_p=0.9)
    sampler = Sampler([None] * draws, range(draws), settings, [0])
    logits = torch.tensor([0.0, 1.0, 1.5, -1.0, 1.2])
    # At half the temperature weights are squared: 1, e^2, e^3, e^-2, e^2.4. The first and the
    # fourth are beyond the 90 % that the others have.
    weights = np.exp([-np.inf, 2.0, 3.0, -np.inf, 2.4])
    expected = weights / weights.sum()
    drawn = sampler(torch.zeros(draws, 1, dtype=torch.long), logits.repeat(draws, 1)).argmax(-1)
    shares = np.bincount(drawn.numpy(), minlength=5) / draws
    sigma = np.sqrt(expected * (1 - expected) / draws)
    assert np.all(np.abs(shares - expected) <= 3 * sigma)


def test_a_prompt_that_is_too_long_fails_alone(tiny_llm: Path):
    error, answer = ask(config(tiny_llm), request(0, "gum " * 4000), request(0))
    assert isinstance(error, RequestError)
    assert error.failure == Failure.CONTEXT_TOO_LONG
    assert "backend.max_tokens 400 exceed the model's context of 4096" in error.message
    assert isinstance(answer, Answer)


def without(model: Path, folder: Path, *names: str) -> Path:
    """A copy of a model, without some of its files."""
    folder.mkdir()
    for file in model.iterdir():
        if file.name not in names:
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def edit(folder: Path, name: str, **values) -> None:
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("missing", ["config", "tokenizer", "weights", "everything", "folder"])
def test_what_is_no_model_is_told_before_anything_is_written(
    tiny_llm: Path, tmp_path: Path, missing: str
):
    model = tmp_path / "model"
    match missing:
        case "config":
            without(tiny_llm, model, "config.json")
        case "tokenizer":
            without(tiny_llm, model, "tokenizer.json", "tokenizer_config.json")
        case "weights":
            file = without(tiny_llm, model) / "model.safetensors"
            file.write_bytes(file.read_bytes()[:1000])
        case "everything":
            model.mkdir()
    with pytest.raises(UserError, match=r"backend.model '.*model': (not a causal|no such folder)"):
        ask(config(model), request(0))


def test_pickled_weights_are_refused(tiny_llm: Path, tmp_path: Path):
    import torch
    from safetensors.torch import load_file

    model = without(tiny_llm, tmp_path / "model", "model.safetensors")
    torch.save(load_file(tiny_llm / "model.safetensors"), model / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        ask(config(model), request(0))


def test_code_that_comes_with_a_model_does_not_run(tiny_llm: Path, tmp_path: Path):
    model = without(tiny_llm, tmp_path / "model")
    edit(model, "config.json", model_type="own", auto_map={"AutoConfig": "own.Config"})
    (model / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    with pytest.raises(UserError, match=r"backend.model .*: not a causal"):
        ask(config(model), request(0))
    assert not (tmp_path / "ran").exists()


def test_of_a_hub_model_only_what_is_safe_is_fetched(
    tiny_llm: Path, monkeypatch: pytest.MonkeyPatch
):
    def snapshot(repo_id: str, revision: str | None, allow_patterns: list[str]) -> str:
        assert repo_id == "owner/name"
        wanted, unwanted = {"model.safetensors", "chat_template.jinja"}, {"own.py", "model.bin"}
        files = wanted | unwanted
        assert wanted == {file for p in allow_patterns for file in files if fnmatch(file, p)}
        return str(tiny_llm)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    (answer,) = ask(config(Path("owner/name"), max_tokens=5), request(0))
    assert answer.completion_tokens == 5


def test_an_encoder_is_not_filled_up_with_random_weights(tiny_llm: Path, tiny_model: Path):
    with pytest.raises(UserError, match=r"do not make a causal .*; cls.predictions.bias is not"):
        ask(config(tiny_model), request(0))


def test_a_template_that_refuses_system_messages_is_told(tiny_llm: Path, tmp_path: Path):
    model = without(tiny_llm, tmp_path / "model")
    refusal = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    )
    (model / "chat_template.jinja").write_text(refusal)
    with pytest.raises(UserError, match=r"chat template refuses .* \(no system\)"):
        ask(config(model), request(0))


def test_without_a_template_messages_are_joined(tiny_llm: Path, tmp_path: Path):
    model = without(tiny_llm, tmp_path / "model", "chat_template.jinja")
    (answer,) = ask(config(model, max_tokens=5), request(0, "gum bal", schema=None))
    assert answer.prompt_tokens == len("gum bal\n\n") - len(" bal") + 1


def test_penalties_of_the_model_are_not_applied(tiny_llm: Path, tmp_path: Path):
    model = without(tiny_llm, tmp_path / "model")
    edit(model, "generation_config.json", repetition_penalty=50.0, no_repeat_ngram_size=1)
    short = {"max_tokens": 60}
    one = request(1, schema=None)
    assert ask(config(model, **short), one) == ask(config(tiny_llm, **short), one)


def test_every_end_token_of_the_model_ends_an_answer(tiny_llm: Path, tmp_path: Path):
    model = without(tiny_llm, tmp_path / "model")
    tokens = json.loads((model / "tokenizer.json").read_text())["added_tokens"]
    other = next(token for token in tokens if "grade 0" in token["content"])
    edit(model, "generation_config.json", eos_token_id=[1, other["id"]])
    (answer,) = ask(config(model, max_tokens=200), request(1, schema=None))
    (longer,) = ask(config(tiny_llm, max_tokens=200), request(1, schema=None))
    assert not answer.cut
    assert longer.text.split(other["content"])[0] == answer.text
    assert longer.completion_tokens > answer.completion_tokens


def test_a_schema_that_the_grammar_refuses_fails_alone(tiny_llm: Path):
    error, answer = ask(config(tiny_llm), request(0, schema={"type": "nonsense"}), request(0))
    assert isinstance(error, RequestError)
    assert "llguidance refuses the schema" in error.message
    assert isinstance(answer, Answer)


def test_too_many_texts_for_the_memory_name_the_way_out(
    tiny_llm: Path, monkeypatch: pytest.MonkeyPatch
):
    import torch
    import transformers

    def full(*_, **__):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(transformers.LlamaForCausalLM, "generate", full)
    (error,) = ask(config(tiny_llm), request(0))
    assert isinstance(error, UserError)
    assert "lower backend.concurrency 4" in str(error)
