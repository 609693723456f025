"""The configuration: typed, strict, and clear about what is wrong."""

from pathlib import Path

import pytest

from synrank_jax.config import json_schema
from synrank_jax.config_file import load_config, to_yaml
from synrank_jax.config_loss import LOSS_NAMES
from synrank_jax.errors import UserError

CONFIGS = Path(__file__).parents[1] / "configs"

MINIMAL = """
model: {path: some/model}
data: {sources: [{path: lists}], prepared: prepared}
loss: {wasserstein: 1.0}
train: {output: run, epochs: 2}
"""


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(MINIMAL)
    return path


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_is_valid_and_survives_a_round_trip(path: Path, tmp_path: Path):
    config = load_config(path)
    copy = tmp_path / "copy.yaml"
    copy.write_text(to_yaml(config))
    assert load_config(copy) == config


def test_schema_for_editors_is_current():
    assert (CONFIGS / "schema.json").read_text() == json_schema()


def test_scientific_notation_without_a_dot_is_a_number(minimal: Path):
    config = load_config(minimal, ["optimizer.learning_rate=1e-5"])
    assert config.optimizer.learning_rate == 1e-5


def test_overrides_pass_the_same_validation(minimal: Path):
    assert load_config(minimal, ["loss.temperature=0.07"]).loss.temperature == 0.07
    with pytest.raises(UserError, match=r"loss\.temperature.*greater than 0.*-1"):
        load_config(minimal, ["loss.temperature=-1"])


def test_all_errors_come_at_once_with_path_value_and_nearest_name(minimal: Path):
    with pytest.raises(UserError) as caught:
        load_config(minimal, ["loss.temprature=0.1", "train.seed=x", "optimiser.b1=0.5"])
    message = str(caught.value)
    assert "3 errors" in message
    assert "loss.temprature: no such key (value 0.1); did you mean 'temperature'?" in message
    assert "train.seed" in message
    assert "'x'" in message
    assert "did you mean 'optimizer'?" in message


def test_unknown_key_inside_a_list_of_sections_is_named_by_index(tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text(MINIMAL.replace("{path: lists}", "{path: lists, splt: dev}"))
    with pytest.raises(UserError, match=r": 1 error .*\n  data\.sources\.0\.splt.*mean 'split'"):
        load_config(path)


def test_key_written_twice_is_refused_with_its_line(tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text(MINIMAL + "train: {output: other, steps: 3}\n")
    with pytest.raises(UserError, match=r"config\.yaml:6: key 'train' is written twice"):
        load_config(path)


@pytest.mark.parametrize("given", [[], ["train.steps=5"]])
def test_exactly_one_of_epochs_and_steps(minimal: Path, given: list[str]):
    overrides = given or ["train.epochs=null"]
    with pytest.raises(UserError, match="exactly one of epochs and steps"):
        load_config(minimal, overrides)


def test_pool_size_must_divide_the_batch(minimal: Path):
    with pytest.raises(UserError, match=r"pool_size 5 does not .* 16; 1, 2, 4, 8 or 16 would"):
        load_config(minimal, ["train.pool_size=5"])


def test_a_config_without_any_loss_is_refused(minimal: Path):
    with pytest.raises(UserError, match=LOSS_NAMES[0]):
        load_config(minimal, ["loss.wasserstein=0"])


def test_extends_keeps_what_the_file_does_not_say(minimal: Path):
    child = minimal.with_name("child.yaml")
    child.write_text("extends: config.yaml\nloss: {temperature: 0.5}\n")
    config = load_config(child)
    assert (config.loss.temperature, config.loss.wasserstein) == (0.5, 1.0)


def test_a_file_that_extends_itself_is_refused(tmp_path: Path):
    path = tmp_path / "loop.yaml"
    path.write_text("extends: loop.yaml\n")
    with pytest.raises(UserError, match="extends itself"):
        load_config(path)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")


def test_broken_yaml_is_named_with_its_line(tmp_path: Path):
    path = tmp_path / "broken.yaml"
    path.write_text("model: {path: [\n")
    with pytest.raises(UserError, match=r"(?s)broken\.yaml: not valid YAML.*line 2"):
        load_config(path)


@pytest.mark.parametrize("override", ["loss.temperature", "=3", "loss..temperature=1"])
def test_a_malformed_override_says_how_to_write_it(minimal: Path, override: str):
    with pytest.raises(UserError, match=r"section\.field=value"):
        load_config(minimal, [override])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss.wassertein=1"], r"loss\.wassertein: no such key .* did you mean 'wasserstein'"),
        (["loss.sinkhorn_espilon=1"], r"loss\.sinkhorn_espilon.*did you mean 'sinkhorn_epsilon'"),
        (["loss.temperature=0"], r"loss\.temperature: .*greater than 0.*value 0"),
        (["loss.target_temperature=-1"], r"loss\.target_temperature: .*greater than 0.*value -1"),
        (["loss.sinkhorn_epsilon=0"], r"loss\.sinkhorn_epsilon: .*greater than 0"),
        (
            ["loss.gaussian_wasserstein=1", "train.pool_size=1"],
            r"loss\.gaussian_wasserstein compares the queries.*train\.pool_size is 1",
        ),
        (
            ["loss.gaussian_paired=1", "train.global_batch_size=1"],
            r"loss\.gaussian_paired compares the queries.*train\.pool_size is 1",
        ),
        (
            ["loss.gaussian_paired=1", "loss.gaussian_group_size=1"],
            r"loss\.gaussian_paired compares the queries.*loss\.gaussian_group_size is 1",
        ),
        (
            ["loss.gaussian_wasserstein=1", "loss.gaussian_group_size=5"],
            r"loss\.gaussian_group_size 5 does not divide the pool of 16 .* 1, 2, 4, 8 or 16 would",
        ),
        (
            ["loss.gaussian_paired=1", "loss.scope=list"],
            r"gaussian_paired: its queries share the passages of the pool",
        ),
        (
            ["loss.in_batch_grade=0", "loss.scope=list"],
            r"in_batch_grade 0: under `scope: list` there are no in-batch passages",
        ),
        (["loss.in_batch_grade=3.5"], r"in_batch_grade 3.5 is above the highest of data.grades, 3"),
        (["loss.infonce=true"], r"loss\.infonce: a number, not true or false"),
        (["loss.temperature=true"], r"loss\.temperature: a number, not true or false"),
        (
            ["loss.approx_ndcg=1", "loss.learn_temperature=true"],
            r"learn_temperature: approx_ndcg does not support it",
        ),
        (
            ["loss.soft_rank=1", "loss.learn_temperature=true"],
            r"learn_temperature: soft_rank does not support it",
        ),
        (
            ["loss.sinkhorn=1", "loss.sinkhorn_cost=embedding"],
            r"sinkhorn_cost: embedding .*loss\.scope=list",
        ),
        (["loss.grade_positions=[0, 1, 2]"], r"grade_positions \[0.0, 1.0, 2.0\].*\[-1.0, 0.0"),
        (["loss.grade_positions=[0, 1, 2, 2, 3]"], r"grade_positions.*strictly ascending"),
        (["loss.grade_positions=[0, 1, 2, .nan, 3]"], r"grade_positions\.3: .*finite"),
        (
            ["loss.infonce_sampled=1", "loss.positive_grade=4"],
            r"loss\.positive_grade 4 is above the highest of data\.grades, 3",
        ),
        (
            ["loss.infonce_sampled=1", "loss.in_batch_grade=2"],
            r"loss\.in_batch_grade 2 would make in-batch passages positives of infonce_sampled",
        ),
        (
            ["loss.infonce=1", "loss.in_batch_grade=3"],
            r"loss\.in_batch_grade 3 would make in-batch passages positives of infonce",
        ),
    ],
)
def test_losses_and_options_that_do_not_fit_are_refused_with_the_field(
    minimal: Path, overrides: list[str], message: str
):
    with pytest.raises(UserError, match=message):
        load_config(minimal, overrides)


def test_a_weighted_sum_of_losses_is_one_line(minimal: Path):
    text = MINIMAL.replace("{wasserstein: 1.0}", "{wasserstein: 1.0, infonce: 0.1}")
    minimal.write_text(text)
    assert load_config(minimal).loss.weights() == {"wasserstein": 1.0, "infonce": 0.1}


@pytest.mark.parametrize(
    ("grade", "levels"),
    [("null", (-1, 0, 1, 2, 3)), ("0", (0, 1, 2, 3)), ("0.5", (0, 0.5, 1, 2, 3))],
)
def test_the_grade_axis_has_a_level_for_in_batch_passages(
    minimal: Path, grade: str, levels: tuple[float, ...]
):
    assert load_config(minimal, [f"loss.in_batch_grade={grade}"]).levels() == levels


def test_a_list_alone_has_no_level_for_in_batch_passages(minimal: Path):
    assert load_config(minimal, ["loss.scope=list"]).levels() == (0, 1, 2, 3)
