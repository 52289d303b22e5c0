"""Who may do what, from the first policy to the changed log: an administrator gives an application
access, another one has none and learns why, access is taken from an open connection, and the log
tells all of it and what was done to it.
"""

from pathlib import Path

import pytest

from hsmux import Client
from hsmux_gateway.audit.commands import EXIT_INTEGRITY
from hsmux_gateway.audit.layout import chain_directories, segment_paths
from hsmux_gateway.audit.reading import export
from hsmux_gateway.audit.records import Request, write_record
from hsmux_protocol.errors import Denied
from tests.e2e.test_audit_story import copy_log
from tests.e2e.test_command_story import Place, initialise, make_application

POLICY = """
[[statements]]
name = "invoices"
effect = "allow"
operations = ["encrypt", "decrypt"]
resources = ["alias/billing/*"]
conditions = { network_rule = "centre" }
"""
KEY = "alias/billing/invoices"


def _connect(place: Place, profile: str) -> Client:
    """A client library's connection with what a profile names."""
    found = place.json("profile", "show", profile)
    names = ("addresses", "certificate", "private_key", "ca", "server_name")
    return Client.connect(**{name: found[name] for name in names})


def _give(place: Place) -> str:
    """Key, network rule, policy, and two applications, one without a policy; the client key."""
    place.run("key", "create", "--spec", "AES_256", "--storage", "hsm", "--alias", KEY)
    place.run("network-rule", "put", "centre", "127.0.0.0/8")
    (place.directory / "billing.toml").write_text(POLICY)
    place.run("policy", "put", "billing", "billing.toml")
    make_application(place, "archive")
    return make_application(place, "billing", "billing")


def _explain(place: Place, refused: Denied) -> None:
    """The administrator learns what the application is not told."""
    told = place.json("policy", "explain", refused.reference)
    assert (told["access_point"], told["operation"]) == ("archive", "encrypt")
    assert (told["resource"], told["statement"]) == (KEY, "no statement allows it")


def _check_log(place: Place, reference: str) -> None:
    """It is whole, holds the refusal, and a changed byte is found with its record."""
    log, key = copy_log(place, "copy"), ("--public-key", place.directory / "key.pem")
    report = place.json("audit", "verify", log, *key)
    assert report["ok"]
    records = [(n, one) for _, n, one in export(log) if isinstance(one, Request)]
    ((sequence, refusal),) = [pair for pair in records if pair[1].reference == reference]
    (segment,) = segment_paths(chain_directories(log)[0]).values()
    data = bytearray(segment.read_bytes())
    data[data.index(write_record(refusal)) + 20] ^= 1
    segment.write_bytes(data)
    told = place.run("audit", "verify", log, *key, code=EXIT_INTEGRITY)
    assert f"record {sequence}" in (told.stdout + told.stderr).decode()


def test_from_a_policy_to_a_log_that_was_changed(tmp_path: Path) -> None:
    place = Place(tmp_path)
    initialise(place)
    with place.serving():
        client_key = _give(place)
        with _connect(place, "billing") as billing, _connect(place, "archive") as archive:
            sealed = billing.encrypt(KEY, b"an invoice").ciphertext
            with pytest.raises(Denied, match="access point archive may not encrypt") as refused:
                archive.encrypt(KEY, b"another")
            _explain(place, refused.value)
            assert billing.decrypt(sealed).plaintext == b"an invoice"
            place.run("client-key", "revoke", client_key)
            # Acknowledged, it holds: not within a second but from the next request on.
            with pytest.raises(Denied, match="not accepted any more"):
                billing.decrypt(sealed)
    _check_log(place, refused.value.reference)
