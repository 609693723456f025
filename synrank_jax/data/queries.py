"""The queries that `generate` writes lists for: of a file, a folder, or the hub."""

from collections.abc import Iterator
from pathlib import Path

from synrank_jax.config import SourceConfig
from synrank_jax.config_generation import QueriesConfig
from synrank_jax.data import beir, columns, formats
from synrank_jax.data.lines import identifier, member, read_objects, read_table
from synrank_jax.data.streams import Pair, Text
from synrank_jax.errors import UserError
from synrank_jax.hub import collection_folder

FIELD = "queries.path"


def asked_queries(config: QueriesConfig) -> Iterator[Text]:
    """The queries of `config`, in file order, read as they are needed.

    Raises:
        UserError: a file is missing or malformed, a query is empty or its id does not print, the
            subset names unknown queries, or no query is left.
    """
    wanted = _wanted(config)
    count = 0
    for text in _all_queries(config):
        if wanted is not None:
            if text.id not in wanted:
                continue
            wanted.discard(text.id)
        if not text.text:
            raise UserError(f"{text.place}: query {text.id!r} is empty; remove it")
        if not text.id.isprintable():
            raise UserError(
                f"{text.place}: query id {text.id!r} has a tab, a line break or another character "
                "that does not print, which tables cannot hold; rename it"
            )
        yield text
        count += 1
        if count == config.limit:
            return
    if wanted and config.subset is not None:
        raise UserError(
            f"queries.subset {config.subset}: {len(wanted)} of its ids are no query of "
            f"{config.path}, for example {min(wanted)!r}"
        )
    if not count:
        raise UserError(f"{FIELD} {config.path}: no query there")


def _wanted(config: QueriesConfig) -> set[str] | None:
    """Ids of subset and split, as far as given; None: all."""
    wanted: set[str] | None = None
    if config.split is not None:
        wanted = {pair.query_id for pair in _judgements(config.path, config.split)}
    if config.subset is not None:
        subset = set(beir.read_query_subset(Path(config.subset).expanduser()))
        wanted = subset if wanted is None else wanted & subset
        if not wanted:
            raise UserError(
                f"queries.subset {config.subset}: none of its queries has judgements in "
                f"queries.split {config.split}"
            )
    return wanted


def _judgements(path: str, split: str) -> Iterator[Pair]:
    if columns.on_hub(path):
        return columns.hub_pairs(path, split).rows()
    folder = collection_folder(path, FIELD)
    if formats.trec_qrels_file(folder, split).is_file():
        return formats.trec_qrels(folder, split).rows()
    return beir.judgements(folder, split).rows()


def _all_queries(config: QueriesConfig) -> Iterator[Text]:
    path = Path(config.path).expanduser()
    names = path.suffixes
    if path.is_file() and ".tsv" in names:
        for place, (query_id, query) in read_table(path, ("id", "text"), header=False):
            yield Text(place, query_id, query.strip())
    elif path.is_file() and ".jsonl" in names:
        for place, record in read_objects(path):
            query_id = identifier(member(record, "_id", place), "_id", place)
            yield Text(place, query_id, beir.query_text(record, place))
    elif path.is_file():
        raise UserError(f"{FIELD} {path}: neither .tsv (id, text) nor .jsonl (_id, text)")
    elif path.suffix in (".tsv", ".jsonl", ".gz", ".zst"):
        raise UserError(f"{FIELD} {path}: no such file")
    else:
        source = SourceConfig(path=config.path, split=config.split or "train")
        yield from formats.queries_of(source, FIELD).rows()
