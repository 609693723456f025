"""An exported folder in the programs that serve it, each as its users call it.

Every loader takes folder and contract and returns texts -> embeddings; it raises ImportError where
the program is not installed. All run on CPU, load nothing from a network and execute no code of
the folder.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from synrank_jax.contract import EncodingContract
from synrank_jax.errors import UserError
from synrank_jax.export_manifest import ONNX_FOLDER
from synrank_jax.onnx_export import INPUTS, INT8_FILE, ONNX_FILE, TEXT_OUTPUT

Side = Literal["query", "passage"]
Padding = Literal["right", "left"]
# One batch of texts of one side, without prompts -> [B, D].
Encode = Callable[[list[str], Side, Padding], NDArray[np.float32]]


class Runtime(NamedTuple):
    """A program.

    file: what the folder must have for it. packages: whose versions count. paddings: the sides that
    it is asked to pad on; sentence-transformers pads as the folder says, on the right.
    """

    file: str
    packages: tuple[str, ...]
    paddings: tuple[Padding, ...]
    load: Callable[[Path, EncodingContract], Encode]


def side_of(contract: EncodingContract, side: Side) -> tuple[str, int]:
    """Prompt and length of a side."""
    if side == "query":
        return contract.query_prompt, contract.query_length
    return contract.passage_prompt, contract.passage_length


def sentence_transformers(folder: Path, contract: EncodingContract) -> Encode:
    """`encode_query` and `encode_document`, with the folder's own prompts, lengths and modules."""
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = SentenceTransformer(
        str(folder), device="cpu", local_files_only=True, trust_remote_code=False
    )
    if model.similarity_fn_name != contract.similarity:
        raise UserError(
            f"export: similarity is {contract.similarity!r} in the encoding contract, but "
            f"{model.similarity_fn_name!r} in the exported model"
        )

    def encode(texts: list[str], side: Side, padding: Padding) -> NDArray[np.float32]:
        call = model.encode_query if side == "query" else model.encode_document
        vectors: NDArray[np.float32] = call(texts, batch_size=len(texts), show_progress_bar=False)
        return vectors

    return encode


def transformers(folder: Path, contract: EncodingContract) -> Encode:
    """AutoTokenizer and AutoModel, positions and pooling under the mask."""
    import torch
    from transformers import AutoTokenizer

    from synrank_jax.torch_encoder import PooledEncoder

    tokenizer = AutoTokenizer.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=False
    )
    model = PooledEncoder(folder, contract)

    def encode(texts: list[str], side: Side, padding: Padding) -> NDArray[np.float32]:
        prompt, length = side_of(contract, side)
        batch = tokenizer(
            [prompt + text for text in texts],
            padding=True,
            padding_side=padding,
            truncation=True,
            max_length=length,
            return_token_type_ids=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            vectors: NDArray[np.float32] = model(**batch)[1].numpy()
        return vectors

    return encode


def _onnx(folder: Path, contract: EncodingContract, file: str) -> Encode:
    """ONNX Runtime and the tokenizers library alone."""
    import onnxruntime
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    session = onnxruntime.InferenceSession(
        str(folder / ONNX_FOLDER / file), providers=["CPUExecutionProvider"]
    )

    def encode(texts: list[str], side: Side, padding: Padding) -> NDArray[np.float32]:
        prompt, length = side_of(contract, side)
        tokenizer.enable_truncation(length)
        tokenizer.enable_padding(direction=padding)
        rows = tokenizer.encode_batch([prompt + text for text in texts])
        fields = [(row.ids, row.attention_mask, row.type_ids) for row in rows]
        arrays = np.array(fields, np.int64).transpose(1, 0, 2)
        vectors: Any = session.run([TEXT_OUTPUT], dict(zip(INPUTS, arrays, strict=True)))[0]
        return np.asarray(vectors, np.float32)

    return encode


def onnx(folder: Path, contract: EncodingContract) -> Encode:
    """The float32 graph."""
    return _onnx(folder, contract, ONNX_FILE)


def onnx_int8(folder: Path, contract: EncodingContract) -> Encode:
    """The quantised graph; activations share a scale, so a vector depends on its batch a little."""
    return _onnx(folder, contract, INT8_FILE)


BOTH: tuple[Padding, ...] = ("right", "left")
TORCH = ("transformers", "torch")
RUNTIMES = {
    "sentence-transformers": Runtime(
        "modules.json", ("sentence-transformers", *TORCH), ("right",), sentence_transformers
    ),
    "transformers": Runtime("config.json", TORCH, BOTH, transformers),
    "ONNX Runtime": Runtime(f"{ONNX_FOLDER}/{ONNX_FILE}", ("onnxruntime",), BOTH, onnx),
    "ONNX Runtime, int8": Runtime(f"{ONNX_FOLDER}/{INT8_FILE}", ("onnxruntime",), BOTH, onnx_int8),
}
