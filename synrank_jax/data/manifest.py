"""manifest.json: what a prepared folder holds, how it was made, and the checksums of its files.

The folder holds `lists-train.tfrecord-00000-of-00004`, ... and `lists-train.sizes.npy`, int32
[lists, 3]: tokens of every list's query and of its longest passage, and number of its excluded
documents. Every host needs the sizes of a whole step to choose the padded shape, but reads only its
own records. The manifest is written last, so a folder without one is not prepared.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pydantic
from numpy.typing import NDArray

from synrank_jax.config import DataConfig, Section
from synrank_jax.contract import EncodingContract
from synrank_jax.data.contexts import source_sha256
from synrank_jax.data.records import TFRecordSource, WrittenFile
from synrank_jax.errors import UserError
from synrank_jax.files import file_sha256

SCHEMA_VERSION: Literal[2] = 2
MANIFEST_FILE = "manifest.json"
# Checksums of larger sets would take longer than training's first steps; their sizes are compared
# and every record's CRC is checked when it is read.
CHECKSUM_LIMIT_BYTES = 512 * 2**20


class SourceStamp(Section):
    """A source as the config gives it, and the hash of its files."""

    path: str
    split: str
    queries: str | None
    sha256: str


class Recipe(Section):
    """Everything that decides the content of the shards."""

    contract: EncodingContract
    grades: tuple[int, ...]
    list_size: int
    shard_count: int
    sources: tuple[SourceStamp, ...]

    @classmethod
    def of(cls, data: DataConfig, contract: EncodingContract) -> Self:
        """The recipe of a configuration.

        Raises:
            UserError: a source's file is missing.
        """
        sources = tuple(
            SourceStamp(**source.model_dump(), sha256=source_sha256(source))
            for source in data.sources
        )
        return cls(
            contract=contract,
            grades=data.grades,
            list_size=data.list_size,
            shard_count=data.shards,
            sources=sources,
        )

    def differences(self, other: "Recipe") -> list[str]:
        """One line per setting in which two recipes differ; `self` is the one on disk.

        Sources are compared by content, so a moved folder is no difference.
        """
        mine, others = self._settings(), other._settings()
        return [
            f"{name}: {mine[name]} on disk, {others[name]} now"
            for name in mine
            if mine[name] != others[name]
        ]

    def _settings(self) -> dict[str, object]:
        """What is compared, under the names of the configuration."""
        encoding = self.contract.model_dump().items()
        return {
            **{f"encoding.{name}": value for name, value in encoding},
            "data.grades": list(self.grades),
            "data.list_size": self.list_size,
            "data.shards": self.shard_count,
            "data.sources (SHA-256)": [source.sha256[:12] for source in self.sources],
        }


class FileStamp(Section):
    """A file of the prepared folder."""

    name: str
    records: int
    bytes: int
    sha256: str

    @classmethod
    def of(cls, name: str, written: WrittenFile) -> Self:
        """The stamp of a file just written."""
        return cls(name=name, **written._asdict())


class TokenCounts(Section):
    """Token lengths of one side, after truncation."""

    texts: int
    tokens: int
    longest: int
    truncated: int


class Manifest(Recipe):
    """Content of manifest.json: the recipe, and what came of it."""

    schema_version: Literal[2] = SCHEMA_VERSION
    lists: int
    lists_sha256: str
    """Hash of all records in order, whatever the number of shards."""
    documents: int
    """Distinct document ids."""
    grade_counts: dict[int, int]
    """Grade -> passages."""
    size_counts: dict[int, int]
    """List size -> lists."""
    query_tokens: TokenCounts
    passage_tokens: TokenCounts
    sizes: FileStamp
    shards: tuple[FileStamp, ...]


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a prepared folder.

    Raises:
        UserError: there is none, or it is not of this schema.
    """
    path = folder / MANIFEST_FILE
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); make the shards with "
            "python -m synrank_jax.prepare and the same config"
        ) from error
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(
            f"{path}: not a manifest of schema version {SCHEMA_VERSION} ({field}: {first['msg']}); "
            "prepare the data again with --overwrite"
        ) from error


def verify_shards(manifest: Manifest, folder: Path) -> None:
    """Compare the files of a prepared folder with its manifest.

    Sizes always; SHA-256 where all shards together stay below `CHECKSUM_LIMIT_BYTES`.

    Raises:
        UserError: a file is missing or differs; names it and, for a shard, the damaged record's
            byte offset.
    """
    checksums = sum(shard.bytes for shard in manifest.shards) <= CHECKSUM_LIMIT_BYTES
    for shard in manifest.shards:
        _verify(shard, folder, checksums)
    _verify(manifest.sizes, folder, checksums=True)


def shard_paths(manifest: Manifest, folder: Path) -> Sequence[Path]:
    """The shards in the order of their records."""
    return [folder / shard.name for shard in manifest.shards]


def read_sizes(manifest: Manifest, folder: Path) -> NDArray[np.int32]:
    """int32 [lists, 3]: tokens of the query and of the longest passage, excluded documents."""
    sizes: NDArray[np.int32] = np.load(folder / manifest.sizes.name, allow_pickle=False)
    return sizes


def _verify(stamp: FileStamp, folder: Path, checksums: bool) -> None:
    path = folder / stamp.name
    if not path.is_file():
        raise UserError(
            f"{path}: the file is gone, but the manifest lists it; prepare the data again with "
            "--overwrite"
        )
    size = path.stat().st_size
    if size != stamp.bytes:
        _find_damage(path)
        raise UserError(
            f"{path}: byte {min(size, stamp.bytes)}: the file has {size} bytes, the manifest says "
            f"{stamp.bytes}; prepare the data again with --overwrite"
        )
    if checksums and file_sha256(path) != stamp.sha256:
        _find_damage(path)
        raise UserError(
            f"{path}: the content is not the prepared one (SHA-256 differs from the manifest); "
            "prepare the data again with --overwrite"
        )


def _find_damage(path: Path) -> None:
    """Raise the record reader's own error, which knows the byte offset, if it finds one."""
    if ".tfrecord-" in path.name:
        source = TFRecordSource([path])
        for index in range(len(source)):
            source[index]
