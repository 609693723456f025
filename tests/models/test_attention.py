"""Every attention kernel gives what the formula gives, and what it cannot do is refused."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synrank_jax.errors import UserError
from synrank_jax.models.attention import attend, choose_kernel

# Float32 sums of some dozen products of order one, in another order.
TOLERANCE = 2e-6
GRADIENT_TOLERANCE = 1e-5

# Rows of two texts and padding, of one text, of padding only, of four texts.
TEXTS = [[10, 20], [40], [], [1, 17, 2, 20]]
LENGTH, HEADS, SIZE = 40, 2, 16


def segments() -> jax.Array:
    rows = [np.repeat(np.arange(len(texts)), texts) for texts in TEXTS]
    padded = [np.pad(row, (0, LENGTH - len(row)), constant_values=-1) for row in rows]
    return jnp.asarray(np.array(padded), jnp.int32)


def tensors() -> list[jax.Array]:
    rng = np.random.default_rng(0)
    shape = (4, len(TEXTS), LENGTH, HEADS, SIZE)  # query, key, value, weights of a sum
    return list(jnp.asarray(rng.normal(size=shape), jnp.float32))


def by_loops(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    """softmax(q k^T / sqrt(D)) v text by text, in float64; zero at padding."""
    out = np.zeros(query.shape)
    for row, texts in enumerate(TEXTS):
        end = 0
        for length in texts:
            span = slice(end, end + length)
            end += length
            for head in range(HEADS):
                q, k, v = (np.float64(x[row, span, head]) for x in (query, key, value))
                logits = np.exp(q @ k.T / np.sqrt(SIZE))
                out[row, span, head] = logits / logits.sum(axis=1, keepdims=True) @ v
    return out


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Splash attention by Pallas' interpreter, which needs no TPU."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

    on_cpu = functools.partial(splash.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash, "make_splash_mha", on_cpu)


def run(kernel: Any, **options: Any) -> Callable[..., jax.Array]:
    return functools.partial(attend, kernel=kernel, precision=jax.lax.Precision.HIGHEST, **options)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("kernel", ["plain", "splash"])
def test_a_token_sees_the_tokens_of_its_own_text_only(kernel: str) -> None:
    query, key, value, _ = tensors()
    got = np.asarray(run(kernel)(query, key, value, segments()))
    inside = np.asarray(segments()) >= 0
    assert np.abs(got - by_loops(query, key, value))[inside].max() <= TOLERANCE
    assert np.isfinite(got).all()


@pytest.mark.usefixtures("interpreted")
def test_gradients_of_splash_attention_are_those_of_plain_attention() -> None:
    *qkv, weights = tensors()
    weights = jnp.where(segments()[..., None, None] >= 0, weights, 0)

    def gradient(kernel: str) -> tuple[jax.Array, ...]:
        def total(*qkv: jax.Array) -> jax.Array:
            return jnp.sum(weights * run(kernel)(*qkv, segments()))

        return jax.grad(total, argnums=(0, 1, 2))(*qkv)

    for got, expected in zip(gradient("splash"), gradient("plain"), strict=True):
        assert np.abs(expected).max() > 0.1
        assert np.abs(got - expected).max() <= GRADIENT_TOLERANCE


@pytest.mark.parametrize("one_text", [False, True])
def test_cudnn_attention_lowers_for_a_gpu(monkeypatch: pytest.MonkeyPatch, one_text: bool) -> None:
    """As far as a machine without a GPU can go: JAX accepts the call and emits cuDNN's."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91_000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda capability: False)
    query, key, value, _ = (part.astype(jnp.bfloat16) for part in tensors())

    @jax.jit
    def gradient(query: jax.Array) -> jax.Array:
        attended = run("cudnn", one_text=one_text)
        return jax.grad(lambda q: attended(q, key, value, segments()).astype("float32").sum())(
            query
        )

    text = gradient.trace(query).lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmha" in text


@pytest.mark.parametrize(
    ("wanted", "platform", "dtype", "dropout", "longest", "kernel"),
    [
        ("auto", "cpu", "float32", 0.0, 512, "plain"),
        ("auto", "gpu", "bfloat16", 0.0, 64, "cudnn"),
        ("auto", "gpu", "float32", 0.0, 512, "plain"),
        ("auto", "gpu", "bfloat16", 0.1, 512, "plain"),
        ("auto", "tpu", "bfloat16", 0.0, 256, "plain"),
        ("auto", "tpu", "bfloat16", 0.0, 257, "splash"),
        ("auto", "tpu", "bfloat16", 0.1, 512, "plain"),
        ("splash", "tpu", "float32", 0.0, 32, "splash"),
        ("plain", "gpu", "bfloat16", 0.1, 512, "plain"),
    ],
)
def test_auto_takes_the_platform_s_kernel_where_it_can_and_pays(
    wanted: Any, platform: str, dtype: str, dropout: float, longest: int, kernel: str
) -> None:
    assert choose_kernel(wanted, platform, dtype, dropout, longest) == kernel


@pytest.mark.parametrize(
    ("wanted", "platform", "dtype", "dropout", "reason"),
    [
        ("cudnn", "cpu", "bfloat16", 0.0, "needs an NVIDIA GPU, and this is a CPU"),
        ("splash", "gpu", "bfloat16", 0.0, "needs a TPU, and this is a GPU"),
        ("cudnn", "gpu", "float32", 0.0, "bfloat16 only"),
        ("splash", "tpu", "bfloat16", 0.1, r"cannot drop attention weights \(model.dropout 0.1\)"),
        ("cudnn", "gpu", "bfloat16", 0.1, "cannot drop attention weights"),
    ],
)
def test_what_a_kernel_cannot_do_is_refused_by_name(
    wanted: Any, platform: str, dtype: str, dropout: float, reason: str
) -> None:
    with pytest.raises(UserError, match=rf"model.attention {wanted}: .*{reason}"):
        choose_kernel(wanted, platform, dtype, dropout, 256)
