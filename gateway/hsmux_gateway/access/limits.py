"""What an access point may ask for in a second, and how much of it at a time.

Theory of operation
-------------------
Two token buckets an access point, one of requests and one of bytes, and a bound of the calls that
are in work. A bucket holds what `BURST_S` seconds bring and is full at the start. A call is
admitted if the bucket holds its cost, or is full where the cost is more than it can ever hold. It
takes all of its cost: what it takes beyond is a debt that later calls wait for. So in any time `t`
no more is admitted than `rate * (t + BURST_S)` and the cost of one call, and nothing that the
protocol allows is refused for ever. A call that is refused takes nothing, from neither bucket.

A batch costs as many requests as it has items, so a limit means the same work however it is sent.
Bytes are those of requests, as they came.

A bucket is measured in time: a call costs the seconds in which its rate brings what it takes, and
the bucket is one number, when it will be full again. An update is a few additions; requests that
are done together are one. A limit that is changed leaves what was taken, at the price it had.
Buckets live in one process, and are full when it starts.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from hsmux_protocol.columns import column_count
from hsmux_protocol.operations import OPERATIONS

from ..call import Call
from ..store.rows import AccessPointRow

__all__ = ["BURST_S", "NO_LIMIT", "AccessLimits", "Limit", "Meter", "Over", "take"]

BURST_S: Final = 1
"""Seconds of a rate that may come at once after a pause."""

IN_FLIGHT_RETRY_MS: Final = 100
"""What a caller is told to wait when too many of its calls are in work: nobody knows when one of
them ends.
"""

RETRY_MS_MAX: Final = 2**32 - 1
"""The longest wait that an answer can tell."""

_TICK_S: Final = 1e-6
"""Seconds that nobody waits for: sums of floating point have a few nanoseconds less or more."""

_BATCHES: Final = frozenset(
    operation.number
    for operation in OPERATIONS.values()
    if any(field.name == "statuses" for field in operation.results)
)
"""Operations whose last argument is a column of items."""


class Limit(NamedTuple):
    """What one access point may have; 0: as much as it likes.

    Attributes:
        requests_per_s: Requests a second; of a batch each item is one.
        bytes_per_s: Bytes of requests a second.
        in_flight: Calls in work at a time.
    """

    requests_per_s: int = 0
    bytes_per_s: int = 0
    in_flight: int = 0


NO_LIMIT: Final = Limit()

_IN_WORDS: Final = {
    "requests_per_s": "requests a second",
    "bytes_per_s": "bytes a second",
    "in_flight": "requests at a time",
}


class Over(NamedTuple):
    """Why a call is not admitted.

    Attributes:
        limit: The name of the limit, a field of `Limit`.
        value: What it is.
        retry_after_ms: In which time the call is admitted if nothing else is asked for.
    """

    limit: str
    value: int
    retry_after_ms: int

    @property
    def text(self) -> str:
        """The same for the caller."""
        return f"over this access point's limit of {self.value} {_IN_WORDS[self.limit]}"


def take(full_at: float, now: float, cost_s: float) -> float:
    """Take from a bucket, if it has what it takes; all in seconds.

    Args:
        full_at: When the bucket is full again.
        now: The time, of a clock that never goes back.
        cost_s: In which time the rate brings what is asked for.

    Returns:
        The bucket afterwards. Or, if it does not have it, less than 0: minus the time after which
        it has; the bucket is as it was.
    """
    begin = full_at if full_at > now else now
    wait_s = begin - now + (cost_s if cost_s < BURST_S else BURST_S) - BURST_S
    return -wait_s if wait_s > _TICK_S else begin + cost_s


class Meter:
    """What one access point has taken.

    Args:
        limit: What it may take.
    """

    __slots__ = ("_byte_s", "_bytes_full_at", "_request_s", "_requests_full_at", "limit")

    def __init__(self, limit: Limit) -> None:
        self._requests_full_at = self._bytes_full_at = 0.0
        self.change(limit)

    def __repr__(self) -> str:
        return f"Meter({self.limit!r})"

    def change(self, limit: Limit) -> None:
        """Another limit from now on."""
        self.limit = limit
        self._request_s = 1 / limit.requests_per_s if limit.requests_per_s else 0.0
        self._byte_s = 1 / limit.bytes_per_s if limit.bytes_per_s else 0.0

    def take(self, call: Call, now_ns: int, in_work: int = 0) -> Over | None:
        """Take a call's cost, or tell why it cannot be had.

        Args:
            call: What is asked.
            now_ns: The time, of a clock that never goes back.
            in_work: Calls of this access point in work beside which it would be; 0: it is over
                before it could count as one.
        """
        if in_work and in_work >= self.limit.in_flight > 0:
            return Over("in_flight", self.limit.in_flight, IN_FLIGHT_RETRY_MS)
        requests = _items_in(call) if call.operation.number in _BATCHES else 1
        return self._take(now_ns * 1e-9, requests * self._request_s, call.size * self._byte_s)

    def take_together(self, calls: Sequence[Call], now_ns: int) -> bool:
        """Take the cost of calls that are no batches at once; whether it was to be had.

        They make no debt together: where they are not admitted, some of them may be by themselves.
        """
        requests_s = len(calls) * self._request_s
        bytes_s = sum([call.size for call in calls]) * self._byte_s if self._byte_s else 0.0
        if requests_s > BURST_S or bytes_s > BURST_S:
            return False
        return self._take(now_ns * 1e-9, requests_s, bytes_s) is None

    def _take(self, now: float, requests_s: float, bytes_s: float) -> Over | None:
        """Take from both buckets or from neither; without a limit a bucket is always full."""
        requests_at = take(self._requests_full_at, now, requests_s) if self._request_s else 0.0
        bytes_at = take(self._bytes_full_at, now, bytes_s) if self._byte_s else 0.0
        if requests_at < 0 or bytes_at < 0:
            return self._over(-requests_at, -bytes_at)
        self._requests_full_at, self._bytes_full_at = requests_at, bytes_at
        return None

    def _over(self, requests_s: float, bytes_s: float) -> Over:
        """The limit that keeps a call waiting longer."""
        if bytes_s > requests_s:
            return Over("bytes_per_s", self.limit.bytes_per_s, _told_ms(bytes_s))
        return Over("requests_per_s", self.limit.requests_per_s, _told_ms(requests_s))


def _told_ms(wait_s: float) -> int:
    """A wait as it is told: who waits so long has waited long enough."""
    return min(math.ceil((wait_s - _TICK_S) * 1000), RETRY_MS_MAX)


def _items_in(batch: Call) -> int:
    """How many requests a batch counts for; one that cannot be read counts too."""
    return max(1, column_count(batch.arguments[-1])) if batch.arguments else 1


class AccessLimits:
    """The meters of all access points that have a limit.

    Args:
        default: What holds where an access point has no limit of its own.

    Attributes:
        meters: By access point; who has none may ask for anything.
        refused: Calls that were not admitted so far, by limit.
    """

    def __init__(self, default: Limit = NO_LIMIT) -> None:
        self._default = default
        self.meters: dict[bytes, Meter] = {}
        self.refused: Counter[str] = Counter(dict.fromkeys(Limit._fields, 0))

    def __repr__(self) -> str:
        return f"AccessLimits({len(self.meters)} limited)"

    def apply(self, rows: Iterable[AccessPointRow]) -> None:
        """Take over access points that changed."""
        for row in rows:
            own = Limit(row.requests_per_s, row.bytes_per_s, row.in_flight)
            limit = Limit(*(one or other for one, other in zip(own, self._default, strict=True)))
            self.set(row.access_point_id, limit)

    def set(self, access_point_id: bytes, limit: Limit) -> None:
        """The limit of one access point from now on."""
        meter = self.meters.get(access_point_id)
        if limit == NO_LIMIT:
            self.meters.pop(access_point_id, None)
        elif meter is None:
            self.meters[access_point_id] = Meter(limit)
        else:
            meter.change(limit)
