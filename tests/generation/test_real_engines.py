"""From queries to training steps with real inference engines; only the words are noise."""

from pathlib import Path

import openai
import pytest
from serving import outputs

from synrank_jax import generate, prepare, train
from synrank_jax.config import Config
from synrank_jax.config_file import to_yaml
from synrank_jax.config_generation import GenerationConfig
from synrank_jax.generation.lists import read_lists
from synrank_jax.tracking import read_metrics

PROMPT_TOKENS = len("user : gum bal\nassistant :") - 6  # two words are a token each
LEVELS = [
    {"grade": 1, "name": "relevant", "definition": "answers the query"},
    {"grade": 0, "name": "irrelevant", "definition": "does not"},
]


def config(folder: Path, queries: int, **backend) -> GenerationConfig:
    (folder / "queries.tsv").write_text(
        "".join(f"q{number}\tgum {word} fer\n" for number, word in enumerate(["bal"] * queries))
    )
    return GenerationConfig.model_validate(
        {
            "queries": {"path": str(folder / "queries.tsv")},
            "levels": LEVELS,
            "prompt": {"words": [[5, 50]], "examples_per_query": 0},
            "backend": {"max_tokens": 300, "top_p": 1.0} | backend,
            "rules": {"min_words": 5, "attempts": 10},
            "output": str(folder / "out"),
        }
    )


def test_from_queries_to_training_steps(tiny_llm: Path, tiny_config: Config, tmp_path: Path):
    settings = config(tmp_path, 16, kind="transformers", model=str(tiny_llm), concurrency=8)
    assert generate.run(settings) is None
    folder = Path(settings.output)
    lists = list(read_lists(folder / "lists.jsonl"))
    assert len(lists) == 16
    assert all(one.counts() == {1: 1, 0: 1} for one in lists)

    generate.main(["--audit", str(folder)])
    assert (folder / "audit" / "audit.html").is_file()
    options = ["--drop", "query-copy", "--output", str(tmp_path / "kept")]
    generate.main(["--filter", str(folder), *options])
    assert outputs(tmp_path / "kept") == outputs(folder)  # nothing of that kind

    source = {"path": str(folder), "format": "beir"}
    data = tiny_config.data.model_dump() | {"sources": [source], "grades": (0, 1), "list_size": 2}
    steps = tiny_config.train.model_dump() | {"steps": 2}
    values = tiny_config.model_dump(mode="json") | {"data": data, "train": steps}
    ready = Config.model_validate(values)
    (tmp_path / "train.yaml").write_text(to_yaml(ready))
    prepare.main(["--config", str(tmp_path / "train.yaml")])
    train.run(ready)
    assert [entry["step"] for entry in read_metrics(Path(ready.train.output))] == [1, 2]


@pytest.mark.slow
def test_lists_from_transformers_serve(
    transformers_serve: str, tiny_llm_folder: Path, tmp_path: Path
):
    model, url = str(tiny_llm_folder), transformers_serve
    settings = config(tmp_path, 4, model=model, endpoints=[url], concurrency=2)
    generate.run(settings)
    lists = list(read_lists(Path(settings.output) / "lists.jsonl"))
    assert len(lists) == 4
    assert len({p.text for one in lists for p in one.passages}) == 8
    report = (Path(settings.output) / "report.json").read_text()
    assert '"completion_tokens": 0' not in report


SCHEMA = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}


@pytest.mark.slow
def test_the_official_client_meets_the_engine(transformers_serve: str, tiny_llm_folder: Path):
    """What the OpenAI backend relies on, and what this server makes of it."""

    def ask(**fields) -> openai.types.chat.ChatCompletion:
        messages = [{"role": "user", "content": "gum bal"}]
        options = {"model": str(tiny_llm_folder), "messages": messages, "seed": 1} | fields
        return client.chat.completions.create(**options)

    with openai.OpenAI(base_url=transformers_serve, api_key="none", max_retries=0) as client:
        first = ask(max_tokens=12)
        (choice,) = first.choices
        assert choice.finish_reason == "length"
        assert first.usage.prompt_tokens == PROMPT_TOKENS
        assert first.usage.completion_tokens == 12
        # One request at a time has its seed, so the same text; its older name for the limit counts.
        assert ask(max_completion_tokens=12).choices[0].message.content == choice.message.content
        assert ask(max_tokens=12, seed=2).choices[0].message.content != choice.message.content
        # A schema is taken and not followed: the backend's probe must notice.
        json_schema = {"name": "answer", "schema": SCHEMA, "strict": True}
        response_format = {"type": "json_schema", "json_schema": json_schema}
        answer = ask(max_tokens=12, response_format=response_format)
        assert answer.choices[0].message.content == choice.message.content
        # It lists the hub's cache, in which the model that it serves is not.
        assert list(client.models.list()) == []
        with pytest.raises(openai.BadRequestError) as refused:
            ask(model="another")
        assert "Server is pinned to" in refused.value.response.text
