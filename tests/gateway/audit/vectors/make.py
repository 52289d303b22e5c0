"""Makes `log.json`: a chain, its segment and a checkpoint, without any code of the product.

What it needs is the standard library, and `openssl` for the signature, which is another one at
each run:

    python tests/gateway/audit/vectors/make.py > tests/gateway/audit/vectors/log.json
"""

import base64
import hashlib
import json
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

DEPLOYMENT = bytes.fromhex("d0d1d2d3d4d5d6d7d8d9dadbdcdddedf")
CHAIN = bytes.fromhex("c0c1c2c3c4c5c6c7c8c9cacbcccdcecf")
SIZE = 65536

Value = int | str | bytes


def packed(values: list[Value]) -> bytes:
    """A msgpack array of unsigned integers, short texts and short binaries."""
    parts = [bytes([0x90 | len(values)]) if len(values) < 16 else b"\xdc" + pack(">H", len(values))]
    for value in values:
        if isinstance(value, int):
            forms = ((0x80, b"", ">B"), (1 << 8, b"\xcc", ">B"), (1 << 16, b"\xcd", ">H"))
            wide = ((1 << 32, b"\xce", ">I"), (1 << 64, b"\xcf", ">Q"))
            form = next(form for form in forms + wide if value < form[0])
            parts.append(form[1] + pack(form[2], value))
        elif isinstance(value, str):
            text = value.encode()
            parts.append(bytes([0xA0 | len(text)] if len(text) < 32 else [0xD9, len(text)]) + text)
        else:
            parts.append(bytes([0xC4, len(value)]) + value)
    return b"".join(parts)


def pack(form: str, value: int) -> bytes:
    """One big-endian integer."""
    return struct.pack(form, value)


RECORDS: list[list[Value]] = [
    [1, 1700000000000, "0.1.0", "OpenSSL 3.0.22"],
    [
        *(3, 1700000000001, "r5f3a91c07b2e-1", "billing", b"\xa0" * 16, b"\xb0" * 16),
        *("192.0.2.7", 4, "rule", "alias/ä", b"\xe0" * 16, 2, 0, b"\xf0" * 16, 1, 0, 300, 70000),
        5000000000,
    ],
    [6, 1700000010000, 1700000000500, 1700000009500, "198.51.100.9", "handshake", 412],
    [2, 1700000020000, 4],
]


def main() -> None:
    """Print the vectors."""
    head = hashlib.sha256(b"hsmux audit chain 1\0" + DEPLOYMENT + CHAIN).digest()
    segment = b"hsmuxlog" + pack(">I", 1) + DEPLOYMENT + CHAIN + pack(">I", 1) + pack(">Q", 1)
    segment += pack(">Q", SIZE) + head
    records = [{"body": "", "head": head.hex()}]
    for sequence, values in enumerate(RECORDS, 1):
        body = packed(values)
        head = hashlib.sha256(head + pack(">Q", sequence) + body).digest()
        segment += pack(">I", len(body)) + body + head
        records.append({"body": body.hex(), "head": head.hex()})
    with tempfile.TemporaryDirectory() as directory:
        note, public = signed(Path(directory), len(RECORDS), head)
    json.dump(
        {
            "how": "python tests/gateway/audit/vectors/make.py",
            "deployment": DEPLOYMENT.hex(),
            "chain": CHAIN.hex(),
            "size": SIZE,
            "records": records,
            "segment": segment.hex(),
            "public_key": public,
            "checkpoint": note,
        },
        sys.stdout,
        indent=1,
        ensure_ascii=False,
    )
    print()


def signed(directory: Path, sequence: int, head: bytes) -> tuple[str, str]:
    """A checkpoint over the chain, and the public key that verifies it."""
    name = f"hsmux.audit/{DEPLOYMENT.hex()}"
    text = f"{name}\ncheckpoint 1\ntime 1700000030000\nprevious {base64_of(bytes(32))}\n"
    text += f"chain {CHAIN.hex()} {sequence} {base64_of(head)}\n"
    key = directory / "key.pem"
    run("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(key))
    public = run("pkey", "-in", str(key), "-pubout")
    spki = run("pkey", "-in", str(key), "-pubout", "-outform", "DER")
    (directory / "text").write_text(text)
    signature = run("dgst", "-sha256", "-sign", str(key), str(directory / "text"))
    line = base64_of(hashlib.sha256(spki).digest()[:4] + signature)
    return f"{text}\n— {name} {line}\n", public.decode()


def base64_of(data: bytes) -> str:
    """Base64 with padding."""
    return base64.b64encode(data).decode()


def run(*arguments: str) -> bytes:
    """What openssl prints."""
    return subprocess.run(["openssl", *arguments], check=True, capture_output=True).stdout


if __name__ == "__main__":
    main()
