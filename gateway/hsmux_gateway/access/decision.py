"""The decision: may this be done? A pure function of facts; the engine asks it for every request.

What no rule allows is denied; a rule that denies wins over all that allow. Before any rule, the
caller must still be who it was when the connection was made. What the operation table lets callers
have for what is their own needs no rule that allows it, and a rule can deny it.

A decision says which kinds of facts it depends on and until when it holds, so that whoever keeps
one knows when to ask again:

    identity    states of access point and client key, the end of its certificate
    policies    policies and network rules of the access point
    resource    aliases and tags of the key
    network     where the request came from
    context     the encryption context
    size        how large the data is
    time        the clock, beyond the certificate's end

Of a batch, an allowance must hold for every item and a denial for any.
"""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, TypeAlias

from .grants import NO_GRANTS, Grants, Rule
from .patterns import Resource

__all__ = [
    "DEFAULT_DENIAL",
    "OUTSIDE",
    "OWN",
    "CallFacts",
    "Decision",
    "decide",
    "decide_again",
    "missing",
    "unknown_because",
]

DEFAULT_DENIAL: Final = "no statement allows it"
OWN: Final = "it is its own"
OUTSIDE: Final = "the address is in no network rule of the access point"


class CallFacts(NamedTuple):
    """What a decision may look at.

    Attributes:
        access_point_enabled: The access point's state is `Enabled`.
        client_key_enabled: The client key's state is `Enabled`.
        valid_until_ms: End of the client key's certificate, milliseconds since 1970 UTC.
        now_ms: The time of the decision.
        permission: What the operation needs.
        resource: What it acts on; None: nothing that a policy can name.
        also: What it needs beside that, on no resource.
        grants: The access point's policies.
        is_inside: Whether the request came from where the access point's network rules want it.
        peer_address: Where the request came from, an IP address.
        contexts: The encryption contexts of all items, if a rule looks at them.
        size: Bytes of the largest item, if a rule looks at it.
        is_own: Whether it is about nothing but what the caller proved, and of an operation that
            lets callers have that.
    """

    access_point_enabled: bool
    client_key_enabled: bool
    valid_until_ms: int
    now_ms: int
    permission: str
    resource: Resource | None = None
    also: tuple[str, ...] = ()
    grants: Grants = NO_GRANTS
    is_inside: bool = True
    peer_address: str = ""
    contexts: tuple[Mapping[str, str], ...] = ()
    size: int = 0
    is_own: bool = False


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


_IDENTITY: Final = frozenset({"identity"})
_OUTSIDE: Final = frozenset({"identity", "policies", "network"})
_RULED: Final = frozenset({"identity", "policies", "resource"})

REMEMBERED_MAX: Final = 4096
"""Decisions that are remembered of one access point."""


WANTS_SIZE_MAX: Final = 1024
"""Bytes of what one statement wants: as many as its field takes."""


def decide(facts: CallFacts) -> Decision:
    """Decide one call; deny by default.

    Args:
        facts: Everything the decision may depend on.
    """
    stranger = unknown_because(facts)
    if stranger:
        return Decision(False, stranger, _IDENTITY, facts.valid_until_ms)
    if not facts.is_inside:
        return Decision(False, OUTSIDE, _OUTSIDE, facts.valid_until_ms)
    decision = _decide_one(facts)
    for permission in facts.also:
        if decision.allowed:
            further = _decide_one(
                facts._replace(permission=permission, resource=None, is_own=False)
            )
            decision = Decision(
                further.allowed,
                f"{decision.statement}; {permission}: {further.statement}",
                decision.depends_on | further.depends_on,
                min(decision.valid_until_ms, further.valid_until_ms),
            )
    return decision


def _decide_one(facts: CallFacts) -> Decision:
    """Whether the policies allow one permission on one resource."""
    depends_on, until_ms = _RULED, facts.valid_until_ms
    for rule in facts.grants.rules(facts.permission, facts.resource):
        if rule.needs:
            depends_on |= rule.needs
            if rule.window is not None:
                until_ms = min(until_ms, rule.window.next_edge_ms(facts.now_ms))
        if _holds(rule, facts):
            effect = "allowed by" if rule.is_allowing else "denied by"
            return Decision(rule.is_allowing, f"{effect} {rule.label}", depends_on, until_ms)
    return Decision(facts.is_own, OWN if facts.is_own else DEFAULT_DENIAL, depends_on, until_ms)


def decide_again(facts: CallFacts) -> Decision:
    """`decide`, remembered with the grants where only policies and resource were looked at."""
    if unknown_because(facts) or facts.also or facts.is_own or not facts.is_inside:
        return decide(facts)
    asked, remembered = (facts.permission, facts.resource), facts.grants.remembered
    found: Decision | None = remembered.get(asked)
    if found is not None and facts.now_ms < found.valid_until_ms:
        return found
    decision = decide(facts)
    # Denials are not: a key that is not there has none, and time must not tell which it is.
    if decision.allowed and decision.depends_on == _RULED:
        if len(remembered) >= REMEMBERED_MAX:
            remembered.clear()
        remembered[asked] = decision
    return decision


def unknown_because(facts: CallFacts) -> str:
    """Why the caller is not accepted any more; empty: it is."""
    if not facts.access_point_enabled:
        return "the access point is not enabled"
    if not facts.client_key_enabled:
        return "the client key is not enabled"
    return "the client key has expired" if facts.now_ms >= facts.valid_until_ms else ""


def missing(facts: CallFacts) -> list[str]:
    """What each statement that could allow a call wants that the call does not have."""
    speaking = facts.grants.rules(facts.permission, facts.resource)
    found = []
    for rule in facts.grants.all_rules(facts.permission):
        if rule.is_allowing:
            wants = [say(rule, facts) for holds, say in _CONDITIONS if not holds(rule, facts)]
            wants = wants if rule in speaking else ["another resource", *wants]
            found += [_cut(f"{rule.label}: wants {', '.join(wants)}")] if wants else []
    return found


def _cut(text: str) -> str:
    return text.encode()[:WANTS_SIZE_MAX].decode(errors="ignore")


def _holds(rule: Rule, facts: CallFacts) -> bool:
    return all(holds(rule, facts) for holds, _ in _CONDITIONS)


def _network_holds(rule: Rule, facts: CallFacts) -> bool:
    return rule.networks is None or rule.networks.contain(facts.peer_address)


def _context_holds(rule: Rule, facts: CallFacts) -> bool:
    if not rule.context:
        return True
    every_or_any = all if rule.is_allowing else any
    found = (
        all(context.get(key) == value for key, value in rule.context) for context in facts.contexts
    )
    # An operation without context has none that an allowance could rest on.
    return bool(facts.contexts) and every_or_any(found)


def _size_holds(rule: Rule, facts: CallFacts) -> bool:
    return rule.size_max is None or facts.size <= rule.size_max


def _time_holds(rule: Rule, facts: CallFacts) -> bool:
    return rule.window is None or rule.window.holds(facts.now_ms)


def _context_wanted(rule: Rule, facts: CallFacts) -> str:
    """The entries that some item lacks, or has with another value."""
    contexts = facts.contexts or ({},)
    lacking = [
        f"{key}={value}"
        for key, value in rule.context
        if any(context.get(key) != value for context in contexts)
    ]
    return f"in the context {' and '.join(lacking)}"


_Holds: TypeAlias = Callable[[Rule, CallFacts], bool]
_Say: TypeAlias = Callable[[Rule, CallFacts], str]

_CONDITIONS: Final[tuple[tuple[_Holds, _Say], ...]] = (
    (_network_holds, lambda rule, _: f"an address inside network rule {rule.network_rule}"),
    (_context_holds, _context_wanted),
    (_size_holds, lambda rule, _: f"data of at most {rule.size_max} bytes"),
    (_time_holds, lambda rule, _: "another time, see its conditions.time"),
)
"""Conditions, and what a call lacks where one does not hold."""
