"""AES-256-GCM, XAES-256-GCM and HMAC-SHA-256: published vectors, both backends, another library."""

import hashlib
import hmac
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHAKE128, XOFHash
from hypothesis import given
from hypothesis import strategies as st

import hsmux_native
from hsmux_native import (
    ITEM_SIZE_MAX,
    InvalidTag,
    gcm_open,
    gcm_seal,
    hmac_sha256,
    xaes_open,
    xaes_seal,
)

from . import reference
from .conftest import chosen
from .published import cavp_records, hmac_sha256_records, read_json

AAD_SIZE_MAX = 8192
XAES = read_json("xaes-256-gcm.json")
GCM_FILES = [f"gcm{kind}{bits}.rsp" for kind in ("EncryptExtIV", "Decrypt") for bits in (192, 256)]

texts = st.binary(max_size=300)
keys = st.binary(min_size=32, max_size=32)


def test_the_backend_is_named(backend: str) -> None:
    assert hsmux_native.backend().startswith(f"{backend} ")


# ---- Vectors


@pytest.mark.parametrize("vector", XAES["vectors"], ids=["without-aad", "with-aad"])
def test_xaes_vector(backend: str, vector: dict[str, str]) -> None:
    key, nonce = bytes.fromhex(vector["key"]), vector["nonce_ascii"].encode()
    aad, plaintext = vector["aad_ascii"].encode(), vector["plaintext_ascii"].encode()
    sealed = bytes.fromhex(vector["ciphertext"])
    derived, iv = bytes.fromhex(vector["derived_key"]), bytes.fromhex(vector["derived_nonce"])
    assert reference.derived_key(key, nonce[:12]) == derived and nonce[12:] == iv
    assert gcm_seal(derived, iv, aad, plaintext) == sealed
    assert xaes_seal(key, nonce, aad, plaintext) == sealed
    assert xaes_open(key, nonce, aad, sealed) == plaintext


@pytest.mark.parametrize("rounds", [10_000, pytest.param(1_000_000, marks=pytest.mark.long)])
def test_xaes_accumulated(backend: str, rounds: int) -> None:
    stream = XOFHash(SHAKE128(digest_size=1 << 40))
    accumulated = hashlib.shake_128()

    def sized() -> bytes:
        return stream.squeeze(size) if (size := stream.squeeze(1)[0]) else b""

    for _ in range(rounds):
        key, nonce = stream.squeeze(32), stream.squeeze(24)
        plaintext, aad = sized(), sized()
        sealed = xaes_seal(key, nonce, aad, plaintext)
        assert xaes_open(key, nonce, aad, sealed) == plaintext
        accumulated.update(sealed)
    assert accumulated.hexdigest(32) == XAES["accumulated"][str(rounds)]


def test_gcm_of_cavp(backend: str) -> None:
    opened = refused = 0
    for name in ("gcmEncryptExtIV256.rsp", "gcmDecrypt256.rsp"):
        for record in cavp_records(name):
            if (record.sizes["IVlen"], record.sizes["Taglen"]) != (96, 128):
                continue
            fields = record.fields
            key, iv, aad = fields["Key"], fields["IV"], fields["AAD"]
            sealed = fields["CT"] + fields["Tag"]
            if record.fails:
                with pytest.raises(InvalidTag):
                    gcm_open(key, iv, aad, sealed)
                refused += 1
                continue
            assert gcm_open(key, iv, aad, sealed) == fields["PT"]
            assert gcm_seal(key, iv, aad, fields["PT"]) == sealed
            opened += 1
    # 375 records to encrypt, and as many to decrypt, of which some must fail.
    assert opened + refused == 750 and refused > 100


def test_other_sizes_of_cavp_are_refused(backend: str) -> None:
    """Keys of 128 and 192 bits, IVs of 8 and 1,024, tags of 32 to 120."""
    counts = dict.fromkeys(("key", "iv", "tag"), 0)
    for name in GCM_FILES:
        for record in cavp_records(name):
            fields, sizes = record.fields, record.sizes
            key, iv, aad = fields["Key"], fields["IV"], fields["AAD"]
            what = "key" if sizes["Keylen"] != 256 else "iv" if sizes["IVlen"] != 96 else "tag"
            if what == "tag" and sizes["Taglen"] == 128:
                continue
            counts[what] += 1
            if what == "tag":
                with pytest.raises(InvalidTag):
                    gcm_open(key, iv, aad, fields["CT"] + fields["Tag"])
                continue
            with pytest.raises(ValueError, match=what):
                gcm_open(key, iv, aad, fields["CT"] + fields["Tag"])
            with pytest.raises(ValueError, match=what):
                gcm_seal(key, iv, aad, fields.get("PT", b""))
    assert counts == {"key": 15750, "iv": 10500, "tag": 4500}


def test_hmac_of_rfc_4231(backend: str) -> None:
    records = list(hmac_sha256_records())
    assert len(records) >= 6
    for record in records:
        expected = record["MD"]
        assert hmac_sha256(record["Key"], record["Msg"])[: len(expected)] == expected


# ---- Against each other and another library


@given(keys, st.binary(min_size=12, max_size=12), texts, texts)
def test_gcm_agrees(backend: str, key: bytes, iv: bytes, aad: bytes, plaintext: bytes) -> None:
    sealed = gcm_seal(key, iv, aad, plaintext)
    assert sealed == AESGCM(key).encrypt(iv, plaintext, aad)
    assert gcm_open(key, iv, aad, sealed) == plaintext


@given(keys, st.binary(min_size=24, max_size=24), texts, texts)
def test_xaes_agrees(backend: str, key: bytes, nonce: bytes, aad: bytes, plaintext: bytes) -> None:
    sealed = xaes_seal(key, nonce, aad, plaintext)
    assert sealed == reference.xaes_seal(key, nonce, aad, plaintext)
    assert xaes_open(key, nonce, aad, sealed) == plaintext


@given(texts, texts)
def test_hmac_agrees(backend: str, key: bytes, message: bytes) -> None:
    assert hmac_sha256(key, message) == hmac.digest(key, message, "sha256")


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 255, 4095, 4096, ITEM_SIZE_MAX])
@pytest.mark.parametrize("aad_size", [0, 1, 15, 16, 17, AAD_SIZE_MAX])
def test_sizes_around_blocks_and_limits(backend: str, size: int, aad_size: int) -> None:
    text = hashlib.shake_128(b"text").digest(ITEM_SIZE_MAX)
    key, iv, aad, plaintext = text[:32], text[:12], text[:aad_size], text[:size]
    sealed = gcm_seal(key, iv, aad, plaintext)
    assert sealed == AESGCM(key).encrypt(iv, plaintext, aad)
    assert gcm_open(key, iv, aad, sealed) == plaintext


@given(st.data(), texts)
def test_one_changed_bit_is_refused(backend: str, data: st.DataObject, plaintext: bytes) -> None:
    key, iv, aad = b"k" * 32, b"i" * 12, b"aad"
    sealed = bytearray(gcm_seal(key, iv, aad, plaintext))
    bit = data.draw(st.integers(0, 8 * len(sealed) - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(InvalidTag):
        gcm_open(key, iv, aad, sealed)


@given(st.binary(max_size=100))
def test_garbage_is_refused(backend: str, garbage: bytes) -> None:
    with pytest.raises(InvalidTag):
        gcm_open(b"k" * 32, b"i" * 12, b"", garbage)
    with pytest.raises(InvalidTag):
        xaes_open(b"k" * 32, b"n" * 24, b"", garbage)


# ---- Arguments

ZEROS = bytes(ITEM_SIZE_MAX + 17)


@pytest.mark.parametrize(
    ("function", "nonce_size"),
    [(gcm_seal, 12), (gcm_open, 12), (xaes_seal, 24), (xaes_open, 24)],
    ids=["gcm_seal", "gcm_open", "xaes_seal", "xaes_open"],
)
def test_sizes_of_keys_and_nonces(
    backend: str, function: Callable[[bytes, bytes, bytes, bytes], bytes], nonce_size: int
) -> None:
    for size in (0, 16, 24, 31, 33, 64):
        with pytest.raises(ValueError, match=f"key: 32 bytes, not {size}"):
            function(ZEROS[:size], ZEROS[:nonce_size], b"", ZEROS[:16])
    for size in (0, nonce_size - 1, nonce_size + 1, 128):
        with pytest.raises(ValueError, match=f"{nonce_size} bytes, not {size}"):
            function(ZEROS[:32], ZEROS[:size], b"", ZEROS[:16])


@pytest.mark.parametrize(
    ("seal", "unseal", "nonce"),
    [(gcm_seal, gcm_open, ZEROS[:12]), (xaes_seal, xaes_open, ZEROS[:24])],
    ids=["gcm", "xaes"],
)
def test_one_over_a_limit(
    backend: str,
    seal: Callable[[bytes, bytes, bytes, bytes], bytes],
    unseal: Callable[[bytes, bytes, bytes, bytes], bytes],
    nonce: bytes,
) -> None:
    key, large, aad = ZEROS[:32], ZEROS[: ITEM_SIZE_MAX + 1], ZEROS[: AAD_SIZE_MAX + 1]
    assert len(seal(key, nonce, aad[1:], large[1:])) == ITEM_SIZE_MAX + 16
    with pytest.raises(ValueError, match="over a limit"):
        seal(key, nonce, b"", large)
    with pytest.raises(ValueError, match="over a limit"):
        seal(key, nonce, aad, b"")
    for sealed, data in ((ZEROS, b""), (seal(key, nonce, b"", b""), aad)):
        with pytest.raises(InvalidTag):
            unseal(key, nonce, data, sealed)


def test_limits_of_hmac(backend: str) -> None:
    key, message = ZEROS[:AAD_SIZE_MAX], ZEROS[:ITEM_SIZE_MAX]
    assert hmac_sha256(key, message) == hmac.digest(key, message, "sha256")
    with pytest.raises(ValueError, match="over a limit"):
        hmac_sha256(key + b"0", b"")
    with pytest.raises(ValueError, match="over a limit"):
        hmac_sha256(b"", message + b"0")


def test_any_buffer_serves(backend: str) -> None:
    words = memoryview(bytes(range(256)) * 16).cast("I")
    expected = gcm_seal(ZEROS[:32], ZEROS[:12], bytes(words), bytes(words))
    # Its length is in elements, and its bytes four times as many.
    assert gcm_seal(ZEROS[:32], ZEROS[:12], words, words) == expected
    assert gcm_open(ZEROS[:32], ZEROS[:12], words, bytearray(expected)) == bytes(words)
    every_other = memoryview(bytes(range(256)))[::2]
    assert hmac_sha256(every_other, every_other) == hmac_sha256(
        bytes(every_other), bytes(every_other)
    )


def test_all_backends_give_the_same_bytes(backend: str) -> None:
    text = hashlib.shake_128(b"same").digest(ITEM_SIZE_MAX)
    found = set()
    for name in (backend, "openssl"):
        with chosen(name):
            found.add(xaes_seal(text[:32], text[:24], text[:AAD_SIZE_MAX], text))
    assert len(found) == 1
