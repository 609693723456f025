"""Shapes that cross module borders.

Dimension letters: N pools per step, Q queries per pool, L list size, P = Q L passages, T tokens,
D embedding, H hidden, V vocabulary. A sharded dimension carries its mesh axis: [Q_data, D].
"""

from typing import Any, NamedTuple


class Tokens(NamedTuple):
    """Token ids of texts, padded on the right.

    input_ids: [..., T] int32; attention_mask: [..., T] bool, False at padding.
    """

    input_ids: Any
    attention_mask: Any


class Batch(NamedTuple):
    """One optimizer step's ranking contexts (NumPy on the host, sharded jax.Array on devices).

    query: Tokens [N, Q, T].
    passage: Tokens [N, Q, L, T'].
    labels: [N, Q, L] float32 grades; 0 where masked.
    where: [N, Q, L] bool, False at list padding.
    passage_ids: [N, Q, L] int32, equal exactly for equal document ids; -1 where masked.
    excluded_ids: [N, Q, J] int32, further documents that are no negatives for the query, numbered
        as passage_ids; -1 is padding.
    sample_ids: [N, Q] int32, position of the record in the prepared set.
    """

    query: Tokens
    passage: Tokens
    labels: Any
    where: Any
    passage_ids: Any
    excluded_ids: Any
    sample_ids: Any
