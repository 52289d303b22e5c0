"""`decision`: what it costs to find the facts of a call and to decide on it, and nothing else.

The catalogue has as many access points as it is told, ten policies for each, and a hundred keys for
each, named by policies in all ways there are: by identifier, by alias and by tag. Every access
point then asks about ten of its keys: the first time, which is told in the first line beside what
the catalogue holds, and again, the same calls, for each line of standard input. Each figure is the
median over the access points of what one of their calls took, nanoseconds of processor time.
"""

import math
import os
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Final

from hsmux_protocol.context import EMPTY_CONTEXT
from hsmux_protocol.operations import OPERATIONS
from hsmux_protocol.references import format_key_id, parse_key_reference

from ..access.decision import decide_again
from ..access.identities import Identities
from ..access.policy import Policy, Statement, format_policy
from ..access.rules import AccessRules
from ..call import Call, Principal
from ..catalog import Catalog
from ..store.rows import AccessPointRow, AliasRow, ClientKeyRow, KeyRow, PolicyRow
from ..store.store import Changes
from .lines import say

__all__ = ["run_decided"]

POLICIES_EACH: Final = 10
KEYS_A_POLICY: Final = 10
NAMED_EACH: Final = 8
"""Keys of a policy that it names by identifier; of the others it names the aliases."""

CALLS_EACH: Final = POLICIES_EACH
"""Calls of an access point: one about a key of each of its policies."""

VALID_UNTIL_MS: Final = 1 << 50
ADDRESS: Final = "127.0.0.1:1"


def _identifier(number: int) -> bytes:
    return number.to_bytes(16, "big")


def _policy(number: int, keys: Sequence[bytes]) -> PolicyRow:
    resources = [f"key/{format_key_id(key)}" for key in keys[:NAMED_EACH]]
    resources += [f"alias/application-{number}/*", f"tag/team=team-{number}"]
    statement = Statement("allow", tuple(resources), role="crypto-user")
    return PolicyRow(f"policy-{number}", format_policy(Policy((statement,))), 1, 1)


def _access_point(number: int) -> AccessPointRow:
    own = range(number * POLICIES_EACH, (number + 1) * POLICIES_EACH)
    policies = "\n".join(sorted(f"policy-{one}" for one in own))
    return AccessPointRow(_identifier(number), f"point-{number}", "", "Enabled", policies, "", 1, 1)


def _client_key(number: int) -> ClientKeyRow:
    return ClientKeyRow(
        client_key_id=_identifier(number),
        access_point_id=_identifier(number),
        spki_sha256=os.urandom(32),
        serial="1",
        subject="",
        not_before_ms=0,
        not_after_ms=VALID_UNTIL_MS,
        state="Enabled",
        created_at_ms=1,
        row_revision=1,
    )


def _key(key_id: bytes) -> KeyRow:
    return KeyRow(
        key_id=key_id,
        spec="AES_256",
        usage="ENCRYPT_DECRYPT",
        protection="software",
        storage="",
        token="",
        state="Enabled",
        current_version=1,
        description="",
        tags={},
        created_at_ms=1,
        created_by=b"",
        row_revision=1,
    )


def _make_catalog(access_points: int) -> tuple[Catalog, AccessRules, list[bytes]]:
    """A catalogue that is full, its rules, and the identifiers of its keys."""
    catalog = Catalog()
    rules = AccessRules(catalog)
    policies = access_points * POLICIES_EACH
    keys = [os.urandom(16) for _ in range(policies * KEYS_A_POLICY)]
    aliases = (
        AliasRow(f"application-{number // KEYS_A_POLICY}/{number % KEYS_A_POLICY}", key, 1)
        for number, key in enumerate(keys)
    )
    changes = Changes(
        revision=1,
        keys=[_key(key) for key in keys],
        aliases=list(aliases),
        access_points=[_access_point(number) for number in range(access_points)],
        client_keys=[_client_key(number) for number in range(access_points)],
        policies=[
            _policy(number, keys[number * KEYS_A_POLICY : (number + 1) * KEYS_A_POLICY])
            for number in range(policies)
        ],
    )
    catalog.apply(changes)
    catalog.confirm(time.monotonic())
    return catalog, rules, keys


def _calls_of(number: int, keys: Sequence[bytes]) -> list[Call]:
    """An access point's calls, each about a key of another one of its policies."""
    principal = Principal(_identifier(number), "", _identifier(number), VALID_UNTIL_MS)
    first, operation = number * POLICIES_EACH * KEYS_A_POLICY, OPERATIONS["encrypt"]
    own = [keys[first + n * KEYS_A_POLICY + n % KEYS_A_POLICY] for n in range(CALLS_EACH)]
    return [
        Call(
            principal,
            ADDRESS,
            operation,
            [parse_key_reference(format_key_id(key)), EMPTY_CONTEXT, b""],
            {},
            math.inf,
            "",
        )
        for key in own
    ]


async def _no_refresh() -> None:
    """There is no store."""


class _Asking:
    """Everybody's calls."""

    def __init__(self, access_points: int) -> None:
        catalog, rules, keys = _make_catalog(access_points)
        self._identities = Identities(catalog, rules, math.inf, _no_refresh)
        self._calls = [_calls_of(number, keys) for number in range(access_points)]
        # What an access point's policies say is compiled when it first asks for anything.
        for calls in self._calls:
            rules.grants_of(calls[0].principal.access_point_id)
            self._is_allowed(calls[0]._replace(arguments=[*_NO_KEY, *calls[0].arguments[1:]]))

    def _is_allowed(self, call: Call) -> bool:
        """What the engine does with each call before it has it done."""
        return decide_again(self._identities.facts(call)).allowed

    def ask(self) -> dict[str, object]:
        """Have every access point ask: the median of a call, and whether all were allowed."""
        costs, is_right = list[float](), True
        for calls in self._calls:
            began = time.thread_time_ns()
            allowed = [self._is_allowed(call) for call in calls]
            costs.append((time.thread_time_ns() - began) / len(calls))
            is_right = is_right and all(allowed)
        return {"cost_ns": statistics.median(costs), "right": is_right}


_NO_KEY: Final = [parse_key_reference(format_key_id(bytes(16)))]


def run_decided(access_points: str) -> None:
    """Decide."""
    number = int(access_points)
    asking = _Asking(number)
    policies = number * POLICIES_EACH
    say({"policies": policies, "resources": policies * KEYS_A_POLICY, **asking.ask()})
    for _ in sys.stdin:
        say(asking.ask())
