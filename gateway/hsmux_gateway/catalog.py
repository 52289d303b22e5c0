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
from typing import Any, Final, TypeVar

from hsmux_protocol.errors import NotFound, WrongState
from hsmux_protocol.references import (
    ACCESS_POINT_PREFIX,
    KeyReference,
    format_key_id,
    parse_identifier,
)

from .access.patterns import Resource
from .store.rows import (
    AccessPointRow,
    AliasRow,
    ClientKeyRow,
    GatewayKeyRow,
    KeyRow,
    KeyVersionRow,
    MtlsBindingRow,
    NetworkRuleRow,
    PolicyRow,
)
from .store.store import Changes

__all__ = ["Catalog", "Ordered", "next_page"]

USABLE_STATES: Final = frozenset({"Enabled"})
"""Key states in which cryptographic operations are allowed."""

DERIVED_MAX: Final = 4096
"""Keys of which something derived is kept."""


def next_page(found: list[bytes], limit: int) -> bytes:
    """Where the page behind these identifiers begins; empty: there is none."""
    return found[-1] if len(found) == limit else b""


Named = TypeVar("Named", PolicyRow, NetworkRuleRow)


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

    def remove(self, identifier: bytes) -> None:
        """Take one out that may be there."""
        index = bisect.bisect_left(self._identifiers, identifier)
        if self._identifiers[index : index + 1] == [identifier]:
            del self._identifiers[index]

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
        self.client_keys_of: dict[bytes, set[bytes]] = {}
        self.mtls_bindings: dict[str, bytes] = {}
        self._mtls_of: dict[bytes, set[str]] = {}
        self.policies: dict[str, PolicyRow] = {}
        self.policy_order = Ordered()
        self.network_rules: dict[str, NetworkRuleRow] = {}
        self.network_rule_order = Ordered()
        self.gateway_keys: dict[str, GatewayKeyRow] = {}
        self._resources: dict[bytes, Resource] = {}
        self._derived: dict[bytes, dict[int | None, Any]] = {}
        self._key_listeners: list[Callable[[bytes], None]] = []
        self._identity_listeners: list[Callable[[], None]] = []
        self._rule_listeners: list[Callable[[Changes], None]] = []

    def __repr__(self) -> str:
        return (
            f"Catalog({len(self.keys)} keys, {len(self.access_points)} access points, "
            f"{len(self.client_keys)} client keys, revision {self.revision})"
        )

    def on_key_change(self, listener: Callable[[bytes], None]) -> None:
        """Call `listener` with the id of every key that changed."""
        self._key_listeners.append(listener)

    def on_identity_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` when an access point, client key or mTLS binding changed."""
        self._identity_listeners.append(listener)

    def on_rule_change(self, listener: Callable[[Changes], None]) -> None:
        """Call `listener` with changes of access points, policies or network rules."""
        self._rule_listeners.append(listener)

    def apply(self, changes: Changes) -> None:
        """Take over rows that changed; older ones than those here are left out."""
        tables: tuple[tuple[Iterable[Any], Callable[[Any], None]], ...] = (
            (changes.gateway_keys, self._apply_gateway_key),
            (changes.keys, self._apply_key),
            (changes.key_versions, self._apply_version),
            (changes.aliases, self._apply_alias),
            (changes.access_points, self._apply_access_point),
            (changes.client_keys, self._apply_client_key),
            (changes.policies, self._apply_policy),
            (changes.network_rules, self._apply_network_rule),
            (changes.mtls_bindings, self._apply_mtls_binding),
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
        if changes.access_points or changes.client_keys or changes.mtls_bindings:
            for notify in self._identity_listeners:
                notify()
        if changes.access_points or changes.policies or changes.network_rules:
            for tell in self._rule_listeners:
                tell(changes)

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
        self._resources.pop(row.key_id, None)

    def _apply_version(self, row: KeyVersionRow) -> None:
        self.versions.setdefault(row.key_id, {})[row.version] = row

    def _apply_alias(self, row: AliasRow) -> None:
        before = self.aliases.pop(row.name, None)
        if before is not None:
            self._aliases_of[before].discard(row.name)
            self._resources.pop(before, None)
        if row.key_id is not None:
            self._resources.pop(row.key_id, None)
            self.aliases[row.name] = row.key_id
            self._aliases_of.setdefault(row.key_id, set()).add(row.name)

    def _apply_access_point(self, row: AccessPointRow) -> None:
        self.access_points[row.access_point_id] = row
        self.access_point_names[row.name] = row.access_point_id
        self.access_point_order.add(row.access_point_id)

    def _apply_client_key(self, row: ClientKeyRow) -> None:
        self.client_keys[row.client_key_id] = row
        self.client_keys_by_spki[row.spki_sha256] = row.client_key_id
        self.client_keys_of.setdefault(row.access_point_id, set()).add(row.client_key_id)
        self.client_key_order.add(row.client_key_id)

    def _apply_policy(self, row: PolicyRow) -> None:
        _apply_named(self.policies, self.policy_order, row, is_there=bool(row.document))

    def _apply_network_rule(self, row: NetworkRuleRow) -> None:
        _apply_named(self.network_rules, self.network_rule_order, row, is_there=bool(row.networks))

    def _apply_mtls_binding(self, row: MtlsBindingRow) -> None:
        before = self.mtls_bindings.pop(row.name, None)
        if before is not None:
            self._mtls_of[before].discard(row.name)
        if row.access_point_id is not None:
            self.mtls_bindings[row.name] = row.access_point_id
            self._mtls_of.setdefault(row.access_point_id, set()).add(row.name)

    def mtls_of(self, access_point_id: bytes) -> list[str]:
        """By what an access point is known in certificates of other CAs, ascending."""
        return sorted(self._mtls_of.get(access_point_id, ()))

    def aliases_of(self, key_id: bytes) -> list[str]:
        """The aliases of a key, ascending."""
        return sorted(self._aliases_of.get(key_id, ()))

    def resource_of(self, reference: KeyReference) -> Resource:
        """What a policy may name a key by; the same value until something of the key changes.

        A key that is not there is named only as the caller named it.
        """
        key_id = reference.key_id
        if reference.alias is not None:
            key_id = self.aliases.get(reference.alias)
            if key_id is None:
                return Resource(None, (reference.alias,))
        row = self.keys.get(key_id or b"")
        if row is None:
            return Resource(key_id)
        found = self._resources.get(row.key_id)
        if found is None:
            aliases, tags = tuple(self.aliases_of(row.key_id)), tuple(row.tags.items())
            found = self._resources[row.key_id] = Resource(row.key_id, aliases, tags)
        return found

    def derived_of(self, key_id: bytes) -> dict[int | None, Any]:
        """What users of a key have made of its versions, by number; gone when the key changes."""
        derived = self._derived.get(key_id)
        if derived is None:
            if len(self._derived) >= DERIVED_MAX:
                self._derived.clear()
            derived = self._derived[key_id] = {}
        return derived

    def find_access_point(self, name: str) -> AccessPointRow:
        """An access point by name, or by `ap-<identifier>`, which no name looks like.

        Raises:
            NotFound: There is none, or it is deleted.
        """
        identifier = self.access_point_names.get(name)
        if identifier is None:
            try:
                identifier = parse_identifier(ACCESS_POINT_PREFIX, name)
            except ValueError:
                identifier = b""
        row = self.access_points.get(identifier)
        if row is None or row.state == "Deleted":
            raise NotFound(f"there is no access point {name!r}")
        return row

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


def _apply_named(rows: dict[str, Named], order: Ordered, row: Named, *, is_there: bool) -> None:
    """Take over a row whose name stays when it is gone."""
    if is_there:
        rows[row.name] = row
        order.add(row.name.encode())
    else:
        rows.pop(row.name, None)
        order.remove(row.name.encode())
