"""Uploading an export: what is asked of the hub, and what its refusals become."""

from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from synrank_jax import push
from synrank_jax.errors import UserError


class StubbedHub:
    """Stands for HfApi; keeps the calls, and raises what it is told to."""

    def __init__(self, files: tuple[str, ...] = (), **errors: Exception) -> None:
        self.files, self.errors = files, errors
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __call__(self) -> "StubbedHub":
        return self

    def _called(self, name: str, **arguments: Any) -> None:
        self.calls.append((name, arguments))
        if name in self.errors:
            raise self.errors[name]

    def whoami(self) -> None:
        self._called("whoami")

    def create_repo(self, repo_id: str, **arguments: Any) -> str:
        self._called("create_repo", repo_id=repo_id, **arguments)
        return f"hub/{repo_id}"

    def list_repo_files(self, repo_id: str) -> list[str]:
        self._called("list_repo_files", repo_id=repo_id)
        return list(self.files)

    def upload_folder(self, **arguments: Any) -> None:
        self._called("upload_folder", **arguments)


def stub(monkeypatch: pytest.MonkeyPatch, *files: str, **errors: Exception) -> StubbedHub:
    hub = StubbedHub(files, **errors)
    monkeypatch.setattr(push, "HfApi", hub)
    return hub


def http_error(status: int) -> HfHubHTTPError:
    response = httpx2.Response(status, request=httpx2.Request("POST", "hub"))
    return HfHubHTTPError(f"{status} says the server", response=response)


@pytest.mark.parametrize(
    "files",
    [(), (".gitattributes", "README.md"), ("config.json", "export_manifest.json", "stale.json")],
    ids=["new", "empty", "earlier export"],
)
def test_the_repository_then_holds_what_the_folder_holds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: tuple[str, ...]
):
    hub = stub(monkeypatch, *files)
    push.check_login("owner/name")
    assert push.push(tmp_path, "owner/name", True, "step 3") == "hub/owner/name"
    upload = {"folder_path": tmp_path, "commit_message": "step 3", "delete_patterns": "*"}
    assert hub.calls == [
        ("whoami", {}),
        ("create_repo", {"repo_id": "owner/name", "private": True, "exist_ok": True}),
        ("list_repo_files", {"repo_id": "owner/name"}),
        ("upload_folder", {"repo_id": "owner/name", **upload}),
    ]


def test_a_repository_of_something_else_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    hub = stub(monkeypatch, "config.json", "pytorch_model.bin")
    with pytest.raises(UserError, match="owner/name: holds 2 files and is not an earlier export"):
        push.push(tmp_path, "owner/name", False, "step 3")
    assert hub.calls[-1][0] == "list_repo_files"


@pytest.mark.parametrize("repo_id", ["name", "a/b/c", "owner/na me", "owner/name.git"])
def test_a_name_that_is_none_is_refused_before_the_hub_is_asked(
    monkeypatch: pytest.MonkeyPatch, repo_id: str
):
    hub = stub(monkeypatch)
    with pytest.raises(UserError, match=r"not a repository name .*; give owner/name"):
        push.check_login(repo_id)
    assert hub.calls == []


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            LocalTokenNotFoundError("no token"),
            "not logged in; run `hf auth login`, or set HF_TOK",
        ),
        (http_error(401), "the token may not write there .*; use one of owner"),
        (OfflineModeIsEnabled("offline\nmode"), r"cannot be reached .*OfflineModeIs.*: offline\)"),
        (httpx2.ConnectError("no route"), r"cannot be reached or refused it \(ConnectError: no ro"),
    ],
    ids=["no token", "wrong token", "offline", "no network"],
)
def test_what_login_lacks_is_said(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str):
    stub(monkeypatch, whoami=error)
    with pytest.raises(UserError, match=rf"^--push-to-hub owner/name: .*{message}"):
        push.check_login("owner/name")


@pytest.mark.parametrize("call", ["create_repo", "upload_folder"])
def test_a_failed_upload_says_where_the_export_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: str
):
    stub(monkeypatch, **{call: http_error(403)})
    with pytest.raises(UserError, match="may not write there") as error:
        push.push(tmp_path, "owner/name", False, "step 3")
    assert f"The export is in {tmp_path}" in str(error.value)
