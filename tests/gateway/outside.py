"""CAs that are not hsmux's own, good and bad, and what they certify."""

import datetime
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.gateway.certificates import DAY, stranger

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

REGISTERED: Final = x509.RegisteredID(x509.ObjectIdentifier("1.2.3.4.5.6"))
_REGISTERED, _EDI_PARTY = bytes.fromhex("88052a03040506"), bytes.fromhex("a505a1030c0161")
_SHA256_RSA, _SHA1_RSA = bytes.fromhex("2a864886f70d01010b"), bytes.fromhex("2a864886f70d010105")


def name_of(common_name: str) -> x509.Name:
    """A name that is only a common name."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


@dataclass(frozen=True)
class Shown:
    """What a client shows: its certificate, those between it and a root, and its private key."""

    chain: list[x509.Certificate]
    key: Key

    @property
    def spki(self) -> str:
        """SHA-256 of its public key, hexadecimal."""
        digest = hashes.Hash(hashes.SHA256())
        digest.update(
            self.key.public_key().public_bytes(
                serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
        return digest.finalize().hex()

    def context(self, ca: Path, directory: Path) -> ssl.SSLContext:
        """A client's TLS context, which shows even what is too weak."""
        context = stranger(ca)
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        path = directory / "shown.pem"
        pem = self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        path.write_bytes(pem + pem_of(*self.chain))
        context.load_cert_chain(path)
        return context


def pem_of(*certificates: x509.Certificate) -> bytes:
    """Certificates as one PEM text."""
    return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in certificates)


@dataclass(frozen=True)
class Signer:
    """A CA: a root, or what a root signed.

    Attributes:
        certificate: Its own.
        key: Its private key.
        between: Certificates from it, itself included, to below the root.
    """

    certificate: x509.Certificate
    key: Key
    between: list[x509.Certificate] = field(default_factory=list)

    def issue(
        self,
        *,
        uris: Sequence[str] = (),
        names: Sequence[x509.GeneralName] = (),
        subject: str = "somebody",
        start: datetime.timedelta = -DAY,
        validity: datetime.timedelta = 2 * DAY,
        purpose: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH,
        key: Key | None = None,
        is_ca: bool = False,
        signs: bool = False,
    ) -> Shown:
        """A certificate for an application, or what looks like one."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        begins = datetime.datetime.now(datetime.UTC) + start
        issuer = self.certificate.subject
        builder = _builder(name_of(subject), issuer, key, begins, begins + validity)
        builder = (
            builder.add_extension(x509.BasicConstraints(is_ca, None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(_usage(digital_signature=True, key_cert_sign=signs), critical=True)
            .add_extension(_authority(self.certificate), critical=False)
        )
        carried = [*map(x509.UniformResourceIdentifier, uris), *names]
        if carried:
            builder = builder.add_extension(x509.SubjectAlternativeName(carried), critical=False)
        return Shown([builder.sign(self.key, hashes.SHA256()), *self.between], key)

    def sign_ca(
        self,
        subject: x509.Name,
        *,
        key: Key | None = None,
        key_identifier: bytes | None = None,
        path_length: int | None = None,
    ) -> "Signer":
        """A CA below this one."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        made = (
            _builder(subject, self.certificate.subject, key, now - DAY, now + DAY, key_identifier)
            .add_extension(x509.BasicConstraints(True, path_length), critical=True)
            .add_extension(_usage(key_cert_sign=True), critical=True)
            .add_extension(_authority(self.certificate), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return Signer(made, key, [made, *self.between])


def make_root(
    subject: str | x509.Name = "outside",
    *,
    constraints: x509.NameConstraints | None = None,
    key: Key | None = None,
    start: datetime.timedelta = -DAY,
    validity: datetime.timedelta = 10 * DAY,
    is_ca: bool = True,
) -> Signer:
    """A CA that signed itself."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = name_of(subject) if isinstance(subject, str) else subject
    begins = datetime.datetime.now(datetime.UTC) + start
    builder = (
        _builder(name, name, key, begins, begins + validity)
        .add_extension(x509.BasicConstraints(is_ca, None), critical=True)
        .add_extension(_usage(key_cert_sign=is_ca, digital_signature=not is_ca), critical=True)
    )
    if constraints is not None:
        builder = builder.add_extension(constraints, critical=True)
    return Signer(builder.sign(key, hashes.SHA256()), key)


def with_sha1(shown: Shown, signer: Signer) -> Shown:
    """The same certificate signed with SHA-1, which no library does any more."""
    made = with_others(shown.chain[0], signer, _SHA256_RSA, _SHA1_RSA, hashes.SHA1())
    return Shown([x509.load_der_x509_certificate(made), *shown.chain[1:]], shown.key)


def with_others(
    certificate: x509.Certificate,
    signer: Signer,
    old: bytes,
    new: bytes,
    digest: hashes.HashAlgorithm | None = None,
) -> bytes:
    """A certificate in DER in which some bytes are others, signed anew with an RSA key."""
    assert isinstance(signer.key, rsa.RSAPrivateKey) and len(old) == len(new)
    body = certificate.tbs_certificate_bytes.replace(old, new)
    assert body != certificate.tbs_certificate_bytes
    signature = signer.key.sign(body, padding.PKCS1v15(), digest or hashes.SHA256())
    der = certificate.public_bytes(serialization.Encoding.DER).replace(old, new)
    return der.replace(certificate.signature, signature)


def with_unread_name(shown: Shown, signer: Signer) -> Shown:
    """A certificate whose registered ID 1.2.3.4.5.6 is the name of a party in an EDI exchange."""
    made = with_others(shown.chain[0], signer, _REGISTERED, _EDI_PARTY)
    return Shown([x509.load_der_x509_certificate(made), *shown.chain[1:]], shown.key)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: Key,
    begins: datetime.datetime,
    ends: datetime.datetime,
    key_identifier: bytes | None = None,
) -> x509.CertificateBuilder:
    public_key = key.public_key()
    identifier = x509.SubjectKeyIdentifier.from_public_key(public_key)
    if key_identifier is not None:
        identifier = x509.SubjectKeyIdentifier(key_identifier)
    number = x509.random_serial_number()
    return x509.CertificateBuilder(issuer, subject, public_key, number, begins, ends).add_extension(
        identifier, critical=False
    )


def _authority(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    found = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(found)


def _usage(**given: bool) -> x509.KeyUsage:
    names = (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
        *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    )
    values: dict[str, Any] = {name: given.get(name, False) for name in names}
    return x509.KeyUsage(**values)
