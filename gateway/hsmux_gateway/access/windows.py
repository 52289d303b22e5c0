"""When a statement of a policy holds: a span of time, days of the week, hours of the day, all UTC.

A window says whether it holds at a moment and until when that answer is good, so that a decision
can be kept until then. Hours end on the day they begin; what passes midnight is two statements.
"""

import re
from datetime import UTC, datetime
from typing import Final

import msgspec

__all__ = ["FOREVER_MS", "Window", "WindowDocument", "parse_window"]

FOREVER_MS: Final = 2**63 - 1
"""Milliseconds since 1970 UTC that never come."""

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_MINUTE_MS: Final = 60_000
_DAY_MS: Final = 24 * 60 * _MINUTE_MS
_HOURS: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-4]):([0-5][0-9])")
_FIRST_DAY: Final = 3
"""1970-01-01 was a Thursday."""


class WindowDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A window as it is written.

    Attributes:
        not_before: When it begins, RFC 3339 with an offset; empty: always has.
        not_after: When it ends; empty: never.
        days: Of the week, `mon` to `sun`; empty: every day.
        hours: Of the day, such as `08:00-18:00`; empty: all of them.
    """

    not_before: str = ""
    not_after: str = ""
    days: tuple[str, ...] = ()
    hours: str = ""


class Window(msgspec.Struct, frozen=True):
    """A window as it is evaluated.

    Attributes:
        begin_ms, end_ms: Milliseconds since 1970 UTC; it holds from the first to before the second.
        days: Numbers of days of the week, from Monday = 0.
        begin_minute, end_minute: Minutes of the day.
    """

    begin_ms: int
    end_ms: int
    days: frozenset[int]
    begin_minute: int
    end_minute: int

    def holds(self, now_ms: int) -> bool:
        """Whether the window is open."""
        day, since_ms = divmod(now_ms, _DAY_MS)
        return (
            self.begin_ms <= now_ms < self.end_ms
            and (day + _FIRST_DAY) % 7 in self.days
            and self.begin_minute * _MINUTE_MS <= since_ms < self.end_minute * _MINUTE_MS
        )

    def next_edge_ms(self, now_ms: int) -> int:
        """A moment after now before which `holds` does not change."""
        midnight_ms = now_ms - now_ms % _DAY_MS
        edges = [self.begin_ms, self.end_ms]
        if len(self.days) < len(DAYS) or self.end_minute - self.begin_minute < 24 * 60:
            minutes = (self.begin_minute, self.end_minute, 24 * 60)
            edges += [midnight_ms + minute * _MINUTE_MS for minute in minutes]
        return min((edge for edge in edges if edge > now_ms), default=FOREVER_MS)


def parse_window(document: WindowDocument) -> Window:
    """Read a window.

    Raises:
        ValueError: A part is malformed, or it can never be open; says which.
    """
    begin_ms = _moment_ms("not_before", document.not_before, 0)
    end_ms = _moment_ms("not_after", document.not_after, FOREVER_MS)
    if end_ms <= begin_ms:
        raise ValueError("not_after: it is not after not_before, so this is never true")
    for day in document.days:
        if day not in DAYS:
            raise ValueError(f"days: {day!r} is none of {', '.join(DAYS)}")
    days = frozenset(map(DAYS.index, document.days)) or frozenset(range(len(DAYS)))
    return Window(begin_ms, end_ms, days, *_minutes(document.hours))


def _moment_ms(name: str, text: str, otherwise: int) -> int:
    if not text:
        return otherwise
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{name}: {text!r} is not a time such as 2030-01-31T18:00:00Z") from None
    if moment.tzinfo is None:
        raise ValueError(f"{name}: {text!r} has no offset; write {text}Z for UTC")
    try:
        milliseconds = int(moment.astimezone(UTC).timestamp() * 1000)
    except OverflowError:
        raise ValueError(f"{name}: {text!r} is out of range") from None
    if milliseconds < 0:
        raise ValueError(f"{name}: {text!r} is before 1970")
    return milliseconds


def _minutes(text: str) -> tuple[int, int]:
    if not text:
        return 0, 24 * 60
    found = _HOURS.fullmatch(text)
    if found is None:
        raise ValueError(f"hours: {text!r} is not HH:MM-HH:MM")
    hours = [int(part) for part in found.groups()]
    begin, end = hours[0] * 60 + hours[1], hours[2] * 60 + hours[3]
    if not begin < end <= 24 * 60:
        raise ValueError(f"hours: {text!r} does not end on the day it begins; use two statements")
    return begin, end
