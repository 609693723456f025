"""Starts the scripted server in a process of its own, and makes configurations for it."""

import asyncio
import json
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from synrank_jax.config_generation import GenerationConfig

SERVER = Path(__file__).parent / "scripted_server.py"
PROMPT = """
description: a prompt for tests
system: You write passages.
user: |
  {levels}
  {examples}
  Passages of {min_words} to {max_words} words for {difficulty}.
  Query: {query}
  {format}
"""


@contextmanager
def scripted(*options: str) -> Iterator[str]:
    """Base address of a scripted server."""
    command = [sys.executable, str(SERVER), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        finally:
            server.kill()


def counts(url: str) -> dict[str, int]:
    """What the server has answered so far."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/counts") as answer:
        return json.load(answer)


def small_config(folder: Path, *urls: str, queries: int = 40, **sections: Any) -> GenerationConfig:
    """A configuration of `queries` queries; `sections` override single fields of sections."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"q{number}\twhat is thing {number}\n" for number in range(queries)]
    (folder / "queries.tsv").write_text("".join(lines))
    (folder / "prompt.yaml").write_text(PROMPT)
    values: dict[str, Any] = {
        "queries": {"path": str(folder / "queries.tsv")},
        "prompt": {"template": str(folder / "prompt.yaml"), "examples_per_query": 0},
        "backend": {"model": "scripted", "endpoints": urls, "timeout": 30.0, "concurrency": 16},
        "output": str(folder / "out"),
    }
    for name, value in sections.items():
        values[name] = values.get(name, {}) | value if isinstance(value, dict) else value
    return GenerationConfig.model_validate(values)


def outputs(folder: Path) -> dict[str, bytes]:
    """Content of every file that a run gives on."""
    names = ("lists.jsonl", "corpus.jsonl", "queries.jsonl", "qrels/train.tsv")
    return {name: (folder / name).read_bytes() for name in names}


@contextmanager
def answering(handler, models=("scripted",)):
    """A server in this process's own thread whose chat endpoint is `handler`."""
    ready, stop, address = threading.Event(), None, []

    async def listed(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": name} for name in models]})

    async def serve() -> None:
        nonlocal stop
        stop = asyncio.Event()
        app = web.Application()
        app.router.add_post("/v1/chat/completions", handler)
        app.router.add_get("/v1/models", listed)
        runner = web.AppRunner(app, shutdown_timeout=0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        address.append(site._server.sockets[0].getsockname()[1])
        loop.append(asyncio.get_running_loop())
        ready.set()
        await stop.wait()
        await runner.cleanup()

    loop: list[asyncio.AbstractEventLoop] = []
    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    ready.wait()
    try:
        yield f"http://127.0.0.1:{address[0]}/v1"
    finally:
        loop[0].call_soon_threadsafe(stop.set)
        thread.join()


def reply(status: int, **error):
    async def handler(_: web.Request) -> web.Response:
        return web.json_response({"error": error}, status=status)

    return handler
