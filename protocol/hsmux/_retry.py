"""Whether a request that failed is sent again, and when; no I/O and no clock.

What decides is whether the request can have been done:

* It was refused for now (Busy, Unavailable): it was not done, and is sent again after what the
  gateway asked for, or after a pause that doubles.
* The connection was lost before its answer came: it may have been done. Reading and computing may
  be done twice; a change is sent again only under its idempotency token, which makes the gateway
  answer for the change that was done instead of doing it again.
* Anything else is the caller's to know.

Nothing is sent again after the caller's deadline. Then the caller gets what failed last; but a
change that may have been done, and about which no answer came since, is OutcomeUnknown.
"""

import random
from typing import Final

from hsmux_protocol.errors import DeadlineExceeded, HsmuxError, OutcomeUnknown, Unavailable
from hsmux_protocol.operations import Operation

from ._tls import ConnectionLost

__all__ = [
    "CONNECT_TIMEOUT_S",
    "FAILURES",
    "GRACE_S",
    "Closed",
    "Effort",
    "TimedOut",
    "unreachable",
]

CONNECT_TIMEOUT_S: Final = 10.0
"""Seconds to connect, over all addresses."""

GRACE_S: Final = 0.5
"""Seconds the gateway's own word on a passed deadline may come later than the deadline."""

PAUSE_MIN_S: Final = 0.05
PAUSE_MAX_S: Final = 2.0
JITTER: Final = 0.5
"""A pause is shortened by up to this part, so that clients that failed together return apart."""


class TimedOut(Exception):
    """No answer came within the deadline and its grace. Never leaves the package."""


class Closed(Exception):
    """The client was closed. Never leaves the package."""


FAILURES: Final = (HsmuxError, ConnectionLost, TimedOut, Closed)
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

    def budget_ms(self, now: float) -> int:
        """What is left of the deadline, as a request says it: milliseconds, at least 1."""
        return max(1, min(int((self.deadline - now) * 1000), 2**32 - 1))

    def failed(self, error: Exception, now: float, *, sent: bool) -> float:
        """The pause before the next try in seconds.

        Args:
            error: HsmuxError, ConnectionLost, TimedOut or Closed.
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
        if isinstance(error, TimedOut | Closed):
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
        if isinstance(error, Closed):
            return Unavailable("the client was closed; make a new one")
        return unreachable(error)


def unreachable(error: Exception) -> Unavailable:
    """What a caller sees of a connection that cannot be had."""
    return Unavailable(f"{error}; check that the gateway runs and the address is right")
