"""Renewing client keys: whose, how often, for how long; and which ones will need it."""

import os
import ssl
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from hsmux_gateway.access.authority import CLOCK_SKEW
from hsmux_gateway.access.decision import DEFAULT_DENIAL, OWN, decide, decide_again
from hsmux_gateway.access.grants import NO_GRANTS
from hsmux_gateway.access.permits import WHY
from hsmux_gateway.access.renewal import (
    ATTEMPT_INTERVAL_S,
    ENDING_DAYS,
    RENEWAL_INTERVAL_MS,
    Attempts,
    Ends,
    count_ends,
    refuse_renewal,
    renewed_validity,
    require_room,
)
from hsmux_gateway.audit.reading import export
from hsmux_gateway.audit.records import Request
from hsmux_gateway.store.rows import ClientKeyRow
from hsmux_protocol import errors
from hsmux_protocol.operations import CLIENT_KEYS_MAX, OPERATIONS, VALIDITY_DAYS_MAX
from hsmux_protocol.records import ClientKeyRecord
from tests.gateway.access.test_decision import facts, grants_of
from tests.gateway.access.test_enforcement import allow, connected, make_point, put, refusal
from tests.gateway.raw_client import RawClient, client_context, connect
from tests.gateway.running import Running, running_gateway, write_config

NOW_MS = 1_900_000_000_000
DAY_MS = 86_400_000
NOW = datetime.fromtimestamp(NOW_MS / 1000, UTC)


def key_row(**changes: Any) -> ClientKeyRow:
    """A client key of 90 days, in its last third."""
    row = ClientKeyRow(
        os.urandom(16),
        bytes(16),
        os.urandom(32),
        "01",
        "CN=a",
        NOW_MS - 61 * DAY_MS,
        NOW_MS + 29 * DAY_MS,
        "Enabled",
        NOW_MS - 61 * DAY_MS,
    )
    return msgspec.structs.replace(row, **changes)


# The decision


def test_its_own_client_key_needs_no_policy_and_nothing_else_is_had_for_that() -> None:
    owned = facts(NO_GRANTS, "renew_client_key", None, is_own=True)
    decision = decide(owned)
    assert (decision.allowed, decision.statement) == (True, OWN)
    for changes in (
        {"is_own": False},
        {"client_key_enabled": False},
        {"access_point_enabled": False},
        {"now_ms": owned.valid_until_ms},
        {"is_inside": False},
        {"also": ("put_policy",)},
    ):
        assert not decide(owned._replace(**changes)).allowed
    assert {name: o.own for name, o in OPERATIONS.items() if o.own} == {
        "renew_client_key": "client key"
    }


def test_a_statement_can_deny_it_and_what_is_own_is_not_remembered_for_others() -> None:
    denying = grants_of({"effect": "deny", "operations": ["renew_client_key"], "resources": ["*"]})
    denied = decide(facts(denying, "renew_client_key", None, is_own=True))
    assert (denied.allowed, denied.statement) == (False, "denied by p statement 1")
    grants = grants_of({"effect": "allow", "operations": ["encrypt"], "resources": ["*"]})
    assert decide_again(facts(grants, "renew_client_key", None, is_own=True)).allowed
    other = decide_again(facts(grants, "renew_client_key", None))
    assert (other.allowed, other.statement) == (False, DEFAULT_DENIAL)


# How often, how many, how long


def test_after_a_renewal_neither_key_is_renewed_for_an_hour() -> None:
    old = key_row()
    new = key_row(renews=old.client_key_id, created_at_ms=NOW_MS)
    refuse_renewal(old, [old], NOW_MS, force=False)
    for key in (old, new):
        with pytest.raises(errors.Conflict, match="ask again in 3600 s"):
            refuse_renewal(key, [old, new], NOW_MS, force=False)
        with pytest.raises(errors.Conflict, match="ask again in 1 s"):
            refuse_renewal(key, [old, new], NOW_MS + RENEWAL_INTERVAL_MS - 1, force=False)
        refuse_renewal(key, [old, new], NOW_MS + RENEWAL_INTERVAL_MS, force=False)
        refuse_renewal(key, [old, new], NOW_MS, force=True)
    # A client key of an hour waits for a third of that, or it would end first.
    short = key_row(
        not_before_ms=NOW_MS,
        not_after_ms=NOW_MS + 3_600_000,
        renews=b"x" * 16,
        created_at_ms=NOW_MS,
    )
    with pytest.raises(errors.Conflict, match="ask again in 1200 s"):
        refuse_renewal(short, [short], NOW_MS, force=False)


@pytest.mark.parametrize("force", [False, True])
def test_what_is_not_accepted_is_not_renewed(force: bool) -> None:
    for changes in ({"state": "Revoked"}, {"state": "Disabled"}, {"not_after_ms": NOW_MS}):
        key = key_row(**changes)
        with pytest.raises(errors.WrongState, match="create a new one"):
            refuse_renewal(key, [key], NOW_MS, force=force)


@pytest.mark.parametrize("force", [False, True])
def test_an_access_point_has_so_many_accepted_keys_and_no_more(force: bool) -> None:
    keys = [key_row() for _ in range(CLIENT_KEYS_MAX)]
    gone = [key_row(state="Revoked"), key_row(not_after_ms=NOW_MS)]
    refuse_renewal(keys[0], [*keys[1:], *gone], NOW_MS, force=force)
    with pytest.raises(errors.Conflict, match=f"has {CLIENT_KEYS_MAX} client keys"):
        refuse_renewal(keys[0], keys, NOW_MS, force=force)
    with pytest.raises(errors.Conflict, match="revoke"):
        require_room(keys, NOW_MS)


def test_the_new_key_is_valid_as_long_as_the_old_one_was() -> None:
    far = NOW + timedelta(days=10_000)
    assert renewed_validity(key_row(), far, NOW) + CLOCK_SKEW == timedelta(days=90)
    assert renewed_validity(key_row(), NOW + timedelta(days=40), NOW) == timedelta(days=40)
    endless = key_row(not_before_ms=0)
    assert renewed_validity(endless, far, NOW) == timedelta(days=VALIDITY_DAYS_MAX)
    # The CA's end is the old one's end already.
    with pytest.raises(errors.Conflict, match="not last longer"):
        renewed_validity(key_row(), NOW + timedelta(days=29), NOW)


def test_what_ends_is_counted_unless_it_was_renewed() -> None:
    def ending(days: float, **changes: Any) -> ClientKeyRow:
        return key_row(not_after_ms=NOW_MS + int(days * DAY_MS), **changes)

    soon, late, ended, long_ago = map(ending, (ENDING_DAYS, ENDING_DAYS + 0.1, 0, -ENDING_DAYS))
    assert count_ends([soon, late, ended, long_ago], NOW_MS) == Ends(1, 1)
    successors = [ending(300, renews=key.client_key_id) for key in (soon, ended)]
    assert count_ends([soon, late, ended, long_ago, *successors], NOW_MS) == Ends(0, 0)


# At a gateway


def request_of(key: Any, *extensions: x509.ExtensionType) -> bytes:
    """A PKCS#10 request."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def context_of(
    directory: Path, certificate: bytes, private_key: ec.EllipticCurvePrivateKey
) -> ssl.SSLContext:
    """A client's context with a renewed certificate; the CA is there from `connected`."""
    (directory / "administrator.pem").write_text(ssl.DER_cert_to_PEM_cert(certificate))
    (directory / "administrator.key").write_bytes(
        private_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return client_context(directory)


def keys_of(admin: RawClient, name: str) -> list[ClientKeyRecord]:
    """The client keys of an access point, the oldest first."""
    records: list[ClientKeyRecord] = admin.call("list_client_keys", b"", 100)[0]
    found = [record for record in records if record.access_point == name]
    return sorted(found, key=lambda record: record.renews != b"")


def test_an_application_renews_its_own_key_and_both_are_accepted(
    running: Running, admin: RawClient, tmp_path: Path
) -> None:
    point, key = make_point(admin), new_key()
    with connected(running, admin, point, tmp_path) as client:
        record, der, ca, private_key = client.call("renew_client_key", None, request_of(key), False)
        (old, new) = keys_of(admin, point.name)
        assert private_key is None and new == record
        assert (new.access_point, new.renews) == (point.name, old.client_key_id)
        certificate = x509.load_der_x509_certificate(der)
        assert certificate.public_key() == key.public_key()
        assert certificate.subject.rfc4514_string() == f"CN={point.name}"
        certificate.verify_directly_issued_by(x509.load_der_x509_certificate(ca))
        lengths = {one.not_after_ms - one.not_before_ms for one in (old, new)}
        assert max(lengths) - min(lengths) <= 1000 and new.not_after_ms >= old.not_after_ms
        # The old one goes on; what it may is what it might before.
        assert refusal(client, "generate_random", 8)[0] == "Denied"
        with connect(running.address, context_of(tmp_path, der, key)) as renewed:
            assert refusal(renewed, "generate_random", 8)[0] == "Denied"
            admin.call("revoke_client_key", old.client_key_id)
            assert refusal(renewed, "generate_random", 8)[0] == "Denied"
        assert refusal(client, "generate_random", 8)[0] == "Unauthenticated"


def test_an_application_cannot_renew_in_a_loop_nor_force_it(
    running: Running, admin: RawClient, tmp_path: Path
) -> None:
    point, key = make_point(admin), new_key()
    with connected(running, admin, point, tmp_path) as client:
        der = client.call("renew_client_key", None, request_of(key), False)[1]
        again = ("renew_client_key", None, request_of(new_key()))
        assert refusal(client, *again, False)[0] == "Conflict"
        assert refusal(client, *again, True)[0] == "Denied"
        with connect(running.address, context_of(tmp_path, der, key)) as renewed:
            assert refusal(renewed, *again, False)[0] == "Conflict"
    old, new = keys_of(admin, point.name)
    forced = admin.call("renew_client_key", old.client_key_id, None, True)
    assert forced[0].renews == old.client_key_id and b"PRIVATE KEY" in forced[3]
    assert refusal(admin, "renew_client_key", new.client_key_id, None, False)[0] == "Conflict"


def test_others_keys_need_a_grant_and_a_revoked_one_is_not_renewed(
    running: Running, admin: RawClient, tmp_path: Path
) -> None:
    point = make_point(admin, put(admin, allow("key-admin"), allow("auditor")))
    with connected(running, admin, point, tmp_path) as client:
        (own,) = keys_of(admin, point.name)
        (other,) = keys_of(admin, "administrator")[:1]
        for client_key_id in (other.client_key_id, bytes(16)):
            told = refusal(client, "renew_client_key", client_key_id, None, False)
            assert told == ("Denied", f"access point {point.name} may not renew_client_key; {WHY}")
        assert refusal(admin, "renew_client_key", bytes(16), None, False)[0] == "NotFound"
        admin.call("revoke_client_key", own.client_key_id)
        assert refusal(client, "renew_client_key", None, None, False)[0] == "Unauthenticated"
        renewal = ("renew_client_key", own.client_key_id, None, False)
        assert refusal(admin, *renewal)[0] == "WrongState"


def test_what_comes_to_nothing_does_not_keep_the_ca_busy(
    running: Running, admin: RawClient, tmp_path: Path
) -> None:
    point, key = make_point(admin), new_key()
    admin.call("create_client_key", point.name, request_of(key), 30)
    with connected(running, admin, point, tmp_path) as client:
        # A public key that would be refused when it is stored is so before the CA signs.
        taken = ("renew_client_key", None, request_of(key), False)
        assert [refusal(client, *taken)[0] for _ in range(3)] == ["Conflict"] * 3
        # It was no attempt.
        client.call("renew_client_key", None, request_of(new_key()), False)


def test_one_attempt_at_a_time_is_begun() -> None:
    attempts = Attempts()
    attempts.begin(b"a", 100.0)
    attempts.begin(b"b", 100.5)
    for at_s, left_ms in ((100.25, 750), (100.75, 250)):
        with pytest.raises(errors.Busy) as caught:
            attempts.begin(b"a", at_s)
        assert caught.value.retry_after_ms == left_ms
    attempts.begin(b"a", 100.0 + ATTEMPT_INTERVAL_S)
    with pytest.raises(errors.Busy):
        attempts.begin(b"b", 101.0)


def test_a_policy_can_deny_it(running: Running, admin: RawClient, tmp_path: Path) -> None:
    denial = {**allow(["renew_client_key"]), "effect": "deny"}
    point = make_point(admin, put(admin, denial))
    with connected(running, admin, point, tmp_path) as client:
        assert refusal(client, "renew_client_key", None, None, False)[0] == "Denied"


def test_a_request_is_checked_like_any(running: Running, admin: RawClient, tmp_path: Path) -> None:
    point = make_point(admin)
    good = request_of(new_key())
    bad = {
        "not a PKCS#10 request: `openssl req -new` makes one": b"junk",
        "not signed by its own key": good[:-4] + bytes(4),
        "the key must be": request_of(ec.generate_private_key(ec.SECP192R1())),
        "RSA of 2048": request_of(rsa.generate_private_key(65537, 1024)),
        "other names": request_of(
            new_key(), x509.SubjectAlternativeName([x509.DNSName("administrator")])
        ),
        "asks for": request_of(new_key(), x509.BasicConstraints(ca=True, path_length=None)),
    }
    with connected(running, admin, point, tmp_path) as client:
        for why, csr in bad.items():
            kind, text = refusal(client, "renew_client_key", None, csr, False)
            assert kind == "InvalidArgument" and text.startswith("csr: ") and why in text
            kind, text = refusal(admin, "create_client_key", point.name, csr, 30)
            assert kind == "InvalidArgument" and text.startswith("csr: ") and why in text
        # Not with the key it has.
        key = new_key()
        der = client.call("renew_client_key", None, request_of(key), False)[1]
        with connect(running.address, context_of(tmp_path, der, key)) as renewed:
            own = keys_of(admin, point.name)[-1].client_key_id
            same = ("renew_client_key", own, request_of(key), True)
            assert "make a new pair" in refusal(admin, *same)[1]
            assert refusal(renewed, "show_status")[0] == "Denied"


def test_a_token_repeats_the_answer_and_never_a_private_key(
    running: Running, admin: RawClient, tmp_path: Path
) -> None:
    token, csr = os.urandom(16), request_of(new_key())
    point = make_point(admin)
    with connected(running, admin, point, tmp_path) as client:
        renewal = ("renew_client_key", None, csr, False)
        first = client.call(*renewal, idempotency_token=token)
        assert client.call(*renewal, idempotency_token=token) == first
        with pytest.raises(errors.Conflict, match="other arguments"):
            client.call("renew_client_key", None, None, False, idempotency_token=token)
    assert len(keys_of(admin, point.name)) == 2
    made, token = make_point(admin), os.urandom(16)
    with connected(running, admin, made, tmp_path) as client:
        client.call("renew_client_key", None, None, False, idempotency_token=token)
        with pytest.raises(errors.Conflict, match="secret is not kept"):
            client.call("renew_client_key", None, None, False, idempotency_token=token)
    assert len(keys_of(admin, made.name)) == 2


def test_what_ends_is_shown(running: Running, admin: RawClient) -> None:
    before = admin.call("show_status")[7]
    admin.call("create_client_key", make_point(admin).name, None, 30)
    status = admin.call("show_status")
    expiry, warnings = status[7], status[9]
    assert expiry.client_keys_ending == before.client_keys_ending + 1
    assert expiry.client_keys_ended == 0
    assert any(f"not renewed: {expiry.client_keys_ending}" in text for text in warnings)
    ca = x509.load_pem_x509_certificate((running.administrator / "ca.pem").read_bytes())
    assert expiry.ca_not_after_ms == ca.not_valid_after_utc.timestamp() * 1000
    assert 0 < expiry.server_not_after_ms < expiry.ca_not_after_ms
    with urllib.request.urlopen(f"http://{running.health}/metrics") as answer:
        metrics = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines())
    for kind, end_ms in (("ca", expiry.ca_not_after_ms), ("server", expiry.server_not_after_ms)):
        shown = metrics[f'hsmux_certificate_not_after_seconds{{kind="{kind}"}}']
        assert float(shown) == end_ms / 1000
    assert float(metrics["hsmux_client_keys_expiring"]) == expiry.client_keys_ending


def test_a_renewal_is_recorded_with_the_key_it_is_about(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    with running_gateway(config) as running:
        with connect(running.address, client_context(running.administrator)) as client:
            (own,) = client.call("list_client_keys", b"", 100)[0]
            client.call("renew_client_key", None, None, False)
        running.stop()
    requests = [one for _, _, one in export(tmp_path / "instance" / "audit")]
    (record,) = [one for one in requests if isinstance(one, Request) and one.operation == 76]
    assert record.resource == own.client_key_id.hex() == record.client_key.hex()
