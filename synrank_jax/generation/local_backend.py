"""A model in this process as a backend: requests that wait are written together, in a thread."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from synrank_jax.generation.backend import Answer, Failure, Request, RequestError

# A chat template must take what a prompt consists of.
TRIAL = ({"role": "system", "content": "Answer."}, {"role": "user", "content": "Are you there?"})


class Engine(Protocol):
    """A model in this process."""

    def load(self) -> bool:
        """Load it.

        Returns:
            Whether it follows JSON schemas.

        Raises:
            UserError: it cannot be loaded, or cannot be asked as `generate` asks.
        """
        ...

    def generate(self, requests: Sequence[Request]) -> list[Answer | RequestError]:
        """Answer requests together, each by its own seed; one that fails does not fail others.

        Raises:
            UserError: the model cannot go on.
        """
        ...


class LocalBackend:
    """See `Backend`."""

    def __init__(self, engine: Engine, width: int) -> None:
        """At most `width` requests are answered together."""
        self._engine, self.width = engine, width
        self._waiting: list[tuple[Request, asyncio.Future[Answer]]] = []
        self._running: asyncio.Task[None] | None = None

    async def check(self) -> bool:
        """See `Backend.check`: loads the model."""
        return await asyncio.to_thread(self._engine.load)

    async def answer(self, request: Request) -> Answer:
        """See `Backend.answer`."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return await future

    async def close(self) -> None:
        """See `Backend.close`: waits for what is being written."""
        if self._running is not None:
            await asyncio.gather(self._running, return_exceptions=True)

    async def _run(self) -> None:
        """Write what waits, until nothing does."""
        await asyncio.sleep(0)  # the other requests of this moment come along
        while batch := self._next_batch():
            requests = [request for request, _ in batch]
            results: Sequence[Answer | Exception]
            try:
                results = await asyncio.to_thread(self._engine.generate, requests)
            except Exception as error:
                results = [error] * len(batch)
            for (_, future), result in zip(batch, results, strict=True):
                if future.done():  # given up meanwhile
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)

    def _next_batch(self) -> list[tuple[Request, asyncio.Future[Answer]]]:
        waiting = [(request, future) for request, future in self._waiting if not future.done()]
        batch, self._waiting = waiting[: self.width], waiting[self.width :]
        return batch


def context_error(prompt_tokens: int, max_tokens: int, context: int) -> RequestError:
    """What a prompt that leaves no room for its answer meets."""
    return RequestError(
        Failure.CONTEXT_TOO_LONG,
        f"{prompt_tokens} tokens of prompt and backend.max_tokens {max_tokens} exceed the model's "
        f"context of {context}",
    )
