"""Which approvals count: the decision against an oracle, and the whole of it with a clock of its
own over a store in memory.
"""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsmux_gateway.access.approvals import (
    APPROVAL_KEPT_MS,
    APPROVER_AGE_MS,
    Approval,
    Approver,
    Unapproved,
    counting,
    name_request,
    read_approvals,
    write_approvals,
)
from hsmux_gateway.access.policy import format_policy, parse_policy
from hsmux_gateway.access.quorum import (
    REQUESTS_MAX,
    REQUESTS_PER_ACCESS_POINT_MAX,
    Quorum,
    QuorumSetting,
    read_setting,
    write_setting,
)
from hsmux_gateway.access.safeguards import Safeguards
from hsmux_gateway.call import Call, Principal
from hsmux_gateway.catalog import Catalog
from hsmux_gateway.store import (
    AccessPointRow,
    ClientKeyRow,
    MtlsBindingRow,
    NetworkRuleRow,
    PolicyRow,
    RequestRow,
    Row,
    Store,
    Transaction,
)
from hsmux_protocol.errors import Conflict
from hsmux_protocol.operations import OPERATIONS
from tests.gateway.store.sealer import AesSealer

POINTS = [bytes([number]) * 16 for number in range(4)]
DAY_MS = 24 * 3600 * 1000
NOW_MS = 1_900_000_000_000
EDGES_MS = [-DAY_MS - 1, -DAY_MS, -DAY_MS + 1, -1, 0]
"""Moments before and at the borders of a day that ends now."""

moments = st.sampled_from(EDGES_MS).map(lambda edge: NOW_MS + edge)
flags = st.booleans()
# Half of them are good ones, or the rules that look at them would hide the others.
approvers = st.one_of(
    st.just(Approver(True, True, False, NOW_MS - DAY_MS, True)),
    st.builds(Approver, flags, flags, flags, moments, flags),
)
approvals = st.builds(
    Approval,
    st.sampled_from(POINTS),
    st.just(b"k" * 16),
    st.just(()),
    st.just("10.0.0.1"),
    moments,
)


def oracle(
    asked_at_ms: int, given_ones: list[Approval], known: dict[bytes, Approver], wanted: bytes
) -> bool:
    """Whether an access point counts, written from the rules one by one."""
    if NOW_MS - asked_at_ms >= DAY_MS or wanted == POINTS[0] or wanted not in known:
        return False
    if not any(NOW_MS - a.at_ms < DAY_MS for a in given_ones if a.access_point_id == wanted):
        return False
    point = known[wanted]
    old_enough = NOW_MS - point.created_at_ms >= DAY_MS
    good = [point.is_enabled, point.has_key, not point.shares_key, point.is_allowed, old_enough]
    return all(good)


@settings(max_examples=500)
@given(
    moments, st.lists(approvals, max_size=8), st.dictionaries(st.sampled_from(POINTS), approvers)
)
def test_what_counts_is_what_the_oracle_says(
    asked_at_ms: int, given_ones: list[Approval], known: dict[bytes, Approver]
) -> None:
    column = write_approvals(given_ones)
    request = RequestRow(b"h" * 32, POINTS[0], "put_policy", "{}", "", column, asked_at_ms)
    found = counting(request, lambda one: known.get(one.access_point_id), NOW_MS)
    counted = [one.access_point_id for one in found]
    assert len(counted) == len(set(counted))
    assert set(counted) == {p for p in POINTS if oracle(asked_at_ms, given_ones, known, p)}


def test_a_request_has_another_name_when_anything_of_it_differs() -> None:
    parts = (POINTS[0], bytes(32), b"outcome")
    others = ((POINTS[1], *parts[1:]), (parts[0], b"x" * 32, parts[2]), (*parts[:2], b""))
    names = {name_request(*one) for one in (parts, *others)}
    assert len(names) == 4 and all(len(name) == 32 for name in names)


# All of it, but the gateway around it


def policy(name: str, *operations: str) -> PolicyRow:
    statement = {"effect": "allow", "operations": list(operations), "resources": ["*"]}
    document = format_policy(parse_policy(json.dumps({"statements": [statement]})))
    return PolicyRow(name, document, 1)


ADMINISTERS = ("put_policy", "update_access_point", "create_client_key")
POLICIES = [
    policy("administers", *ADMINISTERS, "set_quorum"),
    policy("approves", "approve_request"),
    policy("uses", "encrypt"),
]


HERE = NetworkRuleRow("here", "127.0.0.0/8", 1)


class Deployment:
    """An administrator, two approvers and an application, and a clock that stands still.

    Attributes:
        at_ms: The time.
    """

    def __init__(self, wanted: int) -> None:
        self.at_ms = NOW_MS
        self.store = Store.in_memory(deployment_id=b"d" * 16, created_at_ms=1)
        self.store.reseal(AesSealer(), lambda transaction: None)
        self.quorum = Quorum(Safeguards(Catalog()), lambda: self.at_ms)
        rows: list[Row] = [*POLICIES, HERE]
        for number, has in enumerate(("administers", "approves", "approves", "uses")):
            point = POINTS[number]
            created, inside = NOW_MS - APPROVER_AGE_MS, "here" if number == 1 else ""
            rows.append(AccessPointRow(point, f"p{number}", "", "Enabled", has, inside, created))
            rows.append(
                ClientKeyRow(point, point, point * 2, "01", "", 1, 2**50, "Enabled", created)
            )
        self.write(lambda t: [t.insert(row) for row in rows])
        # What certificates of outside CAs are nobody's, yet.
        for name in (f"spki:{POINTS[0].hex() * 2}", "uri:spiffe://x/p1"):
            row = MtlsBindingRow(name, None)
            self.write(lambda t, row=row: t.insert(row))
        self.write(lambda t: write_setting(t, QuorumSetting(wanted, NOW_MS)))

    def write(self, work: Any) -> Any:
        return self.store.write(work)

    def change(self, row: Row, operation: str, *arguments: Any, by: int = 0) -> str:
        """A call that writes a row; who approved it. If approvals lack, it waits for them."""
        principal = Principal(POINTS[by], f"p{by}", POINTS[by], 2**50)
        call = Call(principal, "127.0.0.1:1", OPERATIONS[operation], list(arguments), {}, 0.0, "r")

        def effect(transaction: Transaction) -> list[Any]:
            found = transaction.get(type(row), *self.key_of(row))
            if found is None:
                transaction.insert(row)
            else:
                transaction.update(with_revision(row, found.row_revision))
            return []

        try:
            told: list[str] = []
            self.write(lambda t: self.quorum.do(t, call, effect, told.append))
        except Unapproved as missing:
            waiting = missing.waiting
            if waiting is not None:
                self.write(lambda t: self.quorum.keep(t, waiting))
            raise
        return "".join(told)

    @staticmethod
    def key_of(row: Row) -> tuple[Any, ...]:
        return (getattr(row, row.__struct_fields__[0]),)

    def waiting(self) -> list[RequestRow]:
        return self.store.read(lambda reader: reader.select(RequestRow))

    def approve(self, by: int, key: bytes = b"", *bindings: str) -> None:
        """Approve the one request that waits."""
        (row,) = self.waiting()
        given = Approval(POINTS[by], key or POINTS[by], bindings, "127.0.0.1", self.at_ms)
        column = write_approvals([*read_approvals(row.approvals), given])
        self.write(lambda t: t.update(replaced(row, approvals=column)))

    def alter(self, kind: type[Row], key: Any, **changes: Any) -> None:
        """Change a row past everything."""
        self.write(lambda t: t.update(replaced(t.get(kind, key), **changes)))


def replaced(row: Any, **changes: Any) -> Any:
    return msgspec.structs.replace(row, **changes)


def with_revision(row: Any, revision: int) -> Any:
    return replaced(row, row_revision=revision)


WIDER = policy("administers", *ADMINISTERS, "set_quorum", "show_status")
DOCUMENT = WIDER.document


def put(deployment: Deployment, document: PolicyRow = WIDER) -> str:
    return deployment.change(document, "put_policy", document.name, document.document)


def refused(deployment: Deployment) -> str:
    with pytest.raises(Unapproved) as missing:
        put(deployment)
    return missing.value.statement


def test_enough_approvals_are_used_once() -> None:
    deployment = Deployment(2)
    assert refused(deployment).endswith("lacks 2 of 2 approvals")
    deployment.approve(1)
    assert refused(deployment).endswith("lacks 1 of 2 approvals")
    deployment.approve(1)
    assert refused(deployment).endswith("lacks 1 of 2 approvals")
    deployment.approve(2)
    (row,) = deployment.waiting()
    assert put(deployment) == f"request {row.request_hash.hex()} approved by p1, p2"
    assert deployment.waiting() == []
    # What is there already is no change.
    assert put(deployment) == ""
    with pytest.raises(Unapproved):
        put(deployment, POLICIES[0])


ENDS: dict[str, tuple[type[Row], Any, dict[str, Any]]] = {
    "disabled": (AccessPointRow, POINTS[1], {"state": "Disabled"}),
    "deleted": (AccessPointRow, POINTS[1], {"state": "Deleted", "policies": ""}),
    "made anew": (AccessPointRow, POINTS[1], {"created_at_ms": NOW_MS - APPROVER_AGE_MS + 1}),
    "without permission": (AccessPointRow, POINTS[1], {"policies": "uses"}),
    "elsewhere": (AccessPointRow, POINTS[1], {"network_rules": "gone"}),
    "known by a key of who asks": (
        MtlsBindingRow,
        f"spki:{POINTS[0].hex() * 2}",
        {"access_point_id": POINTS[1]},
    ),
    "revoked": (ClientKeyRow, POINTS[1], {"state": "Revoked"}),
}


@pytest.mark.parametrize("end", ENDS)
def test_an_approval_counts_as_long_as_its_approver_may_give_it(end: str) -> None:
    deployment = Deployment(1)
    refused(deployment)
    deployment.approve(1)
    kind, key, changes = ENDS[end]
    deployment.alter(kind, key, **changes)
    assert refused(deployment).endswith("lacks 1 of 1 approvals")
    deployment.approve(2)
    assert put(deployment).endswith("approved by p2")


def test_an_approval_with_a_certificate_of_an_outside_ca() -> None:
    """It counts while the access point is known by it, and if its key is not of who asks."""
    uri = "uri:spiffe://x/p1"
    deployment = Deployment(1)
    refused(deployment)
    deployment.approve(1, b"o" * 16, uri)
    assert refused(deployment).endswith("lacks 1 of 1 approvals")
    deployment.alter(MtlsBindingRow, uri, access_point_id=POINTS[1])
    assert put(deployment).endswith("approved by p1")
    with pytest.raises(Unapproved):
        put(deployment, POLICIES[0])
    deployment.approve(1, POINTS[0], uri)
    with pytest.raises(Unapproved):
        put(deployment, POLICIES[0])


def test_a_request_and_its_approvals_end_after_a_day() -> None:
    deployment = Deployment(1)
    refused(deployment)
    deployment.approve(1)
    (first,) = deployment.waiting()
    deployment.at_ms = NOW_MS + APPROVAL_KEPT_MS
    refused(deployment)
    (second,) = deployment.waiting()
    assert second.request_hash == first.request_hash
    assert (second.asked_at_ms, read_approvals(second.approvals)) == (deployment.at_ms, [])
    deployment.approve(1)
    deployment.at_ms += APPROVAL_KEPT_MS - 1
    assert put(deployment).endswith("approved by p1")


def test_what_a_name_stands_for_is_approved_with_it() -> None:
    """A policy that is given to an administrator, and has another document when it is done."""
    deployment = Deployment(1)
    given = AccessPointRow(
        POINTS[3], "p3", "", "Enabled", "approves\nuses", "", NOW_MS - APPROVER_AGE_MS
    )
    lists: list[list[str]] = [["approves"], [], [], [], [], []]

    def ask() -> str:
        return deployment.change(given, "update_access_point", "p3", None, None, *lists, None)

    with pytest.raises(Unapproved):
        ask()
    deployment.approve(1)
    deployment.alter(PolicyRow, "uses", document=DOCUMENT)
    with pytest.raises(Unapproved) as missing:
        ask()
    assert missing.value.statement.endswith("lacks 1 of 1 approvals")
    assert len(deployment.waiting()) == 2


UNTOUCHED: dict[str, tuple[Row, str, tuple[Any, ...]]] = {
    "an application's policy": (
        policy("uses", "decrypt"),
        "put_policy",
        ("uses", policy("uses", "decrypt").document),
    ),
    "an application": (
        AccessPointRow(b"n" * 16, "new", "", "Enabled", "uses", "", NOW_MS),
        "create_access_point",
        ("new", "", ["uses"], [], None),
    ),
    "an application's client key": (
        ClientKeyRow(b"n" * 16, POINTS[3], b"n" * 32, "01", "", 1, 2**50, "Enabled", NOW_MS),
        "create_client_key",
        ("p3", None, 1),
    ),
}
TOUCHED: dict[str, tuple[Row, str, tuple[Any, ...]]] = {
    "an administrator's policy": (WIDER, "put_policy", ("administers", DOCUMENT)),
    "a policy that makes approvers": (
        policy("uses", "approve_request"),
        "put_policy",
        ("uses", policy("uses", "approve_request").document),
    ),
    "a policy that makes administrators": (
        policy("uses", *ADMINISTERS),
        "put_policy",
        ("uses", policy("uses", *ADMINISTERS).document),
    ),
    "a new administrator": (
        AccessPointRow(b"n" * 16, "new", "", "Enabled", "administers", "", NOW_MS),
        "create_access_point",
        ("new", "", ["administers"], [], None),
    ),
    "a new approver": (
        AccessPointRow(b"n" * 16, "new", "", "Enabled", "approves", "", NOW_MS),
        "create_access_point",
        ("new", "", ["approves"], [], None),
    ),
    "an administrator's client key": (
        ClientKeyRow(b"n" * 16, POINTS[0], b"n" * 32, "01", "", 1, 2**50, "Enabled", NOW_MS),
        "create_client_key",
        ("p0", None, 1),
    ),
    "a network rule of an approver": (
        NetworkRuleRow("here", "126.0.0.0/7", NOW_MS),
        "put_network_rule",
        ("here", ["126.0.0.0/7"]),
    ),
    "an approver's outside certificate": (
        MtlsBindingRow("uri:spiffe://x/p1", POINTS[1]),
        "update_access_point",
        ("p1", None, None, [], [], [], [], ["uri:spiffe://x/p1"], [], None),
    ),
    "an approver's client key": (
        ClientKeyRow(b"n" * 16, POINTS[1], b"n" * 32, "01", "", 1, 2**50, "Enabled", NOW_MS),
        "renew_client_key",
        (POINTS[1], None, False),
    ),
}


@pytest.mark.parametrize("what", UNTOUCHED)
def test_what_touches_no_administrator_is_done_alone(what: str) -> None:
    row, operation, arguments = UNTOUCHED[what]
    assert Deployment(1).change(row, operation, *arguments) == ""


@pytest.mark.parametrize("what", TOUCHED)
def test_what_touches_an_administrator_or_approver_is_not(what: str) -> None:
    row, operation, arguments = TOUCHED[what]
    deployment = Deployment(1)
    with pytest.raises(Unapproved):
        deployment.change(row, operation, *arguments)
    deployment.approve(2)
    assert deployment.change(row, operation, *arguments).endswith("approved by p2")
    assert Deployment(0).change(row, operation, *arguments) == ""


def test_its_own_client_key_is_renewed_alone() -> None:
    made = ClientKeyRow(b"n" * 16, POINTS[0], b"n" * 32, "01", "", 1, 2**50, "Enabled", NOW_MS)
    assert Deployment(1).change(made, "renew_client_key", None, None, False) == ""
    with pytest.raises(Unapproved):
        Deployment(1).change(made, "renew_client_key", None, None, True)


def test_approvers_that_are_needed_stay() -> None:
    deployment = Deployment(2)
    rows = {
        "Disabled": AccessPointRow(POINTS[1], "p1", "", "Disabled", "approves", "", 1),
        "without": AccessPointRow(POINTS[1], "p1", "", "Enabled", "uses", "", 1),
        "key": ClientKeyRow(POINTS[1], POINTS[1], POINTS[1] * 2, "", "", 1, 2, "Revoked", 1),
    }
    nothing: list[list[str]] = [[], [], [], [], [], []]
    for row in rows.values():
        with pytest.raises(Conflict, match="there would be 1 that can approve"):
            deployment.change(row, "update_access_point", "p1", None, None, *nothing, None)
    assert deployment.waiting() == []
    assert deployment.store.read(lambda r: read_setting(r).approvals) == 2


def test_who_asks_is_not_among_those_that_could_approve() -> None:
    with pytest.raises(Conflict, match="there would be 1 that can approve"):
        Deployment(2).change(WIDER, "put_policy", WIDER.name, DOCUMENT, by=1)


def test_approvals_are_judged_before_the_change() -> None:
    """An approver may approve what ends it."""
    deployment = Deployment(1)
    row = AccessPointRow(POINTS[1], "p1", "", "Disabled", "approves", "here", 1)
    nothing: list[list[str]] = [[], [], [], [], [], []]

    def ask() -> str:
        return deployment.change(row, "update_access_point", "p1", None, "Disabled", *nothing, None)

    with pytest.raises(Unapproved):
        ask()
    deployment.approve(1)
    assert ask().endswith("approved by p1")


def test_requests_that_wait_are_bounded() -> None:
    deployment = Deployment(1)

    def fill(point: bytes, number: int) -> None:
        def keep(transaction: Transaction) -> None:
            name = number.to_bytes(32, "big")
            row = RequestRow(name, point, "put_policy", "{}", "", b"\x90", deployment.at_ms)
            deployment.quorum.keep(transaction, row)

        deployment.write(keep)

    each = REQUESTS_PER_ACCESS_POINT_MAX
    for number in range(each):
        fill(POINTS[0], number)
    fill(POINTS[0], 0)
    with pytest.raises(Conflict, match=f"{each} requests of this access point"):
        fill(POINTS[0], each)
    fill(POINTS[1], each)
    more = [bytes([200 + number]) * 16 for number in range(REQUESTS_MAX // each)]
    for point in more:
        row = AccessPointRow(point, point.hex(), "", "Enabled", "", "", 1)
        deployment.write(lambda t, row=row: t.insert(row))
    for number in range(REQUESTS_MAX - each - 1):
        fill(more[number // each], 1000 + number)
    with pytest.raises(Conflict, match=f"{REQUESTS_MAX} requests wait"):
        fill(more[-1], 9999)
    deployment.at_ms += APPROVAL_KEPT_MS
    fill(more[-1], 9999)
    assert len(deployment.waiting()) == 1
