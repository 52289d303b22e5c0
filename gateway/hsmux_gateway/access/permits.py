"""From a decision to what the caller is told, and whether it still holds when a change is made.

A change is decided on when its request is taken, and again when it goes to the store. In the
transaction the rows that decision rests on must be no newer than what it was made from: if they
are, nothing is changed and the caller may try again, to be decided on by what is true now. So no
change of somebody who lost a right follows the answer to the change that took it.
"""

from collections.abc import Callable
from typing import Final

from hsmux_protocol.errors import Busy, Denied, Unauthenticated

from ..call import Call, Principal
from ..store.rows import (
    AccessPointRow,
    ClientKeyRow,
    MtlsBindingRow,
    NetworkRuleRow,
    PolicyRow,
    Row,
)
from ..store.transaction import Reader
from .asked import name_of
from .decision import CallFacts, Decision, decide_again
from .identities import Identities
from .policy import network_rules_of
from .rules import lines_of, read_policy

__all__ = ["WHY", "Permits", "refuse_denied", "refuse_stranger"]

WHY: Final = "`hsmux policy explain` tells an administrator why"
"""What a refusal says to do; the reference that it takes is in the answer."""

RETRY_AFTER_MS: Final = 100
"""What a caller is told to wait whose access was changed just now."""


def refuse_stranger(facts: CallFacts) -> None:
    """Refuse a caller that is not accepted any more.

    Raises:
        Unauthenticated: It is not.
    """
    if not (facts.access_point_enabled and facts.client_key_enabled):
        raise Unauthenticated("this client key is not accepted any more")
    if facts.now_ms >= facts.valid_until_ms:
        raise Unauthenticated("this client key has expired; issue a new one")


def refuse_denied(call: Call, decision: Decision) -> None:
    """Refuse what no policy allows, in words that tell the caller nothing it did not send.

    Raises:
        Denied: It is not allowed.
    """
    if not decision.allowed:
        what = f"{call.operation.name} {name_of(call)}".rstrip()
        raise Denied(f"access point {call.principal.access_point} may not {what}; {WHY}")


class Permits:
    """Whether calls are allowed still.

    Args:
        identities: Tells what a decision may look at.
    """

    def __init__(self, identities: Identities) -> None:
        self._identities = identities

    def require(self, call: Call, decided: Callable[[str], None]) -> None:
        """Decide once more, from memory.

        Args:
            call: What was decided on before.
            decided: Is told by what it is decided now.

        Raises:
            Unauthenticated, Denied: It is not allowed any more.
            Unavailable: What is in memory is too old to decide on.
        """
        facts = self._identities.facts(call)
        decision = decide_again(facts)
        decided(decision.statement)
        refuse_stranger(facts)
        refuse_denied(call, decision)

    def require_unchanged(self, reader: Reader, call: Call, since: int) -> None:
        """Refuse a call whose decision rests on rows that changed.

        Args:
            reader: Of the transaction that makes the change.
            call: Decided on.
            since: The revision of what it was decided from.

        Raises:
            Busy: They did; it may be tried again.
        """
        if any(row is None or row.row_revision > since for row in _rows(reader, call)):
            raise Busy("access was changed just now", retry_after_ms=RETRY_AFTER_MS)


def _proofs(reader: Reader, principal: Principal) -> list[Row | None]:
    """What makes a principal of what it proved."""
    if principal.outside is None:
        return [reader.get(ClientKeyRow, principal.client_key_id)]
    # Not only what it is known by: another access point may be by now.
    bindings = (reader.get(MtlsBindingRow, name) for name in principal.outside.names)
    return [row for row in bindings if row is not None]


def _rows(reader: Reader, call: Call) -> list[Row | None]:
    """What the decision about a call rests on, beside the clock."""
    principal = call.principal
    point = reader.get(AccessPointRow, principal.access_point_id)
    found: list[Row | None] = [point, *_proofs(reader, principal)]
    if point is None:
        return found
    policies = [reader.get(PolicyRow, name) for name in lines_of(point.policies)]
    rules = set(lines_of(point.network_rules))
    for policy in policies:
        if policy is not None and policy.document:
            rules |= network_rules_of(read_policy(policy.document))
    return [*found, *policies, *(reader.get(NetworkRuleRow, name) for name in sorted(rules))]
