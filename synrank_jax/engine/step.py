"""The compiled steps: pure functions of weights and a batch."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from synrank_jax.config import Config
from synrank_jax.contract import EncodingContract
from synrank_jax.engine.compilation import compiler_options
from synrank_jax.engine.counts import batch_counts
from synrank_jax.engine.state import LOG_TEMPERATURE, Params, TrainState, merge_model
from synrank_jax.losses import list_loss
from synrank_jax.losses.pool import PoolLabels, own_list, own_list_target_mass, pool_labels
from synrank_jax.losses.pooled_target import PoolLists
from synrank_jax.models.dual_encoder import similarity
from synrank_jax.optim import skip_metrics
from synrank_jax.parallel.mesh import batch_devices, replicated, rows
from synrank_jax.parallel.rules import shardings
from synrank_jax.types import BATCH_AXES, Batch, PackedTexts, Tokens

Metrics = dict[str, jax.Array]


def make_train_step(
    structure: Any,
    tx: optax.GradientTransformation,
    config: Config,
    contract: EncodingContract,
    mesh: Mesh,
) -> Any:
    """One optimizer update: the mean gradient of the batch's N loss pools, then AdamW.

    The pools are independent (method: four pools of 64 are not one of 256), so they run one
    after the other and hold one pool's activations at a time.

    Returns:
        jitted (TrainState, Batch) -> (TrainState, Metrics); the state is donated.
    """
    pool_loss = make_pool_loss(structure, config, contract, mesh)
    tx = optax.with_extra_args_support(tx)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        of_pool = jax.value_and_grad(pool_loss, has_aux=True)

        def add_pool(total: Any, pool: Batch) -> tuple[Any, None]:
            value = of_pool(state.params, state.step, pool)
            return jax.tree.map(jnp.add, total, value), None

        pools = batch.labels.shape[0]
        first = jax.tree.map(lambda leaf: leaf[0], batch)
        if pools == 1:  # out of a loop XLA fuses and analyses it better
            total = of_pool(state.params, state.step, first)
        else:
            shapes = jax.eval_shape(of_pool, state.params, state.step, first)
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
            total = jax.lax.scan(add_pool, zeros, batch)[0]
        (loss, metrics), grads = jax.tree.map(lambda leaf: leaf / pools, total)
        updates, opt_state = tx.update(grads, state.opt_state, state.params, loss=loss)
        params = optax.apply_updates(state.params, updates)
        # The norm of the new weights shows at once whether this update broke them.
        norms = {"grad_norm": optax.tree.norm(grads), "param_norm": optax.tree.norm(params)}
        updated = TrainState(params, opt_state, state.step + 1)
        # The state stays where it was: else the next step is another program.
        updated = jax.lax.with_sharding_constraint(updated, shardings(updated, mesh))
        skips = skip_metrics(state.opt_state, opt_state)
        return updated, {"loss": loss, **norms, **metrics, **skips, **batch_counts(batch)}

    return jax.jit(train_step, donate_argnums=0, compiler_options=compiler_options(mesh))


def make_pool_loss(
    structure: Any, config: Config, contract: EncodingContract, mesh: Mesh
) -> Callable[[Params, jax.Array, Batch], tuple[jax.Array, Metrics]]:
    """The loss of one pool as a function of (params, step, pool [Q, ...])."""
    score_loss = make_score_loss(config)
    encode = make_encode_rows(structure, mesh)

    def pool_loss(params: Params, step: jax.Array, pool: Batch) -> tuple[jax.Array, Metrics]:
        keys = item_keys(config.train.seed, step, pool)
        dropped = keys.texts if config.model.dropout > 0 else None
        query, lists = encode_lists(encode, params, pool, dropped)
        if config.loss.scope == "pool":
            # Each device scores its own queries against the passages of the whole pool.
            passage = lists.reshape(-1, lists.shape[-1])
            passage = jax.lax.with_sharding_constraint(passage, replicated(mesh))
            scores = similarity(query, passage, contract.similarity)
        else:
            scores = jax.vmap(lambda one, own: similarity(one[None], own, contract.similarity)[0])(
                query, lists
            )
        scores = jax.lax.with_sharding_constraint(scores, rows(mesh))
        if not config.loss.learn_temperature:
            return score_loss(scores, pool, keys.draw, lists, config.loss.temperature)
        temperature = jnp.exp(params[LOG_TEMPERATURE])
        loss, metrics = score_loss(scores, pool, keys.draw, lists, temperature)
        return loss, {**metrics, "temperature": temperature}

    return pool_loss


EncodeRows = Callable[[Params, PackedTexts, jax.Array | None], jax.Array]


def make_encode_rows(structure: Any, mesh: Mesh) -> EncodeRows:
    """The encoder of packed rows over a mesh.

    A device encodes its own rows, one after the other. With several it keeps only their embeddings
    and computes the rows again in the backward pass: gradient caching (Gao et al. 2021, arXiv
    2101.06983), which holds the activations of one row at a time and changes no number. Token
    activations never leave their device (but for the tensor axis, which splits them), and the
    gradient of the weights is summed over devices once, after the last row.

    Returns:
        (params, texts [R, ...], dropout keys [R, S] or None) -> embeddings [R, S, D].
    """

    def encode_own(params: Params, texts: PackedTexts, keys: jax.Array | None) -> jax.Array:
        model = merge_model(structure, params)

        def encode_row(row: tuple[PackedTexts, jax.Array | None]) -> jax.Array:
            texts, keys = jax.tree.map(lambda leaf: leaf[None], row)
            return jnp.squeeze(model.encode_packed(texts, keys), 0)

        if texts.places.shape[0] == 1:
            return model.encode_packed(texts, keys)
        embedded: jax.Array = jax.lax.map(
            jax.checkpoint(encode_row, prevent_cse=False), (texts, keys)
        )
        return embedded

    if batch_devices(mesh) == 1:  # nothing to split; XLA refuses partial sums over one device

        def encode_all(params: Params, texts: PackedTexts, keys: jax.Array | None) -> jax.Array:
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                return encode_own(params, texts, keys)

        return encode_all
    split = PartitionSpec(BATCH_AXES)
    encode: EncodeRows = jax.shard_map(
        encode_own,
        mesh=mesh,
        in_specs=(PartitionSpec(), split, split),
        out_specs=split,
        axis_names=set(BATCH_AXES),
        # Tracking what varies would sum the gradient after every row; Pallas kernels lack it, too.
        check_vma=False,
    )
    return encode


def encode_lists(
    encode: EncodeRows, params: Params, pool: Batch, dropout_keys: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Embeddings of the queries [Q, D] and of their passages [Q, L, D].

    Args:
        encode: see `make_encode_rows`.
        params: the weights.
        pool: [Q, ...], its texts in R packed rows.
        dropout_keys: [Q, 1 + L] of the query and its passages; None: no dropout.
    """
    count, size = pool.labels.shape
    texts = pool.texts
    if dropout_keys is not None:
        dropout_keys = dropout_keys.reshape(texts.places.shape)
    embedded = encode(params, texts, dropout_keys).reshape(count, 1 + size, -1)
    return embedded[:, 0], embedded[:, 1:]


ScoreLoss = Callable[
    [jax.Array, Batch, jax.Array, jax.Array, float | jax.Array], tuple[jax.Array, Metrics]
]


def make_score_loss(config: Config) -> ScoreLoss:
    """The configured loss of one pool, from its scores on.

    Returns:
        (scores, pool [Q, ...], keys [Q], embeddings [Q, L, D], temperature) -> (loss, metrics).
        Scores are [Q, P] raw under `scope: pool`, and [Q, L], of the own list only, under
        `scope: list`. The keys are for what a loss draws once per list, the embeddings are those
        of the lists' passages.
    """
    options = config.loss
    axis = {"levels": config.levels(), "positions": options.grade_positions}
    transport = {**axis, "order": options.wasserstein_order}

    def score_loss(
        scores: jax.Array,
        pool: Batch,
        keys: jax.Array,
        embeddings: jax.Array,
        temperature: float | jax.Array,
    ) -> tuple[jax.Array, Metrics]:
        own, lists = None, None
        labels = target_labels(config, pool)
        if options.scope == "pool":
            own = own_list(*pool.labels.shape)
            if pool.excluded_ids.shape[-1] == 0:
                lists = PoolLists(pool.labels, pool.where, pool.passage_ids, options.in_batch_grade)
        loss, metrics = list_loss(
            scores,
            *labels,
            weights=options.weights(),
            temperature=temperature,
            target_temperature=options.target_temperature,
            options={
                "wasserstein": transport,
                "sinkhorn": {
                    **transport,
                    "epsilon": options.sinkhorn_epsilon,
                    "cost": options.sinkhorn_cost,
                    "passages": embeddings if options.sinkhorn_cost == "embedding" else None,
                },
                "soft_rank": axis,
                "gaussian_wasserstein": {
                    "solver": options.gaussian_solver,
                    "group_size": options.gaussian_group_size,
                    "lists": lists,
                },
                "gaussian_paired": {"group_size": options.gaussian_group_size},
                "infonce": {"own": own},
                "infonce_sampled": {
                    "own": own,
                    "keys": keys,
                    "positive_grade": float(options.positive_grade),
                },
                "margin_mse": {"own": own},
            },
        )
        if options.scope == "pool":
            group = options.target_group_size()
            mass = own_list_target_mass(labels, options.target_temperature, group)
            metrics = {**metrics, "own_list_target_mass": mass}
        return loss, metrics

    return score_loss


def target_labels(config: Config, pool: Batch) -> PoolLabels:
    """Labels and masks of a pool [Q, ...]: [Q, P] under `scope: pool`, [Q, L] under `list`."""
    if config.loss.scope == "list":
        return PoolLabels(pool.labels, pool.where, pool.where)
    return pool_labels(
        pool.labels,
        pool.where,
        pool.passage_ids,
        in_batch_grade=config.loss.in_batch_grade,
        in_batch_level=config.in_batch_level(),
        excluded_ids=pool.excluded_ids,
    )


class ItemKeys(NamedTuple):
    """Random keys of a pool: texts [Q, 1 + L], of query and passages, for dropout; draw [Q], for
    losses.

    A key depends on seed, step, list and place in the list only, so the same text gets the same
    mask however the batch is split over pools, chunks or devices.
    """

    texts: jax.Array
    draw: jax.Array


def item_keys(seed: int, step: jax.typing.ArrayLike, pool: Batch) -> ItemKeys:
    """The keys of one step's pool."""
    base = jax.random.fold_in(jax.random.key(seed), step)
    of_list = jax.vmap(lambda sample: jax.random.fold_in(base, sample))(pool.sample_ids)
    items = jnp.arange(pool.labels.shape[1] + 2)
    keys = jax.vmap(lambda key: jax.vmap(lambda item: jax.random.fold_in(key, item))(items))(
        of_list
    )
    return ItemKeys(texts=keys[:, :-1], draw=keys[:, -1])


def make_encode_step(
    structure: Any, mesh: Mesh, out_sharding: NamedSharding | None = None
) -> Callable[[Params, Tokens], jax.Array]:
    """Embeddings [B, D] float32 of token rows [B, T], of which every device has as many.

    A compiled function cannot be compiled again within another, so where they are to lie is said
    here; None: with the rows.
    """
    compiled = functools.partial(
        jax.jit, out_shardings=out_sharding, compiler_options=compiler_options(mesh)
    )

    def encode(params: Params, tokens: Tokens) -> jax.Array:
        return merge_model(structure, params).encode(*tokens)

    if batch_devices(mesh) == 1:

        def encode_all(params: Params, tokens: Tokens) -> jax.Array:
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                return encode(params, tokens)

        encode_one: Callable[[Params, Tokens], jax.Array] = compiled(encode_all)
        return encode_one
    split = PartitionSpec(BATCH_AXES)
    # Kernels of attention are not partitioned by the compiler.
    encode_rows: Callable[[Params, Tokens], jax.Array] = compiled(
        jax.shard_map(
            encode,
            mesh=mesh,
            in_specs=(PartitionSpec(), split),
            out_specs=split,
            axis_names=set(BATCH_AXES),
            check_vma=False,  # Pallas kernels lack it
        )
    )
    return encode_rows
