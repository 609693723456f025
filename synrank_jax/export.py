"""Write a trained model as a sentence-transformers folder, and prove that it is the same model.

    python -m synrank_jax.export --checkpoint RUN --output FOLDER [--metrics metrics.json ...]

RUN is a run folder of train or one of its checkpoints. The folder appears only after
sentence-transformers has loaded it and its embeddings equal those of the JAX model.
"""

import argparse
import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from synrank_jax.cli import run_command
from synrank_jax.contract import (
    CONTRACT_FILE,
    MODULES_FILE,
    EncodingContract,
    load_tokenizer,
    tokenizer_sha256,
)
from synrank_jax.engine.checkpoint import load_trained
from synrank_jax.engine.encoding import JaxEncoder
from synrank_jax.engine.state import merge_model, split_model
from synrank_jax.errors import UserError
from synrank_jax.hub import model_folder
from synrank_jax.model_card import model_card
from synrank_jax.models.dual_encoder import DualEncoder
from synrank_jax.models.numerics import Numerics
from synrank_jax.models.pretrained import WEIGHTS_FILE, export_state_dict, load_encoder
from synrank_jax.retrieval.result import EvaluationResult

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
)

# What an export must reach. Float32 through a BERT leaves about 1e-7 on a unit vector.
MIN_COSINE = 0.9999
MAX_DIFFERENCE = 1e-5
VERIFICATION_TEXTS = (
    "wing",
    "",
    "How does heat reach the skin of a fast aircraft?",
    "Füße & naïve <b>cafés</b>, 東京 3.14 × 10⁻⁵ [MASK]\n\ttwo  lines",
    "A boundary layer grows along the plate until it turns turbulent. " * 5,
    "This text is longer than any encoder reads. " * 500,
)


@dataclasses.dataclass(frozen=True)
class Parity:
    """How far the exported model is from the JAX model, at worst over all texts and batches.

    difference: largest absolute difference of a component. norm_difference: largest relative
    difference of lengths. Where an embedding is longer than 1, both count relative to its length:
    float32 carries seven digits, not seven decimals.
    """

    embeddings: int
    cosine: float
    difference: float
    norm_difference: float

    @classmethod
    def of(cls, ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> "Parity":
        """Compare embeddings [B, D] with embeddings [B, D]."""
        a, b = ours.astype(np.float64), theirs.astype(np.float64)
        norm_a, norm_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
        return cls(
            embeddings=len(a),
            cosine=float(np.min((a * b).sum(axis=1) / (norm_a * norm_b))),
            difference=float(np.max(np.abs(a - b).max(axis=1) / np.maximum(norm_a, 1.0))),
            norm_difference=float(np.max(np.abs(norm_a - norm_b) / norm_a)),
        )

    def holds(self) -> bool:
        """Whether the bounds are met; NaN meets none."""
        return (
            self.cosine >= MIN_COSINE
            and self.difference <= MAX_DIFFERENCE
            and self.norm_difference <= MAX_DIFFERENCE
        )

    def __str__(self) -> str:
        return (
            f"{self.embeddings} embeddings compared: cosine >= {self.cosine:.9f} "
            f"(bound {MIN_COSINE}), largest difference {self.difference:.1e} "
            f"(bound {MAX_DIFFERENCE:.0e}), of lengths {self.norm_difference:.1e} "
            f"(bound {MAX_DIFFERENCE:.0e})"
        )


def export_model(
    encoder: DualEncoder,
    source_folder: Path,
    contract: EncodingContract,
    output: Path,
    *,
    card: str,
) -> Parity:
    """Write, verify and publish a sentence-transformers folder.

    Args:
        encoder: the trained model, computing in float32.
        source_folder: the model folder it started from: gives config, tokenizer and the tensors
            that training does not touch.
        contract: how texts are encoded.
        output: new folder, or an earlier export, which is replaced.
        card: text of README.md; the verification's figures are added to it.

    Returns:
        The figures of the verification.

    Raises:
        UserError: `output` holds something else, cannot be written, or the exported model is not
            the same model; `output` is then as it was.
    """
    check_output(output, source_folder)
    building = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        building.mkdir(parents=True)
        write_folder(encoder, source_folder, contract, building)
        parity = verify_export(building, encoder, contract)
        readme = f"{card}\n## Verification\n\nJAX against sentence-transformers: {parity}.\n"
        (building / "README.md").write_text(readme, "utf-8")
        _publish(building, output)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written ({error})") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return parity


def check_output(output: Path, source_folder: Path | None = None) -> None:
    """Refuse an output that is neither new nor an earlier export, or the export's own source.

    Raises:
        UserError: says what is in the way.
    """
    if source_folder is not None and output.resolve() == source_folder.resolve():
        raise UserError(f"--output {output}: training started from this folder; choose another")
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
    except OSError:
        previous.rename(output)
        raise
    shutil.rmtree(previous)


def write_folder(
    encoder: DualEncoder, source_folder: Path, contract: EncodingContract, folder: Path
) -> None:
    """Write weights, tokenizer, modules and contract into an existing folder.

    The module files keep the older names and keys. `query_length` and `document_length` are written
    only if the two sides differ; encode_query and encode_document then cut at their own length, and
    the folder needs sentence-transformers 6.1 (older versions refuse the keys).
    """
    from safetensors.numpy import save_file

    config = json.loads((source_folder / "config.json").read_text("utf-8"))
    # Float32 weights, and no remote code: neither may be taken from the source's settings.
    kept = {name: config[name] for name in config if name not in ("torch_dtype", "auto_map")}
    _write_json(folder / "config.json", kept | {"dtype": "float32"})
    tensors = export_state_dict(encoder.encoder, source_folder)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    # safetensors makes files that only their owner can read.
    shutil.copymode(folder / "config.json", folder / WEIGHTS_FILE)
    for name in TOKENIZER_FILES:
        if (source_folder / name).is_file():
            shutil.copyfile(source_folder / name, folder / name)
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
    if contract.normalize:
        modules.append(("2_Normalize", "Normalize"))
        _write_json(folder / "2_Normalize" / "config.json", {})
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


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def verify_export(folder: Path, encoder: DualEncoder, contract: EncodingContract) -> Parity:
    """Load an exported folder with sentence-transformers and compare it with the JAX model.

    Both sides, with prompts, on short, long, empty and over-long texts, as one batch and one by
    one.

    Raises:
        UserError: the folder does not load, or is not the same model; gives the figures.
    """
    model = _sentence_transformer(folder)
    if model.similarity_fn_name != contract.similarity:
        raise UserError(
            f"export: similarity is {contract.similarity!r} in the encoding contract, but "
            f"{model.similarity_fn_name!r} in the exported model"
        )
    digest = tokenizer_sha256(load_tokenizer(folder))
    if digest != contract.tokenizer_sha256:
        raise UserError(
            f"export: the tokenizer's hash is {contract.tokenizer_sha256} in the encoding "
            f"contract, but {digest} in the exported model; export from the model folder that "
            "training started from"
        )
    sides: tuple[tuple[Literal["query", "passage"], Callable[..., Any]], ...] = (
        ("query", model.encode_query),
        ("passage", model.encode_document),
    )
    texts = list(VERIFICATION_TEXTS)
    ours, theirs = [], []
    for batch_size in (len(texts), 1):
        ours_encoder = JaxEncoder(encoder, contract, folder, batch_size)
        for side, encode in sides:
            ours.append(ours_encoder.encode(texts, side))
            theirs.append(encode(texts, batch_size=batch_size, show_progress_bar=False))
    parity = Parity.of(np.concatenate(ours), np.concatenate(theirs))
    if not parity.holds():
        raise UserError(f"export: the exported model is not the JAX model: {parity}")
    return parity


def _sentence_transformer(folder: Path) -> Any:
    """The folder as its users will load it, on CPU; nothing is downloaded, no code executed."""
    try:
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging
    except ImportError as error:
        raise UserError(
            f"export needs sentence-transformers and torch ({error}); "
            "install the extra: pip install 'synrank-jax[export]'"
        ) from error
    logging.disable_progress_bar()
    try:
        return SentenceTransformer(
            str(folder), device="cpu", local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # torch, transformers and safetensors raise many unrelated types
        raise UserError(
            f"export: sentence-transformers cannot load the exported folder "
            f"({type(error).__name__}: {error})"
        ) from error


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    args = _parser().parse_args(argv)
    output = Path(args.output)
    check_output(output)
    results = [EvaluationResult.read(Path(path)) for path in args.metrics]
    trained = load_trained(Path(args.checkpoint))
    contract, model = trained.contract, trained.config.model
    source_folder = model_folder(model.path, model.revision)
    # Whatever precision trained them, the weights are float32, and so is the comparison.
    encoder = load_encoder(source_folder, Numerics())
    structure, _ = split_model(DualEncoder(encoder, contract.pooling, contract.normalize))
    card = model_card(
        trained.config, contract, trained.step, trained.temperature, source_folder, results
    )
    parity = export_model(
        merge_model(structure, dict(trained.params)), source_folder, contract, output, card=card
    )
    print(
        f"verified: JAX against sentence-transformers {metadata.version('sentence-transformers')}"
    )
    print(f"  {parity}")
    print(f"written to {output} (step {trained.step} of {args.checkpoint}{trained.because})")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m synrank_jax.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint", metavar="RUN", required=True, help="run folder of train, or a checkpoint"
    )
    parser.add_argument(
        "--output", metavar="FOLDER", required=True, help="new folder, or an earlier export"
    )
    parser.add_argument(
        "--metrics",
        metavar="METRICS.json",
        nargs="+",
        default=[],
        help="results of evaluate to state in the model card",
    )
    return parser


if __name__ == "__main__":
    run_command(main)
