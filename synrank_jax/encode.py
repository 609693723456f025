"""Encode the documents of a collection into files of embeddings; the same command again resumes.

    python -m synrank_jax.encode --config FILE.yaml [--model FOLDER] [--embeddings FOLDER]

`evaluate` encodes what is missing by itself. This command is for several processes or machines
that share the work, each with its own --part, on storage that all of them see:

    python -m synrank_jax.encode --config FILE.yaml --model FOLDER --part 1/4

The folder has files of 4,096 rows (NumPy .npy, one document a row, in the order of corpus.jsonl)
and manifest.json: the encoding contract, hashes of weights and documents.
"""

import argparse
import re
from collections.abc import Sequence

from synrank_jax.cli import config_parser, parsed_config, run_command
from synrank_jax.corpus_encoding import Part, encode_corpus
from synrank_jax.encoders import add_model_options, checkpoint_of, load_encoder
from synrank_jax.evaluation import evaluation_section, open_store, read_documents


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    args = _parser().parse_args(argv)
    config = parsed_config(args)
    evaluation = evaluation_section(config)
    documents = read_documents(evaluation)
    encoder, backend = load_encoder(
        args.model and checkpoint_of(args.model), args.backend, config, evaluation.batch_size
    )
    store = open_store(encoder, backend, documents, evaluation, args.embeddings)
    encoded = encode_corpus(encoder, documents, store, args.part)
    if encoded.documents:
        rate = encoded.documents / encoded.seconds
        print(f"encoded {encoded.documents:,} documents, {rate:,.0f} per second")
    left = len(store.missing())
    print(f"{left} of {len(store.shards())} files are still missing" if left else "all files there")
    print(f"embeddings: {store.folder}")


def _part(text: str) -> Part:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text}: give I/N, for example 1/4 to 4/4")
    return Part(int(match[1]) - 1, int(match[2]))


def _parser() -> argparse.ArgumentParser:
    parser = config_parser("encode", __doc__ or "")
    add_model_options(parser)
    parser.add_argument(
        "--part", type=_part, metavar="I/N", help="write only the I-th of N parts (default: all)"
    )
    return parser


if __name__ == "__main__":
    run_command(main)
