"""Resources of policies: what is read, what matches, what covers what."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmux_gateway.access.patterns import Index, Resource, matches_glob, parse_pattern, subsumes
from hsmux_protocol.references import format_key_id

KEY_ID = bytes(range(16))
NAME = format_key_id(KEY_ID)

LETTERS = st.text(alphabet="ab/", max_size=6)
GLOBS = st.text(alphabet="ab/*", min_size=1, max_size=6)


def matches(text: str, resource: Resource | None) -> bool:
    return Index([(parse_pattern(text), 0)]).find(resource) == [0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "**key",
        "key/",
        NAME,
        f"key/{NAME}@1",
        "key/key-aaaa",
        "alias/",
        "alias/a b",
        "alias/é",
        "alias/a?",
        "alias/" + "a" * 129,
        "tag/",
        "tag/a",
        "tag/=a",
        "secret",
        "Alias/a",
    ],
)
def test_what_is_no_pattern(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_pattern(text)


@pytest.mark.parametrize(
    ("text", "resource", "expected"),
    [
        ("*", None, True),
        ("*", Resource(None), True),
        (f"key/{NAME}", Resource(KEY_ID), True),
        (f"key/{NAME}", Resource(bytes(16)), False),
        (f"key/{NAME}", None, False),
        ("alias/a", Resource(KEY_ID, ("b", "a")), True),
        ("alias/a", Resource(KEY_ID, ("a/b",)), False),
        ("alias/a", Resource(None, ("a",)), True),
        ("alias/*", Resource(KEY_ID), False),
        ("alias/*", Resource(KEY_ID, ("x/y",)), True),
        ("alias/a*", Resource(KEY_ID, ("ba",)), False),
        ("alias/a*a", Resource(KEY_ID, ("a",)), False),
        ("alias/a*a", Resource(KEY_ID, ("aa",)), True),
        ("tag/a=b", Resource(KEY_ID, (), (("a", "b"),)), True),
        ("tag/a=b", Resource(KEY_ID, ("a=b",), (("a", "c"),)), False),
        # A tag whose key holds "=" is not the tag that reads the same.
        ("tag/a=b=c", Resource(KEY_ID, (), (("a=b", "c"),)), False),
        ("tag/a=b=c", Resource(KEY_ID, (), (("a", "b=c"),)), True),
    ],
)
def test_what_matches(text: str, resource: Resource | None, expected: bool) -> None:
    assert matches(text, resource) is expected


@given(GLOBS.filter(lambda glob: "*" in glob), LETTERS)
def test_globs_match_as_regular_expressions_do(glob: str, name: str) -> None:
    expression = ".*".join(map(re.escape, glob.split("*")))
    assert matches_glob(glob.split("*"), name) == bool(re.fullmatch(expression, name))


@given(GLOBS, GLOBS, LETTERS.filter(bool))
def test_what_is_covered_matches_no_more(wider: str, narrower: str, name: str) -> None:
    if subsumes(parse_pattern(f"alias/{wider}"), parse_pattern(f"alias/{narrower}")):
        resource = Resource(KEY_ID, (name,))
        assert matches(f"alias/{wider}", resource) or not matches(f"alias/{narrower}", resource)


def test_numbers_come_once_and_ascending() -> None:
    texts = ["alias/*", "*", f"key/{NAME}", "alias/a", "alias/b", "alias/a*", "tag/k=v"]
    entries = [(parse_pattern(text), number) for number, text in enumerate(texts)]
    entries += [(parse_pattern("alias/a"), 1), (parse_pattern("tag/k=v"), 0)]
    found = Index(entries).find(Resource(KEY_ID, ("a",), (("k", "v"),)))
    assert found == [0, 1, 2, 3, 5, 6]
