"""An OpenAI-compatible server over loopback that answers by script: well, badly, or not at all.

    python tests/generation/scripted_server.py [--faults SHARE] [--classes NAME ...]

prints its port. What it answers is a function of the prompt and the sampling seed alone, that is of
query and attempt; but a fault of the connection (429, dropped) befalls a request only once, as such
faults pass. GET /counts says what it did.
"""

import argparse
import asyncio
import hashlib
import json
import re
from collections import Counter

from aiohttp import web

MODEL = "scripted"
ONCE = ("429", "dropped")
FAULTS = (
    *("429", "dropped", "500", "hangs", "no JSON", "refused", "refusal field", "truncated"),
    *("cut", "wrong levels", "too short", "duplicate", "language"),
)
ENGLISH = (
    "the of and to in is that for it as was with be by on not he this are or his from at which but "
    "have an had they you were their one all we can her has there been if more when will would who "
    "so no water house field engine river market winter music paper stone garden island teacher "
    "journey forest bridge harbour season kitchen village measure record"
)
GERMAN = (
    "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an "
    "werden aus er hat dass sie nach wird bei einer um am sind noch wie einem über einen so zum "
    "haben nur oder aber vor zur bis mehr durch man sein wurde sei Wasser Straße Häuser Brücke"
)


def digest(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8])


def words(key: object, count: int, text: str) -> str:
    """Words drawn by a linear congruential generator: fast, and the same everywhere."""
    state, drawn, vocabulary = digest(key), [], text.split()
    for _ in range(count):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        drawn.append(vocabulary[(state >> 33) % len(vocabulary)])
    return " ".join(drawn)


class Script:
    """What to answer."""

    def __init__(self, faults: float, classes: tuple[str, ...], schemas: str, delay: float) -> None:
        self.faults, self.classes, self.schemas, self.delay = faults, classes, schemas, delay
        self.counts: Counter[str] = Counter()
        self.seen: set[int] = set()

    async def chat(self, request: web.Request) -> web.StreamResponse:
        asked = json.loads(await request.read())
        if asked["model"] != MODEL:
            return web.json_response({"error": {"message": "no such model"}}, status=404)
        prompt, seed = asked["messages"][-1]["content"], asked.get("seed")
        key = digest(prompt, seed)
        fault = "" if prompt.startswith("Are you ready?") else self.fault(key)  # not of the check
        if fault in ONCE and key in self.seen:
            fault = ""
        self.seen.add(key)
        self.counts[fault or "good"] += 1
        if self.delay:
            await asyncio.sleep(self.delay * (key % 7) / 3)
        if "response_format" in asked and self.schemas == "refused":
            return web.json_response({"error": {"message": "no response_format here"}}, status=400)
        match fault:
            case "429":
                headers = {"retry-after": "0.05"}
                return web.json_response(
                    {"error": {"message": "slow down"}}, status=429, headers=headers
                )
            case "500":
                return web.json_response({"error": {"message": "overloaded"}}, status=500)
            case "dropped":
                request.transport.close()
                return web.Response()
            case "hangs":
                await asyncio.sleep(3600)
            case "no JSON":
                return web.Response(text="<html>502 upstream</html>", content_type="text/html")
        return web.json_response(self.completion(asked, prompt, key, fault))

    def fault(self, key: int) -> str:
        if key % 100_000 >= self.faults * 100_000:
            return ""
        return self.classes[(key // 100_000) % len(self.classes)]

    def completion(self, asked: dict, prompt: str, key: int, fault: str) -> dict:
        schema = asked.get("response_format", {}).get("json_schema", {}).get("schema")
        names = re.findall(r"grade (\d+), passage (\d+) ===", prompt.rpartition("Write exactly")[2])
        slots = [f"grade_{grade}_passage_{number}" for grade, number in names]
        if not slots:
            instruction = prompt.rpartition("Answer with one JSON object")[2]
            slots = re.findall(r'- "(\w+)"', instruction)
        if schema and "answer" in schema["properties"]:
            text = '{"answer": "ready"}' if self.schemas == "followed" else "Sure, I am ready!"
        elif schema and "grade" in schema["properties"]:  # asked as a judge
            text = json.dumps({"grade": schema["properties"]["grade"]["enum"][key % 4]})
        else:
            text = self.passages(slots, key, fault, marked=bool(names))
        message = {"role": "assistant", "content": text}
        finish = "stop"
        if fault == "refused":
            message["content"] = "I'm sorry, but I can't help with that."
        elif fault == "refusal field":
            message |= {"content": None, "refusal": "This request is not one I can take."}
        elif fault == "truncated":
            message["content"] = text[: len(text) // 2]
        elif fault == "cut":
            finish = "length"
        choice = {"index": 0, "finish_reason": finish, "message": message}
        return {
            "id": f"chatcmpl-{key}",
            "object": "chat.completion",
            "created": 1,
            "model": MODEL,
            "choices": [choice],
            "usage": {
                "prompt_tokens": len(prompt) // 4,
                "completion_tokens": len(text) // 4,
                "total_tokens": (len(prompt) + len(text)) // 4,
            },
        }

    def passages(self, slots: list[str], key: int, fault: str, *, marked: bool) -> str:
        count, vocabulary = (5 if fault == "too short" else 60), ENGLISH
        if fault == "language":
            vocabulary = GERMAN
        record = {name: words((key, name), count, vocabulary) for name in slots}
        if fault == "duplicate":
            record[slots[-1]] = record[slots[0]]
        if fault == "wrong levels":
            del record[slots[-1]]
        if not marked:
            return json.dumps(record)
        lines = []
        for name, text in record.items():
            _, grade, _, number = name.split("_")
            lines += [f"=== grade {grade}, passage {number} ===", text]
        return "\n".join([*lines, "=== end ==="])

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    async def report(self, request: web.Request) -> web.Response:
        return web.json_response(self.counts)


async def serve(script: Script) -> None:
    app = web.Application(client_max_size=2**24)
    app.router.add_post("/v1/chat/completions", script.chat)
    app.router.add_get("/v1/models", script.models)
    app.router.add_get("/counts", script.report)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(site._server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--faults", type=float, default=0.0)
    parser.add_argument("--classes", nargs="+", default=FAULTS, choices=FAULTS)
    parser.add_argument("--schemas", choices=("followed", "ignored", "refused"), default="followed")
    parser.add_argument("--delay", type=float, default=0.0)
    options = parser.parse_args()
    asyncio.run(
        serve(Script(options.faults, tuple(options.classes), options.schemas, options.delay))
    )
