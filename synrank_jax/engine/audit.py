"""What a loss does to real scores: measured on the pretrained model, before any training."""

from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from synrank_jax.config import Config
from synrank_jax.config_section import Section
from synrank_jax.contract import resolve_contract
from synrank_jax.data.pipeline import PreparedLists, batches
from synrank_jax.engine.compilation import use_compilation_cache
from synrank_jax.engine.encoding import load_model
from synrank_jax.engine.state import Params, merge_model, split_model
from synrank_jax.engine.step import (
    encode_lists,
    item_keys,
    make_score_loss,
    target_labels,
)
from synrank_jax.errors import UserError
from synrank_jax.losses.pool import own_list_target_mass
from synrank_jax.models.dual_encoder import similarity
from synrank_jax.types import Batch, PackedTexts

IN_BATCH = "in-batch"
ENCODED_AT_ONCE = 16
LARGEST_POOL = 1024
"""Lists looked at for the target mass, which needs no scores."""
SHUFFLES = 8
GROUPS = 8
"""Pools of one size that a gradient norm is averaged over, at most."""


class Measurements(Section):
    """All measurements of one configuration."""

    pool_size: int
    """Queries per loss pool in training."""
    pools: int
    """Pools of that size that were measured."""
    loss: float
    blindness: dict[str, float]
    """Loss (`loss`: their sum) -> mean |change| relative to its value when every list meets the
    scores of another query. 0: it does not see which query owns which list."""
    target_mass: dict[int, float]
    """Pool size -> share of the target distribution on the own list."""
    gradient_share: dict[str, float]
    """Grade, or `in-batch` -> share of sum |dL/dscore|."""
    gradient_norm: dict[int, float]
    """Pool size Q -> sqrt(Q) |dL/dscores|_F: the same at every size if queries act alone."""


class Scored(NamedTuple):
    """M lists and their scores.

    scores: [M, M L] float32, raw; pool: labels, where and passage_ids [M, L], sample_ids [M],
    without tokens; embeddings: [M, L, D] of the passages.
    """

    scores: npt.NDArray[np.float32]
    pool: Batch
    embeddings: npt.NDArray[np.float32]

    def part(self, start: int, size: int) -> "Scored":
        """Lists start .. start + size - 1 as a pool of their own."""
        lists = slice(start, start + size)
        items = self.pool.labels.shape[1]
        columns = slice(start * items, (start + size) * items)
        pool = jax.tree.map(lambda leaf: leaf[lists], self.pool)
        return Scored(self.scores[lists, columns], pool, self.embeddings[lists])


def measure(config: Config, pools: int) -> Measurements:
    """Encode `pools` training pools with the pretrained model and measure the configured loss.

    Raises:
        UserError: the lists are not prepared with this contract, or too few for one pool of two.
    """
    use_compilation_cache()
    pool_size = config.pool_size()
    lists = PreparedLists(Path(config.data.prepared).expanduser())
    if pool_size < 2 or len(lists) < pool_size:
        raise UserError(
            f"audit needs a loss pool of 2 or more different lists, but train.pool_size (default: "
            f"train.global_batch_size) is {pool_size} and {config.data.prepared} holds {len(lists)}"
        )
    pools = min(pools, len(lists) // pool_size)
    scored = score_lists(config, lists, pools * pool_size)
    gradient = jax.jit(jax.value_and_grad(_full_score_loss(config), has_aux=True))
    parts = [scored.part(number * pool_size, pool_size) for number in range(pools)]
    losses = [{"loss": value, **metrics} for (value, metrics), _ in (gradient(*p) for p in parts)]
    return Measurements(
        pool_size=pool_size,
        pools=pools,
        loss=fmean(float(values["loss"]) for values in losses),
        blindness=_blindness(config, parts, losses, gradient),
        target_mass=_target_mass(config, lists, pool_size),
        gradient_share=_gradient_share(config, parts, gradient),
        gradient_norm=_gradient_norm(config, scored, pool_size, gradient),
    )


def score_lists(config: Config, lists: PreparedLists, count: int) -> Scored:
    """Scores of the first `count` lists of the first epoch, under the untrained model.

    Raises:
        UserError: the lists were prepared with another contract.
    """
    contract = resolve_contract(config)
    lists.manifest.contract.require_equal(contract, config.data.prepared, "this configuration")
    batch = _first_lists(config, lists, count)
    structure, params = split_model(load_model(config.model, contract))

    def encode_rows(params: Params, texts: PackedTexts, keys: jax.Array | None) -> jax.Array:
        return merge_model(structure, params).encode_packed(texts, keys)

    encode = jax.jit(lambda params, part: encode_lists(encode_rows, params, part))
    parts = [encode(params, part) for part in _parts(batch, count)]
    query, passages = (jnp.concatenate(side)[:count] for side in zip(*parts, strict=True))
    flat = passages.reshape(-1, passages.shape[-1])
    scores = np.asarray(similarity(query, flat, contract.similarity))
    return Scored(scores, _without_tokens(batch), np.asarray(passages))


def _without_tokens(batch: Batch) -> Batch:
    nothing: Any = None
    return batch._replace(texts=nothing)


def _first_lists(config: Config, lists: PreparedLists, count: int) -> Batch:
    host = batches(
        lists, seed=config.train.seed, global_batch_size=count, pool_size=count, rows=count
    )
    batch: Batch = jax.tree.map(lambda leaf: leaf[0], next(host))
    return batch


def _parts(batch: Batch, count: int) -> Iterator[Batch]:
    """The lists, `ENCODED_AT_ONCE` at a time; the last part is filled up, to compile once."""
    for start in range(0, count, ENCODED_AT_ONCE):
        part = np.arange(start, start + ENCODED_AT_ONCE) % count
        yield jax.tree.map(lambda leaf, part=part: leaf[part], batch)


def _full_score_loss(config: Config) -> Callable[[jax.Array, Batch, jax.Array], Any]:
    """The loss as a function of all scores [Q, P], of which `scope: list` uses the own lists."""
    score_loss = make_score_loss(config)

    def loss(scores: jax.Array, pool: Batch, embeddings: jax.Array) -> Any:
        if config.loss.scope == "list":
            own = jnp.arange(scores.shape[0])
            scores = scores.reshape(scores.shape[0], *pool.labels.shape)[own, own]
        keys = item_keys(config.train.seed, 0, pool).draw
        return score_loss(scores, pool, keys, embeddings, config.loss.temperature)

    return loss


def _blindness(
    config: Config, parts: list[Scored], losses: list[dict[str, Any]], gradient: Any
) -> dict[str, float]:
    rng = np.random.default_rng(0)
    names = ("loss", *config.loss.weights())
    changes: dict[str, list[float]] = {name: [] for name in names}
    for part, before in zip(parts, losses, strict=True):
        for _ in range(SHUFFLES):
            others = _shuffle(rng, len(part.scores), config.loss.group_size())
            (value, metrics), _ = gradient(part.scores[others], *part[1:])
            after = {"loss": value, **metrics}
            for name in names:
                changes[name].append(abs(float(after[name] - before[name])))
    sizes = {name: fmean(abs(float(values[name])) for values in losses) for name in names}
    return {name: fmean(changes[name]) / max(sizes[name], 1e-30) for name in names}


def _shuffle(
    rng: np.random.Generator, queries: int, group_size: int | None
) -> npt.NDArray[np.int64]:
    """Another query for each, by one random cycle through every group: none keeps its own list."""
    size = group_size or queries
    cycles = [rng.permutation(size) for _ in range(queries // size)]
    return np.concatenate(
        [group * size + order[(np.argsort(order) + 1) % size] for group, order in enumerate(cycles)]
    )


def _target_mass(config: Config, lists: PreparedLists, pool_size: int) -> dict[int, float]:
    largest = min(len(lists), max(LARGEST_POOL, pool_size))
    group = config.loss.target_group_size()
    sizes = [size for size in _sizes(largest, pool_size) if size % (group or 1) == 0]
    if config.loss.scope == "list":
        return dict.fromkeys(sizes, 1.0)

    @jax.jit
    def mass(pool: Batch) -> jax.Array:
        labels = target_labels(config, pool)
        return own_list_target_mass(labels, config.loss.target_temperature, group)

    batch = _without_tokens(_first_lists(config, lists, largest))
    parts = {size: jax.tree.map(lambda leaf, size=size: leaf[:size], batch) for size in sizes}
    return {size: float(mass(part)) for size, part in parts.items()}


def _gradient_share(config: Config, parts: list[Scored], gradient: Any) -> dict[str, float]:
    sums = {str(grade): 0.0 for grade in config.data.grades} | {IN_BATCH: 0.0}
    for part in parts:
        pool = part.pool
        queries, items = pool.labels.shape
        size = np.abs(np.asarray(gradient(*part)[1])).reshape(queries, queries, items)
        own = size[np.arange(queries), np.arange(queries)]
        for grade in config.data.grades:
            sums[str(grade)] += float(own[pool.where & (pool.labels == grade)].sum())
        size[np.arange(queries), np.arange(queries)] = 0
        sums[IN_BATCH] += float(size.sum())
    total = max(sum(sums.values()), 1e-30)
    return {name: value / total for name, value in sums.items()}


def _gradient_norm(
    config: Config, scored: Scored, pool_size: int, gradient: Any
) -> dict[int, float]:
    norms = {}
    group = config.loss.group_size() or 1  # divides every pool
    for size in _sizes(len(scored.scores), pool_size):
        if size % group:
            continue
        groups = range(min(len(scored.scores) // size, GROUPS))
        grads = [gradient(*scored.part(number * size, size))[1] for number in groups]
        norms[size] = float(np.mean([np.sqrt(size) * np.linalg.norm(grad) for grad in grads]))
    return norms


def _sizes(largest: int, pool_size: int) -> list[int]:
    """2, 4, 8, ... and the training pool's own size and the largest."""
    doubling = (2**power for power in range(1, largest.bit_length()))
    return sorted({*doubling, pool_size, largest})
