"""Fields, operations and records: every limit of every field at its edge and one over.

The edges are made from the tables, so a new field or operation is tried without a new test.
"""

from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmux_protocol.errors import RemoteProtocolError
from hsmux_protocol.fields import (
    Array,
    Binary,
    Boolean,
    Choice,
    Column,
    Context,
    Field,
    FieldType,
    Integer,
    Name,
    Numbers,
    Optional,
    Record,
    Reference,
    Tags,
    Text,
    ValueMap,
    Values,
    read_fields,
    write_fields,
)
from hsmux_protocol.frames import FRAMES, Request, Result, decode_frame, encode_frame
from hsmux_protocol.limits import FRAME_SIZE_MAX
from hsmux_protocol.operations import OPERATION_BY_NUMBER, OPERATIONS, OPTIONS, RECORDS, Operation

from .examples import OPERATION_EXAMPLES

operations = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())


class Edges(NamedTuple):
    """Decoded values a type must take and ones it must refuse."""

    taken: list[Any]
    refused: list[Any]


# One value of each kind msgpack can decode to: a type takes at most its own kind.
KINDS: list[Any] = [None, True, 1, "t", b"b", [[]], {"k": []}]


def _text(kind: Text) -> Edges:
    at_most = "\u00e9" * (kind.size_max // 2) + "x" * (kind.size_max % 2)
    over = [at_most + "x", *(["x" * (kind.size_min - 1)] if kind.size_min else [])]
    return Edges(["x" * kind.size_min, at_most], [*over, "\ud800", None, 1, b"x", ["x"]])


def _binary(kind: Binary) -> Edges:
    over = [bytes(kind.size_max + 1), *([bytes(kind.size_min - 1)] if kind.size_min else [])]
    return Edges([bytes(kind.size_min), bytes(kind.size_max)], [*over, None, 1, "x", [b""]])


def _integer(kind: Integer) -> Edges:
    wrong = [kind.least - 1, kind.most + 1, None, True, False, "1", b"1", [1], 1.0]
    return Edges([kind.least, kind.most], wrong)


def _choice(kind: Choice) -> Edges:
    wrong = ["?", kind.names[-1] + " ", kind.names[-1].swapcase(), None, 1, b"x", [kind.names[-1]]]
    return Edges([*kind.names], wrong)


def _optional(kind: Optional) -> Edges:
    inner = edges(kind.inner)
    return Edges([None, *inner.taken], [value for value in inner.refused if value is not None])


def _array(kind: Array) -> Edges:
    inner = edges(kind.inner)
    full = [inner.taken[0]] * kind.items_max
    return Edges(
        [[], full, inner.taken[:1]],
        [[*full, full[0]], None, 1, "", b"", {}, *([value] for value in inner.refused)],
    )


def _tags(kind: Tags) -> Edges:
    full = {f"{number:0256}": "v" * 256 for number in range(50)}
    wrong = [full | {"more": ""}, {"": ""}, {"k" * 257: ""}, {"k": "v" * 257}, {"k": 1}, {"k": b""}]
    return Edges([{}, full], [*wrong, None, [], "", b"", 1])


def _numbers(kind: Numbers) -> Edges:
    full = {str(number): 2**63 for number in range(64)}
    wrong = [full | {"more": 0}, {"": 0}, {"k": -1}, {"k": True}, {"k": 2**63 + 1}]
    return Edges([{}, full], [*wrong, None, [], 1])


def _record(kind: Record) -> Edges:
    fields = [edges(field.type) for field in kind.fields]
    first = [field.taken[0] for field in fields]
    wrong = [
        [*first[:index], field.refused[0], *first[index + 1 :]]
        for index, field in enumerate(fields)
    ]
    return Edges(
        [first, [field.taken[-1] for field in fields]],
        [*wrong, first[:-1], [*first, None], None, {}, tuple(first)],
    )


EDGES: dict[type, Any] = {
    Text: _text,
    Binary: _binary,
    Column: _binary,
    Integer: _integer,
    Boolean: lambda kind: Edges([True, False], [None, 0, 1, "true", b"", []]),
    Choice: _choice,
    Context: lambda kind: Edges([{}, {"a": "b"}], [None, [], {"b": "", "a": ""}, {"a": 1}]),
    Name: lambda kind: Edges(
        ["a", "0", "a.b_c-" + "z" * 58],
        ["", "A", "-a", ".a", "a b", "a/b", "\u0430", "a" * 65, "a\n", None, 1, b"a", ["a"]],
    ),
    Reference: lambda kind: Edges(["alias/a"], ["", "a", None, 1, b"alias/a", ["alias/a"]]),
    Optional: _optional,
    Array: _array,
    Tags: _tags,
    Numbers: _numbers,
    Values: lambda kind: Edges([[], [1]], [None, {}, 1, "", b"", ()]),
    ValueMap: lambda kind: Edges([{}, {"a": 1}], [None, [], 1, "", b""]),
    Record: _record,
}


def edges(kind: FieldType) -> Edges:
    made: Edges = EDGES[type(kind)](kind)
    return made


def all_fields() -> dict[str, Field]:
    """Every field of every table by where it stands."""
    tables = {frame.__name__: fields for frame, fields in FRAMES.values()}
    for operation in OPERATIONS.values():
        tables[f"{operation.name} arguments"] = operation.arguments
        tables[f"{operation.name} results"] = operation.results
    for record in RECORDS:
        tables[record.describe()] = record.fields
    tables["options"] = tuple(Field(name, kind) for name, kind in OPTIONS.items())
    return {f"{table}: {f.name}": f for table, fields in tables.items() for f in fields}


@pytest.mark.parametrize("field", all_fields().values(), ids=all_fields().keys())
def test_edges(field: Field) -> None:
    taken, refused = edges(field.type)
    for value in taken:
        field.type.read(value)
    for value in refused:
        with pytest.raises(ValueError):
            field.type.read(value)


def is_symmetric(kind: FieldType) -> bool:
    """Whether callers write what handlers read: not so where a handler gets something parsed, and
    records are written from any tuple.
    """
    if isinstance(kind, Optional | Array):
        return is_symmetric(kind.inner)
    return not isinstance(kind, Context | Reference | Record)


SYMMETRIC = {name: field for name, field in all_fields().items() if is_symmetric(field.type)}


@pytest.mark.parametrize("field", SYMMETRIC.values(), ids=SYMMETRIC.keys())
def test_what_is_read_can_be_written(field: Field) -> None:
    """The encoder has the decoder's limits: it writes each edge and refuses each one over."""
    taken, refused = edges(field.type)
    for value in taken:
        assert field.type.write(field.type.read(value)) == value
    for value in refused:
        with pytest.raises(ValueError):
            field.type.write(value)


@pytest.mark.parametrize("field", all_fields().values(), ids=all_fields().keys())
def test_a_field_takes_one_kind_of_value(field: Field) -> None:
    taken = edges(field.type).taken
    kinds = {type(value) for value in taken}
    for value in KINDS:
        if type(value) not in kinds:
            with pytest.raises(ValueError):
                field.type.read(value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary(),
        lambda children: st.lists(children) | st.dictionaries(st.text(), children),
        max_leaves=8,
    )
)
def test_any_decoded_value_is_read_or_a_value_error(value: Any) -> None:
    for field in all_fields().values():
        try:
            field.type.read(value)
        except ValueError as error:
            assert len(str(error)) < 1000


def test_every_operation_has_an_example() -> None:
    assert OPERATION_EXAMPLES.keys() == OPERATIONS.keys()


@operations
def test_operation_both_ways(operation: Operation) -> None:
    example = OPERATION_EXAMPLES[operation.name]
    arguments = write_fields(operation.arguments, example.arguments)
    request = Request(1, operation.number, 0, arguments, {})
    received = decode_frame(encode_frame(request, size_max=FRAME_SIZE_MAX)[4:])
    assert isinstance(received, Request)
    assert len(read_fields(operation.arguments, received.arguments)) == len(operation.arguments)
    result = Result(1, write_fields(operation.results, example.results))
    answer = decode_frame(encode_frame(result, size_max=FRAME_SIZE_MAX)[4:])
    assert isinstance(answer, Result)
    assert tuple(read_fields(operation.results, answer.values)) == example.results


@operations
def test_a_wrong_number_of_values(operation: Operation) -> None:
    values = write_fields(operation.arguments, OPERATION_EXAMPLES[operation.name].arguments)
    wrongs: tuple[Any, ...] = ([*values, None], values[:-1] or None, tuple(values), {}, None)
    for wrong in wrongs:
        with pytest.raises(ValueError, match="must be an array of"):
            read_fields(operation.arguments, wrong)
    with pytest.raises(ValueError, match="must be"):
        write_fields(operation.arguments, (*values, None))


@operations
def test_a_refusal_names_its_field(operation: Operation) -> None:
    values = write_fields(operation.arguments, OPERATION_EXAMPLES[operation.name].arguments)
    for index, field in enumerate(operation.arguments):
        wrong = [*values]
        wrong[index] = edges(field.type).refused[0]
        with pytest.raises(ValueError, match=f"^{field.name}: "):
            read_fields(operation.arguments, wrong)


def test_operation_table() -> None:
    assert [o.number for o in OPERATIONS.values()] == sorted(OPERATION_BY_NUMBER)
    assert len(OPERATION_BY_NUMBER) == len(OPERATIONS)
    for operation in OPERATIONS.values():
        assert 0 < operation.number < 2**16
        assert 0 < operation.deadline_default_ms <= operation.deadline_max_ms
        assert operation.summary.endswith(".")
        names = [field.name for field in operation.arguments]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("record", RECORDS, ids=[record.describe() for record in RECORDS])
def test_a_record_has_the_fields_of_its_type(record: Record) -> None:
    assert tuple(field.name for field in record.fields) == record.type._fields


def test_binary_takes_any_buffer_of_a_caller() -> None:
    for value in (b"ab", bytearray(b"ab"), memoryview(b"ab")):
        assert Binary(2).write(value) == b"ab"
    with pytest.raises(ValueError):
        Binary(2).write("ab")
    with pytest.raises(ValueError):
        Binary(2).write(2)


def test_a_malformed_column_is_read_and_refused_where_it_is_used() -> None:
    from hsmux_protocol.columns import unpack_column

    value = Column(8).read(b"\x01")
    with pytest.raises(RemoteProtocolError):
        unpack_column(value)
