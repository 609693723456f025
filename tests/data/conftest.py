"""Tiny collections, a word tokenizer and prepared folders."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from example_contexts import ExampleList, make_contexts
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from synrank_jax.config import DataConfig
from synrank_jax.contract import EncodingContract
from synrank_jax.data.manifest import Manifest, Recipe
from synrank_jax.data.prepared import make_job, write_prepared
from synrank_jax.data.shards import Job

Collection = Callable[..., Path]

QUERIES = {"q2": "second query", "q1": "first query"}
CORPUS = {"d1": "one", "d2": "two", "d3": "three", "d4": "four"}
QRELS = [("q1", "d2", "0"), ("q1", "d1", "3"), ("q1", "d3", "3"), ("q2", "d4", "1")]


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    """Writes a BEIR-layout folder; every part can be replaced."""

    def write(
        name: str = "collection",
        queries: Mapping[str, str] = QUERIES,
        corpus: Mapping[str, str] = CORPUS,
        qrels: list[tuple[str, str, str]] = QRELS,
        exclude: list[tuple[str, str]] | None = None,
    ) -> Path:
        folder = tmp_path / name
        (folder / "qrels").mkdir(parents=True)
        for file, texts in (("queries.jsonl", queries), ("corpus.jsonl", corpus)):
            lines = [json.dumps({"_id": key, "text": text}) for key, text in texts.items()]
            (folder / file).write_text("\n".join(lines) + "\n", "utf-8")
        rows = ["query-id\tcorpus-id\tscore", *("\t".join(row) for row in qrels)]
        (folder / "qrels" / "train.tsv").write_text("\n".join(rows) + "\n", "utf-8")
        if exclude is not None:
            rows = ["query-id\tcorpus-id", *("\t".join(row) for row in exclude)]
            (folder / "exclude.tsv").write_text("\n".join(rows) + "\n", "utf-8")
        return folder

    return write


@pytest.fixture(scope="session")
def word_tokenizer() -> Tokenizer:
    """One token per word: w0, w1, ... have ids 3, 4, ...; [CLS] 1 and [SEP] 2 around them."""
    vocabulary = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2} | {f"w{i}": i + 3 for i in range(500)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return tokenizer


@pytest.fixture(scope="session")
def contract() -> EncodingContract:
    return EncodingContract(
        pooling="mean",
        normalize=True,
        similarity="cosine",
        query_prompt="w499 ",
        passage_prompt="",
        query_length=16,
        passage_length=80,
        tokenizer_sha256="0" * 64,
    )


Prepare = Callable[..., tuple[Path, Manifest]]


@pytest.fixture
def job(
    tmp_path: Path, collection: Collection, word_tokenizer: Tokenizer, contract: EncodingContract
) -> Callable[..., Job]:
    """Plans to prepare `make_contexts(lists)`, or the lists given, into a new folder."""
    made: dict[str, Path] = {}

    def plan(
        lists: int | list[ExampleList] = 23,
        name: str = "prepared",
        shards: int = 3,
        take: dict[str, int] | None = None,
        **data: object,
    ) -> Job:
        contexts = make_contexts(lists) if isinstance(lists, int) else lists
        key = repr(contexts)
        if key not in made:
            made[key] = collection(f"source-{len(made)}", **parts_of(contexts))
        source, folder = {"path": str(made[key]), "take": take}, tmp_path / name
        config = DataConfig(sources=(source,), prepared=str(folder), shards=shards, **data)
        return make_job(Recipe.of(config, contract), word_tokenizer, folder)

    return plan


@pytest.fixture
def prepare(job: Callable[..., Job]) -> Prepare:
    """Prepares what `job` plans, in `workers` processes."""

    def write(*args: object, workers: int = 1, **values: object) -> tuple[Path, Manifest]:
        planned = job(*args, **values)
        return planned.folder, write_prepared(planned, workers=workers)

    return write


def parts_of(contexts: list[ExampleList]) -> dict[str, object]:
    """The lists as the parts of a collection."""
    passages = [(c.query_id, passage) for c in contexts for passage in c.passages]
    return {
        "queries": {context.query_id: context.query for context in contexts},
        "corpus": {passage.doc_id: passage.text for _, passage in passages},
        "qrels": [(query_id, p.doc_id, str(p.grade)) for query_id, p in passages],
        "exclude": [(c.query_id, doc_id) for c in contexts for doc_id in c.excluded],
    }
