"""Configurations of encoders that are made in a test."""

from synrank_jax.models.bert import BertConfig


def small_bert(**values: int) -> BertConfig:
    """An encoder of the sizes given, for texts of 16 tokens by default."""
    others = {"max_position_embeddings": 16, "type_vocab_size": 1}
    return BertConfig(layer_norm_eps=1e-12, hidden_act="gelu", **{**others, **values})
