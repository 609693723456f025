"""A suite from end to end: find or download its collections, evaluate one after another, average.

A collection that was evaluated before under the same label, with the same weights, contract,
settings and content, is not run again.
"""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from synrank_jax.config import EvaluationConfig
from synrank_jax.config_suite import CollectionConfig, SuiteConfig
from synrank_jax.data import beir
from synrank_jax.data.collections import downloaded_folder, resolved_path
from synrank_jax.data.columns import on_hub
from synrank_jax.encoders import Backend, Encoder
from synrank_jax.errors import UserError
from synrank_jax.evaluation import (
    CACHE,
    METRICS_FILE,
    ScoredCollection,
    evaluate_collection,
    read_collection,
    write_results,
)
from synrank_jax.hub import collection_folder
from synrank_jax.retrieval.files import RUN_FILE
from synrank_jax.retrieval.result import EvaluationResult
from synrank_jax.retrieval.suite import CollectionScores, SuiteResult, averages, compare

logger = logging.getLogger(__name__)

SUITE_FILE = "suite.json"


@dataclass(frozen=True)
class SuiteCollection:
    """A collection of a suite, read and checked. source: where its files come from."""

    config: CollectionConfig
    source: str
    evaluation: EvaluationConfig
    content: ScoredCollection
    unjudged_queries: int


def read_suite(
    suite: SuiteConfig, settings: EvaluationConfig, folder: Path | None, skip_missing: bool
) -> tuple[list[SuiteCollection], dict[str, str]]:
    """Find, download and read all collections, before anything is encoded.

    Args:
        suite: what to evaluate.
        settings: depth, batch size and search of every collection.
        folder: has local collections by name; the others come from where the suite says.
        skip_missing: go on without those that cannot be had.

    Returns:
        The collections, and why each missing one is missing.

    Raises:
        UserError: names all missing collections at once; a collection is broken or has other
            counts than the suite says.
    """
    found: dict[str, tuple[Path, str]] = {}
    missing = {}
    for config in suite.collections:
        try:
            found[config.name] = _find(config, folder)
        except UserError as error:
            missing[config.name] = str(error)
    if missing and not (skip_missing and found):
        lines = [
            f"  FOLDER/{config.folder or config.name}: {missing[config.name]}"
            for config in suite.collections
            if config.name in missing
        ]
        raise UserError(
            f"suite {suite.name}: {len(missing)} of {len(suite.collections)} collections cannot be "
            "had; connect to the network, put them as BEIR-layout folders where the lines say and "
            "give --collections FOLDER, or evaluate the others with --skip-missing\n"
            + "\n".join(lines)
        )
    read = [
        _read(config, *found[config.name], suite.metrics_of(config), settings)
        for config in suite.collections
        if config.name in found
    ]
    return read, missing


def _find(config: CollectionConfig, folder: Path | None) -> tuple[Path, str]:
    """Where a collection lies on this machine, and where it comes from."""
    if folder is not None and (local := folder / (config.folder or config.name)).is_dir():
        if not beir.qrels_file(local, config.split).is_file():
            raise UserError(f"{local}: has no qrels/{config.split}.tsv")
        return local, str(local)
    if not on_hub(config.path):
        return collection_folder(config.path, "path"), config.path
    place = downloaded_folder(config.path, config.split, CACHE / "collections")
    return place, resolved_path(place)


def _read(
    config: CollectionConfig,
    folder: Path,
    source: str,
    metrics: tuple[str, ...],
    settings: EvaluationConfig,
) -> SuiteCollection:
    evaluation = settings.model_copy(
        update={
            "path": str(folder),
            "split": config.split,
            "queries": None,
            "metrics": metrics,
            "exclude_self_match": config.exclude_self_match,
        }
    )
    content = read_collection(evaluation)
    counts = {"queries": len(content.queries), "documents": len(content.documents)}
    for what, count in counts.items():
        expected = getattr(config, what)
        if expected not in (None, count):
            raise UserError(
                f"collection {config.name}: {folder}, split {config.split!r}, has {count:,} "
                f"{'judged ' if what == 'queries' else ''}{what}, but the suite says {expected:,}: "
                f"another split or edition would give other figures; correct split, or {what}"
            )
    unjudged = sum(1 for _ in beir.queries(folder).rows()) - len(content.queries)
    return SuiteCollection(config, source, evaluation, content, unjudged)


def run_suite(
    suite: SuiteConfig,
    collections: Sequence[SuiteCollection],
    encoder: Encoder,
    backend: Backend,
    output: Path,
    *,
    label: str,
    model: str,
    missing: Mapping[str, str],
    baselines: Sequence[Path] = (),
) -> SuiteResult:
    """Evaluate a model on collections and write suite.json beside their results.

    Args:
        suite: what they belong to.
        collections: of `read_suite`.
        encoder: the model.
        backend: what computes the embeddings.
        output: gets NAME/metrics.json and NAME/run.trec of each collection, and suite.json.
        label: name in tables.
        model: what was evaluated, for the record.
        missing: of `read_suite`.
        baselines: suite.json files to compare with.

    Raises:
        UserError: a baseline was scored on other content, an embedding is not finite, or `output`
            cannot be written to.
    """
    others = {path: _baseline(path, collections) for path in baselines}
    results: dict[str, EvaluationResult] = {}
    for collection in collections:
        name = collection.config.name
        place, prompted = output / name, _prompted(encoder, collection.config)
        result = _finished(place, collection, prompted, backend, label)
        if result is None:
            result, run = evaluate_collection(
                prompted,
                collection.evaluation,
                collection.content,
                label=label,
                model=model,
                backend=backend,
            )
            write_results(place, result, run)
        else:
            print(f"{name}: evaluated before, {place / METRICS_FILE}")
        results[name] = result
    groups, average = averages(suite, {name: result.metrics for name, result in results.items()})
    suite_result = SuiteResult(
        suite=suite.name,
        note=suite.note,
        label=label,
        model=model,
        backend=backend,
        weights_sha256=encoder.weights_sha256,
        collections=tuple(_scores(each, results[each.config.name]) for each in collections),
        groups=groups,
        average=average,
        missing=dict(missing),
        comparisons=tuple(compare(name, results, other) for name, other in others.values()),
    )
    suite_result.write(output / SUITE_FILE)
    return suite_result


def _prompted(encoder: Encoder, config: CollectionConfig) -> Encoder:
    """The encoder with the collection's prompts."""
    prompts = {"query_prompt": config.query_prompt, "passage_prompt": config.passage_prompt}
    given = {name: prompt for name, prompt in prompts.items() if prompt is not None}
    if not given:
        return encoder
    other = copy.copy(encoder)
    other.contract = encoder.contract.model_copy(update=given)
    return other


def _finished(
    place: Path, collection: SuiteCollection, encoder: Encoder, backend: Backend, label: str
) -> EvaluationResult | None:
    """The result of an earlier run, if this one would compute the same."""
    if not (place / METRICS_FILE).is_file() or not (place / RUN_FILE).is_file():
        return None
    result = EvaluationResult.read(place / METRICS_FILE)
    # The content counts, not where it lies.
    settings = result.evaluation.model_copy(update={"path": collection.evaluation.path})
    before = (result.label, result.weights_sha256, result.contract, result.backend, settings)
    now = (label, encoder.weights_sha256, encoder.contract, backend, collection.evaluation)
    same = before == now and result.collection_sha256 == collection.content.sha256
    return result if same else None


def _baseline(
    path: Path, collections: Sequence[SuiteCollection]
) -> tuple[str, dict[str, EvaluationResult]]:
    """Label and results of another model's suite, on those collections that both have."""
    other = SuiteResult.read(path)
    files = {scores.name: path.parent / scores.result for scores in other.collections}
    results = {}
    for collection in collections:
        if (file := files.get(collection.config.name)) is None:
            logger.warning("%s: has no %s to compare with", path, collection.config.name)
            continue
        result = EvaluationResult.read(file)
        first = {collection.evaluation.metrics[0]}
        queries = collection.content.queries.keys()
        result.require_comparable(collection.content.sha256, queries, first, str(file))
        results[collection.config.name] = result
    return other.label, results


def _scores(collection: SuiteCollection, result: EvaluationResult) -> CollectionScores:
    return CollectionScores(
        name=collection.config.name,
        source=collection.source,
        split=collection.config.split,
        queries=result.queries,
        unjudged_queries=collection.unjudged_queries,
        documents=result.documents,
        exclude_self_match=result.evaluation.exclude_self_match,
        excluded_pairs=result.excluded_pairs,
        query_prompt=result.contract.query_prompt,
        passage_prompt=result.contract.passage_prompt,
        metrics=result.metrics,
        result=f"{collection.config.name}/{METRICS_FILE}",
    )
