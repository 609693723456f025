"""README.md of an exported model."""

import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

import synrank_jax
from synrank_jax.config import Config
from synrank_jax.config_file import to_yaml
from synrank_jax.contract import EncodingContract
from synrank_jax.retrieval.result import EvaluationResult


def model_card(
    config: Config,
    contract: EncodingContract,
    step: int,
    temperature: float,
    source_folder: Path,
    results: Sequence[EvaluationResult],
) -> str:
    """What the model was trained from and how to use it, in Markdown with YAML front matter.

    Args:
        config: the run's resolved configuration, stated in full.
        contract: how texts are encoded.
        step: completed optimizer steps.
        temperature: what the loss divided scores by in the end.
        source_folder: model folder that training started from; its license is stated.
        results: evaluations to state.

    Returns:
        The text. Whatever comes from outside is escaped or fenced, so it cannot act as markup.
    """
    front = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["sentence-transformers", "sentence-similarity", "dense-retrieval", "synrank-jax"],
        **source_license(source_folder),
    }
    losses = ", ".join(f"{name} (weight {w:g})" for name, w in config.loss.weights().items())
    sources = ", ".join(plain(f"{source.path} ({source.split})") for source in config.data.sources)
    learned = f", learned from {config.loss.temperature:g}" * config.loss.learn_temperature
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        "# Dense retriever trained on graded lists",
        f"Trained with synrank-jax {synrank_jax.__version__}.",
        f"- Starting point: {plain(config.model.path)}\n"
        f"- Lists: {sources}, {config.data.list_size} passages per query, "
        f"grades {', '.join(map(str, config.data.grades))}\n"
        f"- Loss: {losses}\n"
        f"- Temperature: {temperature:.6g}{learned}\n"
        f"- Length: {step} steps of {config.train.global_batch_size} queries",
        "## Use",
        fenced(_example(contract), "python"),
        _lengths(contract),
        *_results(results),
        "## Encoding contract",
        fenced(contract.model_dump_json(indent=2), "json"),
        "## Configuration",
        fenced(to_yaml(config), "yaml"),
    ]
    return "\n\n".join(parts) + "\n"


def source_license(source_folder: Path) -> dict[str, str]:
    """License fields in the front matter of the source model's README; empty if it states none."""
    readme = source_folder / "README.md"
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


def plain(text: str) -> str:
    """Text that Markdown and HTML show as it is: character references never act as markup.

    For use inside a line; it does not escape what has a meaning only where a line begins.
    """
    one_line = html.escape(" ".join(text.split()))
    return re.sub(r"[\\`*_{}\[\]|~!]", lambda match: f"&#{ord(match[0])};", one_line)


def fenced(text: str, language: str) -> str:
    """A code block that no run of backticks inside can end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _example(contract: EncodingContract) -> str:
    return f"""from sentence_transformers import SentenceTransformer

model = SentenceTransformer("the folder of this file")
queries = model.encode_query(["a question"])
passages = model.encode_document(["a passage", "another passage"])
scores = model.similarity(queries, passages)  # {contract.similarity}
"""


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


def _results(results: Sequence[EvaluationResult]) -> list[str]:
    if not results:
        return []
    measures = list(dict.fromkeys(name for result in results for name in result.metrics))
    rows = [["Model", "Collection", "Queries", *measures]]
    for result in results:
        values = [
            f"{result.metrics[name]:.4f}" if name in result.metrics else "" for name in measures
        ]
        collection = f"{result.evaluation.path} ({result.evaluation.split})"
        rows.append([result.label, collection, str(result.queries), *values])
    lines = ["| " + " | ".join(map(plain, row)) + " |" for row in rows]
    lines.insert(1, "|" + " --- |" * len(rows[0]))
    return ["## Results", "\n".join(lines)]
