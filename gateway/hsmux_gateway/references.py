"""References: what joins an answer, its audit record and its log line.

A reference is a random part of the process and a counter, so that it is unique without asking
anybody and cheap enough for every request.
"""

import itertools
import secrets
from collections.abc import Callable

__all__ = ["reference_source"]


def reference_source() -> Callable[[], str]:
    """A function that returns a new reference at each call, such as `r5f3a91c07b2e-1`."""
    process = secrets.token_hex(6)
    numbers = itertools.count(1)
    return lambda: f"r{process}-{next(numbers):x}"
