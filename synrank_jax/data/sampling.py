"""What preparing would give, measured on some of the lists: token lengths, size, examples."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from synrank_jax.data.contexts import RankingContext
from synrank_jax.data.shards import Job, ListEncoder
from synrank_jax.data.survey import Plan
from synrank_jax.data.tokenize import tokenize_texts

PERCENTILES = (5, 25, 50, 75, 95, 99, 100)
UNCUT = 2**20
FRAME_BYTES = 16  # of a TFRecord around every record


class Lengths(NamedTuple):
    """Token lengths of one side. percentiles: before cutting, of `PERCENTILES`."""

    percentiles: tuple[int, ...]
    limit: int
    truncated_share: float


class Sample(NamedTuple):
    """Figures of the lists that were looked at, spread evenly over those of draw 0."""

    lists: int
    query: Lengths
    passage: Lengths
    estimated_bytes: int
    """Of all shards."""
    examples: list[RankingContext]


def sample_lists(job: Job, lists: int, examples: int) -> Sample:
    """Tokenise at most `lists` of the lists, and pick `examples` of them.

    Raises:
        UserError: bad input.
    """
    plan = Plan(job.plan, job.mixture)
    chosen = _spread(len(plan.entries), lists)
    queries = (job.mixture.query(plan.entries[index].tolist()) for index in chosen)
    contexts = [context for query in queries if (context := job.mixture.context(query, 0))]
    encoder = ListEncoder(job)
    size = sum(len(record) + FRAME_BYTES for record in encoder.encode(contexts))
    texts = {
        "query": [context.query for context in contexts],
        "passage": [passage.text for context in contexts for passage in context.passages],
    }
    return Sample(
        lists=len(contexts),
        query=_lengths(job, encoder, "query", texts["query"]),
        passage=_lengths(job, encoder, "passage", texts["passage"]),
        estimated_bytes=size * len(plan.entries) * job.recipe.data.draws // len(contexts),
        examples=[contexts[index] for index in _spread(len(contexts), examples)],
    )


def _lengths(job: Job, encoder: ListEncoder, side: str, texts: list[str]) -> Lengths:
    contract = job.recipe.contract
    rows = tokenize_texts(job.tokenizer, texts, getattr(contract, f"{side}_prompt"), UNCUT)
    counts = encoder.counts(side)
    return Lengths(
        percentiles=_percentiles(np.array([len(row) for row in rows])),
        limit=getattr(contract, f"{side}_length"),
        truncated_share=counts.truncated / counts.texts,
    )


def _percentiles(lengths: NDArray[np.int64]) -> tuple[int, ...]:
    values = np.percentile(lengths, PERCENTILES, method="nearest")
    return tuple(int(value) for value in values)


def _spread(population: int, count: int) -> list[int]:
    """At most `count` indices, evenly spaced."""
    chosen: list[int] = np.linspace(0, population - 1, min(count, population)).astype(int).tolist()
    return chosen
