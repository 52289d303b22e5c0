"""Records: every kind, read by its limits, one sequence of bytes each."""

from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import inspect

from hsmux_gateway.audit.records import (
    KIND_NAMES,
    KINDS,
    RECORD_SIZE_MAX,
    TEXT_MAX,
    AnyRecord,
    MalformedRecord,
    Start,
    cut,
    export_record,
    read_record,
    write_record,
)

from .logs import AT_MS, every_kind, request


def _values(kind: type[AnyRecord]) -> st.SearchStrategy[AnyRecord]:
    """Any record of a kind, as its types allow."""
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    fields: list[st.SearchStrategy[Any]] = []
    for field in info.fields:
        one = field.type
        if isinstance(one, inspect.IntType):
            fields.append(st.integers(one.ge, one.le))
        elif isinstance(one, inspect.BytesType):
            fields.append(st.binary(min_size=one.min_length or 0, max_size=one.max_length))
        else:
            assert isinstance(one, inspect.StrType)
            fields.append(st.text(max_size=one.max_length))
    return st.builds(kind, *fields)


any_record = st.one_of([_values(kind) for kind in KINDS.values()])


def test_kinds_have_their_numbers_and_names() -> None:
    assert [record.kind for record in every_kind()] == list(KIND_NAMES)
    for number, kind in KINDS.items():
        assert kind.__struct_config__.tag == number
    assert [msgpack.unpackb(write_record(r))[0] for r in every_kind()] == list(KINDS)


@given(any_record)
def test_what_is_written_is_read(record: AnyRecord) -> None:
    body = write_record(record)
    assert read_record(body) == record
    assert len(body) <= RECORD_SIZE_MAX
    # Any msgpack says the same, and the JSON form can be made of it.
    assert msgpack.packb(msgpack.unpackb(body)) == body
    exported = msgspec.json.decode(msgspec.json.encode(export_record(record)))
    assert exported["kind"] == record.kind
    assert len(exported) == len(record.__struct_fields__) + 1


@given(st.binary(max_size=64))
def test_garbage_is_malformed(garbage: bytes) -> None:
    with pytest.raises(MalformedRecord):
        read_record(garbage)


@pytest.mark.parametrize("record", every_kind(), ids=lambda record: record.kind)
def test_no_other_bytes_stand_for_a_record(record: AnyRecord) -> None:
    body = write_record(record)
    values = msgpack.unpackb(body)
    wrong = [
        body + b"\xc0",
        body[:-1],
        msgpack.packb([*values, 0]),
        msgpack.packb(values[:-1]),
        msgpack.packb([99, *values[1:]]),
        msgpack.packb([values[0], -1, *values[2:]]),
        msgpack.packb([values[0], None, *values[2:]]),
        # The same numbers in longer forms.
        b"\xdc" + len(values).to_bytes(2, "big") + body[3 if body[0] == 0xDC else 1 :],
        body.replace(msgpack.packb(record.at_ms), b"\xd3" + record.at_ms.to_bytes(8, "big"), 1),
    ]
    for one in wrong:
        if one != body:
            with pytest.raises(MalformedRecord):
                read_record(one)
    assert sum(one != body for one in wrong) >= len(wrong) - 1


def test_texts_have_a_limit() -> None:
    at_limit = Start(AT_MS, "x" * TEXT_MAX, "")
    assert read_record(write_record(at_limit)) == at_limit
    with pytest.raises(MalformedRecord):
        read_record(write_record(Start(AT_MS, "x" * (TEXT_MAX + 1), "")))
    with pytest.raises(MalformedRecord):
        read_record(b"\x94\x01\x00\xa1\xff\xa0")
    assert cut("x" * TEXT_MAX) == "x" * TEXT_MAX
    assert len(cut("x" * (TEXT_MAX + 1))) == TEXT_MAX


def test_the_json_form_has_names_people_know() -> None:
    assert export_record(request(5)) == {
        "kind": "request",
        "at": "2023-11-14T22:13:20.005Z",
        "reference": "r5f3a91c07b2e-5",
        "access_point": "billing",
        "access_point_id": "61" * 16,
        "client_key": "6b" * 16,
        "peer": "192.0.2.7",
        "operation": "encrypt_batch",
        "statement": "rule: an enabled client key may do everything",
        "resource": "alias/key-5",
        "key_id": "key-jnfuws2ljnfuws2ljnfuws2ljm",
        "key_version": 2,
        "outcome": "done",
        "context": "63" * 16,
        "items": 1,
        "items_failed": 0,
        "bytes_in": 69,
        "bytes_out": 180,
        "elapsed_us": 55,
    }
    assert export_record(request(7))["outcome"] == "Denied"
