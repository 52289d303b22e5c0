"""The envelope header: both ways, and every malformed one refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmux_protocol.envelope import (
    HEADER_SIZE,
    SUITES,
    Header,
    Suite,
    make_header,
    parse_header,
)

from .examples import ENVELOPE_EXAMPLES, KEY_ID, MALFORMED_ENVELOPES

suites = pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)


@pytest.mark.parametrize(("suite", "version", "size"), ENVELOPE_EXAMPLES.values())
def test_both_ways(suite: Suite, version: int, size: int) -> None:
    envelope = make_header(suite, KEY_ID, version) + bytes(size)
    assert parse_header(envelope) == Header(suite, KEY_ID, version)
    assert parse_header(memoryview(envelope)) == Header(suite, KEY_ID, version)


@pytest.mark.parametrize("envelope", MALFORMED_ENVELOPES.values(), ids=MALFORMED_ENVELOPES)
def test_malformed(envelope: bytes) -> None:
    with pytest.raises(ValueError, match=r"^ciphertext: "):
        parse_header(envelope)


@suites
def test_size_at_the_edge_and_one_under(suite: Suite) -> None:
    edge = make_header(suite, KEY_ID, 1).ljust(suite.overhead_size, b"\x00")
    assert suite.overhead_size == HEADER_SIZE + {1: 40, 2: 28, 3: 0}[suite.number]
    assert parse_header(edge).suite is suite
    with pytest.raises(ValueError):
        parse_header(edge[:-1])


@pytest.mark.parametrize(
    ("key_id", "version"), [(bytes(15), 1), (bytes(17), 1), (KEY_ID, 0), (KEY_ID, 2**32)]
)
def test_a_header_that_cannot_be(key_id: bytes, version: int) -> None:
    with pytest.raises(ValueError):
        make_header(SUITES[1], key_id, version)


@given(st.binary(max_size=80) | st.binary(max_size=80).map(lambda end: b"hX\x01" + end))
def test_garbage_is_refused_or_canonical(envelope: bytes) -> None:
    try:
        header = parse_header(envelope)
    except ValueError:
        return
    assert make_header(*header) == envelope[:HEADER_SIZE]
