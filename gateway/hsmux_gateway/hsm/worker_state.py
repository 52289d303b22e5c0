"""A worker as the pool sees it: what it was sent, and how long it may take.

Like the pool that it is a part of, it does no I/O and knows no clock: `pool_state.py` changes it
with every event, and asks it whether it may get more to do and when it has to be killed.
"""

from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, Literal

from .jobs import Message

__all__ = [
    "LEAVE_TIMEOUT_S",
    "LOCK_TIMEOUT_S",
    "START_TIMEOUT_S",
    "STEAL_S",
    "WINDOW",
    "WINDOW_MAX",
    "WorkerState",
]

WINDOW: Final = 2
"""Messages a worker has at a time: one running, one waiting in its socket."""

WINDOW_MAX: Final = 4
"""The same where those that wait are done sooner than the daemon may come to send another."""

STEAL_S: Final = 0.25
"""Seconds without progress after which a worker's next message is given to another."""

START_TIMEOUT_S: Final = 30.0
"""Seconds a worker has to start and log in: killed in C_Login, some modules lose their token."""

LOCK_TIMEOUT_S: Final = 90.0
"""Seconds a worker waits for its turn to log in on this host."""

LEAVE_TIMEOUT_S: Final = 5.0
"""Seconds a worker has to end on purpose."""


@dataclass(slots=True)
class WorkerState:
    """A worker as the pool knows it.

    Attributes:
        phase: It waits for its turn to start, starts and logs in, or can do jobs.
        since: When it entered its phase, or its running message made progress.
        begun_at: When its running message was begun.
        ready_at: When it got ready.
        kept_at: When it was last asked for a sign of life.
        item: The item of its running message that runs, from 1.
        messages: What it was sent and has not answered; the first one runs.
        killed: It was killed and is not gone yet.
        leaving: It ends on purpose.
        retiring: It makes place for a new one when it has nothing to do.
        is_slow: Its running message has made no progress for `STEAL_S`.
    """

    phase: Literal["waiting", "starting", "ready"]
    since: float
    begun_at: float = 0.0
    ready_at: float = 0.0
    kept_at: float = 0.0
    item: int = 0
    messages: deque[Message] = field(default_factory=deque)
    killed: bool = False
    leaving: bool = False
    retiring: bool = False
    is_slow: bool = False

    @property
    def is_usable(self) -> bool:
        """Whether it is there to do jobs."""
        return self.phase == "ready" and not (self.killed or self.leaving or self.retiring)

    def has_room(self, items_ahead: int = 0) -> bool:
        """Whether it may get another message.

        Args:
            items_ahead: Items that may wait for it in more than `WINDOW` messages.
        """
        return (
            self.is_usable
            and not self.is_slow
            and (len(self.messages) < WINDOW or self._waits_for_less(items_ahead))
            and not any(message.is_alone for message in self.messages)
        )

    def _waits_for_less(self, items: int) -> bool:
        """Whether less than so many items wait for it, in messages it may have more of."""
        if len(self.messages) >= WINDOW_MAX:
            return False
        return sum(message.count for message in islice(self.messages, 1, None)) < items

    @property
    def why_killed(self) -> str:
        """What is said of it when its time is over."""
        if self.leaving:
            return "does not end"
        return "hung" if self.phase == "ready" else "did not start"

    def limit_at(self) -> float | None:
        """When it has to be killed, if nothing happens before."""
        if self.killed:
            return None
        if self.leaving:
            return self.since + LEAVE_TIMEOUT_S
        if self.phase != "ready":
            limit_s = LOCK_TIMEOUT_S if self.phase == "waiting" else START_TIMEOUT_S
            return self.since + limit_s
        if not self.messages:
            return None
        return self.since + self.messages[0].kill_s

    def is_stuck(self, now: float) -> bool:
        """Whether what waits behind its running message has to be given to others now."""
        is_new = bool(self.messages) and not self.is_slow
        return is_new and self.phase == "ready" and now >= self.since + STEAL_S
