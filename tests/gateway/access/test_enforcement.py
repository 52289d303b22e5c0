"""Access as applications and administrators meet it, at a gateway that runs."""

import contextlib
import itertools
import json
import ssl
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hsmux_gateway.access.asked import CONTEXTS_MAX
from hsmux_gateway.access.permits import WHY
from hsmux_protocol import errors
from hsmux_protocol.columns import pack_column
from hsmux_protocol.context import encode_context
from hsmux_protocol.frames import Error, Request
from hsmux_protocol.records import AccessPointRecord
from hsmux_protocol.references import format_key_id
from tests.gateway.raw_client import RawClient, client_context, connect
from tests.gateway.running import Running

_numbers = itertools.count()
NOBODY = format_key_id(bytes(16))


def new_name(prefix: str = "app") -> str:
    """A name that is free."""
    return f"{prefix}-{next(_numbers)}"


def allow(what: str | list[str], *resources: str, **conditions: Any) -> dict[str, Any]:
    """A statement that allows a role or operations."""
    named = {"role": what} if isinstance(what, str) else {"operations": what}
    return {
        "effect": "allow",
        "resources": list(resources) or ["*"],
        **named,
        **({"conditions": conditions} if conditions else {}),
    }


def put(admin: RawClient, *statements: dict[str, Any], name: str | None = None) -> str:
    """A policy of these statements; its name."""
    name = name or new_name("policy")
    admin.call("put_policy", name, json.dumps({"statements": list(statements)}))
    return name


def make_key(admin: RawClient, alias: str | None = None, **tags: str) -> str:
    """A software key; its identifier."""
    arguments = ("AES_256", "ENCRYPT_DECRYPT", "software", None, alias, "", tags)
    return format_key_id(admin.call("create_key", *arguments)[0].key_id)


def make_point(admin: RawClient, *policies: str) -> AccessPointRecord:
    """An access point with these policies."""
    (record,) = admin.call("create_access_point", new_name(), "", list(policies), [], None)
    assert isinstance(record, AccessPointRecord)
    return record


@contextmanager
def connected(
    running: Running, admin: RawClient, point: AccessPointRecord, directory: Path
) -> Iterator[RawClient]:
    """A connection of an access point, with a client key of its own."""
    _, certificate, ca, private_key = admin.call("create_client_key", point.name, None, 30)
    (directory / "administrator.pem").write_text(ssl.DER_cert_to_PEM_cert(certificate))
    (directory / "administrator.key").write_bytes(private_key)
    (directory / "ca.pem").write_text(ssl.DER_cert_to_PEM_cert(ca))
    with connect(running.address, client_context(directory)) as client:
        yield client


def refusal(client: RawClient, *request: Any) -> tuple[str, str]:
    """The class and text of a refusal, without its reference."""
    try:
        client.call(*request)
    except errors.HsmuxError as error:
        return type(error).__name__, error.text
    raise AssertionError("it was allowed")


def test_an_access_point_without_policies_may_do_nothing(
    running: Running, admin: RawClient, tmp_path: Path
) -> None:
    point, key = make_point(admin), make_key(admin)
    with connected(running, admin, point, tmp_path) as client:
        requests: list[tuple[Any, ...]] = [
            ("encrypt", key, {}, b"x"),
            ("generate_random", 8),
            ("list_keys", b"", 100),
            ("show_status",),
            ("create_access_point", "x", "", [], [], None),
        ]
        for request in requests:
            assert refusal(client, *request)[0] == "Denied"


def test_grants_hold_for_what_is_named_and_nothing_else(
    running: Running, admin: RawClient, tmp_path: Path
) -> None:
    space = new_name("space")
    mine, other = make_key(admin, f"alias/{space}/a"), make_key(admin, f"alias/other-{space}")
    tagged = make_key(admin, None, team=space)
    policy = put(admin, allow("crypto-user", f"alias/{space}/*", f"tag/team={space}"))
    with connected(running, admin, make_point(admin, policy), tmp_path) as client:
        for name in (mine, f"alias/{space}/a", tagged):
            envelope = client.call("encrypt", name, {}, b"text")[0]
            assert client.call("decrypt", None, {}, envelope)[0] == b"text"
            column = pack_column([envelope])
            assert client.call("decrypt_batch", None, {}, None, column)[2]
        foreign = admin.call("encrypt", other, {}, b"text")[0]
        requests: list[tuple[Any, ...]] = [
            ("encrypt", other, {}, b"text"),
            ("encrypt_batch", other, {}, None, pack_column([b"text"])),
            ("decrypt", None, {}, foreign),
            ("decrypt", other, {}, foreign),
            ("decrypt_batch", None, {}, None, pack_column([foreign])),
            ("show_key", other),
        ]
        for request in requests:
            assert refusal(client, *request)[0] == "Denied"
        # A pinned key that is granted does not open what was sealed under another.
        assert refusal(client, "decrypt", mine, {}, foreign)[0] == "InvalidCiphertext"


def test_a_refusal_never_tells_whether_a_key_exists(
    running: Running, admin: RawClient, tmp_path: Path
) -> None:
    there = make_key(admin, f"alias/{new_name('there')}")
    policy = put(admin, allow("crypto-user", "alias/granted/*"))
    point = make_point(admin, policy)
    with connected(running, admin, point, tmp_path) as client:
        for operation, rest in (("encrypt", ({}, b"x")), ("show_key", ())):
            told = {
                refusal(client, operation, name, *rest)[1].replace(name, "KEY")
                for name in (there, NOBODY)
            }
            assert told == {f"access point {point.name} may not {operation} KEY; {WHY}"}
        # Where the policies would allow it, it is told that there is no such key.
        assert refusal(client, "show_key", "alias/granted/none")[0] == "NotFound"


def test_a_changed_policy_holds_on_open_connections(
    running: Running, admin: RawClient, tmp_path: Path
) -> None:
    key, policy = make_key(admin), put(admin, allow(["encrypt"]))
    point = make_point(admin, policy)
    with connected(running, admin, point, tmp_path) as client:
        envelope = client.call("encrypt", key, {}, b"x")[0]
        assert refusal(client, "decrypt", None, {}, envelope)[0] == "Denied"
        put(admin, allow(["decrypt"]), name=policy)
        assert client.call("decrypt", None, {}, envelope)[0] == b"x"
        assert refusal(client, "encrypt", key, {}, b"x")[0] == "Denied"
        admin.call(
            "update_access_point", point.name, None, None, [], [policy], [], [], [], [], None
        )
        assert refusal(client, "decrypt", None, {}, envelope)[0] == "Denied"


def test_what_no_longer_has_a_granted_name_is_no_longer_granted(
    running: Running, admin: RawClient, tmp_path: Path
) -> None:
    policy = put(admin, allow("crypto-user", "tag/stage=test"), allow("key-admin"))
    with connected(running, admin, make_point(admin, policy), tmp_path) as client:
        assert client.call("encrypt", make_key(admin, None, stage="test"), {}, b"x")
        assert refusal(client, "encrypt", make_key(admin, None, stage="live"), {}, b"x")
        # Who only manages keys does not give names that policies speak of.
        arguments = ("AES_256", "ENCRYPT_DECRYPT", "software", None, None, "")
        assert refusal(client, "create_key", *arguments, {"stage": "test"})[0] == "Denied"
        assert client.call("create_key", *arguments, {"stage": "other"})


def test_conditions_on_context_and_size_hold_for_every_item(
    running: Running, admin: RawClient, tmp_path: Path
) -> None:
    key = make_key(admin)
    policy = put(admin, allow(["encrypt"], context={"tenant": "a"}, size_max=4))
    with connected(running, admin, make_point(admin, policy), tmp_path) as client:
        good: dict[str, str] = {"tenant": "a", "more": "b"}
        assert client.call("encrypt", key, good, b"four")
        for context, data in (({}, b""), ({"tenant": "b"}, b""), (good, b"fives")):
            assert refusal(client, "encrypt", key, context, data)[0] == "Denied"
        many = pack_column([b"\x81\xa6tenant\xa1a", b"\x81\xa6tenant\xa1b"])
        items = pack_column([b"1", b"2"])
        assert refusal(client, "encrypt_batch", key, {}, many, items)[0] == "Denied"
        many = pack_column([b"\x81\xa6tenant\xa1a"] * 2)
        assert client.call("encrypt_batch", key, {}, many, items)
        large = pack_column([b"1", b"12345"])
        assert refusal(client, "encrypt_batch", key, {}, many, large)[0] == "Denied"
        client.tls.sendall(client.protocol.send(Request(9999, 1, 0, ["alias/x"], {})))
        unread = client.receive()
        assert isinstance(unread, Error) and unread.number == errors.InvalidArgument.number


def test_a_run_of_requests_is_decided_one_by_one_where_sizes_count(
    running: Running, admin: RawClient, tmp_path: Path
) -> None:
    key, policy = make_key(admin), put(admin, allow(["encrypt"], size_max=4))
    with connected(running, admin, make_point(admin, policy), tmp_path) as client:
        sizes = [4, 5, 0, 1000, 4]
        sent = {client.request("encrypt", key, {}, bytes(size)): size for size in sizes}
        frames = [client.receive() for _ in sizes]
        allowed = {frame.id: type(frame).__name__ == "Result" for frame in frames}  # type: ignore[union-attr]
        assert allowed == {number: size <= 4 for number, size in sent.items()}


def test_network_rules_of_policies_and_access_points(
    running: Running, admin: RawClient, tmp_path: Path
) -> None:
    here, elsewhere = new_name("here"), new_name("elsewhere")
    admin.call("put_network_rule", here, ["127.0.0.0/8"])
    admin.call("put_network_rule", elsewhere, ["192.0.2.0/24"])
    policy = put(
        admin,
        allow(["generate_random"], network_rule=here),
        allow(["list_keys"], network_rule=elsewhere),
    )
    point = make_point(admin, policy)
    with connected(running, admin, point, tmp_path) as client:
        assert client.call("generate_random", 8)
        assert refusal(client, "list_keys", b"", 1)[0] == "Denied"
        admin.call(
            "update_access_point", point.name, None, None, [], [], [elsewhere], [], [], [], None
        )
        assert refusal(client, "generate_random", 8)[0] == "Denied"
        admin.call("put_network_rule", elsewhere, ["127.0.0.1/32"])
        assert client.call("generate_random", 8)
        assert client.call("list_keys", b"", 1)
        for name in (here, elsewhere):
            assert refusal(admin, "delete_network_rule", name)[0] == "Conflict"


def test_nobody_changes_its_own_access(running: Running, admin: RawClient, tmp_path: Path) -> None:
    rule = new_name("rule")
    admin.call("put_network_rule", rule, ["127.0.0.0/8"])
    policy = put(admin, allow(["*"], network_rule=rule))
    point = make_point(admin, policy)
    admin.call("update_access_point", point.name, None, None, [], [], [rule], [], [], [], None)
    document = json.dumps({"statements": [allow(["*"])]})
    with connected(running, admin, point, tmp_path) as client:
        changes: list[tuple[Any, ...]] = [
            ("put_policy", policy, document),
            ("put_network_rule", rule, ["0.0.0.0/0"]),
            (
                "update_access_point",
                point.name,
                None,
                None,
                ["administrator"],
                [],
                [],
                [],
                [],
                [],
                None,
            ),
            ("update_access_point", point.name, None, None, [], [policy], [], [], [], [], None),
            ("update_access_point", point.name, None, None, [], [], [], [rule], [], [], None),
            ("update_access_point", point.name, None, "Disabled", [], [], [], [], [], [], None),
            ("delete_access_point", point.name),
        ]
        for request in changes:
            kind, text = refusal(client, *request)
            assert (kind, "another administrator" in text) == ("Denied", True)
        assert client.call(
            "update_access_point", point.name, "words", None, [], [], [], [], [], [], None
        )
    assert refusal(admin, "put_policy", "administrator", document)[0] == "Denied"
    # It could administer access: the first administrator is the only one again.
    admin.call("delete_access_point", point.name)


def test_the_last_administrator_stays(running: Running, admin: RawClient, tmp_path: Path) -> None:
    # This one may change access, but would not keep it.
    policy = put(admin, allow(["update_access_point", "revoke_client_key", "delete_access_point"]))
    with connected(running, admin, make_point(admin, policy), tmp_path) as client:
        keys = admin.call("list_client_keys", b"", 100)[0]
        (own,) = (key for key in keys if key.access_point == "administrator")
        changes: list[tuple[Any, ...]] = [
            (
                "update_access_point",
                "administrator",
                None,
                "Disabled",
                [],
                [],
                [],
                [],
                [],
                [],
                None,
            ),
            (
                "update_access_point",
                "administrator",
                None,
                None,
                [],
                ["administrator"],
                [],
                [],
                [],
                [],
                None,
            ),
            ("delete_access_point", "administrator"),
            ("revoke_client_key", own.client_key_id),
        ]
        for request in changes:
            kind, text = refusal(client, *request)
            assert (kind, "make another administrator first" in text) == ("Conflict", True)
    assert admin.call("show_status")


def test_deleted_and_disabled_access_points_are_refused(
    running: Running, admin: RawClient, tmp_path: Path
) -> None:
    policy = put(admin, allow(["generate_random"]))
    for state in ("Disabled", "Deleted"):
        point = make_point(admin, policy)
        with connected(running, admin, point, tmp_path) as client:
            assert client.call("generate_random", 8)
            if state == "Disabled":
                admin.call(
                    "update_access_point", point.name, None, state, [], [], [], [], [], [], None
                )
            else:
                assert admin.call("delete_access_point", point.name)[0].state == state
            frame = client.receive()
            assert getattr(frame, "number", 0) == errors.Unauthenticated.number
    assert refusal(admin, "show_access_point", point.name)[0] == "NotFound"
    assert refusal(admin, "create_client_key", point.name, None, 30)[0] == "NotFound"
    assert refusal(admin, "create_access_point", point.name, "", [], [], None)[0] == "Conflict"


def test_policies_and_network_rules_from_making_to_deleting(admin: RawClient) -> None:
    name, rule = new_name("policy"), new_name("rule")
    assert refusal(admin, "show_policy", name)[0] == "NotFound"
    document = json.dumps({"statements": [allow(["encrypt"], network_rule=rule)]})
    assert refusal(admin, "put_policy", name, document) == (
        "NotFound",
        f"there is no network rule {rule}",
    )
    networks = ["10.0.0.0/8", "2001:db8::/32"]
    assert admin.call("put_network_rule", rule, networks[::-1])[0].networks == networks
    assert admin.call("put_policy", name, document)[0].statements == 1
    assert refusal(admin, "put_policy", name, "{}")[0] == "InvalidArgument"
    assert json.loads(admin.call("show_policy", name)[1]) == json.loads(document)
    point = make_point(admin, name)
    assert admin.call("show_policy", name)[0].access_points == 1
    assert [r.name for r in _pages(admin, "list_policies")].count(name) == 1
    assert [r.name for r in _pages(admin, "list_network_rules")].count(rule) == 1
    kind, text = refusal(admin, "delete_policy", name)
    assert (kind, f"access point {point.name}" in text) == ("Conflict", True)
    admin.call("update_access_point", point.name, None, None, [], [name], [], [], [], [], None)
    assert admin.call("delete_policy", name)[0].name == name
    assert refusal(admin, "delete_policy", name)[0] == "NotFound"
    assert admin.call("delete_network_rule", rule)[0].name == rule
    assert refusal(admin, "show_network_rule", rule)[0] == "NotFound"
    # A name that is free again is given again.
    assert put(admin, allow(["encrypt"]), name=name) == name
    assert name in [r.name for r in _pages(admin, "list_policies")]


def _pages(admin: RawClient, operation: str, limit: int = 2) -> list[Any]:
    found, page = [], b""
    while True:
        records, page = admin.call(operation, page, limit)
        found += records
        if not page:
            return found


def test_what_is_tested_is_what_is_decided(
    running: Running, admin: RawClient, tmp_path: Path
) -> None:
    key = make_key(admin, f"alias/{new_name('tested')}")
    policy = put(
        admin,
        {**allow(["encrypt"], f"key/{key}", context={"a": "b", "c": "d"}), "name": "sealing"},
        allow(["decrypt"], "alias/none"),
    )
    point = make_point(admin, policy)

    def test(operation: str, context: dict[str, str]) -> list[Any]:
        return admin.call("test_policy", point.name, operation, key, context, "127.0.0.1", 1)

    assert test("encrypt", {"a": "b", "c": "d"}) == [
        True,
        f"allowed by {policy} statement sealing",
        [],
    ]
    both = "a=b and c=d"
    for context, entries in (({}, both), ({"a": "b"}, "c=d"), ({"a": "x"}, both)):
        wanted = f"{policy} statement sealing: wants in the context {entries}"
        assert test("encrypt_batch", context) == [False, "no statement allows it", [wanted]]
    wanted = f"{policy} statement 2: wants another resource"
    assert test("decrypt", {}) == [False, "no statement allows it", [wanted]]
    assert (
        "did you mean 'encrypt'"
        in refusal(admin, "test_policy", point.name, "encypt", None, {}, None, 0)[1]
    )
    assert refusal(admin, "test_policy", "nobody", "encrypt", None, {}, None, 0)[0] == "NotFound"
    with connected(running, admin, point, tmp_path) as client:
        assert client.call("encrypt", key, {"a": "b", "c": "d"}, b"x")
        assert refusal(client, "encrypt", key, {}, b"x")[0] == "Denied"


def test_what_is_malformed_is_refused_as_such_before_a_policy_looks_at_it(
    running: Running, admin: RawClient, tmp_path: Path
) -> None:
    key = make_key(admin)
    policy = put(admin, allow(["encrypt", "decrypt"], context={"a": "b"}, size_max=4))
    # Offsets that jump: each item a large part of the column.
    size = 500_000
    offsets = [size * (number % 2) for number in range(2001)]
    bomb = struct.pack(f">I{len(offsets)}I", 2000, *offsets) + bytes(size)
    many = pack_column([encode_context({"a": "b", "n": str(n)}) for n in range(CONTEXTS_MAX + 1)])
    items = pack_column([b"x"] * (CONTEXTS_MAX + 1))
    with connected(running, admin, make_point(admin, policy), tmp_path) as client:
        for contexts, plaintexts, said in (
            (bomb, pack_column([b"x"] * 2000), "contexts"),
            (None, bomb, "plaintexts"),
            (many, items, f"at most {CONTEXTS_MAX}"),
        ):
            kind, text = refusal(client, "encrypt_batch", key, {}, contexts, plaintexts)
            assert (kind, said in text) == ("InvalidArgument", True)
        client.tls.sendall(client.protocol.send(Request(99, 1, 0, [key, 5, b""], {})))
        frame = client.receive()
        assert isinstance(frame, Error) and frame.number == errors.InvalidArgument.number


def test_nothing_is_made_for_somebody_after_a_right_was_taken(
    running: Running, admin: RawClient, tmp_path: Path
) -> None:
    """Requests that are under way when the answer to a disabling leaves change nothing any more."""
    policy = put(admin, allow(["create_access_point", "create_client_key"]))
    point, target = make_point(admin, policy), make_point(admin)

    def made() -> int:
        """Client keys there are for the target."""
        found = _pages(admin, "list_client_keys", 100)
        return sum(key.access_point == target.name for key in found)

    with contextlib.ExitStack() as stack:
        first = stack.enter_context(connected(running, admin, point, tmp_path))
        context = client_context(tmp_path)
        more = [stack.enter_context(connect(running.address, context)) for _ in range(4)]
        for client in (first, *more):
            for _ in range(60):
                client.request("create_client_key", target.name, None, 30)
        assert first.receive()
        admin.call(
            "update_access_point", point.name, None, "Disabled", [], [], [], [], [], [], None
        )
        before = made()
        # To the end of the connections, and what a thread was still making.
        for client in (first, *more):
            with contextlib.suppress(EOFError, OSError):
                while True:
                    client.receive()
        assert admin.call("generate_random", 1)
        assert 0 < made() == before


def test_names_are_given_by_what_holds_when_the_key_is_stored(
    running: Running, admin: RawClient, tmp_path: Path
) -> None:
    """What is tested of a key to be made is what is decided: the names it gets count."""
    space = new_name("space")
    point = make_point(admin, put(admin, allow(["create_key"], f"alias/{space}/*")))
    alias = f"alias/{space}/a"
    tested = admin.call("test_policy", point.name, "create_key", alias, {}, None, 0)
    assert tested[0] is False and "put_policy" in tested[1]
    arguments: tuple[Any, ...] = ("AES_256", "ENCRYPT_DECRYPT", "software", None, alias, "", {})
    with connected(running, admin, point, tmp_path) as client:
        assert refusal(client, "create_key", *arguments)[0] == "Denied"


def test_an_application_is_stopped_from_outside_of_every_network_rule(
    running: Running, admin: RawClient, tmp_path: Path
) -> None:
    """Who would not keep administering from here may still stop what never administered."""
    rights = ["update_access_point", "revoke_client_key"]
    point, victim = make_point(admin, put(admin, allow(rights))), make_point(admin)
    with connected(running, admin, point, tmp_path) as client:
        changed = client.call(
            "update_access_point", victim.name, None, "Disabled", [], [], [], [], [], [], None
        )
        assert changed[0].state == "Disabled"
