"""Embeddings on disk: files of consecutive rows, and a manifest of what they were made from.

A store is made for one key: encoding contract, weights, texts, precision. Whoever opens it says
which key is wanted, so embeddings of another model or corpus can never be taken for these.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pydantic
from numpy.typing import NDArray

from synrank_jax.config_section import Section
from synrank_jax.contract import EncodingContract
from synrank_jax.errors import UserError
from synrank_jax.files import atomic_write, make_folder, write_text
from synrank_jax.retrieval.search import unit_length

MANIFEST_FILE = "manifest.json"
SHARD_ROWS = 4096
"""Rows of a file: what a kill loses at most."""


class StoreKey(Section):
    """Everything that decides the rows of a store."""

    contract: EncodingContract
    weights_sha256: str
    backend: Literal["jax", "torch"]
    texts_sha256: str
    texts: int
    dtype: Literal["float32", "float16"]

    def name(self) -> str:
        """A folder name that no other key has."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:32]


class EmbeddingStore:
    """Rows [N, D] in files of `SHARD_ROWS`, each whole or not there.

    Args:
        folder: new, or of the same key.
        key: what the rows are made from.

    Raises:
        UserError: the folder has embeddings of another key (names what differs) or something else,
            or cannot be written.
    """

    def __init__(self, folder: Path, key: StoreKey) -> None:
        self.folder, self.key = folder, key
        make_folder(folder, "--embeddings")
        manifest = folder / MANIFEST_FILE
        # Hidden files are temporary ones, of a process that opens the same store or was killed.
        others = any(not path.name.startswith(".") for path in folder.iterdir())
        if manifest.exists():
            _require_equal(_read_key(manifest), key, folder)
        elif others:
            raise UserError(
                f"--embeddings {folder}: is neither empty nor has it a {MANIFEST_FILE}, so it is "
                "no folder of embeddings; choose another"
            )
        else:
            write_text(manifest, key.model_dump_json(indent=2) + "\n")

    def shards(self) -> range:
        """Numbers of all files, written or not."""
        return range(-(-self.key.texts // SHARD_ROWS))

    def rows(self, shard: int) -> range:
        """The rows of a file."""
        return range(shard * SHARD_ROWS, min((shard + 1) * SHARD_ROWS, self.key.texts))

    def missing(self) -> list[int]:
        """Numbers of the files that are not written yet."""
        return [shard for shard in self.shards() if not self._file(shard).exists()]

    def write(self, shard: int, embeddings: NDArray[np.float32], ids: Sequence[str]) -> None:
        """Write the rows of a file; it is there when it is whole.

        Args:
            shard: number of the file.
            embeddings: its rows.
            ids: of all N texts, for errors.

        Raises:
            UserError: a value is NaN, infinite or too large for the precision; the disk is full.
        """
        with np.errstate(over="ignore"):
            values = embeddings.astype(self.key.dtype)
        broken = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if broken.size:
            named = ", ".join(repr(ids[self.rows(shard)[row]]) for row in broken[:3].tolist())
            raise UserError(
                f"embeddings: {broken.size} of {len(values)} are NaN or infinite in "
                f"{self.key.dtype} (of documents {named}); the model's weights or precision are "
                "broken"
            )
        with atomic_write(self._file(shard)) as file:
            np.save(file, values, allow_pickle=False)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D).

        Raises:
            UserError: the first file is missing or damaged.
        """
        return self.key.texts, self._read(0).shape[1]

    def nbytes(self) -> int:
        """Bytes of all rows."""
        rows, columns = self.shape
        return rows * columns * np.dtype(self.key.dtype).itemsize

    def blocks(self, rows: int) -> Iterator[NDArray[np.float32]]:
        """Consecutive blocks of at most `rows` rows as float32, of unit length under cosine.

        Raises:
            UserError: a file is missing or damaged.
        """
        cosine = self.key.contract.similarity == "cosine"
        total, width = self.shape
        for start in range(0, total, rows):
            stop = min(start + rows, total)
            parts = [
                self._read(shard, width)[
                    max(start - shard * SHARD_ROWS, 0) : stop - shard * SHARD_ROWS
                ]
                for shard in range(start // SHARD_ROWS, -(-stop // SHARD_ROWS))
            ]
            # Rows of one file stay a map: FAISS and JAX read them where they lie.
            block = parts[0] if len(parts) == 1 else np.concatenate(parts)
            block = np.asarray(block, np.float32)
            yield unit_length(block) if cosine else block

    def _file(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}.npy"

    def _read(self, shard: int, width: int | None = None) -> NDArray[np.floating]:
        path, rows = self._file(shard), len(self.rows(shard))
        try:
            values: NDArray[np.floating] = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError as error:
            raise UserError(f"{path}: is missing; encode the documents again") from error
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path}: is damaged ({error}); delete it and run the same command again"
            ) from error
        expected = (rows, values.shape[-1] if width is None else width)
        if values.shape != expected or values.dtype != self.key.dtype:
            raise UserError(
                f"{path}: holds {values.dtype} {values.shape} instead of {self.key.dtype} "
                f"{expected}; delete it and run the same command again"
            )
        return values


def _read_key(path: Path) -> StoreKey:
    try:
        return StoreKey.model_validate_json(path.read_text("utf-8"))
    except (OSError, pydantic.ValidationError) as error:
        raise UserError(
            f"{path}: not the manifest of an embeddings folder ({error}); choose another folder"
        ) from error


def _require_equal(stored: StoreKey, wanted: StoreKey, folder: Path) -> None:
    there, here = _flat(stored), _flat(wanted)
    differing = [
        f"  {name}: {there[name]!r} there, {here[name]!r} now"
        for name in here
        if there[name] != here[name]
    ]
    if differing:
        raise UserError(
            f"--embeddings {folder}: made with another model, other documents or settings:\n"
            + "\n".join(differing)
            + "\ngive the folder of these, or one that does not exist yet"
        )


def _flat(key: StoreKey) -> dict[str, object]:
    values = key.model_dump()
    return {**values.pop("contract"), **values}
