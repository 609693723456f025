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
from synrank_jax.files import write_text
from synrank_jax.hub import model_folder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CONTRACT_FILE = "encoding_contract.json"
MODULES_FILE = "modules.json"
"""Of a sentence-transformers folder: its modules in order."""


class EncodingContract(Section):
    """How text becomes a vector and two vectors a score. All fields are decided, none is null."""

    pooling: Literal["mean", "cls"]
    normalize: bool
    similarity: Literal["dot", "cosine"]
    query_prompt: str
    passage_prompt: str
    query_length: int
    passage_length: int
    special_tokens: bool = True
    padding_side: Literal["right"] = "right"
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


def contract_of_folder(
    folder: Path, encoding: EncodingConfig, digest: str | None = None
) -> EncodingContract:
    """As `resolve_contract`, for a local model folder.

    Given the tokenizer's hash, whatever it is, the folder needs no tokenizer.
    """
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
    positions = _positions(folder)
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


def declared_encoding(folder: Path) -> dict[str, Any]:
    """Pooling, normalisation, similarity and prompts that a sentence-transformers folder declares.

    An empty dictionary without the prompts' defaults if the folder has no modules.json.

    Raises:
        UserError: modules.json names a module this library cannot reproduce.
    """
    declared: dict[str, Any] = {"query_prompt": "", "passage_prompt": ""}
    modules_file = folder / MODULES_FILE
    if not modules_file.is_file():
        return declared
    declared["normalize"] = False
    for module in _read_json(modules_file, list):
        kind = str(module["type"]).rsplit(".", 1)[-1]
        if kind == "Pooling":
            declared["pooling"] = _pooling(folder / module["path"] / "config.json")
        elif kind == "Normalize":
            declared["normalize"] = True
        elif kind != "Transformer":
            raise UserError(
                f"{modules_file}: module {module['type']} is not supported; "
                "only Transformer, Pooling and Normalize are"
            )
    transformer_file = folder / "sentence_bert_config.json"
    if transformer_file.is_file():
        settings = _read_json(transformer_file, dict)
        if settings.get("do_lower_case"):
            raise UserError(f"{transformer_file}: do_lower_case is not supported")
    # sentence-transformers scores with cosine unless the folder says otherwise.
    declared["similarity"] = "cosine"
    settings_file = folder / "config_sentence_transformers.json"
    if settings_file.is_file():
        settings = _read_json(settings_file, dict)
        similarity = settings.get("similarity_fn_name") or "cosine"
        declared["similarity"] = similarity
        prompts = settings.get("prompts") or {}
        declared["query_prompt"] = prompts.get("query") or ""
        declared["passage_prompt"] = prompts.get("document") or prompts.get("passage") or ""
    return declared


def _read_json(path: Path, kind: type) -> Any:
    """A JSON file of a model folder, an object or a list as `kind` says."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read as JSON ({error}); the folder is broken"
        ) from error
    if not isinstance(content, kind):
        raise UserError(f"{path}: expected a {kind.__name__}, got {str(content)[:60]!r}")
    return content


def _pooling(path: Path) -> str | None:
    """`mean` or `cls` of a Pooling module's config; None for any other mode or a mix."""
    settings = _read_json(path, dict)
    if "pooling_mode" in settings:
        modes = settings["pooling_mode"]
        modes = [modes] if isinstance(modes, str) else list(modes)
    else:
        names = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
        modes = [
            names.get(key, key)
            for key, on in settings.items()
            if key.startswith("pooling_mode_") and on is True
        ]
    if settings.get("include_prompt") is False:
        raise UserError(f"{path}: include_prompt false (pooling skips the prompt) is not supported")
    return modes[0] if len(modes) == 1 and modes[0] in ("mean", "cls") else None


def _positions(folder: Path) -> int:
    path = folder / "config.json"
    content = _read_json(path, dict)
    try:
        return int(content["max_position_embeddings"])
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: not a BERT-family config with max_position_embeddings ({error!r})"
        ) from error
