"""The operations on policies and network rules."""

import ipaddress
from collections.abc import Iterable
from typing import Any, Final, TypeVar

import msgspec

from hsmux_protocol.context import parse_context
from hsmux_protocol.errors import Conflict, InvalidArgument, NotFound
from hsmux_protocol.operations import OPERATIONS, PERMISSIONS
from hsmux_protocol.records import NetworkRuleRecord, PolicyRecord
from hsmux_protocol.references import KeyReference

from ..call import Call
from ..catalog import Catalog, next_page
from ..clock import now_ms
from ..effects import Effects
from ..store.rows import AccessPointRow, NetworkRuleRow, PolicyRow
from ..store.transaction import Reader, Transaction
from ..strict import nearest
from .decision import CallFacts, decide, missing
from .identities import NAMING
from .networks import parse_networks
from .policy import (
    RESOURCED,
    WITH_CONTEXT,
    WITH_SIZE,
    PolicyError,
    format_policy,
    network_rules_of,
    parse_policy,
)
from .rules import AccessRules, lines_of, read_policy
from .safeguards import Safeguards
from .windows import FOREVER_MS

__all__ = ["PolicyService", "require_network_rules", "require_policies"]

Named = TypeVar("Named", PolicyRow, NetworkRuleRow)

LISTED_NETWORKS_MAX: Final = 2048
"""Networks of one page of network rules: an answer has at most 4,096 values."""

LACKING_MAX: Final = 64
"""Statements of which it is told what they want."""

UNSPECIFIED: Final = "::"
"""The address of nobody (RFC 4291 section 2.5.2)."""

NAMED_MAX: Final = 5
"""How many users of a thing are named when it cannot be deleted."""


class PolicyService:
    """Handlers of the operations on policies and network rules.

    Args:
        catalog: Finds them.
        rules: Knows who has them.
        effects: Stores changes.
        safeguards: Looks at changes before they are committed.
    """

    def __init__(
        self, catalog: Catalog, rules: AccessRules, effects: Effects, safeguards: Safeguards
    ) -> None:
        self._catalog = catalog
        self._rules = rules
        self._effects = effects
        self._safeguards = safeguards

    # Policies

    async def put_policy(self, call: Call, name: str, document: str) -> list[Any]:
        """A new policy, or another document for one that is there."""
        try:
            policy = parse_policy(document)
        except PolicyError as error:
            raise InvalidArgument(f"document: {error}") from None
        row = PolicyRow(name, format_policy(policy), now_ms())

        def effect(transaction: Transaction) -> list[Any]:
            self._safeguards.refuse_own_policy(transaction, call, name)
            require_network_rules(transaction, sorted(network_rules_of(policy)))
            found = transaction.get(PolicyRow, name)
            stored = _put(transaction, found, row)
            self._safeguards.keep_administrator(transaction, call)
            return [self._policy_record(stored)]

        return await self._effects.apply(call, effect)

    async def show_policy(self, call: Call, name: str) -> list[Any]:
        """One policy with its document."""
        row = self._policy(name)
        return [self._policy_record(row), row.document]

    async def list_policies(self, call: Call, page: bytes, limit: int) -> list[Any]:
        """A page of policies, without their documents."""
        found = self._catalog.policy_order.after(page, limit)
        records = [self._policy_record(self._catalog.policies[name.decode()]) for name in found]
        return [records, next_page(found, limit)]

    async def delete_policy(self, call: Call, name: str) -> list[Any]:
        """Remove a policy that no access point has."""
        row = self._policy(name)

        def effect(transaction: Transaction) -> list[Any]:
            stored = transaction.get(PolicyRow, name)
            if stored is None or not stored.document:
                raise _no_policy(name)
            _refuse_used(f"policy {name}", _owners(transaction, name))
            gone = msgspec.structs.replace(stored, document="", updated_at_ms=now_ms())
            transaction.update(gone)
            return [self._policy_record(row)]

        return await self._effects.apply(call, effect)

    def _policy(self, name: str) -> PolicyRow:
        row = self._catalog.policies.get(name)
        if row is None:
            raise _no_policy(name)
        return row

    def _policy_record(self, row: PolicyRow) -> PolicyRecord:
        policy = read_policy(row.document)
        return PolicyRecord(
            row.name,
            policy.description,
            len(policy.statements),
            self._rules.count_users(row.name),
            row.updated_at_ms,
        )

    async def test_policy(
        self,
        call: Call,
        access_point: str,
        operation: str,
        resource: KeyReference | None,
        context: bytes,
        address: str | None,
        size: int,
    ) -> list[Any]:
        """What would be decided of a request of an access point that connects with a good key."""
        row = self._catalog.find_access_point(access_point)
        permission = _permission(operation)
        named = None
        if resource is not None and permission in RESOURCED:
            named = self._catalog.resource_of(resource)
        gives_names = permission == "create_key" and named and self._rules.speaks_of(named)
        facts = CallFacts(
            row.state == "Enabled",
            True,
            FOREVER_MS,
            now_ms(),
            permission,
            named,
            NAMING if gives_names else (),
            grants=self._rules.grants_of(row.access_point_id),
            is_inside=self._rules.comes_from_inside(row.access_point_id, _address(address)),
            peer_address=_address(address),
            contexts=(parse_context(context),) if permission in WITH_CONTEXT else (),
            size=size if permission in WITH_SIZE else 0,
        )
        decision = decide(facts)
        lacking = [] if decision.allowed else missing(facts)[:LACKING_MAX]
        return [decision.allowed, decision.statement, lacking]

    # Network rules

    async def put_network_rule(self, call: Call, name: str, networks: list[str]) -> list[Any]:
        """A new network rule, or other networks for one that is there."""
        try:
            texts = parse_networks(networks)
        except ValueError as error:
            raise InvalidArgument(f"networks: {error}") from None
        row = NetworkRuleRow(name, "\n".join(texts), now_ms())

        def effect(transaction: Transaction) -> list[Any]:
            self._safeguards.refuse_own_network_rule(transaction, call, name)
            stored = _put(transaction, transaction.get(NetworkRuleRow, name), row)
            self._safeguards.keep_administrator(transaction, call)
            return [_network_rule_record(stored)]

        return await self._effects.apply(call, effect)

    async def show_network_rule(self, call: Call, name: str) -> list[Any]:
        """One network rule."""
        row = self._catalog.network_rules.get(name)
        if row is None:
            raise _no_network_rule(name)
        return [_network_rule_record(row)]

    async def list_network_rules(self, call: Call, page: bytes, limit: int) -> list[Any]:
        """A page of network rules, shorter where they have many networks."""
        records: list[NetworkRuleRecord] = []
        left = LISTED_NETWORKS_MAX
        names = self._catalog.network_rule_order.after(page, limit)
        for name in names:
            record = _network_rule_record(self._catalog.network_rules[name.decode()])
            left -= len(record.networks)
            if records and left < 0:
                break
            records.append(record)
        is_more = len(records) < len(names) or len(names) == limit
        return [records, names[len(records) - 1] if is_more and records else b""]

    async def delete_network_rule(self, call: Call, name: str) -> list[Any]:
        """Remove a network rule that nothing requires."""

        def effect(transaction: Transaction) -> list[Any]:
            stored = transaction.get(NetworkRuleRow, name)
            if stored is None or not stored.networks:
                raise _no_network_rule(name)
            _refuse_used(f"network rule {name}", _dependents(transaction, name))
            gone = msgspec.structs.replace(stored, networks="", updated_at_ms=now_ms())
            transaction.update(gone)
            return [_network_rule_record(stored)]

        return await self._effects.apply(call, effect)


def _permission(operation: str) -> str:
    """The permission an operation needs, by the name of either."""
    if operation in PERMISSIONS:
        return operation
    if operation in OPERATIONS:
        return OPERATIONS[operation].permission
    raise InvalidArgument(f"operation: unknown: {nearest(operation, PERMISSIONS)}")


def _address(text: str | None) -> str:
    """An address to test with; without one, an address that is in no network that has a name.

    Raises:
        InvalidArgument: It is no IP address.
    """
    try:
        return str(ipaddress.ip_address(text or UNSPECIFIED))
    except ValueError:
        raise InvalidArgument(f"address: {text!r} is no IP address") from None


def _no_policy(name: str) -> NotFound:
    """What is said where a policy is not there."""
    return NotFound(f"there is no policy {name}")


def _no_network_rule(name: str) -> NotFound:
    """What is said where a network rule is not there."""
    return NotFound(f"there is no network rule {name}")


def _put(transaction: Transaction, found: Named | None, row: Named) -> Named:
    """Write a row under a name that may be new, there, or of one that is gone."""
    if found is None:
        return transaction.insert(row)
    return transaction.update(msgspec.structs.replace(row, row_revision=found.row_revision))


def require_policies(reader: Reader, names: Iterable[str]) -> None:
    """Refuse policies that are not there.

    Raises:
        NotFound: One is not.
    """
    for name in names:
        row = reader.get(PolicyRow, name)
        if row is None or not row.document:
            raise _no_policy(name)


def require_network_rules(reader: Reader, names: Iterable[str]) -> None:
    """Refuse network rules that are not there.

    Raises:
        NotFound: One is not.
    """
    for name in names:
        row = reader.get(NetworkRuleRow, name)
        if row is None or not row.networks:
            raise _no_network_rule(name)


def _owners(reader: Reader, name: str) -> list[str]:
    """What has a policy."""
    points = reader.select(AccessPointRow)
    return [f"access point {point.name}" for point in points if name in lines_of(point.policies)]


def _dependents(reader: Reader, name: str) -> list[str]:
    """What requires a network rule."""
    points, policies = reader.select(AccessPointRow), reader.select(PolicyRow)
    found = [f"access point {p.name}" for p in points if name in lines_of(p.network_rules)]
    found += [
        f"policy {policy.name}"
        for policy in policies
        if policy.document and name in network_rules_of(read_policy(policy.document))
    ]
    return found


def _refuse_used(what: str, users: list[str]) -> None:
    if users:
        more = f" and {len(users) - NAMED_MAX} more" if len(users) > NAMED_MAX else ""
        raise Conflict(f"{what} is needed by {', '.join(users[:NAMED_MAX])}{more}")


def _network_rule_record(row: NetworkRuleRow) -> NetworkRuleRecord:
    return NetworkRuleRecord(row.name, lines_of(row.networks), row.updated_at_ms)
