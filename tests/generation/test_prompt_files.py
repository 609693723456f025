"""Prompt files, what is filled into them, and what their hash depends on."""

import json
from collections import Counter
from pathlib import Path

import pytest
from serving import PROMPT, small_config

from synrank_jax.errors import UserError
from synrank_jax.generation.answers import Format, Slot
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
        ("{query[0]}", "no placeholder {query[0]}"),
        ("{query!r}", "no placeholder {query!r}; did you mean {query}?"),
        ("{min_words:>9}", "no placeholder {min_words:>9}; did you mean {min_words}?"),
        ("{min_words:{max_words}}", "no placeholder {min_words:{max_words}}; did you"),
        ("{}", "no placeholder {}; there are {query}, {levels}"),
        ("{0}", "no placeholder {0}"),
        ("{query", "field name; write a brace of the text twice"),
        ("}", "format string; write a brace of the text twice"),
    ],
)
def test_a_wrong_placeholder_is_named(wrong: str, said: str, tmp_path: Path):
    text = PROMPT.replace("Query: {query}", f"Query: {{query}} {wrong}")
    with pytest.raises(UserError) as caught:
        prompt_of(tmp_path, text)
    assert said in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "prompt.yaml"))


def test_a_wrong_placeholder_of_the_system_message_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"prompt.yaml: system: no placeholder \{reader\}"):
        prompt_of(tmp_path, PROMPT.replace("You write passages.", "You write for {reader}."))


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"^prompt.template '.*none.yaml': no such file"):
        prompt_of(tmp_path, prompt={"template": str(tmp_path / "none.yaml")})


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
    other = prompt.messages("other", prompt.draws("q", query), prompt.levels)[1]["content"]
    assert user["content"] == other.replace("Query}: other", f"Query}}: {query}")


def test_every_placeholder_is_filled(tmp_path: Path):
    text = PROMPT.replace("You write passages.", "'{language}, {difficulty}, {min_words}: {query}'")
    section = {"words": [[30, 40]], "difficulties": ["you"], "language": "German"}
    prompt = prompt_of(tmp_path, text, levels=LEVELS[::-1], prompt=section)
    system, user = prompt.messages("why?", prompt.draws("q", "why?"), prompt.levels)
    assert system == {"role": "system", "content": "German, you, 30: why?"}
    assert user["content"] == (
        "- grade 1, good: answers it (1 passage)\n- grade 0, bad: does not (1 passage)\n\n"
        "Passages of 30 to 40 words for you.\nQuery: why?\n"
        + Format.JSON.instruction([Slot(1, 1), Slot(0, 1)], titles=False)
    )


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
        "system": hashed(text=PROMPT.replace("You write", "We write")),
        "titles": hashed(text=PROMPT + "titles: true\n", prompt={"examples_per_query": 0}),
        "level": hashed(levels=[LEVELS[0] | {"definition": "is near"}, LEVELS[1]]),
        "name": hashed(levels=[LEVELS[0] | {"name": "fine"}, LEVELS[1]]),
        "grade": hashed(
            levels=[LEVELS[0] | {"grade": 2}, LEVELS[1]], prompt={"examples_per_query": 0}
        ),
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
        hashed(queries=7),
        hashed(levels=LEVELS[::-1]),  # asked for highest first in any case
        hashed(output=str(tmp_path / "elsewhere")),
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
    assert (len(counts), sum(counts.values())) == (4, 1200)
    assert min(counts.values()) > 250  # of 300
    for number in range(4):
        by_id = prompt.draws(f"e{number}", "x").examples
        by_text = prompt.draws("q", f"example {number}").examples
        assert f"e{number}" not in {one.query_id for one in (*by_id, *by_text)}


@pytest.mark.parametrize("output_format", Format)
def test_examples_are_shown_as_answers_that_can_be_read(output_format: Format, tmp_path: Path):
    examples = write_examples(tmp_path / "examples.jsonl", grades=(0, 1))
    section = {"examples": examples, "examples_per_query": 2}
    prompt = prompt_of(tmp_path, PROMPT, output_format, prompt=section, levels=LEVELS)
    draws = prompt.draws("q", "x")
    content = prompt.messages("x", draws, prompt.levels)[1]["content"]
    shown = content[: content.index("Passages of")].split("Answer:\n")[1:]
    for example, answer in zip(draws.examples, shown, strict=True):
        number = example.query_id[1:]
        assert f"Query: {example.query}\nAnswer:\n{answer}" in content
        read = prompt.read(answer.partition("\nExample ")[0], [Slot(1, 1), Slot(0, 1)])
        assert [one.text for one in read] == [f"text {number} 1", f"text {number} 0"]
    found = prompt.schema([Slot(1, 1)])
    assert (found is None) == (output_format is Format.DELIMITERS)


def test_examples_need_their_placeholder_and_titles_where_asked(tmp_path: Path):
    examples = write_examples(tmp_path / "examples.jsonl")
    given = {"prompt": {"examples": examples, "examples_per_query": 1}, "levels": LEVELS}
    with pytest.raises(UserError, match=r"prompt.yaml: the placeholder \{examples\} is missing"):
        prompt_of(tmp_path, PROMPT.replace("{examples}", ""), **given)
    with pytest.raises(UserError, match=r"examples.jsonl: list 'e0' has passages without a title"):
        prompt_of(tmp_path, PROMPT + "titles: true\n", **given)


def test_the_examples_of_a_prompt_file_lie_beside_it(tmp_path: Path):
    write_examples(tmp_path / "mine.jsonl")
    text = PROMPT + "examples: mine.jsonl\n"
    prompt = prompt_of(tmp_path, text, prompt={"examples_per_query": 3}, levels=LEVELS)
    assert [one.query_id for one in prompt.examples] == ["e0", "e1", "e2", "e3"]
    assert len(prompt.draws("e1", "x").examples) == 3


def test_examples_of_other_levels_are_refused(tmp_path: Path):
    examples = write_examples(tmp_path / "examples.jsonl", grades=(3, 0))
    with pytest.raises(UserError, match="'e0' has 1 of grade 0, 1 of grade 3, the levels ask for"):
        prompt_of(tmp_path, prompt={"examples": examples, "examples_per_query": 1}, levels=LEVELS)
    examples = write_examples(tmp_path / "examples.jsonl", grades=(1, 1, 0))
    with pytest.raises(UserError, match="has 1 of grade 0, 2 of grade 1, the levels ask for"):
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
    (shown,) = prompt.draws("q", "x").examples
    assert shown.passages[1].text in user["content"]
    assert shown.passages[0].text not in user["content"]
