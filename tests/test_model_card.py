"""The model card: what it states, that the hub can read it, that nothing in it acts as markup."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from card_facts import evaluated, training_config
from huggingface_hub import ModelCard

from synrank_jax.config import DataConfig
from synrank_jax.contract import EncodingContract
from synrank_jax.data.manifest import Manifest, TokenCounts
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


def test_only_results_of_this_model_go_into_the_hubs_index(source: Path) -> None:
    results = [evaluated(CONTRACT, label="zero-shot"), evaluated(CONTRACT, label="trained")]
    text = model_card(facts(source, results=results, own=[False, True], base_model="owner/base"))
    data = ModelCard(text).data  # refuses what the hub would refuse
    assert (data.base_model, data.license, data.model_name) == ("owner/base", "mit", "tiny")
    (result,) = data.eval_results
    assert (result.dataset_name, result.dataset_split) == ("cranfield", "test")
    assert (result.metric_name, result.metric_type) == ("nDCG@10", "ndcg_at_10")
    assert result.metric_value == 0.31591
    assert "| trained (this model) | bundled:cranfield (test) | 1 | 0.3159 |" in text
    assert "| zero-shot | bundled:cranfield (test) | 1 | 0.3159 |" in text
    assert "1 judged queries, each against all 2 documents, searched exactly in float32" in text
    assert "documents with the id of the query kept" in text
    assert "model-index" not in model_card(facts(source, results=results, own=[False, False]))


def test_a_model_cut_after_training_says_that_its_quality_must_be_measured(source: Path) -> None:
    cut = CONTRACT.model_copy(update={"dimension": 16})
    warning = "Only the first 16 components are kept, but the model was trained with more"
    assert warning in model_card(facts(source, contract=cut))
    trained = dataclasses.replace(facts(source).trained, contract=cut)
    text = model_card(facts(source, contract=cut, trained=trained))
    assert warning not in text
    assert "Trained and used with the first 16 components only." in text


def test_lists_written_by_a_language_model_are_called_synthetic(source: Path) -> None:
    assert "bundled:cranfield-synthetic were written by a large language model" in (
        model_card(facts(source))
    )
    trained = facts(source).trained

    def with_lists(origin: dict[str, str]) -> str:
        passages = [{"id": "d", "text": "text", "grade": 1}]
        record = {"query_id": "q", "query": "text", "passages": passages, "origin": origin}
        (source / "lists.jsonl").write_text(json.dumps(record) + "\n")
        config = trained.config.model_copy(
            update={"data": DataConfig(sources=({"path": str(source)},), prepared="x")}
        )
        return model_card(facts(source, trained=dataclasses.replace(trained, config=config)))

    assert "were written by writer&#95;70b: synthetic text" in with_lists({"model": "writer_70b"})
    assert "synthetic text" not in with_lists({})


def test_the_counts_of_the_lists_are_stated_where_they_are_known(source: Path) -> None:
    counts = TokenCounts(texts=1096, tokens=9, longest=9, truncated=0)
    lists = Manifest.model_construct(
        lists=274, documents=548, grade_counts={0: 274, 3: 822}, passage_tokens=counts
    )
    assert (
        "- Lists: 274 queries with 1,096 passages of 548 documents; passages per grade 3: 822, "
        "0: 274\n"
    ) in model_card(facts(source, lists=lists))


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
