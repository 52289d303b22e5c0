"""What the pool decides: each is done by `supervisor.py`, and replayed in tests without any HSM."""

from dataclasses import dataclass
from typing import Literal

from .jobs import Job, Message

__all__ = ["Decision", "Deliver", "Finish", "HangUp", "Kill", "Outcome", "Send", "Start"]

Outcome = Literal[
    "busy", "deadline", "unavailable", "refused", "unknown", "quarantined", "failed", "done"
]


@dataclass(frozen=True, slots=True)
class Start:
    """Start a worker with this number."""

    worker: int


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to a worker."""

    worker: int
    message: Message


@dataclass(frozen=True, slots=True)
class Kill:
    """Kill a worker; its death is then an event."""

    worker: int
    reason: str


@dataclass(frozen=True, slots=True)
class HangUp:
    """Let a worker end by itself; its death is then an event."""

    worker: int


@dataclass(frozen=True, slots=True)
class Deliver:
    """Items `start` to `stop` of the answer are this job's."""

    job: Job
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Finish:
    """Tell a job's caller what became of it without an answer."""

    job: Job
    outcome: Outcome


Decision = Start | Send | Kill | HangUp | Deliver | Finish
