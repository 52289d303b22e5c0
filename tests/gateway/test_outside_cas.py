"""Certificates of other CAs: whose they are, and that the hostile ones are nobody's."""

import contextlib
import itertools
import socket
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from hsmux_gateway.access.first_policies import EVERYTHING
from hsmux_gateway.access.trust import URIS_MAX
from hsmux_gateway.config import load_config
from hsmux_gateway.daemon import run_init
from hsmux_gateway.initialise import FirstAdministrator
from hsmux_protocol import errors
from hsmux_protocol.frames import Error, Frame, Welcome
from tests.gateway.certificates import DAY, Issuer, open_issuer
from tests.gateway.outside import (
    REGISTERED,
    Shown,
    Signer,
    make_root,
    name_of,
    pem_of,
    with_sha1,
    with_unread_name,
)
from tests.gateway.raw_client import TIMEOUT_S, RawClient, client_context, connect
from tests.gateway.running import Running, running_gateway, write_config

_numbers = itertools.count()


@dataclass
class Outside:
    """A gateway that believes two outside CAs.

    Attributes:
        running: The gateway.
        own: Its own CA, whose private key a test can misuse.
        root: An outside CA with an RSA key.
        narrow: Another, which may certify only what is under example.org.
    """

    running: Running
    own: Issuer
    root: Signer
    narrow: Signer

    @property
    def ca(self) -> Path:
        """The gateway's own CA's certificate."""
        return self.running.administrator / "ca.pem"


def _narrow() -> Signer:
    only = x509.UniformResourceIdentifier("example.org")
    return make_root("narrow", constraints=x509.NameConstraints([only], None))


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    """One for the tests of this module."""
    directory = tmp_path_factory.mktemp("outside")
    root = make_root("outside", key=rsa.generate_private_key(65537, 2048))
    narrow = _narrow()
    # Several roots in one file, one of which nothing here uses, and another CA beside it.
    (directory / "one.pem").write_bytes(pem_of(make_root().certificate, root.certificate))
    (directory / "two.pem").write_bytes(b"a comment\n" + pem_of(narrow.certificate))
    cas = f'[tls.outside_cas]\none = "{directory}/one.pem"\ntwo = "{directory}/two.pem"\n'
    config = write_config(directory, cas)
    trio.run(run_init, load_config(config), FirstAdministrator(EVERYTHING))
    own = open_issuer(config)
    with running_gateway(config, init=False) as running:
        yield Outside(running, own, root, narrow)
        assert "Traceback" not in running.log.read_text()


@pytest.fixture
def admin(outside: Outside) -> Iterator[RawClient]:
    """The first administrator."""
    running = outside.running
    with connect(running.address, client_context(running.administrator)) as client:
        yield client


def new_uri() -> str:
    """A SPIFFE ID that nobody has."""
    return f"spiffe://example.org/app-{next(_numbers)}"


def make_point(admin: RawClient, *mtls: str) -> str:
    """An access point that is known by these, and may do everything; its name."""
    name = f"app-{next(_numbers)}"
    admin.call("create_access_point", name, "", ["administrator"], list(mtls), None)
    return name


def first_frame(address: str, context: ssl.SSLContext) -> Frame:
    """What a HELLO gets: a welcome, an error before the end, or `ssl.SSLError` for an alert."""
    host, port = address.rsplit(":", 1)
    with (
        socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as plain,
        context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False) as tls,
    ):
        frame = RawClient(tls).hello()
        if isinstance(frame, Error):
            assert tls.recv(1) == b""
        return frame


def welcomed_as(outside: Outside, shown: Shown, directory: Path) -> str:
    """Which access point a certificate is taken for."""
    frame = first_frame(outside.running.address, shown.context(outside.ca, directory))
    assert isinstance(frame, Welcome), frame
    return frame.access_point


GOOD: dict[str, Callable[[Outside, str], tuple[Shown, bool]]] = {
    "URI": lambda o, uri: (o.root.issue(uris=[uri]), False),
    "public key": lambda o, uri: (o.root.issue(), True),
    "public key of a constrained CA": lambda o, uri: (o.narrow.issue(), True),
    "URI within the constraints": lambda o, uri: (o.narrow.issue(uris=[uri]), False),
    "URI among others": lambda o, uri: (o.root.issue(uris=["a:b", uri, "http://x"]), False),
    "URI and public key": lambda o, uri: (o.root.issue(uris=[uri]), True),
    "most URIs": lambda o, uri: (
        o.root.issue(uris=[uri, *(f"urn:{n}" for n in range(1, URIS_MAX))]),
        False,
    ),
    "below an intermediate": lambda o, uri: (
        o.root.sign_ca(name_of("between")).issue(uris=[uri]),
        False,
    ),
    "below one that has the own CA's name": lambda o, uri: (
        o.root.sign_ca(o.own.ca.subject).issue(uris=[uri]),
        False,
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_certificate_of_an_outside_ca_stands_for_its_access_point(
    outside: Outside, admin: RawClient, tmp_path: Path, name: str
) -> None:
    uri = new_uri()
    shown, by_key = GOOD[name](outside, uri)
    point = make_point(admin, f"uri:{uri}", *([f"spki:{shown.spki}"] if by_key else []))
    assert welcomed_as(outside, shown, tmp_path) == point
    context = shown.context(outside.ca, tmp_path)
    with connect(outside.running.address, context) as client:
        assert client.call("generate_random", 8)
        with pytest.raises(errors.NotFound, match="of another CA, which renews it"):
            client.call("renew_client_key", None, None, False)


def _own_with_uri(outside: Outside, uri: str) -> Shown:
    """A certificate of the own CA that carries a URI, which it never issues."""
    return Signer(outside.own.ca, outside.own.key).issue(uris=[uri])


def _cross_signed(outside: Outside, uri: str, name: x509.Name | None = None) -> Shown:
    """A certificate of the own CA, with the own CA's key certified by an outside one."""
    subject = name or outside.own.ca.subject
    return outside.root.sign_ca(subject, key=outside.own.key).issue(uris=[uri])


UNAUTHENTICATED: dict[str, Callable[[Outside, str, str], Shown]] = {
    "no names": lambda o, uri, app: o.root.issue(),
    "common name": lambda o, uri, app: o.root.issue(subject=app),
    "URI as common name": lambda o, uri, app: o.root.issue(subject=uri),
    "DNS name": lambda o, uri, app: o.root.issue(names=[x509.DNSName(app)]),
    "URI as DNS name": lambda o, uri, app: o.root.issue(names=[x509.DNSName(uri)]),
    "longer URI": lambda o, uri, app: o.root.issue(uris=[uri + "/"]),
    "another spelling": lambda o, uri, app: o.root.issue(uris=[uri.replace("spiffe", "SPIFFE")]),
    "URI with a zero": lambda o, uri, app: o.root.issue(uris=[uri + "\0.example.org"]),
    "a CA's as a leaf": lambda o, uri, app: o.root.issue(uris=[uri], is_ca=True),
    "a leaf that may sign": lambda o, uri, app: o.root.issue(uris=[uri], is_ca=True, signs=True),
    "an intermediate as a leaf": lambda o, uri, app: _as_leaf(o.root.sign_ca(name_of("between"))),
    "too many URIs": lambda o, uri, app: o.root.issue(uris=[uri, *(f"urn:{n}" for n in range(16))]),
    "many URIs": lambda o, uri, app: o.root.issue(uris=[uri, *(f"urn:{n}" for n in range(1000))]),
    "a name of a kind that is not read": lambda o, uri, app: with_unread_name(
        o.root.issue(uris=[uri], names=[REGISTERED]), o.root
    ),
    "own CA": lambda o, uri, app: _own_with_uri(o, uri),
    "own CA cross-signed": lambda o, uri, app: _cross_signed(o, uri),
    "own CA's key under another name": lambda o, uri, app: _cross_signed(o, uri, name_of("it")),
}


def _as_leaf(signer: Signer) -> Shown:
    return Shown(signer.between, signer.key)


@pytest.mark.parametrize("name", UNAUTHENTICATED)
def test_what_carries_no_binding_of_its_ca_is_nobodys(
    outside: Outside, admin: RawClient, tmp_path: Path, name: str
) -> None:
    uri = new_uri()
    app = make_point(admin, f"uri:{uri}")
    shown = UNAUTHENTICATED[name](outside, uri, app)
    context = shown.context(outside.ca, tmp_path)
    try:
        frame = first_frame(outside.running.address, context)
    except ssl.SSLError as error:
        # OpenSSL of another version may refuse it before anybody asks whose it is.
        assert name == "an intermediate as a leaf", error
        return
    assert isinstance(frame, Error) and frame.number == errors.Unauthenticated.number
    assert app not in frame.text


def test_what_two_access_points_are_known_by_is_nobodys(
    outside: Outside, admin: RawClient, tmp_path: Path
) -> None:
    uris = [new_uri(), new_uri()]
    both = outside.root.issue(uris=uris)
    first = make_point(admin, f"uri:{uris[0]}")
    assert welcomed_as(outside, both, tmp_path) == first
    context = both.context(outside.ca, tmp_path)
    with connect(outside.running.address, context) as client:
        assert client.call("generate_random", 1)
        second = make_point(admin, f"uri:{uris[1]}")
        with pytest.raises(errors.Unauthenticated):
            client.call("generate_random", 1)
    frame = first_frame(outside.running.address, context)
    assert isinstance(frame, Error) and frame.number == errors.Unauthenticated.number
    admin.call("delete_access_point", first)
    assert welcomed_as(outside, both, tmp_path) == second


def test_a_client_key_and_a_binding_of_the_same_public_key_are_two(
    outside: Outside, admin: RawClient, tmp_path: Path
) -> None:
    """Each CA's certificate stands for what its own CA's does, whatever key it holds."""
    key = ec.generate_private_key(ec.SECP256R1())
    by_outside = outside.root.issue(key=key)
    csr = _request(key)
    with_key = make_point(admin)
    _, certificate, _, _ = admin.call("create_client_key", with_key, csr, 30)
    frame = first_frame(outside.running.address, by_outside.context(outside.ca, tmp_path))
    assert isinstance(frame, Error) and frame.number == errors.Unauthenticated.number
    known = make_point(admin, f"spki:{by_outside.spki}")
    assert welcomed_as(outside, by_outside, tmp_path) == known
    by_own = Shown([x509.load_der_x509_certificate(certificate)], key)
    assert welcomed_as(outside, by_own, tmp_path) == with_key


def _request(key: ec.EllipticCurvePrivateKey) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(name_of("x"))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def _below_a_leaf(outside: Outside, uri: str) -> Shown:
    leaf = outside.root.issue(uris=[new_uri()])
    return Signer(leaf.chain[0], leaf.key, leaf.chain).issue(uris=[uri])


def _below_two(outside: Outside, uri: str) -> Shown:
    first = outside.root.sign_ca(name_of("first"), path_length=0)
    return first.sign_ca(name_of("second")).issue(uris=[uri])


def _below_the_own_name_and_identifier(outside: Outside, uri: str) -> Shown:
    """An issuer that OpenSSL takes for the own CA, so that the signature cannot fit."""
    own = outside.own.ca
    kind = x509.SubjectKeyIdentifier
    identifier = own.extensions.get_extension_for_class(kind).value.digest
    return outside.root.sign_ca(own.subject, key_identifier=identifier).issue(uris=[uri])


ALERTS: dict[str, tuple[str, Callable[[Outside, str], Shown]]] = {
    "expired": (
        "CERTIFICATE_EXPIRED",
        lambda o, uri: o.root.issue(uris=[uri], start=-3 * DAY),
    ),
    "not yet valid": ("BAD_CERTIFICATE", lambda o, uri: o.root.issue(uris=[uri], start=DAY)),
    "for servers": (
        "UNSUPPORTED_CERTIFICATE",
        lambda o, uri: o.root.issue(uris=[uri], purpose=ExtendedKeyUsageOID.SERVER_AUTH),
    ),
    "for anything": (
        "UNSUPPORTED_CERTIFICATE",
        lambda o, uri: o.root.issue(uris=[uri], purpose=ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE),
    ),
    "another CA": ("UNKNOWN_CA", lambda o, uri: make_root("outside").issue(uris=[uri])),
    "outside of the constraints": (
        "CERTIFICATE_UNKNOWN",
        lambda o, uri: o.narrow.issue(uris=[uri.replace("example.org", "example.com")]),
    ),
    "outside of the constraints below an intermediate": (
        "CERTIFICATE_UNKNOWN",
        lambda o, uri: o.narrow.sign_ca(name_of("between")).issue(
            uris=[uri, uri.replace("example.org", "evil.example.org.example.com")]
        ),
    ),
    "below a leaf": ("UNKNOWN_CA", _below_a_leaf),
    "path too long": ("UNKNOWN_CA", _below_two),
    "RSA of 1,024 bits": (
        "BAD_CERTIFICATE",
        lambda o, uri: o.root.issue(uris=[uri], key=rsa.generate_private_key(65537, 1024)),
    ),
    "SHA-1": ("BAD_CERTIFICATE", lambda o, uri: with_sha1(o.root.issue(uris=[uri]), o.root)),
    "below the own CA's name and identifier": (
        "DECRYPT_ERROR",
        _below_the_own_name_and_identifier,
    ),
}


@pytest.mark.parametrize("name", ALERTS)
def test_a_hostile_certificate_is_an_alert(
    outside: Outside, admin: RawClient, tmp_path: Path, name: str
) -> None:
    uri = new_uri()
    alert, make = ALERTS[name]
    shown = make(outside, uri)
    make_point(admin, f"uri:{uri}", f"spki:{shown.spki}")
    context = shown.context(outside.ca, tmp_path)
    for _ in range(2):
        with pytest.raises(ssl.SSLError) as refused:
            first_frame(outside.running.address, context)
        assert alert in (refused.value.reason or "")
    assert admin.call("generate_random", 1)


def test_a_huge_certificate_is_closed(outside: Outside, admin: RawClient, tmp_path: Path) -> None:
    """The handshake is given up before its end, so nothing can be said about it."""
    uri = new_uri()
    make_point(admin, f"uri:{uri}")
    huge = outside.root.issue(uris=[uri, *(f"urn:{number:0100}" for number in range(600))])
    context = huge.context(outside.ca, tmp_path)
    with pytest.raises((ssl.SSLError, OSError, EOFError)):
        first_frame(outside.running.address, context)
    assert admin.call("generate_random", 1)


def test_what_one_is_known_by_no_other_can_be(outside: Outside, admin: RawClient) -> None:
    uri, spki = f"uri:{new_uri()}", f"spki:{next(_numbers):064x}"
    first = make_point(admin, uri, spki)
    second = make_point(admin)
    for taken in (uri, spki):
        with pytest.raises(errors.Conflict, match="another access point is known by"):
            make_point(admin, taken)
        with pytest.raises(errors.Conflict, match="another access point is known by"):
            update(admin, second, add=[taken])
    (shown,) = update(admin, first, remove=[uri])
    assert shown.mtls == [spki]
    # Taken away it is free, and so is all that a deleted access point was known by.
    assert update(admin, second, add=[uri])[0].mtls == [uri]
    admin.call("delete_access_point", first)
    assert update(admin, second, add=[spki])[0].mtls == sorted([uri, spki])
    assert admin.call("show_access_point", second)[0].mtls == sorted([uri, spki])


def update(
    client: RawClient, point: str, *, add: list[str] | None = None, remove: list[str] | None = None
) -> list[Any]:
    """Change what an access point is known by."""
    empty: list[list[str]] = [[], [], [], []]
    return client.call(
        "update_access_point", point, None, None, *empty, add or [], remove or [], None
    )


@pytest.mark.parametrize(
    "text",
    [
        *("uri:", "uri:spiffe", "uri:sp iffe://x", "uri:a:\u00fc", "uri:a:b c", "uri:1:x"),
        *("spki:", "spki:" + "a" * 63, "spki:" + "A" * 64, "spki:" + "g" * 64, "dns:x", "x"),
        *("cn:app", "uri:a:b\n"),
    ],
)
def test_nonsense_is_no_binding(admin: RawClient, text: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="mtls"):
        make_point(admin, text)


def test_bindings_are_bounded(admin: RawClient) -> None:
    uris = [f"uri:{new_uri()}" for _ in range(16)]
    point = make_point(admin, *uris)
    with pytest.raises(errors.InvalidArgument, match="at most 16"):
        update(admin, point, add=[f"uri:{new_uri()}"])
    with pytest.raises(errors.InvalidArgument, match="at once"):
        update(admin, point, add=[uris[0]], remove=[uris[0]])
    assert len(admin.call("show_access_point", point)[0].mtls) == 16


def test_pages_of_much_to_say_fit_their_frames(outside: Outside, admin: RawClient) -> None:
    for _ in range(40):
        long = [f"uri:urn:{next(_numbers):02000}" for _ in range(16)]
        admin.call("create_access_point", f"app-{next(_numbers)}", "\u00e9" * 4096, [], long, None)
    page, found = b"", 0
    while True:
        records, page = admin.call("list_access_points", page, 100)
        found += len(records)
        if not page:
            break
    assert found >= 40


def test_nobody_binds_certificates_to_its_own_access_point(
    outside: Outside, admin: RawClient, tmp_path: Path
) -> None:
    uri = new_uri()
    point = make_point(admin, f"uri:{uri}")
    context = outside.root.issue(uris=[uri]).context(outside.ca, tmp_path)
    with connect(outside.running.address, context) as client:
        for change in ({"add": [f"uri:{new_uri()}"]}, {"remove": [f"uri:{uri}"]}):
            with pytest.raises(errors.Denied, match="its own access"):
                update(client, point, **change)


ROUNDS = [pytest.param(3, id="few"), pytest.param(200, id="many", marks=pytest.mark.long)]


@pytest.mark.parametrize("rounds", ROUNDS)
def test_of_many_at_once_one_gets_it(outside: Outside, rounds: int) -> None:
    running = outside.running
    context = client_context(running.administrator)

    def bind(uri: str) -> bool:
        with connect(running.address, context) as client:
            try:
                make_point(client, uri)
            except errors.Conflict:
                return False
            return True

    with ThreadPoolExecutor(4) as threads:
        for _ in range(rounds):
            done = list(threads.map(bind, [f"uri:{new_uri()}"] * 4))
            assert sorted(done) == [False, False, False, True]


@pytest.mark.parametrize("loss", ["binding", "disabled", "deleted"])
def test_what_is_taken_away_holds_on_open_connections(
    outside: Outside, admin: RawClient, tmp_path: Path, loss: str
) -> None:
    uri = new_uri()
    point = make_point(admin, f"uri:{uri}")
    context = outside.root.issue(uris=[uri]).context(outside.ca, tmp_path)
    with connect(outside.running.address, context) as client:
        assert client.call("generate_random", 1)
        if loss == "binding":
            update(admin, point, remove=[f"uri:{uri}"])
        elif loss == "deleted":
            admin.call("delete_access_point", point)
        else:
            admin.call("update_access_point", point, None, "Disabled", *([[]] * 6), None)
        # It is told without asking for anything, and then it is over.
        frame = client.receive()
        assert isinstance(frame, Error) and frame.id == 0
        assert frame.number == errors.Unauthenticated.number
        with contextlib.suppress(ssl.SSLError):
            assert client.tls.recv(1) == b""
    frame = first_frame(outside.running.address, context)
    assert isinstance(frame, Error) and frame.number == errors.Unauthenticated.number


def test_an_outside_ca_that_is_taken_out_ends_what_it_certified(tmp_path: Path) -> None:
    root, other = make_root("leaving"), make_root("staying")
    for name, signer in (("leaving", root), ("staying", other)):
        (tmp_path / f"{name}.pem").write_bytes(pem_of(signer.certificate))
    lines = '[tls.outside_cas]\nstaying = "{0}/staying.pem"\nleaving = "{0}/leaving.pem"\n'
    config = write_config(tmp_path, lines.format(tmp_path))
    with running_gateway(config) as running, contextlib.ExitStack() as stack:
        admin = stack.enter_context(connect(running.address, client_context(running.administrator)))
        ca = running.administrator / "ca.pem"
        clients = []
        for signer in (root, other):
            uri = new_uri()
            make_point(admin, f"uri:{uri}")
            context = signer.issue(uris=[uri]).context(ca, tmp_path)
            clients.append((context, stack.enter_context(connect(running.address, context))))
        (gone_context, gone), (_, stays) = clients
        config.write_text(config.read_text().replace("leaving =", "# leaving ="))
        assert running.reload()["outside_cas"] == ["staying"]
        frame = gone.receive()
        assert isinstance(frame, Error) and frame.number == errors.Unauthenticated.number
        with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
            first_frame(running.address, gone_context)
        assert stays.call("generate_random", 1)
        assert admin.call("generate_random", 1)
        config.write_text(config.read_text().replace("# leaving =", "leaving ="))
        assert running.reload()["event"] == "reloaded"
        assert isinstance(first_frame(running.address, gone_context), Welcome)
