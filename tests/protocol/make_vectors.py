"""Writes and checks `vectors/golden.json`, the vectors another language can use.

`python -m tests.protocol.make_vectors` fails when the file is not what the code makes;
`python -m tests.protocol.make_vectors --write` rewrites it. A changed file is a changed protocol.
"""

import json
import sys
from pathlib import Path
from typing import Any, Final

import msgpack

from hsmux_protocol import limits
from hsmux_protocol.columns import pack_column, pack_u16_column, pack_u32_column
from hsmux_protocol.connection import ALPN, VERSION
from hsmux_protocol.context import encode_context
from hsmux_protocol.envelope import make_header
from hsmux_protocol.errors import ERRORS
from hsmux_protocol.fields import write_fields
from hsmux_protocol.frames import Frame, Request, Result, encode_frame
from hsmux_protocol.operations import OPERATIONS

from . import examples
from .examples import FROM_CLIENT, FROM_GATEWAY

GOLDEN: Final = Path(__file__).parent / "vectors" / "golden.json"
EXACT_MAX: Final = 2**53
NUMBERS: Final[dict[str, list[int]]] = {"empty": [], "edges": [0, 1, 65535]}


def plain(value: Any) -> Any:
    """A decoded value as JSON that loses nothing."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, int) and abs(value) > EXACT_MAX:
        return {"integer": str(value)}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def _sender(frame: Frame) -> str:
    ends = (type(frame) in FROM_CLIENT, type(frame) in FROM_GATEWAY)
    return {(True, False): "client", (False, True): "gateway", (True, True): "both"}[ends]


def _frame(name: str, frame: Frame, operation: str | None = None) -> dict[str, Any]:
    data = encode_frame(frame, size_max=limits.FRAME_SIZE_MAX)
    return {
        "name": name,
        "kind": type(frame).__name__.upper(),
        "sender": _sender(frame),
        **({"operation": operation} if operation else {}),
        "bytes": data.hex(),
        "value": plain(msgpack.unpackb(data[4:])),
    }


def _frames() -> list[dict[str, Any]]:
    rows = [_frame(name, frame) for name, frame in examples.FRAME_EXAMPLES.items()]
    for number, (name, example) in enumerate(examples.OPERATION_EXAMPLES.items(), 1):
        operation = OPERATIONS[name]
        arguments = write_fields(operation.arguments, example.arguments)
        request = Request(number, operation.number, 0, arguments, {})
        result = Result(number, write_fields(operation.results, example.results))
        rows.append(_frame(f"{name} arguments", request, name))
        rows.append(_frame(f"{name} results", result, name))
    return rows


def _envelopes() -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "suite": suite.number,
            "key_id": examples.KEY_ID.hex(),
            "key_version": version,
            "header": make_header(suite, examples.KEY_ID, version).hex(),
            "size_behind": size,
        }
        for name, (suite, version, size) in examples.ENVELOPE_EXAMPLES.items()
    ]


def _references() -> list[dict[str, Any]]:
    return [
        {
            "text": text,
            "key_id": key_id.hex() if key_id else None,
            "alias": alias,
            "version": version,
        }
        for text, (key_id, alias, version) in examples.REFERENCE_EXAMPLES.items()
    ]


def _columns() -> dict[str, list[dict[str, Any]]]:
    widths = ((16, pack_u16_column), (32, pack_u32_column))
    return {
        "columns": [
            {"name": name, "items": [i.hex() for i in items], "bytes": pack_column(items).hex()}
            for name, items in examples.COLUMN_EXAMPLES.items()
        ],
        "number_columns": [
            {"name": f"{name}, {bits} bits", "bits": bits, "items": n, "bytes": pack(n).hex()}
            for bits, pack in widths
            for name, n in NUMBERS.items()
        ],
    }


def _lengths() -> list[dict[str, Any]]:
    caps = (limits.FRAME_SIZE_MAX_OPENING, limits.FRAME_SIZE_MAX)
    return [
        {"bytes": size.to_bytes(4, "big").hex(), "size_max": cap}
        for cap in caps
        for size in (0, cap + 1, 2**32 - 1)
    ]


def _named(rows: dict[str, bytes]) -> list[dict[str, str]]:
    return [{"name": name, "bytes": data.hex()} for name, data in rows.items()]


def make() -> dict[str, Any]:
    """Everything golden.json holds."""
    return {
        "alpn": ALPN,
        "version": VERSION,
        "frames": _frames(),
        "malformed_bodies": [
            {"name": m.name, "reason": m.reason, "body": m.body.hex()}
            for m in examples.MALFORMED_BODIES
        ],
        "malformed_lengths": _lengths(),
        "contexts": [
            {"name": name, "context": context, "bytes": encode_context(context).hex()}
            for name, context in examples.CONTEXT_EXAMPLES.items()
        ],
        "malformed_contexts": _named(examples.MALFORMED_CONTEXTS),
        **_columns(),
        "malformed_columns": _named(examples.MALFORMED_COLUMNS),
        "envelopes": _envelopes(),
        "malformed_envelopes": _named(examples.MALFORMED_ENVELOPES),
        "references": _references(),
        "malformed_references": list(examples.MALFORMED_REFERENCES),
        "errors": [
            {
                "number": error.number,
                "name": error.__name__,
                "family": error.family,
                "exit_code": error.exit_code,
                "retryable": error.retryable,
            }
            for error in ERRORS
        ],
        "operations": [{"number": o.number, "name": o.name} for o in OPERATIONS.values()],
        "limits": {
            name.lower(): getattr(limits, name) for name in limits.__all__ if name != "ID_MAX"
        },
    }


def text() -> str:
    """The file's text."""
    return json.dumps(make(), indent=1, ensure_ascii=True) + "\n"


def main(arguments: list[str]) -> int:
    """Check the file, or rewrite it with `--write`; the exit code."""
    if arguments == ["--write"]:
        GOLDEN.write_text(text())
        return 0
    if GOLDEN.exists() and GOLDEN.read_text() == text():
        return 0
    print(f"{GOLDEN.name} is not what the code makes: run with --write and look at the change")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
