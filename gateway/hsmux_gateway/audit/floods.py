"""What is refused in floods, counted instead of written one by one.

Connections before anybody was known, by the peer's address and the reason; and requests over a
limit, by access point and limit.

Whoever has no client key can try as often as the network allows, and whoever has a limit can try
to pass it. Each try costs here a number in a table of bounded size, and each source and reason one
record in `WINDOW_S`, so nobody fills a disk who was not let in. Where more sources come than the
table holds, the rest is one: "others".

Pure: times are given, records come back.
"""

from typing import Final, Generic, TypeVar

from .records import Flood, Limited, cut

__all__ = ["FLOOD_SIZE_MAX", "OTHERS", "SOURCES_MAX", "WINDOW_S", "Floods"]

WINDOW_S: Final = 10
"""Seconds that are counted together."""

SOURCES_MAX: Final = 100
"""Pairs of source and reason that are counted by themselves; beyond them one for each reason."""

FLOOD_SIZE_MAX: Final = 20 * 1024
"""Bytes that all records of one window take in the log at most: less than 180 MB a day, if somebody
tries for that long from ever other addresses.
"""

OTHERS: Final = "others"

R = TypeVar("R", Flood, Limited)


class Floods(Generic[R]):
    """What is being counted.

    Args:
        kind: Of the records.
    """

    def __init__(self, kind: type[R]) -> None:
        self._kind: type[R] = kind
        self._counted: dict[tuple[str, str], list[int]] = {}
        self._begun_ms: int | None = None

    def __repr__(self) -> str:
        return f"Floods({len(self._counted)} sources)"

    def count(self, source: str, reason: str, now_ms: int) -> None:
        """Count one refusal.

        Args:
            source: The peer's address without a port, or the access point.
            reason: Why, one of few.
            now_ms: Milliseconds since 1970 UTC.
        """
        if self._begun_ms is None:
            self._begun_ms = now_ms
        pair = (cut(source), cut(reason))
        if pair not in self._counted and len(self._counted) >= SOURCES_MAX:
            # Reasons are few, so their number is no bound that could be passed.
            pair = (OTHERS, pair[1])
        found = self._counted.setdefault(pair, [now_ms, now_ms, 0])
        found[1] = now_ms
        found[2] += 1

    def take(self, now_ms: int, *, all_of_it: bool = False) -> list[R]:
        """The records of a window that is over, or of what there is; empty before.

        A clock that was set back ends the window too.
        """
        begun = self._begun_ms
        if begun is None:
            return []
        if not all_of_it and begun <= now_ms < begun + WINDOW_S * 1000:
            return []
        records = [
            self._kind(now_ms, first, last, source, reason, count)
            for (source, reason), (first, last, count) in self._counted.items()
        ]
        self._counted.clear()
        self._begun_ms = None
        return records
