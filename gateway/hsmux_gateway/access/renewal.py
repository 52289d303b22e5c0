"""Whether a client key may be renewed, for how long, and which client keys will need it soon.

A renewal issues a certificate for a new key in the place of one that is still accepted. It grants
nothing: the new client key is of the same access point and is valid as long as the old one was. The
old one stays accepted until it ends or is revoked, so an application changes over when it likes.

Callers have it for their own client key without a grant, so it must not be a way to fill the store
or to keep the CA's key busy, not even for a client that renews in a loop:

* A client key that was renewed, or was itself made by a renewal, is not renewed again for
  `RENEWAL_INTERVAL_MS`, or for a third of its life where that is shorter.
* An access point has at most `CLIENT_KEYS_MAX` client keys that are accepted.
* What would not last longer is not issued: the CA ends as well.
* Of one client key a renewal is begun once in `ATTEMPT_INTERVAL_S`, also where nothing came of the
  one before: a caller can take it back when the CA has signed.

The first and the last give way to `force`, which needs a grant.
"""

import datetime
import math
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

from hsmux_protocol.errors import Busy, Conflict, WrongState
from hsmux_protocol.operations import CLIENT_KEYS_MAX, VALIDITY_DAYS_MAX

from ..catalog import Catalog
from ..store.rows import ClientKeyRow
from .authority import CLOCK_SKEW

__all__ = [
    "ATTEMPT_INTERVAL_S",
    "ENDING_DAYS",
    "RENEWAL_INTERVAL_MS",
    "Attempts",
    "Ends",
    "KeyEnds",
    "count_ends",
    "refuse_renewal",
    "renewed_validity",
    "require_room",
]

RENEWAL_INTERVAL_MS: Final = 3_600_000
"""Milliseconds after a renewal in which neither the old nor the new client key is renewed."""

ATTEMPT_INTERVAL_S: Final = 1.0
"""Seconds from one attempt to renew a client key to the next."""

ENDING_DAYS: Final = 30
"""Days before its end in which a client key that was not renewed is shown."""

_DAY_MS: Final = 86_400_000
_MINUTE_MS: Final = 60_000
_VALIDITY_MAX: Final = datetime.timedelta(days=VALIDITY_DAYS_MAX)


def _is_accepted(key: ClientKeyRow, at_ms: int) -> bool:
    return key.state == "Enabled" and at_ms < key.not_after_ms


def require_room(keys: Iterable[ClientKeyRow], at_ms: int) -> None:
    """Refuse one more client key for an access point that has too many.

    Args:
        keys: Those of the access point.
        at_ms: Now.

    Raises:
        Conflict: It has.
    """
    if sum(_is_accepted(key, at_ms) for key in keys) >= CLIENT_KEYS_MAX:
        raise Conflict(
            f"the access point has {CLIENT_KEYS_MAX} client keys that are accepted; revoke those "
            "that are not used any more"
        )


def refuse_renewal(
    key: ClientKeyRow, keys: Collection[ClientKeyRow], at_ms: int, *, force: bool
) -> None:
    """Refuse to renew a client key that may not be renewed now.

    Args:
        key: Which one.
        keys: Those of its access point.
        at_ms: Now.
        force: Whether it may follow closely on another renewal.

    Raises:
        WrongState: It is not accepted any more.
        Conflict: It was renewed just now, or there is no room.
    """
    if key.state != "Enabled":
        raise WrongState(f"this client key is {key.state}; create a new one")
    if at_ms >= key.not_after_ms:
        raise WrongState("this client key has ended; create a new one")
    renewals = [other for other in keys if other.renews == key.client_key_id]
    made = max((other.created_at_ms for other in (*renewals, key) if other.renews), default=None)
    wait_ms = min(RENEWAL_INTERVAL_MS, (key.not_after_ms - key.not_before_ms) // 3)
    if made is not None and at_ms < made + wait_ms and not force:
        left_s = (made + wait_ms - at_ms + 999) // 1000
        raise Conflict(
            f"this client key was renewed just now; use the new one, or ask again in {left_s} s"
        )
    require_room(keys, at_ms)


def renewed_validity(
    key: ClientKeyRow, ca_ends: datetime.datetime, now: datetime.datetime
) -> datetime.timedelta:
    """How long from now a renewed client key is valid: as long as it was, but no longer than a
    client key can be or than the CA is.

    Raises:
        Conflict: It would end no later than the old one.
    """
    life = datetime.timedelta(milliseconds=key.not_after_ms - key.not_before_ms)
    validity = min(life - CLOCK_SKEW, _VALIDITY_MAX, ca_ends - now)
    if (now + validity).timestamp() * 1000 <= key.not_after_ms:
        raise Conflict("renewed now, this client key would not last longer than it does")
    return validity


class Attempts:
    """When renewals were begun lately, whatever came of them; for any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # In the order of time.
        self._begun: OrderedDict[bytes, float] = OrderedDict()

    def begin(self, client_key_id: bytes, at_s: float) -> None:
        """Note that one is begun.

        Args:
            client_key_id: What is renewed.
            at_s: Now, on a clock that never goes back.

        Raises:
            Busy: One was begun just now.
        """
        with self._lock:
            while self._begun and at_s - next(iter(self._begun.values())) >= ATTEMPT_INTERVAL_S:
                self._begun.popitem(last=False)
            before_s = self._begun.setdefault(client_key_id, at_s)
        if before_s != at_s:
            left_s = before_s + ATTEMPT_INTERVAL_S - at_s
            raise Busy(
                "a renewal of this client key was begun just now",
                retry_after_ms=math.ceil(left_s * 1000),
            )


class Ends(NamedTuple):
    """Client keys of enabled access points that nobody has renewed, in numbers.

    Attributes:
        ending: Accepted ones that end within `ENDING_DAYS`.
        ended: Those that ended within the last `ENDING_DAYS`.
    """

    ending: int
    ended: int


def count_ends(keys: Collection[ClientKeyRow], at_ms: int) -> Ends:
    """How many client keys end soon, or ended lately, and have no successor.

    Args:
        keys: Enabled ones, of enabled access points.
        at_ms: Now.
    """
    soon_ms = ENDING_DAYS * _DAY_MS
    renewed = {key.renews for key in keys}
    left = [key.not_after_ms - at_ms for key in keys if key.client_key_id not in renewed]
    return Ends(
        sum(0 < left_ms <= soon_ms for left_ms in left),
        sum(-soon_ms < left_ms <= 0 for left_ms in left),
    )


class KeyEnds:
    """`count_ends` of a catalogue, counted at most once a minute while nothing changes.

    Args:
        catalog: Access points and client keys.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._counted: tuple[tuple[int, int], Ends] | None = None

    def at(self, at_ms: int) -> Ends:
        """The numbers at a time."""
        when = (self._catalog.revision, at_ms // _MINUTE_MS)
        if self._counted is None or self._counted[0] != when:
            points = self._catalog.access_points
            keys = [
                key
                for key in self._catalog.client_keys.values()
                if key.state == points[key.access_point_id].state == "Enabled"
            ]
            self._counted = (when, count_ends(keys, at_ms))
        return self._counted[1]
