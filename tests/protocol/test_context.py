"""Contexts: one canonical form, its limits, and refusals that stay small."""

from random import Random

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmux_protocol.context import (
    EMPTY_CONTEXT,
    check_decoded_context,
    encode_context,
    parse_context,
)
from hsmux_protocol.errors import RemoteProtocolError
from hsmux_protocol.limits import CONTEXT_ENTRIES_MAX, CONTEXT_SIZE_MAX

from .examples import CONTEXT_EXAMPLES, MALFORMED_CONTEXTS

contexts = st.dictionaries(
    st.text(max_size=12).filter(lambda key: not key.startswith("hsmux:")),
    st.text(max_size=12),
    max_size=CONTEXT_ENTRIES_MAX,
)


@given(contexts, st.randoms())
def test_one_form_whatever_the_order(context: dict[str, str], random: Random) -> None:
    encoded = encode_context(context)
    entries = list(context.items())
    random.shuffle(entries)
    assert encode_context(dict(entries)) == encoded
    assert parse_context(encoded) == context
    assert check_decoded_context(msgpack.unpackb(encoded)) == encoded
    assert [key.encode() for key in parse_context(encoded)] == sorted(map(str.encode, context))


@pytest.mark.parametrize("context", CONTEXT_EXAMPLES.values(), ids=CONTEXT_EXAMPLES)
def test_examples(context: dict[str, str]) -> None:
    assert parse_context(encode_context(context)) == context


def test_none_is_the_empty_map() -> None:
    assert encode_context(None) == encode_context({}) == EMPTY_CONTEXT == b"\x80"


@pytest.mark.parametrize("encoded", MALFORMED_CONTEXTS.values(), ids=MALFORMED_CONTEXTS)
def test_malformed(encoded: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_context(encoded)


@given(st.binary(max_size=40))
def test_garbage_is_refused_or_canonical(encoded: bytes) -> None:
    try:
        context = parse_context(encoded)
    except RemoteProtocolError:
        return
    assert encode_context(context) == encoded


@pytest.mark.parametrize(
    "value", [None, 0, "", b"", [], [("a", "b")], {"b": "", "a": ""}, {"a": 1}, {b"a": "b"}]
)
def test_a_decoded_value_that_is_no_canonical_context(value: object) -> None:
    with pytest.raises(ValueError, match=r"^context: "):
        check_decoded_context(value)


@pytest.mark.parametrize(
    "value", [0, "", b"", [], [("a", "b")], {"a": 1}, {1: "a"}, {"\ud800": ""}]
)
def test_the_encoder_refuses_what_is_no_map_of_text(value: object) -> None:
    with pytest.raises(ValueError, match=r"^context: "):
        encode_context(value)  # type: ignore[arg-type]


def test_entries_at_the_edge_and_one_over() -> None:
    edge = {str(number): "" for number in range(CONTEXT_ENTRIES_MAX)}
    parse_context(encode_context(edge))
    with pytest.raises(ValueError, match=f"at most {CONTEXT_ENTRIES_MAX}"):
        encode_context(edge | {"more": ""})


def test_size_at_the_edge_and_one_over() -> None:
    # A map byte, a one-byte key and three bytes before a long text.
    edge = {"k": "v" * (CONTEXT_SIZE_MAX - 1 - 2 - 3)}
    assert len(encode_context(edge)) == CONTEXT_SIZE_MAX
    assert parse_context(encode_context(edge)) == edge
    over = {"k": edge["k"] + "v"}
    with pytest.raises(ValueError, match=f"at most {CONTEXT_SIZE_MAX}"):
        encode_context(over)
    with pytest.raises(RemoteProtocolError, match=f"more than {CONTEXT_SIZE_MAX}"):
        parse_context(msgpack.packb(over))


def test_reserved_keys_are_the_gateways() -> None:
    context = {"hsmux:service": "ap"}
    with pytest.raises(ValueError, match="reserved"):
        encode_context(context)
    encoded = encode_context(context, reserved=True)
    with pytest.raises(RemoteProtocolError, match="reserved"):
        parse_context(encoded)
    encode_context({"hsmux": "", "HSMUX:a": "", "a:hsmux:": ""})


def test_a_refusal_does_not_repeat_a_large_key() -> None:
    with pytest.raises(ValueError) as caught:
        check_decoded_context({"hsmux:" + "\U0001f511" * 100_000: ""})
    assert len(str(caught.value)) < 200
