"""Requests of a connection that are collected to be done together.

Clients that keep many requests open send them in bursts, and most requests of a burst differ in
their data alone. Done one by one, each pays for the whole way through the gateway; collected, they
share a decision and one call of the C module, and each step of the way is taken for all of them
before the next. Nothing waits for a run to fill: what has come is done when the last of it was
decoded, and a request that does not join ends the run before it.
"""

from collections.abc import Callable

from .call import Call
from .requests import Asked

__all__ = ["Run"]


class Run:
    """Requests that were taken and not done yet.

    Args:
        joins: Whether two calls can be done together.

    Attributes:
        size: Bytes of memory they take at most, their answers included.
    """

    def __init__(self, joins: Callable[[Call, Call], bool]) -> None:
        self._joins = joins
        self._requests: list[tuple[int, Asked]] = []
        self._can_grow = True
        self.size = 0

    def __repr__(self) -> str:
        return f"Run({len(self._requests)} requests, {self.size} bytes)"

    def add(self, request_id: int, asked: Asked) -> bool:
        """Take a request if there is none yet or it joins those that are here; whether it did."""
        if self._requests:
            if not self._can_grow or asked.refusal is not None:
                return False
            if not self._joins(self._requests[0][1].call, asked.call):
                return False
        else:
            self._can_grow = asked.refusal is None
        self._requests.append((request_id, asked))
        self.size += asked.size
        return True

    def take_all(self) -> list[tuple[int, Asked]]:
        """The requests, to be done now; the run is empty then."""
        requests, self._requests, self.size = self._requests, [], 0
        return requests
