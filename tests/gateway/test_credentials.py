"""What a reload takes and what it refuses; how the pair of files is replaced and renewed."""

import base64
import datetime
import os
import ssl
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from hsmux_gateway.access.authority import SERVER_VALIDITY, issue_ca
from hsmux_gateway.config import Tls
from hsmux_gateway.credentials import (
    Credentials,
    ServerCredentials,
    load_credentials,
    make_pair,
    renewal_due,
    settle_pair,
)
from hsmux_gateway.errors import OperatorError
from hsmux_gateway.hsm.errors import TokenUnavailable
from hsmux_gateway.instance import Instance, write_file
from tests.gateway.certificates import DAY, Issuer
from tests.gateway.outside import make_root, name_of, pem_of, with_others

NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
NAMES = ["localhost", "127.0.0.1"]


@dataclass
class Authority:
    """A deployment's CA without a deployment.

    Attributes:
        certificate: The CA's.
        key: Its private key; None: its token is away.
    """

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey | None

    def open_key(self) -> ec.EllipticCurvePrivateKey:
        """The private key, if its token is there."""
        if self.key is None:
            raise TokenUnavailable("no worker")
        return self.key


@dataclass
class Files:
    """An instance with a pair, and what a configuration may name beside it."""

    instance: Instance
    authority: Authority
    directory: Path

    @property
    def issuer(self) -> Issuer:
        """The CA, to misuse."""
        assert self.authority.key is not None
        return Issuer(self.authority.certificate, self.authority.key)

    def load(self, tls: Tls | None = None) -> Credentials:
        """As at a reload."""
        return load_credentials(tls or Tls(), self.instance, self.authority.certificate, at=NOW)

    def refusal(self, tls: Tls | None = None) -> str:
        """Why a reload is refused."""
        with pytest.raises(OperatorError) as refused:
            self.load(tls)
        assert "\n" not in refused.value.text
        return refused.value.text

    def outside(self, data: bytes, mode: int = 0o644) -> Tls:
        """A configuration that names this file of an outside CA."""
        path = self.directory / "ca.pem"
        path.write_bytes(data)
        path.chmod(mode)
        return Tls(outside_cas={"corporate": str(path)})


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    """A pair made now."""
    key = ec.generate_private_key(ec.SECP256R1())
    authority = Authority(issue_ca(key, bytes(16), NOW - DAY), key)
    with Instance(tmp_path / "instance") as instance:
        make_pair(instance, authority, NAMES, NOW)
        yield Files(instance, authority, tmp_path)


def test_what_init_made_is_taken(files: Files) -> None:
    loaded = files.load()
    assert loaded.certificate.not_valid_after_utc == NOW + SERVER_VALIDITY
    assert stat.S_IMODE(files.instance.server_key.stat().st_mode) == 0o600
    root = make_root().certificate
    loaded = files.load(files.outside(pem_of(root)))
    assert loaded.trust.names == ["corporate"]
    assert loaded.context.cert_store_stats()["x509_ca"] == 2


def _write_pair(files: Files, *certificates: x509.Certificate, key: object = None) -> None:
    files.instance.server_certificate.write_bytes(pem_of(*certificates))
    if isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        files.instance.server_key.write_bytes(pem)


def _issued(files: Files, start: datetime.timedelta, validity: datetime.timedelta) -> None:
    made = files.issuer.issue(start=start, validity=validity, server=True)
    _write_pair(files, *made.chain, key=made.key)


def _for_clients(files: Files) -> None:
    made = files.issuer.issue(start=-DAY, validity=2 * DAY)
    _write_pair(files, *made.chain, key=made.key)


def _damaged_key(files: Files) -> None:
    """One bit of an EC private key; its public key stands beside it and still fits."""
    key = serialization.load_pem_private_key(files.instance.server_key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    der = key.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    secret = key.private_numbers().private_value
    damaged = der.replace(secret.to_bytes(32, "big"), (secret ^ 1).to_bytes(32, "big"))
    assert damaged != der
    text = base64.encodebytes(damaged).decode()
    files.instance.server_key.write_text(
        f"-----BEGIN PRIVATE KEY-----\n{text}-----END PRIVATE KEY-----\n"
    )


def _damaged_signature(files: Files) -> None:
    leaf, _ = x509.load_pem_x509_certificates(files.instance.server_certificate.read_bytes())
    der = leaf.public_bytes(serialization.Encoding.DER)
    changed = bytearray(leaf.signature)
    changed[-1] ^= 1
    _write_pair(files, x509.load_der_x509_certificate(der.replace(leaf.signature, changed)))


def _swapped(files: Files) -> None:
    leaf, ca = x509.load_pem_x509_certificates(files.instance.server_certificate.read_bytes())
    _write_pair(files, ca, leaf)


def _another_chain(files: Files) -> None:
    leaf, _ = x509.load_pem_x509_certificates(files.instance.server_certificate.read_bytes())
    _write_pair(files, leaf, make_root().certificate)


def _other_key(files: Files) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    leaf, _ = x509.load_pem_x509_certificates(files.instance.server_certificate.read_bytes())
    _write_pair(files, leaf, key=key)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def _replaced(files: Files, old: bytes, new: bytes) -> None:
    """The last of these bytes in the chain are others."""
    path = files.instance.server_certificate
    before, _, after = path.read_bytes().rpartition(old)
    path.write_bytes(before + new + after)


BAD_PAIRS: dict[str, tuple[str, Callable[[Files], object]]] = {
    "no certificate": ("cannot be read", lambda f: f.instance.server_certificate.unlink()),
    "no key": ("cannot be read", lambda f: f.instance.server_key.unlink()),
    "empty certificate": ("no PEM", lambda f: f.instance.server_certificate.write_bytes(b"")),
    "empty key": ("cannot be loaded", lambda f: f.instance.server_key.write_bytes(b"")),
    "a damaged block": ("a damaged one", lambda f: _replaced(f, b"D CERT", b"E CERT")),
    "a pipe": ("is not a file", lambda f: _pipe(f.instance.server_certificate)),
    "a pipe as the key": ("is not a file", lambda f: _pipe(f.instance.server_key)),
    "too large": (
        "is larger than",
        lambda f: f.instance.server_certificate.write_bytes(b"\n" * (1 << 20) + b"\n"),
    ),
    "key for all": ("chmod 600", lambda f: f.instance.server_key.chmod(0o644)),
    "another key": ("cannot be loaded", _other_key),
    "a damaged key": ("does not sign for", _damaged_key),
    "a damaged signature": ("not signed by", _damaged_signature),
    "ended": ("ended on", lambda f: _issued(f, -2 * DAY, DAY)),
    "not begun": ("begins on", lambda f: _issued(f, DAY, DAY)),
    "for clients": ("not for servers", _for_clients),
    "chain swapped": ("not signed by", _swapped),
    "another chain": ("not signed by", _another_chain),
    "another version": (
        "a damaged one",
        lambda f: f.instance.server_certificate.write_bytes(_strange()),
    ),
}


@pytest.mark.parametrize("name", BAD_PAIRS)
def test_a_pair_that_clients_would_refuse_is_refused(files: Files, name: str) -> None:
    reason, damage = BAD_PAIRS[name]
    damage(files)
    assert reason in files.refusal()


def _root() -> bytes:
    return pem_of(make_root().certificate)


def _strange() -> bytes:
    """A root of a version that no standard has."""
    root = make_root(key=rsa.generate_private_key(65537, 2048))
    other = bytes.fromhex("a003020106")
    der = with_others(root.certificate, root, bytes.fromhex("a003020102"), other)
    return ssl.DER_cert_to_PEM_cert(der).encode()


def _mangled() -> bytes:
    """A second block that has lost its end."""
    return _root() + _root()[:200]


BAD_CAS: dict[str, tuple[str, Callable[[Files], bytes]]] = {
    "empty": ("PEM certificates and nothing else", lambda f: b""),
    "DER": (
        "PEM certificates and nothing else",
        lambda f: make_root().certificate.public_bytes(serialization.Encoding.DER),
    ),
    "half a block": ("PEM certificates and nothing else", lambda f: _mangled()),
    "a block without its begin": (
        "PEM certificates and nothing else",
        lambda f: _root() + _root().replace(b"-----BEGIN", b"-----BEGIM"),
    ),
    "another version": ("PEM certificates and nothing else", lambda f: _strange()),
    "a private key": (
        "PEM certificates and nothing else",
        lambda f: _root() + f.instance.server_key.read_bytes(),
    ),
    "OpenSSL's trusted form": (
        "PEM certificates and nothing else",
        lambda f: _root() + _root().replace(b" CERTIFICATE", b" TRUSTED CERTIFICATE"),
    ),
    "an intermediate": (
        "name the root",
        lambda f: pem_of(make_root().sign_ca(name_of("between")).certificate),
    ),
    "an application": ("name the root", lambda f: pem_of(make_root().issue().chain[0])),
    "no CA": ("not a CA's", lambda f: pem_of(make_root(is_ca=False).certificate)),
    "twice": ("is there twice", lambda f: (lambda pem: pem + pem)(_root())),
    "the own CA": ("hsmux's own CA", lambda f: pem_of(f.authority.certificate)),
    "the own CA's key": (
        "hsmux's own CA",
        lambda f: pem_of(make_root("other", key=f.issuer.key).certificate),
    ),
    "the own CA's name": (
        "the name of hsmux's own CA",
        lambda f: pem_of(make_root(f.authority.certificate.subject).certificate),
    ),
    "a weak key": (
        "1024 bits",
        lambda f: pem_of(make_root(key=rsa.generate_private_key(65537, 1024)).certificate),
    ),
    "ended": ("ended on", lambda f: pem_of(make_root(start=-20 * DAY).certificate)),
    "not begun": ("begins on", lambda f: pem_of(make_root(start=DAY).certificate)),
    "too large": ("is larger than", lambda f: _root() + b"\n" * (1 << 20)),
    "too many": (
        "at most 64",
        lambda f: b"".join(pem_of(make_root(f"{n}").certificate) for n in range(65)),
    ),
}


@pytest.mark.parametrize("name", BAD_CAS)
def test_a_file_of_roots_that_is_none_is_refused(files: Files, name: str) -> None:
    reason, make = BAD_CAS[name]
    text = files.refusal(files.outside(make(files)))
    assert reason in text and text.startswith("tls.outside_cas")


@pytest.mark.parametrize("mode", [0o666, 0o664])
def test_a_file_of_roots_that_others_can_write_is_refused(files: Files, mode: int) -> None:
    assert "chmod go-w" in files.refusal(files.outside(_root(), mode))


def test_a_start_takes_what_a_reload_refuses_for_its_dates(files: Files) -> None:
    """Who starts has nothing to keep, and serves those whose certificates still hold."""
    _issued(files, -2 * DAY, DAY)
    tls = files.outside(pem_of(make_root(start=-20 * DAY).certificate))
    assert "ended on" in files.refusal(tls)
    loaded = load_credentials(tls, files.instance, files.authority.certificate)
    assert loaded.trust.names == ["corporate"]


# Replacing the pair


def _state(files: Files) -> dict[str, bytes]:
    directory = files.instance.server_key.parent
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("steps", range(6))
def test_a_crash_while_the_pair_is_replaced_leaves_one_that_fits(
    files: Files, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """After each of the steps that change a file."""
    before = files.load().certificate

    class Killed(BaseException):
        pass

    left = [steps]

    def step(do: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **named: object) -> object:
            if not left[0]:
                raise Killed
            left[0] -= 1
            return do(*arguments, **named)

        return counted

    with monkeypatch.context() as patch:
        patch.setattr("hsmux_gateway.credentials.write_file", step(write_file))
        patch.setattr(Path, "rename", step(Path.rename))
        try:
            make_pair(files.instance, files.authority, NAMES, NOW)
        except Killed:
            assert steps < 5
    after = files.load().certificate
    assert "server.next.key" not in _state(files)
    assert (after == before) == (steps < 4), steps


def test_a_key_that_a_crash_left_of_nothing_goes(files: Files) -> None:
    before = _state(files)
    files.instance.next_server_key.write_bytes(b"half a k")
    settle_pair(files.instance)
    assert _state(files) == before


# Renewal


def test_renewal_is_due_when_two_thirds_of_the_life_are_over(files: Files) -> None:
    certificate = files.load().certificate
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    due = certificate.not_valid_before_utc + life * 2 / 3
    assert not renewal_due(certificate, due - datetime.timedelta(seconds=1))
    assert renewal_due(certificate, due)


class Clock:
    """A wall clock that a test sets."""

    def __init__(self) -> None:
        self.at = NOW

    def __call__(self) -> datetime.datetime:
        return self.at


def _server(files: Files, clock: Clock, tls: Tls | None = None) -> ServerCredentials:
    return ServerCredentials(tls or Tls(), files.instance, lambda: files.authority, clock)


def test_the_certificate_is_renewed_when_it_is_time_and_not_before(files: Files) -> None:
    async def main() -> None:
        clock = Clock()
        server, taken = _server(files, clock), list[Credentials]()
        server.on_change(taken.append)
        first, old_key = server.current.certificate, files.instance.server_key.read_bytes()
        for _ in range(3):
            before = server.current.certificate
            life = before.not_valid_after_utc - before.not_valid_before_utc
            due = before.not_valid_before_utc + life * 2 / 3
            clock.at = due - datetime.timedelta(seconds=1)
            assert not await server.renew(NAMES)
            assert server.current.certificate == before
            clock.at = due
            assert await server.renew(NAMES)
            assert not await server.renew(NAMES)
            after = server.current.certificate
            assert after.not_valid_after_utc > before.not_valid_after_utc
            assert after.public_key() != before.public_key()
            names = after.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            assert names.get_values_for_type(x509.DNSName) == ["localhost"]
        assert [one.certificate for one in (taken[0], taken[-1])] == [
            first,
            server.current.certificate,
        ]
        assert files.instance.server_key.read_bytes() != old_key
        assert stat.S_IMODE(files.instance.server_key.stat().st_mode) == 0o600
        assert sorted(_state(files)) == ["server.key", "server.pem"]

    trio.run(main)


def test_a_token_that_is_away_is_asked_again(files: Files) -> None:
    async def main() -> None:
        clock = Clock()
        server = _server(files, clock)
        before, state = server.current, _state(files)
        clock.at = NOW + SERVER_VALIDITY * 3 / 4
        key, files.authority.key = files.authority.key, None
        assert not await server.renew(NAMES)
        assert server.current is before and _state(files) == state
        files.authority.key = key
        assert await server.renew(NAMES)

    trio.run(main)


def test_a_certificate_of_somebody_else_is_theirs_to_renew(files: Files) -> None:
    async def main() -> None:
        clock = Clock()
        clock.at = NOW + 2 * SERVER_VALIDITY
        named = Tls(
            certificate=str(files.instance.server_certificate),
            private_key=str(files.instance.server_key),
        )
        assert not await _server(files, clock, named).renew(NAMES)
        other = make_root("somebody else")
        assert isinstance(other.key, ec.EllipticCurvePrivateKey)
        made = Issuer(other.certificate, other.key)
        leaf = made.issue(start=-DAY, validity=2 * DAY, server=True)
        _write_pair(files, *leaf.chain, key=leaf.key)
        server, state = _server(files, clock), _state(files)
        assert not await server.renew(NAMES)
        assert _state(files) == state

    trio.run(main)


def test_a_pair_that_waits_for_a_reload_is_not_overwritten(files: Files) -> None:
    async def main() -> None:
        clock = Clock()
        server = _server(files, clock)
        clock.at = NOW + SERVER_VALIDITY * 3 / 4
        other = make_root("somebody else", validity=1000 * DAY)
        assert isinstance(other.key, ec.EllipticCurvePrivateKey)
        made = Issuer(other.certificate, other.key)
        leaf = made.issue(start=-DAY, validity=1000 * DAY, server=True)
        _write_pair(files, *leaf.chain, key=leaf.key)
        state = _state(files)
        assert not await server.renew(NAMES)
        assert _state(files) == state
        await server.reload()
        assert server.current.certificate == leaf.chain[0]
        assert not await server.renew(NAMES)

    trio.run(main)
