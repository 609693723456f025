"""The audit's measurements against what is known of the losses, and its warnings."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from synrank_jax import audit, prepare
from synrank_jax.config import Config
from synrank_jax.config_file import to_yaml
from synrank_jax.config_loss import LOSS_NAMES
from synrank_jax.data.pipeline import PreparedLists
from synrank_jax.engine.audit import IN_BATCH, Measurements, measure, score_lists
from synrank_jax.errors import UserError

# Probabilities in float32.
ROUNDING = 1e-6

GAUSSIAN = {"wasserstein": 0.0, "gaussian_wasserstein": 1.0, "in_batch_grade": 0.0}
GAUSSIAN |= {"target_temperature": 1.0, "temperature": 0.3}


@pytest.fixture
def config_file(tiny_config: Config, tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(tiny_config))
    prepare.main(["--config", str(path)])
    return path


def with_loss(config: Config, **values) -> Config:
    return config.model_copy(update={"loss": config.loss.model_copy(update=values)})


@pytest.mark.slow
def test_gaussian_is_called_blind_and_wasserstein_is_not(
    tiny_config: Config, config_file: Path, tmp_path: Path, capsys
):
    settings = [f"--set=loss.{name}={value}" for name, value in GAUSSIAN.items()]
    arguments = ["--config", str(config_file), "--batches", "2", "--output"]
    audit.main([*arguments, str(tmp_path / "gaussian"), *settings])
    assert "blind to which query owns a row" in capsys.readouterr().out
    audit.main([*arguments, str(tmp_path / "axis")])
    assert "blind to which" not in capsys.readouterr().out
    changes = {}
    for name in ("gaussian", "axis"):
        folder = tmp_path / name
        written = audit.Audit.model_validate_json((folder / "audit.json").read_text())
        changes[name] = written.measurements.blindness["loss"]
        assert (folder / "audit.png").read_bytes().startswith(b"\x89PNG")
        assert "gradient norm per query" in (folder / "audit.txt").read_text()
    assert changes["gaussian"] < 1e-5
    assert changes["axis"] > 0.01


@pytest.mark.usefixtures("config_file")
def test_target_mass_is_the_formula_and_warns_when_it_is_gone(tiny_config: Config):
    config = with_loss(tiny_config, listnet_kl=1.0, wasserstein=0.0, in_batch_grade=1.0)
    found = measure(config, pools=1)
    own = np.exp(np.array([3, 2, 1, 0]) / config.loss.target_temperature).sum()
    for size, mass in found.target_mass.items():
        in_batch = 4 * (size - 1) * np.exp(1.0 / config.loss.target_temperature)
        assert mass == pytest.approx(own / (own + in_batch), abs=ROUNDING)
    assert list(found.target_mass) == [2, 4, 8, 16, 24]
    flat = with_loss(config, in_batch_grade=3.0)
    warned = " ".join(audit.warnings_of(flat, measure(flat, pools=1)))
    assert "only 4% of the target is on the own list at pool 8" in warned
    assert "loss.in_batch_grade null" in warned


@pytest.mark.usefixtures("config_file")
def test_gradient_shares_are_those_of_infonce(tiny_config: Config):
    config = with_loss(tiny_config, infonce=1.0, wasserstein=0.0)
    found = measure(config, pools=2)
    assert found.pools == 2
    assert sum(found.gradient_share.values()) == pytest.approx(1, abs=ROUNDING)
    # d/ds of -log p+ is (p - onehot) / temperature: half of it on the positive, the rest by p.
    scored = score_lists(config, PreparedLists(Path(config.data.prepared)), 16)
    pushed = dict.fromkeys(found.gradient_share, 0.0)
    for number in range(2):
        part = scored.part(8 * number, 8)
        p = np.asarray(jax.nn.softmax(part.scores / config.loss.temperature))
        for query in range(8):
            own = p[query, 4 * query : 4 * query + 4]
            for grade, mass in zip(part.pool.labels[query], own, strict=True):
                pushed[str(int(grade))] += 1 - mass if grade == 3 else mass
            pushed[IN_BATCH] += 1 - own.sum()
    total = sum(pushed.values())
    expected = {name: value / total for name, value in pushed.items()}
    assert found.gradient_share == pytest.approx(expected, abs=1e-5)
    assert found.gradient_share["3"] == pytest.approx(0.5, abs=1e-5)


@pytest.mark.usefixtures("config_file")
def test_a_loss_of_the_own_list_has_nothing_in_batch(tiny_config: Config):
    config = with_loss(tiny_config, scope="list")
    found = measure(config, pools=1)
    assert found.gradient_share[IN_BATCH] == 0
    assert set(found.target_mass.values()) == {1.0}
    assert found.blindness["loss"] > 0.01


@pytest.mark.usefixtures("config_file")
def test_groups_are_blind_to_shuffling_within_them(tiny_config: Config):
    config = with_loss(tiny_config, **GAUSSIAN, gaussian_group_size=4)
    found = measure(config, pools=1)
    assert found.blindness["gaussian_wasserstein"] < 1e-5
    assert list(found.gradient_norm) == [4, 8]


@pytest.mark.usefixtures("config_file")
def test_a_group_size_without_a_gaussian_loss_changes_nothing(tiny_config: Config):
    assert measure(with_loss(tiny_config, gaussian_group_size=5), pools=1) == measure(
        tiny_config, pools=1
    )


@pytest.mark.slow
@pytest.mark.usefixtures("config_file")
def test_every_loss_can_be_audited(tiny_config: Config):
    config = with_loss(tiny_config, **dict.fromkeys(LOSS_NAMES, 1.0))
    assert measure(config, pools=1).blindness.keys() == {"loss", *LOSS_NAMES}
    of_passages = {"wasserstein": 0.0, "sinkhorn": 1.0, "sinkhorn_cost": "embedding"}
    found = measure(with_loss(tiny_config, scope="list", **of_passages), pools=1)
    assert found.blindness["sinkhorn"] > 0.01


@pytest.mark.usefixtures("config_file")
def test_fewer_lists_than_a_pool_are_refused(tiny_config: Config):
    train = tiny_config.train.model_copy(update={"global_batch_size": 32})
    with pytest.raises(UserError, match=r"is 32 and .*lists holds 24"):
        measure(tiny_config.model_copy(update={"train": train}), pools=1)


def measurements(**changes) -> Measurements:
    fields = {
        "pool_size": 64,
        "pools": 1,
        "loss": 1.0,
        "blindness": {"loss": 1.0},
        "target_mass": {2: 1.0, 64: 1.0},
        "gradient_share": {"0": 0.2, "1": 0.2, "2": 0.2, "3": 0.2, IN_BATCH: 0.2},
        "gradient_norm": {2: 1.0, 64: 0.9},
    }
    return Measurements(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"gradient_share": {"0": 0.0, "1": 0.1, "2": 0.1, "3": 0.1, IN_BATCH: 0.7}},
            "70% of the gradient falls on in-batch passages",
        ),
        (
            {"gradient_share": {"0": 0.1, "1": 0.1, "2": 0.004, "3": 0.7, IN_BATCH: 0.1}},
            "passages of grade 2 get 0.4% of the gradient",
        ),
        ({"gradient_norm": {2: 1.0, 64: 0.01}}, "100 times smaller at pool 64 than at pool 2"),
        ({"target_mass": {64: 0.02}}, "only 2% of the target is on the own list at pool 64"),
    ],
)
def test_each_measurement_has_its_warning(tiny_config: Config, changes: dict, message: str):
    assert list(audit.warnings_of(tiny_config, measurements())) == []
    (warned,) = audit.warnings_of(tiny_config, measurements(**changes))
    assert message in warned


def test_losses_without_a_target_distribution_are_not_warned_of_its_mass(tiny_config: Config):
    config = with_loss(tiny_config, infonce=1.0, wasserstein=0.0)
    assert list(audit.warnings_of(config, measurements(target_mass={64: 0.02}))) == []


def test_json_holds_what_was_measured():
    found = measurements()
    assert Measurements.model_validate(json.loads(found.model_dump_json())) == found
