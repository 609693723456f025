"""BERT encoder (Devlin et al. 2018, arXiv 1810.04805) in Flax NNX.

Layers are a Python loop unless `Numerics.scan_layers`: on CPU that is faster.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int32, Key

from synrank_jax.errors import UserError
from synrank_jax.models.attention import attend
from synrank_jax.models.backward import Activation, layer_norm, linear
from synrank_jax.models.numerics import Numerics
from synrank_jax.models.packing import Layout, padded_layout
from synrank_jax.types import PackedTexts


def _gelu(x: Array) -> Array:
    """Exact GELU by erf, as torch computes it; jax.nn.gelu's erfc costs 13 % of a CPU step more."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


def _tanh_gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=True)


ACTIVATIONS: dict[str, Activation] = {
    "gelu": _gelu,
    "gelu_new": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Architecture of a BERT encoder, under the names of Hugging Face's config.json."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    hidden_act: str

    @classmethod
    def read(cls, folder: Path) -> "BertConfig":
        """Read `folder`/config.json.

        Raises:
            UserError: the file is missing, lacks a field, or describes an encoder that this module
                would not reproduce; every reason is listed.
        """
        path = folder / "config.json"
        try:
            values = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: no readable model configuration ({error})") from error
        names = [field.name for field in dataclasses.fields(cls)]
        problems = [f"{name}: missing" for name in names if name not in values]
        problems += _unsupported(values)
        if problems:
            raise UserError(
                f"{path}: not a BERT encoder that synrank_jax can reproduce\n  "
                + "\n  ".join(problems)
                + "\nchoose a BERT-family model (BERT, Contriever, MiniLM, E5, BGE, GTE v1)"
            )
        return cls(**{name: values[name] for name in names})


def _unsupported(values: dict[str, Any]) -> list[str]:
    """What a config.json asks for beyond the BERT encoder, one line per field.

    Fields younger than the first BERT checkpoints are checked only where they are given; absent
    they mean the value that is accepted here.
    """
    accepted = {
        "model_type": ("bert",),
        "hidden_act": tuple(ACTIVATIONS),
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
        "add_cross_attention": (False,),
    }
    problems = [
        f"{name}: {values[name]!r} is not supported, only {', '.join(map(repr, choices))}"
        for name, choices in accepted.items()
        if name in values and values[name] not in choices
    ]
    if "model_type" not in values:
        problems.append("model_type: missing")
    size, heads = values.get("hidden_size", 0), values.get("num_attention_heads", 1)
    if size % heads:
        problems.append(f"hidden_size: {size} is not a multiple of {heads} attention heads")
    return problems


class Linear(nnx.Linear):  # type: ignore[misc]
    """Matmul and bias in the compute type, after an activation of the input if there is one."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        numerics: Numerics,
        rngs: nnx.Rngs,
        activation: Activation | None = None,
    ) -> None:
        super().__init__(n_in, n_out, rngs=rngs)
        self.numerics = numerics
        self.activation = activation

    def __call__(self, x: Array) -> Array:
        precision, dtype = self.numerics.precision, self.numerics.compute_dtype
        x, kernel, bias = (part.astype(dtype) for part in (x, self.kernel[...], self.bias[...]))
        out: Array = linear(x, kernel, bias, precision, self.activation)
        return out


class Norm(nnx.LayerNorm):  # type: ignore[misc]
    """Layer norm with statistics in float32 and the result in the compute type."""

    def __init__(self, config: BertConfig, numerics: Numerics, rngs: nnx.Rngs) -> None:
        super().__init__(config.hidden_size, epsilon=config.layer_norm_eps, rngs=rngs)
        self.numerics = numerics

    def __call__(self, x: Array) -> Array:
        normed: Array = layer_norm(x, self.scale[...], self.bias[...], self.epsilon)
        return normed.astype(self.numerics.compute_dtype)


class Embeddings(nnx.Module):  # type: ignore[misc]
    """Sum of word, position and token-type embeddings, normalised. Every token has type 0."""

    def __init__(self, config: BertConfig, numerics: Numerics, rngs: nnx.Rngs) -> None:
        self.word = nnx.Embed(config.vocab_size, config.hidden_size, rngs=rngs)
        self.position = nnx.Embed(config.max_position_embeddings, config.hidden_size, rngs=rngs)
        self.token_type = nnx.Embed(config.type_vocab_size, config.hidden_size, rngs=rngs)
        self.norm = Norm(config, numerics, rngs)

    def __call__(self, input_ids: Array, positions: Array, longest: int) -> Array:
        known = self.position.embedding.shape[0]
        if longest > known:
            raise ValueError(f"{longest} tokens, but the encoder has only {known} positions")
        words = self.word.embedding[input_ids]
        normed: Array = self.norm(
            words + self.position.embedding[positions] + self.token_type.embedding[0]
        )
        return normed


class Attention(nnx.Module):  # type: ignore[misc]
    """Multi-head self-attention of the tokens of each text over each other."""

    def __init__(self, config: BertConfig, numerics: Numerics, rngs: nnx.Rngs) -> None:
        size = config.hidden_size
        self.query = Linear(size, size, numerics, rngs)
        self.key = Linear(size, size, numerics, rngs)
        self.value = Linear(size, size, numerics, rngs)
        self.output = Linear(size, size, numerics, rngs)
        self.heads = config.num_attention_heads
        self.numerics = numerics

    def __call__(self, hidden: Array, layout: Layout, site: int | Array) -> Array:
        query, key, value = (
            layout.split(layer(hidden)) for layer in (self.query, self.key, self.value)
        )
        blocks = zip(query, key, value, layout.segments, layout.block_keys, strict=True)
        mixed = [
            self._mix(q, k, v, segments, keys, layout.one_text, site)
            for q, k, v, segments, keys in blocks
        ]
        out: Array = self.output(layout.join(mixed))
        return out

    def _mix(
        self,
        query: Array,
        key: Array,
        value: Array,
        segments: Array,
        keys: Array | None,
        one_text: bool,
        site: int | Array,
    ) -> Array:
        """[..., T, H] of each text's own values, weighted."""
        numerics = self.numerics
        heads = (*query.shape[:-1], self.heads, query.shape[-1] // self.heads)
        drops = keys is not None and numerics.dropout > 0
        mixed = attend(
            query.reshape(heads),
            key.reshape(heads),
            value.reshape(heads),
            segments,
            kernel=numerics.attention,
            precision=numerics.precision,
            one_text=one_text,
            drop=(lambda weights: numerics.drop_attention(weights, keys, site)) if drops else None,
        )
        return mixed.reshape(query.shape)


class Layer(nnx.Module):  # type: ignore[misc]
    """One transformer layer with the norm after each residual."""

    sites = 3  # places where dropout acts

    def __init__(self, config: BertConfig, numerics: Numerics, rngs: nnx.Rngs) -> None:
        self.attention = Attention(config, numerics, rngs)
        self.attention_norm = Norm(config, numerics, rngs)
        self.intermediate = Linear(config.hidden_size, config.intermediate_size, numerics, rngs)
        activation = ACTIVATIONS[config.hidden_act]
        self.output = Linear(
            config.intermediate_size, config.hidden_size, numerics, rngs, activation
        )
        self.output_norm = Norm(config, numerics, rngs)
        self.numerics = numerics

    def __call__(self, hidden: Array, layout: Layout, site: int | Array) -> Array:
        keys = layout.token_keys
        mixed = self.attention(hidden, layout, site)
        hidden = self.attention_norm(hidden + self.numerics.drop(mixed, keys, site + 1))
        update = self.numerics.drop(self.output(self.intermediate(hidden)), keys, site + 2)
        out: Array = self.output_norm(hidden + update)
        return out


class BertEncoder(nnx.Module):  # type: ignore[misc]
    """Token ids to contextual token vectors.

    Its only variables are float32 `nnx.Param`s; kernels are [in, out]. Parameter paths read
    `embeddings.word.embedding`, `layers.0.attention.query.kernel`, `layers.0.output_norm.scale`.
    """

    def __init__(self, config: BertConfig, numerics: Numerics, rngs: nnx.Rngs) -> None:
        self.config = config
        self.numerics = numerics
        self.embeddings = Embeddings(config, self.numerics, rngs)
        self.layers = nnx.List(
            [Layer(config, self.numerics, rngs) for _ in range(config.num_hidden_layers)]
        )

    def __call__(
        self,
        input_ids: Int32[Array, "B T"],
        attention_mask: Bool[Array, "B T"],
        dropout_keys: Key[Array, " B"] | None = None,
    ) -> Float[Array, "B T H"]:
        """Encode B token sequences.

        Args:
            input_ids: [B, T]; any valid id where the mask is False.
            attention_mask: [B, T], False at padding. A row that is False everywhere is computed
                without NaN; its vectors mean nothing (`pool` drops them).
            dropout_keys: [B] one typed JAX key per row. A row's dropout masks depend on its key
                alone, so they survive any split of the batch. None: no dropout.

        Returns:
            [B, T, H] float32. Positions count from the left, padding included, as in BERT.
        """
        length = input_ids.shape[1]
        layout = padded_layout(attention_mask, dropout_keys)
        return self._encode(input_ids, jnp.arange(length), length, layout)

    def packed(self, texts: PackedTexts, layout: Layout) -> Float[Array, "R T H"]:
        """Encode packed rows: [R, T, H] float32 of `texts`, in the `packed_layout` of them."""
        longest = max(block.shape[-1] for block in texts.blocks)
        return self._encode(texts.input_ids, texts.positions, longest, layout)

    def _encode(self, input_ids: Array, positions: Array, longest: int, layout: Layout) -> Array:
        hidden = self.embeddings(input_ids, positions, longest)
        hidden = self.numerics.drop(hidden, layout.token_keys, site=0)
        hidden = self._layers(hidden, layout)
        return hidden.astype(jnp.float32)

    def _layers(self, hidden: Array, layout: Layout) -> Array:
        def apply(layer: Layer, hidden: Array, site: int | Array) -> Array:
            def run(hidden: Array) -> Array:
                out: Array = layer(hidden, layout, site)
                return out

            if self.numerics.remat == "none":
                return run(hidden)
            policies = jax.checkpoint_policies
            keeps_matmuls = self.numerics.remat == "dots"
            policy = policies.dots_with_no_batch_dims_saveable if keeps_matmuls else None
            again: Array = jax.checkpoint(run, policy=policy)(hidden)
            return again

        sites = [1 + index * Layer.sites for index in range(len(self.layers))]
        if not self.numerics.scan_layers:
            for layer, site in zip(self.layers, sites, strict=True):
                hidden = apply(layer, hidden, site)
            return hidden
        graphs, states = zip(*(nnx.split(layer) for layer in self.layers), strict=True)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

        def body(hidden: Array, xs: tuple[Any, Array]) -> tuple[Array, None]:
            state, site = xs
            return apply(nnx.merge(graphs[0], state), hidden, site), None

        return jax.lax.scan(body, hidden, (stacked, jnp.array(sites)))[0]
