"""The OpenAI client against a real HTTP server that misbehaves by script."""

import asyncio
import json
import socket
import time

import pytest
from aiohttp import web
from serving import answering, counts, reply, scripted

from synrank_jax.config_generation import BackendConfig
from synrank_jax.errors import UserError
from synrank_jax.generation.backend import Answer, Failure, Request, RequestError
from synrank_jax.generation.openai_backend import OpenAIBackend

PROMPT = 'Answer with one JSON object.\n- "grade_1_passage_1"\n- "grade_0_passage_1"'
SCHEMA = {"type": "object", "properties": {"grade_1_passage_1": {"type": "string"}}}


def request(seed: int = 0, text: str = PROMPT) -> Request:
    return Request(({"role": "user", "content": text},), SCHEMA, seed)


def config(*urls: str, **fields) -> BackendConfig:
    values = {"timeout": 20.0, "retries": 1, "outage_timeout": 5.0} | fields
    return BackendConfig(model=values.pop("model", "scripted"), endpoints=urls, **values)


def ask(settings: BackendConfig, *requests: Request, check: bool = False) -> list:
    """The answers or errors of requests that are under way together."""

    async def run() -> list:
        backend = OpenAIBackend(settings)
        try:
            if check:
                return [await backend.check()]
            return await asyncio.gather(*map(backend.answer, requests), return_exceptions=True)
        finally:
            await backend.close()

    return asyncio.run(run())


def test_an_answer_has_text_and_token_counts():
    with scripted() as url:
        (answer,) = ask(config(url), request())
    assert json.loads(answer.text).keys() == {"grade_1_passage_1", "grade_0_passage_1"}
    assert not answer.cut
    assert not answer.refusal
    assert answer.prompt_tokens == len(PROMPT) // 4
    assert answer.completion_tokens == len(answer.text) // 4


FATES = {
    "500": Failure.SERVER_ERROR,
    "no JSON": Failure.SERVER_ERROR,
    "hangs": Failure.TIMEOUT,
}


@pytest.mark.parametrize("fault", FATES)
def test_a_fault_that_stays_fails_after_the_retries(fault: str):
    with scripted("--faults", "1", "--classes", fault) as url:
        (error,) = ask(config(url, timeout=0.5), request())
        assert counts(url) == {fault: 2}
    assert isinstance(error, RequestError)
    assert error.failure == FATES[fault]
    assert error.message.startswith(url)


def completion(message: object) -> bytes:
    return json.dumps({"choices": [{"finish_reason": "stop", "message": message}]}).encode()


NO_COMPLETIONS = {
    "not UTF-8": b'{"choices": "\xff"}',
    "nested without end": b"[" * 100_000,
    "a list": b"[1, 2]",
    "null": b"null",
    "no choices": b'{"choices": []}',
    "null as choice": b'{"choices": [null]}',
    "choices by name": b'{"choices": {"a": 1}}',
    "null as message": completion(None),
    "content in parts": completion({"content": [{"type": "text", "text": "hi"}]}),
}


@pytest.mark.parametrize("body", NO_COMPLETIONS.values(), ids=NO_COMPLETIONS)
def test_what_is_no_completion_is_a_server_error(body: bytes):
    async def handler(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/json")

    with answering(handler) as url:
        (error,) = ask(config(url, retries=0), request())
    assert isinstance(error, RequestError)
    assert (error.failure, error.retryable) == (Failure.SERVER_ERROR, True)


@pytest.mark.parametrize("count", ["5", 5.5, -1, 10**30, None])
def test_token_counts_that_are_none_count_nothing(count: object):
    async def handler(_: web.Request) -> web.Response:
        body = json.loads(completion({"content": "hi"}))
        return web.json_response(body | {"usage": {"prompt_tokens": count}})

    with answering(handler) as url:
        (answer,) = ask(config(url), request())
    assert answer == Answer("hi")


def test_a_timeout_is_retried_however_long_it_took():
    with scripted("--faults", "1", "--classes", "hangs") as one, scripted() as two:
        settings = config(one, two, timeout=0.4, outage_timeout=0.3)
        (answer,) = ask(settings, request())
        assert counts(one) == {"hangs": 1}
    assert isinstance(answer, Answer)


def test_servers_that_accept_and_never_answer_stop_the_run():
    with scripted("--faults", "1", "--classes", "hangs") as url:
        (error,) = ask(config(url, timeout=0.3, outage_timeout=0.2, retries=9), request())
        assert counts(url)["hangs"] in (2, 3)
    assert isinstance(error, UserError)
    assert "no endpoint" in str(error)


@pytest.mark.parametrize("fault", ["429", "dropped"])
def test_a_fault_that_passes_is_waited_out(fault: str):
    with scripted("--faults", "1", "--classes", fault) as url:
        answers = ask(config(url, retries=0), *(request(seed) for seed in range(8)))
        assert counts(url) == {fault: 8, "good": 8}
    assert all(isinstance(answer, Answer) for answer in answers)


def test_refusals_and_cuts_are_told():
    with scripted("--faults", "1", "--classes", "refusal field") as url:
        (refused,) = ask(config(url), request())
    assert refused.refusal
    assert "not one I can take" in refused.text
    with scripted("--faults", "1", "--classes", "cut") as url:
        (cut,) = ask(config(url), request())
    assert cut.cut
    assert not cut.refusal


def test_endless_429_is_given_up_as_rate_limited():
    with answering(reply(429, message="slow down")) as url:
        (error,) = ask(config(url, outage_timeout=1.5), request())
    assert (error.failure, error.retryable) == (Failure.RATE_LIMITED, True)


SAYINGS = {
    "vllm": "This model's maximum context length is 4096 tokens. However, you requested 5000",
    "llama.cpp": "the request exceeds the available context size, try increasing it",
    "tgi": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096",
}


@pytest.mark.parametrize("server", SAYINGS)
def test_a_prompt_that_is_too_long_is_not_sent_again(server: str):
    calls = []

    async def handler(_: web.Request) -> web.Response:
        calls.append(1)
        return web.json_response({"error": {"message": SAYINGS[server]}}, status=400)

    with answering(handler) as url:
        (error,) = ask(config(url), request())
    assert (error.failure, error.retryable) == (Failure.CONTEXT_TOO_LONG, False)
    assert SAYINGS[server][:40] in error.message
    assert len(calls) == 1


def test_a_content_filter_is_a_refusal():
    with answering(reply(400, code="content_filter", message="filtered")) as url:
        (error,) = ask(config(url), request())
    assert error.failure == Failure.REFUSED


@pytest.mark.parametrize("check", [False, True])
def test_the_key_is_never_shown(check: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    with answering(reply(401, message="Incorrect API key provided: sk-very-secret")) as url:
        if check:
            with pytest.raises(UserError) as caught:
                ask(config(url), check=True)
            error = caught.value
        else:
            (error,) = ask(config(url), request())
    assert isinstance(error, UserError)
    assert "sk-very-secret" not in str(error)
    assert "***" in str(error)
    assert "OPENAI_API_KEY holds a key that the server refuses" in str(error)


def test_a_key_that_is_cut_off_in_a_message_is_not_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    long = "x" * 475 + "sk-very-secret"
    with answering(reply(418, message=long)) as url:
        (error,) = ask(config(url), request())
    assert "xxx" in error.message
    assert "sk-" not in error.message


def test_a_key_with_a_line_break_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\n")
    with pytest.raises(UserError, match=r"OPENAI_API_KEY: .* line break") as told:
        OpenAIBackend(config("http://localhost:1/v1"))
    assert "sk-secret" not in str(told.value)


def test_the_key_comes_from_the_named_variable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_KEY", "sk-mine")
    seen = []

    async def handler(got: web.Request) -> web.Response:
        seen.append(got.headers["authorization"])
        return web.json_response({"error": {"message": "no"}}, status=418)

    with answering(handler) as url:
        ask(config(url, api_key_env="MY_KEY"), request())
    assert seen == ["Bearer sk-mine"]


def test_an_exhausted_quota_stops_the_run():
    with answering(reply(429, code="insufficient_quota", message="pay")) as url:
        (error,) = ask(config(url), request())
    assert isinstance(error, UserError)
    assert "goes on when there is quota" in str(error)


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_an_unreachable_endpoint_is_told_in_seconds():
    url = f"http://127.0.0.1:{unused_port()}/v1"
    began = time.monotonic()
    with pytest.raises(UserError, match=rf"backend.endpoints {url}: cannot be reached"):
        ask(config(url), check=True)
    assert time.monotonic() - began < 10


def test_an_unknown_model_is_told_with_those_there():
    with (
        scripted() as url,
        pytest.raises(UserError, match=r"'gpt-9': .* does not list it; it lists 'scripted' .*404"),
    ):
        ask(config(url, model="gpt-9"), check=True)


@pytest.mark.parametrize(
    ("schemas", "follows"), [("followed", True), ("ignored", False), ("refused", False)]
)
def test_the_check_finds_out_whether_schemas_are_followed(schemas: str, follows: bool):
    with scripted("--schemas", schemas) as url:
        assert ask(config(url), check=True) == [follows]


def test_a_model_that_answers_need_not_be_listed():
    async def handler(_: web.Request) -> web.Response:
        message = {"role": "assistant", "content": '{"answer": "ready"}'}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return web.json_response({"id": "1", "object": "chat.completion", "choices": [choice]})

    with answering(handler, models=("another",)) as url:
        assert ask(config(url), check=True) == [True]


def test_errors_of_another_form_are_told():
    async def handler(_: web.Request) -> web.Response:
        return web.json_response({"detail": "pinned to another model"}, status=400)

    with (
        answering(handler) as url,
        pytest.raises(UserError, match=r"400 - .*pinned to another model"),
    ):
        ask(config(url), check=True)


def test_the_check_names_what_the_server_says():
    with (
        answering(reply(400, message="temperature must be 1 here")) as url,
        pytest.raises(UserError, match=r"a first short request failed .*temperature must be 1"),
    ):
        ask(config(url), check=True)


def test_max_completion_tokens_is_used_where_max_tokens_is_refused():
    seen = []

    async def handler(got: web.Request) -> web.Response:
        asked = await got.json()
        seen.append(asked)
        if "max_tokens" in asked:
            said = "Unsupported parameter: use 'max_completion_tokens' instead"
            return web.json_response({"error": {"message": said}}, status=400)
        message = {"role": "assistant", "content": '{"answer": "ready"}'}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return web.json_response({"id": "1", "object": "chat.completion", "choices": [choice]})

    with answering(handler) as url:
        assert ask(config(url, max_tokens=77), check=True) == [True]
    assert seen[-1]["max_completion_tokens"] == 77


def test_requests_are_spread_over_the_endpoints():
    with scripted("--delay", "0.05") as one, scripted("--delay", "0.05") as two:
        answers = ask(config(one, two, concurrency=8), *(request(seed) for seed in range(40)))
        shares = counts(one)["good"], counts(two)["good"]
    assert all(isinstance(answer, Answer) for answer in answers)
    assert sum(shares) == 40
    assert min(shares) >= 12


def test_a_dead_endpoint_is_left_for_the_others():
    with scripted() as alive:
        dead = f"http://127.0.0.1:{unused_port()}/v1"
        answers = ask(config(dead, alive), *(request(seed) for seed in range(30)))
        assert counts(alive) == {"good": 30}
    assert all(isinstance(answer, Answer) for answer in answers)


def test_without_any_endpoint_the_run_stops():
    dead = f"http://127.0.0.1:{unused_port()}/v1"
    (error,) = ask(config(dead, outage_timeout=1.0), request())
    assert isinstance(error, UserError)
    assert "no endpoint" in str(error)
    assert "the same command goes on" in str(error)


def test_at_most_concurrency_requests_are_under_way():
    now, most = 0, 0

    async def handler(_: web.Request) -> web.Response:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.02)
        now -= 1
        return web.json_response({"error": {"message": "no"}}, status=418)

    with answering(handler) as url:
        ask(config(url, concurrency=3), *(request(seed) for seed in range(12)))
    assert most == 3


def test_the_rate_limit_holds():
    times = []

    async def handler(_: web.Request) -> web.Response:
        times.append(time.monotonic())
        return web.json_response({"error": {"message": "no"}}, status=418)

    with answering(handler) as url:
        ask(config(url, requests_per_minute=600), *(request(seed) for seed in range(6)))
    assert times[-1] - times[0] >= 0.45  # 5 gaps of 0.1 s, less the jitter of the clock
