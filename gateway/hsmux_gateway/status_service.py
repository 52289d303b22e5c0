"""`show_status`: what the gateway is and how it fares."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import hsmux_native
from hsmux_protocol import __version__
from hsmux_protocol.records import ExpiryRecord, TokenRecord

from .call import Call
from .catalog import Catalog
from .hsm.token import Token, TokenStatistics

__all__ = ["StatusService", "token_condition", "token_record"]

WARNINGS_MAX: Final = 32
"""Warnings of one answer, the first of them; a log tells all."""


CONDITIONS: Final = {"open": "down", "half-open": "recovering", "refused": "pin-refused"}
"""What a token's breaker says, for people who do not think of circuits."""


class StatusService:
    """The handler of `show_status`.

    Args:
        catalog: Tells the store's revision.
        tokens: By configured name.
        deployment: 16 bytes.
        root: Where the root key is, for people.
        store: Which store it is, for people.
        warnings: What an operator should mend, now.
        expiry: What ends, and when.
        anchor_age_s: Seconds since the store's anchor was written, or None.
    """

    def __init__(
        self,
        catalog: Catalog,
        tokens: Mapping[str, Token],
        deployment: bytes,
        root: str,
        store: str,
        warnings: Callable[[], list[str]],
        expiry: Callable[[], ExpiryRecord],
        anchor_age_s: Callable[[], int | None],
    ) -> None:
        self._catalog = catalog
        self._tokens = tokens
        self._deployment = deployment
        self._root = root
        self._store = store
        self._warnings = warnings
        self._expiry = expiry
        self._anchor_age_s = anchor_age_s
        self._started = time.monotonic()

    async def show_status(self, call: Call) -> list[Any]:
        """Everything in one answer."""
        return [
            __version__,
            self._deployment,
            int(time.monotonic() - self._started),
            hsmux_native.backend(),
            self._root,
            self._store,
            self._catalog.revision,
            self._expiry(),
            self._anchor_age_s(),
            self._warnings()[:WARNINGS_MAX],
            [token_record(token) for token in self._tokens.values()],
        ]


def token_condition(statistics: TokenStatistics) -> str:
    """Whether a token can be used: "up", "down", "recovering" or "pin-refused"."""
    without_breaker = "up" if statistics.workers else "recovering"
    return CONDITIONS.get(statistics.breaker, without_breaker)


def token_record(token: Token) -> TokenRecord:
    """A token as answers show it."""
    statistics = token.statistics()
    return TokenRecord(
        statistics.name,
        token_condition(statistics),
        statistics.workers,
        statistics.busy,
        statistics.waiting,
        statistics.restarts,
    )
