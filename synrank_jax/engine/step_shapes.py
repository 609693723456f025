"""The shapes of a training step without data or weights: what a compilation needs."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from synrank_jax.config import Config
from synrank_jax.contract import EncodingContract
from synrank_jax.data.manifest import MANIFEST_FILE
from synrank_jax.data.packing import RowShape, RowShapes, block_borders, needs
from synrank_jax.data.pipeline import PreparedLists, longest_rows
from synrank_jax.errors import UserError
from synrank_jax.parallel.mesh import batch_sharding
from synrank_jax.types import Batch, PackedTexts


class Lengths(NamedTuple):
    """The texts of an average list, and the shape of the rows that hold them.

    tokens: of the query and its passages; squared: sum of their squared lengths; row: shape of
    every packed row, of which a pool has `rows`; passages: L; excluded: J of `Batch`; source: where
    all this is from, for the reader.
    """

    tokens: float
    squared: float
    row: RowShape
    rows: int
    passages: int
    excluded: int
    source: str

    def borders(self, pool_size: int) -> list[int]:
        """Where the blocks of a row of a pool begin and end."""
        return block_borders(pool_size // self.rows * (1 + self.passages))

    def row_squared(self, pool_size: int) -> int:
        """Sum of the squared block widths of a row's texts, which attention costs."""
        borders = self.borders(pool_size)
        blocks = zip(borders[:-1], borders[1:], self.row.widths, strict=True)
        return sum((end - begin) * width**2 for begin, end, width in blocks)


def step_lengths(
    config: Config, contract: EncodingContract, rows: int, assumed: tuple[int, int] | None
) -> Lengths:
    """Lengths of the prepared lists if there are any, else of assumed ones.

    Args:
        config: the whole configuration.
        contract: its encoding contract.
        rows: packed rows of a loss pool.
        assumed: tokens of every query and every passage; None: those of data.prepared, or if it
            has not been prepared, the longest that the contract allows.

    Raises:
        UserError: the prepared folder is damaged or has another contract, or the assumed lengths
            are not within the contract's.
    """
    folder = Path(config.data.prepared).expanduser()
    if assumed is None and (folder / MANIFEST_FILE).is_file():
        return _prepared(config, contract, rows, PreparedLists(folder))
    longest = (contract.query_length, contract.passage_length)
    given = assumed or longest
    if not all(1 <= length <= most for length, most in zip(given, longest, strict=True)):
        raise UserError(
            f"--mean-tokens {given[0]},{given[1]}: encoding.query_length and passage_length allow "
            f"1 to {longest[0]} and 1 to {longest[1]}"
        )
    of_list = np.array([given[0]] + [given[1]] * config.data.list_size)
    of_row = np.tile(of_list, config.pool_size() // rows)
    need = needs(of_row)
    return Lengths(
        tokens=float(of_list.sum()),
        squared=float((of_list**2).sum()),
        row=RowShapes(need[None], max(longest)).of(need),
        rows=rows,
        passages=config.data.list_size,
        excluded=0,
        source=f"assumed: every query has {given[0]} tokens and every passage {given[1]}",
    )


def _prepared(
    config: Config, contract: EncodingContract, rows: int, lists: PreparedLists
) -> Lengths:
    stored = lists.manifest.contract
    # The tokenizer need not be at hand.
    contract = contract.model_copy(update={"tokenizer_sha256": stored.tokenizer_sha256})
    stored.require_equal(contract, config.data.prepared, "this configuration")
    lengths = lists.lengths(np.arange(len(lists))).astype(np.int64)
    row = longest_rows(
        lists,
        seed=config.train.seed,
        global_batch_size=config.train.global_batch_size,
        pool_size=config.pool_size(),
        rows=rows,
    )
    return Lengths(
        tokens=float(lengths.sum(axis=1).mean()),
        squared=float((lengths**2).sum(axis=1).mean()),
        row=row,
        rows=rows,
        passages=lists.manifest.data.list_size,
        excluded=lists.most_excluded(),
        source=f"the longest rows of a run over the {len(lists)} lists of {config.data.prepared}",
    )


def abstract_batch(config: Config, mesh: Mesh, lengths: Lengths) -> Batch:
    """Shapes, dtypes and shardings of a batch."""
    sharding = batch_sharding(mesh)
    queries, items, rows = config.pool_size(), lengths.passages, lengths.rows
    pools = config.train.global_batch_size // queries
    texts = queries // rows * (1 + items)
    borders = lengths.borders(queries)

    def array(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((pools, *shape), dtype, sharding=sharding)

    tokens = (rows, lengths.row.tokens)
    blocks = zip(borders[:-1], borders[1:], lengths.row.widths, strict=True)
    return Batch(
        texts=PackedTexts(
            input_ids=array(*tokens),
            positions=array(*tokens),
            segment_ids=array(*tokens),
            blocks=tuple(array(rows, end - begin, width) for begin, end, width in blocks),
            places=array(rows, texts),
        ),
        labels=array(queries, items, dtype=jnp.float32),
        where=array(queries, items, dtype=jnp.bool_),
        passage_ids=array(queries, items),
        excluded_ids=array(queries, lengths.excluded),
        sample_ids=array(queries),
    )
