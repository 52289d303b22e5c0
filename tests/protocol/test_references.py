"""Key references and identifiers: one spelling each."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmux_protocol.limits import REFERENCE_SIZE_MAX
from hsmux_protocol.references import (
    KeyReference,
    check_access_point_name,
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


@pytest.mark.parametrize("name", ["a", "billing", "Team 7", "gw-1.prod_eu", "0"])
def test_names_of_access_points(name: str) -> None:
    assert check_access_point_name(name) == name


REFUSED_NAMES = {
    "": "a space at an end",
    "bill\N{ZERO WIDTH SPACE}ing": r"character 5 is U\+200B \(ZERO WIDTH SPACE\)",
    "billing\N{RIGHT-TO-LEFT OVERRIDE}": r"character 8 is U\+202E \(RIGHT-TO-LEFT OVERRIDE\)",
    "b\N{CYRILLIC SMALL LETTER I}lling": r"character 2 is U\+0438",
    "\N{FULLWIDTH LATIN SMALL LETTER B}illing": r"character 1 is U\+FF42",
    "cafe\N{COMBINING ACUTE ACCENT}": r"character 5 is U\+0301",
    "caf\N{LATIN SMALL LETTER E WITH ACUTE}": r"character 4 is U\+00E9",
    "a\N{NO-BREAK SPACE}b": r"character 2 is U\+00A0",
    "a\N{HANGUL FILLER}b": r"character 2 is U\+3164",
    "a\ue000b": r"character 2 is U\+E000;",
    "a\U000e0041b": r"character 2 is U\+E0041",
    "a\x7f": r"character 2 is U\+007F;",
    "a\nb": r"character 2 is U\+000A;",
    "a/b": r"character 2 is U\+002F \(SOLIDUS\)",
    "-a": r"character 1 is U\+002D \(HYPHEN-MINUS\)",
    " a": r"character 1 is U\+0020 \(SPACE\)",
    "a ": "a space at an end",
    "a  b": "two together",
    "ap-x": "is an identifier",
}


@pytest.mark.parametrize("name", REFUSED_NAMES, ids=ascii)
def test_names_that_could_be_taken_for_others(name: str) -> None:
    with pytest.raises(ValueError, match=REFUSED_NAMES[name]) as refused:
        check_access_point_name(name)
    assert str(refused.value).isascii()


@given(st.text(max_size=40))
def test_a_name_is_ascii_and_seen(name: str) -> None:
    try:
        check_access_point_name(name)
    except ValueError:
        return
    assert name.isascii() and name.isprintable() and name == " ".join(name.split())
