"""How many workers a token has sessions for, and whether each may have two."""

from typing import Final

__all__ = ["RESERVE", "plan_sessions"]

RESERVE: Final = 2
"""Sessions left to others: a vendor's tool, a worker that is ending while the next one starts."""


def plan_sessions(workers: int, sessions_max: int) -> tuple[int, bool]:
    """Workers to keep, and whether each has a single session.

    With two sessions a worker replaces its work session alone after an error. With one it has to
    end, because closing the session that logged in logs it out.

    Args:
        workers: Wanted.
        sessions_max: What the token has; 0: no limit is known.
    """
    if not sessions_max or sessions_max >= 2 * workers + RESERVE:
        return workers, False
    return max(1, min(workers, sessions_max - RESERVE)), True
