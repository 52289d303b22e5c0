"""What the CA refuses to read, let alone to sign."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hsmux_gateway.access.authority import check_request


def _request() -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    request = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER)


def test_a_request_of_another_version_is_no_request() -> None:
    der = _request()
    check_request(der)
    with pytest.raises(ValueError, match="not a PKCS#10 request"):
        check_request(der.replace(b"\x02\x01\x00", b"\x02\x01\x15", 1))
