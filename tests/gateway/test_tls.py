"""The border of TLS as a client sees it: which alert, and that it arrives."""

import datetime
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trustme
from cryptography import x509

from hsmux_gateway.access.first_policies import EVERYTHING
from hsmux_gateway.config import load_config
from hsmux_gateway.daemon import run_init
from hsmux_gateway.initialise import FirstAdministrator
from hsmux_protocol import errors
from hsmux_protocol.connection import VERSION, ClientConnection
from hsmux_protocol.frames import Error, Hello
from tests.gateway.certificates import (
    DAY,
    Identity,
    Issuer,
    open_issuer,
    register,
    self_signed,
    stranger,
)
from tests.gateway.raw_client import RawClient, client_context, connect
from tests.gateway.running import Running, running_gateway, write_config

TIMEOUT_S = 15.0
ROUNDS = [pytest.param(5, id="few"), pytest.param(300, id="many", marks=pytest.mark.long)]


SHORT_S = (4, 8, 16, 32, 64)
"""Seconds until client keys end: one is still good when a test comes to it, and not for long."""

CONNECTING_S = 2.0
"""Seconds that a test needs to connect."""


@dataclass
class Border:
    """A running gateway, and its CA's private key.

    Attributes:
        shorts: Client keys whose certificates end soon, one after the other, and when they do.
    """

    running: Running
    issuer: Issuer
    shorts: list[tuple[float, Identity]]

    @property
    def ca(self) -> Path:
        """The CA's certificate."""
        return self.running.administrator / "ca.pem"


@pytest.fixture(scope="module")
def border(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Border]:
    """A gateway whose CA a test can misuse."""
    config = write_config(tmp_path_factory.mktemp("border"))
    trio.run(run_init, load_config(config), FirstAdministrator(EVERYTHING))
    issuer = open_issuer(config)
    shorts = [_short(issuer, config, seconds) for seconds in SHORT_S]
    tls = config.parent / "instance" / "tls"
    own = issuer.issue(start=-DAY, validity=6 * DAY, server=True)
    own.write(tls / "server.pem", tls / "server.key")
    with running_gateway(config, init=False) as running:
        yield Border(running, issuer, shorts)


def _short(issuer: Issuer, config: Path, seconds: int) -> tuple[float, Identity]:
    """A client key that ends so many seconds from now, and when that is by the monotonic clock."""
    made = issuer.issue(start=-DAY, validity=DAY + datetime.timedelta(seconds=seconds))
    register(config, made)
    return time.monotonic() + seconds, made


def _connect(address: str) -> socket.socket:
    host, port = address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=TIMEOUT_S)


def _alert(address: str, context: ssl.SSLContext, *, speaks: bool) -> str:
    """What TLS says at the first read after a handshake the client believed in.

    Args:
        address: Of the gateway.
        context: Of the client.
        speaks: Send a HELLO and more first, which lies unread at the gateway when it closes.
    """
    with (
        pytest.raises(ssl.SSLError) as refused,
        _connect(address) as plain,
        context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False) as tls,
    ):
        if speaks:
            tls.sendall(ClientConnection().send(Hello([VERSION], [], "raw")) + bytes(100_000))
        tls.recv(1)
    return refused.value.reason or ""


REFUSED = {
    "missing": "TLSV13_ALERT_CERTIFICATE_REQUIRED",
    "foreign CA": "TLSV1_ALERT_UNKNOWN_CA",
    "self-signed": "TLSV1_ALERT_UNKNOWN_CA",
    "expired": "SSLV3_ALERT_CERTIFICATE_EXPIRED",
    "not yet valid": "SSLV3_ALERT_BAD_CERTIFICATE",
    "for servers": "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
    "signed by a client key": "TLSV1_ALERT_UNKNOWN_CA",
    "the gateway's own": "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
}


def _context(border: Border, name: str, directory: Path) -> ssl.SSLContext:
    issuer, ca = border.issuer, border.ca
    if name == "missing":
        return stranger(ca)
    if name == "foreign CA":
        context = stranger(ca)
        trustme.CA().issue_cert("client@example.org").configure_cert(context)
        return context
    if name == "the gateway's own":
        context, tls = stranger(ca), border.running.directory / "tls"
        context.load_cert_chain(tls / "server.pem", tls / "server.key")
        return context
    identities: dict[str, Callable[[], Identity]] = {
        "self-signed": self_signed,
        "expired": lambda: issuer.issue(start=-2 * DAY, validity=DAY),
        "not yet valid": lambda: issuer.issue(start=DAY, validity=DAY),
        "for servers": lambda: issuer.issue(start=-DAY, validity=2 * DAY, server=True),
        "signed by a client key": lambda: issuer.issue(start=-DAY, validity=2 * DAY).sign(),
    }
    return identities[name]().context(ca, directory)


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("name", REFUSED)
def test_a_certificate_that_does_not_hold_is_an_alert(
    border: Border, tmp_path: Path, name: str, rounds: int
) -> None:
    context = _context(border, name, tmp_path)
    for number in range(rounds):
        assert _alert(border.running.address, context, speaks=number % 2 == 1) == REFUSED[name]


def _refused_hello(address: str, context: ssl.SSLContext) -> Error:
    """The ERROR that a HELLO gets; the connection must then end with close_notify."""
    with (
        _connect(address) as plain,
        context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False) as tls,
    ):
        frame = RawClient(tls).hello()
        assert isinstance(frame, Error)
        assert frame.id == 0
        assert frame.reference
        assert tls.recv(1) == b""
    return frame


def test_a_key_that_is_nobodys_is_unauthenticated(border: Border, tmp_path: Path) -> None:
    identity = border.issuer.issue(start=-DAY, validity=2 * DAY)
    frame = _refused_hello(border.running.address, identity.context(border.ca, tmp_path))
    assert frame.number == errors.Unauthenticated.number
    assert "administrator" not in frame.text


def test_a_revoked_key_is_unauthenticated(border: Border, tmp_path: Path) -> None:
    context = client_context(border.running.administrator)
    with connect(border.running.address, context) as client:
        client.call("create_access_point", "revoked", "", ["administrator"], [], None)
        record, certificate, _, key = client.call("create_client_key", "revoked", None, 30)
        client.call("revoke_client_key", record.client_key_id)
    pem = tmp_path / "revoked.pem"
    pem.write_bytes(ssl.DER_cert_to_PEM_cert(certificate).encode() + key)
    revoked = stranger(border.ca)
    revoked.load_cert_chain(pem)
    frame = _refused_hello(border.running.address, revoked)
    assert frame.number == errors.Unauthenticated.number


def test_a_certificate_that_ends_on_an_open_connection_is_unauthenticated(
    border: Border, tmp_path: Path
) -> None:
    now = time.monotonic()
    short = next(made for ends, made in border.shorts if ends > now + CONNECTING_S)
    context = short.context(border.ca, tmp_path)
    with connect(border.running.address, context) as client:
        with pytest.raises(errors.Unauthenticated, match="expired"):
            while True:
                client.call("generate_random", 1)
        frame = client.receive()
        assert isinstance(frame, Error) and frame.id == 0
        assert client.tls.recv(1) == b""
    assert _alert(border.running.address, context, speaks=True) == REFUSED["expired"]


@pytest.mark.parametrize("protocols", [[], ["h2", "http/1.1"], ["hsmux/2"]], ids=str)
def test_another_protocol_is_closed_without_a_word(border: Border, protocols: list[str]) -> None:
    context = client_context(border.running.administrator)
    if protocols:
        context.set_alpn_protocols(protocols)
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(border.ca)
        directory = border.running.administrator
        context.load_cert_chain(directory / "administrator.pem", directory / "administrator.key")
    with (
        _connect(border.running.address) as plain,
        context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False) as tls,
    ):
        tls.sendall(ClientConnection().send(Hello([VERSION], [], "raw")))
        assert tls.recv(1) == b""


def test_a_certificate_of_the_gateways_own_that_ends_soon_is_told(border: Border) -> None:
    with connect(border.running.address, client_context(border.running.administrator)) as client:
        warnings = client.call("show_status")[-2]
    server = border.running.directory / "tls" / "server.pem"
    ends = x509.load_pem_x509_certificate(server.read_bytes()).not_valid_after_utc
    assert f"the gateway's own certificate ends on {ends:%Y-%m-%d}: renew it" in warnings


def test_tls_1_2_is_refused(border: Border) -> None:
    old = client_context(border.running.administrator)
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"),
        _connect(border.running.address) as plain,
    ):
        old.wrap_socket(plain, server_hostname="localhost")


def test_no_session_ticket_is_given(border: Border) -> None:
    with connect(border.running.address, client_context(border.running.administrator)) as client:
        client.call("generate_random", 1)
        assert client.tls.session is None or not client.tls.session.has_ticket


@pytest.mark.parametrize(
    "first",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(100), b"\0" * 4096],
    ids=["http", "a record too long", "zeroes"],
)
def test_what_is_no_tls_is_closed(border: Border, first: bytes) -> None:
    with _connect(border.running.address) as plain:
        plain.sendall(first)
        while plain.recv(4096):
            pass


def test_bytes_that_were_not_encrypted_are_an_alert(border: Border) -> None:
    context = client_context(border.running.administrator)
    with connect(border.running.address, context) as client:
        plain = socket.socket(fileno=client.tls.fileno())
        try:
            plain.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
        finally:
            plain.detach()
        with pytest.raises(ssl.SSLError, match="ALERT_BAD_RECORD_MAC"):
            client.receive()
