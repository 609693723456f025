"""The ONNX graph of an exported folder, and that verification compares every program with JAX."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synrank_jax import export, onnx_export
from synrank_jax.config import EncodingConfig
from synrank_jax.contract import EncodingContract, contract_of_folder
from synrank_jax.errors import UserError
from synrank_jax.export_folder import export_model
from synrank_jax.export_manifest import EXPORT_MANIFEST_FILE, Origin, write_manifest
from synrank_jax.models.dual_encoder import DualEncoder
from synrank_jax.models.numerics import Numerics
from synrank_jax.models.pretrained import load_encoder
from synrank_jax.onnx_export import write_onnx
from synrank_jax.parity import INT8, Bounds, Parity, Verification, verify_parity
from synrank_jax.runtimes import RUNTIMES

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

ORIGIN = Origin(
    checkpoint="run", step=1, data_sha256="0", model_path="tiny", base_model=None, version="0"
)
TEXTS = ["wing", "", "drag lift flow " * 30]


def contract_for(source: Path, **changes: Any) -> EncodingContract:
    values = {
        "pooling": "mean",
        "normalize": True,
        "similarity": "cosine",
        "query_prompt": "flow: ",
        "query_length": 12,
        "passage_length": 32,
    }
    return contract_of_folder(source, EncodingConfig.model_validate(values | changes))


def in_jax(folder: Path, contract: EncodingContract) -> DualEncoder:
    encoder = load_encoder(folder, Numerics())
    return DualEncoder(encoder, contract.pooling, contract.normalize, contract.dimension)


def exported_with_onnx(source: Path, output: Path, **changes: Any) -> Verification:
    contract = contract_for(source, **changes)
    return export_model(
        in_jax(source, contract),
        source,
        contract,
        output,
        card="# Tiny\n",
        origin=ORIGIN,
        onnx="int8",
    )


@pytest.fixture(scope="module")
def left_padded(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source whose tokenizer pads and cuts on the left."""
    folder = tmp_path_factory.mktemp("left") / "model"
    shutil.copytree(tiny_model, folder)
    file = folder / "tokenizer_config.json"
    left = {"padding_side": "left", "truncation_side": "left"}
    file.write_text(json.dumps(json.loads(file.read_text()) | left))
    return folder


@pytest.fixture(scope="module")
def exported(left_padded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "tiny"
    exported_with_onnx(left_padded, folder, dimension=16)
    return folder


def test_every_program_was_compared_and_the_folder_says_so(exported: Path) -> None:
    checks = json.loads((exported / "parity.json").read_text())["checks"]
    names = [(check["runtime"], check["padding"]) for check in checks]
    assert names == [
        ("sentence-transformers", "right"),
        *[(name, side) for name in list(RUNTIMES)[1:] for side in ("right", "left")],
    ]
    assert all(check["parity"]["embeddings"] == 24 for check in checks)
    assert max(check["parity"]["difference"] for check in checks[:5]) < 1e-5
    assert min(check["parity"]["difference"] for check in checks[5:]) > 1e-4, "8 bits show"
    card = (exported / "README.md").read_text()
    assert card.count("| ONNX Runtime (onnxruntime") == 2
    assert card.count("| ONNX Runtime, int8 (onnxruntime") == 2


def test_a_source_that_pads_on_the_left_is_exported_to_pad_on_the_right(exported: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(exported, local_files_only=True)
    assert (tokenizer.padding_side, tokenizer.truncation_side) == ("right", "right")


def test_graph_is_one_file_with_open_axes_and_without_paths_of_this_machine(
    exported: Path,
) -> None:
    files = sorted(path.name for path in (exported / "onnx").iterdir())
    assert files == ["model.onnx", "model_quint8.onnx"]
    graph = onnx.load(exported / "onnx" / "model.onnx").graph
    shapes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    open_axes = ["batch", "sequence"]
    assert shapes == {
        **dict.fromkeys(onnx_export.INPUTS, open_axes),
        "last_hidden_state": [*open_axes, 32],
        "sentence_embedding": ["batch", 16],
    }
    assert not any(node.metadata_props or node.doc_string for node in graph.node)
    content = (exported / "onnx" / "model.onnx").read_bytes()
    assert str(Path(onnx_export.__file__).parent).encode() not in content


def test_token_vectors_and_pooling_of_the_graph_on_both_sides(
    tiny_model: Path, tmp_path: Path
) -> None:
    contract = contract_for(tiny_model, pooling="cls", normalize=False)
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    write_onnx(folder, contract, int8=False)
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx")
    rows = np.array([[2, 7, 8, 3, 0, 0], [2, 9, 10, 11, 12, 3]])
    right = {"input_ids": rows, "attention_mask": (rows > 0).astype(np.int64)}
    left = {name: np.stack([np.roll(array[0], 2), array[1]]) for name, array in right.items()}
    types = {"token_type_ids": np.zeros_like(rows)}
    hidden, vectors = session.run(None, right | types)
    np.testing.assert_allclose(vectors, hidden[:, 0], atol=1e-6)
    np.testing.assert_allclose(session.run(None, left | types)[1], vectors, atol=1e-6)


def test_large_weights_stand_in_the_file_beside_it_that_optimum_downloads(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "LARGEST_SINGLE_FILE", 1000)
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    contract = contract_for(folder)
    write_onnx(folder, contract, int8=True)
    names = {path.name for path in (folder / "onnx").iterdir()}
    assert {"model.onnx", "model.onnx_data", "model_quint8.onnx"} <= names
    tensors = onnx.load(folder / "onnx" / "model.onnx", load_external_data=False).graph.initializer
    assert any(entry.value == "model.onnx_data" for entry in tensors[0].external_data)
    for name in list(RUNTIMES)[2:]:
        vectors = RUNTIMES[name].load(folder, contract)(TEXTS, "query", "right")
        expected = RUNTIMES["transformers"].load(folder, contract)(TEXTS, "query", "right")
        np.testing.assert_allclose(vectors, expected, atol=0.02)


def test_folder_without_tokenizer_json_gets_one(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "_export", lambda *args: None)
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    contract = contract_for(folder)
    tokens = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens))
    (folder / "tokenizer.json").unlink()
    write_onnx(folder, contract, int8=False)
    assert json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"] == tokens


def test_failing_leaves_no_onnx_folder(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    before = sorted(folder.iterdir())

    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(onnx_export, "_export", fail)
    with pytest.raises(OSError, match="disk full"):
        write_onnx(folder, contract_for(folder), int8=False)
    assert sorted(folder.iterdir()) == before


@pytest.fixture
def altered(exported: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "altered"
    shutil.copytree(exported, folder)
    (folder / EXPORT_MANIFEST_FILE).unlink()  # whoever alters a folder may do that too
    return folder


def alter_graph(folder: Path) -> None:
    path = folder / "onnx" / "model.onnx"
    model = onnx.load(path)
    tensor = next(tensor for tensor in model.graph.initializer if list(tensor.dims) == [64, 32])
    array = onnx.numpy_helper.to_array(tensor).copy()
    array[3, 5] += 0.1
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(model, path)


def swap_graphs(folder: Path) -> None:
    shutil.copy(folder / "onnx" / "model_quint8.onnx", folder / "onnx" / "model.onnx")


def break_graph(folder: Path) -> None:
    (folder / "onnx" / "model.onnx").write_bytes(b"nothing")


def pad_left(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"padding_side": "left"}))


def pool_otherwise(folder: Path) -> None:
    file = folder / "1_Pooling" / "config.json"
    swapped = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    file.write_text(json.dumps(json.loads(file.read_text()) | swapped))


ALTERATIONS = {
    "graph": (alter_graph, r"ONNX Runtime \(padding right\): differs"),
    "swapped graphs": (swap_graphs, r"ONNX Runtime \(padding left\): differs"),
    "broken graph": (break_graph, "ONNX Runtime cannot load"),
    "padding side": (pad_left, r"sentence-transformers \(padding right\): differs"),
    "pooling": (pool_otherwise, "pooling: 'mean' in"),
}


@pytest.mark.parametrize("what", ALTERATIONS)
def test_verify_refuses_an_altered_folder(altered: Path, what: str) -> None:
    alter, message = ALTERATIONS[what]
    alter(altered)
    with pytest.raises(UserError, match=message):
        export.main(["--verify", str(altered)])


def test_verify_names_an_altered_file_of_a_folder_with_its_manifest(altered: Path) -> None:
    write_manifest(altered, ORIGIN)
    alter_graph(altered)
    with pytest.raises(UserError, match=r"onnx/model\.onnx: changed since the export"):
        export.main(["--verify", str(altered)])


def test_verify_prints_what_it_compared_and_changes_nothing(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in exported.rglob("*")}
    export.main(["--verify", str(exported)])
    assert capsys.readouterr().out.count(": the same, 24 embeddings") == 7
    assert {path: path.stat().st_mtime_ns for path in exported.rglob("*")} == before


def test_program_that_is_not_installed_is_listed_as_not_checked(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*args: object) -> None:
        raise ModuleNotFoundError(name="onnxruntime")

    contract = EncodingContract.read(exported)
    model = in_jax(exported, contract)
    absent = {"ONNX Runtime", "ONNX Runtime, int8"}
    for name in absent:
        monkeypatch.setitem(RUNTIMES, name, RUNTIMES[name]._replace(load=missing))
    checks = verify_parity(exported, model, contract).checks
    assert {check.runtime for check in checks if check.parity is None} == absent
    assert "not checked: onnxruntime is not installed" in str(checks[-1])
    for name in RUNTIMES:
        monkeypatch.setitem(RUNTIMES, name, RUNTIMES[name]._replace(load=missing))
    with pytest.raises(UserError, match="nothing could be verified"):
        verify_parity(exported, model, contract)


def test_eight_bits_have_bounds_of_their_own() -> None:
    good = Parity(2, cosine=0.96, mean_cosine=0.985, difference=0.1, norm_difference=0.1)
    assert good.holds(INT8)
    assert not good.holds()
    assert not good.holds(Bounds(0.97, 0.98, None, None))
    assert not good.holds(Bounds(0.95, 0.99, None, None))
