"""Connections that were refused before anybody was known, counted instead of written one by one.

Whoever has no client key can try as often as the network allows. Each try costs here a number in a
table of bounded size, and each source and reason one record in `WINDOW_S`, so nobody fills a disk
who was not let in. Where more sources come than the table holds, the rest is one: "others".

Pure: times are given, records come back.
"""

from typing import Final

from .records import Flood, cut

__all__ = ["OTHERS", "SOURCES_MAX", "WINDOW_S", "Floods"]

WINDOW_S: Final = 10
"""Seconds that are counted together."""

SOURCES_MAX: Final = 100
"""Pairs of source and reason that are counted by themselves: 100 records in `WINDOW_S` at most,
which is a gigabyte in three weeks if somebody tries for that long.
"""

OTHERS: Final = "others"


class Floods:
    """What is being counted."""

    def __init__(self) -> None:
        self._counted: dict[tuple[str, str], list[int]] = {}
        self._begun_ms: int | None = None

    def __repr__(self) -> str:
        return f"Floods({len(self._counted)} sources)"

    def count(self, source: str, reason: str, now_ms: int) -> None:
        """Count one refused connection.

        Args:
            source: The peer's address, without a port.
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

    def take(self, now_ms: int, *, all_of_it: bool = False) -> list[Flood]:
        """The records of a window that is over, or of what there is; empty before.

        A clock that was set back ends the window too.
        """
        begun = self._begun_ms
        if begun is None:
            return []
        if not all_of_it and begun <= now_ms < begun + WINDOW_S * 1000:
            return []
        records = [
            Flood(now_ms, first, last, source, reason, count)
            for (source, reason), (first, last, count) in self._counted.items()
        ]
        self._counted.clear()
        self._begun_ms = None
        return records
