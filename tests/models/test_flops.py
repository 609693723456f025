"""The FLOPs formula against the traced program, and against XLA's own count."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params
from small_bert import small_bert

from synrank_jax.models.bert import BertConfig, BertEncoder
from synrank_jax.models.flops import forward_flops, step_flops
from synrank_jax.models.numerics import Numerics

# Wide enough that matmuls dominate as they do in real encoders.
WIDE = small_bert(
    vocab_size=11,
    hidden_size=384,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=1536,
    max_position_embeddings=64,
)
TEXTS, LENGTH, QUERIES = 8, 32, 2
TOKENS, SQUARED = TEXTS * LENGTH, TEXTS * LENGTH**2
PAIRS = QUERIES * (TEXTS - QUERIES)
# XLA counts elementwise work too (gelu, softmax, norms and their gradients): per token some tens of
# operations on H + I values, where the matmuls do thousands. At this width that is 1 %.
XLA_ABOVE = 0.03


def dot_flops(jaxpr: Any) -> int:
    """2 x output size x contracted size of every dot_general of a jaxpr and those inside it."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            (out,) = equation.outvars
            total += 2 * out.aval.size * math.prod(shape[axis] for axis in contracted)
        for inner in jaxprs_in_params(equation.params):
            total += dot_flops(inner)
    return total


def forward(config: BertConfig = WIDE) -> tuple[Any, Any]:
    """tokens -> scores of the first texts, the queries, with the others; and the weights."""
    encoder = BertEncoder(config, Numerics(), rngs=nnx.Rngs(0))
    structure, params = nnx.split(encoder)

    def scores(params: Any) -> jax.Array:
        ids = jnp.asarray(np.arange(TOKENS).reshape(TEXTS, LENGTH) % config.vocab_size, jnp.int32)
        hidden = nnx.merge(structure, params)(ids, jnp.ones((TEXTS, LENGTH), bool))
        embedded = hidden[:, 0]
        return embedded[:QUERIES] @ embedded[QUERIES:].T

    return scores, params


def loss(params: Any) -> jax.Array:
    return jnp.sum(forward()[0](params) ** 2)


def test_a_forward_pass_has_the_matmuls_of_the_formula():
    scores, params = forward()
    counted = dot_flops(jax.make_jaxpr(scores)(params).jaxpr)
    assert counted == forward_flops(WIDE, TOKENS, SQUARED) + 2 * PAIRS * WIDE.hidden_size


def test_a_step_has_three_times_the_matmuls_of_its_forward_pass_and_the_logits_again():
    counted = dot_flops(jax.make_jaxpr(jax.value_and_grad(loss))(forward()[1]).jaxpr)
    assert counted == step_flops(WIDE, TOKENS, SQUARED, PAIRS, executed=True)
    logits = forward_flops(WIDE, 0, SQUARED) / 2
    assert counted == step_flops(WIDE, TOKENS, SQUARED, PAIRS) + logits


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "step"])
def test_xla_counts_little_more(backward: bool):
    scores, params = forward()
    function = jax.value_and_grad(loss) if backward else scores
    counted = jax.jit(function).lower(params).compile().cost_analysis()["flops"]
    formula = (
        step_flops(WIDE, TOKENS, SQUARED, PAIRS, executed=True)
        if backward
        else forward_flops(WIDE, TOKENS, SQUARED) + 2 * PAIRS * WIDE.hidden_size
    )
    assert 1 < counted / formula < 1 + XLA_ABOVE


def test_caching_and_rematerialisation_repeat_the_encoder_and_not_the_scores():
    once = forward_flops(WIDE, TOKENS, SQUARED)
    base = step_flops(WIDE, TOKENS, SQUARED, PAIRS)
    again = {
        "dots": step_flops(WIDE, TOKENS, SQUARED, PAIRS, remat="dots"),
        "layer": step_flops(WIDE, TOKENS, SQUARED, PAIRS, remat="layer"),
        "chunked": step_flops(WIDE, TOKENS, SQUARED, PAIRS, chunked=True),
        "both": step_flops(WIDE, TOKENS, SQUARED, PAIRS, chunked=True, remat="layer"),
    }
    extra = {name: (flops - base) / once for name, flops in again.items()}
    attention = forward_flops(WIDE, 0, SQUARED) / once
    assert extra == pytest.approx({"dots": attention, "layer": 1, "chunked": 1, "both": 2})


def test_bert_base_costs_six_flops_per_weight_and_token_plus_attention():
    """The usual rule of 6 N per token, N the weights of the layers, holds for short texts."""
    base = dataclasses.replace(
        WIDE,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
    )
    weights = 12 * (4 * 768**2 + 2 * 768 * 3072)
    assert step_flops(base, tokens=1e6, squared=0, pairs=0) == 6 * weights * 1e6
