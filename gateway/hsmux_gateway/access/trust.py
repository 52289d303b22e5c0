"""Whose certificates are believed: the deployment's own CA, and outside CAs of the configuration.

Theory of operation
-------------------
TLS believes a chain that ends in any of the roots; what it is believed for depends on which one.
A certificate of the own CA stands for its client key, one of an outside CA for what an access
point is known by (`mtls`), and never the other way round. That is decided on the chain that OpenSSL
verified, not on names:

- A root is known by all its bytes. An outside CA's signer that calls itself what the own one does,
  or has its key identifier, is another one. (OpenSSL looks for issuers among the roots by name and
  key identifier, and does not try a second one: a *root* of the own CA's name could make it miss
  the own CA, so it is refused.)
- The own CA signs leaves only, so a chain of it has two certificates.
- Somebody may certify the own CA's key for an outside CA (cross-signing), and a chain of a client
  key may then be verified through it. So a chain of an outside CA in which the own CA's public key
  signed anything is nobody's.

From an outside CA only leaves are taken: a certificate that could sign others, or lists of those
revoked, is somebody's CA and not an application (SPIFFE X.509-SVID section 4 says the same). It is
known by its URIs and its public key, never by another name. Name constraints, dates, purposes and
weak keys on the way are OpenSSL's business.

A root is a certificate that signed itself. What is between root and leaf comes with the leaf.
"""

import datetime
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from hsmux_protocol.errors import Unauthenticated
from hsmux_protocol.references import SPKI_PREFIX, URI_PREFIX, check_mtls

from ..call import Outside
from ..errors import OperatorError
from ..private_files import read_unwritable
from .authority import MALFORMED, RSA_BITS_MIN

__all__ = [
    "NOBODYS",
    "URIS_MAX",
    "OutsideRoot",
    "Trust",
    "ends_ms",
    "parse_certificates",
    "read_outside_cas",
    "spki_sha256",
]

URIS_MAX: Final = 16
"""URIs of one certificate; a SPIFFE one has one."""

CA_FILE_SIZE_MAX: Final = 1 << 20
"""Bytes of a file of roots."""

ROOTS_MAX: Final = 64
"""Roots of all outside CAs together."""

NOBODYS: Final = "this certificate is not known, or not accepted any more"
"""What a caller is told of a certificate that stands for nobody, whatever the reason."""


class OutsideRoot(NamedTuple):
    """A root of an outside CA.

    Attributes:
        name: The CA's in the configuration.
        certificate: The root's own.
    """

    name: str
    certificate: x509.Certificate


def spki_sha256(certificate: x509.Certificate | x509.CertificateSigningRequest) -> bytes:
    """SHA-256 of the SubjectPublicKeyInfo (RFC 5280 section 4.1.2.7) of a certificate."""
    return hashlib.sha256(
        certificate.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    ).digest()


class Trust:
    """The roots that are believed; it never changes, a reload makes another.

    Args:
        own: The certificate of the deployment's own CA.
        outside: The roots of the outside CAs.
    """

    def __init__(self, own: x509.Certificate, outside: Sequence[OutsideRoot] = ()) -> None:
        self._own = own.public_bytes(serialization.Encoding.DER)
        self._own_key = spki_sha256(own)
        self._outside = {
            root.certificate.public_bytes(serialization.Encoding.DER): root.name for root in outside
        }
        self._fingerprints = {hashlib.sha256(der).digest() for der in self._outside}

    def __repr__(self) -> str:
        return f"Trust({', '.join(['own', *sorted(set(self._outside.values()))])})"

    @property
    def roots(self) -> list[bytes]:
        """All roots as DER, the own CA's first."""
        return [self._own, *self._outside]

    @property
    def names(self) -> list[str]:
        """Names of the outside CAs, ascending."""
        return sorted(set(self._outside.values()))

    def believes(self, root: bytes) -> bool:
        """Whether the SHA-256 of a certificate is that of an outside CA's root."""
        return root in self._fingerprints

    def outside_of(self, chain: Sequence[bytes]) -> Outside | None:
        """What a verified chain stands for that ends in an outside CA; None: it is the own CA's.

        Args:
            chain: As DER, from the leaf to the root.

        Raises:
            Unauthenticated: It ends in neither, or is not one that an application may have.
        """
        root = chain[-1]
        if root == self._own and len(chain) == 2:
            return None
        if root not in self._outside or len(chain) < 2:
            # The root itself as the leaf, or a root that was taken out during the handshake.
            raise Unauthenticated(NOBODYS)
        try:
            leaf, *signers = map(x509.load_der_x509_certificate, chain)
            if self._own_key in map(spki_sha256, signers):
                raise Unauthenticated(NOBODYS)
            return Outside(hashlib.sha256(root).digest(), _names_of(leaf))
        except MALFORMED:
            raise Unauthenticated(NOBODYS) from None


def ends_ms(chain: Sequence[bytes]) -> int:
    """When the first certificate of a chain ends, milliseconds since 1970 UTC."""
    ends = [x509.load_der_x509_certificate(der).not_valid_after_utc for der in chain]
    return int(min(ends).timestamp() * 1000)


def _names_of(leaf: x509.Certificate) -> tuple[str, ...]:
    """All that an application can be known by that has a certificate.

    Raises:
        Unauthenticated: It is a CA's, or carries more than anybody needs.
    """
    basic = _extension(leaf, x509.BasicConstraints)
    usage = _extension(leaf, x509.KeyUsage)
    is_ca = basic is not None and basic.ca
    if is_ca or (usage is not None and (usage.key_cert_sign or usage.crl_sign)):
        raise Unauthenticated("a CA's certificate stands for no application")
    names = _extension(leaf, x509.SubjectAlternativeName)
    uris = [] if names is None else names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) > URIS_MAX:
        raise Unauthenticated(f"the certificate carries {len(uris)} URIs; at most {URIS_MAX}")
    found = [URI_PREFIX + uri for uri in uris if _can_be_bound(URI_PREFIX + uri)]
    return (*found, SPKI_PREFIX + spki_sha256(leaf).hex())


def _can_be_bound(name: str) -> bool:
    try:
        check_mtls(name)
    except ValueError:
        return False
    return True


E = TypeVar("E", bound=x509.ExtensionType)


def _extension(certificate: x509.Certificate, kind: type[E]) -> E | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def read_outside_cas(
    files: Mapping[str, str],
    own: x509.Certificate | None,
    *,
    at: datetime.datetime | None = None,
) -> list[OutsideRoot]:
    """The roots of the configured outside CAs.

    Args:
        files: PEM files by the CA's name.
        own: The certificate of the deployment's own CA, where it is known.
        at: They must be valid then; None: their dates are not looked at.

    Raises:
        OperatorError: A file cannot be read or holds something else; names it and the remedy.
    """
    roots: list[OutsideRoot] = []
    for name, path in files.items():
        what = f"tls.outside_cas.{name}"
        for number, certificate in enumerate(_read_certificates(what, Path(path)), 1):
            if problem := _problem(certificate, own, at):
                raise OperatorError(f"{what}: certificate {number} of {path} {problem}")
            if any(root.certificate == certificate for root in roots):
                raise OperatorError(f"{what}: certificate {number} of {path} is there twice")
            roots.append(OutsideRoot(name, certificate))
    if len(roots) > ROOTS_MAX:
        raise OperatorError(f"tls.outside_cas: {len(roots)} certificates; at most {ROOTS_MAX}")
    return roots


def _read_certificates(what: str, path: Path) -> list[x509.Certificate]:
    data = read_unwritable(what, path, CA_FILE_SIZE_MAX)
    found = parse_certificates(data)
    if not found or len(found) != data.count(b"-----BEGIN "):
        raise OperatorError(f"{what}: {path} must hold PEM certificates and nothing else")
    return found


def parse_certificates(data: bytes) -> list[x509.Certificate]:
    """The certificates of a PEM text; none if one of them is not whole."""
    try:
        found = x509.load_pem_x509_certificates(data)
    except MALFORMED:
        return []
    # A damaged line that begins or ends a block is text to the parser, and the block is skipped.
    counts = {data.count(b"-----BEGIN CERTIFICATE-----"), data.count(b"-----END CERTIFICATE-----")}
    return found if counts == {len(found)} else []


def _problem(
    certificate: x509.Certificate, own: x509.Certificate | None, at: datetime.datetime | None
) -> str:
    """Why a certificate is no root of an outside CA; empty: it is one."""
    try:
        basic = _extension(certificate, x509.BasicConstraints)
        usage = _extension(certificate, x509.KeyUsage)
        key = certificate.public_key()
        certificate.verify_directly_issued_by(certificate)
        if own is not None and spki_sha256(certificate) == spki_sha256(own):
            return "is hsmux's own CA, which is believed anyway: take it out"
        if own is not None and certificate.subject == own.subject:
            return "has the name of hsmux's own CA, so neither could be told from the other"
    except InvalidSignature:
        return "is not signed by itself: name the root, clients send what is between"
    except MALFORMED:
        return "is no root, which signs itself: name the root, clients send what is between"
    if basic is None or not basic.ca or (usage is not None and not usage.key_cert_sign):
        return "is not a CA's: name the certificate of the CA"
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < RSA_BITS_MIN:
        return f"has a key of {key.key_size} bits: at least {RSA_BITS_MIN} are needed"
    if at is not None and at >= certificate.not_valid_after_utc:
        return f"ended on {certificate.not_valid_after_utc:%Y-%m-%d}: take it out"
    if at is not None and at < certificate.not_valid_before_utc:
        return f"begins on {certificate.not_valid_before_utc:%Y-%m-%d}: add it then"
    return ""
