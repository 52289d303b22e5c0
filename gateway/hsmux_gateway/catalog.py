"""The catalogue: every row a request needs, in memory, as of one store revision.

Requests never read the store. A task polls the store's revision; when it moved, the rows that
changed since are read and applied here in one step, and the listeners are told which keys changed
so that they drop what they derived from them. Rows are immutable, so whoever holds one keeps a
consistent view of it.

The catalogue is stale when the store could not be asked for longer than the configured time; then
decisions no longer hold and calls are refused until it answers again.
"""

import bisect
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from hsmux_protocol.errors import NotFound, WrongState
from hsmux_protocol.references import KeyReference, format_key_id

from .store.rows import (
    AccessPointRow,
    AliasRow,
    ClientKeyRow,
    GatewayKeyRow,
    KeyRow,
    KeyVersionRow,
)
from .store.store import Changes

__all__ = ["Catalog", "Ordered"]

USABLE_STATES: Final = frozenset({"Enabled"})
"""Key states in which cryptographic operations are allowed."""

DERIVED_MAX: Final = 4096
"""Keys of which something derived is kept."""


class Ordered:
    """Identifiers in ascending order, for pages that stay stable while more are added."""

    def __init__(self) -> None:
        self._identifiers: list[bytes] = []

    def add(self, identifier: bytes) -> None:
        """Add one; an identifier that is there already changes nothing."""
        index = bisect.bisect_left(self._identifiers, identifier)
        if index == len(self._identifiers) or self._identifiers[index] != identifier:
            self._identifiers.insert(index, identifier)

    def after(self, identifier: bytes, limit: int) -> list[bytes]:
        """At most `limit` identifiers that come after one; an empty one begins the first page."""
        start = bisect.bisect_right(self._identifiers, identifier) if identifier else 0
        return self._identifiers[start : start + limit]

    def __len__(self) -> int:
        return len(self._identifiers)


class Catalog:
    """What is known of keys, access points and client keys.

    Attributes:
        revision: The store revision of everything here.
        asked_at: When the store was asked that last told that this is current, in seconds of
            `time.monotonic()`.
    """

    def __init__(self) -> None:
        self.revision = 0
        self.asked_at = 0.0
        self.keys: dict[bytes, KeyRow] = {}
        self.key_order = Ordered()
        self.versions: dict[bytes, dict[int, KeyVersionRow]] = {}
        self.aliases: dict[str, bytes] = {}
        self._aliases_of: dict[bytes, set[str]] = {}
        self.access_points: dict[bytes, AccessPointRow] = {}
        self.access_point_names: dict[str, bytes] = {}
        self.access_point_order = Ordered()
        self.client_keys: dict[bytes, ClientKeyRow] = {}
        self.client_key_order = Ordered()
        self.client_keys_by_spki: dict[bytes, bytes] = {}
        self.gateway_keys: dict[str, GatewayKeyRow] = {}
        self._derived: dict[bytes, dict[int | None, Any]] = {}
        self._key_listeners: list[Callable[[bytes], None]] = []
        self._identity_listeners: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return (
            f"Catalog({len(self.keys)} keys, {len(self.access_points)} access points, "
            f"{len(self.client_keys)} client keys, revision {self.revision})"
        )

    def on_key_change(self, listener: Callable[[bytes], None]) -> None:
        """Call `listener` with the id of every key that changed."""
        self._key_listeners.append(listener)

    def on_identity_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` when an access point or client key changed."""
        self._identity_listeners.append(listener)

    def apply(self, changes: Changes) -> None:
        """Take over rows that changed; older ones than those here are left out."""
        tables: tuple[tuple[Iterable[Any], Callable[[Any], None]], ...] = (
            (changes.gateway_keys, self._apply_gateway_key),
            (changes.keys, self._apply_key),
            (changes.key_versions, self._apply_version),
            (changes.aliases, self._apply_alias),
            (changes.access_points, self._apply_access_point),
            (changes.client_keys, self._apply_client_key),
        )
        for rows, apply in tables:
            for row in rows:
                apply(row)
        self.revision = max(self.revision, changes.revision)
        changed = {row.key_id for row in changes.keys}
        changed |= {version.key_id for version in changes.key_versions}
        for key_id in changed:
            self._derived.pop(key_id, None)
            for listener in self._key_listeners:
                listener(key_id)
        if changes.access_points or changes.client_keys:
            for notify in self._identity_listeners:
                notify()

    def confirm(self, asked_at: float) -> None:
        """The store has told that this is what it held when it was asked."""
        self.asked_at = asked_at

    def stale_for_s(self) -> float:
        """Seconds since this was known to be current."""
        return time.monotonic() - self.asked_at

    def _apply_gateway_key(self, row: GatewayKeyRow) -> None:
        self.gateway_keys[row.name] = row

    def _apply_key(self, row: KeyRow) -> None:
        self.keys[row.key_id] = row
        self.key_order.add(row.key_id)

    def _apply_version(self, row: KeyVersionRow) -> None:
        self.versions.setdefault(row.key_id, {})[row.version] = row

    def _apply_alias(self, row: AliasRow) -> None:
        before = self.aliases.pop(row.name, None)
        if before is not None:
            self._aliases_of[before].discard(row.name)
        if row.key_id is not None:
            self.aliases[row.name] = row.key_id
            self._aliases_of.setdefault(row.key_id, set()).add(row.name)

    def _apply_access_point(self, row: AccessPointRow) -> None:
        self.access_points[row.access_point_id] = row
        self.access_point_names[row.name] = row.access_point_id
        self.access_point_order.add(row.access_point_id)

    def _apply_client_key(self, row: ClientKeyRow) -> None:
        self.client_keys[row.client_key_id] = row
        self.client_keys_by_spki[row.spki_sha256] = row.client_key_id
        self.client_key_order.add(row.client_key_id)

    def aliases_of(self, key_id: bytes) -> list[str]:
        """The aliases of a key, ascending."""
        return sorted(self._aliases_of.get(key_id, ()))

    def derived_of(self, key_id: bytes) -> dict[int | None, Any]:
        """What users of a key have made of its versions, by number; gone when the key changes."""
        derived = self._derived.get(key_id)
        if derived is None:
            if len(self._derived) >= DERIVED_MAX:
                self._derived.clear()
            derived = self._derived[key_id] = {}
        return derived

    def find_key(self, reference: KeyReference) -> KeyRow:
        """The key a reference names.

        Raises:
            NotFound: There is none.
        """
        key_id = reference.key_id
        if reference.alias is not None:
            key_id = self.aliases.get(reference.alias)
            if key_id is None:
                raise NotFound(f"there is no alias/{reference.alias}")
        row = self.keys.get(key_id) if key_id else None
        if row is None:
            raise NotFound(f"there is no {format_key_id(key_id or bytes(16))}")
        return row

    def usable_version(self, row: KeyRow, number: int | None) -> KeyVersionRow:
        """A version of a key for cryptographic use; None means the newest.

        Raises:
            WrongState: The key's or version's state does not allow that.
            NotFound: There is no such version.
        """
        if row.state not in USABLE_STATES:
            raise WrongState(f"{format_key_id(row.key_id)} is {row.state}; it must be Enabled")
        wanted = row.current_version if number is None else number
        version = self.versions.get(row.key_id, {}).get(wanted)
        if version is None:
            raise NotFound(f"{format_key_id(row.key_id)} has no version {wanted}")
        if version.state not in USABLE_STATES:
            raise WrongState(f"version {wanted} is {version.state}; it must be Enabled")
        return version
