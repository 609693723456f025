"""README.md of an exported model."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import synrank_jax
from synrank_jax.card_code import sentence_transformers_code, transformers_code
from synrank_jax.config import SourceConfig
from synrank_jax.config_file import to_yaml
from synrank_jax.contract import EncodingContract
from synrank_jax.data.manifest import Manifest
from synrank_jax.engine.checkpoint import Trained
from synrank_jax.errors import UserError
from synrank_jax.generation.lists import read_lists
from synrank_jax.generation.output import LISTS_FILE
from synrank_jax.markdown import fenced, plain, table
from synrank_jax.retrieval.result import EvaluationResult

# Its lists were written before they came here, so they do not name their writer.
BUNDLED_SYNTHETIC = "bundled:cranfield-synthetic"


@dataclass(frozen=True)
class Card:
    """What the card states.

    name: of the model. contract: of the export. source: model folder that training started from,
    whose licence is stated. base_model: its hub id, if known. lists: manifest of the lists trained
    on, if they are still there. own: which of the results are of this model.
    """

    name: str
    trained: Trained
    contract: EncodingContract
    source: Path
    base_model: str | None
    lists: Manifest | None
    results: Sequence[EvaluationResult]
    own: Sequence[bool]


def model_card(card: Card) -> str:
    """What the model was trained from and how to use it, in Markdown with YAML front matter.

    Whatever comes from outside is escaped or fenced, so it cannot act as markup.
    """
    licence = source_license(card.source)
    front = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["sentence-transformers", "sentence-similarity", "dense-retrieval", "synrank-jax"],
        **({"base_model": card.base_model} if card.base_model else {}),
        **licence,
        **_model_index(card),
    }
    folder = card.name if "/" in card.name else "the folder of this file"
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {plain(card.name)}",
        "A dense retriever: one encoder for queries and passages, trained on graded lists with "
        f"synrank-jax {synrank_jax.__version__}.",
        "## Use",
        fenced(sentence_transformers_code(card.contract, folder), "python"),
        _lengths(card.contract),
        "The same with transformers alone:",
        fenced(transformers_code(card.contract, folder), "python"),
        "## Intended use and limits",
        _bullets(_limits(card, licence)),
        "## Training",
        _bullets(_training(card)),
        *_results(card),
        "## Encoding contract",
        fenced(card.contract.model_dump_json(indent=2), "json"),
        "## Configuration",
        fenced(to_yaml(card.trained.config), "yaml"),
    ]
    return "\n\n".join(parts) + "\n"


def source_license(source: Path) -> dict[str, str]:
    """License fields in the front matter of the source model's README; empty if it states none."""
    readme = source / "README.md"
    text = readme.read_text("utf-8", errors="replace") if readme.is_file() else ""
    match = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, flags=re.DOTALL)
    try:
        stated: Any = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        stated = None
    if not isinstance(stated, dict):
        return {}
    names = ("license", "license_name", "license_link")
    return {name: stated[name] for name in names if isinstance(stated.get(name), str)}


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _lengths(contract: EncodingContract) -> str:
    query, passage = contract.query_length, contract.passage_length
    text = (
        f"`encode_query` cuts after {query} tokens, `encode_document` after {passage}; both put "
        "the prompt of their side first."
    )
    if query != passage:
        text += (
            f" Because the two lengths differ, loading this folder needs sentence-transformers 6.1 "
            f"or newer; plain `encode` cuts after {max(query, passage)}."
        )
    return text


def _limits(card: Card, licence: dict[str, str]) -> list[str]:
    contract, trained = card.contract, card.trained
    writers = {source.path: _writer(source) for source in trained.config.data.sources}
    lines = [
        "Meant for ranking passages by relevance to a query. Scores order passages; they are no "
        "probabilities, and not comparable with those of another model.",
        "Texts beyond the lengths above are cut, not summarised.",
        "Quality was measured on the collections under Results only; measure it on your own data "
        "before relying on it."
        if any(card.own)
        else "Its quality is not stated here; measure it on your own data before relying on it.",
    ]
    if contract.dimension != trained.contract.dimension:
        lines.append(
            f"**Only the first {contract.dimension} components are kept, but the model was trained "
            "with more of them. What that costs must be measured: figures of the whole model do "
            "not hold for this one.**"
        )
    elif contract.dimension is not None:
        lines.append(f"Trained and used with the first {contract.dimension} components only.")
    for path, writer in writers.items():
        if writer is not None:
            lines.append(
                f"The lists of {plain(path)} were written by {plain(writer)}: synthetic text, good "
                "for ranking and not for facts, with whatever bias its writer has."
            )
    stated = f"is under {plain(licence['license'])}" if "license" in licence else "states none"
    lines.append(
        f"Licence: the model that training started from {stated}; the terms of the training data "
        "hold besides."
    )
    return lines


def _writer(source: SourceConfig) -> str | None:
    """The language model that wrote a source's lists; None for others, or where nothing says so."""
    if source.path == BUNDLED_SYNTHETIC:
        return "a large language model"
    path = Path(source.path).expanduser()
    try:
        first = next(read_lists(path if path.is_file() else path / LISTS_FILE), None)
    except UserError:
        return None
    writer = None if first is None else first.origin.get("model")
    return None if writer is None else str(writer)


def _training(card: Card) -> list[str]:
    trained = card.trained
    config, data = trained.config, trained.config.data
    learned = f", learned from {config.loss.temperature:g}" * config.loss.learn_temperature
    losses = ", ".join(f"{name} (weight {w:g})" for name, w in config.loss.weights().items())
    base = card.base_model or config.model.path
    lines = [
        f"Starting point: {plain(config.model.path)}"
        + f", originally {plain(base)}" * (base != config.model.path),
        "Sources: "
        + ", ".join(plain(f"{source.path} ({source.split})") for source in data.sources)
        + f"; up to {data.list_size} passages per query, grades {', '.join(map(str, data.grades))}",
    ]
    if card.lists is not None:
        grades = sorted(card.lists.grade_counts.items(), reverse=True)
        lines.append(
            f"Lists: {card.lists.lists:,} queries with {card.lists.passage_tokens.texts:,} "
            f"passages of {card.lists.documents:,} documents; passages per grade "
            + ", ".join(f"{grade}: {count:,}" for grade, count in grades)
        )
    return [
        *lines,
        f"Fingerprint of the lists: {trained.data_sha256[:12]}",
        f"Loss: {losses}",
        f"Temperature: {trained.temperature:.6g}{learned}",
        f"Length: {trained.step} steps of {config.train.global_batch_size} queries",
    ]


def _results(card: Card) -> list[str]:
    if not card.results:
        return []
    measures = list(dict.fromkeys(name for result in card.results for name in result.metrics))
    rows = [["Model", "Collection", "Queries", *measures]]
    for result, own in zip(card.results, card.own, strict=True):
        values = [
            f"{result.metrics[name]:.4f}" if name in result.metrics else "" for name in measures
        ]
        label = result.label + " (this model)" * own
        rows.append([label, _collection(result), str(result.queries), *values])
    protocols = dict.fromkeys(_protocol(result) for result in card.results)
    return ["## Results", table(rows), _bullets(list(protocols))]


def _collection(result: EvaluationResult) -> str:
    return f"{result.evaluation.path} ({result.evaluation.split})"


def _protocol(result: EvaluationResult) -> str:
    evaluation = result.evaluation
    self_match = "dropped" if evaluation.exclude_self_match else "kept"
    exact = {"flat", "jax"}
    search = "exactly" if evaluation.search in exact else f"by {plain(evaluation.search)}"
    return (
        f"{plain(_collection(result))}: {result.queries} judged queries, each against all "
        f"{result.documents:,} documents, searched {search} in {evaluation.embedding_dtype}; the "
        f"best {evaluation.top_k} scored with ir_measures; {result.excluded_pairs} excluded pairs "
        f"dropped; documents with the id of the query {self_match}"
    )


def _model_index(card: Card) -> dict[str, Any]:
    """The hub's record of results: those of this model alone."""
    results = [
        {
            "task": {"type": "information-retrieval", "name": "Information Retrieval"},
            "dataset": {
                "name": Path(result.evaluation.path.removeprefix("bundled:")).name,
                "type": Path(result.evaluation.path.removeprefix("bundled:")).name,
                "split": result.evaluation.split,
            },
            "metrics": [
                {
                    "type": measure.lower().replace("@", "_at_"),
                    "value": round(value, 5),
                    "name": measure,
                }
                for measure, value in result.metrics.items()
            ],
        }
        for result, own in zip(card.results, card.own, strict=True)
        if own
    ]
    return {"model-index": [{"name": card.name, "results": results}]} if results else {}
