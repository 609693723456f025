"""Planning: the figures of a step, what fits, and refusals; TPU topologies where libtpu is."""

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import pytest
from jax.errors import JaxRuntimeError
from jax.sharding import SingleDeviceSharding
from matmul_flops import MatmulFlops, matmul_flops

from synrank_jax import plan as command
from synrank_jax import prepare
from synrank_jax.config import Config
from synrank_jax.config_file import load_config, to_yaml
from synrank_jax.engine import plan as engine
from synrank_jax.engine.hlo import Program
from synrank_jax.engine.plan import GIB, OutOfMemoryError, Plan, abstract_step, plan
from synrank_jax.engine.remedies import MOST_COMPILED, changed, find_remedy
from synrank_jax.engine.roofline import count_flops
from synrank_jax.engine.topology import has_tpu_compiler
from synrank_jax.errors import UserError
from synrank_jax.parallel.chips import chip_of

CONFIGS = Path(__file__).parents[1] / "configs" / "tpu"
DEVICES = 8  # of the test process
needs_tpu_compiler = pytest.mark.skipif(
    not has_tpu_compiler(), reason="libtpu (the extra plan) is not installed"
)


def bert(folder: Path, hidden: int, layers: int, heads: int, vocabulary: int = 30522) -> Path:
    """A model folder that has nothing but config.json."""
    folder.mkdir(parents=True)
    values = {
        "model_type": "bert",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
    }
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.fixture
def tiny(tiny_config: Config, tmp_path: Path) -> Config:
    """The tiny configuration with a model of one layer, of which only config.json is at hand."""
    model = bert(tmp_path / "described", hidden=32, layers=1, heads=2, vocabulary=65)
    return changed(tiny_config, {"model.path": str(model)})


def written(config: Config, tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    return str(path)


@pytest.mark.slow
def test_several_plans_are_a_table_and_a_file(
    tiny: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(engine, "chip_of", lambda kind: chip_of("TPU v5e"))
    file = tmp_path / "plan.json"
    path = written(changed(tiny, {"train.global_batch_size": 16}), tmp_path)
    command.main(["--config", path, "--chunk", "1", "2", "--price", "2", "--json", str(file)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["topology", "chips", "pool", "chunk"]
    assert [line.split()[:4] for line in lines[1:]] == [
        ["local", "8", "16", "1"],
        ["local", "8", "16", "2"],
    ]
    one, whole = (Plan.model_validate(line["plan"]) for line in json.loads(file.read_text()))
    assert one.fits
    assert one.mesh == {"data": DEVICES, "fsdp": 1, "tensor": 1}
    assert one.memory is not None
    assert whole.memory is not None
    assert one.memory.arguments >= one.state_bytes == whole.state_bytes
    # A second forward pass is a third of three forward passes' worth; rows of 160 tokens are
    # rounded up to 192, two in one row to 320.
    assert one.flops.encoder == pytest.approx(4 / 3 * whole.flops.encoder, rel=0.25)
    assert one.flops.model == whole.flops.model
    # The loop over two chunks is seen: their bytes count twice.
    assert one.memory_bytes is not None
    assert whole.memory_bytes is not None
    assert one.memory_bytes > 0.8 * whole.memory_bytes
    gathered = [total for total in one.collectives if total.kind == "all-gather"]
    assert gathered[0].payload_bytes * DEVICES >= one.growth.gathered_bytes == 16 * 4 * 32 * 4
    assert one.growth.scores_bytes == 16 // DEVICES * 16 * 4 * 4
    bound = one.roofline
    assert bound is not None
    parts = (bound.compute_s, bound.memory_s, bound.collectives_s)
    assert bound.step_s == max(parts)
    assert bound.unoverlapped_s == pytest.approx(sum(parts))
    hours = 1e6 / bound.lists_per_s / 3600
    assert one.cost_per_million_lists == pytest.approx(2.0 * DEVICES * hours)
    report = command.report(command.Planned(plan=one, remedies=()))
    assert "assumed: every query has 16 tokens and every passage 32" in report
    assert f"at least {one.cost_per_million_lists:.2f} per million lists" in report


def test_prepared_lists_say_how_long_texts_are(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    prepare.main(["--config", written(tiny_config, tmp_path)])
    step = abstract_step(tiny_config, "local", None)
    assert "24 lists" in step.lengths.source
    prepared = Path(tiny_config.data.prepared)
    monkeypatch.setenv("HOME", str(prepared.parent))
    at_home = changed(tiny_config, {"data.prepared": f"~/{prepared.name}"})
    assert abstract_step(at_home, "local", None).lengths.row == step.lengths.row
    assert step.lengths.tokens < 16 + 4 * 32
    assert step.lengths.row.tokens >= step.lengths.tokens * 8 / step.lengths.rows
    assumed = abstract_step(tiny_config, "local", (5, 30))
    assert assumed.lengths.tokens == 5 + 4 * 30
    with pytest.raises(UserError, match="the encoding contract differs"):
        abstract_step(changed(tiny_config, {"encoding.query_length": 8}), "local", None)


def test_flops_are_those_that_the_compiler_counts_without_loops(tiny: Config, tmp_path: Path):
    # Wide enough that matmuls outweigh norms, activations and the optimizer.
    model = bert(tmp_path / "wide", hidden=256, layers=1, heads=4, vocabulary=65)
    config = changed(tiny, {"model.path": str(model), "train.global_batch_size": 32})
    step = abstract_step(config, "local", (16, 32))
    ours = count_flops(config, step.encoder, step.lengths, DEVICES, 1)
    compilers = step.function.lower(step.state, step.batch).compile().cost_analysis()["flops"]
    assert ours.encoder + ours.scores == pytest.approx(compilers, rel=0.1)


def test_a_hub_model_needs_only_its_cached_config(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import huggingface_hub.constants

    cached = tmp_path / "hub" / "models--some--model"
    bert(cached / "snapshots" / "0123abc", hidden=32, layers=1, heads=2)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    step = abstract_step(changed(tiny, {"model.path": "some/model"}), "local", None)
    assert step.encoder.num_hidden_layers == 1


@pytest.mark.parametrize(
    ("settings", "topology", "assumed", "message"),
    [
        ({"mesh.data": 3}, "local", None, r"mesh\.data 3 .* does not make the 8 devices"),
        ({"train.global_batch_size": 12}, "local", None, r"12 is not divisible .* 8 or 16 would"),
        (
            {"train.global_batch_size": 32, "train.encode_chunk_size": 3},
            "local",
            None,
            r"encode_chunk_size 3 does not divide .* 1, 2 or 4 would",
        ),
        ({}, "local", (16, 99), r"--mean-tokens 16,99: .* 1 to 32"),
        ({}, "v5e", None, r"--topology 'v5e': not local, and not KIND:AxB, as v5e:2x4"),
        ({}, "v5e:0x4", None, "not KIND:AxB"),
        ({"model.path": "nowhere/at all/x"}, "local", None, r"model\.path"),
    ],
    ids=["mesh", "pool", "chunk", "tokens", "form", "zero", "model"],
)
def test_what_training_would_refuse_is_refused(
    tiny: Config,
    settings: dict[str, int],
    topology: str,
    assumed: tuple[int, int] | None,
    message: str,
):
    with pytest.raises(UserError, match=message):
        abstract_step(changed(tiny, settings), topology, assumed)


def test_a_table_is_refused_before_its_first_line_is_compiled(
    tiny: Config, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(engine, "_compile", lambda step: pytest.fail("compiled"))
    config = changed(tiny, {"train.global_batch_size": 32})
    with pytest.raises(UserError, match="encode_chunk_size 3 does not divide"):
        command.run(config, ["local"], [4, 3])


def test_without_the_tpu_compiler_the_way_to_it_is_named(
    tiny: Config, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("synrank_jax.engine.topology.has_tpu_compiler", lambda: False)
    with pytest.raises(UserError, match=r"pip install 'synrank-jax\[plan\]'"):
        abstract_step(tiny, "v5e:2x4", None)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--chunk", "0"],
        ["--mean-tokens", "3"],
        ["--price", "1", "2"],
        ["--price", "nan"],
        ["--price", "$2"],
    ],
    ids=["chunk", "tokens", "prices", "price", "currency"],
)
def test_bad_arguments_are_refused(tiny: Config, tmp_path: Path, arguments: list[str]):
    with pytest.raises(SystemExit, match="2"):
        command.main(["--config", written(tiny, tmp_path), *arguments])


@pytest.mark.parametrize("file", ["", "missing/plan.json"], ids=["folder", "no folder"])
def test_a_file_that_cannot_be_written_is_refused_first(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
):
    monkeypatch.setattr(engine, "_compile", lambda step: pytest.fail("compiled"))
    with pytest.raises(UserError, match=r"--json .*: give a file in a folder that exists"):
        command.main(["--config", written(tiny, tmp_path), "--json", str(tmp_path / file)])


def of_needs(needed: float, state: float) -> Plan:
    """What matters of a plan on 8 chips of 16 GiB, with needs in GiB; 4 queries for each."""
    return Plan.model_construct(
        chips=8,
        mesh={"data": 8, "fsdp": 1, "tensor": 1},
        pool_size=32,
        encode_chunk_size=4,
        capacity_bytes=16 * GIB,
        state_bytes=int(state * GIB),
        needed_bytes=needed * GIB,
        fits=needed <= 16,
    )


@pytest.mark.parametrize(
    ("needed", "state", "tried"),
    [
        (20, 1, [{"model.remat": "dots"}]),
        (
            50,
            1,
            [
                {"train.encode_chunk_size": 1},
                {"train.encode_chunk_size": 1, "model.remat": "layer"},
            ],
        ),
        (20, 12, [{"mesh.data": -1, "mesh.fsdp": 2}]),
    ],
    ids=["a little too large", "much too large", "the state is too large"],
)
def test_remedies_that_cannot_help_are_not_compiled(
    tiny: Config, needed: float, state: float, tried: list[dict[str, object]]
):
    failed, fitting = of_needs(needed, state), of_needs(1, 1)
    assert [remedy.settings for remedy in find_remedy(tiny, failed, lambda _: fitting)] == tried[:1]
    settings = [remedy.settings for remedy in find_remedy(tiny, failed, lambda _: failed)]
    assert settings[: len(tried)] == tried
    assert len(settings) <= MOST_COMPILED


@pytest.mark.slow
def test_a_step_without_a_program_says_which_setting_gives_one(
    tiny: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    compiled = engine._compile
    reason = "Ran out of memory on HBM, the total memory required for HLO temporaries (36.25G)"

    def only_small_chunks(step: engine.Step) -> object:
        if step.lengths.rows == DEVICES:
            raise OutOfMemoryError(reason)
        return compiled(step)

    assert OutOfMemoryError(reason).needed == 36.25 * GIB
    monkeypatch.setattr(engine, "_compile", only_small_chunks)
    config = changed(tiny, {"train.global_batch_size": 32, "model.remat": "layer"})
    command.main(["--config", written(config, tmp_path)])
    out = capsys.readouterr().out
    assert f"DOES NOT FIT: {reason}" in out
    assert "local with train.encode_chunk_size=2 fits: " in out


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_tpu_config_lowers(path: Path, tmp_path: Path):
    model = bert(tmp_path / "model", hidden=32, layers=1, heads=2, vocabulary=65)
    config = load_config(path, [f"model.path={model}"])
    step = abstract_step(config, "local", None)
    step.function.lower(step.state, step.batch)
    assert step.lengths.row.tokens == 5 * 256 * min(config.pool_size() // DEVICES, 16)


@needs_tpu_compiler
def test_a_topology_is_described_without_a_tpu():
    from synrank_jax.engine.topology import devices_of

    devices = devices_of("v5e:2x4")
    assert {device.device_kind for device in devices} == {"TPU v5 lite"}
    assert len(devices) == 8
    assert len(devices_of("v5e:1x1")) == 1
    with pytest.raises(UserError, match="the TPU compiler does not know it"):
        devices_of("v5e:3x5")


@needs_tpu_compiler
@pytest.mark.parametrize("topology", ["v4:2x2x2", "v5e:1x1", "v5p:2x2x2", "v6e:1x1"])
def test_the_memory_of_a_chip_is_what_the_compiler_gives_to_a_program(topology: str):
    from synrank_jax.engine.topology import devices_of

    device = devices_of(topology)[0]
    large = jax.ShapeDtypeStruct((2**39,), "int8", sharding=SingleDeviceSharding(device))
    with pytest.raises(JaxRuntimeError, match="exceeds available HBM") as error:
        jax.jit(lambda x: x[::-1]).lower(large).compile()
    gib = re.search(r"available HBM \(([\d.]+)G\)", str(error.value))[1]
    assert chip_of(device.device_kind).hbm_bytes == int(float(gib) * GIB)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Plan, MatmulFlops]]:
    """A config's plan with a BERT-base, and the FLOPs in its program; each compiled once."""
    model = bert(tmp_path_factory.mktemp("models") / "base", hidden=768, layers=12, heads=12)

    @cache
    def compiled(config: str, topology: str, *settings: str) -> tuple[Plan, MatmulFlops]:
        programs: list[Program] = []

        def kept(text: str) -> Program:
            programs.append(Program(text))
            return programs[0]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine, "Program", kept)
            found = plan(
                load_config(CONFIGS / f"{config}.yaml", [f"model.path={model}", *settings]),
                topology,
            )
        return found, matmul_flops(programs[0])

    return compiled


@pytest.mark.slow
@needs_tpu_compiler
@pytest.mark.parametrize(
    ("config", "topology"),
    # The other pairs in the README's table take minutes each, and show nothing else.
    [
        ("contriever", "v5e:2x4"),
        ("contriever_1024", "v6e:8x8"),
        ("contriever_4096", "v5e:16x16"),
    ],
)
def test_every_tpu_config_fits(compiled: Callable[..., Any], config: str, topology: str):
    of, counted = compiled(config, topology)
    assert of.fits, of.problem
    assert of.unknown_loops == 0
    # The program computes what the formula says, loops over chunks included. (One query per chip
    # makes no matmul of the scores.)
    assert counted.encoder == pytest.approx(of.flops.encoder, rel=0.01)
    assert counted.scores <= 1.01 * of.flops.scores
    assert of.roofline is not None
    assert 0.1 < of.roofline.mfu <= 1


@pytest.mark.slow
@needs_tpu_compiler
def test_a_chip_of_256_needs_and_computes_what_a_chip_of_8_does(compiled: Callable[..., Any]):
    """Weak scaling: 8 queries per chip. Only what grows with the pool may differ."""
    one, counted = compiled("contriever", "v5e:2x4")
    other, counted_other = compiled("contriever", "v5e:16x16", "train.global_batch_size=2048")
    assert one.memory is not None
    assert other.memory is not None
    assert other.memory.total == pytest.approx(one.memory.total, rel=0.05)
    assert counted_other.encoder == pytest.approx(counted.encoder, rel=0.05)
    assert counted_other.scores == 32 * counted.scores
    assert other.growth.gathered_bytes == 32 * one.growth.gathered_bytes
    assert other.growth.scores_bytes == 32 * one.growth.scores_bytes
    # Beside the weights' gradients only those of the gathered embeddings are summed over chips.
    summed, summed_other = (
        sum(total.payload_bytes for total in of.collectives if "reduce" in total.kind)
        for of in (one, other)
    )
    rest = summed - one.growth.gathered_bytes
    assert summed_other - other.growth.gathered_bytes == pytest.approx(rest, rel=0.01)
