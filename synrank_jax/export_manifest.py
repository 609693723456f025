"""export_manifest.json: the hash of every file of an exported folder, and where the model is from.

The README may be edited freely, the files of onnx/ may be missing, and other folders (.git, .cache)
are nobody's business. Anything else that a library could load must be as it was exported.
"""

from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import pydantic

from synrank_jax.config_section import Section
from synrank_jax.errors import UserError
from synrank_jax.files import file_sha256, write_text
from synrank_jax.hub import hub_id

EXPORT_MANIFEST_FILE = "export_manifest.json"
README_FILE = "README.md"
ONNX_FOLDER = "onnx"
FREE = {README_FILE, EXPORT_MANIFEST_FILE}
# What transformers and sentence-transformers look for beside the files that they were given.
LOADABLE = {".json", ".safetensors", ".bin", ".model", ".jinja", ".py"}
LOADABLE_TEXTS = {"vocab.txt", "merges.txt"}


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError("not a path within the folder")
    return name


class ExportedFile(Section):
    """A file as it was exported."""

    bytes: int
    sha256: str


class Origin(Section):
    """Where an exported model is from."""

    checkpoint: str
    """What --checkpoint named."""
    step: int
    """Completed optimizer steps."""
    data_sha256: str
    """Fingerprint of the lists that it was trained on."""
    model_path: str
    """model.path of the run."""
    base_model: str | None
    """Hub id of the model that training started from, as far as it is known."""
    version: str
    """Of synrank-jax."""


class ExportManifest(Section):
    """Content of export_manifest.json."""

    schema_version: Literal[1] = 1
    origin: Origin
    files: dict[Annotated[str, pydantic.AfterValidator(_inside)], ExportedFile]
    """By path within the folder; all but the README and this file."""


def base_model(path: str, folder: Path) -> str | None:
    """Hub id of what a model.path is or, if that is an exported model, started from.

    Args:
        path: model.path.
        folder: its local folder.
    """
    manifest = read_manifest(folder)
    return hub_id(path) if manifest is None else hub_id(path) or manifest.origin.base_model


def write_manifest(folder: Path, origin: Origin) -> None:
    """Hash all files of a folder that is finished."""
    names = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )
    files = {
        name: ExportedFile(bytes=(folder / name).stat().st_size, sha256=file_sha256(folder / name))
        for name in names
        if name not in FREE
    }
    manifest = ExportManifest(origin=origin, files=files)
    write_text(folder / EXPORT_MANIFEST_FILE, manifest.model_dump_json(indent=2) + "\n")


def read_manifest(folder: Path) -> ExportManifest | None:
    """The manifest of a folder; None if it has none.

    Raises:
        UserError: it is not a manifest of this schema.
    """
    path = folder / EXPORT_MANIFEST_FILE
    if not path.is_file():
        return None
    try:
        return ExportManifest.model_validate_json(path.read_bytes())
    except (OSError, pydantic.ValidationError) as error:
        raise UserError(
            f"{path}: no readable manifest ({error}); export the model again"
        ) from error


def verify_folder(folder: Path) -> None:
    """Compare an exported folder with its manifest; one without a manifest passes.

    Raises:
        UserError: names the first file that is missing, changed or additional.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return
    way_out = (
        "export or download the model again; to use the folder as it now is, delete "
        f"{EXPORT_MANIFEST_FILE}"
    )
    parents = set()
    for name, exported in manifest.files.items():
        path, optional = folder / name, PurePosixPath(name).parts[0] == ONNX_FOLDER
        if optional and not path.is_file():
            continue
        if not optional:
            parents.add(path.parent)
        if not path.is_file():
            raise UserError(f"{path}: missing since the export; {way_out}")
        found = file_sha256(path)
        if found != exported.sha256:
            raise UserError(
                f"{path}: changed since the export: its SHA-256 is {found}, but was "
                f"{exported.sha256}; {way_out}"
            )
    for path in sorted(path for parent in parents for path in parent.iterdir()):
        name = path.relative_to(folder).as_posix()
        if _loadable(path) and name not in manifest.files and name not in FREE:
            raise UserError(
                f"{path}: not exported, but libraries may load it; move it elsewhere, or {way_out}"
            )


def _loadable(path: Path) -> bool:
    named = path.suffix in LOADABLE or path.name in LOADABLE_TEXTS
    return named and not path.name.startswith(".") and path.is_file()
