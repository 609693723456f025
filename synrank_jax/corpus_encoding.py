"""A corpus of any size to embeddings on disk: streamed, resumed at missing files, shared by hosts.

Memory holds a few files' worth of texts and embeddings (`embeddings.SHARD_ROWS` documents each).
"""

import time
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from synrank_jax.data.corpus import Corpus
from synrank_jax.encoders import Backend, Encoder
from synrank_jax.retrieval.embeddings import EmbeddingStore, StoreKey

Precision = Literal["float32", "float16"]


@dataclass(frozen=True)
class Part:
    """Which files of a store this process writes: those with number % count == index."""

    index: int
    count: int


@dataclass(frozen=True)
class Encoded:
    """What `encode_corpus` did. documents: encoded now, not found from before."""

    documents: int
    seconds: float


def store_key(encoder: Encoder, backend: Backend, corpus: Corpus, dtype: Precision) -> StoreKey:
    """What decides the embeddings of a corpus."""
    return StoreKey(
        contract=encoder.contract,
        weights_sha256=encoder.weights_sha256,
        backend=backend,
        texts_sha256=corpus.sha256,
        texts=len(corpus),
        dtype=dtype,
    )


def encode_corpus(
    encoder: Encoder, corpus: Corpus, store: EmbeddingStore, part: Part | None = None
) -> Encoded:
    """Write the files of `store` that are missing, of this process's part.

    Raises:
        UserError: an embedding is not finite; the disk is full.
    """
    mine = [shard for shard in store.shards() if part is None or shard % part.count == part.index]
    missing = set(store.missing())
    todo = [shard for shard in mine if shard in missing]
    found = sum(len(store.rows(shard)) for shard in mine if shard not in missing)
    total = sum(len(store.rows(shard)) for shard in todo)
    if found:
        print(f"{found:,} documents were encoded before, by this model: {store.folder}")
    if not todo:
        return Encoded(0, 0.0)
    began = time.perf_counter()
    windows = (corpus.texts(store.rows(shard).start, store.rows(shard).stop) for shard in todo)
    with encoding_progress() as progress:
        task = progress.add_task("encode documents", total=total)
        encoded = encoder.encode_windows(
            windows, "passage", lambda texts: progress.advance(task, texts)
        )
        for shard, embeddings in zip(todo, encoded, strict=True):
            store.write(shard, embeddings, corpus.ids)
    return Encoded(total, time.perf_counter() - began)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} texts/s")


def encoding_progress() -> Progress:
    """A progress bar on stderr with texts per second and the time left."""
    columns = (BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    return Progress(TextColumn("{task.description}"), *columns, console=Console(stderr=True))
