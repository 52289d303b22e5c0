"""Many items as a few batches: what goes into which request, and where its results belong; no I/O.

A batch has one key and must fit a frame in both directions; so many items become a sequence of
batches that a client keeps going out while earlier answers come back. Batches are made smaller than
a frame could be: the gateway spreads them over its workers, and nobody waits long behind one.

A failure of a single item stands in its place in the list of results; one that can be seen here (an
item that is too large, a context that is malformed) costs no request. A failure of a whole batch
stands at each of its items, because the results of others must not be lost with it; it is raised
only when no batch was done at all (no such key, denied, no gateway).
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, Generic, NamedTuple, TypeVar

from hsmux_protocol.columns import (
    pack_column,
    unpack_column,
    unpack_u16_column,
    unpack_u32_column,
)
from hsmux_protocol.context import EMPTY_CONTEXT, encode_context, parse_context
from hsmux_protocol.envelope import SUITES, parse_header
from hsmux_protocol.errors import (
    DeadlineExceeded,
    Denied,
    HsmuxError,
    InvalidArgument,
    InvalidCiphertext,
    NotFound,
    TooLarge,
    Unauthenticated,
    Unavailable,
    Unsupported,
    WrongState,
    error_from_wire,
)
from hsmux_protocol.limits import BATCH_ITEMS_MAX, ITEM_SIZE_MAX
from hsmux_protocol.operations import ENVELOPE_SIZE_MAX
from hsmux_protocol.references import format_key_id

from ._calls import Call, KeyName, make_call, reference_of
from .results import Decrypted, Encrypted

__all__ = ["WINDOW", "Batch", "Batches", "decrypt_many", "encrypt_many"]

T = TypeVar("T")

WINDOW: Final = 4
"""Batches that are open at a time: one is computed while others are on their way."""

BATCH_SIZE_MAX: Final = 256 * 1024
"""Bytes of one batch, either way: a quarter of the largest frame."""

OFFSET_SIZE: Final = 4
ENCRYPTED_GROWTH_SIZE: Final = max(s.overhead_size for s in SUITES.values()) + OFFSET_SIZE + 2
"""Bytes an item can grow by when it is encrypted: envelope, offset and status."""

DECRYPTED_GROWTH_SIZE: Final = OFFSET_SIZE + 2 + 4
"""Bytes a decrypted item can have beside its own: offset, status and version."""

_ABOUT_A_KEY: Final = (Denied, NotFound, Unsupported, WrongState)
"""Failures after which batches of other keys may well be done."""

_ITEM_ERRORS: Final[dict[int, str]] = {
    DeadlineExceeded.number: "time ran out before this item; it was not done",
    InvalidArgument.number: "the item is malformed",
    TooLarge.number: "the item is too large",
    InvalidCiphertext.number: "the ciphertext does not open",
    Unavailable.number: "the token was lost before this item; it was not done",
}


class Batch(NamedTuple, Generic[T]):
    """One request and the places of its items in the list of results."""

    call: Call[list[T | HsmuxError]]
    places: list[int]

    def __repr__(self) -> str:
        return f"Batch({self.call!r}, {len(self.places)} items)"


class Batches(Generic[T]):
    """The results of many items, filled batch by batch.

    Args:
        count: Items in all.
        batches: Requests, made when they are taken.
        refused: Items that are refused without asking the gateway, by place.
        is_one_key: Whether what is wrong with the key of one batch is wrong with all.
    """

    def __init__(
        self,
        count: int,
        batches: Iterator[Batch[T]],
        refused: Mapping[int, HsmuxError],
        *,
        is_one_key: bool,
    ) -> None:
        self._results: list[T | HsmuxError | None] = [None] * count
        self._batches = batches
        self._is_one_key = is_one_key
        self._is_anything_done = False
        self._first_failure: HsmuxError | None = None
        self._end: HsmuxError | None = None
        for place, error in refused.items():
            self._results[place] = error

    def pending(self) -> Iterator[Batch[T]]:
        """Batches to send; after a failure that is everybody's there are none."""
        for batch in self._batches:
            if self._end is None:
                yield batch
            else:
                self._fill(batch, self._end)

    def done(self, batch: Batch[T], results: list[T | HsmuxError]) -> None:
        """A batch was answered."""
        self._is_anything_done = True
        for place, result in zip(batch.places, results, strict=True):
            self._results[place] = result

    def failed(self, batch: Batch[T], error: HsmuxError) -> None:
        """A batch as a whole was not done."""
        self._first_failure = self._first_failure or error
        is_about_a_key = isinstance(error, _ABOUT_A_KEY) and not isinstance(error, Unauthenticated)
        if self._is_one_key or not is_about_a_key:
            self._end = error
        self._fill(batch, error)

    def results(self) -> list[T | HsmuxError]:
        """One result an item, in the order of the items.

        Raises:
            HsmuxError: No batch was done; this was the first failure.
        """
        if self._first_failure is not None and not self._is_anything_done:
            raise self._first_failure
        filled = [result for result in self._results if result is not None]
        assert len(filled) == len(self._results), "a batch was neither done nor failed"
        return filled

    def _fill(self, batch: Batch[T], error: HsmuxError) -> None:
        for place in batch.places:
            self._results[place] = error


def _item_error(number: int) -> HsmuxError:
    return error_from_wire(number, _ITEM_ERRORS.get(number, "the item failed"))


def _canonical(context: Mapping[str, str] | None) -> dict[str, str] | None:
    """A context that nobody changes while its batches wait.

    Raises:
        InvalidArgument: It is none.
    """
    try:
        return None if context is None else parse_context(encode_context(context))
    except ValueError as error:
        raise InvalidArgument(str(error)) from None


def _contexts(
    context: Mapping[str, str] | None,
    contexts: Sequence[Mapping[str, str] | None] | None,
    count: int,
    refused: dict[int, HsmuxError],
) -> list[bytes] | None:
    """The canonical context of each item, or None where one stands for all.

    Raises:
        InvalidArgument: Both are given, or there are too many or too few.
    """
    if contexts is None:
        return None
    if context is not None:
        raise InvalidArgument("give either context or contexts, not both")
    if len(contexts) != count:
        raise InvalidArgument(f"contexts: {len(contexts)} for {count} items")
    encoded = [EMPTY_CONTEXT] * count
    for place, each in enumerate(contexts):
        try:
            encoded[place] = encode_context(each)
        except ValueError as error:
            refused[place] = InvalidArgument(str(error))
    return encoded


def _items(given: Sequence[bytes], size_max: int, refused: dict[int, HsmuxError]) -> list[bytes]:
    """The items as bytes that nobody changes while they wait; those too large are refused.

    Raises:
        InvalidArgument: An item is not bytes: a mistake in the program, not in its data.
    """
    items = []
    for place, item in enumerate(given):
        if not isinstance(item, bytes | bytearray | memoryview):
            raise InvalidArgument(f"item {place} is {type(item).__name__}, not bytes")
        items.append(bytes(item))
        if len(items[-1]) > size_max:
            refused[place] = TooLarge(f"{len(items[-1])} bytes; an item has at most {size_max}")
    return items


def _split(places: Sequence[int], sizes: Sequence[int]) -> Iterator[list[int]]:
    """Cut places into runs that fit a batch; an item alone always does."""
    run: list[int] = []
    used = 0
    for place in places:
        if run and (used + sizes[place] > BATCH_SIZE_MAX or len(run) == BATCH_ITEMS_MAX):
            yield run
            run, used = [], 0
        run.append(place)
        used += sizes[place]
    if run:
        yield run


def _sizes(items: Sequence[bytes], contexts: Sequence[bytes] | None, growth: int) -> list[int]:
    """Bytes that each item adds to the larger of request and answer."""
    if contexts is None:
        return [len(item) + growth for item in items]
    pairs = zip(items, contexts, strict=True)
    return [len(item) + max(growth, OFFSET_SIZE + len(own) + OFFSET_SIZE) for item, own in pairs]


def _arguments(
    items: Sequence[bytes],
    context: Mapping[str, str] | None,
    contexts: Sequence[bytes] | None,
    places: Sequence[int],
) -> list[Any]:
    """Context, contexts and items of a batch, in the order of the operation table."""
    own = None if contexts is None else pack_column([contexts[place] for place in places])
    return [context, own, pack_column([items[place] for place in places])]


def encrypt_many(
    key: KeyName,
    plaintexts: Sequence[bytes],
    context: Mapping[str, str] | None,
    contexts: Sequence[Mapping[str, str] | None] | None,
) -> Batches[Encrypted]:
    """Plan the encryption of many plaintexts under one key."""
    refused: dict[int, HsmuxError] = {}
    items = _items(plaintexts, ITEM_SIZE_MAX, refused)
    each = _contexts(context, contexts, len(items), refused)
    shared = _canonical(context)
    reference = reference_of(key)

    def make(places: list[int]) -> Batch[Encrypted]:
        convert = partial(_read_encrypted, len(places))
        arguments = _arguments(items, shared, each, places)
        return Batch(make_call("encrypt_batch", convert, reference, *arguments), places)

    places = [place for place in range(len(items)) if place not in refused]
    batches = map(make, _split(places, _sizes(items, each, ENCRYPTED_GROWTH_SIZE)))
    return Batches(len(items), batches, refused, is_one_key=True)


def _read_encrypted(count: int, values: list[Any]) -> list[Encrypted | HsmuxError]:
    statuses, ciphertexts, key_id, version = values
    name = format_key_id(key_id)
    return [
        _item_error(status) if status else Encrypted(item, name, version)
        for _, status, item in zip(
            range(count),
            unpack_u16_column(statuses),
            unpack_column(ciphertexts),
            strict=True,
        )
    ]


def decrypt_many(
    ciphertexts: Sequence[bytes],
    context: Mapping[str, str] | None,
    contexts: Sequence[Mapping[str, str] | None] | None,
    key: KeyName | None,
) -> Batches[Decrypted]:
    """Plan the decryption of many envelopes, of one key or of many, grouped by it."""
    refused: dict[int, HsmuxError] = {}
    items = _items(ciphertexts, ENVELOPE_SIZE_MAX, refused)
    each = _contexts(context, contexts, len(items), refused)
    shared = _canonical(context)
    groups: dict[bytes, list[int]] = {}
    for place, item in enumerate(items):
        if place not in refused:
            try:
                groups.setdefault(parse_header(item).key_id, []).append(place)
            except ValueError as error:
                refused[place] = InvalidArgument(str(error))

    def make(key_id: bytes, places: list[int]) -> Batch[Decrypted]:
        convert = partial(_read_decrypted, len(places))
        reference = format_key_id(key_id) if key is None else reference_of(key)
        arguments = _arguments(items, shared, each, places)
        return Batch(make_call("decrypt_batch", convert, reference, *arguments), places)

    sizes = _sizes(items, each, DECRYPTED_GROWTH_SIZE)
    batches = (
        make(key_id, run) for key_id, places in groups.items() for run in _split(places, sizes)
    )
    return Batches(len(items), batches, refused, is_one_key=len(groups) == 1)


def _read_decrypted(count: int, values: list[Any]) -> list[Decrypted | HsmuxError]:
    statuses, plaintexts, key_id, versions = values
    name = format_key_id(key_id)
    return [
        _item_error(status) if status else Decrypted(item, name, version)
        for _, status, item, version in zip(
            range(count),
            unpack_u16_column(statuses),
            unpack_column(plaintexts),
            unpack_u32_column(versions),
            strict=True,
        )
    ]
