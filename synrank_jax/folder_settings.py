"""What the settings files of a model folder say: sentence-transformers modules, architecture."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from synrank_jax.errors import UserError

MODULES_FILE = "modules.json"
"""Of a sentence-transformers folder: its modules in order."""


def declared_encoding(folder: Path) -> dict[str, Any]:
    """What a sentence-transformers folder declares, under the names of the contract's fields.

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
        elif kind == "Dense" and not declared["normalize"] and "pooling" in declared:
            declared["dimension"] = _truncation(folder / module["path"])
        elif kind != "Transformer":
            raise UserError(
                f"{modules_file}: module {module['type']} is not supported here; "
                "only Transformer, Pooling, a Dense that truncates, and Normalize are"
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
        if settings.get("truncate_dim") is not None:
            raise UserError(
                f"{settings_file}: truncate_dim {settings['truncate_dim']} cuts after Normalize, "
                "which is not supported; remove it and set encoding.dimension in the config"
            )
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


def _truncation(folder: Path) -> int:
    """Components that a Dense module keeps; its weights must be the first rows of the identity."""
    settings = _read_json(folder / "config.json", dict)
    try:
        weight = load_file(folder / "model.safetensors")["linear.weight"]
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{folder}: no readable weights of a Dense module ({error!r})") from error
    others = {
        "bias": (False,),
        "activation_function": ("torch.nn.modules.linear.Identity",),
        "module_input_name": (None, "sentence_embedding"),
        "module_output_name": (None, "sentence_embedding"),
        "use_residual": (None, False),
    }
    differs = [name for name, known in others.items() if settings.get(name) not in known]
    if differs or not np.array_equal(weight, np.eye(*weight.shape)):
        raise UserError(
            f"{folder}: this Dense module does more than keep the first components "
            f"({', '.join(differs) or 'its weights'}), which is not supported"
        )
    return len(weight)


def architecture(folder: Path, name: str) -> int:
    """A whole number of the encoder's config.json."""
    path = folder / "config.json"
    content = _read_json(path, dict)
    try:
        return int(content[name])
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a BERT-family config with {name} ({error!r})") from error
