"""The CA of a deployment: it issues the gateway's own certificate and every client key.

Certificates follow RFC 5280: version 3, basic constraints, key usage, extended key usage, subject
and authority key identifiers. A client certificate is good for client authentication only, the
server's for server authentication only, and the CA may not sign further CAs. Requests with weak
keys or broken signatures are refused, and so are those that ask for names or rights beside the
subject. Nothing of a request but its public key is taken over.

The CA's private key is a token object where there is an HSM, and a sealed software key where there
is none. Both are reached through `cryptography`'s builders: a token object by a private key class
whose `sign` asks the token.
"""

import datetime
import ipaddress
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificateIssuerPrivateKeyTypes,
    CertificatePublicKeyTypes,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = [
    "CA_VALIDITY",
    "CLOCK_SKEW",
    "MALFORMED",
    "RSA_BITS_MIN",
    "SERVER_VALIDITY",
    "check_request",
    "issue",
    "issue_ca",
    "server_names",
]

CA_VALIDITY: Final = datetime.timedelta(days=20 * 365)
SERVER_VALIDITY: Final = datetime.timedelta(days=2 * 365)

CLOCK_SKEW: Final = datetime.timedelta(minutes=5)
"""How far a certificate's beginning lies back, for peers whose clocks are late."""

RSA_BITS_MIN: Final = 2048
RSA_BITS_MAX: Final = 4096
_CURVES: Final = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)

MALFORMED: Final = (
    *(ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion),
    *(x509.DuplicateExtension, x509.UnsupportedGeneralNameType),
)
"""What `cryptography` raises at a certificate or a request that it cannot read, also where OpenSSL
can.
"""


_HARMLESS: Final = {
    x509.SubjectKeyIdentifier.oid,
    x509.KeyUsage.oid,
    x509.ExtendedKeyUsage.oid,
}
"""Extensions that tools put into every request; they are not taken over."""

COMMON_NAME_SIZE_MAX: Final = 64
"""Bytes of UTF-8 of a common name (RFC 5280 appendix A.1, ub-common-name)."""


def _name(common_name: str) -> x509.Name:
    """A name with as much of the common name as a certificate can show."""
    shown = common_name.encode()[:COMMON_NAME_SIZE_MAX].decode(errors="ignore")
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, shown)])


def _usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: CertificatePublicKeyTypes,
    now: datetime.datetime,
    validity: datetime.timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + validity)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def issue_ca(
    key: ec.EllipticCurvePrivateKey, deployment: bytes, now: datetime.datetime
) -> x509.Certificate:
    """The self-signed certificate of a deployment's CA; blocks while the key signs."""
    name = _name(f"hsmux CA {deployment.hex()}")
    return (
        _builder(name, name, key.public_key(), now, CA_VALIDITY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(is_ca=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def issue(
    ca: x509.Certificate,
    ca_key: CertificateIssuerPrivateKeyTypes,
    public_key: CertificatePublicKeyTypes,
    *,
    common_name: str,
    now: datetime.datetime,
    validity: datetime.timedelta,
    names: x509.SubjectAlternativeName | None = None,
) -> x509.Certificate:
    """A certificate for a public key; blocks while the CA's key signs.

    Args:
        ca: The CA's certificate.
        ca_key: Its private key.
        public_key: What is certified.
        common_name: For people; nothing is decided on it.
        now: Begins the validity, less `CLOCK_SKEW`.
        validity: How long, cut to the CA's own end.
        names: Given: a server certificate for these names. None: a client certificate.
    """
    validity = min(validity, ca.not_valid_after_utc - now)
    purpose = ExtendedKeyUsageOID.CLIENT_AUTH if names is None else ExtendedKeyUsageOID.SERVER_AUTH
    builder = (
        _builder(_name(common_name), ca.subject, public_key, now, validity)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(is_ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
            ),
            critical=False,
        )
    )
    if names is not None:
        builder = builder.add_extension(names, critical=False)
    return builder.sign(ca_key, hashes.SHA256())


def server_names(names: list[str]) -> x509.SubjectAlternativeName:
    """Subject alternative names for DNS names and IP addresses."""
    entries: list[x509.GeneralName] = []
    for name in names:
        try:
            entries.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            entries.append(x509.DNSName(name))
    return x509.SubjectAlternativeName(entries)


def check_request(der: bytes) -> x509.CertificateSigningRequest:
    """Read a PKCS#10 request (RFC 2986) and check what it asks for.

    Raises:
        ValueError: It is malformed, not signed by its own key, or its key is weak; says which.
    """
    try:
        request = x509.load_der_x509_csr(der)
        key = request.public_key()
    except MALFORMED:
        # What the parser says of ASN.1 helps nobody who named the wrong file.
        raise ValueError("not a PKCS#10 request: `openssl req -new` makes one") from None
    # The key before the signature: an enormous one would take its time to verify.
    if not _is_strong(key):
        raise ValueError("the key must be RSA of 2048 to 4096 bits, or EC P-256, P-384 or P-521")
    if not _is_signed(request):
        raise ValueError("the request is not signed by its own key")
    if _asks_for_names(request):
        raise ValueError("the request asks for other names; a client key has only its access point")
    return request


def _asks_for_names(request: x509.CertificateSigningRequest) -> bool:
    """Whether a request wants more than its key certified; its subject is what it calls itself."""
    try:
        wanted = {extension.oid for extension in request.extensions}
    except MALFORMED:
        return True
    return not wanted <= _HARMLESS


def _is_strong(key: CertificatePublicKeyTypes) -> bool:
    if isinstance(key, rsa.RSAPublicKey):
        return RSA_BITS_MIN <= key.key_size <= RSA_BITS_MAX
    return isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, _CURVES)


def _is_signed(request: x509.CertificateSigningRequest) -> bool:
    try:
        return request.is_signature_valid
    except (*MALFORMED, InvalidSignature):
        return False
