"""One shard of a prepared folder: lists tokenised into records, their sizes, and a stamp.

`write_shard` is a pure function of the job and the shard's number: it needs nothing from other
shards and writes the same bytes wherever it runs, so a pool of processes, or an Apache Beam
pipeline over a shared file system, may map it in any order. The stamp is written last; a shard
whose stamp is of the same recipe need not be written again.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydantic
from numpy.typing import NDArray
from tokenizers import Tokenizer

from synrank_jax.config_section import Section
from synrank_jax.data.contexts import Mixture, RankingContext
from synrank_jax.data.examples import encode_list
from synrank_jax.data.manifest import FileStamp, Recipe, TokenCounts, is_whole
from synrank_jax.data.records import WrittenFile, write_records
from synrank_jax.data.survey import Plan
from synrank_jax.data.tokenize import tokenize_counting
from synrank_jax.files import atomic_write, write_text

SHARD_NAME = "lists-train.tfrecord-{:05d}-of-{:05d}"
PART_NAME = "lists-train.sizes-{:05d}-of-{:05d}.npy"
STAMP_NAME = "lists-train.stamp-{:05d}-of-{:05d}.json"
# Lists tokenised at once: enough to keep all threads of the tokenizer busy, small in memory.
CHUNK = 512


class Job(NamedTuple):
    """All that writing a shard needs; picklable, and small: the sources stay on disk."""

    recipe: Recipe
    tokenizer: Tokenizer
    mixture: Mixture
    plan: Path
    folder: Path


class ShardStamp(Section):
    """What a finished shard holds."""

    recipe_sha256: str
    shard: FileStamp
    sizes: FileStamp
    grade_counts: dict[int, int]
    size_counts: dict[int, int]
    query_tokens: TokenCounts
    passage_tokens: TokenCounts


def stamp_file(job: Job, shard: int) -> Path:
    """Where the stamp of a shard is."""
    return job.folder / STAMP_NAME.format(shard, job.recipe.data.shards)


def finished(job: Job, shard: int) -> ShardStamp | None:
    """The stamp of a shard of this recipe that is whole, else None."""
    try:
        stamp = ShardStamp.model_validate_json(stamp_file(job, shard).read_bytes())
    except (OSError, pydantic.ValidationError):
        return None
    whole = is_whole(stamp.shard, job.folder) and is_whole(stamp.sizes, job.folder)
    return stamp if whole and stamp.recipe_sha256 == job.recipe.fingerprint() else None


def write_shard(
    job: Job, shard: int, on_progress: Callable[[int], object] = lambda lists: None
) -> ShardStamp:
    """Write a shard, the sizes of its lists, and its stamp; none of them half.

    Raises:
        UserError: bad input; the folder cannot be written, or the disk is full.
    """
    encoder = ListEncoder(job)
    count = job.recipe.data.shards
    name, part = SHARD_NAME.format(shard, count), PART_NAME.format(shard, count)
    written = write_records(job.folder / name, encoder.records(shard, on_progress))
    sizes = np.array(encoder.sizes, np.int32).reshape(-1, 2 + job.recipe.data.list_size)
    stamp = ShardStamp(
        recipe_sha256=job.recipe.fingerprint(),
        shard=FileStamp.of(name, written),
        sizes=write_sizes(job.folder, part, sizes),
        grade_counts=dict(sorted(encoder.grades.items())),
        size_counts=dict(sorted(encoder.list_sizes.items())),
        query_tokens=encoder.counts("query"),
        passage_tokens=encoder.counts("passage"),
    )
    write_text(stamp_file(job, shard), stamp.model_dump_json() + "\n")
    return stamp


class ListEncoder:
    """Turns lists into records, and tallies what the manifest says about them."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._plan = Plan(job.plan, job.mixture)
        self._truncated = {"query": 0, "passage": 0}
        self._lengths: dict[str, list[int]] = {"query": [], "passage": []}
        self.sizes: list[list[int]] = []
        self.grades: Counter[int] = Counter()
        self.list_sizes: Counter[int] = Counter()

    def records(self, shard: int, on_progress: Callable[[int], object]) -> Iterator[bytes]:
        """The serialised lists of a shard, in order."""
        data, lists = self._job.recipe.data, len(self._plan.entries)
        borders = np.linspace(0, lists * data.draws, data.shards + 1).astype(int).tolist()
        numbers = range(borders[shard], borders[shard + 1])
        for start in range(0, len(numbers), CHUNK):
            chunk = [self._context(number) for number in numbers[start : start + CHUNK]]
            yield from self.encode(chunk)
            on_progress(len(chunk))

    def _context(self, number: int) -> RankingContext:
        draw, entry = divmod(number, len(self._plan.entries))
        mixture = self._job.mixture
        context = mixture.context(mixture.query(self._plan.entries[entry].tolist()), draw)
        assert context is not None, "the plan keeps queries that have a list in every draw"
        return context

    def encode(self, contexts: list[RankingContext]) -> Iterator[bytes]:
        """Lists as serialised records."""
        queries = self._tokenize("query", [context.query for context in contexts])
        texts = [passage.text for context in contexts for passage in context.passages]
        passages = iter(self._tokenize("passage", texts))
        for context, query in zip(contexts, queries, strict=True):
            tokens = [next(passages) for _ in context.passages]
            self.list_sizes[len(tokens)] += 1
            self.grades.update(passage.grade for passage in context.passages)
            yield self._record(context, query, tokens)

    def counts(self, side: str) -> TokenCounts:
        """What was tokenised of a side so far."""
        lengths = self._lengths[side]
        return TokenCounts(
            texts=len(lengths),
            tokens=sum(lengths),
            longest=max(lengths, default=0),
            truncated=self._truncated[side],
        )

    def _tokenize(self, side: str, texts: list[str]) -> list[list[int]]:
        contract = self._job.recipe.contract
        prompt, length = getattr(contract, f"{side}_prompt"), getattr(contract, f"{side}_length")
        rows, truncated = tokenize_counting(self._job.tokenizer, texts, prompt, length)
        self._truncated[side] += truncated
        self._lengths[side] += map(len, rows)
        return rows

    def _record(
        self, context: RankingContext, query: list[int], passages: list[list[int]]
    ) -> bytes:
        # Only documents of the set can be met in a batch.
        excluded = [number for number in context.excluded if self._plan.numbers[number] >= 0]
        excluded.sort(key=self._job.mixture.documents.id)
        missing = [0] * (self._job.recipe.data.list_size - len(passages))
        self.sizes.append([len(excluded), len(query), *map(len, passages), *missing])
        numbers = [passage.number for passage in context.passages]
        return encode_list(
            query_id=context.query_id,
            query_tokens=query,
            passage_ids=[passage.doc_id for passage in context.passages],
            passage_numbers=self._plan.numbers[numbers].tolist(),
            passage_tokens=passages,
            grades=[passage.grade for passage in context.passages],
            excluded_numbers=self._plan.numbers[excluded].tolist(),
        )


def write_sizes(folder: Path, name: str, sizes: NDArray[np.int32]) -> FileStamp:
    """Write int32 [records, 2 + L] (`manifest.read_sizes`) as an .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, sizes, allow_pickle=False)
    content = buffer.getvalue()
    with atomic_write(folder / name) as file:
        file.write(content)
    digest = hashlib.sha256(content).hexdigest()
    return FileStamp.of(name, WrittenFile(len(sizes), len(content), digest))
