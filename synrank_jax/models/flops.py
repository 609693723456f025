"""FLOPs of the matmuls of a training step, counted from the architecture.

A multiplication and an addition are two. Softmax, norms, activations and lookups are left out, as
in PaLM's model FLOPs utilisation (arXiv 2204.02311, appendix B): they are a few per cent of a BERT
and run on other units than the matmuls whose peak is published.
"""

from typing import Literal

from synrank_jax.models.bert import BertConfig


def forward_flops(config: BertConfig, tokens: int | float, squared: int | float) -> int | float:
    """One forward pass of the encoder.

    Args:
        config: The encoder.
        tokens: Tokens of all texts; slots, padding included, for what a device executes.
        squared: Sum of T^2 over the texts, T their tokens (or the slots they attend in).

    Returns:
        Per layer 8 H^2 tokens (query, key, value and output projections), 4 H I tokens (feed
        forward) and 4 H squared (logits and weighted values of attention).
    """
    hidden = config.hidden_size
    per_token = 8 * hidden**2 + 4 * hidden * config.intermediate_size
    return config.num_hidden_layers * (per_token * tokens + 4 * hidden * squared)


def step_flops(
    config: BertConfig,
    tokens: int | float,
    squared: int | float,
    pairs: int | float,
    *,
    executed: bool = False,
    chunked: bool = False,
    remat: Literal["none", "dots", "layer"] = "none",
) -> int | float:
    """One optimizer step: forward and backward of encoder and scores.

    A backward pass costs twice its forward pass, so the encoder runs 3 times its forward FLOPs.
    With the defaults of the last three, and true tokens, these are the model FLOPs that utilisation
    counts; what a device executes beyond them is overhead.

    Args:
        config: The encoder.
        tokens: As in `forward_flops`.
        squared: As in `forward_flops`.
        pairs: Scored (query, passage) pairs: Q P of every pool, or Q L under `scope: list`. All
            components are counted, also where `encoding.dimension` keeps fewer.
        executed: The backward pass computes the logits of attention once more, as all kernels do
            (`models.attention`; under dropout it need not).
        chunked: Gradient caching is at work (encode_chunk_size below a device's share of a pool):
            the encoder runs forward once more. The scores do not.
        remat: `layer` computes every layer's forward pass once more; `dots` only the matmuls of
            attention, whose results no policy keeps.
    """
    passes = 3 + chunked + (remat == "layer")
    attention = ((remat == "dots") + executed / 2) * forward_flops(config, 0, squared)
    scores = 2 * pairs * config.hidden_size
    return passes * forward_flops(config, tokens, squared) + attention + 3 * scores
