"""What a policy's resources match, and the facts of a request they are matched with.

A resource is written as one of

    *                   everything
    key/<id>            the key with this identifier (`key-` and 26 characters)
    alias/<glob>        keys that an alias points to now which the glob matches
    tag/<key>=<value>   keys that have this tag now; the first = divides

In a glob `*` stands for any characters, `/` among them, and every other character for itself. The
facts are the key's identifier, all aliases that point to it and all its tags, never the spelling a
caller used: an alias the caller does not name grants and denies as well.

Matching is an index, because an access point can have a hundred thousand resources: identifiers,
whole aliases and tags are looked up, and only globs are tried one by one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from hsmux_protocol.references import ALIAS_PREFIX, KEY_PREFIX, parse_identifier

__all__ = [
    "EVERYTHING",
    "Index",
    "Pattern",
    "Resource",
    "matches_glob",
    "parse_pattern",
    "subsumes",
]

EVERYTHING: Final = "*"
_KEY: Final = "key/"
_TAG: Final = "tag/"
_ALIAS_CHARACTERS: Final = frozenset(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789/_-"
)
ALIAS_SIZE_MAX: Final = 128


@dataclass(frozen=True, slots=True, eq=False)
class Resource:
    """What a request acts on.

    Attributes:
        key_id: The key's identifier; None when there is no such key, or not yet.
        aliases: Those that point to it now, without `alias/`; the one the caller named if there is
            no such key.
        tags: Its tags now.
    """

    key_id: bytes | None
    aliases: tuple[str, ...] = ()
    tags: tuple[tuple[str, str], ...] = ()


class Pattern(NamedTuple):
    """A resource of a policy: `value` is an identifier, a glob, a tag, or None for everything."""

    kind: str
    value: bytes | str | tuple[str, str] | None


def parse_pattern(text: str) -> Pattern:
    """Read a resource of a policy.

    Raises:
        ValueError: It is none of the forms; says which there are.
    """
    if text == EVERYTHING:
        return Pattern("everything", None)
    if text.startswith(_KEY):
        return Pattern("key", parse_identifier(KEY_PREFIX, text.removeprefix(_KEY)))
    if text.startswith(ALIAS_PREFIX):
        return _parse_alias(text.removeprefix(ALIAS_PREFIX))
    if text.startswith(_TAG):
        key, separator, value = text.removeprefix(_TAG).partition("=")
        if not (key and separator):
            raise ValueError(f"{text!r} is not tag/<key>=<value>")
        return Pattern("tag", (key, value))
    raise ValueError(f"{text!r} is none of key/<identifier>, alias/<glob>, tag/<key>=<value> and *")


def _parse_alias(glob: str) -> Pattern:
    if not 1 <= len(glob) <= ALIAS_SIZE_MAX or not _ALIAS_CHARACTERS.issuperset(
        glob.replace("*", "")
    ):
        raise ValueError(f"{glob!r}: a glob has 1 to {ALIAS_SIZE_MAX} of A-Z a-z 0-9 / _ - and *")
    return Pattern("glob" if "*" in glob else "alias", glob)


def matches_glob(pieces: Sequence[str], name: str) -> bool:
    """Whether a name begins and ends with the outer pieces and has the others between, in order.

    Args:
        pieces: A glob, cut at its stars: at least two.
        name: What is matched.
    """
    first, *inner, last = pieces
    if len(name) < len(first) + len(last) or not name.startswith(first):
        return False
    position, end = len(first), len(name) - len(last)
    for piece in inner:
        # The leftmost place leaves most room for those that follow.
        position = name.find(piece, position, end)
        if position < 0:
            return False
        position += len(piece)
    return name.endswith(last)


def subsumes(wider: Pattern, narrower: Pattern) -> bool:
    """Whether all that one pattern matches is matched by another, as far as the texts tell."""
    if wider.kind == "everything" or wider == narrower:
        return True
    if wider.kind != "glob" or narrower.kind not in ("glob", "alias"):
        return False
    assert isinstance(wider.value, str) and isinstance(narrower.value, str)
    # A star of the narrower is a character like others, which only a star of the wider matches.
    return matches_glob(wider.value.split("*"), narrower.value)


class Index:
    """Numbers by the patterns that stand for them.

    Args:
        entries: Patterns with a number each; a number may come with many patterns.
    """

    def __init__(self, entries: Iterable[tuple[Pattern, int]]) -> None:
        self._everything: set[int] = set()
        self._exact: dict[Pattern, set[int]] = {}
        self._globs: dict[tuple[str, ...], set[int]] = {}
        for pattern, number in entries:
            if pattern.kind == "everything":
                self._everything.add(number)
            elif pattern.kind == "glob":
                assert isinstance(pattern.value, str)
                self._globs.setdefault(tuple(pattern.value.split("*")), set()).add(number)
            else:
                self._exact.setdefault(pattern, set()).add(number)

    def __repr__(self) -> str:
        return f"Index({len(self._exact)} exact, {len(self._globs)} globs)"

    def find(self, resource: Resource | None) -> list[int]:
        """The numbers whose patterns match a resource, ascending; None: nothing to be named."""
        found = set(self._everything)
        if resource is not None:
            for pattern in _patterns_of(resource):
                found |= self._exact.get(pattern, _NONE)
            for pieces, numbers in self._globs.items():
                if any(matches_glob(pieces, alias) for alias in resource.aliases):
                    found |= numbers
        return sorted(found)


_NONE: Final[frozenset[int]] = frozenset()


def _patterns_of(resource: Resource) -> list[Pattern]:
    """The patterns without a star that match a resource."""
    patterns = [Pattern("alias", alias) for alias in resource.aliases]
    patterns += [Pattern("tag", tag) for tag in resource.tags]
    if resource.key_id is not None:
        patterns.append(Pattern("key", resource.key_id))
    return patterns
