"""What one connection holds in memory: some of its own, the rest leased from a shared budget.

A connection holds bytes of frames that have begun to come, arguments of calls in work with room
for their answers, and answers its peer has not read. Up to `OWN_SIZE` of that is its own, so that
ordinary traffic asks nobody. Everything beyond is leased from a `FairBudget` that all connections
share: an access point can hold at most as much of it as is left for the others.

A frame that passes `OWN_SIZE` leases all that it still needs, and room for its answer, before more
of it is read: two connections with half a frame each never wait for one another, and what was read
can be done. A call from a small frame that finds no room for a large answer is Busy. An answer
always finds room, because the call leased it.
"""

from typing import Final

from hsmux_protocol.connection import ServerConnection
from hsmux_protocol.limits import FRAME_SIZE_MAX

from .answers import Answers
from .fairness import FairBudget
from .tls import RECEIVE_SIZE

__all__ = ["OWN_SIZE", "BufferLease", "ConnectionBuffers"]

OWN_SIZE: Final = 64 * 1024
"""Bytes a connection may hold without a lease."""

ANSWER_GROWTH: Final = 2
"""How many times the size of a large request its answer is expected to have: records of 64 bytes
double.
"""

READ_SIZE_MIN: Final = 16 * 1024
"""Bytes worth a system call: about one TLS record."""


class BufferLease:
    """A connection's part of the shared budget.

    Args:
        budget: Bytes that connections share.
        tenant: The connection's access point.
    """

    def __init__(self, budget: FairBudget, tenant: bytes) -> None:
        self._budget = budget
        self._tenant = tenant
        self._leased = 0

    def __repr__(self) -> str:
        return f"BufferLease({self._leased} bytes)"

    def try_extend(self, size: int, *, in_turn: bool = False) -> bool:
        """Make room for `size` bytes in all; whether there is.

        Args:
            size: Bytes in all.
            in_turn: Whether those of the tenant that wait for room go before.
        """
        more = size - OWN_SIZE - self._leased
        if more > 0:
            take = self._budget.try_take_in_turn if in_turn else self._budget.try_take
            if not take(self._tenant, more):
                return False
            self._leased += more
        return True

    async def extend(self, size: int) -> None:
        """Make room for `size` bytes in all, and wait for it."""
        while (more := size - OWN_SIZE - self._leased) > 0:
            await self._budget.wait_take(self._tenant, more)
            self._leased += more

    def resize(self, size: int) -> None:
        """The connection now holds `size` bytes in all."""
        more = max(0, size - OWN_SIZE) - self._leased
        if more == 0:
            return
        self._leased += more
        if more > 0:
            self._budget.take(self._tenant, more)
        else:
            self._budget.give_back(self._tenant, -more)


class ConnectionBuffers:
    """What a connection holds now, and what it may read and begin.

    Args:
        lease: Of the connection.
        protocol: Holds what was received and not decoded.
        answers: Hold what was not sent.
    """

    def __init__(self, lease: BufferLease, protocol: ServerConnection, answers: Answers) -> None:
        self._lease = lease
        self._protocol = protocol
        self._answers = answers
        self._in_work = 0
        self._coming = 0
        self._answer = 0

    def __repr__(self) -> str:
        return f"ConnectionBuffers({self.size} bytes, {self._lease!r})"

    @property
    def size(self) -> int:
        """Bytes held now, and those a frame that has begun has leave to bring and to cause."""
        held = self._protocol.buffered_size + self._answers.size
        return held + self._in_work + self._coming + self._answer

    def settle(self) -> None:
        """Give back what is not held any more."""
        self._lease.resize(self.size)

    def release(self) -> None:
        """The connection ends: give back everything."""
        self._lease.resize(0)

    def has_room(self, size: int) -> bool:
        """Whether a call of this size may be begun; leases its room."""
        return self._lease.try_extend(self.size + size)

    def begin(self, size: int) -> None:
        """A call of this size goes on in a task."""
        self._in_work += size

    def end(self, size: int) -> None:
        """It has its answer."""
        self._in_work -= size

    def room(self) -> int:
        """Bytes to read now: what fits the own memory, or what a large frame needs.

        A frame has leave for all it needs or for none of it: 0, and `make_room` waits for it.
        """
        if not self._coming:
            size = self.size
            if OWN_SIZE - size >= READ_SIZE_MIN:
                return OWN_SIZE - size
            needed, answer = self._missing()
            if not self._lease.try_extend(size + needed + answer, in_turn=True):
                return 0
            self._coming, self._answer = needed, answer
        # TLS adds bytes of its own to what it carries.
        return min(self._coming + READ_SIZE_MIN, RECEIVE_SIZE)

    async def make_room(self) -> int:
        """As `room`, when there is some."""
        while not (room := self.room()):
            await self._lease.extend(self.size + sum(self._missing()))
        return room

    def _missing(self) -> tuple[int, int]:
        """Bytes a large frame still brings, and bytes of its answer."""
        missing = self._protocol.missing_size
        frame_size = self._protocol.buffered_size + missing if missing else 0
        return max(missing, READ_SIZE_MIN), min(ANSWER_GROWTH * frame_size, FRAME_SIZE_MAX)

    def came(self, size: int) -> None:
        """So many bytes of it came."""
        self._coming = max(0, self._coming - size)

    def frame_taken(self) -> None:
        """The frame is whole and was taken; what is leased goes over to its call."""
        self._coming = self._answer = 0
