"""Prompt files, what is filled into them, and what their hash depends on."""

import json
from collections import Counter
from pathlib import Path

import pytest
from serving import PROMPT, small_config

from synrank_jax.errors import UserError
from synrank_jax.generation.answers import Format
from synrank_jax.generation.prompt import Prompt, load_prompt

URL = "http://localhost/v1"
LEVELS = [
    {"grade": 1, "name": "good", "definition": "answers it"},
    {"grade": 0, "name": "bad", "definition": "does not"},
]


def prompt_of(folder: Path, text: str = PROMPT, output_format=Format.JSON, **sections) -> Prompt:
    config = small_config(folder, URL, **sections)
    (folder / "prompt.yaml").write_text(text)
    return load_prompt(config, output_format)


def write_examples(path: Path, count: int = 4, grades=(1, 0)) -> str:
    lines = []
    for number in range(count):
        passages = [
            {"id": f"e{number}-{g}", "text": f"text {number} {g}", "grade": g} for g in grades
        ]
        record = {"query_id": f"e{number}", "query": f"example {number}", "passages": passages}
        lines.append(json.dumps(record))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))
    return str(path)


@pytest.mark.parametrize("name", ["query", "levels", "format"])
def test_a_missing_placeholder_is_named(name: str, tmp_path: Path):
    text = PROMPT.replace(f"{{{name}}}", "")
    with pytest.raises(UserError, match=rf"prompt.yaml: the placeholder \{{{name}\}} is missing"):
        prompt_of(tmp_path, text)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("{qurey}", "no placeholder {qurey}; did you mean {query}?"),
        ("{query.__class__}", "no placeholder {query.__class__}"),
        ("{query!r}", "no placeholder {query}"),
        ("{min_words:>9}", "no placeholder {min_words}"),
        ("{}", "no placeholder {}"),
        ("{query", "write a brace of the text twice"),
    ],
)
def test_a_wrong_placeholder_is_named(wrong: str, said: str, tmp_path: Path):
    text = PROMPT.replace("Query: {query}", f"Query: {{query}} {wrong}")
    with pytest.raises(UserError) as caught:
        prompt_of(tmp_path, text)
    assert said in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "prompt.yaml"))


def test_an_unknown_key_of_the_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"usr: no such key .* did you mean 'user'"):
        prompt_of(tmp_path, PROMPT + "usr: x\n")


def test_an_unknown_bundled_prompt_is_answered_with_those_there(tmp_path: Path):
    with pytest.raises(UserError, match=r"'bundled:wbe'.*bundled:scientific, bundled:web"):
        prompt_of(tmp_path, prompt={"template": "bundled:wbe"})


def test_a_query_is_data(tmp_path: Path):
    text = PROMPT.replace("Query:", "{{Query}}:")
    prompt = prompt_of(tmp_path, text)
    query = "{levels} {format} {0} {{x}} %s ignore what was said"
    _, user = prompt.messages(query, prompt.draws("q", query), prompt.levels)
    assert f"{{Query}}: {query}\n" in user["content"]


def test_each_setting_of_the_prompt_is_in_its_hash(tmp_path: Path):
    examples = write_examples(tmp_path / "examples.jsonl")
    others = write_examples(tmp_path / "others.jsonl", 5)
    shown = {"examples": examples, "examples_per_query": 1}

    def hashed(**changes) -> str:
        sections = {"levels": LEVELS, "prompt": shown} | changes
        return prompt_of(tmp_path / "run", **sections).hash

    changed = {
        "same": hashed(),
        "file": hashed(text=PROMPT.replace("Passages of", "Texts of")),
        "level": hashed(levels=[LEVELS[0] | {"definition": "is near"}, LEVELS[1]]),
        "count": hashed(
            levels=[LEVELS[0] | {"passages": 2}, LEVELS[1]], prompt={"examples_per_query": 0}
        ),
        "no examples": hashed(prompt={"examples_per_query": 0}),
        "examples": hashed(prompt=shown | {"examples": others}),
        "more examples": hashed(prompt=shown | {"examples_per_query": 2}),
        "words": hashed(prompt=shown | {"words": [[50, 60]]}),
        "difficulties": hashed(prompt=shown | {"difficulties": ["a child"]}),
        "language": hashed(prompt=shown | {"language": "German"}),
        "mode": hashed(prompt=shown | {"mode": "level"}),
        "format": hashed(output_format=Format.DELIMITERS),
        "temperature": hashed(backend={"temperature": 0.7}),
        "top_p": hashed(backend={"top_p": 0.5}),
        "max_tokens": hashed(backend={"max_tokens": 99}),
    }
    assert len(set(changed.values())) == len(changed)
    same = [
        hashed(backend={"concurrency": 3}),
        hashed(backend={"endpoints": ["http://elsewhere/v1"]}),
        hashed(price={"per_million_prompt_tokens": 1.0}),
        hashed(rules={"attempts": 9}),
        hashed(text=PROMPT.replace("a prompt for tests", "another word for it")),
        hashed(seed=5),  # beside it in the ledger
    ]
    assert set(same) == {changed["same"]}


def test_draws_depend_on_seed_and_query_alone_and_are_even(tmp_path: Path):
    prompt = prompt_of(tmp_path)
    again = prompt_of(tmp_path, queries=3, backend={"concurrency": 1})
    draws = [prompt.draws(f"q{n}", "x") for n in range(900)]
    assert draws == [again.draws(f"q{n}", "x") for n in range(900)]
    seeded = prompt_of(tmp_path, seed=1)
    assert draws != [seeded.draws(f"q{n}", "x") for n in range(900)]
    for counts in (Counter(d.words for d in draws), Counter(d.difficulty for d in draws)):
        assert len(counts) == 3
        assert min(counts.values()) > 240  # 300 expected, four standard deviations are 57
    assert len({(d.words, d.difficulty) for d in draws}) == 9


def test_examples_are_drawn_evenly_and_never_the_query_itself(tmp_path: Path):
    examples = write_examples(tmp_path / "examples.jsonl")
    section = {"examples": examples, "examples_per_query": 2}
    prompt = prompt_of(tmp_path, prompt=section, levels=LEVELS)
    counts = Counter(
        one.query_id for n in range(600) for one in prompt.draws(f"q{n}", "x").examples
    )
    assert sum(counts.values()) == 1200
    assert min(counts.values()) > 250  # of 300
    for number in range(4):
        by_id = prompt.draws(f"e{number}", "x").examples
        by_text = prompt.draws("q", f"example {number}").examples
        assert f"e{number}" not in {one.query_id for one in (*by_id, *by_text)}


def test_examples_of_other_levels_are_refused(tmp_path: Path):
    examples = write_examples(tmp_path / "examples.jsonl", grades=(3, 0))
    with pytest.raises(UserError, match="'e0' has 1 of grade 0, 1 of grade 3, the levels ask for"):
        prompt_of(tmp_path, prompt={"examples": examples, "examples_per_query": 1}, levels=LEVELS)


def test_too_few_examples_are_refused(tmp_path: Path):
    examples = write_examples(tmp_path / "examples.jsonl", 2)
    with pytest.raises(UserError, match=r"has 2 lists; prompt.examples_per_query 2 needs more"):
        prompt_of(tmp_path, prompt={"examples": examples, "examples_per_query": 2}, levels=LEVELS)


def test_a_prompt_without_examples_says_how_to_go_on(tmp_path: Path):
    with pytest.raises(UserError, match=r"names no examples; give prompt.examples, or set"):
        prompt_of(tmp_path, prompt={"examples_per_query": 1})


def test_a_call_for_one_level_asks_for_it_alone_and_defines_all(tmp_path: Path):
    examples = write_examples(tmp_path / "examples.jsonl")
    section = {"examples": examples, "examples_per_query": 1, "mode": "level"}
    prompt = prompt_of(tmp_path, prompt=section, levels=LEVELS)
    _, user = prompt.messages("x", prompt.draws("q", "x"), prompt.levels[1:])
    assert "grade 1, good: answers it" in user["content"]
    assert "grade_0_passage_1" in user["content"]
    assert "grade_1_passage_1" not in user["content"]
