"""What a backend is: it answers requests, and says which kind of failure kept it from doing so."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol


class Failure(StrEnum):
    """Why an answer is not a valid list; the ledger counts them by these names."""

    # Of the way there: the same request is repeated before an attempt is given up.
    TIMEOUT = "timeout"
    RATE_LIMITED = "rate limited"
    SERVER_ERROR = "server error"
    # Of the request: repeating it is no use.
    CONTEXT_TOO_LONG = "context too long"
    # Of the answer: the next attempt has another seed.
    REFUSED = "refused"
    MALFORMED = "malformed"
    WRONG_LEVELS = "wrong levels"
    TOO_SHORT = "too short"
    TOO_LONG = "too long"
    DUPLICATE = "duplicate"
    LANGUAGE = "language"


@dataclass(frozen=True)
class Request:
    """One call of the model."""

    messages: tuple[dict[str, str], ...]
    """Chat messages, each with role and content."""
    schema: dict[str, Any] | None
    """JSON schema that the answer must follow; None: marked lines."""
    seed: int
    """Seeds the sampling; 0 to 2^31 - 1."""


@dataclass(frozen=True)
class Answer:
    """What came back."""

    text: str
    cut: bool = False
    """Whether it ended at max_tokens."""
    refusal: bool = False
    """Whether the server marked it as a refusal."""
    prompt_tokens: int = 0
    completion_tokens: int = 0


class RequestError(Exception):
    """No answer.

    Attributes:
        failure: Its class.
        message: What the server said.
        retryable: Whether the same request may meet a better end.
    """

    def __init__(self, failure: Failure, message: str, retryable: bool = False) -> None:
        """All are kept."""
        super().__init__(f"{failure}: {message}")
        self.failure, self.message, self.retryable = failure, message, retryable


class Backend(Protocol):
    """A model that writes. Use it within one event loop; `close` when done."""

    width: int
    """Requests that it can have under way at once."""

    async def check(self) -> bool:
        """See that the model is there, before anything is spent.

        Returns:
            Whether it follows JSON schemas.

        Raises:
            UserError: the endpoint is unreachable, the key refused, the model unknown.
        """
        ...

    async def answer(self, request: Request) -> Answer:
        """Answer one request.

        Raises:
            RequestError: it failed, after retries where these can help.
            UserError: no endpoint is alive any more, or the key is refused.
        """
        ...

    async def close(self) -> None:
        """Let go of connections or of the model."""
        ...
