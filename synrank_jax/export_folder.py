"""A trained model as a sentence-transformers folder that appears only when it is the same model.

transformers alone loads it too (AutoModel); README.md says what to compute then.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from synrank_jax.contract import CONTRACT_FILE, EncodingContract
from synrank_jax.errors import UserError
from synrank_jax.export_manifest import README_FILE, Origin, write_manifest
from synrank_jax.folder_settings import MODULES_FILE
from synrank_jax.models.dual_encoder import DualEncoder
from synrank_jax.models.pretrained import WEIGHTS_FILE, export_state_dict
from synrank_jax.onnx_export import write_onnx
from synrank_jax.parity import Verification, verify_parity

Onnx = Literal["float32", "int8"]
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
)


def export_model(
    model: DualEncoder,
    source: Path,
    contract: EncodingContract,
    output: Path,
    *,
    card: str,
    origin: Origin,
    onnx: Onnx | None = None,
) -> Verification:
    """Write, verify and publish a folder.

    Args:
        model: the trained model, computing in float32.
        source: the model folder it started from: gives config, tokenizer and the tensors that
            training does not touch.
        contract: how texts are encoded.
        output: new folder, or an earlier export, which is replaced.
        card: text of README.md; the verification's figures are added to it.
        origin: what the manifest says of the weights.
        onnx: also as ONNX, in `int8` quantised too.

    Returns:
        The figures of the verification.

    Raises:
        UserError: `output` holds something else, cannot be written, or the exported model is not
            the same model; `output` is then as it was.
    """
    check_output(output, source)
    building = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        building.mkdir(parents=True)
        write_folder(model, source, contract, building)
        if onnx is not None:
            write_onnx(building, contract, int8=onnx == "int8")
        verification = verify_parity(building, model, contract)
        verification.write(building)
        write_manifest(building, origin)
        readme = f"{card}\n## Verification\n\nAgainst the JAX model:\n\n{verification.table()}\n"
        (building / README_FILE).write_text(readme, "utf-8")
        _publish(building, output)
    except (OSError, SafetensorError) as error:
        raise UserError(f"--output {output}: cannot be written ({error})") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return verification


def check_output(output: Path, source: Path | None = None) -> None:
    """Refuse an output that is neither new nor an earlier export, or the export's own source.

    Raises:
        UserError: says what is in the way.
    """
    if source is not None and source.resolve().is_relative_to(output.resolve()):
        raise UserError(
            f"--output {output}: training started from {source}, which would be replaced; choose "
            "another folder"
        )
    if output.is_dir():
        names = {path.name for path in output.iterdir()}
        if not names or {CONTRACT_FILE, MODULES_FILE, WEIGHTS_FILE} <= names:
            return
    elif not output.exists():
        return
    raise UserError(
        f"--output {output}: exists and is not an earlier export (no {CONTRACT_FILE} beside "
        f"{MODULES_FILE}); choose another folder or remove it"
    )


def _publish(building: Path, output: Path) -> None:
    """Move the finished folder into place; an earlier export goes only when that has worked."""
    if not output.exists():
        building.rename(output)
        return
    previous = building.with_suffix(".previous")
    output.rename(previous)
    try:
        building.rename(output)
    except BaseException:
        previous.rename(output)
        raise
    shutil.rmtree(previous)


def write_folder(
    model: DualEncoder, source: Path, contract: EncodingContract, folder: Path
) -> None:
    """Write weights, tokenizer, modules and contract into an existing folder.

    Fewer components are a Dense module with rows of the identity before Normalize: exact, and what
    every version and every server of such folders computes. (`truncate_dim` of the settings cuts
    after Normalize, only within `encode`, and leaves vectors that are no longer of unit length.)

    The module files keep the older names and keys. `query_length` and `document_length` are written
    only if the two sides differ; encode_query and encode_document then cut at their own length, and
    the folder needs sentence-transformers 6.1 (older versions refuse the keys).
    """
    config = json.loads((source / "config.json").read_text("utf-8"))
    # Float32 weights, and no remote code: neither may be taken from the source's settings.
    kept = {name: config[name] for name in config if name not in ("torch_dtype", "auto_map")}
    _write_json(folder / "config.json", kept | {"dtype": "float32"})
    _write_tensors(folder / WEIGHTS_FILE, export_state_dict(model.encoder, source))
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if (source / TOKENIZER_CONFIG).is_file():
        # Whatever the source says: the contract pads and cuts on the right.
        settings = json.loads((source / TOKENIZER_CONFIG).read_text("utf-8"))
        right = {"padding_side": contract.padding_side, "truncation_side": "right"}
        _write_json(folder / TOKENIZER_CONFIG, settings | right)
    lengths: dict[str, Any] = {
        "max_seq_length": max(contract.query_length, contract.passage_length),
        "do_lower_case": False,
    }
    if contract.query_length != contract.passage_length:
        lengths["query_length"] = contract.query_length
        lengths["document_length"] = contract.passage_length
    _write_json(folder / "sentence_bert_config.json", lengths)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    pooling = {
        "word_embedding_dimension": config["hidden_size"],
        "pooling_mode_cls_token": contract.pooling == "cls",
        "pooling_mode_mean_tokens": contract.pooling == "mean",
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    _write_json(folder / "1_Pooling" / "config.json", pooling)
    if contract.dimension is not None:
        path = f"{len(modules)}_Dense"
        modules.append((path, "Dense"))
        _write_truncation(folder / path, config["hidden_size"], contract.dimension)
    if contract.normalize:
        path = f"{len(modules)}_Normalize"
        modules.append((path, "Normalize"))
        _write_json(folder / path / "config.json", {})
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ]
    _write_json(folder / MODULES_FILE, entries)
    settings = {
        "prompts": {"query": contract.query_prompt, "document": contract.passage_prompt},
        "default_prompt_name": None,
        "similarity_fn_name": contract.similarity,
    }
    _write_json(folder / "config_sentence_transformers.json", settings)
    contract.write(folder)


def _write_truncation(folder: Path, size: int, kept: int) -> None:
    settings = {
        "in_features": size,
        "out_features": kept,
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    _write_json(folder / "config.json", settings)
    _write_tensors(folder / WEIGHTS_FILE, {"linear.weight": np.eye(kept, size, dtype=np.float32)})


def _write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(path.with_name("config.json").stat().st_mode)  # not only for their owner


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
