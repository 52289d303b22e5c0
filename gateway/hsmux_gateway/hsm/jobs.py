"""Jobs: what waits in the pool's queues, and how a column of items is divided among them.

A caller's request becomes one or more jobs; the request is answered when it has no open job any
more. Most jobs are a part of a column of at most `ITEMS_MAX` items. Jobs of one key and operation
travel to a worker together in one message, whoever's they are, and a job whose worker died, or that
was done in part only, is divided: so each item has its own fate.

`positions` of a column are the places of its items in the request's column, so a part of a part
still knows where its results belong.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from hsmux_protocol.columns import pack_column, unpack_column

__all__ = [
    "ITEMS_MAX",
    "MESSAGE_ITEMS_SIZE_MAX",
    "Arguments",
    "Column",
    "Job",
    "Message",
    "Payload",
    "Request",
]

ITEMS_MAX: Final = 64
"""Items of one message: a lost worker loses no more work than that."""

MESSAGE_ITEMS_SIZE_MAX: Final = 1 << 20
"""Bytes of items in a message that several jobs share."""

Place = Literal["new", "waiting", "delayed", "running", "done"]


@dataclass(frozen=True, slots=True)
class Arguments:
    """The arguments of an operation that is no column."""

    values: list[Any] = field(repr=False)

    @property
    def count(self) -> int:
        """Items."""
        return 1


@dataclass(frozen=True, slots=True)
class Column:
    """A part of a request's column, under one key.

    Attributes:
        key: The arguments that name the key.
        items: A column.
        associated_data: A column of one for all items or one for each.
        positions: Where the items stand in the request's column.
    """

    key: tuple[bytes, str, bytes] = field(repr=False)
    items: bytes = field(repr=False)
    associated_data: bytes = field(repr=False)
    positions: Sequence[int]

    @property
    def count(self) -> int:
        """Items."""
        return len(self.positions)

    def part(self, indexes: Sequence[int]) -> "Column":
        """Some of the items."""
        items, aads = unpack_column(self.items), unpack_column(self.associated_data)
        own = aads if len(aads) == 1 else [aads[index] for index in indexes]
        return Column(
            self.key,
            pack_column([items[index] for index in indexes]),
            pack_column(own),
            [self.positions[index] for index in indexes],
        )


Payload = Arguments | Column


class Request:
    """What a caller asked for.

    Attributes:
        jobs: Those that are not finished.
        abandoned: Nobody waits for it any more.
    """

    __slots__ = ("abandoned", "jobs")

    def __init__(self) -> None:
        self.jobs: set[Job] = set()
        self.abandoned = False


@dataclass(slots=True, eq=False)
class Job:
    """One thing for a worker to do.

    Attributes:
        request: What it is a part of.
        tenant: Who waits, for the fair queue.
        key: Names the key and what proves it, or empty.
        operation: Of the worker.
        payload: Its arguments.
        deadline: When its caller stops waiting, CLOCK_MONOTONIC seconds.
        kill_s: Seconds an item may run before its worker is killed.
        repeatable: Whether doing it twice is the same as once.
        exclusive: Whether only one such job may be in the token at a time.
        alone: Whether its worker may have nothing else to do meanwhile.
        number: Names it; given by the pool.
        place: Where it is now.
        deaths: Workers that died doing it.
        died_at: When the first of them did.
        tries: Times it was not done, by nobody's fault.
    """

    request: Request
    tenant: bytes
    key: bytes
    operation: str
    payload: Payload
    deadline: float
    kill_s: float
    repeatable: bool = True
    exclusive: bool = False
    alone: bool = False
    number: int = 0
    place: Place = "new"
    deaths: int = 0
    died_at: float = 0.0
    tries: int = 0

    @property
    def count(self) -> int:
        """Items."""
        return self.payload.count

    @property
    def suspicion(self) -> tuple[bytes, bytes, str]:
        """What is refused when this job killed two workers."""
        return (self.tenant, self.key, self.operation)

    def part(self, indexes: Sequence[int]) -> "Job":
        """A job of its own for some of the items, with the same past."""
        assert isinstance(self.payload, Column)
        job = Job(
            self.request,
            self.tenant,
            self.key,
            self.operation,
            self.payload.part(indexes),
            self.deadline,
            self.kill_s,
            self.repeatable,
        )
        job.deaths, job.died_at, job.tries = self.deaths, self.died_at, self.tries
        self.request.jobs.add(job)
        return job

    def joins(self, other: "Job") -> bool:
        """Whether both can travel in one message."""
        return (
            isinstance(self.payload, Column)
            and isinstance(other.payload, Column)
            and (self.key, self.operation) == (other.key, other.operation)
            and not self.deaths
            and not other.deaths
        )


@dataclass(slots=True, eq=False)
class Message:
    """What a worker is sent at a time: one job, or several whose items make one column.

    Attributes:
        jobs: In the order of their items; empty when they were given to another worker.
        is_control: Whether it is for this one worker and never for another.
        number: Names it; given by the pool.
        margin_s: Seconds before its deadline that an item is not begun any more, so that what was
            done of its column is still told in time.
        kill_s: Seconds an item may run before the worker is killed.
    """

    jobs: list[Job]
    is_control: bool = False
    number: int = 0
    margin_s: float = 0.0
    kill_s: float = field(init=False)

    def __post_init__(self) -> None:
        """Its kill limit stays when its jobs are given to others."""
        self.kill_s = max(job.kill_s for job in self.jobs)

    @property
    def count(self) -> int:
        """Items."""
        return sum(job.count for job in self.jobs)

    @property
    def is_repeatable(self) -> bool:
        """Whether all of it may be done twice."""
        return all(job.repeatable for job in self.jobs)

    @property
    def is_alone(self) -> bool:
        """Whether its worker may have nothing else to do meanwhile."""
        return any(job.deaths or job.alone or job.exclusive for job in self.jobs)

    def locate(self, item: int) -> tuple[Job, int]:
        """The job of the message's nth item, and the item's number in it."""
        for job in self.jobs:
            if item < job.count:
                return job, item
            item -= job.count
        raise IndexError("no such item")

    def arguments(self) -> list[Any]:
        """What the worker is told after the operation: its latest deadline, then its arguments."""
        first = self.jobs[0].payload
        latest = _nanoseconds(max(job.deadline for job in self.jobs))
        if isinstance(first, Arguments):
            return [latest, *first.values]
        columns = [job.payload for job in self.jobs if isinstance(job.payload, Column)]
        if len(columns) == 1:
            ends = [_nanoseconds(self.jobs[0].deadline - self.margin_s)]
            return [latest, *first.key, first.items, first.associated_data, ends]
        items = [item for column in columns for item in unpack_column(column.items)]
        ends = [_nanoseconds(j.deadline - self.margin_s) for j in self.jobs for _ in range(j.count)]
        return [latest, *first.key, pack_column(items), _join_aads(columns), ends]


def _nanoseconds(deadline: float) -> int:
    return max(1, int(deadline * 1e9))


def _join_aads(columns: list[Column]) -> bytes:
    """Associated data of several columns: one for all where it is the same, else one an item."""
    if len({column.associated_data for column in columns}) == 1:
        aads = columns[0].associated_data
        if int.from_bytes(aads[:4], "big") == 1:
            return aads
    joined: list[bytes] = []
    for column in columns:
        own = unpack_column(column.associated_data)
        joined += own * column.count if len(own) == 1 else own
    return pack_column(joined)
