"""From ranking contexts to a prepared folder: tokenised shards, sizes and the manifest."""

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from synrank_jax.config import DataConfig
from synrank_jax.contract import EncodingContract
from synrank_jax.data.contexts import RankingContext
from synrank_jax.data.examples import encode_list
from synrank_jax.data.manifest import MANIFEST_FILE, FileStamp, Manifest, Recipe, TokenCounts
from synrank_jax.data.records import WrittenFile, write_records
from synrank_jax.data.tokenize import tokenize_counting
from synrank_jax.errors import UserError
from synrank_jax.files import atomic_write

SHARD_NAME = "lists-train.tfrecord-{:05d}-of-{:05d}"
SIZES_NAME = "lists-train.sizes.npy"
# Everything this module ever writes into the folder, temporary files of a killed run included.
OUR_FILES = (MANIFEST_FILE, "lists-train.*", ".lists-train.*.tmp", f".{MANIFEST_FILE}.*.tmp")
# Lists tokenised at once: enough to keep all threads of the tokenizer busy, small in memory.
CHUNK = 512


def write_prepared(
    contexts: Sequence[RankingContext],
    tokenizer: Tokenizer,
    contract: EncodingContract,
    data: DataConfig,
    folder: Path,
    on_progress: Callable[[int], object] = lambda lists: None,
) -> Manifest:
    """Tokenise the lists and write shards, sizes and, last, the manifest.

    Our files of an earlier preparation in `folder` are removed first. Record i of the shards, taken
    in order, is `contexts[i]`; equal input gives equal bytes.

    Args:
        contexts: The lists (`contexts.read_contexts`).
        tokenizer: The tokenizer of the contract (`contract.load_tokenizer`).
        contract: Prompts and lengths.
        data: Sources, grades, list size and number of shards, recorded in the manifest.
        folder: Made if missing.
        on_progress: Called with the number of lists just written.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    recipe = Recipe.of(data, contract)
    _clear(folder)
    numbers = _number_documents(contexts)
    encoder = _Encoder(tokenizer, contract, numbers, on_progress)
    borders = np.linspace(0, len(contexts), data.shards + 1).astype(int).tolist()
    shards = []
    for shard in range(data.shards):
        name = SHARD_NAME.format(shard, data.shards)
        part = contexts[borders[shard] : borders[shard + 1]]
        shards.append(FileStamp.of(name, write_records(folder / name, encoder.records(part))))
    manifest = Manifest(
        **dict(recipe),
        lists=len(contexts),
        lists_sha256=encoder.sha256.hexdigest(),
        documents=len(numbers),
        grade_counts=_counted(p.grade for context in contexts for p in context.passages),
        size_counts=_counted(len(context.passages) for context in contexts),
        query_tokens=encoder.counts("query"),
        passage_tokens=encoder.counts("passage"),
        sizes=_write_sizes(folder, encoder.sizes),
        shards=tuple(shards),
    )
    with atomic_write(folder / MANIFEST_FILE) as file:
        file.write(manifest.model_dump_json(indent=2).encode() + b"\n")
    return manifest


class _Encoder:
    """Turns lists into records, and tallies what the manifest says about them."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        contract: EncodingContract,
        numbers: Mapping[str, int],
        on_progress: Callable[[int], object],
    ) -> None:
        self._tokenizer = tokenizer
        self._contract = contract
        self._numbers = numbers
        self._on_progress = on_progress
        self._truncated = {"query": 0, "passage": 0}
        self._lengths: dict[str, list[int]] = {"query": [], "passage": []}
        self.sha256 = hashlib.sha256()
        self.sizes: list[tuple[int, int, int]] = []

    def records(self, contexts: Sequence[RankingContext]) -> Iterator[bytes]:
        """The serialised lists, in order."""
        for start in range(0, len(contexts), CHUNK):
            chunk = contexts[start : start + CHUNK]
            queries = self._tokenize("query", [context.query for context in chunk])
            texts = [passage.text for context in chunk for passage in context.passages]
            passages = iter(self._tokenize("passage", texts))
            for context, query in zip(chunk, queries, strict=True):
                tokens = [next(passages) for _ in context.passages]
                record = self._record(context, query, tokens)
                self.sha256.update(record)
                yield record
            self._on_progress(len(chunk))

    def counts(self, side: str) -> TokenCounts:
        """What was tokenised of a side so far."""
        lengths = self._lengths[side]
        return TokenCounts(
            texts=len(lengths),
            tokens=sum(lengths),
            longest=max(lengths),
            truncated=self._truncated[side],
        )

    def _tokenize(self, side: str, texts: list[str]) -> list[NDArray[np.int32]]:
        prompt = getattr(self._contract, f"{side}_prompt")
        length = getattr(self._contract, f"{side}_length")
        rows, truncated = tokenize_counting(self._tokenizer, texts, prompt, length)
        self._truncated[side] += truncated
        self._lengths[side] += map(len, rows)
        return rows

    def _record(
        self, context: RankingContext, query: NDArray[np.int32], passages: list[NDArray[np.int32]]
    ) -> bytes:
        # Only documents of the set can be met in a batch.
        excluded = [self._numbers[d] for d in context.excluded if d in self._numbers]
        self.sizes.append((len(query), max(map(len, passages)), len(excluded)))
        doc_ids = [passage.doc_id for passage in context.passages]
        return encode_list(
            query_id=context.query_id,
            query_tokens=query,
            passage_ids=doc_ids,
            passage_numbers=[self._numbers[doc_id] for doc_id in doc_ids],
            passage_tokens=passages,
            grades=[passage.grade for passage in context.passages],
            excluded_numbers=excluded,
        )


def _number_documents(contexts: Iterable[RankingContext]) -> dict[str, int]:
    """Document id -> number, in order of appearance."""
    numbers: dict[str, int] = {}
    for context in contexts:
        for passage in context.passages:
            numbers.setdefault(passage.doc_id, len(numbers))
    return numbers


def _write_sizes(folder: Path, sizes: list[tuple[int, int, int]]) -> FileStamp:
    buffer = io.BytesIO()
    np.save(buffer, np.array(sizes, np.int32), allow_pickle=False)
    content = buffer.getvalue()
    with atomic_write(folder / SIZES_NAME) as file:
        file.write(content)
    digest = hashlib.sha256(content).hexdigest()
    return FileStamp.of(SIZES_NAME, WrittenFile(len(sizes), len(content), digest))


def _clear(folder: Path) -> None:
    """Make the folder; remove what an earlier preparation wrote, its manifest first."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for pattern in OUR_FILES:
            for path in sorted(folder.glob(pattern)):
                path.unlink()
    except OSError as error:
        raise UserError(
            f"data.prepared {folder}: cannot be written ({error.strerror}); choose another folder"
        ) from error


def _counted(values: Iterable[int]) -> dict[int, int]:
    return dict(sorted(Counter(values).items()))
