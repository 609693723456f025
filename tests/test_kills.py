"""A run that is killed again and again ends as one that is not."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_words import WORDS

from synrank_jax import prepare
from synrank_jax.config import Config
from synrank_jax.config_file import to_yaml
from synrank_jax.engine.checkpoint import load_trained
from synrank_jax.engine.encoding import checkpoint_encoder
from synrank_jax.tracking import read_metrics

ROOT = Path(__file__).parents[1]
STEPS = 40
# Another number of devices packs the texts into other rows, whose sums round differently; Adam
# turns the rounding of gradients that are zero in theory into steps.
LOSS_RTOL = 1e-5
COSINE = 1 - 1e-6


def start(config: Path, devices: int, *signalled: str) -> int:
    """Train on so many devices; the exit code."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, str(ROOT / "tests" / "signalled_train.py"), *signalled]
    return subprocess.run(
        [*command, "--config", str(config)], env=environment, check=False
    ).returncode


def train_with_kills(config: Path, devices: tuple[int, ...]) -> None:
    """One start, and one kill after a random step, for each of `devices`; then to the end."""
    rng = random.Random(0)
    steps = sorted(rng.sample(range(1, STEPS), len(devices)))
    for step, count in zip(steps, devices, strict=True):
        marker = config.with_name(f"killed_at_{step}")
        assert start(config, count, "SIGKILL", "0", str(step), str(marker)) == -signal.SIGKILL
    assert start(config, devices[0], "SIGKILL", "0", "0", str(marker)) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "devices", [(2,) * 5, ((1, 2, 4) * 7)[:20]], ids=["on as many devices", "on other devices"]
)
def test_kills_at_random_steps_leave_no_trace(
    tiny_config: Config, tmp_path: Path, devices: tuple[int, ...]
):
    values = {"steps": STEPS, "global_batch_size": 8, "save_every": 1}
    runs = []
    for name in ("whole", "killed"):
        section = tiny_config.train.model_copy(update={"output": str(tmp_path / name), **values})
        config = tmp_path / f"{name}.yaml"
        config.write_text(to_yaml(tiny_config.model_copy(update={"train": section})))
        runs.append(config)
    whole, killed = runs
    prepare.main(["--config", str(whole)])
    assert start(whole, devices[0], "SIGKILL", "0", "0", "") == 0
    train_with_kills(killed, devices)

    expected, got = read_metrics(tmp_path / "whole"), read_metrics(tmp_path / "killed")
    for name in ("step", "samples", "tokens", "learning_rate"):
        assert [record[name] for record in got] == [record[name] for record in expected]
    same = len(set(devices)) == 1
    losses = [record["loss"] for record in expected]
    assert [record["loss"] for record in got] == (
        losses if same else pytest.approx(losses, rel=LOSS_RTOL)
    )
    if same:
        one, other = (load_trained(tmp_path / name).params for name in ("whole", "killed"))
        for name, weight in one.items():
            np.testing.assert_array_equal(weight, other[name], err_msg=name)
    rng = random.Random(1)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(2, 20))) for _ in range(100)]
    vectors = [
        checkpoint_encoder(tmp_path / name, 20).encode(texts, "passage")
        for name in ("whole", "killed")
    ]
    # The embeddings have unit length.
    assert np.einsum("td,td->t", *vectors).min() >= COSINE
