"""What the configuration of `generate` refuses."""

from typing import Any

import pytest

from synrank_jax.config_file import load_section
from synrank_jax.config_generation import GenerationConfig
from synrank_jax.errors import UserError

GOOD: dict[str, Any] = {
    "queries": {"path": "q.tsv"},
    "backend": {"model": "m", "endpoints": ["http://localhost:8000/v1"]},
    "output": "out",
}
LEVEL = {"grade": 1, "name": "a", "definition": "b"}

REFUSED = {
    "equal grades": ({"levels": [LEVEL, LEVEL | {"name": "c"}]}, "grade 1 is given to two levels"),
    "equal names": ({"levels": [LEVEL, LEVEL | {"grade": 0}]}, "two levels have the same name"),
    "one level": ({"levels": [LEVEL]}, "levels"),
    "no definition": ({"levels": [LEVEL, {"grade": 0, "name": "c"}]}, "levels.1.definition: requ"),
    "empty definition": (
        {"levels": [LEVEL, {"grade": 0, "name": "c", "definition": " \n"}]},
        "levels.1.definition: String should have at least 1 character",
    ),
    "empty name": (
        {"levels": [LEVEL, {"grade": 0, "name": " ", "definition": "d"}]},
        "levels.1.name: String should have at least 1 character",
    ),
    "negative grade": ({"levels": [LEVEL, LEVEL | {"grade": -1}]}, "levels.1.grade"),
    "no passages": ({"levels": [LEVEL, LEVEL | {"grade": 0, "passages": 0}]}, "levels.1.passages"),
    "empty language": ({"prompt": {"language": ""}}, "prompt.language"),
    "no readers": ({"prompt": {"difficulties": []}}, "prompt.difficulties"),
    "empty reader": ({"prompt": {"difficulties": ["a", ""]}}, "prompt.difficulties.1"),
    "zero words": ({"prompt": {"words": [[0, 50]]}}, "prompt.words.0.0"),
    "mode": ({"prompt": {"mode": "lists"}}, "prompt.mode"),
    "negative seed": ({"seed": -1}, "seed"),
    "top level": ({"backends": {"model": "m"}}, "backends: no such key"),
    "short": ({"prompt": {"words": [[5, 50]]}}, "outside rules.min_words 20"),
    "long": ({"prompt": {"words": [[50, 5000]]}}, "to rules.max_words 600"),
    "turned": ({"prompt": {"words": [[90, 50]]}}, "give the fewest first"),
    "no endpoint": ({"backend": {"model": "m"}}, "endpoints: give at least one"),
    "key in the address": (
        {"backend": {"model": "m", "endpoints": ["http://me:key@host/v1"]}},
        "no names or keys in addresses",
    ),
    "key without http": (
        {"backend": {"model": "m", "endpoints": ["me:key@host/v1"]}},
        "no names or keys in addresses",
    ),
    "key in the query": (
        {"backend": {"model": "m", "endpoints": ["http://host/v1?key=me:key"]}},
        "no names or keys in addresses",
    ),
    "key for its name": (
        {"backend": GOOD["backend"] | {"api_key_env": "sk-me:key"}},
        "give the name of an environment variable",
    ),
    "no address": ({"backend": {"model": "m", "endpoints": ["host:80"]}}, "must begin with http"),
    "twice": ({"backend": {"model": "m", "endpoints": ["http://a", "http://a"]}}, "written twice"),
    "local": (
        {"backend": {"kind": "vllm", "model": "m", "endpoints": ["http://a"]}},
        "kind vllm runs in this process",
    ),
    "typo": ({"backend": {"modle": "m"}}, "backend.modle: no such key (value 'm'); did you mean"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_value_is_named(name: str, tmp_path):
    import yaml

    change, said = REFUSED[name]
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(GOOD | change))
    with pytest.raises(UserError) as caught:
        load_section(GenerationConfig, path)
    assert said in str(caught.value)
    assert "me:key" not in str(caught.value)


def test_overrides_reach_it(tmp_path):
    import yaml

    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    config = load_section(GenerationConfig, path, ["queries.limit=200", "seed=3"])
    assert (config.queries.limit, config.seed) == (200, 3)
    assert [level.grade for level in config.levels] == [3, 2, 1, 0]
    words = load_section(GenerationConfig, path, ["prompt.words=[[20, 600]]"]).prompt.words
    assert words == ((20, 600),)  # as far as the rules allow
