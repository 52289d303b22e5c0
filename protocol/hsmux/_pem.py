"""PEM, the textual form of DER values (RFC 7468), for what this package shows and takes."""

import base64
import re
from typing import Final

__all__ = ["der_of_request", "pem_of"]

LINE_SIZE: Final = 64
"""Characters of a line (RFC 7468 section 2)."""

_REQUEST: Final = re.compile(
    rb"-----BEGIN (?P<label>(?:NEW )?CERTIFICATE REQUEST)-----(?P<body>[A-Za-z0-9+/=\s]+)"
    rb"-----END (?P=label)-----"
)


def pem_of(label: str, der: bytes) -> str:
    """A DER value as PEM under a label."""
    text = base64.b64encode(der).decode()
    lines = [text[start : start + LINE_SIZE] for start in range(0, len(text), LINE_SIZE)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""])


def der_of_request(request: bytes) -> bytes:
    """A PKCS#10 request as DER; what is not PEM is taken to be DER already.

    Raises:
        ValueError: It is not bytes, or what stands in the PEM is not base64.
    """
    if not isinstance(request, bytes | bytearray | memoryview):
        raise ValueError("csr: must be bytes, PEM or DER")
    found = _REQUEST.search(request)
    if found is None:
        return bytes(request)
    try:
        return base64.b64decode(found["body"])
    except ValueError as error:
        raise ValueError(f"csr: not PEM: {error}") from None
