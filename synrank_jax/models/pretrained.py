"""Pretrained weights in and out: one literal key table per encoder family.

Only safetensors is read, never pickle. Tensors the encoder does not use (pooler, position ids,
pretraining heads) stay out of the model and are written back unchanged by `export_state_dict`.
"""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open

from synrank_jax.errors import UserError
from synrank_jax.models.bert import BertConfig, BertEncoder
from synrank_jax.models.numerics import Numerics

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# torch name -> (parameter path, transpose). {} is the layer; torch stores a linear map as
# [out, in], we as [in, out].
BERT_KEYS: dict[str, tuple[str, bool]] = {
    "embeddings.word_embeddings.weight": ("embeddings.word.embedding", False),
    "embeddings.position_embeddings.weight": ("embeddings.position.embedding", False),
    "embeddings.token_type_embeddings.weight": ("embeddings.token_type.embedding", False),
    "embeddings.LayerNorm.weight": ("embeddings.norm.scale", False),
    "embeddings.LayerNorm.bias": ("embeddings.norm.bias", False),
}
BERT_LAYER_KEYS: dict[str, tuple[str, bool]] = {
    "encoder.layer.{}.attention.self.query.weight": ("layers.{}.attention.query.kernel", True),
    "encoder.layer.{}.attention.self.query.bias": ("layers.{}.attention.query.bias", False),
    "encoder.layer.{}.attention.self.key.weight": ("layers.{}.attention.key.kernel", True),
    "encoder.layer.{}.attention.self.key.bias": ("layers.{}.attention.key.bias", False),
    "encoder.layer.{}.attention.self.value.weight": ("layers.{}.attention.value.kernel", True),
    "encoder.layer.{}.attention.self.value.bias": ("layers.{}.attention.value.bias", False),
    "encoder.layer.{}.attention.output.dense.weight": ("layers.{}.attention.output.kernel", True),
    "encoder.layer.{}.attention.output.dense.bias": ("layers.{}.attention.output.bias", False),
    "encoder.layer.{}.attention.output.LayerNorm.weight": ("layers.{}.attention_norm.scale", False),
    "encoder.layer.{}.attention.output.LayerNorm.bias": ("layers.{}.attention_norm.bias", False),
    "encoder.layer.{}.intermediate.dense.weight": ("layers.{}.intermediate.kernel", True),
    "encoder.layer.{}.intermediate.dense.bias": ("layers.{}.intermediate.bias", False),
    "encoder.layer.{}.output.dense.weight": ("layers.{}.output.kernel", True),
    "encoder.layer.{}.output.dense.bias": ("layers.{}.output.bias", False),
    "encoder.layer.{}.output.LayerNorm.weight": ("layers.{}.output_norm.scale", False),
    "encoder.layer.{}.output.LayerNorm.bias": ("layers.{}.output_norm.bias", False),
}
UNUSED = re.compile(r"(pooler|cls)\.|embeddings\.position_ids$")
# The first BERT checkpoints call a norm's weight gamma and its bias beta.
OLD_NORM_NAMES = {".LayerNorm.gamma": ".LayerNorm.weight", ".LayerNorm.beta": ".LayerNorm.bias"}


class Rule(NamedTuple):
    """Where a torch tensor goes: path of the parameter, its shape, and whether to transpose."""

    path: str
    shape: tuple[int, ...]
    transpose: bool

    @property
    def torch_shape(self) -> tuple[int, ...]:
        return self.shape[::-1] if self.transpose else self.shape


def abstract_encoder(folder: Path, numerics: Numerics) -> BertEncoder:
    """The encoder of a model folder with shapes in place of weights; nothing is allocated.

    Raises:
        UserError: config.json is not that of a supported encoder.
    """
    config = BertConfig.read(folder)
    encoder: BertEncoder = nnx.eval_shape(lambda: BertEncoder(config, numerics, rngs=nnx.Rngs(0)))
    return encoder


def load_encoder(folder: Path, numerics: Numerics) -> BertEncoder:
    """The encoder of a Hugging Face model folder, weights as float32 whatever the file stores.

    Args:
        folder: holds config.json and model.safetensors, or shards with their index.
        numerics: how it computes.

    Raises:
        UserError: unsupported config, no safetensors, or tensors missing, unexpected or of another
            shape; all of them are listed.
    """
    encoder = abstract_encoder(folder, numerics)
    loaded = {}
    for _, tensor, rule in _matched(encoder, folder):
        if rule is not None:
            kernel = tensor.T if rule.transpose else tensor
            loaded[rule.path] = nnx.Param(jnp.asarray(kernel, dtype=jnp.float32))
    graph, shapes = nnx.split(encoder)
    state = [(path, loaded[_dotted(path)]) for path, _ in nnx.to_flat_state(shapes)]
    merged: BertEncoder = nnx.merge(graph, nnx.from_flat_state(state))
    return merged


def export_state_dict(encoder: BertEncoder, source_folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of the source under its own name, the encoder's parameters in their places.

    Args:
        encoder: was loaded from `source_folder`, and trained since or not.
        source_folder: the model folder.

    Returns:
        Torch name -> array. Types are the source's, except that 16-bit floats become float32, the
        type the weights were trained in. Without training every float32 tensor is bit-exact.

    Raises:
        UserError: the source folder does not fit the encoder.
    """
    params = {_dotted(path): value for path, value in nnx.to_flat_state(nnx.state(encoder))}
    exported = {}
    for name, tensor, rule in _matched(encoder, source_folder):
        if rule is not None:
            kernel = np.asarray(params[rule.path][...])
            exported[name] = np.ascontiguousarray(kernel.T if rule.transpose else kernel)
        else:
            is_half = tensor.dtype.name in ("float16", "bfloat16")
            exported[name] = tensor.astype(np.float32) if is_half else tensor
    return exported


@contextmanager
def stored_tensors(folder: Path) -> Iterator[dict[str, Any]]:
    """The tensors of model.safetensors, or of the shards that its index names, read when asked for.

    Gives name -> open file with `get_tensor(name)` and `get_slice(name)`. A large model is then in
    memory once, where it is wanted.

    Raises:
        UserError: no safetensors weights, or a damaged file.
    """
    index = folder / INDEX_FILE
    if not (folder / WEIGHTS_FILE).is_file() and not index.is_file():
        raise UserError(
            f"model folder {folder}: no {WEIGHTS_FILE}; pickled weights are not read, convert them "
            "(transformers: AutoModel.from_pretrained(...).save_pretrained(...))"
        )
    with ExitStack() as files:
        stored: dict[str, Any] = {}
        try:
            names = {WEIGHTS_FILE}
            if not (folder / WEIGHTS_FILE).is_file():
                names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
            for name in sorted(names):
                file = files.enter_context(safe_open(folder / name, framework="np"))
                stored |= dict.fromkeys(file.keys(), file)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise UserError(
                f"model folder {folder}: the safetensors weights are damaged or incomplete "
                f"({type(error).__name__}: {error}); download them again"
            ) from error
        yield stored


def _matched(encoder: BertEncoder, folder: Path) -> Iterator[tuple[str, np.ndarray, Rule | None]]:
    """Name, tensor and rule of every tensor in the folder; no rule for those we do not use.

    Raises:
        UserError: before the first, lists every tensor that is missing, unexpected or of another
            shape.
    """
    rules = _rules(encoder)
    with stored_tensors(folder) as stored:
        present = {_plain(name) for name in stored}
        problems = [f"missing: {name} {rules[name].torch_shape}" for name in rules.keys() - present]
        for name, file in stored.items():
            rule, shape = rules.get(_plain(name)), tuple(file.get_slice(name).get_shape())
            if rule is None and not UNUSED.match(_plain(name)):
                problems.append(f"unexpected: {name} {shape}")
            elif rule is not None and shape != rule.torch_shape:
                problems.append(f"shape: {name} is {shape}, config.json says {rule.torch_shape}")
        if problems:
            raise UserError(
                f"model folder {folder}: the weights do not fit a BERT encoder\n  "
                + "\n  ".join(sorted(problems))
                + "\nuse the weights that belong to this config.json"
            )
        for name, file in stored.items():
            yield name, file.get_tensor(name), rules.get(_plain(name))


def _rules(encoder: BertEncoder) -> dict[str, Rule]:
    """The key table of the encoder's family, written out for its layers: torch name -> rule."""
    shapes = {_dotted(path): value.shape for path, value in nnx.to_flat_state(nnx.state(encoder))}
    keys = dict(BERT_KEYS)
    for layer in range(encoder.config.num_hidden_layers):
        keys |= {
            name.format(layer): (path.format(layer), transpose)
            for name, (path, transpose) in BERT_LAYER_KEYS.items()
        }
    assert sorted(path for path, _ in keys.values()) == sorted(shapes)
    return {name: Rule(path, shapes[path], turned) for name, (path, turned) in keys.items()}


def _plain(name: str) -> str:
    """A tensor name without the `bert.` of pretraining checkpoints, norms in today's spelling."""
    plain = name.removeprefix("bert.")
    for old, new in OLD_NORM_NAMES.items():
        plain = plain.replace(old, new)
    return plain


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))
