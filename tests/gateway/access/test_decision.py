"""Decisions, compared with an oracle that knows no index, no order and no cache."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsmux_gateway.access.decision import DEFAULT_DENIAL, WANTS_SIZE_MAX, CallFacts, decide, missing
from hsmux_gateway.access.grants import NO_GRANTS, Grants, compile_grants
from hsmux_gateway.access.networks import Networks
from hsmux_gateway.access.patterns import Resource, matches_glob, parse_pattern
from hsmux_gateway.access.policy import (
    Policy,
    PolicyError,
    Statement,
    parse_policy,
    permissions_of,
)
from hsmux_gateway.access.windows import parse_window
from hsmux_protocol.operations import OPERATIONS, PERMISSIONS, ROLES
from hsmux_protocol.references import format_key_id

KEYS = [bytes([number]) * 16 for number in range(3)]
OFFICE = Networks(["10.0.0.0/8"])
NOW_MS = 1_900_000_000_000
END_MS = NOW_MS + 30 * 86_400_000


def facts(grants: Grants, permission: str, resource: Resource | None, **changes: Any) -> CallFacts:
    asked = CallFacts(True, True, END_MS, NOW_MS, permission, resource, grants=grants)
    return asked._replace(**changes)


def grants_of(*statements: Mapping[str, Any]) -> Grants:
    policy = parse_policy(json.dumps({"statements": list(statements)}))
    return Grants({"p": policy}, {"office": OFFICE})


# The oracle


def oracle_matches(text: str, resource: Resource | None) -> bool:
    pattern = parse_pattern(text)
    if pattern.kind == "everything":
        return True
    if resource is None:
        return False
    if pattern.kind == "glob":
        return any(matches_glob(str(pattern.value).split("*"), a) for a in resource.aliases)
    found = {"key": (resource.key_id,), "alias": resource.aliases, "tag": resource.tags}
    return pattern.value in found[pattern.kind]


def oracle_applies(statement: Statement, asked: CallFacts) -> bool:
    conditions = statement.conditions
    if asked.permission not in permissions_of(statement):
        return False
    if not any(oracle_matches(text, asked.resource) for text in statement.resources):
        return False
    if conditions.network_rule and not asked.peer_address.startswith("10."):
        return False
    if conditions.context:
        wanted = conditions.context.items()
        held = [wanted <= dict(context).items() for context in asked.contexts]
        if not held or not (all(held) if statement.effect == "allow" else any(held)):
            return False
    if conditions.size_max is not None and asked.size > conditions.size_max:
        return False
    return conditions.time is None or parse_window(conditions.time).holds(asked.now_ms)


def oracle(policies: list[Policy], asked: CallFacts) -> bool:
    if not (asked.access_point_enabled and asked.client_key_enabled):
        return False
    if asked.now_ms >= asked.valid_until_ms:
        return False
    effects = {
        statement.effect
        for policy in policies
        for statement in policy.statements
        if oracle_applies(statement, asked)
    }
    return effects == {"allow"}


# What it is compared on

RESOURCES = ["*", "alias/a", "alias/a/*", "alias/*b", "tag/t=u", "tag/t=v"]
RESOURCES += [f"key/{format_key_id(key_id)}" for key_id in KEYS]
OPERATIONS_TRIED = ["encrypt", "decrypt", "sign", "create_key", "list_keys", "show_status"]


@st.composite
def statements(draw: st.DrawFn) -> dict[str, Any]:
    conditions: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "network_rule": st.just("office"),
                "context": st.sampled_from([{"c": "d"}, {"c": "e", "f": "g"}]),
                "size_max": st.sampled_from([0, 10]),
                "time": st.sampled_from(
                    [
                        {"not_before": "2030-04-01T00:00Z"},
                        {"not_after": "2030-04-01T00:00Z", "days": ["mon", "sun"]},
                        {"hours": "06:00-12:00"},
                    ]
                ),
            },
        )
    )
    what = draw(
        st.fixed_dictionaries({"role": st.sampled_from(sorted(ROLES))})
        | st.fixed_dictionaries(
            {"operations": st.lists(st.sampled_from(OPERATIONS_TRIED), min_size=1, max_size=3)}
        )
        | st.just({"operations": ["*"]})
    )
    return {
        **what,
        "effect": draw(st.sampled_from(["allow", "allow", "deny"])),
        "resources": draw(st.lists(st.sampled_from(RESOURCES), min_size=1, max_size=3)),
        **({"conditions": conditions} if conditions else {}),
    }


RESOURCE = st.none() | st.builds(
    Resource,
    st.none() | st.sampled_from(KEYS),
    st.lists(st.sampled_from(["a", "a/b", "b", "c"]), max_size=3).map(tuple),
    st.lists(st.sampled_from([("t", "u"), ("t", "v"), ("t=u", "")]), max_size=2).map(tuple),
)
CONTEXTS = st.lists(
    st.sampled_from([{}, {"c": "d"}, {"c": "e", "f": "g"}, {"c": "d", "f": "g"}]), max_size=3
)


def readable(documents: list[list[dict[str, Any]]]) -> dict[str, Policy]:
    """Those that are policies; hypothesis also writes some that can mean nothing."""
    policies = {}
    for number, document in enumerate(documents):
        try:
            policies[f"p{number}"] = parse_policy(json.dumps({"statements": document}))
        except PolicyError:
            continue
    return policies


@settings(max_examples=400)
@given(
    st.lists(st.lists(statements(), min_size=1, max_size=3), min_size=1, max_size=4),
    st.sampled_from(OPERATIONS_TRIED),
    RESOURCE,
    CONTEXTS,
    st.sampled_from(["10.1.2.3", "192.0.2.1"]),
    st.sampled_from([0, 10, 11]),
    st.integers(NOW_MS - 40 * 86_400_000, NOW_MS + 40 * 86_400_000),
    st.sampled_from([(True, True)] * 6 + [(False, True), (True, False)]),
)
def test_decisions_are_those_of_the_oracle(
    documents: list[list[dict[str, Any]]],
    permission: str,
    resource: Resource | None,
    contexts: list[dict[str, str]],
    peer_address: str,
    size: int,
    now_ms: int,
    enabled: tuple[bool, bool],
) -> None:
    policies = readable(documents)
    grants = compile_grants(policies, policies, {"office": OFFICE})
    asked = facts(
        grants, permission, resource, peer_address=peer_address, contexts=tuple(contexts), size=size
    )
    asked = asked._replace(
        access_point_enabled=enabled[0], client_key_enabled=enabled[1], now_ms=now_ms
    )
    decision = decide(asked)
    assert decision.allowed == oracle(list(policies.values()), asked)
    # What it does not depend on may be anything else, and time may pass until it is over.
    if "network" not in decision.depends_on:
        assert decide(asked._replace(peer_address="192.0.2.9")).allowed == decision.allowed
    if "context" not in decision.depends_on:
        assert decide(asked._replace(contexts=())).allowed == decision.allowed
    if "size" not in decision.depends_on:
        assert decide(asked._replace(size=2**20)).allowed == decision.allowed
    later_ms = max(now_ms, decision.valid_until_ms - 1)
    if "time" in decision.depends_on or decision.valid_until_ms == END_MS:
        assert decide(asked._replace(now_ms=later_ms)).allowed == decision.allowed
    needed = decision.depends_on & {"network", "context", "size", "time"}
    assert needed <= grants.needs(permission, resource)


KINDS: dict[str, Resource] = {
    "named by alias": Resource(KEYS[0], ("granted",)),
    "tagged": Resource(KEYS[0], (), (("granted", "yes"),)),
    "named by identifier": Resource(KEYS[1]),
    "of somebody else": Resource(KEYS[2], ("other",), (("granted", "no"),)),
}
GRANTED = ["alias/granted", "tag/granted=yes", f"key/{format_key_id(KEYS[1])}"]


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_under_every_role(name: str, role: str) -> None:
    """A role grants its operations, on the keys it is given for, and nothing else."""
    operation = OPERATIONS[name]
    everywhere = grants_of({"effect": "allow", "role": role, "resources": ["*"]})
    has_role = role in operation.roles
    for resource in (None, *KINDS.values()):
        assert decide(facts(everywhere, operation.permission, resource)).allowed is has_role
    if not any(o.resource for o in OPERATIONS.values() if role in o.roles):
        return
    some = grants_of({"effect": "allow", "role": role, "resources": GRANTED})
    for kind, resource in KINDS.items():
        allowed = decide(facts(some, operation.permission, resource)).allowed
        assert allowed is (has_role and kind != "of somebody else")
    assert not decide(facts(some, operation.permission, None)).allowed


@pytest.mark.parametrize("name", OPERATIONS)
def test_without_policies_nothing_is_allowed(name: str) -> None:
    decision = decide(facts(NO_GRANTS, OPERATIONS[name].permission, None))
    assert (decision.allowed, decision.statement) == (False, DEFAULT_DENIAL)


def test_key_administrators_use_no_keys_and_users_administer_none() -> None:
    using = {o.permission for o in OPERATIONS.values() if o.plane == "data"}
    administered = {o.permission for o in OPERATIONS.values() if o.changes}
    assert ROLES["key-admin"] & using == {"get_public_key"}
    assert ROLES["access-admin"] & using == set()
    assert ROLES["auditor"] & using == {"get_public_key"}
    for role in ("crypto-user", "encrypt-only", "decrypt-only", "verifier", "auditor"):
        assert not ROLES[role] & administered


def test_every_permission_is_in_a_role() -> None:
    assert frozenset[str]().union(*ROLES.values()) == PERMISSIONS


def test_what_is_gone_grants_nothing() -> None:
    allow = {"effect": "allow", "operations": ["*"], "resources": ["*"]}
    policy = parse_policy(json.dumps({"statements": [allow]}))
    denial = {**allow, "effect": "deny", "conditions": {"network_rule": "office"}}
    denying = parse_policy(json.dumps({"statements": [denial]}))
    assert compile_grants(["a", "gone"], {"a": policy}, {}) is NO_GRANTS
    assert compile_grants(["a", "b"], {"a": policy, "b": denying}, {}) is NO_GRANTS
    assert compile_grants(["a"], {"a": policy}, {}) is not NO_GRANTS


def test_the_statement_that_decided_is_named() -> None:
    grants = grants_of(
        {"effect": "allow", "operations": ["encrypt"], "resources": ["*"], "name": "all"},
        {"effect": "deny", "operations": ["encrypt"], "resources": ["tag/frozen=yes"]},
    )
    frozen = Resource(KEYS[0], (), (("frozen", "yes"),))
    assert decide(facts(grants, "encrypt", Resource(KEYS[0]))).statement == (
        "allowed by p statement all"
    )
    assert decide(facts(grants, "encrypt", frozen)).statement == "denied by p statement 2"
    assert decide(facts(grants, "encrypt", frozen, client_key_enabled=False)).statement == (
        "the client key is not enabled"
    )


WANTED = [
    ({"network_rule": "office"}, "an address inside network rule office"),
    ({"context": {"tenant": "a", "table": "b"}}, "in the context tenant=a and table=b"),
    ({"size_max": 10}, "data of at most 10 bytes"),
    ({"time": {"not_after": "2020-01-01T00:00:00Z"}}, "another time, see its conditions.time"),
]


@pytest.mark.parametrize(("conditions", "wanted"), WANTED)
def test_what_is_missing_is_named(conditions: dict[str, Any], wanted: str) -> None:
    statement = {"effect": "allow", "operations": ["encrypt"], "resources": ["*"]}
    grants = grants_of({**statement, "conditions": conditions})
    asked = facts(grants, "encrypt", None, contexts=({},), size=11, peer_address="192.0.2.1")
    assert missing(asked) == [f"p statement 1: wants {wanted}"]


def test_only_context_entries_that_are_not_there_are_named() -> None:
    statement = {"effect": "allow", "operations": ["encrypt"], "resources": ["*"]}
    grants = grants_of({**statement, "conditions": {"context": {"a": "1", "b": "2"}}})
    items = ({"a": "1", "b": "2"}, {"a": "1", "b": "3"})
    asked = facts(grants, "encrypt", None, contexts=items)
    assert missing(asked) == ["p statement 1: wants in the context b=2"]


def test_what_is_missing_fits_its_field() -> None:
    statement = {"effect": "allow", "operations": ["encrypt"], "resources": ["*"]}
    grants = grants_of({**statement, "conditions": {"context": {"k": "\u00fc" * 1000}}})
    (wanted,) = missing(facts(grants, "encrypt", None, contexts=({},)))
    assert WANTS_SIZE_MAX - 1 <= len(wanted.encode()) <= WANTS_SIZE_MAX
