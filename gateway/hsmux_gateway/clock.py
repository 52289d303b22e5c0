"""The wall clock as the gateway reckons with it."""

import time

__all__ = ["now_ms"]


def now_ms() -> int:
    """The time, milliseconds since 1970 UTC."""
    return time.time_ns() // 1_000_000
