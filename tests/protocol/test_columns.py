"""Columns: both directions, every limit, and no work on a malformed one."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmux_protocol.columns import (
    column_count,
    column_size,
    pack_column,
    pack_u16_column,
    pack_u32_column,
    unpack_column,
    unpack_u16_column,
    unpack_u32_column,
)
from hsmux_protocol.errors import RemoteProtocolError
from hsmux_protocol.limits import BATCH_ITEMS_MAX

from .examples import COLUMN_EXAMPLES, MALFORMED_COLUMNS

NUMBERS = {16: (pack_u16_column, unpack_u16_column), 32: (pack_u32_column, unpack_u32_column)}


class CountingBytes(bytes):
    """Bytes that count how many are copied out."""

    copied = 0

    def __getitem__(self, index: Any) -> Any:
        item = super().__getitem__(index)
        self.copied += len(item)
        return item


@given(st.lists(st.binary(max_size=50), max_size=30))
def test_both_ways(items: list[bytes]) -> None:
    column = pack_column(items)
    assert unpack_column(column) == items
    assert column_count(column) == len(items)
    assert column_size(map(len, items)) == len(column)
    assert pack_column([memoryview(item) for item in items]) == column


@pytest.mark.parametrize("items", COLUMN_EXAMPLES.values(), ids=COLUMN_EXAMPLES)
def test_examples(items: list[bytes]) -> None:
    assert unpack_column(pack_column(items)) == items


@pytest.mark.parametrize("column", MALFORMED_COLUMNS.values(), ids=MALFORMED_COLUMNS)
def test_malformed(column: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match=r"^plaintexts: "):
        unpack_column(column, name="plaintexts")


@given(st.binary(max_size=60))
def test_garbage_is_refused_or_canonical(column: bytes) -> None:
    try:
        items = unpack_column(column)
    except RemoteProtocolError:
        return
    assert pack_column(items) == column


@given(st.lists(st.integers(0, 12), max_size=6), st.binary(max_size=12))
def test_any_offsets_are_refused_or_canonical(offsets: list[int], data: bytes) -> None:
    column = struct.pack(f">I{len(offsets)}I", max(len(offsets) - 1, 0), *offsets) + data
    test_garbage_is_refused_or_canonical.hypothesis.inner_test(column)  # type: ignore[attr-defined]


def test_offsets_that_jump_are_refused_before_anything_is_copied() -> None:
    """Each second item would be the whole value: gigabytes out of one frame."""
    size = 2**19
    offsets = [0, size] * (BATCH_ITEMS_MAX // 2) + [size]
    column = CountingBytes(
        struct.pack(f">I{len(offsets)}I", BATCH_ITEMS_MAX, *offsets) + bytes(size)
    )
    with pytest.raises(RemoteProtocolError, match="go down"):
        unpack_column(column)
    assert column.copied < 64


def test_items_at_the_edge_and_one_over() -> None:
    edge = pack_column([b""] * BATCH_ITEMS_MAX)
    assert len(unpack_column(edge)) == BATCH_ITEMS_MAX
    with pytest.raises(ValueError, match=str(BATCH_ITEMS_MAX)):
        pack_column([b""] * (BATCH_ITEMS_MAX + 1))
    with pytest.raises(RemoteProtocolError, match=str(BATCH_ITEMS_MAX)):
        unpack_column((BATCH_ITEMS_MAX + 1).to_bytes(4, "big") + bytes(4 * (BATCH_ITEMS_MAX + 2)))


@pytest.mark.parametrize("bits", NUMBERS)
def test_numbers(bits: int) -> None:
    pack, unpack = NUMBERS[bits]
    most = 2**bits - 1
    for numbers in ([], [0], [most, 1, 0], [7] * BATCH_ITEMS_MAX):
        assert unpack(pack(numbers)) == numbers
    for wrong in ([most + 1], [-1], [0] * (BATCH_ITEMS_MAX + 1)):
        with pytest.raises(ValueError):
            pack(wrong)
    for column in (b"", bytes(3), pack([1])[:-1], pack([1]) + b"\x00", b"\xff\xff\xff\xff"):
        with pytest.raises(RemoteProtocolError, match=r"^statuses: "):
            unpack(column, name="statuses")
    with pytest.raises(RemoteProtocolError, match=str(BATCH_ITEMS_MAX)):
        unpack((BATCH_ITEMS_MAX + 1).to_bytes(4, "big") + bytes(bits // 8 * (BATCH_ITEMS_MAX + 1)))


@pytest.mark.parametrize("column", [b"", b"\x00\x00\x01"])
def test_count_of_a_value_that_is_too_short(column: bytes) -> None:
    assert column_count(column) == 0
