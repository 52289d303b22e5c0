"""How things are named: a key `key-<base32>` or `alias/<name>`, either with `@version`; an access
point by a name; a certificate of another CA, by which an access point is known, `uri:<URI>` or
`spki:<SHA-256>`.

Names are ASCII and of few characters. So two names that differ look different: nothing is
invisible, changes the direction of writing, is composed in two ways or belongs to an alphabet whose
letters look like those of another. Whatever else is to be said stands in a description.

The base32 alphabet is RFC 4648 section 6 in lower case without padding; 16 bytes are 26
characters, and the two unused bits of the last one are zero, so an identifier has one spelling.
"""

import base64
import re
import string
import unicodedata
from functools import lru_cache
from typing import Final, NamedTuple

from .limits import QUOTED_MAX, REFERENCE_SIZE_MAX

__all__ = [
    "ACCESS_POINT_PREFIX",
    "ALIAS_PREFIX",
    "KEY_PREFIX",
    "MTLS_SIZE_MAX",
    "SPKI_PREFIX",
    "URI_PREFIX",
    "KeyReference",
    "check_access_point_name",
    "check_alias",
    "check_mtls",
    "format_identifier",
    "format_key_id",
    "parse_identifier",
    "parse_key_reference",
]

KEY_PREFIX: Final = "key-"
ALIAS_PREFIX: Final = "alias/"
ACCESS_POINT_PREFIX: Final = "ap-"
URI_PREFIX: Final = "uri:"
SPKI_PREFIX: Final = "spki:"
_URI_SIZE_MAX: Final = 2048
MTLS_SIZE_MAX: Final = len(URI_PREFIX) + _URI_SIZE_MAX
"""Bytes of what a certificate of another CA is known by: a SPIFFE ID has at most 2,048."""
_URI: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[!-~]+", re.ASCII)
_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_NAME_BEGINNINGS: Final = frozenset(string.ascii_letters + string.digits)
_NAME_CHARACTERS: Final = _NAME_BEGINNINGS | frozenset("-_. ")
_NAME_RULE: Final = "a name begins with A-Z a-z 0-9 and goes on with these, - _ . and single spaces"
_ALIAS: Final = re.compile(r"[A-Za-z0-9/_-]{1,128}", re.ASCII)
_VERSION: Final = re.compile(r"[1-9][0-9]{0,9}", re.ASCII)
_VERSION_MAX: Final = 2**32 - 1
_IDENTIFIER_SIZE: Final = 16
_SPELLINGS_MAX: Final = 1024
"""References whose other form is remembered: most requests name one that was named before."""

_IDENTIFIER: Final = re.compile(r"[a-z2-7]{25}[aeimquy4]", re.ASCII)
# base32's digits as the digits `int` reads in base 32.
_DIGITS: Final = str.maketrans(
    string.ascii_lowercase + "234567", (string.digits + string.ascii_lowercase)[:32]
)


class KeyReference(NamedTuple):
    """A parsed key reference: exactly one of `key_id` and `alias` is set; `version` is None for
    the newest.
    """

    key_id: bytes | None
    alias: str | None
    version: int | None


def _shown(text: str) -> str:
    """A caller's text as an error repeats it: its beginning, so that the answer stays small."""
    return repr(text if len(text) <= QUOTED_MAX else text[:QUOTED_MAX] + "…")


@lru_cache(_SPELLINGS_MAX)
def format_identifier(prefix: str, identifier: bytes) -> str:
    """The text form of a 16-byte identifier, such as `key-...` or `ap-...`."""
    return prefix + base64.b32encode(identifier).decode().rstrip("=").lower()


def parse_identifier(prefix: str, text: str) -> bytes:
    """The 16 bytes of an identifier's text form.

    Raises:
        ValueError: The text is not exactly what `format_identifier` writes.
    """
    start = len(prefix)
    if not text.startswith(prefix) or not _IDENTIFIER.fullmatch(text, start):
        raise ValueError(f"{_shown(text)} is not {prefix}<26 characters a-z2-7>")
    # 26 digits are 130 bits: the pattern has made sure that the last two are zero.
    return (int(text[start:].translate(_DIGITS), 32) >> 2).to_bytes(_IDENTIFIER_SIZE, "big")


def format_key_id(key_id: bytes) -> str:
    """`key-<base32>` for a 16-byte key identifier."""
    return format_identifier(KEY_PREFIX, key_id)


def check_alias(name: str) -> str:
    """The name of an alias without its `alias/` prefix.

    Raises:
        ValueError: It is not `alias/` and 1 to 128 characters of `A-Za-z0-9/_-`.
    """
    alias = name.removeprefix(ALIAS_PREFIX)
    if not name.startswith(ALIAS_PREFIX) or not _ALIAS.fullmatch(alias):
        raise ValueError(f"{_shown(name)} is not alias/<1 to 128 characters A-Z a-z 0-9 / _ ->")
    return alias


def check_access_point_name(name: str) -> str:
    """The name, which no identifier looks like and no other name can be taken for.

    Raises:
        ValueError: It does not begin with one of `A-Za-z0-9`, has others than these, `-_.` and
            single spaces between them, or begins like an identifier; the text says what and where.
    """
    for position, character in enumerate(name, 1):
        if character not in (_NAME_CHARACTERS if position > 1 else _NAME_BEGINNINGS):
            raise ValueError(f"character {position} is {_described(character)}; {_NAME_RULE}")
    if "" in name.split(" "):
        raise ValueError(f"a space at an end, or two together; {_NAME_RULE}")
    if name.startswith(ACCESS_POINT_PREFIX):
        raise ValueError(f"what begins with {ACCESS_POINT_PREFIX} is an identifier")
    return name


def check_mtls(text: str) -> str:
    """What a certificate of another CA is known by: `uri:` and a URI of its subject alternative
    names, or `spki:` and the SHA-256 of its public key (SubjectPublicKeyInfo) in hexadecimal.

    Raises:
        ValueError: It is neither.
    """
    if text.startswith(URI_PREFIX):
        uri = text.removeprefix(URI_PREFIX)
        if not _URI.fullmatch(uri) or len(uri) > _URI_SIZE_MAX:
            raise ValueError(
                f"{_shown(uri)} is no URI: a scheme, a colon and ASCII without spaces, "
                f"{_URI_SIZE_MAX:,} characters at most"
            )
    elif not text.startswith(SPKI_PREFIX) or not _SHA256.fullmatch(text, len(SPKI_PREFIX)):
        raise ValueError(f"{_shown(text)} is not uri:<URI> or spki:<64 digits 0-9 a-f>")
    return text


def _described(character: str) -> str:
    """A character for people who cannot see it, or take it for another."""
    shown = f"U+{ord(character):04X}"
    name = unicodedata.name(character, "")
    return f"{shown} ({name})" if name else shown


@lru_cache(_SPELLINGS_MAX)
def parse_key_reference(text: str) -> KeyReference:
    """Parse a key reference.

    Raises:
        ValueError: It is neither `key-<base32>` nor `alias/<name>`, or its version is not 1 to
            2^32 - 1.
    """
    if len(text) > REFERENCE_SIZE_MAX:
        raise ValueError(f"{_shown(text)} is longer than any key reference")
    name, separator, suffix = text.partition("@")
    version = None
    if separator:
        if not _VERSION.fullmatch(suffix) or int(suffix) > _VERSION_MAX:
            raise ValueError(f"{_shown(text)}: behind @ stands a version number from 1")
        version = int(suffix)
    if name.startswith(ALIAS_PREFIX):
        return KeyReference(None, check_alias(name), version)
    if name.startswith(KEY_PREFIX):
        return KeyReference(parse_identifier(KEY_PREFIX, name), None, version)
    raise ValueError(
        f"{_shown(text)} is not a key: use key-<identifier> or alias/<name>, either with @version"
    )
