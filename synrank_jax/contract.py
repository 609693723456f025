"""The encoding contract: everything that decides which vector a text gets.

One object is made at `prepare`, stored in the manifest, the run folder, every checkpoint and the
exported model, and compared wherever two of them meet. A difference is refused, never repaired.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import pydantic

from synrank_jax.config import Config, EncodingConfig
from synrank_jax.config_section import Section
from synrank_jax.errors import UserError
from synrank_jax.export_manifest import verify_folder
from synrank_jax.files import write_text
from synrank_jax.folder_settings import architecture, declared_encoding
from synrank_jax.hub import model_folder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CONTRACT_FILE = "encoding_contract.json"


class EncodingContract(Section):
    """How text becomes a vector and two vectors a score. All fields are decided."""

    pooling: Literal["mean", "cls"]
    normalize: bool
    dimension: int | None = None
    """Components kept of the pooled vector, before normalisation; None: all."""
    similarity: Literal["dot", "cosine"]
    query_prompt: str
    passage_prompt: str
    query_length: int
    passage_length: int
    special_tokens: bool = True
    padding_side: Literal["right", "left"] = "right"
    tokenizer_sha256: str

    def require_equal(self, other: Self, mine: str, theirs: str) -> None:
        """Refuse two contracts that differ in any field, naming both values.

        Raises:
            UserError: one line per differing field.
        """
        differing = [
            f"  {name}: {getattr(self, name)!r} in {mine}, {getattr(other, name)!r} in {theirs}"
            for name in type(self).model_fields
            if getattr(self, name) != getattr(other, name)
        ]
        if differing:
            raise UserError(
                "the encoding contract differs, so embeddings would not be comparable:\n"
                + "\n".join(differing)
                + f"\nmake {mine} again with {theirs}'s settings, or the other way round"
            )

    def write(self, folder: Path) -> None:
        """Store the contract as encoding_contract.json in `folder`."""
        write_text(folder / CONTRACT_FILE, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read `folder`/encoding_contract.json.

        Raises:
            UserError: the file is missing or not a contract.
        """
        path = folder / CONTRACT_FILE
        try:
            return cls.model_validate_json(path.read_text("utf-8"))
        except (OSError, pydantic.ValidationError) as error:
            raise UserError(f"{path}: no readable encoding contract ({error})") from error


def load_tokenizer(folder: Path) -> "Tokenizer":
    """The fast tokenizer of a model folder, without truncation and padding of its own.

    Raises:
        UserError: the folder has no usable tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        wrapped = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        tokenizer: Tokenizer = wrapped.backend_tokenizer
    except Exception as error:  # transformers raises many unrelated types here
        raise UserError(f"model folder {folder}: no usable tokenizer ({error})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def tokenizer_sha256(tokenizer: "Tokenizer") -> str:
    """Hash of vocabulary, normalisation and special tokens; truncation and padding do not enter."""
    content = json.loads(tokenizer.to_str())
    content["truncation"] = content["padding"] = None
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def resolve_contract(config: Config) -> EncodingContract:
    """The contract of a configuration: given values first, then what the model folder declares.

    Raises:
        UserError: a value is neither configured nor declared, or a length exceeds the encoder's
            positions.
    """
    folder = model_folder(config.model.path, config.model.revision)
    return contract_of_folder(folder, config.encoding)


def source_folder(config: Config, contract: EncodingContract, name: str) -> Path:
    """The model folder that a run started from, if it still gives the run's contract.

    Args:
        config: the run's configuration.
        contract: the contract stored with the run's weights.
        name: the run, in errors.

    Raises:
        UserError: it is gone or gives another contract; names every field that differs.
    """
    folder = model_folder(config.model.path, config.model.revision)
    found = contract_of_folder(folder, config.encoding)
    contract.require_equal(found, name, f"{folder}, which training started from")
    return folder


def contract_of_folder(
    folder: Path, encoding: EncodingConfig, digest: str | None = None
) -> EncodingContract:
    """As `resolve_contract`, for a local model folder; an exported one is verified first.

    Given the tokenizer's hash, whatever it is, the folder needs neither tokenizer nor weights.
    """
    if digest is None:
        verify_folder(folder)
    declared = declared_encoding(folder)
    values: dict[str, Any] = {}
    for name in ("pooling", "normalize", "similarity", "query_prompt", "passage_prompt"):
        given = getattr(encoding, name)
        values[name] = declared.get(name) if given is None else given
        if values[name] is None:
            raise UserError(
                f"encoding.{name}: not given, and the model folder {folder} does not declare it; "
                "set it in the config"
            )
    values["dimension"] = declared.get("dimension")
    if encoding.dimension is not None:
        check_dimension(encoding.dimension, values["dimension"], folder, "encoding.dimension")
        values["dimension"] = encoding.dimension
    positions = architecture(folder, "max_position_embeddings")
    for name in ("query_length", "passage_length"):
        values[name] = getattr(encoding, name)
        if values[name] > positions:
            raise UserError(
                f"encoding.{name}: {values[name]} is more than the encoder's {positions} positions"
            )
    if digest is None:
        digest = tokenizer_sha256(load_tokenizer(folder))
    try:
        return EncodingContract(**values, tokenizer_sha256=digest)
    except pydantic.ValidationError as error:
        raise UserError(
            "\n".join(
                f"encoding.{item['loc'][0]}: {item['msg']}, got {item['input']!r} "
                f"(from the config or {folder})"
                for item in error.errors()
            )
        ) from error


def check_dimension(wanted: int, kept: int | None, folder: Path, field: str) -> None:
    """Refuse to keep so many components, where `kept` of the folder's encoder (None: all) are left.

    Raises:
        UserError: names `field` and the sizes.
    """
    if kept is not None and wanted > kept:
        raise UserError(f"{field}: {wanted} components, but {folder} keeps only the first {kept}")
    hidden = architecture(folder, "hidden_size")
    if wanted >= hidden:
        raise UserError(
            f"{field}: {wanted} is not below the encoder's {hidden} components; leave it out to "
            "keep all"
        )
