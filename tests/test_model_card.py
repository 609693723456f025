"""The model card: what it states, that the hub can read it, that nothing in it acts as markup."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from card_facts import evaluated, training_config

from synrank_jax.contract import EncodingContract
from synrank_jax.engine.checkpoint import Trained
from synrank_jax.markdown import fenced, plain
from synrank_jax.model_card import Card, model_card, source_license

CONTRACT = EncodingContract(
    pooling="mean",
    normalize=True,
    similarity="cosine",
    query_prompt="query: ",
    passage_prompt="",
    query_length=24,
    passage_length=32,
    tokenizer_sha256="0" * 64,
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model folder as far as the card reads it."""
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Source\n", "utf-8")
    return tmp_path


def facts(source: Path, **changes: Any) -> Card:
    trained = Trained(training_config(source), CONTRACT, {}, step=7, data_sha256="ab" * 32)
    card = Card(
        name="tiny",
        trained=trained,
        contract=CONTRACT,
        source=source,
        base_model=None,
        lists=None,
        results=[],
        own=[],
    )
    return dataclasses.replace(card, **changes)


def test_it_states_training_and_escapes_texts_from_outside(source: Path) -> None:
    contract = CONTRACT.model_copy(update={"query_prompt": "```\n<script>"})
    result = evaluated(contract, label="a|b <img src=x> [link](http://example.org)")
    card = model_card(facts(source, contract=contract, results=[result], own=[False]))
    assert "- Length: 7 steps of 16 queries" in card
    assert "- Loss: wasserstein (weight 1)" in card
    assert "- Temperature: 0.05\n" in card
    assert "<img" not in card
    assert "](http" not in card
    table = [line for line in card.splitlines() if line.startswith("| a&#124;b")]
    assert len(table) == 1
    assert table[0].count("|") == 5
    # The prompt's JSON keeps its line break escaped, and the fence is longer than its backticks.
    assert "````json\n" in card


def test_plain_and_fenced_texts_cannot_act_as_markup() -> None:
    assert plain("<b>|`x`\n# y") == "&lt;b&gt;&#124;&#96;x&#96; # y"
    assert fenced("a ```` b", "text") == "`````text\na ```` b\n`````"


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        ("---\nlicense: apache-2.0\nlanguage: en\n---\nText", {"license": "apache-2.0"}),
        (
            "---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\n",
            {"license": "other", "license_name": "own", "license_link": "LICENSE"},
        ),
        ("---\nlicense: [a, b]\n---\n", {}),
        ("---\nlicense: !!python/object:os.system x\n---\n", {}),
        ("# No front matter\nlicense: mit\n", {}),
        (None, {}),
    ],
)
def test_license_is_copied_as_plain_data(
    tmp_path: Path, readme: str | None, expected: dict[str, str]
) -> None:
    if readme is not None:
        (tmp_path / "README.md").write_text(readme, "utf-8")
    assert source_license(tmp_path) == expected
