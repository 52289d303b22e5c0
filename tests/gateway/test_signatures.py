"""Every algorithm with every spec, in software and in a token, against `cryptography`."""

import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from hsmux_protocol import errors
from hsmux_protocol.keys import ALGORITHMS, KEY_SPECS, Algorithm, algorithms_of
from hsmux_protocol.references import format_key_id
from tests.gateway.hardware import write_hardware_config
from tests.gateway.raw_client import RawClient, client_context, connect
from tests.gateway.running import running_gateway

MESSAGES = (b"", b"message", bytes(range(256)) * 256)
SIGNATURE_SIZE_MAX = 512
SIGNING = [name for name, spec in KEY_SPECS.items() if spec.usage == "SIGN_VERIFY"]


@pytest.fixture(scope="module")
def hardware(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RawClient]:
    """A connection to a gateway over SoftHSM."""
    config = write_hardware_config(tmp_path_factory.mktemp("signatures"))
    with running_gateway(config) as running:
        with connect(running.address, client_context(running.administrator)) as client:
            yield client
        assert "Traceback" not in running.log.read_text()


def _verify(der: bytes, algorithm: Algorithm, message: bytes, signature: bytes) -> None:
    """Verify with `cryptography` alone, as somebody does who has only the public key."""
    key = serialization.load_der_public_key(der)
    hashed: hashes.HashAlgorithm = getattr(hashes, algorithm.hash_name.upper())()
    if isinstance(key, rsa.RSAPublicKey):
        pad: padding.AsymmetricPadding = padding.PKCS1v15()
        if algorithm.scheme == "PSS":
            pad = padding.PSS(padding.MGF1(hashed), hashed.digest_size)
        key.verify(signature, message, pad, hashed)
        return
    assert isinstance(key, ec.EllipticCurvePublicKey)
    if algorithm.raw:
        size = (key.curve.key_size + 7) // 8
        assert len(signature) == 2 * size
        r, s = signature[:size], signature[size:]
        signature = encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))
    key.verify(signature, message, ec.ECDSA(hashed))


@pytest.mark.parametrize("protection", ["software", "hardware"])
@pytest.mark.parametrize("spec", SIGNING)
def test_signatures_are_those_that_others_make(
    hardware: RawClient, spec: str, protection: str
) -> None:
    storage = "hsm" if protection == "hardware" else None
    (key,) = hardware.call("create_key", spec, "SIGN_VERIFY", protection, storage, None, "", {})
    name = format_key_id(key.key_id)
    der, told_spec, *_ = hardware.call("get_public_key", name)
    assert told_spec == spec
    possible = algorithms_of(KEY_SPECS[spec])
    assert possible
    for algorithm in ALGORITHMS.values():
        if algorithm.name not in possible:
            with pytest.raises(errors.InvalidArgument, match="signs with"):
                hardware.call("sign", name, algorithm.name, False, b"")
            continue
        for message in MESSAGES:
            digest = hashlib.new(algorithm.hash_name, message).digest()
            for signed, is_digest in ((message, False), (digest, True)):
                signature = hardware.call("sign", name, algorithm.name, is_digest, signed)[0]
                _verify(der, algorithm, message, signature)
                other = message if is_digest else digest
                hardware.call("verify", name, algorithm.name, not is_digest, other, signature)
        _assert_refused(hardware, name, der, algorithm, signature)


def _assert_refused(
    client: RawClient, name: str, der: bytes, algorithm: Algorithm, signature: bytes
) -> None:
    """What `cryptography` refuses is refused."""
    middle = len(signature) // 2
    flipped = signature[:middle] + bytes([signature[middle] ^ 1]) + signature[middle + 1 :]
    zeroes = bytes(len(signature))
    longer = (signature + b"\0")[:SIGNATURE_SIZE_MAX]
    for bad in {flipped, zeroes, signature[:-1], longer, b""} - {signature}:
        with pytest.raises((InvalidSignature, ValueError, AssertionError)):
            _verify(der, algorithm, MESSAGES[-1], bad)
        with pytest.raises(errors.InvalidSignature):
            client.call("verify", name, algorithm.name, False, MESSAGES[-1], bad)
    with pytest.raises(errors.InvalidSignature):
        client.call("verify", name, algorithm.name, False, b"other", signature)


@pytest.mark.parametrize("protection", ["software", "hardware"])
def test_openssl_agrees(hardware: RawClient, tmp_path: Path, protection: str) -> None:
    storage = "hsm" if protection == "hardware" else None
    (key,) = hardware.call(
        "create_key", "EC_P256", "SIGN_VERIFY", protection, storage, None, "", {}
    )
    name = format_key_id(key.key_id)
    der = hardware.call("get_public_key", name)[0]
    public_key = serialization.load_der_public_key(der)
    (tmp_path / "key.pem").write_bytes(
        public_key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    (tmp_path / "message").write_bytes(b"signed here")
    signature = hardware.call("sign", name, "ECDSA_SHA_256", False, b"signed here")[0]
    (tmp_path / "signature").write_bytes(signature)
    command = "openssl dgst -sha256 -verify key.pem -signature signature message"
    done = subprocess.run(
        command.split(), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout == "Verified OK\n"


def test_a_signature_of_one_algorithm_is_none_of_another(hardware: RawClient) -> None:
    (key,) = hardware.call("create_key", "RSA_2048", "SIGN_VERIFY", "software", None, None, "", {})
    name = format_key_id(key.key_id)
    for made in algorithms_of(KEY_SPECS["RSA_2048"]):
        signature = hardware.call("sign", name, made, False, b"m")[0]
        for other in algorithms_of(KEY_SPECS["RSA_2048"]):
            if other != made:
                with pytest.raises(errors.InvalidSignature):
                    hardware.call("verify", name, other, False, b"m", signature)
