"""Many items as a few batches: what goes into which request, and where its results belong; no I/O.

A batch has one key and must fit a frame in both directions; so many items become a sequence of
batches that a client keeps going out while earlier answers come back. Batches are made smaller than
a frame could be: the gateway spreads them over its workers, and nobody waits long behind one.

A failure of a single item stands in its place in the list of results. A failure of a whole batch
stands at each of its items, because the results of others must not be lost with it; it is raised
only when no batch was done at all (no such key, denied, no gateway).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Generic, NamedTuple, TypeVar

from hsmux_protocol.columns import (
    pack_column,
    unpack_column,
    unpack_u16_column,
    unpack_u32_column,
)
from hsmux_protocol.context import encode_context
from hsmux_protocol.envelope import SUITES, parse_header
from hsmux_protocol.errors import (
    HsmuxError,
    InvalidArgument,
    InvalidCiphertext,
    NotFound,
    TooLarge,
    Unavailable,
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

GROWTH_SIZE: Final = max(suite.overhead_size for suite in SUITES.values()) + 4 + 2 + 4
"""Bytes an item can grow by in an answer: envelope, offset, status and version."""

_ABOUT_A_KEY: Final = (NotFound, WrongState)
"""Failures after which batches of other keys may well be done."""

_ITEM_ERRORS: Final[dict[int, str]] = {
    InvalidArgument.number: "the item is malformed",
    InvalidCiphertext.number: "the ciphertext does not open",
    Unavailable.number: "the token was lost before this item; it was not done",
}


class Batch(NamedTuple, Generic[T]):
    """One request and the places of its items in the list of results."""

    call: Call[list[T | HsmuxError]]
    places: list[int]


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
        if self._is_one_key or not isinstance(error, _ABOUT_A_KEY):
            self._end = error
        self._fill(batch, error)

    def results(self) -> list[T | HsmuxError]:
        """One result an item, in the order of the items.

        Raises:
            HsmuxError: No batch was done; this was the first failure.
        """
        if self._first_failure is not None and not self._is_anything_done:
            raise self._first_failure
        return [result for result in self._results if result is not None]

    def _fill(self, batch: Batch[T], error: HsmuxError) -> None:
        for place in batch.places:
            self._results[place] = error


def _item_error(number: int) -> HsmuxError:
    error = error_from_wire(number, "")
    error.text = _ITEM_ERRORS.get(number) or f"the item failed: {type(error).__name__}"
    error.args = (error.text,)
    return error


def _contexts(
    context: Mapping[str, str] | None,
    contexts: Sequence[Mapping[str, str] | None] | None,
    count: int,
) -> list[bytes] | None:
    """The canonical context of each item, or None where one stands for all."""
    if contexts is None:
        return None
    if context is not None:
        raise InvalidArgument("give either context or contexts, not both")
    if len(contexts) != count:
        raise InvalidArgument(f"contexts: {len(contexts)} for {count} items")
    try:
        return [encode_context(each) for each in contexts]
    except ValueError as error:
        raise InvalidArgument(str(error)) from None


def _split(places: Sequence[int], sizes: Callable[[int], int]) -> Iterator[list[int]]:
    """Cut places into runs that fit a batch; an item alone always does."""
    run: list[int] = []
    used = 0
    for place in places:
        size = sizes(place)
        if run and (used + size > BATCH_SIZE_MAX or len(run) == BATCH_ITEMS_MAX):
            yield run
            run, used = [], 0
        run.append(place)
        used += size
    if run:
        yield run


def _check_items(items: Sequence[Any], size_max: int) -> dict[int, HsmuxError]:
    """What can be refused here: an item that is too large, by place.

    Raises:
        InvalidArgument: An item is not bytes: a mistake in the program, not in its data.
    """
    refused: dict[int, HsmuxError] = {}
    for place, item in enumerate(items):
        if not isinstance(item, bytes | bytearray | memoryview):
            raise InvalidArgument(f"item {place} is {type(item).__name__}, not bytes")
        if len(item) > size_max:
            refused[place] = TooLarge(f"{len(item)} bytes; an item has at most {size_max}")
    return refused


def encrypt_many(
    key: KeyName,
    plaintexts: Sequence[bytes],
    context: Mapping[str, str] | None,
    contexts: Sequence[Mapping[str, str] | None] | None,
) -> Batches[Encrypted]:
    """Plan the encryption of many plaintexts under one key."""
    each = _contexts(context, contexts, len(plaintexts))
    refused = _check_items(plaintexts, ITEM_SIZE_MAX)
    reference = reference_of(key)

    def size_of(place: int) -> int:
        own = 0 if each is None else len(each[place]) + 4
        return max(len(plaintexts[place]) + GROWTH_SIZE, len(plaintexts[place]) + 4 + own)

    def make(places: list[int]) -> Batch[Encrypted]:
        call = make_call(
            "encrypt_batch",
            _read_encrypted,
            reference,
            {} if context is None or each is not None else dict(context),
            None if each is None else pack_column([each[place] for place in places]),
            pack_column([plaintexts[place] for place in places]),
        )
        return Batch(call, places)

    places = [place for place in range(len(plaintexts)) if place not in refused]
    batches = map(make, _split(places, size_of))
    return Batches(len(plaintexts), batches, refused, is_one_key=True)


def _read_encrypted(values: list[Any]) -> list[Encrypted | HsmuxError]:
    statuses, ciphertexts, key_id, version = values
    name = format_key_id(key_id)
    return [
        _item_error(status) if status else Encrypted(item, name, version)
        for status, item in zip(
            unpack_u16_column(statuses), unpack_column(ciphertexts), strict=True
        )
    ]


def decrypt_many(
    ciphertexts: Sequence[bytes],
    context: Mapping[str, str] | None,
    contexts: Sequence[Mapping[str, str] | None] | None,
    key: KeyName | None,
) -> Batches[Decrypted]:
    """Plan the decryption of many envelopes, of one key or of many, grouped by it."""
    each = _contexts(context, contexts, len(ciphertexts))
    refused = _check_items(ciphertexts, ENVELOPE_SIZE_MAX)
    groups: dict[bytes, list[int]] = {}
    for place, ciphertext in enumerate(ciphertexts):
        if place not in refused:
            try:
                groups.setdefault(parse_header(ciphertext).key_id, []).append(place)
            except ValueError as error:
                refused[place] = InvalidArgument(str(error))

    def size_of(place: int) -> int:
        own = 0 if each is None else len(each[place]) + 4
        return len(ciphertexts[place]) + 4 + own

    def make(key_id: bytes, places: list[int]) -> Batch[Decrypted]:
        call = make_call(
            "decrypt_batch",
            _read_decrypted,
            format_key_id(key_id) if key is None else reference_of(key),
            {} if context is None or each is not None else dict(context),
            None if each is None else pack_column([each[place] for place in places]),
            pack_column([ciphertexts[place] for place in places]),
        )
        return Batch(call, places)

    batches = (
        make(key_id, run) for key_id, places in groups.items() for run in _split(places, size_of)
    )
    return Batches(len(ciphertexts), batches, refused, is_one_key=len(groups) == 1)


def _read_decrypted(values: list[Any]) -> list[Decrypted | HsmuxError]:
    statuses, plaintexts, key_id, versions = values
    name = format_key_id(key_id)
    return [
        _item_error(status) if status else Decrypted(item, name, version)
        for status, item, version in zip(
            unpack_u16_column(statuses),
            unpack_column(plaintexts),
            unpack_u32_column(versions),
            strict=True,
        )
    ]
