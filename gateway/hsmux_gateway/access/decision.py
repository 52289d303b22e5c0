"""The decision: may this be done? A pure function of facts; the engine asks it once a request.

This stage has one rule: an enabled client key of an enabled access point may do everything.
Everything that is not allowed by a rule is denied. A decision says what it depends on and until
when it holds, so that whoever keeps one knows when to ask again.
"""

from typing import Final, NamedTuple

from hsmux_protocol.operations import OPERATIONS

__all__ = ["CallFacts", "Decision", "decide"]

PERMISSIONS: Final = frozenset(operation.permission for operation in OPERATIONS.values())


class CallFacts(NamedTuple):
    """What a decision may look at.

    Attributes:
        access_point_enabled: The access point's state is `Enabled`.
        client_key_enabled: The client key's state is `Enabled`.
        valid_until_ms: End of the client key's certificate, milliseconds since 1970 UTC.
        now_ms: The time of the decision.
        permission: What the operation needs.
    """

    access_point_enabled: bool
    client_key_enabled: bool
    valid_until_ms: int
    now_ms: int
    permission: str


class Decision(NamedTuple):
    """Whether a call is allowed.

    Attributes:
        allowed: The effect.
        statement: Which rule decided, for the record.
        depends_on: Which kinds of facts it depends on.
        valid_until_ms: Until when it holds if those do not change.
    """

    allowed: bool
    statement: str
    depends_on: frozenset[str]
    valid_until_ms: int


_IDENTITY: Final = frozenset({"access_point", "client_key"})


def decide(facts: CallFacts) -> Decision:
    """Decide one call; deny by default.

    Args:
        facts: Everything the decision may depend on.
    """
    statement = "default: deny"
    allowed = False
    if not facts.access_point_enabled:
        statement = "deny: the access point is not enabled"
    elif not facts.client_key_enabled:
        statement = "deny: the client key is not enabled"
    elif facts.now_ms >= facts.valid_until_ms:
        statement = "deny: the client key has expired"
    elif facts.permission in PERMISSIONS:
        statement, allowed = "allow: an enabled client key may do everything", True
    return Decision(allowed, statement, _IDENTITY, facts.valid_until_ms)
