"""Write a trained model as a sentence-transformers folder, and prove that it is the same model.

    python -m synrank_jax.export --checkpoint RUN --output FOLDER [--metrics metrics.json ...]
    python -m synrank_jax.export --verify FOLDER

RUN is a run folder of train or one of its checkpoints. The folder appears only after
sentence-transformers, transformers and, with --onnx, ONNX Runtime have loaded it and their
embeddings equal those of the JAX model. --verify does that again for an exported folder.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import synrank_jax
from synrank_jax.cli import run_command
from synrank_jax.contract import EncodingContract, check_dimension, source_folder
from synrank_jax.data.manifest import Manifest, read_manifest
from synrank_jax.encoders import stored_contract
from synrank_jax.engine.checkpoint import Trained, load_trained
from synrank_jax.engine.state import merge_model, split_model
from synrank_jax.errors import UserError
from synrank_jax.export_folder import check_output, export_model
from synrank_jax.export_manifest import Origin, base_model
from synrank_jax.model_card import Card, model_card
from synrank_jax.models.dual_encoder import DualEncoder
from synrank_jax.models.numerics import Numerics
from synrank_jax.models.pretrained import abstract_encoder, load_encoder
from synrank_jax.parity import Verification, verify_parity
from synrank_jax.push import check_login, push
from synrank_jax.retrieval.result import EvaluationResult


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.private and args.push_to_hub is None:
        parser.error("--private: of the repository that --push-to-hub names")
    if args.verify is not None:
        if args.checkpoint or args.output:
            parser.error("--verify: of a folder that exists; it goes without the other options")
        print(f"verified: {args.verify} is the same model in\n{_verify(Path(args.verify))}")
        return
    if args.checkpoint is None or args.output is None:
        parser.error("--checkpoint and --output are required, or --verify")
    output, repo_id = Path(args.output), args.push_to_hub
    check_output(output)
    if repo_id is not None:
        check_login(repo_id)
    results = [EvaluationResult.read(Path(path)) for path in args.metrics]
    trained = load_trained(Path(args.checkpoint))
    source = source_folder(trained.config, trained.contract, args.checkpoint)
    contract = _truncated(trained.contract, args.dimension, source)
    origin = Origin(
        checkpoint=args.checkpoint,
        step=trained.step,
        data_sha256=trained.data_sha256,
        model_path=trained.config.model.path,
        base_model=base_model(trained.config.model.path, source),
        version=synrank_jax.__version__,
    )
    card = Card(
        name=repo_id or output.name,
        trained=trained,
        contract=contract,
        source=source,
        base_model=origin.base_model,
        lists=_lists(trained),
        results=results,
        own=[
            result.contract == contract
            and _same(result.model, (args.checkpoint, str(trained.folder), args.output))
            for result in results
        ],
    )
    # Only shapes: the weights are those of the checkpoint, in float32 whatever trained them.
    encoder = abstract_encoder(source, Numerics())
    structure, _ = split_model(
        DualEncoder(encoder, contract.pooling, contract.normalize, contract.dimension)
    )
    verification = export_model(
        merge_model(structure, trained.params),
        source,
        contract,
        output,
        card=model_card(card),
        origin=origin,
        onnx=args.onnx,
    )
    print(f"verified: the JAX model against\n{verification}")
    print(f"written to {output} (step {trained.step} of {args.checkpoint}{trained.because})")
    if repo_id is not None:
        message = f"synrank-jax {origin.version}, step {trained.step}"
        print(f"pushed to {push(output, repo_id, args.private, message)}")


def _verify(folder: Path) -> Verification:
    """The checks of an exported folder; its own weights in JAX are the reference."""
    contract = stored_contract(folder)
    encoder = load_encoder(folder, Numerics())
    model = DualEncoder(encoder, contract.pooling, contract.normalize, contract.dimension)
    return verify_parity(folder, model, contract)


def _truncated(contract: EncodingContract, dimension: int | None, source: Path) -> EncodingContract:
    """The contract of a model of which only the first components are kept."""
    if dimension is None:
        return contract
    if dimension < 1:
        raise UserError(f"--dimension {dimension}: at least one component must be kept")
    check_dimension(dimension, contract.dimension, source, "--dimension")
    return contract.model_copy(update={"dimension": dimension})


def _lists(trained: Trained) -> Manifest | None:
    """The manifest of the lists that were trained on, where they still are."""
    try:
        manifest = read_manifest(Path(trained.config.data.prepared).expanduser())
    except UserError:
        return None
    return manifest if manifest.lists_sha256 == trained.data_sha256 else None


def _same(model: str, folders: Sequence[str]) -> bool:
    return Path(model).resolve() in {Path(folder).resolve() for folder in folders}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m synrank_jax.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", metavar="RUN", help="run folder of train, or a checkpoint")
    parser.add_argument("--output", metavar="FOLDER", help="new folder, or an earlier export")
    parser.add_argument(
        "--metrics",
        metavar="METRICS.json",
        nargs="+",
        default=[],
        help="results of evaluate to state in the model card",
    )
    parser.add_argument(
        "--dimension",
        type=int,
        metavar="D",
        help="keep only the first D components of the embeddings (Matryoshka)",
    )
    parser.add_argument(
        "--onnx",
        choices=("float32", "int8"),
        help="also write onnx/model.onnx; int8: and a quantised onnx/model_quint8.onnx",
    )
    parser.add_argument(
        "--verify",
        metavar="FOLDER",
        help="compare an exported folder in every program installed with JAX, and change nothing",
    )
    parser.add_argument(
        "--push-to-hub",
        metavar="OWNER/NAME",
        help="upload the verified folder to this model repository; logs in with HF_TOKEN",
    )
    parser.add_argument(
        "--private", action="store_true", help="make the repository private, if it is new"
    )
    return parser


if __name__ == "__main__":
    run_command(main)
