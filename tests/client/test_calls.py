"""What methods send and what they make of answers: pure, and strict in both directions."""

import base64
import datetime
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsmux import HsmuxError, InvalidArgument, ProtocolError, _calls
from hsmux._calls import Call, Page
from hsmux._pem import der_of_request, pem_of
from hsmux_protocol.fields import read_fields
from hsmux_protocol.operations import OPERATIONS
from hsmux_protocol.records import AccessPointRecord, ClientKeyRecord, KeyRecord, LimitsRecord
from hsmux_protocol.references import format_identifier

KEY = KeyRecord(
    bytes(16), "AES_256", "ENCRYPT_DECRYPT", "software", "", "", "Enabled", 1, ["a"], "d", {}, 5000
)

CALLS: dict[str, Call[Any]] = {
    "encrypt": _calls.encrypt("alias/a", b"", None),
    "decrypt": _calls.decrypt(b"", None, None),
    "sign": _calls.sign("alias/a", b"", "ECDSA_SHA_256", False),
    "verify": _calls.verify("alias/a", b"", b"", "ECDSA_SHA_256", False),
    "get_public_key": _calls.public_key("alias/a"),
    "generate_random": _calls.generate_random(1),
    "create_key": _calls.create_key("AES_256", None, None, None, None, "", None),
    "show_key": _calls.show_key("alias/a"),
    "list_keys": _calls.list_keys(b""),
    "create_access_point": _calls.create_access_point("a", "", ["p"], ["uri:a:b"], (1, None, 0)),
    "show_access_point": _calls.show_access_point("a"),
    "update_access_point": _calls.update_access_point(
        "a", None, True, (["p"], [], [], ["n"], ["uri:a:b"], []), (None, 2, 3)
    ),
    "delete_access_point": _calls.delete_access_point("a"),
    "show_client_key": _calls.show_client_key(format_identifier("ck-", bytes(16))),
    "set_quorum": _calls.set_quorum(2),
    "show_quorum": _calls.show_quorum(),
    "approve_request": _calls.approve_request("0a" * 32),
    "list_requests": _calls.list_requests(b""),
    "show_request": _calls.show_request("0A" * 32),
    "withdraw_request": _calls.withdraw_request("0a" * 32),
    "put_policy": _calls.put_policy("p", "{}"),
    "show_policy": _calls.show_policy("p"),
    "list_policies": _calls.list_policies(b""),
    "delete_policy": _calls.delete_policy("p"),
    "test_policy": _calls.test_policy("a", "encrypt", "alias/a", {"a": "b"}, "::1", 5),
    "explain_reference": _calls.explain_reference("r5f3a91c07b2e-1"),
    "put_network_rule": _calls.put_network_rule("n", ["10.0.0.0/8"]),
    "show_network_rule": _calls.show_network_rule("n"),
    "list_network_rules": _calls.list_network_rules(b""),
    "delete_network_rule": _calls.delete_network_rule("n"),
    "list_access_points": _calls.list_access_points(b""),
    "create_client_key": _calls.create_client_key("a", None, 1),
    "renew_client_key": _calls.renew_client_key(None, None, False),
    "list_client_keys": _calls.list_client_keys(b""),
    "revoke_client_key": _calls.revoke_client_key(format_identifier("ck-", bytes(16))),
    "show_status": _calls.status(),
}


def test_every_operation_that_is_no_batch_has_a_call() -> None:
    assert CALLS.keys() == {name for name in OPERATIONS if not name.endswith("_batch")}
    for name, call in CALLS.items():
        assert call.operation is OPERATIONS[name]
        assert len(read_fields(call.operation.arguments, call.arguments)) == len(call.arguments)
        assert repr(call) == f"Call({name})"


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(0, 2**63)
    | st.binary(max_size=20)
    | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(CALLS)), st.lists(values, max_size=9))
def test_any_answer_is_a_result_or_a_protocol_error(name: str, answer: list[Any]) -> None:
    call = CALLS[name]
    try:
        read = read_fields(call.operation.results, answer)
    except ValueError:
        return
    try:
        call.result(read)
    except HsmuxError as error:
        assert type(error) is ProtocolError and name in str(error)


def test_a_moment_beyond_all_calendars_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="show_key"):
        CALLS["show_key"].result([KEY._replace(created_at_ms=2**53)])
    key = CALLS["show_key"].result([KEY])
    assert key.created_at == datetime.datetime(1970, 1, 1, 0, 0, 5, tzinfo=datetime.UTC)
    assert key.aliases == ("alias/a",)


def test_a_private_key_that_is_no_text_is_a_protocol_error() -> None:
    record = ClientKeyRecord(bytes(16), "a", bytes(32), "1", "Enabled", 0, 1, b"")
    with pytest.raises(ProtocolError, match="create_client_key"):
        CALLS["create_client_key"].result([record, b"", b"", b"\xff"])


unchecked: Any = _calls
"""For what a type checker would see."""

MISTAKES: dict[str, Callable[[], Call[Any]]] = {
    "encrypt: key: must be text": lambda: unchecked.encrypt(None, b"", None),
    "encrypt: plaintext: must be bytes": lambda: unchecked.encrypt("alias/a", "", None),
    "encrypt: context: context: a map": lambda: unchecked.encrypt("alias/a", b"", 5),
    "decrypt: key: 'a' is not a key": lambda: unchecked.decrypt(b"", None, "a"),
    "sign: digest: must be true or false": lambda: unchecked.sign(
        "alias/a", b"", "ECDSA_SHA_256", 1
    ),
    "generate_random: length: must be an integer": lambda: unchecked.generate_random(True),
    "create_key: spec: must be one of": lambda: unchecked.create_key(
        ["AES_256"],
        None,
        None,
        None,
        None,
        "",
        None,
    ),
    "create_key: tags: must be a map": lambda: unchecked.create_key(
        "AES_256",
        None,
        None,
        None,
        None,
        "",
        5,
    ),
    "create_key: description: must be valid Unicode": lambda: unchecked.create_key(
        "AES_256", None, None, None, None, "\udc80", None
    ),
    "create_client_key: csr: must be bytes": lambda: unchecked.create_client_key("a", "PEM", 1),
    "create_client_key: csr: not PEM": lambda: unchecked.create_client_key(
        "a",
        b"-----BEGIN CERTIFICATE REQUEST-----\nabcde\n-----END CERTIFICATE REQUEST-----\n",
        1,
    ),
    "create_client_key: validity_days": lambda: unchecked.create_client_key("a", None, 5000),
    "create_access_point: name: must have 1": lambda: unchecked.create_access_point("", "", [], []),
    "renew_client_key: csr: must be bytes": lambda: unchecked.renew_client_key(None, "PEM", False),
    "renew_client_key: 'ap-": lambda: unchecked.renew_client_key("ap-x", None, False),
    "renew_client_key: force": lambda: unchecked.renew_client_key(None, None, 1),
    "revoke_client_key: client_key_id: must be text": lambda: unchecked.revoke_client_key(5),
    "revoke_client_key: 'ap-": lambda: unchecked.revoke_client_key(
        format_identifier("ap-", bytes(16))
    ),
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_named_before_anything_is_sent(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        MISTAKES[text]()
    assert str(caught.value).startswith(text)


def test_a_change_has_a_token_of_its_own_unless_one_is_named() -> None:
    call = CALLS["create_key"]
    made = {_calls.options_of(call, None)["idempotency_token"] for _ in range(10)}
    assert len(made) == 10 and {len(token) for token in made} == {16}
    assert _calls.options_of(call, bytes(16)) == {"idempotency_token": bytes(16)}
    assert _calls.options_of(CALLS["encrypt"], None) == {}
    for wrong in (b"", bytes(15), bytes(17), "text"):
        with pytest.raises(InvalidArgument, match="idempotency_token"):
            unchecked.options_of(call, wrong)


def test_what_is_not_said_about_a_key_follows_from_the_rest() -> None:
    def arguments(spec: str, storage: str | None) -> list[Any]:
        return _calls.create_key(spec, None, None, storage, None, "", None).arguments[:4]

    assert arguments("AES_256", None) == ["AES_256", "ENCRYPT_DECRYPT", "software", None]
    assert arguments("EC_P256", "hsm") == ["EC_P256", "SIGN_VERIFY", "hardware", "hsm"]


def test_a_list_that_has_no_end_is_a_protocol_error() -> None:
    record = AccessPointRecord(bytes(16), "a", "", "Enabled", [], [], 0, [], LimitsRecord(0, 0, 0))
    page = CALLS["list_access_points"].result([[record], b"next"])
    assert _calls.following_page(page, b"") == b"next"
    assert _calls.following_page(Page([], b""), b"next") == b""
    empty: Page[Any] = Page([], b"further")
    for endless in (page, empty):
        with pytest.raises(ProtocolError, match="does not end"):
            _calls.following_page(endless, b"next")


def test_times() -> None:
    assert _calls.timeout_of(CALLS["encrypt"], None) == 10
    assert _calls.timeout_of(CALLS["create_key"], None) == 30
    assert _calls.timeout_of(CALLS["encrypt"], 0.5) == 0.5
    assert _calls.end_of(100, None) is None and _calls.end_of(100, 5) == 105
    with pytest.raises(InvalidArgument, match="timeout_s"):
        unchecked.end_of(0, "5")
    with pytest.raises(InvalidArgument, match="timeout_s"):
        unchecked.timeout_of(CALLS["encrypt"], "5")


@given(st.binary(min_size=1, max_size=200), st.sampled_from([b"\n", b"\r\n"]))
def test_pem_and_der_are_the_same_request(der: bytes, newline: bytes) -> None:
    pem = pem_of("CERTIFICATE REQUEST", der).encode().replace(b"\n", newline)
    assert der_of_request(pem) == der
    assert der_of_request(b"a comment" + newline + pem) == der
    assert der_of_request(pem.replace(b"CERTIFICATE", b"NEW CERTIFICATE")) == der
    assert unchecked.der_of_request(bytearray(der)) == der
    assert max(map(len, pem.split())) <= 64 and base64.b64encode(der)[:60] in pem
