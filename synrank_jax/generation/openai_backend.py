"""Any OpenAI-compatible server, through the official client: vLLM, llama.cpp, TGI, hosted ones.

Requests go to the endpoint with the fewest under way. A request that fails is repeated after a
growing random time, elsewhere if there is another endpoint; an endpoint that says 429 or fails
several times in a row rests. The client's own retries are off: they would stay with the endpoint
that failed.
"""

import asyncio
import json
import os
import random
import re
import time
from collections.abc import Mapping
from typing import Any

import openai
from openai.types.chat import ChatCompletion

from synrank_jax.config_generation import BackendConfig
from synrank_jax.errors import UserError
from synrank_jax.generation.backend import Answer, Failure, Request, RequestError

LONGEST_REST_S = 60.0
# So many failures in a row are not those of single requests.
FAILING = 3
CHECK_TIMEOUT_S = CONNECT_TIMEOUT_S = 30.0
PROBE_SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string", "enum": ["ready"]}},
    "required": ["answer"],
    "additionalProperties": False,
}
# It asks for a sentence: JSON comes back only where the schema is enforced.
PROBE = Request(
    messages=(
        {"role": "system", "content": "You are asked whether you are ready."},
        {"role": "user", "content": "Are you ready? Answer in one short sentence."},
    ),
    schema=PROBE_SCHEMA,
    seed=0,
)
# What servers say of a prompt that is too long: OpenAI's and vLLM's code or sentence, llama.cpp's,
# TGI's.
TOO_LONG = re.compile(
    r"context.?(length|size|window)|maximum.{0,20}(tokens|length)|too long|too many tokens|"
    r"exceed_context|`?inputs`? (tokens|must have)",
    re.IGNORECASE,
)
FILTERED = re.compile(r"content.?(filter|policy)", re.IGNORECASE)
NO_QUOTA = "insufficient_quota"
THOUGHT = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)


class Endpoint:
    """A server: its client and how it does."""

    def __init__(self, url: str, key: str, config: BackendConfig) -> None:
        """Connects at the first request."""
        self.url = url
        self.client = openai.AsyncOpenAI(
            base_url=url,
            api_key=key,
            max_retries=0,
            # The whole request has its limit in `_ask`: its transport takes a refused connection
            # for a timeout, so the client's own verdict would say nothing.
            timeout=openai.Timeout(None, connect=CONNECT_TIMEOUT_S),
            http_client=openai.DefaultAioHttpClient(),
        )
        self.limit = asyncio.Semaphore(config.concurrency)
        self.under_way = 0
        self.failures = 0
        """In a row."""
        self.rests_until = 0.0
        self._gap_s = 60 / config.requests_per_minute if config.requests_per_minute else 0.0
        self._next = 0.0

    def rest(self, asked_s: float | None) -> None:
        """Leave it alone for as long as it asks, or for a random time that grows.

        Failures of requests that were under way together count once.
        """
        if time.monotonic() < self.rests_until:
            return
        self.failures += 1
        rest_s = asked_s if asked_s is not None else _wait_s(self.failures)
        self.rests_until = time.monotonic() + min(rest_s, LONGEST_REST_S)

    def failed(self) -> None:
        """It failed a request: it rests if this goes on."""
        if self.failures + 1 >= FAILING:
            self.rest(None)
        else:
            self.failures += 1

    async def turn(self) -> None:
        """Wait until it has rested, and until its rate limit lets the next request go."""
        while (wait_s := self.rests_until - time.monotonic()) > 0:
            await asyncio.sleep(wait_s)
        if self._gap_s:
            at = max(self._next, time.monotonic())
            self._next = at + self._gap_s
            await asyncio.sleep(at - time.monotonic())


class OpenAIBackend:
    """See `Backend`."""

    def __init__(self, config: BackendConfig) -> None:
        """Take the key from the environment; nothing is sent yet.

        Raises:
            UserError: no header can hold the key.
        """
        self._config = config
        key = os.environ.get(config.api_key_env, "")
        if not (key.isascii() and key.isprintable()):
            raise UserError(
                f"backend.api_key_env {config.api_key_env}: the key in this variable has a line "
                "break or a character that no HTTP header can hold; set it anew"
            )
        self._secret = key
        self._endpoints = [Endpoint(url, key or "none", config) for url in config.endpoints]
        self._limit_name = "max_tokens"
        self._alive_at = time.monotonic()
        self.width = config.concurrency * len(self._endpoints)

    async def check(self) -> bool:
        """See `Backend.check`. Costs one short answer of each endpoint."""
        follow = [await self._check(endpoint) for endpoint in self._endpoints]
        self._alive_at = time.monotonic()
        return all(follow)

    async def answer(self, request: Request) -> Answer:
        """See `Backend.answer`."""
        began, retries, repeats = time.monotonic(), 0, 0
        avoided: Endpoint | None = None
        while True:
            endpoint = self._best(avoided)
            endpoint.under_way += 1
            try:
                async with endpoint.limit:
                    await endpoint.turn()
                    answer = await self._ask(endpoint, request)
            except RequestError as error:
                if error.failure is Failure.TIMEOUT:
                    self._endure(error, self._config.timeout)
                retries += error.failure is not Failure.RATE_LIMITED
                told_to_wait = error.failure is Failure.RATE_LIMITED and self._too_long(began)
                if retries > self._config.retries or not error.retryable or told_to_wait:
                    raise
            except openai.APIConnectionError as error:
                endpoint.failed()
                self._endure(error)
                if self._too_long(began):
                    raise RequestError(Failure.SERVER_ERROR, self._said(error)) from error
            else:
                endpoint.failures, self._alive_at = 0, time.monotonic()
                return answer
            finally:
                endpoint.under_way -= 1
            avoided, repeats = endpoint, repeats + 1
            await asyncio.sleep(_wait_s(repeats))

    async def close(self) -> None:
        """See `Backend.close`."""
        for endpoint in self._endpoints:
            await endpoint.client.close()

    def _best(self, avoided: Endpoint | None) -> Endpoint:
        """The endpoint that can begin first; of those, one that has not just failed."""
        now = time.monotonic()
        return min(
            self._endpoints,
            key=lambda one: (max(one.rests_until - now, 0), one is avoided, one.under_way),
        )

    def _too_long(self, since: float) -> bool:
        return time.monotonic() - since > self._config.outage_timeout

    def _endure(self, error: Exception, waited_s: float = 0.0) -> None:
        """Go on, unless there was no sign of life for too long, not counting `waited_s`."""
        if self._too_long(self._alive_at + waited_s):
            most = self._config.outage_timeout
            raise UserError(
                f"no endpoint of {', '.join(self._config.endpoints)} has answered for {most:g} s "
                f"({self._said(error)}); the same command goes on when they are back"
            ) from error

    async def _ask(self, endpoint: Endpoint, request: Request) -> Answer:
        """One request to one endpoint; a failure of the server makes it rest."""
        try:
            async with asyncio.timeout(self._config.timeout):
                completion = await self._send(endpoint, request)
        except TimeoutError as error:
            endpoint.failed()
            raise RequestError(
                Failure.TIMEOUT, f"{endpoint.url}: no answer in {self._config.timeout:g} s", True
            ) from error
        except openai.APIStatusError as error:
            self._alive_at = time.monotonic()
            raise self._classified(endpoint, error) from error
        except (openai.APIResponseValidationError, ValueError, RecursionError) as error:
            endpoint.failed()  # not JSON, not UTF-8, or nested without end
            raise RequestError(
                Failure.SERVER_ERROR, f"{endpoint.url}: {self._said(error)}", True
            ) from error
        try:
            return _answer(completion)
        except (AttributeError, LookupError, TypeError) as error:
            endpoint.failed()
            raise RequestError(
                Failure.SERVER_ERROR, f"{endpoint.url}: not a chat completion", True
            ) from error

    async def _send(self, endpoint: Endpoint, request: Request) -> Any:
        config = self._config
        body: dict[str, Any] = {
            "model": config.model,
            "messages": list(request.messages),
            "seed": request.seed,
            "temperature": config.temperature,
            "top_p": config.top_p,
            self._limit_name: config.max_tokens,
        }
        if request.schema is not None:
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "passages", "schema": request.schema, "strict": True},
            }
        # As `chat.completions.create`, which spends a quarter of all our time on looking through
        # messages and schema for Python objects to convert.
        return await endpoint.client.post("/chat/completions", cast_to=ChatCompletion, body=body)

    def _classified(self, endpoint: Endpoint, error: openai.APIStatusError) -> Exception:
        said = f"{endpoint.url}: {error.status_code}: {self._said(error)}"
        text = f"{error.code} {said}"
        match error.status_code:
            case 401 | 403:
                return self._refused_key(endpoint, said)
            case 404:
                return UserError(f"{said}; is backend.model {self._config.model!r} right?")
            case 429 if NO_QUOTA in text:
                return UserError(f"{said}; the same command goes on when there is quota again")
            case 429:
                endpoint.rest(_retry_after(error.response.headers))
                return RequestError(Failure.RATE_LIMITED, said, True)
            case 400 | 413 | 422 if TOO_LONG.search(text):
                return RequestError(Failure.CONTEXT_TOO_LONG, said)
            case 400 if FILTERED.search(text):
                return RequestError(Failure.REFUSED, said)
            case status if status >= 500 or status in (408, 409, 425):
                endpoint.failed()
                return RequestError(Failure.SERVER_ERROR, said, True)
        return RequestError(Failure.SERVER_ERROR, said)

    def _refused_key(self, endpoint: Endpoint, said: str) -> UserError:
        name = self._config.api_key_env
        state = "is not set" if not self._secret else "holds a key that the server refuses"
        return UserError(f"{said}; the environment variable {name} {state} (backend.api_key_env)")

    async def _check(self, endpoint: Endpoint) -> bool:
        """That the endpoint is there and has the model; returns whether it follows schemas."""
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                names = [model.id async for model in endpoint.client.models.list()]
        except (openai.APIConnectionError, TimeoutError) as error:
            raise UserError(
                f"backend.endpoints {endpoint.url}: cannot be reached ({self._said(error)}); is "
                "the server running, and does the address end as it should (often /v1)?"
            ) from error
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            said = f"{endpoint.url}: {error.status_code}: {self._said(error)}"
            raise self._refused_key(endpoint, said) from error
        except (openai.APIError, ValueError, AttributeError, TypeError):
            names = []  # Some servers do not list their models: the first request will tell.
        # The list is no proof: some servers list what they could load, not what they have loaded.
        try:
            return await self._probe(endpoint, PROBE)
        except UserError as error:
            if not names or self._config.model in names:
                raise
            there = ", ".join(map(repr, names[:20]))
            raise UserError(
                f"backend.model {self._config.model!r}: {endpoint.url} does not list it; it lists "
                f"{there} ({error})"
            ) from error

    async def _probe(self, endpoint: Endpoint, request: Request, repeats: int = 0) -> bool:
        try:
            answer = await self._ask(endpoint, request)
        except openai.APIConnectionError as error:
            if repeats < self._config.retries:
                await asyncio.sleep(_wait_s(repeats + 1))
                return await self._probe(endpoint, request, repeats + 1)
            raise UserError(
                f"backend.endpoints {endpoint.url}: lost the connection ({self._said(error)})"
            ) from error
        except RequestError as error:
            if "max_completion_tokens" in error.message and self._limit_name == "max_tokens":
                self._limit_name = "max_completion_tokens"  # hosted reasoning models
                return await self._probe(endpoint, request)
            again = error.retryable and error.failure is not Failure.TIMEOUT
            if again and repeats < self._config.retries:
                await asyncio.sleep(_wait_s(repeats + 1))
                return await self._probe(endpoint, request, repeats + 1)
            if request.schema is not None and not error.retryable:
                return await self._probe(endpoint, Request(request.messages, None, request.seed))
            raise UserError(
                f"backend.endpoints {endpoint.url}: a first short request failed "
                f"({error.failure}: {error.message}); nothing was written"
            ) from error
        if request.schema is None:
            return False
        try:
            return bool(json.loads(answer.text) == {"answer": "ready"})
        except (ValueError, RecursionError):
            return False

    def _said(self, error: BaseException) -> str:
        cause = error.__cause__ if isinstance(error, openai.APIConnectionError) else None
        said = str(cause or error)
        if isinstance(error, openai.APIStatusError) and said == f"Error code: {error.status_code}":
            said = f"{said} - {error.response.text}"  # errors of another form, as FastAPI's
        said = " ".join(said.split()) or type(error).__name__
        return (said.replace(self._secret, "***") if self._secret else said)[:500]


def _answer(completion: Any) -> Answer:
    """What a completion says.

    Raises:
        AttributeError, LookupError, TypeError: it is none; the client does not check.
    """
    choice, usage = completion.choices[0], getattr(completion, "usage", None)
    refusal = getattr(choice.message, "refusal", None)
    return Answer(
        text=THOUGHT.sub("", refusal or choice.message.content or ""),
        cut=choice.finish_reason == "length",
        refusal=bool(refusal) or choice.finish_reason == "content_filter",
        prompt_tokens=_tokens(usage, "prompt_tokens"),
        completion_tokens=_tokens(usage, "completion_tokens"),
    )


def _tokens(usage: Any, name: str) -> int:
    count = getattr(usage, name, None)
    return count if isinstance(count, int) and 0 <= count < 2**31 else 0


def _wait_s(number: int) -> float:
    """Seconds before repeat `number`: twice as long each time, with jitter."""
    return random.uniform(0.25, 0.5) * min(2.0**number, LONGEST_REST_S)  # noqa: S311


def _retry_after(headers: Mapping[str, str]) -> float | None:
    try:
        return float(headers["retry-after"])
    except (KeyError, ValueError):
        return None
