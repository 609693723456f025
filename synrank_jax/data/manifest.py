"""manifest.json: what a prepared folder holds, how it was made, and the checksums of its files.

The folder holds `lists-train.tfrecord-00000-of-00004`, ... and `lists-train.sizes.npy`, int32
[records, 2 + L]: of every list the number of its excluded documents, the tokens of its query and of
each passage. Every host needs the sizes of a whole step to choose its shapes, but reads only its
own records. The manifest is written last, so a folder without one is not prepared.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pydantic
from numpy.typing import NDArray

from synrank_jax.config import DataConfig
from synrank_jax.config_section import Section
from synrank_jax.contract import EncodingContract
from synrank_jax.data.records import TFRecordSource, WrittenFile
from synrank_jax.data.sources import source_sha256
from synrank_jax.errors import UserError
from synrank_jax.files import file_sha256

SCHEMA_VERSION: Literal[3] = 3
MANIFEST_FILE = "manifest.json"
# Checksums of larger sets would take longer than training's first steps; their sizes are compared
# and every record's CRC is checked when it is read.
CHECKSUM_LIMIT_BYTES = 512 * 2**20
# Of a source, what its hash stands for.
WHERE = {"path", "corpus", "queries"}


class Recipe(Section):
    """Everything that decides the content of the shards."""

    contract: EncodingContract
    data: DataConfig
    """Its `prepared` is ".", the folder that holds the manifest."""
    sources_sha256: tuple[str, ...]
    """Hash of the content of each source."""

    @classmethod
    def of(cls, data: DataConfig, contract: EncodingContract) -> Self:
        """The recipe of a configuration.

        Raises:
            UserError: a source's file is missing.
        """
        hashes = tuple(source_sha256(source) for source in data.sources)
        here = data.model_copy(update={"prepared": "."})
        return cls(contract=contract, data=here, sources_sha256=hashes)

    def differences(self, other: "Recipe") -> list[str]:
        """One line per setting in which two recipes differ; `self` is the one on disk.

        Sources are compared by content, so a moved folder is no difference.
        """
        mine, others = self.settings(), other.settings()
        return [
            f"{name}: {mine[name]} on disk, {others[name]} now"
            for name in mine
            if mine[name] != others[name]
        ]

    def fingerprint(self) -> str:
        """Hash of the settings and of the sources' content."""
        return _sha256([SCHEMA_VERSION, self.settings(), self.sources_sha256])

    def lists_fingerprint(self) -> str:
        """The same of what decides the lists alone, however tokenised and cut into shards."""
        data = self.data.model_dump(mode="json", exclude={"prepared", "shards", "sources"})
        return _sha256([data, self.settings()["data.sources"], self.sources_sha256])

    def settings(self) -> dict[str, object]:
        """What is compared, under the names of the configuration."""
        data = self.data.model_dump(mode="json", exclude={"prepared", "sources"})
        sources = [
            source.model_dump(mode="json", exclude=WHERE, exclude_defaults=True)
            for source in self.data.sources
        ]
        return {
            **{f"encoding.{name}": value for name, value in self.contract.model_dump().items()},
            **{f"data.{name}": value for name, value in data.items()},
            "data.sources": sources,
            "data.sources (SHA-256)": [sha256[:12] for sha256 in self.sources_sha256],
        }


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


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

    def plus(self, other: "TokenCounts") -> "TokenCounts":
        """The counts of both together."""
        return TokenCounts(
            texts=self.texts + other.texts,
            tokens=self.tokens + other.tokens,
            longest=max(self.longest, other.longest),
            truncated=self.truncated + other.truncated,
        )


class Manifest(Recipe):
    """Content of manifest.json: the recipe, and what came of it."""

    schema_version: Literal[3] = SCHEMA_VERSION
    lists: int
    """Lists of one draw; those of draw d are records d * lists to (d + 1) * lists - 1."""
    lists_sha256: str
    """Hash of all records in order, whatever the number of shards."""
    documents: int
    """Distinct document ids in the lists."""
    grade_counts: dict[int, int]
    """Grade -> passages, in all draws."""
    size_counts: dict[int, int]
    """List size -> lists, in all draws."""
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
        verify_file(shard, folder, checksums)
    verify_file(manifest.sizes, folder, checksums=True)


def shard_paths(manifest: Manifest, folder: Path) -> Sequence[Path]:
    """The shards in the order of their records."""
    return [folder / shard.name for shard in manifest.shards]


def read_sizes(manifest: Manifest, folder: Path) -> NDArray[np.int32]:
    """int32 [records, 2 + L], mapped: excluded documents, tokens of the query and each passage."""
    path = folder / manifest.sizes.name
    sizes: NDArray[np.int32] = np.load(path, mmap_mode="r", allow_pickle=False)
    return sizes


def verify_file(stamp: FileStamp, folder: Path, checksums: bool) -> None:
    """Compare a file with its stamp.

    Raises:
        UserError: as `verify_shards`.
    """
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


def is_whole(stamp: FileStamp, folder: Path) -> bool:
    """Whether a file is exactly the stamped one."""
    try:
        verify_file(stamp, folder, checksums=True)
    except UserError:
        return False
    return True


def _find_damage(path: Path) -> None:
    """Raise the record reader's own error, which knows the byte offset, if it finds one."""
    if ".tfrecord-" in path.name:
        source = TFRecordSource([path])
        for index in range(len(source)):
            source[index]
