"""The same algorithms through another implementation: the library `cryptography`.

XAES-256-GCM is written here from its specification (c2sp.org/XAES-256-GCM) with nothing but AES and
GCM of that library.
"""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

NONCE_SIZE = 24
PREFIX_SIZE = 12


def _encrypt_block(key: bytes, block: int) -> int:
    encryptor = Cipher(AES(key), ECB()).encryptor()
    return int.from_bytes(encryptor.update(block.to_bytes(16, "big")), "big")


def derived_key(key: bytes, prefix: bytes) -> bytes:
    """The key of AES-256-GCM for all nonces that begin with these 12 bytes."""
    subkey = _encrypt_block(key, 0) << 1
    if subkey >> 128:
        subkey = subkey ^ 1 << 128 ^ 0x87
    halves = (bytes([0, counter, 0x58, 0]) + prefix for counter in (1, 2))
    blocks = (_encrypt_block(key, int.from_bytes(half, "big") ^ subkey) for half in halves)
    return b"".join(block.to_bytes(16, "big") for block in blocks)


def _substitution() -> list[int]:
    """AES's table of bytes (FIPS 197 section 5.1.1): inverse in GF(2^8), then an affine map."""
    table, power, inverse = [0x63] * 256, 1, 1
    for _ in range(255):
        power ^= (power << 1) ^ (0x11B if power & 0x80 else 0)  # times 3
        inverse ^= inverse << 1  # divided by 3
        inverse ^= inverse << 2
        inverse = (inverse ^ inverse << 4) & 0xFF
        inverse ^= 0x09 if inverse & 0x80 else 0
        rotated = inverse * 0x01010101
        table[power] = 0x63 ^ (
            inverse ^ (rotated >> 7 ^ rotated >> 6 ^ rotated >> 5 ^ rotated >> 4) & 0xFF
        )
    return table


def round_keys(key: bytes) -> list[bytes]:
    """The 15 round keys of AES-256 (FIPS 197 section 5.2)."""
    table, constant = _substitution(), 1
    words = [key[i : i + 4] for i in range(0, 32, 4)]
    for i in range(8, 60):
        word = words[-1]
        if i % 8 == 0:
            word = bytes(table[byte] for byte in word[1:] + word[:1])
            word = bytes([word[0] ^ constant]) + word[1:]
            constant *= 2
        elif i % 8 == 4:
            word = bytes(table[byte] for byte in word)
        words.append(bytes(a ^ b for a, b in zip(words[-8], word, strict=True)))
    return [b"".join(words[i : i + 4]) for i in range(0, 60, 4)]


def xaes_seal(key: bytes, nonce: bytes, associated_data: bytes, plaintext: bytes) -> bytes:
    """XAES-256-GCM: ciphertext ‖ tag."""
    cipher = AESGCM(derived_key(key, nonce[:PREFIX_SIZE]))
    return cipher.encrypt(nonce[PREFIX_SIZE:], plaintext, associated_data)


def xaes_open(key: bytes, nonce: bytes, associated_data: bytes, sealed: bytes) -> bytes | None:
    """The plaintext, or None when it does not open."""
    cipher = AESGCM(derived_key(key, nonce[:PREFIX_SIZE]))
    try:
        return cipher.decrypt(nonce[PREFIX_SIZE:], sealed, associated_data)
    except InvalidTag:
        return None


def envelope_open(key: bytes, header_size: int, context: bytes, envelope: bytes) -> bytes | None:
    """The plaintext of an envelope: header, nonce 24, ciphertext, tag."""
    header, rest = envelope[:header_size], envelope[header_size:]
    return xaes_open(key, rest[:NONCE_SIZE], header + context, rest[NONCE_SIZE:])
