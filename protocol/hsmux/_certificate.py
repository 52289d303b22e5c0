"""When a certificate begins and ends, read from its DER without a library for cryptography.

Only what stands before the validity (RFC 5280 section 4.1) is looked at, and that only as far as is
needed to step over it. Nothing is decided on it but when to renew.
"""

import calendar
import re
import ssl
import time
from typing import Final, NamedTuple

__all__ = ["Validity", "validity_of"]

_CERTIFICATE: Final = re.compile(
    rb"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----"
)
_SEQUENCE, _VERSION, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18


class Validity(NamedTuple):
    """From when to when a certificate is valid, in seconds since 1970 UTC."""

    begin_s: float
    end_s: float

    @property
    def life_s(self) -> float:
        """Seconds between the two."""
        return self.end_s - self.begin_s


def validity_of(pem: bytes) -> Validity:
    """The validity of the first certificate in a PEM file.

    Raises:
        ValueError: There is none, or it is malformed.
    """
    found = _CERTIFICATE.search(pem)
    if found is None:
        raise ValueError("there is no certificate in it")
    der = ssl.PEM_cert_to_DER_cert(found[0].decode("ascii"))
    try:
        return _validity(der)
    except (IndexError, UnicodeDecodeError):
        raise ValueError("the certificate in it is malformed") from None


def _validity(der: bytes) -> Validity:
    at = _enter(der, _enter(der, 0, _SEQUENCE), _SEQUENCE)
    if der[at] == _VERSION:
        at = _span(der, at)[1]
    for _ in ("serial number", "signature algorithm", "issuer"):
        at = _span(der, at)[1]
    at = _enter(der, at, _SEQUENCE)
    begin_s = _time(der, at)
    return Validity(begin_s, _time(der, _span(der, at)[1]))


def _enter(der: bytes, at: int, tag: int) -> int:
    """Where the content of a value begins, which must have this tag."""
    if der[at] != tag:
        raise ValueError("the certificate in it is malformed")
    return _span(der, at)[0]


def _span(der: bytes, at: int) -> tuple[int, int]:
    """Where the content of a value begins and ends (X.690 section 8.1.3)."""
    first = der[at + 1]
    if first < 0x80:
        return at + 2, at + 2 + first
    start = at + 2 + (first & 0x7F)
    return start, start + int.from_bytes(der[at + 2 : start], "big")


def _time(der: bytes, at: int) -> float:
    """A time as RFC 5280 section 4.1.2.5 writes it: to the second, in UTC."""
    tag, (start, end) = der[at], _span(der, at)
    text = der[start:end].decode("ascii")
    if tag == _UTC_TIME:
        text = ("19" if text >= "50" else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("the certificate in it is malformed")
    return float(calendar.timegm(time.strptime(text, "%Y%m%d%H%M%SZ")))
