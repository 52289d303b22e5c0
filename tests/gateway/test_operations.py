"""Every operation over real TLS, against a gateway process with a software root."""

import itertools
import re
import ssl
import threading
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from hsmux_protocol import errors
from hsmux_protocol.columns import (
    pack_column,
    unpack_column,
    unpack_u16_column,
    unpack_u32_column,
)
from hsmux_protocol.context import encode_context
from hsmux_protocol.envelope import (
    HEADER_SIZE,
    SUITE_AES_GCM,
    SUITE_XAES_256_GCM,
    make_header,
)
from hsmux_protocol.keys import KEY_SPECS
from hsmux_protocol.limits import FRAME_SIZE_MAX, ITEM_SIZE_MAX
from hsmux_protocol.records import KeyRecord
from hsmux_protocol.references import format_identifier, format_key_id, parse_identifier
from tests.gateway.raw_client import RawClient, connect
from tests.gateway.running import Running

_aliases = itertools.count()


def make_key(client: RawClient, spec: str = "AES_256") -> KeyRecord:
    """A software key with an alias of its own."""
    alias = f"alias/test-{next(_aliases)}"
    usage = KEY_SPECS[spec].usage
    (key,) = client.call("create_key", spec, usage, "software", None, alias, "", {})
    assert isinstance(key, KeyRecord)
    return key


@pytest.mark.parametrize("size", [0, 1, 1023, ITEM_SIZE_MAX])
def test_what_is_encrypted_decrypts(client: RawClient, size: int) -> None:
    key = make_key(client)
    plaintext = bytes(size)
    envelope, key_id, version = client.call(
        "encrypt", format_key_id(key.key_id), {"tenant": "a"}, plaintext
    )
    assert (key_id, version) == (key.key_id, 1)
    assert len(envelope) == size + SUITE_XAES_256_GCM.overhead_size
    assert client.call("decrypt", None, {"tenant": "a"}, envelope) == [plaintext, key_id, 1]


def test_two_envelopes_of_one_plaintext_differ(client: RawClient) -> None:
    name = format_key_id(make_key(client).key_id)
    envelopes = {client.call("encrypt", name, {}, b"same")[0] for _ in range(50)}
    assert len(envelopes) == 50


def test_every_changed_byte_and_every_cut_is_refused(client: RawClient) -> None:
    key = make_key(client)
    envelope = client.call("encrypt", format_key_id(key.key_id), {}, b"record")[0]
    for index in range(len(envelope)):
        changed = bytearray(envelope)
        changed[index] ^= 1
        with pytest.raises((errors.InvalidCiphertext, errors.InvalidArgument)):
            client.call("decrypt", None, {}, bytes(changed))
    for size in range(len(envelope)):
        with pytest.raises((errors.InvalidCiphertext, errors.InvalidArgument)):
            client.call("decrypt", None, {}, envelope[:size])


def test_another_context_or_another_pinned_key_is_refused(client: RawClient) -> None:
    key, other = make_key(client), make_key(client)
    envelope = client.call("encrypt", format_key_id(key.key_id), {"a": "1"}, b"x")[0]
    for context in ({}, {"a": "2"}, {"b": "1"}, {"a": "1", "b": ""}):
        with pytest.raises(errors.InvalidCiphertext):
            client.call("decrypt", None, context, envelope)
    with pytest.raises(errors.InvalidCiphertext):
        client.call("decrypt", format_key_id(other.key_id), {"a": "1"}, envelope)
    pinned = format_key_id(key.key_id) + "@1"
    assert client.call("decrypt", pinned, {"a": "1"}, envelope)[0] == b"x"


def test_reserved_context_keys_are_refused(client: RawClient) -> None:
    name = format_key_id(make_key(client).key_id)
    request = client.protocol
    with pytest.raises(ValueError, match="reserved"):
        client.call("encrypt", name, {"hsmux:secret": "x"}, b"")
    assert request.open_ids == set()


def test_a_batch_keeps_its_order_and_opens(client: RawClient) -> None:
    key = make_key(client)
    items = [b"%d" % number * (number % 97) for number in range(3000)]
    statuses, envelopes, key_id, version = client.call(
        "encrypt_batch", format_key_id(key.key_id), {"b": "1"}, None, pack_column(items)
    )
    assert (key_id, version) == (key.key_id, 1)
    assert set(unpack_u16_column(statuses)) == {0}
    statuses, plaintexts, _, versions = client.call(
        "decrypt_batch", None, {"b": "1"}, None, envelopes
    )
    assert unpack_column(plaintexts) == items
    assert set(unpack_u32_column(versions)) == {1}
    single = unpack_column(envelopes)[2321]
    assert client.call("decrypt", None, {"b": "1"}, single)[0] == items[2321]


def test_nobody_is_told_why_an_envelope_does_not_open(client: RawClient) -> None:
    key, other = make_key(client), make_key(client)
    name, another = format_key_id(key.key_id), format_key_id(other.key_id)
    envelope = client.call("encrypt", name, {}, b"x")[0]
    rest = envelope[HEADER_SIZE:]
    no_version = make_header(SUITE_XAES_256_GCM, key.key_id, 2) + rest
    no_key = make_header(SUITE_XAES_256_GCM, bytes(16), 1) + rest
    other_suite = make_header(SUITE_AES_GCM, key.key_id, 1) + rest
    told = set()
    for pinned, context, ciphertext in (
        (None, {}, envelope[:-1] + bytes([envelope[-1] ^ 1])),
        (None, {"a": "b"}, envelope),
        (None, {}, no_version),
        (None, {}, no_key),
        (None, {}, other_suite),
        (another, {}, envelope),
        (another, {}, no_version),
        (another, {}, no_key),
        (name, {}, no_key),
        (f"{name}@2", {}, envelope),
        (f"{name}@2", {}, no_version),
    ):
        with pytest.raises(errors.HsmuxError) as refused:
            client.call("decrypt", pinned, context, ciphertext)
        told.add((refused.value.number, refused.value.text))
    assert told == {(600, "the ciphertext does not open with this key and context")}
    assert client.call("decrypt", name, {}, envelope)[0] == b"x"


def test_a_batch_of_a_key_that_is_not_there_does_not_open(client: RawClient) -> None:
    name = format_key_id(make_key(client).key_id)
    envelope = client.call("encrypt", name, {}, b"x")[0]
    no_key = make_header(SUITE_XAES_256_GCM, bytes(16), 1) + envelope[HEADER_SIZE:]
    for batch in ([no_key], [no_key, no_key], [no_key, envelope, b""]):
        answer = client.call("decrypt_batch", None, {}, None, pack_column(batch))
        statuses, plaintexts, key_id, versions = answer
        assert unpack_u16_column(statuses) == [600] * len(batch)
        assert unpack_column(plaintexts) == [b""] * len(batch)
        assert (key_id, unpack_u32_column(versions)) == (bytes(16), [0] * len(batch))
    with pytest.raises(errors.NotFound):
        client.call("decrypt_batch", format_key_id(bytes(16)), {}, None, pack_column([envelope]))


def test_a_batch_with_a_context_for_each_item(client: RawClient) -> None:
    name = format_key_id(make_key(client).key_id)
    contexts = pack_column([encode_context({"row": str(number)}) for number in range(3)])
    items = pack_column([b"a", b"b", b"c"])
    envelopes = client.call("encrypt_batch", name, {}, contexts, items)[1]
    second = unpack_column(envelopes)[1]
    assert client.call("decrypt", None, {"row": "1"}, second)[0] == b"b"
    swapped = pack_column([encode_context({"row": str(number)}) for number in (0, 2, 1)])
    statuses = client.call("decrypt_batch", None, {}, swapped, envelopes)[0]
    invalid = errors.InvalidCiphertext.number
    assert unpack_u16_column(statuses) == [0, invalid, invalid]


def test_one_bad_item_fails_alone(client: RawClient) -> None:
    key, other = make_key(client), make_key(client)
    name = format_key_id(key.key_id)
    good = client.call("encrypt", name, {}, b"good")[0]
    foreign = client.call("encrypt", format_key_id(other.key_id), {}, b"other")[0]
    no_version = make_header(SUITE_XAES_256_GCM, key.key_id, 7) + bytes(60)
    batch = [b"", b"garbage", good, good[:-1], foreign, no_version, good[:30], good]
    statuses, plaintexts, _, versions = client.call(
        "decrypt_batch", None, {}, None, pack_column(batch)
    )
    bad = errors.InvalidCiphertext.number
    assert unpack_u16_column(statuses) == [bad, bad, 0, bad, bad, bad, bad, 0]
    assert unpack_column(plaintexts) == [b"", b"", b"good", b"", b"", b"", b"", b"good"]
    assert unpack_u32_column(versions) == [0, 0, 1, 1, 0, 0, 1, 1]


def test_an_item_over_the_limit_fails_alone(client: RawClient) -> None:
    name = format_key_id(make_key(client).key_id)
    items = [b"small", bytes(ITEM_SIZE_MAX), bytes(ITEM_SIZE_MAX + 1)]
    statuses, envelopes, _, _ = client.call("encrypt_batch", name, {}, None, pack_column(items))
    assert unpack_u16_column(statuses) == [0, 0, errors.TooLarge.number]
    assert [len(item) > 0 for item in unpack_column(envelopes)] == [True, True, False]


def test_a_batch_whose_answer_does_not_fit_is_refused_with_how_many_do(
    client: RawClient,
) -> None:
    name = format_key_id(make_key(client).key_id)
    items = [bytes(64)] * 12000
    with pytest.raises(errors.TooLarge, match=r"the first \d+ fit") as refused:
        client.call("encrypt_batch", name, {}, None, pack_column(items))
    fitting = int(refused.value.text.split("first ")[1].split()[0])
    answer = client.call("encrypt_batch", name, {}, None, pack_column(items[:fitting]))
    assert len(answer[1]) < FRAME_SIZE_MAX
    with pytest.raises(errors.TooLarge):
        client.call("encrypt_batch", name, {}, None, pack_column(items[: fitting + 1]))


def test_malformed_columns_and_contexts_are_refused(client: RawClient) -> None:
    name = format_key_id(make_key(client).key_id)
    column = pack_column([b"a", b"b"])
    for broken in (b"", column[:-1], column + b"x", b"\0\0\xff\xff", b"\xff" * 12):
        with pytest.raises(errors.InvalidArgument):
            client.call("encrypt_batch", name, {}, None, broken)
        with pytest.raises(errors.InvalidArgument):
            client.call("decrypt_batch", name, {}, None, broken)
    for contexts in ([b"\x80"], [b"\x80"] * 3, [b"\x80", b"junk"], [b"\x80", b"\x81\xa1a"]):
        with pytest.raises(errors.InvalidArgument):
            client.call("encrypt_batch", name, {}, pack_column(contexts), column)
    with pytest.raises(errors.InvalidArgument, match="either"):
        client.call("encrypt_batch", name, {"a": "b"}, pack_column([b"\x80"] * 2), column)
    with pytest.raises(errors.InvalidArgument, match="no item"):
        client.call("decrypt_batch", None, {}, None, column)


def test_a_digest_of_another_size_is_refused(client: RawClient) -> None:
    name = format_key_id(make_key(client, "EC_P256").key_id)
    with pytest.raises(errors.InvalidArgument, match="32 bytes"):
        client.call("sign", name, "ECDSA_SHA_256", True, bytes(31))


def test_a_key_does_only_what_it_is_for(client: RawClient) -> None:
    aes = format_key_id(make_key(client).key_id)
    signing = format_key_id(make_key(client, "EC_P256").key_id)
    with pytest.raises(errors.WrongState):
        client.call("sign", aes, "ECDSA_SHA_256", False, b"")
    with pytest.raises(errors.WrongState):
        client.call("get_public_key", aes)
    with pytest.raises(errors.WrongState):
        client.call("encrypt", signing, {}, b"")
    with pytest.raises(errors.InvalidArgument, match="usage"):
        client.call("create_key", "AES_256", "SIGN_VERIFY", "software", None, None, "", {})


def test_hardware_keys_need_an_hsm(client: RawClient) -> None:
    with pytest.raises(errors.Unsupported, match="no HSM"):
        client.call("create_key", "AES_256", "ENCRYPT_DECRYPT", "hardware", "hsm", None, "", {})


def test_unknown_keys_versions_and_aliases_are_not_found(client: RawClient) -> None:
    key = make_key(client)
    for name in ("alias/nothing", format_key_id(bytes(16)), f"{format_key_id(key.key_id)}@2"):
        with pytest.raises(errors.NotFound):
            client.call("encrypt", name, {}, b"")


def test_an_alias_is_taken_once(client: RawClient) -> None:
    key = make_key(client)
    arguments = ("AES_256", "ENCRYPT_DECRYPT", "software", None, f"alias/{key.aliases[0]}")
    with pytest.raises(errors.Conflict):
        client.call("create_key", *arguments, "", {})
    for bad in ("noprefix", "alias/", "alias/a b", "alias/ä"):
        with pytest.raises(errors.InvalidArgument, match="alias"):
            client.call("create_key", *arguments[:4], bad, "", {})


def test_a_token_repeats_the_answer_and_makes_nothing_new(client: RawClient) -> None:
    arguments = ("AES_256", "ENCRYPT_DECRYPT", "software", None, None, "once", {"a": "b"})
    first = client.call("create_key", *arguments, idempotency_token=b"0123456789abcdef")
    again = client.call("create_key", *arguments, idempotency_token=b"0123456789abcdef")
    assert first == again
    with pytest.raises(errors.Conflict, match="other arguments"):
        client.call(
            "create_key", *arguments[:5], "twice", {}, idempotency_token=b"0123456789abcdef"
        )
    other = client.call("create_key", *arguments, idempotency_token=b"fedcba9876543210")
    assert other[0].key_id != first[0].key_id


def test_an_answer_with_a_secret_is_not_repeated(client: RawClient) -> None:
    (point,) = client.call(
        "create_access_point", f"secret-{next(_aliases)}", "", ["administrator"], [], None
    )
    token = b"secretsecret0000"
    answer = client.call("create_client_key", point.name, None, 30, idempotency_token=token)
    assert b"PRIVATE KEY" in answer[3]
    with pytest.raises(errors.Conflict, match="not kept") as refused:
        client.call("create_client_key", point.name, None, 30, idempotency_token=token)
    # Whoever lost the answer finds in its text what was made, and can revoke it.
    (named,) = re.findall(r"ck-[a-z2-7]{26}", refused.value.text)
    assert parse_identifier("ck-", named) == answer[0].client_key_id


def test_a_secret_is_told_once_to_those_who_ask_at_the_same_time(
    gateway: Running, context: ssl.SSLContext, client: RawClient
) -> None:
    (point,) = client.call(
        "create_access_point", f"secret-{next(_aliases)}", "", ["administrator"], [], None
    )
    start, outcomes = threading.Barrier(4), list[Any]()

    def ask() -> None:
        with connect(gateway.address, context) as own:
            start.wait(20)
            try:
                outcomes.append(own.call("create_client_key", *arguments, idempotency_token=token))
            except errors.Conflict as error:
                outcomes.append(error)

    token, arguments = b"samesecretsame00", (point.name, None, 30)
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (answer,) = [outcome for outcome in outcomes if isinstance(outcome, list)]
    named = {re.findall(r"ck-[a-z2-7]{26}", o.text)[0] for o in outcomes if o is not answer}
    assert named == {format_identifier("ck-", answer[0].client_key_id)}
    assert len(outcomes) == 4


def test_pages_list_every_key_once(client: RawClient) -> None:
    made = {make_key(client).key_id for _ in range(7)}
    listed: list[bytes] = []
    page = b""
    while True:
        keys, page = client.call("list_keys", page, 3)
        listed += [key.key_id for key in keys]
        if not page:
            break
    assert len(listed) == len(set(listed))
    assert made <= set(listed)


def test_a_page_ends_early_when_tags_fill_it(client: RawClient) -> None:
    tags = {f"name-{number}": "v" * 256 for number in range(50)}
    arguments = ("AES_256", "ENCRYPT_DECRYPT", "software", None, None, "d" * 8192, tags)
    made = {client.call("create_key", *arguments)[0].key_id for _ in range(40)}
    found: set[bytes] = set()
    page = b""
    while True:
        keys, page = client.call("list_keys", page, 100)
        found |= {key.key_id for key in keys}
        if not page:
            break
    assert made <= found


def _request(key: ec.EllipticCurvePrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "administrator")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name)
    return request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def test_a_request_is_certified_and_only_its_key_is_taken_over(client: RawClient) -> None:
    (point,) = client.call(
        "create_access_point", f"csr-{next(_aliases)}", "", ["administrator"], [], None
    )
    key = ec.generate_private_key(ec.SECP256R1())
    record, der, _, private_key = client.call("create_client_key", point.name, _request(key), 30)
    certificate = x509.load_der_x509_certificate(der)
    assert private_key is None
    assert certificate.public_key() == key.public_key()
    assert certificate.subject.rfc4514_string() == f"CN={point.name}"
    assert record.access_point == point.name
    with pytest.raises(errors.Conflict):
        client.call("create_client_key", point.name, _request(key), 30)


def test_a_long_name_is_certified_as_far_as_a_certificate_can_show_it(client: RawClient) -> None:
    name = "application-" * 10
    (point,) = client.call("create_access_point", name, "", ["administrator"], [], None)
    der = client.call("create_client_key", name, None, 30)[1]
    shown = x509.load_der_x509_certificate(der).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert name.startswith(str(shown[0].value))
    assert len(str(shown[0].value)) == 64
    assert point.name == name


def test_a_character_that_no_database_holds_is_refused(client: RawClient) -> None:
    aes = ("AES_256", "ENCRYPT_DECRYPT", "software", None, None)
    for description, tags in (("a\0", {}), ("", {"a\0": ""}), ("", {"a": "\0"})):
        with pytest.raises(errors.InvalidArgument, match=r"U\+0000"):
            client.call("create_key", *aes, description, tags)
    with pytest.raises(errors.InvalidArgument, match=r"description: .*U\+0000"):
        client.call("create_access_point", "x", "\0", ["administrator"], [], None)


def test_weak_and_broken_requests_are_refused(client: RawClient) -> None:
    (point,) = client.call(
        "create_access_point", f"weak-{next(_aliases)}", "", ["administrator"], [], None
    )
    good = _request(ec.generate_private_key(ec.SECP256R1()))
    weak = _request(ec.generate_private_key(ec.SECP192R1()))
    for bad in (b"junk", good[:-4] + b"\0\0\0\0", weak):
        with pytest.raises(errors.InvalidArgument, match="csr"):
            client.call("create_client_key", point.name, bad, 30)


def test_random_bytes_have_the_length_asked_for(client: RawClient) -> None:
    assert len(client.call("generate_random", 4096)[0]) == 4096
    assert client.call("generate_random", 32) != client.call("generate_random", 32)


def test_status_says_what_it_is(client: RawClient) -> None:
    version, deployment, _, backend, root, store, revision, *rest = client.call("show_status")
    _, age_s, warnings, tokens = rest
    assert age_s is None or age_s < 600
    assert (len(deployment), root, store, tokens) == (16, "file (development)", "sqlite", [])
    assert version and backend and revision > 0
    assert any("development only" in warning for warning in warnings)
