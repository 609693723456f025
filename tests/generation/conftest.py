"""A language model in this process, and the same one behind a real server."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_llm import save_tiny_llm

STARTS_IN_S = 120


@pytest.fixture(scope="session")
def tiny_llm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llm(tmp_path_factory.mktemp("llm"), context=4096)


@pytest.fixture
def tiny_llm(tiny_llm_folder: Path) -> Iterator[Path]:
    """Folder of a tiny language model, for use in this process."""
    import torch

    # Its matrices are so small that a second thread only waits: on busy cores for ten times as
    # long as the work takes.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tiny_llm_folder
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def transformers_serve(
    tiny_llm_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Base address of the server that comes with transformers; its only model is the tiny one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("serve")
    log = folder / "log.txt"
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(tiny_llm_folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    # It lists what the hub's cache has.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_CACHE": str(folder)}
    with (
        log.open("wb") as file,
        subprocess.Popen(command, stdout=file, stderr=file, env=environment) as server,
    ):
        try:
            _wait(f"http://127.0.0.1:{port}/health", server, log)
            yield f"http://127.0.0.1:{port}/v1"
            server.terminate()
            assert server.wait(30) == -signal.SIGTERM
        finally:
            server.kill()


def _wait(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(STARTS_IN_S * 10):
        assert server.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(url).close()
        except urllib.error.URLError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError(log.read_text())
