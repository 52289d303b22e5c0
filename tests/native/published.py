"""Published vectors: files of `cryptography_vectors`, and those in vectors/, whose README says
where they are from."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cryptography_vectors

VECTORS = Path(__file__).parent / "vectors"
_PACKAGE = Path(cryptography_vectors.__file__).parent


def read_json(name: str) -> Any:
    """A file of vectors/."""
    return json.loads((VECTORS / name).read_text())


@dataclass(frozen=True)
class Record:
    """One record of a NIST CAVP file.

    Attributes:
        sizes: In bits, from the group's brackets: `Keylen`, `IVlen`, `Taglen`.
        fields: `Key`, `IV`, `PT`, ... as bytes.
        fails: It must not open.
    """

    sizes: dict[str, int]
    fields: dict[str, bytes]
    fails: bool


def cavp_records(name: str) -> Iterator[Record]:
    """The records of a file in ciphers/AES/GCM/."""
    sizes: dict[str, int] = {}
    text = (_PACKAGE / "ciphers" / "AES" / "GCM" / name).read_text()
    for block in re.split(r"\n\s*\n", text):
        sizes |= {word: int(bits) for word, bits in re.findall(r"\[(\w+) = (\d+)\]", block)}
        fields = dict(re.findall(r"^(\w+) = ?([0-9a-f]*)$", block, re.MULTILINE))
        if "Count" in fields:
            del fields["Count"]
            decoded = {word: bytes.fromhex(value) for word, value in fields.items()}
            yield Record(dict(sizes), decoded, bool(re.search("^FAIL$", block, re.MULTILINE)))


def hmac_sha256_records() -> Iterator[dict[str, bytes]]:
    """The test cases of RFC 4231: `Key`, `Msg`, `MD`."""
    text = (_PACKAGE / "HMAC" / "rfc-4231-sha256.txt").read_text()
    for block in re.split(r"\n\s*\n", text):
        fields = dict(re.findall(r"^(Key|Msg|MD) = ([0-9a-f]+)$", block, re.MULTILINE))
        if fields:
            yield {word: bytes.fromhex(value) for word, value in fields.items()}
