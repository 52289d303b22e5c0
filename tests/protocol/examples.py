"""The examples the protocol tests and the golden vectors share: one of everything, by name.

What is here is written by hand and small; `make_vectors` turns it into bytes, and the tests drive
encoder, decoder and both connections with it.
"""

from typing import Any, Final, NamedTuple

from hsmux_protocol.columns import pack_column, pack_u16_column, pack_u32_column
from hsmux_protocol.connection import ANNOUNCED_LIMITS
from hsmux_protocol.envelope import SUITE_AES_GCM, SUITE_RSA_OAEP_SHA_256, SUITE_XAES_256_GCM, Suite
from hsmux_protocol.frames import (
    Cancel,
    Error,
    Frame,
    Goaway,
    Hello,
    Ping,
    Pong,
    Request,
    Result,
    Welcome,
)
from hsmux_protocol.limits import ID_MAX
from hsmux_protocol.records import (
    AccessPointRecord,
    ClientKeyRecord,
    ExpiryRecord,
    KeyRecord,
    LimitsRecord,
    NetworkRuleRecord,
    PolicyRecord,
    QuorumRecord,
    RequestRecord,
    TokenRecord,
)

KEY_ID: Final = bytes(range(16))
KEY: Final = "key-aaaqeayeaudaocajbifqydiob4"
TIME_MS: Final = 1_767_225_600_000

KEY_RECORD: Final = KeyRecord(
    KEY_ID,
    "AES_256",
    "ENCRYPT_DECRYPT",
    "hardware",
    "hsm",
    "main",
    "Enabled",
    1,
    ["orders", "team/ledger"],
    "encrypts orders",
    {"owner": "ledger", "stage": ""},
    TIME_MS,
)
ACCESS_POINT_RECORD: Final = AccessPointRecord(
    KEY_ID,
    "ledger",
    "",
    "Enabled",
    ["crypto", "night"],
    ["office"],
    TIME_MS,
    ["uri:spiffe://example.org/ledger"],
    LimitsRecord(100, 0, 16),
)
POLICY_RECORD: Final = PolicyRecord("crypto", "uses orders", 1, 2, TIME_MS)
NETWORK_RULE_RECORD: Final = NetworkRuleRecord("office", ["10.0.0.0/8", "2001:db8::/32"], TIME_MS)
_DOCUMENT: Final = (
    '{"statements":[{"effect":"allow","resources":["alias/orders"],"role":"crypto-user"}]}'
)
CLIENT_KEY_RECORD: Final = ClientKeyRecord(
    KEY_ID, "ledger", bytes(32), "0a1b2c", "Enabled", TIME_MS, TIME_MS + 1, b""
)
QUORUM_RECORD: Final = QuorumRecord(2, ["second", "third"], TIME_MS)
REQUEST_RECORD: Final = RequestRecord(
    *(bytes(range(32)), "ledger", "put_policy", ["second"]),
    *(TIME_MS, TIME_MS + 86_400_000, ["third"], 1),
)
EXPIRY_RECORD: Final = ExpiryRecord(TIME_MS + 2, TIME_MS + 1, 3, 1)
TOKEN_RECORD: Final = TokenRecord("main", "down", 2, 1, 0, 0)


class OperationExample(NamedTuple):
    """Arguments as a client method gives them and results as a handler gives them."""

    arguments: tuple[Any, ...]
    results: tuple[Any, ...]


_ENVELOPE: Final = b"hX\x01\x01" + KEY_ID + b"\x00\x00\x00\x01" + bytes(24) + b"sealed" + bytes(16)
_PLAINTEXTS: Final = pack_column([b"one", b"", b"three"])

OPERATION_EXAMPLES: Final[dict[str, OperationExample]] = {
    "encrypt": OperationExample(
        ("alias/orders", {"tenant": "a"}, b"plaintext"), (_ENVELOPE, KEY_ID, 1)
    ),
    "decrypt": OperationExample((None, {"tenant": "a"}, _ENVELOPE), (b"plaintext", KEY_ID, 1)),
    "encrypt_batch": OperationExample(
        ("alias/orders@1", None, pack_column([b"\x80", b"\x80", b"\x80"]), _PLAINTEXTS),
        (pack_u16_column([0, 101, 0]), pack_column([_ENVELOPE, b"", _ENVELOPE]), KEY_ID, 1),
    ),
    "decrypt_batch": OperationExample(
        (KEY, None, None, pack_column([_ENVELOPE, b"garbage"])),
        (
            pack_u16_column([0, 600]),
            pack_column([b"one", b""]),
            KEY_ID,
            pack_u32_column([1, 0]),
        ),
    ),
    "sign": OperationExample(
        ("alias/release", "ECDSA_SHA_256", False, b"message"), (bytes(70), KEY_ID, 1)
    ),
    "verify": OperationExample(
        ("alias/release@2", "RSA_PSS_SHA_256", True, bytes(32), bytes(256)), (KEY_ID, 2)
    ),
    "generate_random": OperationExample((16,), (bytes(16),)),
    "get_public_key": OperationExample(
        ("alias/release",), (b"0\x59" + bytes(89), "EC_P256", KEY_ID, 1)
    ),
    "create_key": OperationExample(
        (
            "AES_256",
            "ENCRYPT_DECRYPT",
            "hardware",
            "hsm",
            "alias/orders",
            "encrypts orders",
            {"owner": "ledger"},
        ),
        (KEY_RECORD,),
    ),
    "list_keys": OperationExample((b"", 100), ([KEY_RECORD], KEY_ID)),
    "show_key": OperationExample((KEY,), (KEY_RECORD,)),
    "create_access_point": OperationExample(
        ("ledger", "", ["crypto"], ["uri:spiffe://example.org/ledger"], None),
        (ACCESS_POINT_RECORD,),
    ),
    "show_access_point": OperationExample(("ledger",), (ACCESS_POINT_RECORD,)),
    "update_access_point": OperationExample(
        (
            *("ledger", None, "Disabled", ["crypto"], [], [], ["office"]),
            *(["spki:" + "5a" * 32], [], LimitsRecord(100, None, 0)),
        ),
        (ACCESS_POINT_RECORD,),
    ),
    "delete_access_point": OperationExample(("ledger",), (ACCESS_POINT_RECORD,)),
    "show_client_key": OperationExample((KEY_ID,), (CLIENT_KEY_RECORD,)),
    "put_policy": OperationExample(("crypto", _DOCUMENT), (POLICY_RECORD,)),
    "show_policy": OperationExample(("crypto",), (POLICY_RECORD, _DOCUMENT)),
    "list_policies": OperationExample((b"", 100), ([POLICY_RECORD], b"")),
    "delete_policy": OperationExample(("crypto",), (POLICY_RECORD,)),
    "test_policy": OperationExample(
        ("ledger", "encrypt", "alias/orders", {"tenant": "a"}, "10.1.2.3", 64),
        (False, "no statement allows it", ["crypto statement 1: other keys"]),
    ),
    "put_network_rule": OperationExample(
        ("office", ["10.0.0.0/8", "2001:db8::/32"]), (NETWORK_RULE_RECORD,)
    ),
    "show_network_rule": OperationExample(("office",), (NETWORK_RULE_RECORD,)),
    "list_network_rules": OperationExample((b"", 100), ([NETWORK_RULE_RECORD], b"")),
    "delete_network_rule": OperationExample(("office",), (NETWORK_RULE_RECORD,)),
    "list_access_points": OperationExample((KEY_ID, 1), ([ACCESS_POINT_RECORD], b"")),
    "create_client_key": OperationExample(
        ("ledger", None, 90), (CLIENT_KEY_RECORD, b"0\x00", b"0\x00", b"0\x00")
    ),
    "renew_client_key": OperationExample(
        (KEY_ID, b"0\x00", False),
        (CLIENT_KEY_RECORD._replace(renews=KEY_ID), b"0\x00", b"0\x00", None),
    ),
    "list_client_keys": OperationExample((b"", 100), ([CLIENT_KEY_RECORD], b"")),
    "revoke_client_key": OperationExample((KEY_ID,), (CLIENT_KEY_RECORD,)),
    "show_status": OperationExample(
        (),
        (
            *("0.1.0", KEY_ID, 60, "openssl", "hsm", "sqlite", 7, EXPIRY_RECORD, 3),
            *(["one KEK seal"], [TOKEN_RECORD]),
        ),
    ),
    "explain_reference": OperationExample(
        ("r5f3a91c07b2e-1",),
        (
            *(1_700_000_000_000, "ledger", "encrypt", "alias/orders", "Denied"),
            *("denied by crypto statement 1", "crypto", "{}", "same"),
            *("denied by crypto statement 1", ["crypto statement 2: wants smaller data"]),
        ),
    ),
    "set_quorum": OperationExample((2,), (QUORUM_RECORD,)),
    "show_quorum": OperationExample((), (QUORUM_RECORD,)),
    "approve_request": OperationExample((bytes(range(32)),), (REQUEST_RECORD,)),
    "list_requests": OperationExample((b"", 100), ([REQUEST_RECORD], b"")),
    "show_request": OperationExample((bytes(range(32)),), (REQUEST_RECORD, '{"name": "crypto"}')),
    "withdraw_request": OperationExample((bytes(range(32)),), (REQUEST_RECORD,)),
}

FRAME_EXAMPLES: Final[dict[str, Frame]] = {
    "hello": Hello([1], [], "hsmux-python 0.1.0"),
    "hello with features": Hello([1, 2], ["lane"], ""),
    "welcome": Welcome(1, [], dict(sorted(ANNOUNCED_LIMITS.items())), KEY_ID, "ledger"),
    "request, empty": Request(1, 96, 0, [], {}),
    "request, largest id": Request(ID_MAX, 65535, 2**32 - 1, [], {}),
    "request with idempotency token": Request(
        2, 64, 5000, ["ledger", ""], {"idempotency_token": KEY_ID}
    ),
    "result, empty": Result(1, []),
    "error of a request": Error(7, 400, "busy", True, 250, "too many requests", "r-1"),
    "error of the connection": Error(0, 301, "unauthenticated", False, None, "revoked", "r-2"),
    "error, text is not ASCII": Error(8, 200, "not-found", False, None, "fehlt: Schlüssel 🔑", ""),
    "cancel": Cancel(7),
    "ping": Ping(0),
    "ping, largest number": Ping(ID_MAX),
    "pong": Pong(128),
    "goaway": Goaway(1000, "the gateway is stopping"),
}

FROM_CLIENT: Final = (Hello, Request, Cancel, Ping, Pong)
FROM_GATEWAY: Final = (Welcome, Result, Error, Ping, Pong, Goaway)


class Malformed(NamedTuple):
    """A body that must be refused, and why as a word."""

    name: str
    reason: str
    body: bytes


def _request(arguments: bytes, options: bytes = b"\x80") -> bytes:
    """A REQUEST with these encoded arguments and options."""
    return b"\x96\x03\x01\x01\x00" + arguments + options


# Reasons: what an implementation in another language may call them.
TRUNCATED: Final = "truncated"
TRAILING: Final = "trailing-bytes"
TYPE: Final = "type-not-allowed"
SHORTEST: Final = "not-shortest-form"
KEY_TYPE: Final = "map-key-not-text"
DUPLICATE: Final = "duplicate-map-key"
DEPTH: Final = "too-deep"
ELEMENTS: Final = "too-many-values"
UTF8: Final = "not-utf-8"
NO_FRAME: Final = "not-a-frame"
KIND: Final = "unknown-kind"
FIELD: Final = "field-refused"

REASON_TEXTS: Final[dict[str, str]] = {
    TRUNCATED: "ends inside a value",
    TRAILING: "bytes behind the value",
    TYPE: "is not part of the protocol",
    SHORTEST: "not the shortest form",
    KEY_TYPE: "a map key that is not text",
    DUPLICATE: "a map key that stands twice",
    DEPTH: "nested deeper than",
    ELEMENTS: "values",
    UTF8: "not UTF-8",
    NO_FRAME: "an array that begins with its kind",
    KIND: "is unknown",
    FIELD: ": ",
}
"""What the texts of this implementation say for each reason."""

MALFORMED_BODIES: Final = (
    Malformed("empty body", TRUNCATED, b""),
    Malformed("array without its items", TRUNCATED, b"\x92"),
    Malformed("array one item short", TRUNCATED, b"\x92\x07"),
    Malformed("integer cut off", TRUNCATED, b"\x92\x07\xcd\x01"),
    Malformed("integer without a byte", TRUNCATED, b"\x92\x07\xcf"),
    Malformed("text length cut off", TRUNCATED, b"\x92\x07\xd9"),
    Malformed("text cut off", TRUNCATED, b"\x94\x01\x90\x90\xa3ab"),
    Malformed("binary cut off", TRUNCATED, b"\x92\x07\xc4\x03ab"),
    Malformed("binary of 4 GiB", TRUNCATED, b"\x92\x07\xc6\xff\xff\xff\xff"),
    Malformed("array of 4 Gi items", TRUNCATED, b"\x92\x07\xdd\xff\xff\xff\xff"),
    Malformed("map of 4 Gi entries", TRUNCATED, b"\x92\x07\xdf\xff\xff\xff\xff"),
    Malformed("map without its value", TRUNCATED, _request(b"\x90", b"\x81\xa1a")),
    Malformed("one byte behind", TRAILING, b"\x92\x07\x01\x00"),
    Malformed("a second frame behind", TRAILING, b"\x92\x07\x01\x92\x07\x01"),
    Malformed("reserved byte 0xc1", TYPE, b"\x92\x07\xc1"),
    Malformed("float 32", TYPE, b"\x92\x07\xca\x3f\x80\x00\x00"),
    Malformed("float 64", TYPE, b"\x92\x07\xcb\x3f\xf0\x00\x00\x00\x00\x00\x00"),
    Malformed("ext 8", TYPE, b"\x92\x07\xc7\x01\x05\x00"),
    Malformed("ext 16", TYPE, b"\x92\x07\xc8\x00\x01\x05\x00"),
    Malformed("ext 32", TYPE, b"\x92\x07\xc9\x00\x00\x00\x01\x05\x00"),
    Malformed("fixext 1", TYPE, b"\x92\x07\xd4\x05\x00"),
    Malformed("timestamp", TYPE, b"\x92\x07\xd6\xff\x00\x00\x00\x00"),
    Malformed("uint 8 for 127", SHORTEST, b"\x92\x07\xcc\x7f"),
    Malformed("uint 16 for 255", SHORTEST, b"\x92\x07\xcd\x00\xff"),
    Malformed("uint 32 for 65535", SHORTEST, b"\x92\x07\xce\x00\x00\xff\xff"),
    Malformed("uint 64 for 2^32 - 1", SHORTEST, b"\x92\x07\xcf\x00\x00\x00\x00\xff\xff\xff\xff"),
    Malformed("int 8 for 1", SHORTEST, b"\x92\x07\xd0\x01"),
    Malformed("int 8 for -32", SHORTEST, b"\x92\x07\xd0\xe0"),
    Malformed("int 16 for -128", SHORTEST, b"\x92\x07\xd1\xff\x80"),
    Malformed("int 32 for -32768", SHORTEST, b"\x92\x07\xd2\xff\xff\x80\x00"),
    Malformed("int 64 for -2^31", SHORTEST, b"\x92\x07\xd3\xff\xff\xff\xff\x80\x00\x00\x00"),
    Malformed("int 64 for 2^63 - 1", SHORTEST, b"\x92\x07\xd3\x7f" + b"\xff" * 7),
    Malformed("str 8 of 31 bytes", SHORTEST, b"\x94\x01\x90\x90\xd9\x1f" + b"a" * 31),
    Malformed("str 16 of 255 bytes", SHORTEST, b"\x94\x01\x90\x90\xda\x00\xff" + b"a" * 255),
    Malformed("str 32 of 1 byte", SHORTEST, b"\x94\x01\x90\x90\xdb\x00\x00\x00\x01a"),
    Malformed("bin 16 of 1 byte", SHORTEST, b"\x92\x07\xc5\x00\x01a"),
    Malformed("bin 32 of 1 byte", SHORTEST, b"\x92\x07\xc6\x00\x00\x00\x01a"),
    Malformed("array 16 of 2", SHORTEST, b"\xdc\x00\x02\x07\x01"),
    Malformed("array 32 of 2", SHORTEST, b"\xdd\x00\x00\x00\x02\x07\x01"),
    Malformed("map 16 of 0", SHORTEST, _request(b"\x90", b"\xde\x00\x00")),
    Malformed("map 32 of 0", SHORTEST, _request(b"\x90", b"\xdf\x00\x00\x00\x00")),
    Malformed("integer as map key", KEY_TYPE, _request(b"\x90", b"\x81\x01\x01")),
    Malformed("long integer as map key", KEY_TYPE, _request(b"\x90", b"\x81\xcc\x80\x01")),
    Malformed("nil as map key", KEY_TYPE, _request(b"\x90", b"\x81\xc0\x01")),
    Malformed("binary as map key", KEY_TYPE, _request(b"\x90", b"\x81\xc4\x01a\x01")),
    Malformed("array as map key", KEY_TYPE, _request(b"\x90", b"\x81\x90\x01")),
    Malformed("map as map key", KEY_TYPE, _request(b"\x90", b"\x81\x80\x01")),
    Malformed("option twice", DUPLICATE, _request(b"\x90", b"\x82\xa1a\x01\xa1a\x02")),
    Malformed("context key twice", DUPLICATE, _request(b"\x91\x82\xa1a\xa0\xa1a\xa0")),
    Malformed("third key is the first", DUPLICATE, _request(b"\x91\x83\xa0\x80\xa1a\x80\xa0\x80")),
    Malformed("17 arrays inside each other", DEPTH, _request(b"\x91" * 15 + b"\x90")),
    Malformed("17th level is a map", DEPTH, _request(b"\x91" * 15 + b"\x80")),
    Malformed("5,000 arrays inside each other", DEPTH, _request(b"\x91" * 5000 + b"\x01")),
    Malformed("4,097 values", ELEMENTS, _request(b"\xdc\x0f\xfa" + b"\x00" * 4090)),
    Malformed("text is 0xff", UTF8, b"\x94\x01\x90\x90\xa1\xff"),
    Malformed("text is a lone surrogate", UTF8, b"\x94\x01\x90\x90\xa3\xed\xa0\x80"),
    Malformed("text is overlong", UTF8, b"\x94\x01\x90\x90\xa2\xc0\x80"),
    Malformed("text is beyond U+10FFFF", UTF8, b"\x94\x01\x90\x90\xa4\xf4\x90\x80\x80"),
    Malformed("map key is not UTF-8", UTF8, _request(b"\x90", b"\x81\xa1\xff\x01")),
    Malformed("nil", NO_FRAME, b"\xc0"),
    Malformed("integer", NO_FRAME, b"\x01"),
    Malformed("empty array", NO_FRAME, b"\x90"),
    Malformed("map", NO_FRAME, b"\x80"),
    Malformed("map that begins like a frame", NO_FRAME, b"\x81\xa1a\x01"),
    Malformed("kind is text", NO_FRAME, b"\x92\xa4ping\x01"),
    Malformed("kind is true", NO_FRAME, b"\x92\xc3\x01"),
    Malformed("kind is an array", NO_FRAME, b"\x92\x91\x07\x01"),
    Malformed("kind 0", KIND, b"\x91\x00"),
    Malformed("kind 10", KIND, b"\x92\x0a\x01"),
    Malformed("kind -1", KIND, b"\x91\xff"),
    Malformed("kind 2^64 - 1", KIND, b"\x91\xcf" + b"\xff" * 8),
    Malformed("field missing", FIELD, b"\x91\x07"),
    Malformed("field too many", FIELD, b"\x93\x07\x01\x02"),
    Malformed("number is negative", FIELD, b"\x92\x07\xff"),
    Malformed("number is true", FIELD, b"\x92\x07\xc3"),
    Malformed("number is nil", FIELD, b"\x92\x07\xc0"),
    Malformed("number is text", FIELD, b"\x92\x07\xa11"),
    Malformed("request id 0", FIELD, b"\x92\x06\x00"),
    Malformed("version 0", FIELD, b"\x94\x01\x91\x00\x90\xa0"),
    Malformed("agent is binary", FIELD, b"\x94\x01\x91\x01\x90\xc4\x01a"),
    Malformed("arguments are a map", FIELD, _request(b"\x80")),
    Malformed("options are an array", FIELD, _request(b"\x90", b"\x90")),
    Malformed("retryable is 1", FIELD, b"\x98\x05\x01\x64\xa1a\x01\xc0\xa0\xa0"),
)

CONTEXT_EXAMPLES: Final[dict[str, dict[str, str]]] = {
    "none": {},
    "one": {"tenant": "a"},
    "empty key and value": {"": ""},
    "ascending by UTF-8 bytes, not by UTF-16": {"z": "1", "\uffee": "2", "\U0001f511": "3"},
    "not normalised": {"e\u0301": "decomposed", "\u00e9": "composed"},
    "shorter key first": {"a": "", "aa": "", "ab": "", "b": ""},
    "16 entries": {f"key-{number:02}": "" for number in range(16)},
    "value of 32 bytes": {"k": "v" * 32},
}

MALFORMED_CONTEXTS: Final[dict[str, bytes]] = {
    "no bytes": b"",
    "nil": b"\xc0",
    "array": b"\x90",
    "descending": b"\x82\xa1b\xa0\xa1a\xa0",
    "twice": b"\x82\xa1a\xa0\xa1a\xa0",
    "not by UTF-8 bytes": b"\x82\xa4\xf0\x9f\x94\x91\xa0\xa3\xef\xbf\xae\xa0",
    "value is an integer": b"\x81\xa1a\x01",
    "value is binary": b"\x81\xa1a\xc4\x01b",
    "value is a map": b"\x81\xa1a\x80",
    "key is binary": b"\x81\xc4\x01a\xa1b",
    "long form of the empty map": b"\xde\x00\x00",
    "long form of a text": b"\x81\xa1a\xd9\x01b",
    "bytes behind": b"\x80\x80",
    "not UTF-8": b"\x81\xa1a\xa1\xff",
    "reserved key": b"\x81\xa7hsmux:a\xa0",
    "17 entries": b"\xde\x00\x11" + b"".join(b"\xa1%c\xa0" % byte for byte in range(97, 114)),
    "4,097 bytes": b"\x81\xa1a\xda\x0f\xfb" + b"a" * 4091,
}

COLUMN_EXAMPLES: Final[dict[str, list[bytes]]] = {
    "empty": [],
    "one empty item": [b""],
    "three": [b"one", b"", b"three"],
}

MALFORMED_COLUMNS: Final[dict[str, bytes]] = {
    "no bytes": b"",
    "three bytes": bytes(3),
    "no offsets": bytes(4),
    "count without offsets": b"\x00\x00\x00\x01\x00\x00\x00\x00",
    "first offset is not 0": b"\x00\x00\x00\x00\x00\x00\x00\x01a",
    "last offset too small": b"\x00\x00\x00\x01" + bytes(8) + b"a",
    "last offset too large": b"\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x02a",
    "offsets go down": b"\x00\x00\x00\x03"
    + b"".join(n.to_bytes(4, "big") for n in (0, 2, 1, 2))
    + b"ab",
    "count of 16,385": b"\x00\x00\x40\x01" + bytes(8),
    "count of 2^32 - 1": b"\xff\xff\xff\xff" + bytes(8),
}

ENVELOPE_EXAMPLES: Final[dict[str, tuple[Suite, int, int]]] = {
    "XAES-256-GCM, empty plaintext": (SUITE_XAES_256_GCM, 1, 24 + 16),
    "AES-GCM, 3 bytes of plaintext": (SUITE_AES_GCM, 2**32 - 1, 12 + 3 + 16),
    "RSA-OAEP-SHA-256, 2048 bits": (SUITE_RSA_OAEP_SHA_256, 2, 256),
}
"""Suite, key version and bytes behind the header."""

_HEADER: Final = b"hX\x01\x01" + KEY_ID + b"\x00\x00\x00\x01"

MALFORMED_ENVELOPES: Final[dict[str, bytes]] = {
    "no bytes": b"",
    "23 bytes": _HEADER[:-1],
    "other magic": b"hY" + _HEADER[2:] + bytes(40),
    "format 2": b"hX\x02" + _HEADER[3:] + bytes(40),
    "suite 0": b"hX\x01\x00" + _HEADER[4:] + bytes(40),
    "suite 4": b"hX\x01\x04" + _HEADER[4:] + bytes(40),
    "version 0": _HEADER[:-1] + bytes(1) + bytes(40),
    "no room for nonce and tag": _HEADER + bytes(39),
}

REFERENCE_EXAMPLES: Final[dict[str, tuple[bytes | None, str | None, int | None]]] = {
    KEY: (KEY_ID, None, None),
    KEY + "@1": (KEY_ID, None, 1),
    KEY + "@4294967295": (KEY_ID, None, 2**32 - 1),
    "key-" + "a" * 26: (bytes(16), None, None),
    "key-" + "7" * 25 + "4": (b"\xff" * 16, None, None),
    "alias/orders": (None, "orders", None),
    "alias/a/B_c-9@12": (None, "a/B_c-9", 12),
    "alias/" + "x" * 128 + "@4294967295": (None, "x" * 128, 2**32 - 1),
}

MALFORMED_REFERENCES: Final = (
    "",
    "orders",
    "key-",
    KEY[:-1],
    KEY + "a",
    KEY.upper(),
    KEY[:-1] + "5",  # the last character's two unused bits are not zero
    KEY[:-1] + "=",
    KEY[:-1] + "1",
    KEY[:-2] + "_4",
    " " + KEY,
    KEY + "\n",
    KEY + "@",
    KEY + "@0",
    KEY + "@01",
    KEY + "@+1",
    KEY + "@1 ",
    KEY + "@1@1",
    KEY + "@4294967296",
    KEY + "@\u0661",
    "alias/",
    "alias/" + "x" * 129,
    "alias/a b",
    "alias/ä",
    "alias/a\n",
    "Alias/a",
    "ap-" + KEY[4:],
)
