"""A model in this process as a backend: requests that wait are written together, in a thread."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from synrank_jax.generation.backend import Answer, Request, RequestError


class Engine(Protocol):
    """A model in this process."""

    def load(self) -> bool:
        """Load it.

        Returns:
            Whether it follows JSON schemas.

        Raises:
            UserError: it cannot be loaded.
        """
        ...

    def generate(self, requests: Sequence[Request]) -> list[Answer | RequestError]:
        """Answer requests together, each by its own seed; one that fails does not fail others."""
        ...


class LocalBackend:
    """See `Backend`."""

    def __init__(self, engine: Engine, width: int) -> None:
        """At most `width` requests are answered together."""
        self._engine, self.width = engine, width
        self._waiting: list[tuple[Request, asyncio.Future[Answer | RequestError]]] = []
        self._running: asyncio.Task[None] | None = None

    async def check(self) -> bool:
        """See `Backend.check`: loads the model."""
        return await asyncio.to_thread(self._engine.load)

    async def answer(self, request: Request) -> Answer:
        """See `Backend.answer`."""
        future: asyncio.Future[Answer | RequestError] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        answer = await future
        if isinstance(answer, RequestError):
            raise answer
        return answer

    async def close(self) -> None:
        """See `Backend.close`: waits for what is being written."""
        if self._running is not None:
            await asyncio.gather(self._running, return_exceptions=True)

    async def _run(self) -> None:
        """Write what waits, until nothing does."""
        await asyncio.sleep(0)  # the other requests of this moment come along
        while self._waiting:
            batch, self._waiting = self._waiting[: self.width], self._waiting[self.width :]
            batch = [(request, future) for request, future in batch if not future.done()]
            try:
                answers = await asyncio.to_thread(
                    self._engine.generate, [request for request, _ in batch]
                )
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():  # it is when the run was stopped meanwhile
                    future.set_result(answer)
