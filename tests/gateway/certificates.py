"""Client certificates of a deployment's own CA that the gateway would never issue itself."""

import datetime
import ssl
from dataclasses import dataclass
from pathlib import Path

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hsmux_gateway.access.administration import client_key_row
from hsmux_gateway.access.authority import CLOCK_SKEW, issue, server_names
from hsmux_gateway.authority_key import DeploymentAuthority
from hsmux_gateway.config import load_config
from hsmux_gateway.foundation import open_foundation
from hsmux_gateway.initialise import unlock
from hsmux_gateway.store import AccessPointRow, GatewayKeyRow, Reader
from hsmux_protocol.connection import ALPN

DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Issuer:
    """The CA of an initialised deployment, its private key included.

    Attributes:
        ca: Its certificate.
        key: Its private key.
    """

    ca: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def issue(
        self, *, start: datetime.timedelta, validity: datetime.timedelta, server: bool = False
    ) -> "Identity":
        """A certificate that begins `start` from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = issue(
            self.ca,
            self.key,
            key.public_key(),
            common_name="administrator",
            now=datetime.datetime.now(datetime.UTC) + start + CLOCK_SKEW,
            validity=validity - CLOCK_SKEW,
            names=server_names(["localhost"]) if server else None,
        )
        return Identity([certificate], key)


@dataclass(frozen=True)
class Identity:
    """A certificate, those that go with it, and the private key."""

    chain: list[x509.Certificate]
    key: ec.EllipticCurvePrivateKey

    def write(self, certificate: Path, private_key: Path) -> None:
        """Write it into two files."""
        encoding = serialization.Encoding.PEM
        certificate.write_bytes(b"".join(c.public_bytes(encoding) for c in self.chain))
        key = self.key.private_bytes(
            encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        private_key.touch(mode=0o600)
        private_key.write_bytes(key)

    def context(self, ca: Path, directory: Path) -> ssl.SSLContext:
        """A client's TLS context with this identity."""
        context = stranger(ca)
        certificate, private_key = directory / "identity.pem", directory / "identity.key"
        self.write(certificate, private_key)
        context.load_cert_chain(certificate, private_key)
        return context

    def sign(self) -> "Identity":
        """A certificate that this one signed as if it were a CA."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "administrator")])
        now = datetime.datetime.now(datetime.UTC)
        issuer = self.chain[0].subject if self.chain else name
        certificate = (
            x509.CertificateBuilder(issuer, name, key.public_key(), 1, now - DAY, now + DAY)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        return Identity([certificate, *self.chain], key)


def self_signed() -> Identity:
    """A certificate that nobody else signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "administrator")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now - DAY, now + DAY)
    return Identity([builder.sign(key, hashes.SHA256())], key)


def stranger(ca: Path) -> ssl.SSLContext:
    """A client's TLS context without a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(ca)
    context.set_alpn_protocols([ALPN])
    return context


def open_issuer(config: Path) -> Issuer:
    """The CA of a deployment that was initialised and is not running; its root must be a file."""
    return trio.run(_open_issuer, config, None)


def register(config: Path, identity: Identity) -> None:
    """Make an identity a client key of the administrator."""
    trio.run(_open_issuer, config, identity)


async def _open_issuer(config: Path, registered: Identity | None) -> Issuer:
    loaded = load_config(config)
    async with open_foundation(loaded, create=False) as base:
        sealer = await unlock(loaded, base.arena, base.tokens, base.store)

        def read(reader: Reader) -> tuple[GatewayKeyRow | None, AccessPointRow]:
            return reader.get(GatewayKeyRow, "ca"), reader.select(AccessPointRow)[0]

        row, point = base.store.read(read)
        assert row is not None
        if registered is not None:
            made = client_key_row(registered.chain[0], point.access_point_id)
            base.store.write(lambda transaction: transaction.insert(made))
        authority = DeploymentAuthority(
            row, base.tokens, base.arena, sealer.slot, base.store.deployment_id
        )
        return Issuer(authority.certificate, authority.open_key())
