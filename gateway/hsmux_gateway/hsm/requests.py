"""Requests: what a caller waits for, put together from the fates of its jobs.

Here a worker's answers and the pool's refusals become values and errors of the `Token` interface.
The texts of errors are for operators; callers get those of `keys.hsm_keys.presented`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Final

import trio

from hsmux_native.pkcs11 import SecretPage
from hsmux_protocol.columns import pack_column, unpack_column

from .errors import (
    InvalidInput,
    KeyMissing,
    KeyQuarantined,
    TokenBusy,
    TokenDeadlineExceeded,
    TokenError,
    TokenOutcomeUnknown,
    TokenUnavailable,
    Unsupported,
)
from .jobs import Column, Job, Request
from .messages import Answer
from .token import BatchResult

__all__ = ["ColumnRequest", "PageRequest", "PoolRequest", "ValueRequest"]

RETRY_AFTER_MS: Final = 100
"""What is told when the token is too busy: about the time its queue needs to move."""

DONE: Final = 0
DEADLINE: Final = 3
UNAVAILABLE: Final = 4
AGAIN: Final = 5

_FAILURES: Final[dict[str, type[TokenError]]] = {
    "caller": InvalidInput,
    "input": InvalidInput,
    "missing": KeyMissing,
    "key": KeyMissing,
    "quarantine": KeyQuarantined,
    "unsupported": Unsupported,
    "doubt": TokenOutcomeUnknown,
    "deadline": TokenDeadlineExceeded,
}
"""Errors by the kind of a worker's answer; all others are TokenUnavailable or TokenBusy."""

_OUTCOMES: Final[dict[str, tuple[type[TokenError], str]]] = {
    "deadline": (TokenDeadlineExceeded, "the deadline passed in the queue"),
    "unavailable": (TokenUnavailable, "the token is away"),
    "refused": (TokenUnavailable, "this request killed two workers and is refused for a minute"),
    "failed": (TokenUnavailable, "two workers were lost while they did this"),
    "quarantined": (KeyQuarantined, "the key did not prove itself and is refused for a minute"),
    "unknown": (TokenOutcomeUnknown, "a worker was lost in the middle of a change"),
}
"""Errors by the pool's own outcomes."""

_PASSING: Final = (TokenBusy, TokenUnavailable, TokenDeadlineExceeded)
"""Errors that an item of a column may have while its neighbours are done."""


def _failure(answer: Answer) -> TokenError:
    if answer.kind == "busy":
        return TokenBusy(answer.text, retry_after_ms=RETRY_AFTER_MS)
    return _FAILURES.get(answer.kind, TokenUnavailable)(f"{answer.text} (code 0x{answer.code:x})")


def _unfinished(outcome: str) -> TokenError:
    if outcome == "busy":
        return TokenBusy("the token has too much to do", retry_after_ms=RETRY_AFTER_MS)
    error, text = _OUTCOMES[outcome]
    return error(text)


class PoolRequest(Request, ABC):
    """A request that somebody waits for; what becomes of its jobs, each kind notes in its way."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        super().__init__()
        self._event = trio.Event()

    @abstractmethod
    def deliver(self, job: Job, answer: Answer, start: int, stop: int) -> None:
        """Items `start` to `stop` of a worker's answer are a job's."""

    @abstractmethod
    def finish(self, job: Job, outcome: str) -> None:
        """A job ends without an answer."""

    def settle(self) -> None:
        """Wake the caller if no job is open any more."""
        if not self.jobs:
            self._event.set()

    async def wait(self, timeout_s: float) -> bool:
        """Wait until every job has ended; False if that took too long."""
        with trio.move_on_after(max(0.0, timeout_s)):
            await self._event.wait()
        return self._event.is_set()


class ValueRequest(PoolRequest):
    """A request of one job, or of one for each worker, with one value.

    Attributes:
        error: Why there is no value.
    """

    __slots__ = ("error", "value")

    def __init__(self) -> None:
        super().__init__()
        self.value: Any = None
        self.error: TokenError | None = None

    def deliver(self, job: Job, answer: Answer, start: int, stop: int) -> None:
        """Take the value, or the error."""
        if answer.kind == "done":
            self.value = answer.value
        else:
            self.error = _failure(answer)

    def finish(self, job: Job, outcome: str) -> None:
        """Note the error; "done" is none."""
        if outcome != "done":
            self.error = _unfinished(outcome)

    def result(self) -> Any:
        """The value.

        Raises:
            TokenError: There is none.
        """
        if self.error is not None:
            raise self.error
        return self.value


class PageRequest(ValueRequest):
    """A request whose secret bytes go through a worker's page.

    Attributes:
        before: Called with the page before the job goes to its worker.
        after: Called with the page and the value when the answer is there; may raise TokenError.
    """

    __slots__ = ("after", "before")

    def __init__(
        self,
        before: Callable[[SecretPage], None],
        after: Callable[[SecretPage, Any], Any],
    ) -> None:
        super().__init__()
        self.before = before
        self.after = after

    def take(self, page: SecretPage) -> None:
        """Take what the worker left in its page."""
        try:
            if self.error is None:
                self.value = self.after(page, self.value)
        except TokenError as error:
            self.error = error


class ColumnRequest(PoolRequest):
    """A request of many items, each with its own fate.

    Args:
        count: Items.
    """

    __slots__ = ("_count", "_error", "_outputs", "_statuses", "_whole")

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count
        self._whole: BatchResult | None = None
        self._outputs: list[bytes] = []
        self._statuses = bytearray([DEADLINE]) * count
        self._error: TokenError | None = None

    def deliver(self, job: Job, answer: Answer, start: int, stop: int) -> None:
        """Take what became of a job's items."""
        assert isinstance(job.payload, Column)
        if answer.kind != "done":
            self._fail(job.payload.positions, _failure(answer))
            return
        column, statuses = answer.value
        if job.count == self._count == len(statuses) and AGAIN not in statuses:
            self._whole = BatchResult(column, statuses)
            return
        outputs = unpack_column(column)[start:stop]
        self._make_room()
        for place, output, status in zip(
            job.payload.positions, outputs, statuses[start:stop], strict=True
        ):
            if status != AGAIN:
                self._outputs[place], self._statuses[place] = output, status

    def finish(self, job: Job, outcome: str) -> None:
        """Items that were not done."""
        assert isinstance(job.payload, Column)
        self._fail(job.payload.positions, _unfinished(outcome))

    def _make_room(self) -> None:
        if not self._outputs:
            self._outputs = [b""] * self._count

    def _fail(self, positions: Sequence[int], error: TokenError) -> None:
        if self._error is None or not isinstance(error, _PASSING):
            self._error = error
        status = DEADLINE if isinstance(error, TokenDeadlineExceeded) else UNAVAILABLE
        for place in positions:
            self._statuses[place] = status

    def result(self) -> BatchResult:
        """What became of the column; items nobody has told of are late.

        Raises:
            TokenError: The key cannot be used, or no item at all was done.
        """
        if self._whole is not None:
            result = self._whole
        else:
            self._make_room()
            result = BatchResult(pack_column(self._outputs), bytes(self._statuses))
        if self._error is not None and not isinstance(self._error, _PASSING):
            raise self._error
        if self._count and all(status in (DEADLINE, UNAVAILABLE) for status in result.statuses):
            raise self._error or self._why(result.statuses)
        return result

    @staticmethod
    def _why(statuses: Sequence[int]) -> TokenError:
        if DEADLINE in statuses:
            return TokenDeadlineExceeded("the deadline passed before the token answered")
        return TokenUnavailable("the token did not do it, though it does other work")
