"""Which address of a deployment is tried when, and how long; no I/O.

A deployment has several gateways, and every client begins with one of them at random: so clients
spread. An address that works stays first. One that does not, or whose gateway is leaving, goes to
the end; a gateway that leaves may also ask to be left alone for a while, and then it is.

The time for connecting is shared out: each address gets an equal part of what is left, so that one
that swallows packets leaves some for the others.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence

from hsmux_protocol.errors import HsmuxError, Unavailable

from ._tls import ConnectionLost

__all__ = ["Addresses", "share", "why_none"]


class Addresses:
    """Addresses in the order in which they are tried.

    Args:
        addresses: "host:port", at least one.
        clock: Tells the time in seconds.
    """

    def __init__(self, addresses: Sequence[str], clock: Callable[[], float]) -> None:
        self._order = random.sample(addresses, len(addresses))
        self._clock = clock
        self._not_before: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"Addresses({', '.join(self._order)})"

    def turns(self, deadline: float) -> Iterator[tuple[str, float]]:
        """The addresses to try, each with the moment at which it has had its time.

        Who asks for the next one says that this one did not work.

        Raises:
            Unavailable: All gateways asked to be left alone for a while.
        """
        now = self._clock()
        free = [each for each in self._order if self._not_before.get(each, now) <= now]
        if not free:
            wait_s = min(self._not_before.values()) - now
            raise Unavailable("the gateway is stopping", retry_after_ms=math.ceil(wait_s * 1000))
        for address, until in zip(free, share(len(free), deadline, self._clock), strict=True):
            yield address, until
            self._put_last(address)

    def leave(self, address: str, retry_after_ms: int) -> None:
        """The gateway at an address is leaving: others come first, it not before that time."""
        self._put_last(address)
        self._not_before[address] = self._clock() + retry_after_ms / 1000

    def _put_last(self, address: str) -> None:
        self._order.remove(address)
        self._order.append(address)


def share(count: int, deadline: float, clock: Callable[[], float]) -> Iterator[float]:
    """The moments until which each of several tries may last, decided when it begins."""
    for left in range(count, 0, -1):
        now = clock()
        yield now + max(0.0, deadline - now) / left


def why_none(failures: Sequence[tuple[str, HsmuxError | ConnectionLost]]) -> Exception:
    """What to raise when no address works.

    A refusal says what to mend, so it comes before connections that were lost; among those, all
    are told.

    Args:
        failures: Each address that was tried and why it failed.
    """
    for _, failure in failures:
        if isinstance(failure, HsmuxError) and not failure.retryable:
            return failure
    for _, failure in failures:
        if isinstance(failure, HsmuxError):
            return failure
    told = "; ".join(f"{address}: {failure}" for address, failure in failures)
    return ConnectionLost(told or "time ran out")
