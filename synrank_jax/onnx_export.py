"""An exported folder's encoder as ONNX, in float32 and in 8-bit integers."""

import logging
import shutil
import uuid
import warnings
from pathlib import Path

from synrank_jax.contract import EncodingContract, load_tokenizer
from synrank_jax.errors import UserError
from synrank_jax.export_manifest import ONNX_FOLDER

# The names that sentence-transformers looks for and optimum downloads.
ONNX_FILE = "model.onnx"
INT8_FILE = "model_quint8.onnx"
EXTERNAL_SUFFIX = "_data"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
TOKEN_OUTPUT, TEXT_OUTPUT = "last_hidden_state", "sentence_embedding"
OPSET = 20  # ONNX Runtime 1.17 and later read it
# A protobuf file ends at 2 GiB; the graph without its weights is below 100 MB.
LARGEST_SINGLE_FILE = 1_900_000_000


def write_onnx(folder: Path, contract: EncodingContract, *, int8: bool) -> None:
    """Write onnx/model.onnx into an exported folder, with `int8` onnx/model_quint8.onnx as well.

    The graph takes `INPUTS` [B, T] int64, padded on either side, and gives `last_hidden_state`
    [B, T, H] (what sentence-transformers pools itself) and `sentence_embedding` [B, D], pooled,
    cut and normalised as the contract says. Weights of more than 1.9 GB stand in a file beside it.

    Args:
        folder: holds the finished transformers model; gets a tokenizer.json if it lacks one, since
            that is all that the `tokenizers` library reads. onnx/ appears whole or not at all.
        contract: how texts are encoded.
        int8: quantise too.

    Raises:
        UserError: onnx, onnxruntime, onnxscript or torch is missing.
    """
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401

        from synrank_jax.torch_encoder import PooledEncoder
    except ImportError as error:
        raise UserError(
            f"--onnx: {error}; install the extra: pip install 'synrank-jax[onnx]'"
        ) from error
    if not (folder / "tokenizer.json").is_file():
        load_tokenizer(folder).save(str(folder / "tokenizer.json"))
    building = folder / f".{ONNX_FOLDER}.{uuid.uuid4().hex}.tmp"
    try:
        building.mkdir()
        _export(PooledEncoder(folder, contract), building / ONNX_FILE)
        if int8:
            _quantise(building / ONNX_FILE, building / INT8_FILE)
        if (folder / ONNX_FOLDER).is_dir():
            shutil.rmtree(folder / ONNX_FOLDER)
        building.rename(folder / ONNX_FOLDER)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _export(encoder: object, path: Path) -> None:
    import onnx_ir
    import torch
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    # Three tensors: one given twice would become one input of the graph.
    example = tuple(torch.full((2, 3), value) for value in (1, 1, 0))
    axes = {0: "batch", 1: "sequence"}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter about itself
        program = torch.onnx.export(
            encoder,
            example,
            input_names=INPUTS,
            output_names=(TOKEN_OUTPUT, TEXT_OUTPUT),
            dynamic_shapes=dict.fromkeys(INPUTS, axes),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    # Every node carries the call stack of the export, with paths of this machine.
    ClearMetadataAndDocStringPass()(program.model)
    size = sum(value.const_value.nbytes for value in program.model.graph.initializers.values())
    beside = path.name + EXTERNAL_SUFFIX if size > LARGEST_SINGLE_FILE else None
    onnx_ir.save(program.model, path, external_data=beside)


def _quantise(source: Path, target: Path) -> None:
    """Weights of the linear maps and embeddings in 8 bits, activations in 8 bits as they come.

    Per output channel: one scale per matrix costs ten times the error. Unsigned: on a processor
    without VNNI signed weights saturate in 16-bit sums, and the model would be another one there.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = logging.getLogger()
    level, root.level = root.level, logging.ERROR  # it advises a preparation that changes nothing
    try:
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul", "Gather"],
            per_channel=True,
            weight_type=QuantType.QUInt8,
            use_external_data_format=(source.with_name(source.name + EXTERNAL_SUFFIX)).exists(),
        )
    finally:
        root.setLevel(level)
