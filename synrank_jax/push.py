"""An exported folder onto the Hugging Face hub."""

from pathlib import Path
from typing import NoReturn

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from synrank_jax.errors import UserError
from synrank_jax.export_manifest import EXPORT_MANIFEST_FILE, README_FILE

# What a repository may hold before the first export: the hub makes these itself.
NEW = {".gitattributes", README_FILE}


def check_login(repo_id: str) -> None:
    """Refuse early what `push` could not do: a name that is none, no token, no network.

    Raises:
        UserError: says which.
    """
    try:
        if repo_id.count("/") != 1:
            raise HFValidationError("not of the form owner/name")
        validate_repo_id(repo_id)
        HfApi().whoami()
    except Exception as error:  # the hub client raises a dozen unrelated types
        _refuse(repo_id, error)


def push(folder: Path, repo_id: str, private: bool, message: str) -> str:
    """Make the repository if need be and let it hold what the folder holds; returns its address.

    Args:
        folder: a finished export.
        repo_id: owner/name; new, empty, or of an earlier export, whose files are replaced.
        private: make a new repository private; an existing one stays as it is.
        message: of the commit.

    Raises:
        UserError: the repository holds something else, or the hub does not take it.
    """
    api = HfApi()
    try:
        url = str(api.create_repo(repo_id, private=private or None, exist_ok=True))
        names = set(api.list_repo_files(repo_id))
        if not names <= NEW and EXPORT_MANIFEST_FILE not in names:
            raise UserError(
                f"--push-to-hub {repo_id}: holds {len(names)} files and is not an earlier export "
                f"(no {EXPORT_MANIFEST_FILE}); choose another name. The export is in {folder}"
            )
        # One commit: files that this export no longer has go with it.
        api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message=message, delete_patterns="*"
        )
    except UserError:
        raise
    except Exception as error:  # as above
        _refuse(repo_id, error, f". The export is in {folder}: run the command again")
    return url


def _refuse(repo_id: str, error: Exception, then: str = "") -> NoReturn:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    match error:
        case HFValidationError():
            why = f"not a repository name ({first}); give owner/name"
        case LocalTokenNotFoundError():
            why = "not logged in; run `hf auth login`, or set HF_TOKEN to a token that may write"
        case HfHubHTTPError(response=response) if response.status_code in (401, 403):
            why = f"the token may not write there ({first}); use one of {repo_id.split('/')[0]}"
        case _:
            why = f"the hub cannot be reached or refused it ({type(error).__name__}: {first})"
    raise UserError(f"--push-to-hub {repo_id}: {why}{then}") from error
