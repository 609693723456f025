"""Requests of one moment go to an engine together; what one meets is no matter of the others."""

import asyncio
import threading

from synrank_jax.generation.backend import Answer, Request
from synrank_jax.generation.local_backend import LocalBackend


def request(seed: int) -> Request:
    return Request(({"role": "user", "content": "gum bal"},), None, seed)


class Recorder:
    """An engine that records its batches and fails on demand."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate: threading.Event | None = None

    def load(self) -> bool:
        return False

    def generate(self, requests) -> list:
        self.batches.append([request.seed for request in requests])
        if self.gate is not None:
            assert self.gate.wait(10)
        if any(request.seed == 13 for request in requests):
            raise RuntimeError("the engine broke")
        return [Answer(str(request.seed)) for request in requests]


def test_waiting_requests_are_written_together():
    async def run() -> list:
        backend = LocalBackend(engine, 4)
        assert not await backend.check()
        answers = await asyncio.gather(*(backend.answer(request(seed)) for seed in range(10)))
        await backend.close()
        return answers

    engine = Recorder()
    assert [answer.text for answer in asyncio.run(run())] == [str(seed) for seed in range(10)]
    assert engine.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_broken_engine_breaks_its_batch_and_no_other():
    async def run() -> list:
        backend = LocalBackend(Recorder(), 2)
        seeds = (1, 13, 2, 3)
        asked = (backend.answer(request(seed)) for seed in seeds)
        return await asyncio.gather(*asked, return_exceptions=True)

    broken, same, *whole = asyncio.run(run())
    assert isinstance(broken, RuntimeError)
    assert isinstance(same, RuntimeError)
    assert [answer.text for answer in whole] == ["2", "3"]


def test_given_up_requests_harm_no_others():
    async def run() -> list:
        backend = LocalBackend(engine, 2)
        tasks = [asyncio.create_task(backend.answer(request(seed))) for seed in (13, 1, 2, 3, 4)]
        await asyncio.sleep(0.05)  # the first two are being written
        tasks[0].cancel()
        tasks[2].cancel()
        gate.set()
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)

    engine, gate = Recorder(), threading.Event()
    engine.gate = gate
    _, broken, _, *whole = asyncio.run(run())
    assert isinstance(broken, RuntimeError)
    assert [answer.text for answer in whole] == ["3", "4"]
    assert engine.batches == [[13, 1], [3, 4]]


def test_close_waits_for_what_is_being_written():
    async def run() -> None:
        backend = LocalBackend(engine, 2)
        task = asyncio.create_task(backend.answer(request(1)))
        await asyncio.sleep(0.05)
        closing = asyncio.create_task(backend.close())
        await asyncio.sleep(0.05)
        assert not closing.done()
        gate.set()
        await closing
        assert (await task).text == "1"

    engine, gate = Recorder(), threading.Event()
    engine.gate = gate
    asyncio.run(run())
