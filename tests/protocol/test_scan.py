"""The strict pre-scan: exactly the canonical form of the allowed types, for bounded work."""

import json
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hsmux_protocol.errors import RemoteProtocolError
from hsmux_protocol.limits import DEPTH_MAX, ELEMENTS_MAX
from hsmux_protocol.scan import scan

SUITE = Path(__file__).parent / "vectors" / "msgpack-test-suite.json"

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.text(max_size=40)
    | st.binary(max_size=40),
    lambda children: (
        st.lists(children, max_size=20)
        | st.dictionaries(st.text(max_size=4), children, max_size=20)
    ),
    max_leaves=40,
)


class CountingBytes(bytes):
    """Bytes that count how often they are read and how many bytes are copied out."""

    reads = 0
    copied = 0

    def __getitem__(self, index: Any) -> Any:
        self.reads += 1
        item = super().__getitem__(index)
        if isinstance(index, slice):
            self.copied += len(item)
        return item


def accepted(data: bytes) -> bool:
    try:
        scan(data)
    except RemoteProtocolError:
        return False
    return True


@given(values)
def test_what_the_encoder_writes_is_accepted(value: Any) -> None:
    scan(msgpack.packb(value))


@given(values, st.data())
def test_a_changed_byte_is_refused_or_canonical(value: Any, data: st.DataObject) -> None:
    encoded = bytearray(msgpack.packb(value))
    position = data.draw(st.integers(0, len(encoded) - 1))
    encoded[position] = data.draw(st.integers(0, 255))
    check_canonical(bytes(encoded))


@given(st.binary(max_size=64))
@example(b"\x82\xa1a\x01\xa1a\x02")
def test_garbage_is_refused_or_canonical(data: bytes) -> None:
    check_canonical(data)


def check_canonical(data: bytes) -> None:
    """What the scan accepts decodes to one value and encodes back to the same bytes."""
    if not accepted(data):
        return
    try:
        value = msgpack.unpackb(data)
    except UnicodeDecodeError:
        return
    assert msgpack.packb(value) == data


@given(st.binary(max_size=400) | values.map(msgpack.packb))
def test_the_work_is_bounded_by_the_bytes(data: bytes) -> None:
    counting = CountingBytes(data)
    accepted(counting)
    assert counting.reads <= 3 * len(data) + 1
    assert counting.copied <= len(data)


@pytest.mark.parametrize(
    "data",
    [
        b"\x91" * 1_000_000,
        b"\x81\xa0" * 500_000,
        b"\xdd\x00\x0f\xff\xff" + b"\x00" * 1_000_000,
        b"\xdd\x00\x0f\xff\xff" + b"\xdd\xff\xff\xff\xff" * 200_000,
        b"\xdf\x00\x0f\xff\xff" + b"".join(b"\xa3%03x\x00" % (n % 4096) for n in range(10**5)),
    ],
    ids=["arrays", "maps", "values", "claims", "keys"],
)
def test_the_work_on_a_megabyte_is_bounded_by_the_limits(data: bytes) -> None:
    counting = CountingBytes(data)
    assert not accepted(counting)
    assert counting.reads <= 3 * (ELEMENTS_MAX + 1)


@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa0"], ids=["arrays", "maps"])
@pytest.mark.parametrize(
    ("depth", "is_accepted"), [(DEPTH_MAX, True), (DEPTH_MAX + 1, False), (5000, False)]
)
def test_depth(opening: bytes, depth: int, is_accepted: bool) -> None:
    assert accepted(opening * (depth - 1) + b"\x90") is is_accepted
    assert accepted(opening * (depth - 1) + b"\x80") is is_accepted
    assert accepted(opening * depth + b"\xc0") is is_accepted


def test_depth_is_of_open_containers_only() -> None:
    scan(b"\xdc\x03\xe8" + b"\x91\x90" * 1000)


@pytest.mark.parametrize(
    "data",
    [
        b"\xdc\x0f\xff" + b"\x00" * (ELEMENTS_MAX - 1),
        b"\xde\x08\x00" + b"".join(b"\xa3%03x\xc0" % number for number in range(2048)),
    ],
    ids=["array", "map"],
)
def test_values_at_the_edge_and_one_over(data: bytes) -> None:
    count = ELEMENTS_MAX if data[0] == 0xDC else ELEMENTS_MAX + 1
    scan(data, elements_max=count)
    with pytest.raises(RemoteProtocolError, match=f"more than {count - 1} values"):
        scan(data, elements_max=count - 1)
    assert accepted(data) is (count <= ELEMENTS_MAX)


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_integers_at_the_edges_of_their_forms(width: int) -> None:
    """Every first number of a form is accepted; the number before it in that form is not."""
    unsigned, signed = (
        {1: 0xCC, 2: 0xCD, 4: 0xCE, 8: 0xCF}[width],
        {1: 0xD0, 2: 0xD1, 4: 0xD2, 8: 0xD3}[width],
    )
    least = {1: 0x80, 2: 0x100, 4: 2**16, 8: 2**32}[width]
    most_negative = {1: -33, 2: -129, 4: -32769, 8: -(2**31) - 1}[width]
    for number, is_accepted in ((least, True), (least - 1, False), (256**width - 1, True)):
        assert accepted(bytes([unsigned]) + number.to_bytes(width, "big")) is is_accepted
    for number, is_accepted in (
        (most_negative, True),
        (most_negative + 1, False),
        (-(256**width) // 2, True),
        (0, False),
        (256**width // 2 - 1, False),
    ):
        encoded = bytes([signed]) + number.to_bytes(width, "big", signed=True)
        assert accepted(encoded) is is_accepted


@pytest.mark.parametrize(
    ("first", "width", "least", "item"),
    [
        (0xD9, 1, 32, b"a"),
        (0xDA, 2, 2**8, b"a"),
        (0xDB, 4, 2**16, b"a"),
        (0xC4, 1, 0, b"a"),
        (0xC5, 2, 2**8, b"a"),
        (0xC6, 4, 2**16, b"a"),
        (0xDC, 2, 16, b"\xc0"),
        (0xDD, 4, 2**16, b"\xc0"),
    ],
)
def test_lengths_at_the_edges_of_their_forms(
    first: int, width: int, least: int, item: bytes
) -> None:
    def encoded(count: int) -> bytes:
        return bytes([first]) + count.to_bytes(width, "big") + item * count

    scan(encoded(least), elements_max=2**20)
    if least:
        with pytest.raises(RemoteProtocolError, match="shortest"):
            scan(encoded(least - 1), elements_max=2**20)


@pytest.mark.parametrize("byte", range(256))
def test_every_first_byte(byte: int) -> None:
    """Alone, a first byte is a whole value or not; the decoder agrees on which."""
    data = bytes([byte])
    if accepted(data):
        assert msgpack.packb(msgpack.unpackb(data)) == data
    else:
        with pytest.raises(ValueError):
            msgpack.unpackb(data)


# Cases of the public suite that are canonical msgpack and not allowed here, by group: the reason.
NOT_OURS = {
    "22.number-float.yaml": "floats are not part of the protocol",
    "50.timestamp.yaml": "extension types are not part of the protocol",
    "60.ext.yaml": "extension types are not part of the protocol",
}


def suite_cases() -> list[tuple[str, str, dict[str, Any], bytes]]:
    groups = json.loads(SUITE.read_text())
    return [
        (f"{group}-{number}-{text}", group, case, bytes.fromhex(text.replace("-", "")))
        for group, cases in groups.items()
        for number, case in enumerate(cases)
        for text in case["msgpack"]
    ]


def suite_value(case: dict[str, Any]) -> Any:
    """The value a case of the public suite describes."""
    if "bignum" in case:
        return int(case["bignum"])
    if "binary" in case:
        return bytes.fromhex(case["binary"].replace("-", ""))
    return next(
        case[name] for name in ("nil", "bool", "number", "string", "array", "map") if name in case
    )


@pytest.mark.parametrize(
    ("group", "case", "data"),
    [case[1:] for case in suite_cases()],
    ids=[case[0] for case in suite_cases()],
)
def test_public_suite(group: str, case: dict[str, Any], data: bytes) -> None:
    """Accepted exactly when it is the one canonical form of its value."""
    if group in NOT_OURS:
        assert not accepted(data)
        return
    value = suite_value(case)
    assert accepted(data) is (data == msgpack.packb(value))
    if accepted(data):
        assert msgpack.unpackb(data) == value


def test_public_suite_has_a_canonical_form_of_each_value() -> None:
    for group, cases in json.loads(SUITE.read_text()).items():
        for case in cases:
            forms = [bytes.fromhex(text.replace("-", "")) for text in case["msgpack"]]
            assert sum(map(accepted, forms)) == (group not in NOT_OURS), case
