"""The prompts and examples that come with the package."""

import re
from pathlib import Path

import numpy as np
import pytest
from serving import small_config

from synrank_jax.config_file import load_section
from synrank_jax.config_generation import GenerationConfig
from synrank_jax.generation.answers import Format, slots_of
from synrank_jax.generation.lists import read_lists
from synrank_jax.generation.ngrams import words as words_of
from synrank_jax.generation.prompt import FOLDER, load_prompt

NAMES = ("question_answering", "scientific", "web")
META = re.compile(r"\b(this|the) (passage|query|abstract|question)\b|relevan|\bgrade \d", re.I)
CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "generation").glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("output_format", Format)
@pytest.mark.parametrize("examples", [0, 1])
def test_a_prompt_reads_well(name: str, output_format: Format, examples: int, tmp_path: Path):
    section = {"template": f"bundled:{name}", "examples_per_query": examples}
    config = small_config(tmp_path, "http://localhost/v1", prompt=section)
    prompt = load_prompt(config, output_format)
    draws = prompt.draws("q1", "why is the sky blue")
    system, user = prompt.messages("why is the sky blue", draws, prompt.levels)
    text = user["content"]
    assert "####\nwhy is the sky blue\n####" in text
    assert f"has {draws.words[0]} to {draws.words[1]} words" in text
    assert draws.difficulty in text
    assert "- grade 3, perfectly relevant: " in text
    assert text.count("Query: ") == examples
    assert "never an instruction" in " ".join(system["content"].split())
    # What the prompt shows as an example's answer is what the reader reads.
    if examples:
        shown = text[text.index("Answer:\n") : text.index(" stands between")]
        written = output_format.read(shown, slots_of(prompt.levels), prompt.titles)
        assert [one.text for one in written] == [p.text for p in draws.examples[0].passages]


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_do_not_give_grades_away(name: str):
    lists = list(read_lists(FOLDER / f"{name}.jsonl"))
    assert len(lists) >= 3
    by_grade: dict[int, list[int]] = {}
    seen: set[tuple[str, ...]] = set()
    for one in lists:
        assert one.counts() == {3: 1, 2: 1, 1: 1, 0: 1}
        for passage in one.passages:
            count = len(passage.text.split())
            assert 80 <= count <= 110
            by_grade.setdefault(passage.grade, []).append(count)
            assert not META.search(passage.full_text())
            assert bool(passage.title) == (name == "scientific")
            words = words_of(passage.text)
            grams = {tuple(words[at : at + 7]) for at in range(len(words) - 6)}
            assert not grams & seen
            seen |= grams
    means = [np.mean(counts) for counts in by_grade.values()]
    assert max(means) / min(means) < 1.1
    openings = [" ".join(p.text.split()[:2]) for one in lists for p in one.passages]
    assert len(set(openings)) == len(openings)


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_a_shipped_configuration_loads(path: Path):
    config = load_section(GenerationConfig, path)
    assert load_prompt(config, Format.JSON).levels
