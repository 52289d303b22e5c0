"""The sections of PROTOCOL.md that are made from the tables of `hsmux_protocol`."""

import re
from collections.abc import Mapping
from typing import Any, Final

from hsmux_protocol import limits
from hsmux_protocol.columns import pack_column
from hsmux_protocol.connection import ANNOUNCED_LIMITS, ClientConnection, ServerConnection, State
from hsmux_protocol.context import encode_context
from hsmux_protocol.envelope import SUITES
from hsmux_protocol.errors import ERRORS
from hsmux_protocol.fields import Choice, Field, FieldType
from hsmux_protocol.frames import FRAMES
from hsmux_protocol.keys import ALGORITHMS, KEY_SPECS, KEY_STATES, algorithms_of
from hsmux_protocol.operations import OPERATIONS, OPTIONS, RECORDS, Operation

from .hexadecimal import explained, golden_frame
from .sections import Section, table
from .source import attributes_of, constant_texts, summary_of

__all__ = ["PROTOCOL_SECTIONS"]

_KIND_OF: Final = {frame_type: kind for kind, (frame_type, _) in FRAMES.items()}


_NAMED: Final[dict[FieldType, str]] = {
    Choice(tuple(ALGORITHMS)): "str: a [signature algorithm](#signature-algorithms)",
    Choice(tuple(KEY_SPECS)): "str: a [key spec](#key-specs)",
    Choice(KEY_STATES): "str: a [key state](#key-states)",
}
"""Types that are too long for a table."""

_POWERS: Final = {
    str(2**bits - less): f"2^{bits}{' - 1' * less}" for bits in (32, 53, 63, 64) for less in (0, 1)
}


def _type(kind: FieldType) -> str:
    """A type as a table cell."""
    if kind in _NAMED:
        return _NAMED[kind]
    return re.sub(r"\d{10,}", lambda number: _POWERS[number[0]], kind.describe())


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _names(fields: tuple[Field, ...]) -> str:
    return ", ".join(f"`{field.name}`" for field in fields) or "nothing"


def _frame_name(frame_type: type[Any]) -> str:
    return frame_type.__name__.upper()


def _senders(frame_type: type[Any]) -> str:
    client = any(frame_type in row for row in ClientConnection._sends.values())
    gateway = any(frame_type in row for row in ServerConnection._sends.values())
    return {(True, True): "both", (True, False): "client", (False, True): "gateway"}[
        client, gateway
    ]


def _frames() -> str:
    return table(
        ("kind", "name", "from", "fields behind the kind"),
        (
            (kind, _frame_name(frame_type), _senders(frame_type), _names(fields))
            for kind, (frame_type, fields) in FRAMES.items()
        ),
    )


def _frame_fields() -> str:
    parts = []
    for kind, (frame_type, fields) in FRAMES.items():
        rows = ((f"`{field.name}`", _type(field.type)) for field in fields)
        heading = f"### {_frame_name(frame_type)} ({kind})\n\n{summary_of(frame_type)}\n\n"
        parts.append(heading + table(("field", "type"), rows))
    return "\n".join(parts)


def _states(sends: Mapping[State, Mapping[type[Any], State]]) -> str:
    kinds = sorted({kind for row in sends.values() for kind in row}, key=_KIND_OF.__getitem__)
    return table(
        ("in state", *(_frame_name(kind) for kind in kinds)),
        (
            (state.name, *(row[kind].name if kind in row else "" for kind in kinds))
            for state, row in sends.items()
        ),
    )


def _limits() -> str:
    texts = constant_texts(limits)
    rows = []
    for name in sorted(limits.__all__):
        counted, colon, reason = texts[name].removesuffix(".").partition(": ")
        assert colon, f"{name}: the text says what is counted, a colon, and why"
        announced = _yes(name.lower() in ANNOUNCED_LIMITS)
        value = getattr(limits, name)
        shown = _POWERS.get(str(value), f"{value:,}")
        rows.append((f"`{name.lower()}`", shown, counted, reason, announced))
    return table(("limit", "value", "what is counted", "why", "in WELCOME"), rows)


def _operations() -> str:
    return table(
        ("number", "operation", "permission", "changes", "default ms", "maximum ms"),
        (
            (
                operation.number,
                f"[`{operation.name}`](#{operation.name})",
                f"`{operation.permission}`",
                _yes(operation.changes),
                f"{operation.deadline_default_ms:,}",
                f"{operation.deadline_max_ms:,}",
            )
            for operation in OPERATIONS.values()
        ),
    )


def _operation(operation: Operation) -> str:
    rows = [
        (kind, f"`{field.name}`", _type(field.type))
        for kind, fields in (("argument", operation.arguments), ("result", operation.results))
        for field in fields
    ]
    heading = f"### {operation.name}\n\nOperation {operation.number}. {operation.summary}\n\n"
    return heading + table(("", "field", "type"), rows)


def _operation_fields() -> str:
    return "\n".join(_operation(operation) for operation in OPERATIONS.values())


def _options() -> str:
    return table(
        ("option", "type", "for"),
        (
            (f"`{name}`", _type(kind), "operations that change something")
            for name, kind in OPTIONS.items()
        ),
    )


def _records() -> str:
    parts = []
    for record in RECORDS:
        meanings = attributes_of(record.type)
        rows = (
            (f"`{field.name}`", _type(field.type), meanings[field.name]) for field in record.fields
        )
        heading = f"### {record.type.__name__}\n\n{summary_of(record.type)}\n\n"
        parts.append(heading + table(("field", "type", "meaning"), rows))
    return "\n".join(parts)


def _key_specs() -> str:
    return table(
        ("spec", "usage", "software suite", "hardware suite", "signature algorithms"),
        (
            (
                f"`{spec.name}`",
                f"`{spec.usage}`",
                spec.software_suite.number if spec.software_suite else "",
                spec.hardware_suite.number if spec.hardware_suite else "",
                f"`{spec.family}` rows below" if algorithms_of(spec) else "",
            )
            for spec in KEY_SPECS.values()
        ),
    )


_FORMS: Final = {
    ("PSS", False): "as long as the modulus",
    ("PKCS1", False): "as long as the modulus",
    ("ECDSA", False): "DER, SEQUENCE of r and s",
    ("ECDSA", True): "r ‖ s, each as long as the curve's order",
}


def _algorithms() -> str:
    return table(
        ("algorithm", "keys", "scheme", "hash", "digest bytes", "signature"),
        (
            (
                f"`{algorithm.name}`",
                f"`{algorithm.family}`",
                algorithm.scheme,
                algorithm.hash_name,
                algorithm.digest_size,
                _FORMS[algorithm.scheme, algorithm.raw],
            )
            for algorithm in ALGORITHMS.values()
        ),
    )


def _key_states() -> str:
    return ", ".join(f"`{state}`" for state in KEY_STATES) + "."


def _suites() -> str:
    return table(
        ("suite", "name", "nonce bytes", "tag bytes", "bytes beside the ciphertext"),
        (
            (suite.number, suite.name, suite.nonce_size, suite.tag_size, suite.overhead_size)
            for suite in SUITES.values()
        ),
    )


def _errors() -> str:
    return table(
        ("number", "error", "family", "retryable", "exit code", "meaning"),
        (
            (
                error.number,
                f"`{error.__name__}`",
                error.family,
                _yes(error.retryable),
                error.exit_code,
                summary_of(error),
            )
            for error in ERRORS
        ),
    )


def _example() -> str:
    parts = []
    for name, text in (
        ("hello", "The client says HELLO:"),
        ("welcome", "The gateway answers with WELCOME:"),
        ("encrypt arguments", "The client asks to encrypt nine bytes with a context of one entry:"),
        ("encrypt results", "The gateway answers with the envelope, the key and its version:"),
        ("error of a request", "An ERROR looks like this:"),
    ):
        data = golden_frame(name)
        _, fields = FRAMES[data[5]]
        names = ("kind: ", *(f"{field.name}: " for field in fields))
        parts.append(f"{text}\n\n{explained(data, names)}")
    return "\n".join(parts)


def _context_example() -> str:
    encoded = encode_context({"tenant": "a", "row": "7"})
    return f"`{{tenant: a, row: 7}}` is `{encoded.hex(' ')}`: `row` comes before `tenant`.\n"


def _column_example() -> str:
    column = pack_column([b"one", b"", b"three"])
    return f"The items `one`, nothing and `three` are:\n\n```text\n{column.hex(' ')}\n```\n"


PROTOCOL_SECTIONS: Final[dict[str, Section]] = {
    "frames": _frames,
    "frame-fields": _frame_fields,
    "client-states": lambda: _states(ClientConnection._sends),
    "gateway-states": lambda: _states(ServerConnection._sends),
    "limits": _limits,
    "operations": _operations,
    "operation-fields": _operation_fields,
    "options": _options,
    "records": _records,
    "key-specs": _key_specs,
    "algorithms": _algorithms,
    "key-states": _key_states,
    "suites": _suites,
    "errors": _errors,
    "example": _example,
    "context-example": _context_example,
    "column-example": _column_example,
}
