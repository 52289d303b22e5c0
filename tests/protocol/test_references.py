"""Key references and identifiers: one spelling each."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmux_protocol.limits import REFERENCE_SIZE_MAX
from hsmux_protocol.references import (
    KeyReference,
    check_alias,
    format_identifier,
    format_key_id,
    parse_identifier,
    parse_key_reference,
)

from .examples import KEY, KEY_ID, MALFORMED_REFERENCES, REFERENCE_EXAMPLES


@pytest.mark.parametrize(("text", "parsed"), REFERENCE_EXAMPLES.items())
def test_examples(text: str, parsed: tuple[bytes | None, str | None, int | None]) -> None:
    assert parse_key_reference(text) == KeyReference(*parsed)
    assert len(text) <= REFERENCE_SIZE_MAX


@pytest.mark.parametrize("text", MALFORMED_REFERENCES)
def test_malformed(text: str) -> None:
    with pytest.raises(ValueError):
        parse_key_reference(text)


def test_the_longest_reference_is_an_example() -> None:
    assert max(map(len, REFERENCE_EXAMPLES)) == REFERENCE_SIZE_MAX


@given(st.binary(min_size=16, max_size=16), st.sampled_from(["key-", "ap-", ""]))
def test_identifiers_both_ways(identifier: bytes, prefix: str) -> None:
    text = format_identifier(prefix, identifier)
    assert parse_identifier(prefix, text) == identifier
    # RFC 4648 section 6, by the standard library.
    assert base64.b32decode(text.removeprefix(prefix).upper() + "======") == identifier


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz234567", min_size=26, max_size=26))
def test_an_identifier_has_one_spelling(text: str) -> None:
    try:
        identifier = parse_identifier("key-", "key-" + text)
    except ValueError:
        assert text[-1] not in "aeimquy4"
    else:
        assert format_key_id(identifier) == "key-" + text


@given(st.text(max_size=60) | st.text(max_size=5).map(lambda end: KEY + end))
def test_garbage(text: str) -> None:
    try:
        reference = parse_key_reference(text)
    except ValueError:
        return
    name = "alias/" + reference.alias if reference.alias else format_key_id(reference.key_id or b"")
    assert text == name + (f"@{reference.version}" if reference.version else "")


@pytest.mark.parametrize("prefix", ["", "key-", "alias/", KEY + "@", "alias/a@"])
def test_a_refusal_does_not_repeat_a_large_text(prefix: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_key_reference(prefix + "\U0001f511" * 500_000)
    assert len(str(caught.value)) < 300


def test_format_key_id() -> None:
    assert format_key_id(KEY_ID) == KEY


@pytest.mark.parametrize("name", ["alias/a", "alias/" + "a" * 128, "alias/alias/a"])
def test_alias(name: str) -> None:
    assert "alias/" + check_alias(name) == name


@pytest.mark.parametrize("name", ["", "a", "alias/", "alias/" + "a" * 129, "alias/ä", "alias/a@1"])
def test_malformed_alias(name: str) -> None:
    with pytest.raises(ValueError):
        check_alias(name)
