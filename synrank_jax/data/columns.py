"""The MTEB retrieval layout: parquet files read with pyarrow, hub datasets with `datasets`.

A folder holds corpus and queries (`_id` or `id`, title, text) and the judgements of each split
(query-id, corpus-id, score), as parquet files corpus/*.parquet or corpus-*.parquet, queries the
same, qrels/SPLIT*.parquet or data/SPLIT*.parquet; or as corpus.jsonl, queries.jsonl and
qrels/SPLIT.jsonl. A hub dataset `hub:owner/name` or `hub:owner/name@revision` has them as
configurations corpus, queries and qrels or default (or a dataset of its own, owner/name-qrels).
Both libraries are optional and imported when needed.
"""

import functools
import hashlib
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from synrank_jax.data import beir
from synrank_jax.data.lines import Place, existing_file, identifier, member, read_objects, score
from synrank_jax.data.streams import Pair, Stream, Text, content_sha256
from synrank_jax.errors import UserError

HUB = "hub:"
COMMIT = re.compile("[0-9a-f]{40}")
BATCH_ROWS = 1024


def texts(folder: Path, part: str) -> Stream[Text] | None:
    """The parquet texts `corpus` or `queries` of a folder; None if it has none."""
    files = _files(folder, f"{part}/*.parquet", f"{part}-*.parquet")
    if not files:
        return None
    return Stream(f"parquet {part}", files, lambda: _as_texts(_parquet_rows(files), part))


def pairs(folder: Path, split: str) -> Stream[Pair]:
    """The judgements of a split.

    Raises:
        UserError: the folder has none.
    """
    names = (f"{split}.parquet", f"{split}-*.parquet")
    files = _files(folder, *(f"{within}/{name}" for within in ("qrels", "data") for name in names))
    if files:
        return Stream("parquet qrels", files, lambda: _as_pairs(_parquet_rows(files)))
    file = existing_file(folder / "qrels", f"{split}.jsonl")
    if file is None:
        raise UserError(
            f"{folder}: has no judgements of split {split!r}: neither qrels/{split}*.parquet, "
            f"data/{split}*.parquet nor qrels/{split}.jsonl"
        )
    return Stream("jsonl qrels", (file,), lambda: _as_pairs(read_objects(file)))


def on_hub(path: str) -> bool:
    """Whether a source's path names a hub dataset."""
    return path.startswith(HUB)


def pinned(path: str) -> str:
    """The path of a hub dataset with the commit that it names or has now, once it answers.

    Raises:
        UserError: the hub cannot be asked.
    """
    dataset = _hub_dataset(path)
    if dataset.revision is None:
        return path
    # Fails at once without a network, where `datasets` tries again for half a minute.
    _hub_commit(dataset.repo, dataset.revision)
    return f"{HUB}{dataset.repo}@{dataset.revision}"


def hub_texts(path: str, part: str) -> Stream[Text]:
    """The configuration `corpus` or `queries` of a hub dataset, streamed."""
    dataset = _hub_dataset(path)
    return Stream(
        f"hub {part}", (), lambda: _as_texts(_hub_rows(dataset, part, None), part), dataset.origin
    )


def hub_pairs(path: str, split: str) -> Stream[Pair]:
    """The judgements of a split of a hub dataset, streamed."""
    dataset = _hub_dataset(path)
    configs = _ask("get_dataset_config_names", dataset)
    config = next((name for name in ("qrels", "default") if name in configs), None)
    if config is None:
        dataset, config = _hub_dataset(f"{HUB}{dataset.repo}-qrels"), "default"
    return Stream(
        f"hub qrels {split}",
        (),
        lambda: _as_pairs(_hub_rows(dataset, config, split)),
        dataset.origin,
    )


def _as_texts(rows: Iterator[tuple[Place, dict[str, Any]]], part: str) -> Iterator[Text]:
    text_of = beir.document_text if part == "corpus" else beir.query_text
    for place, record in rows:
        name = next((name for name in ("_id", "id") if name in record), "_id")
        text_id = identifier(member(record, name, place), name, place)
        yield Text(place, text_id, text_of(record, place))


def _as_pairs(rows: Iterator[tuple[Place, dict[str, Any]]]) -> Iterator[Pair]:
    for place, record in rows:
        query_id = identifier(member(record, "query-id", place), "query-id", place)
        doc_id = identifier(member(record, "corpus-id", place), "corpus-id", place)
        value = score(member(record, "score", place), "score", place)
        yield Pair(place, query_id, doc_id, value)


def _files(folder: Path, *patterns: str) -> tuple[Path, ...]:
    """The files of the first pattern that has any, sorted by name."""
    matches = (tuple(sorted(folder.glob(pattern))) for pattern in patterns)
    return next((files for files in matches if files), ())


def _parquet_rows(files: tuple[Path, ...]) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Rows of parquet files; a Place counts them within their file."""
    parquet = _import("pyarrow.parquet", "pyarrow")
    for path in files:
        row = 0
        try:
            with parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=BATCH_ROWS):
                    for record in batch.to_pylist():
                        row += 1
                        yield Place(path, row), record
        except (OSError, _import("pyarrow", "pyarrow").ArrowException) as error:
            raise UserError(f"{path}: cannot be read after row {row} ({error})") from error


class _HubDataset(NamedTuple):
    """revision: The commit that is read, whatever happens on the hub meanwhile.
    origin: What stands for the content.
    """

    repo: str
    revision: str | None
    origin: str


def _hub_dataset(path: str) -> _HubDataset:
    repo, _, revision = path.removeprefix(HUB).partition("@")
    folder = Path(repo)
    if repo and folder.is_dir():  # `datasets` reads it in the same way
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        content = "".join(f"{path.relative_to(folder)} {content_sha256(path)}\n" for path in files)
        return _HubDataset(repo, None, hashlib.sha256(content.encode()).hexdigest())
    commit = revision if COMMIT.fullmatch(revision) else _hub_commit(repo, revision or None)
    return _HubDataset(repo, commit, f"{repo} {commit}")


@functools.lru_cache
def _hub_commit(repo: str, revision: str | None) -> str:
    from huggingface_hub import dataset_info

    try:
        return str(dataset_info(repo, revision=revision).sha)
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise _unreachable(repo, error) from error


def _hub_rows(
    dataset: _HubDataset, config: str, split: str | None
) -> Iterator[tuple[Place, dict[str, Any]]]:
    splits = _ask("get_dataset_split_names", dataset, config)
    if split is None:
        split = splits[0] if len(splits) == 1 else config
    if split not in splits:
        raise UserError(
            f"{HUB}{dataset.repo}: configuration {config!r} has no split {split!r}; its splits "
            f"are: {', '.join(splits)}"
        )
    rows = _ask("load_dataset", dataset, config, split=split, streaming=True)
    place = Path(f"{HUB}{dataset.repo}") / config / split
    try:
        for number, record in enumerate(rows, start=1):
            yield Place(place, number), record
    except Exception as error:  # see _ask
        raise _unreachable(dataset.repo, error) from error


def _ask(function: str, dataset: _HubDataset, *args: Any, **options: Any) -> Any:
    """Call a function of the library `datasets`."""
    datasets = _import("datasets", "datasets")
    try:
        return getattr(datasets, function)(
            dataset.repo, *args, revision=dataset.revision, **options
        )
    except Exception as error:  # anything from its own errors to those of three HTTP clients
        raise _unreachable(dataset.repo, error) from error


def _unreachable(repo: str, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UserError(
        f"{HUB}{repo}: the hub could not give this dataset ({type(error).__name__}: {reason}); "
        "check the name, or give a downloaded folder"
    )


def _import(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"this source needs the package {package}; install it (pip install "
            "'synrank-jax[sources]'), or give the source as JSONL"
        ) from error
