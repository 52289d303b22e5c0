"""Whether a request that failed is sent again, and when; no I/O and no clock.

What decides is whether the request can have been done:

* It was refused for now (Busy, Unavailable): it was not done, and is sent again after what the
  gateway asked for, or after a pause that doubles.
* The connection was lost before its answer came: it may have been done. Reading and computing may
  be done twice; a change is sent again only under its idempotency token, which makes the gateway
  answer for the change that was done instead of doing it again.
* The client was closed, or anything else: the caller's to know.

Nothing is sent again after the caller's deadline. Then the caller gets what failed last; but a
change that may have been done, and about which no answer came since, is OutcomeUnknown.
"""

import random
from typing import Final

from hsmux_protocol.errors import (
    DeadlineExceeded,
    HsmuxError,
    InvalidArgument,
    OutcomeUnknown,
    Unavailable,
)
from hsmux_protocol.operations import Operation

from ._tls import ClientClosed, ConnectionLost

__all__ = [
    "CONNECT_TIMEOUT_S",
    "FAILURES",
    "GRACE_S",
    "Effort",
    "TimedOut",
    "budget_ms",
    "check_timeout",
    "unreachable",
]

CONNECT_TIMEOUT_S: Final = 10.0
"""Seconds to connect, over all addresses."""

TIMEOUT_S_MAX: Final = 86_400.0
"""Seconds a caller can wait: what every kind of waiting can count, and longer than any request."""

GRACE_S: Final = 0.5
"""Seconds the gateway's own word on a passed deadline may come later than the deadline."""

BUDGET_MS_MAX: Final = 2**32 - 1
"""Milliseconds a request can say: a u32."""

PAUSE_MIN_S: Final = 0.05
PAUSE_MAX_S: Final = 2.0
JITTER: Final = 0.5
"""A pause is shortened by up to this part, so that clients that failed together return apart."""


class TimedOut(Exception):
    """No answer came within the deadline and its grace. Never leaves the package."""


FAILURES: Final = (HsmuxError, ConnectionLost, TimedOut)
"""What a try of a request can end in, for an effort to judge."""


class Effort:
    """The tries of one request.

    Args:
        operation: Of the request.
        deadline: When the caller stops waiting, on the clock whose times `failed` is given.
    """

    def __init__(self, operation: Operation, deadline: float) -> None:
        self.deadline = deadline
        self._operation = operation
        self._tries = 0
        self._may_be_done = False

    def __repr__(self) -> str:
        return f"Effort({self._operation.name}, {self._tries} failed)"

    def check(self, now: float) -> None:
        """Raise TimedOut when the deadline has passed."""
        if now >= self.deadline:
            raise TimedOut

    def failed(self, error: Exception, now: float, *, sent: bool) -> float:
        """The pause before the next try in seconds.

        Args:
            error: HsmuxError, ConnectionLost or TimedOut.
            now: The time.
            sent: Whether the request had left; false while there was no connection.

        Raises:
            HsmuxError: There is no next try; this is what the caller gets.
        """
        if sent and isinstance(error, ConnectionLost | TimedOut):
            self._may_be_done = self._operation.changes
        pause_s = self._pause_s(error)
        if pause_s is None or now + pause_s >= self.deadline:
            raise self._presented(error) from None
        self._tries += 1
        return pause_s

    def _pause_s(self, error: Exception) -> float | None:
        if isinstance(error, TimedOut | ClientClosed):
            return None
        if isinstance(error, HsmuxError) and not error.retryable:
            return None
        pause_s: float = min(PAUSE_MIN_S * 2.0**self._tries, PAUSE_MAX_S)
        pause_s *= 1 - JITTER * random.random()
        if isinstance(error, HsmuxError) and error.retry_after_ms is not None:
            return pause_s + error.retry_after_ms / 1000
        if isinstance(error, ConnectionLost) and self._tries == 0:
            return 0.0
        return pause_s

    def _presented(self, error: Exception) -> HsmuxError:
        is_refusal = isinstance(error, HsmuxError) and not error.retryable
        if self._may_be_done and not is_refusal:
            return OutcomeUnknown(
                f"{self._operation.name} was sent and no answer came; look whether it was done, or "
                "repeat it with the same idempotency_token"
            )
        if isinstance(error, HsmuxError):
            return error
        if isinstance(error, TimedOut):
            return DeadlineExceeded(f"{self._operation.name}: no answer came in time")
        return unreachable(error)


def budget_ms(deadline: float, now: float) -> int:
    """What is left until a deadline, as a request says it: milliseconds, at least 1."""
    return max(1, min(int((deadline - now) * 1000), BUDGET_MS_MAX))


def check_timeout(timeout_s: float) -> float:
    """A timeout that a caller named; one that is endless or longer is cut to `TIMEOUT_S_MAX`.

    Raises:
        InvalidArgument: It is not a number.
    """
    is_number = isinstance(timeout_s, int | float) and not isinstance(timeout_s, bool)
    if not is_number or timeout_s != timeout_s:
        raise InvalidArgument(f"timeout_s: must be a number of seconds, not {timeout_s!r}")
    return min(timeout_s, TIMEOUT_S_MAX)


def unreachable(error: Exception) -> Unavailable:
    """What a caller sees of a connection that cannot be had."""
    if isinstance(error, ClientClosed):
        return Unavailable(str(error))
    return Unavailable(f"{error}; check that the gateway runs and the address is right")
