"""golden.json is current, and what it says can be read by its own words alone.

The frames are decoded by msgpack's pure-Python decoder as well: an implementation that is not the
one that wrote them.
"""

import json
from typing import Any

import pytest
from msgpack import fallback

from hsmux_protocol.columns import unpack_column, unpack_u16_column, unpack_u32_column
from hsmux_protocol.context import parse_context
from hsmux_protocol.envelope import parse_header
from hsmux_protocol.errors import RemoteProtocolError
from hsmux_protocol.fields import read_fields
from hsmux_protocol.frames import FrameReader, Request, decode_frame, encode_frame
from hsmux_protocol.limits import FRAME_SIZE_MAX
from hsmux_protocol.operations import OPERATIONS
from hsmux_protocol.references import parse_key_reference

from .make_vectors import GOLDEN, main, plain, text

DATA: dict[str, Any] = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}


def rows(section: str) -> pytest.MarkDecorator:
    named = DATA.get(section, [])
    return pytest.mark.parametrize(
        "row",
        named,
        ids=[r["name"] if isinstance(r, dict) and "name" in r else None for r in named],
    )


def test_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0, capsys.readouterr().out
    assert json.loads(text()) == DATA


@rows("frames")
def test_frame(row: dict[str, Any]) -> None:
    data = bytes.fromhex(row["bytes"])
    reader = FrameReader(FRAME_SIZE_MAX)
    reader.feed(data)
    body = reader.next_body()
    assert body is not None and reader.buffered_size == 0
    assert plain(fallback.unpackb(body)) == row["value"]
    frame = decode_frame(body)
    assert encode_frame(frame, size_max=FRAME_SIZE_MAX) == data
    if "operation" in row:
        operation = OPERATIONS[row["operation"]]
        if isinstance(frame, Request):
            read_fields(operation.arguments, frame.arguments)
        else:
            read_fields(operation.results, frame.values)  # type: ignore[union-attr]


@rows("malformed_bodies")
def test_malformed_body(row: dict[str, str]) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_frame(bytes.fromhex(row["body"]))


@rows("malformed_lengths")
def test_malformed_length(row: dict[str, Any]) -> None:
    reader = FrameReader(row["size_max"])
    reader.feed(bytes.fromhex(row["bytes"]))
    with pytest.raises(RemoteProtocolError):
        reader.next_body()


@rows("contexts")
def test_context(row: dict[str, Any]) -> None:
    assert parse_context(bytes.fromhex(row["bytes"])) == row["context"]


@rows("malformed_contexts")
def test_malformed_context(row: dict[str, str]) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_context(bytes.fromhex(row["bytes"]))


@rows("columns")
def test_column(row: dict[str, Any]) -> None:
    assert [item.hex() for item in unpack_column(bytes.fromhex(row["bytes"]))] == row["items"]


@rows("number_columns")
def test_number_column(row: dict[str, Any]) -> None:
    unpack = {16: unpack_u16_column, 32: unpack_u32_column}[row["bits"]]
    assert unpack(bytes.fromhex(row["bytes"])) == row["items"]


@rows("malformed_columns")
def test_malformed_column(row: dict[str, str]) -> None:
    with pytest.raises(RemoteProtocolError):
        unpack_column(bytes.fromhex(row["bytes"]))


@rows("envelopes")
def test_envelope(row: dict[str, Any]) -> None:
    header = parse_header(bytes.fromhex(row["header"]) + bytes(row["size_behind"]))
    assert header.suite.number == row["suite"]
    assert header.key_id.hex() == row["key_id"]
    assert header.key_version == row["key_version"]


@rows("malformed_envelopes")
def test_malformed_envelope(row: dict[str, str]) -> None:
    with pytest.raises(ValueError):
        parse_header(bytes.fromhex(row["bytes"]))


@rows("references")
def test_reference(row: dict[str, Any]) -> None:
    key_id, alias, version = parse_key_reference(row["text"])
    assert (key_id.hex() if key_id else None, alias, version) == (
        row["key_id"],
        row["alias"],
        row["version"],
    )


@rows("malformed_references")
def test_malformed_reference(row: str) -> None:
    with pytest.raises(ValueError):
        parse_key_reference(row)
