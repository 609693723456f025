"""Shapes that cross module borders.

Dimension letters: N pools per step, Q queries per pool, L list size, P = Q L passages, R packed
rows, S texts per row, T tokens, D embedding, H hidden, V vocabulary. A sharded dimension carries
its mesh axis: [Q_data, D].
"""

from typing import Any, NamedTuple

DATA, FSDP, TENSOR = "data", "fsdp", "tensor"
BATCH_AXES = (DATA, FSDP)
"""Mesh axes; the queries of a batch are split over the first two."""


class Tokens(NamedTuple):
    """Token ids of texts, padded on the right.

    input_ids: [..., T] int32; attention_mask: [..., T] bool, False at padding.
    """

    input_ids: Any
    attention_mask: Any


class PackedTexts(NamedTuple):
    """S texts in each of R rows, one after the other, shortest first.

    input_ids: [..., R, T] int32; 0 at the row's end, where no text is.
    positions: [..., R, T] int32, from 0 in every text.
    segment_ids: [..., R, T] int32, number of the text in the row's order, -1 at the end.
    blocks: tuple of [..., R, S_g, T_g] int32, the row's texts in order, each as the places of its
        tokens in the row; -1 is padding.
    places: [..., R, S] int32, where each text is in the row's order.
    """

    input_ids: Any
    positions: Any
    segment_ids: Any
    blocks: tuple[Any, ...]
    places: Any


class Batch(NamedTuple):
    """One optimizer step's ranking contexts (NumPy on the host, sharded jax.Array on devices).

    texts: PackedTexts [N, R, ...]; the S = Q / R (1 + L) texts of row r are those of the pool's
        lists r Q / R and following: a query, its L passages, the next query. A passage that is
        masked has no token. A device encodes one row after the other.
    labels: [N, Q, L] float32 grades; 0 where masked.
    where: [N, Q, L] bool, False at list padding.
    passage_ids: [N, Q, L] int32, equal exactly for equal document ids; -1 where masked.
    excluded_ids: [N, Q, J] int32, further documents that are no negatives for the query, numbered
        as passage_ids; -1 is padding.
    sample_ids: [N, Q] int32, position of the record in the prepared set.
    """

    texts: PackedTexts
    labels: Any
    where: Any
    passage_ids: Any
    excluded_ids: Any
    sample_ids: Any
