"""What the policies of all access points say, compiled from the catalogue's rows.

Grants are compiled when an access point first asks and dropped when something they were made of
changes. Which names any policy speaks of is kept up to date policy by policy: giving a key such a
name changes what policies grant, so it needs more than the right to manage keys.
"""

from collections import Counter
from typing import Final

import msgspec

from ..catalog import Catalog
from ..store.rows import PolicyRow
from ..store.store import Changes
from .grants import NO_GRANTS, Grants, compile_grants
from .networks import Networks
from .patterns import Index, Pattern, Resource, parse_pattern
from .policy import Policy, network_rules_of

__all__ = ["NOWHERE", "AccessRules", "lines_of", "read_policy"]

NOWHERE: Final = Networks(())
"""Stands for a network rule that is gone: nobody is inside."""

_DECODER: Final = msgspec.json.Decoder(Policy)


def read_policy(document: str) -> Policy:
    """A stored document, which was checked when it was put."""
    return _DECODER.decode(document)


def lines_of(text: str) -> list[str]:
    """The names of a column that holds a line each."""
    return text.split("\n") if text else []


def _patterns_of(document: str) -> set[Pattern]:
    """The patterns of a document that name something."""
    texts = {text for statement in read_policy(document).statements for text in statement.resources}
    return {pattern for pattern in map(parse_pattern, texts) if pattern.kind != "everything"}


class AccessRules:
    """Compiled policies and network rules.

    Args:
        catalog: Has the rows; tells of changes.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._policies: dict[str, Policy] = {}
        self._networks: dict[str, Networks] = {}
        self._grants: dict[bytes, Grants] = {}
        self._own_networks: dict[bytes, tuple[Networks, ...]] = {}
        self._patterns: dict[str, set[Pattern]] = {}
        self._policies_of: dict[bytes, list[str]] = {}
        self._required: dict[bytes, set[str]] = {}
        self._users: Counter[str] = Counter()
        self._named: Index | None = None
        catalog.on_rule_change(self._changed)

    def __repr__(self) -> str:
        return f"AccessRules({len(self._grants)} grants compiled)"

    def grants_of(self, access_point_id: bytes) -> Grants:
        """What the policies of an access point say; the same value until they change."""
        grants = self._grants.get(access_point_id)
        if grants is None:
            row = self._catalog.access_points.get(access_point_id)
            names = lines_of(row.policies) if row is not None else []
            policies = {name: p for name in names if (p := self._policy(name)) is not None}
            required = set[str]().union(*map(network_rules_of, policies.values()))
            grants = compile_grants(names, policies, self._all_networks()) if names else NO_GRANTS
            self._required[access_point_id] = required
            self._grants[access_point_id] = grants
        return grants

    def comes_from_inside(self, access_point_id: bytes, address: str) -> bool:
        """Whether an address is where the access point's own network rules want it."""
        found = self._own_networks.get(access_point_id)
        if found is None:
            row = self._catalog.access_points[access_point_id]
            every = self._all_networks()
            # A rule that is gone lets nobody in.
            found = tuple(every.get(name, NOWHERE) for name in lines_of(row.network_rules))
            self._own_networks[access_point_id] = found
        return not found or any(networks.contain(address) for networks in found)

    def speaks_of(self, resource: Resource) -> bool:
        """Whether any policy names a resource by something else than `*`."""
        if self._named is None:
            every = set[Pattern]().union(*self._patterns.values())
            self._named = Index((pattern, 0) for pattern in every)
        return bool(self._named.find(resource))

    def count_users(self, policy: str) -> int:
        """How many access points have a policy."""
        return self._users[policy]

    def _policy(self, name: str) -> Policy | None:
        policy = self._policies.get(name)
        row = self._catalog.policies.get(name)
        if policy is None and row is not None:
            policy = self._policies[name] = read_policy(row.document)
        return policy

    def _all_networks(self) -> dict[str, Networks]:
        for name, row in self._catalog.network_rules.items():
            if name not in self._networks:
                self._networks[name] = Networks(lines_of(row.networks))
        return self._networks

    def _changed(self, changes: Changes) -> None:
        for policy in changes.policies:
            self._policies.pop(policy.name, None)
            self._note_patterns(policy)
        for rule in changes.network_rules:
            self._networks.pop(rule.name, None)
        policies = {row.name for row in changes.policies}
        rules = {row.name for row in changes.network_rules}
        for access_point_id in list(self._grants):
            if not policies.isdisjoint(self._policies_of.get(access_point_id, ())) or (
                rules and not rules.isdisjoint(self._required.get(access_point_id, ()))
            ):
                del self._grants[access_point_id]
        if rules:
            self._own_networks.clear()
        for row in changes.access_points:
            self._grants.pop(row.access_point_id, None)
            self._own_networks.pop(row.access_point_id, None)
            self._users.subtract(self._policies_of.get(row.access_point_id, ()))
            self._policies_of[row.access_point_id] = lines_of(row.policies)
            self._users.update(self._policies_of[row.access_point_id])

    def _note_patterns(self, row: PolicyRow) -> None:
        found = _patterns_of(row.document) if row.document else set()
        if found != self._patterns.get(row.name, set()):
            self._patterns[row.name] = found
            self._named = None
