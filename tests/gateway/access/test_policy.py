"""Policy documents: what is read, and what is refused with its place and its remedy."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmux_gateway.access.policy import (
    PolicyError,
    format_policy,
    parse_policy,
    permissions_of,
)
from hsmux_protocol.operations import DOCUMENT_SIZE_MAX, PERMISSIONS, ROLES

ALLOW: dict[str, Any] = {"effect": "allow", "operations": ["encrypt"], "resources": ["alias/a"]}
DENY: dict[str, Any] = {**ALLOW, "effect": "deny"}


def document(*statements: Any, **other: Any) -> str:
    return json.dumps({"statements": list(statements), **other})


def test_what_is_written_is_what_is_read() -> None:
    text = document(
        {
            "name": "orders",
            "effect": "allow",
            "role": "crypto-user",
            "resources": ["alias/orders/*", "tag/team=payments"],
            "conditions": {
                "network_rule": "office",
                "context": {"tenant": "a"},
                "size_max": 4096,
                "time": {"days": ["mon"], "hours": "08:00-18:00"},
            },
        },
        {"effect": "deny", "operations": ["*"], "resources": ["tag/frozen=yes"]},
        description="Orders",
    )
    policy = parse_policy(text)
    assert parse_policy(format_policy(policy)) == policy
    assert permissions_of(policy.statements[0]) == ROLES["crypto-user"]
    assert permissions_of(policy.statements[1]) == PERMISSIONS


REFUSED: dict[str, tuple[str, str]] = {
    "no JSON": ("{", "not JSON"),
    "too deep": ("[" * 8000, "not JSON"),
    "too long": (document(ALLOW, description="x" * DOCUMENT_SIZE_MAX), "bytes"),
    "no object": ("[]", "object"),
    "a name twice": ('{"statements": [], "statements": []}', "twice"),
    "not a number": ('{"statements": NaN}', "NaN"),
    "no statement": (document(), "statements: 1 to 64"),
    "too many": (document(*[ALLOW] * 65), "statements: 1 to 64, not 65"),
    "unknown field": (document({**ALLOW, "efect": "x"}), r"efect: unknown; did you mean 'effect'"),
    "unknown condition": (
        document({**ALLOW, "conditions": {"network": "x"}}),
        r"statements\[0\].conditions.network: unknown; did you mean 'network_rule'",
    ),
    "unknown effect": (
        document({**ALLOW, "effect": "permit"}),
        r"\[0\].effect: must be 'allow' or 'deny'",
    ),
    "unknown operation": (
        document({**ALLOW, "operations": ["encypt"]}),
        r"operations\[0\]: unknown operation 'encypt'; did you mean 'encrypt'",
    ),
    "an operation for its permission": (
        document({**ALLOW, "operations": ["encrypt_batch"]}),
        "needs the permission 'encrypt'",
    ),
    "all and one": (document({**ALLOW, "operations": ["encrypt", "*"]}), "stands alone"),
    "no operation": (document({**ALLOW, "operations": []}), "either operations or role"),
    "both": (document({**ALLOW, "role": "verifier"}), "either operations or role"),
    "unknown role": (
        document({"effect": "allow", "role": "crypto_user", "resources": ["*"]}),
        "unknown role 'crypto_user'; did you mean 'crypto-user'",
    ),
    "no resource": (document({**ALLOW, "resources": []}), "resources: 1 to 128"),
    "bad resource": (document({**ALLOW, "resources": ["a"]}), r"resources\[0\]: 'a' is none of"),
    "an operation of no key": (
        document({**ALLOW, "operations": ["list_keys"]}),
        "only the resource \\* can name it",
    ),
    "a role of no key": (
        document({"effect": "allow", "role": "access-admin", "resources": ["alias/a"]}),
        "only the resource \\* can name them",
    ),
    "context of none": (
        document({**ALLOW, "operations": ["sign"], "conditions": {"context": {"a": "b"}}}),
        "conditions.context: no operation here has one",
    ),
    "reserved context": (
        document({**ALLOW, "conditions": {"context": {"hsmux:a": "b"}}}),
        "reserved",
    ),
    "size of a denial": (document({**DENY, "conditions": {"size_max": 1}}), "only|small data"),
    "size below nothing": (document({**ALLOW, "conditions": {"size_max": -1}}), "size_max: 0 to"),
    "never": (
        document(
            {
                **ALLOW,
                "conditions": {
                    "time": {"not_before": "2030-01-01T00:00Z", "not_after": "2029-01-01T00:00Z"}
                },
            }
        ),
        r"statements\[0\].conditions.time.not_after: .*never true",
    ),
    "a name twice among statements": (
        document({**ALLOW, "name": "a"}, {**ALLOW, "name": "a"}),
        "name of another statement",
    ),
    "a long name": (document({**ALLOW, "name": "a" * 65}), "more than 64"),
    "half a character": (document({**ALLOW, "resources": ["tag/a=\ud800"]}), "not valid Unicode"),
    "a name that does not print": (document({**ALLOW, "name": "a\u202e"}), "printable"),
    "all denied": (
        document(ALLOW, {"effect": "deny", "operations": ["*"], "resources": ["alias/*"]}),
        r"statements\[0\]: all that it allows is denied by statements\[1\]",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    text, said = REFUSED[name]
    with pytest.raises(PolicyError, match=said):
        parse_policy(text)


@pytest.mark.parametrize(
    "denial",
    [
        {**DENY, "resources": ["alias/b"]},
        {**DENY, "operations": ["decrypt"]},
        {**DENY, "conditions": {"context": {"a": "b"}}},
    ],
)
def test_a_denial_of_a_part_is_no_contradiction(denial: dict[str, Any]) -> None:
    assert len(parse_policy(document(ALLOW, denial)).statements) == 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*ALLOW, "statements", "conditions", "time", "context", "role", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_garbage_is_refused_or_a_policy(value: Any) -> None:
    try:
        parse_policy(json.dumps({"statements": [value]}))
    except PolicyError as error:
        assert str(error)
