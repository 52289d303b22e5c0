"""Envelopes one by one and in columns: limits, statuses of items, and another implementation."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmux_native import ITEM_SIZE_MAX, Arena, InvalidSlot, InvalidTag

from . import reference
from .columns import MALFORMED, column, items_of

DONE, INVALID, TOO_LARGE = 0, 1, 2
KEY = bytes(range(32))
HEADER = b"a header of 24 bytes, ok"
HEADER_SIZE_MAX, CONTEXT_SIZE_MAX, BATCH_ITEMS_MAX = 64, 8128, 16384
OVERHEAD = 24 + 16
ONE_CONTEXT = column([b"context"])

small = st.binary(max_size=80)


@pytest.fixture
def slot(arena: Arena) -> int:
    """A slot with `KEY`."""
    return arena.load(KEY)


@pytest.fixture(scope="module")
def shared(backend: str) -> tuple[Arena, int]:
    """An arena and a slot with `KEY`, for many examples of one test."""
    arena = Arena(1 << 20)
    return arena, arena.load(KEY)


# ---- One envelope


@given(st.binary(max_size=HEADER_SIZE_MAX), small, st.binary(max_size=1000))
def test_an_envelope_is_that_of_the_specification(
    shared: tuple[Arena, int], header: bytes, context: bytes, plaintext: bytes
) -> None:
    arena, slot = shared
    envelope = arena.seal(slot, header, context, plaintext)
    assert envelope.startswith(header) and len(envelope) == len(header) + OVERHEAD + len(plaintext)
    assert reference.envelope_open(KEY, len(header), context, envelope) == plaintext
    assert arena.open(slot, len(header), context, envelope) == plaintext


@given(st.binary(max_size=24), small, small)
def test_an_envelope_of_another_implementation_opens(
    shared: tuple[Arena, int], header: bytes, context: bytes, plaintext: bytes
) -> None:
    arena, slot = shared
    sealed = reference.xaes_seal(KEY, b"n" * 24, header + context, plaintext)
    envelope = header + b"n" * 24 + sealed
    assert arena.open(slot, len(header), context, envelope) == plaintext
    opened, statuses = arena.open_batch(slot, header, column([context]), column([envelope]))
    assert (items_of(opened), statuses) == ([plaintext], bytes([DONE]))


@given(st.data(), small)
def test_what_is_changed_does_not_open(
    shared: tuple[Arena, int], data: st.DataObject, plaintext: bytes
) -> None:
    arena, slot = shared
    envelope = bytearray(arena.seal(slot, HEADER, b"context", plaintext))
    bit = data.draw(st.integers(0, 8 * len(envelope) - 1))
    envelope[bit // 8] ^= 1 << bit % 8
    with pytest.raises(InvalidTag):
        arena.open(slot, len(HEADER), b"context", envelope)


@given(st.binary(max_size=200), st.integers(0, HEADER_SIZE_MAX), small)
def test_garbage_does_not_open(
    shared: tuple[Arena, int], garbage: bytes, header_size: int, context: bytes
) -> None:
    arena, slot = shared
    with pytest.raises(InvalidTag, match="does not open"):
        arena.open(slot, header_size, context, garbage)


@pytest.mark.parametrize("size", [0, 1, ITEM_SIZE_MAX - 1, ITEM_SIZE_MAX])
def test_limits_at_the_edge(arena: Arena, slot: int, size: int) -> None:
    header, context, plaintext = bytes(HEADER_SIZE_MAX), bytes(CONTEXT_SIZE_MAX), bytes(size)
    envelope = arena.seal(slot, header, context, plaintext)
    assert arena.open(slot, HEADER_SIZE_MAX, context, envelope) == plaintext


def test_limits_and_one_over(arena: Arena, slot: int) -> None:
    with pytest.raises(ValueError, match=f"more than {ITEM_SIZE_MAX} bytes"):
        arena.seal(slot, b"", b"", bytes(ITEM_SIZE_MAX + 1))
    with pytest.raises(ValueError, match="over a limit"):
        arena.seal(slot, bytes(HEADER_SIZE_MAX + 1), b"", b"")
    with pytest.raises(ValueError, match="over a limit"):
        arena.seal(slot, b"", bytes(CONTEXT_SIZE_MAX + 1), b"")
    with pytest.raises(ValueError, match="over a limit"):
        arena.open(slot, 0, bytes(CONTEXT_SIZE_MAX + 1), bytes(100))
    for header_size in (-1, HEADER_SIZE_MAX + 1):
        with pytest.raises(ValueError, match="header_size: at most 64"):
            arena.open(slot, header_size, b"", bytes(200))
    with pytest.raises(InvalidTag):
        arena.open(slot, 0, b"", bytes(OVERHEAD + ITEM_SIZE_MAX + 1))


@pytest.mark.parametrize("convert", [bytes, bytearray, memoryview])
def test_any_buffer_serves(arena: Arena, slot: int, convert: type) -> None:
    envelope = arena.seal(slot, b"", b"", convert(b"text"))
    assert arena.open(slot, 0, b"", convert(envelope)) == b"text"
    words = memoryview(b"12345678").cast("I")
    assert arena.open(slot, 0, b"", arena.seal(slot, b"", b"", words)) == b"12345678"


# ---- Batches


@given(st.lists(st.tuples(small, small), max_size=20), st.binary(max_size=HEADER_SIZE_MAX))
def test_a_batch_is_many_envelopes(
    shared: tuple[Arena, int], pairs: list[tuple[bytes, bytes]], header: bytes
) -> None:
    arena, slot = shared
    contexts, plaintexts = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    sealed, statuses = arena.seal_batch(slot, header, column(contexts), column(plaintexts))
    envelopes = items_of(sealed)
    assert statuses == bytes(len(pairs))
    for context, plaintext, envelope in zip(contexts, plaintexts, envelopes, strict=True):
        assert reference.envelope_open(KEY, len(header), context, envelope) == plaintext
        assert arena.open(slot, len(header), context, envelope) == plaintext
    assert arena.open_batch(slot, header, column(contexts), sealed) == (
        column(plaintexts),
        bytes(len(pairs)),
    )


@given(st.lists(small, max_size=20))
def test_one_context_serves_all(shared: tuple[Arena, int], plaintexts: list[bytes]) -> None:
    arena, slot = shared
    sealed, _ = arena.seal_batch(slot, HEADER, ONE_CONTEXT, column(plaintexts))
    for plaintext, envelope in zip(plaintexts, items_of(sealed), strict=True):
        assert arena.open(slot, len(HEADER), b"context", envelope) == plaintext
    assert arena.open_batch(slot, HEADER, ONE_CONTEXT, sealed)[0] == column(plaintexts)


@given(st.lists(st.sampled_from(["good", "flipped", "short", "empty", "foreign", "context"])))
def test_a_bad_item_fails_alone(shared: tuple[Arena, int], kinds: list[str]) -> None:
    arena, slot = shared
    good = [arena.seal(slot, HEADER, b"context", b"text %d" % i) for i in range(len(kinds))]
    change: dict[str, Callable[[bytes], bytes]] = {
        "good": lambda envelope: envelope,
        "flipped": lambda envelope: envelope[:-1] + bytes([envelope[-1] ^ 1]),
        "short": lambda envelope: envelope[: len(HEADER) + OVERHEAD - 1],
        "empty": lambda envelope: b"",
        "foreign": lambda envelope: b"A" + envelope[1:],
        "context": lambda envelope: arena.seal(slot, HEADER, b"another", b"text"),
    }
    envelopes = [change[kind](envelope) for kind, envelope in zip(kinds, good, strict=True)]
    opened, statuses = arena.open_batch(slot, HEADER, ONE_CONTEXT, column(envelopes))
    assert statuses == bytes(DONE if kind == "good" else INVALID for kind in kinds)
    assert items_of(opened) == [
        b"text %d" % i if kind == "good" else b"" for i, kind in enumerate(kinds)
    ]


def test_an_item_too_large_fails_alone(arena: Arena, slot: int) -> None:
    sizes = [3, ITEM_SIZE_MAX, ITEM_SIZE_MAX + 1, 0, ITEM_SIZE_MAX + 1, 5]
    plaintexts = [bytes([i]) * size for i, size in enumerate(sizes)]
    sealed, statuses = arena.seal_batch(slot, HEADER, ONE_CONTEXT, column(plaintexts))
    assert statuses == bytes(TOO_LARGE if size > ITEM_SIZE_MAX else DONE for size in sizes)
    opened, statuses = arena.open_batch(slot, HEADER, ONE_CONTEXT, sealed)
    assert statuses == bytes(INVALID if size > ITEM_SIZE_MAX else DONE for size in sizes)
    assert items_of(opened) == [
        b"" if len(plaintext) > ITEM_SIZE_MAX else plaintext for plaintext in plaintexts
    ]


def test_the_largest_batch(arena: Arena, slot: int) -> None:
    plaintexts = column([b"%d" % i for i in range(BATCH_ITEMS_MAX)])
    sealed, statuses = arena.seal_batch(slot, HEADER, ONE_CONTEXT, plaintexts)
    assert statuses == bytes(BATCH_ITEMS_MAX)
    assert arena.open_batch(slot, HEADER, ONE_CONTEXT, sealed) == (plaintexts, statuses)


@pytest.mark.parametrize("malformed", MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("operation", ["seal_batch", "open_batch"])
def test_malformed_columns(arena: Arena, slot: int, operation: str, malformed: bytes) -> None:
    call = getattr(arena, operation)
    with pytest.raises(ValueError, match=r"malformed|at most 16384 items"):
        call(slot, HEADER, ONE_CONTEXT, malformed)
    with pytest.raises(ValueError, match="malformed"):
        call(slot, HEADER, malformed, column([b"one item"]))


@pytest.mark.parametrize("operation", ["seal_batch", "open_batch"])
@pytest.mark.parametrize(
    ("header", "contexts", "items"),
    [
        (HEADER, [], 1),
        (HEADER, [b"", b""], 1),
        (HEADER, [b"", b""], 3),
        (HEADER, [b""] * 4, 3),
        (HEADER, [bytes(CONTEXT_SIZE_MAX + 1)], 3),
        (HEADER, [b"", b"", bytes(CONTEXT_SIZE_MAX + 1)], 3),
        (bytes(HEADER_SIZE_MAX + 1), [b""], 1),
    ],
)
def test_columns_that_do_not_fit(
    arena: Arena, slot: int, operation: str, header: bytes, contexts: list[bytes], items: int
) -> None:
    with pytest.raises(ValueError, match="malformed or over a limit"):
        getattr(arena, operation)(slot, header, column(contexts), column([b"x" * 100] * items))
    # The refusal came before any work: no nonce was taken.
    counter = arena.seal(slot, b"", b"", b"")[20:24]
    assert counter == b"\0\0\0\1"


@given(st.binary(max_size=120), st.binary(max_size=120), st.booleans())
def test_garbage_columns(
    shared: tuple[Arena, int], contexts: bytes, items: bytes, sealing: bool
) -> None:
    arena, slot = shared
    call = arena.seal_batch if sealing else arena.open_batch
    try:
        outputs, statuses = call(slot, HEADER, contexts, items)
    except ValueError:
        return
    assert len(items_of(outputs)) == len(items_of(items)) == len(statuses)


@given(st.data(), st.lists(small, min_size=1, max_size=5))
def test_a_broken_column_of_envelopes(
    shared: tuple[Arena, int], data: st.DataObject, plaintexts: list[bytes]
) -> None:
    arena, slot = shared
    sealed = bytearray(arena.seal_batch(slot, HEADER, ONE_CONTEXT, column(plaintexts))[0])
    at = data.draw(st.integers(0, len(sealed) - 1))
    sealed[at] ^= data.draw(st.integers(1, 255))
    try:
        opened, statuses = arena.open_batch(slot, HEADER, ONE_CONTEXT, bytes(sealed))
    except ValueError:
        return
    # A changed offset moves the bytes of two items; nothing else changes more than one.
    assert 1 <= statuses.count(INVALID) <= 2
    for plaintext, found, status in zip(plaintexts, items_of(opened), statuses, strict=True):
        assert found == (plaintext if status == DONE else b"")


def test_a_slot_that_holds_no_key(arena: Arena, slot: int) -> None:
    arena.free(slot)
    one = column([b"text"])
    for call in (arena.seal_batch, arena.open_batch):
        with pytest.raises(InvalidSlot):
            call(slot, HEADER, ONE_CONTEXT, one)


# ---- What is sealed under a KEK


@given(small, st.binary(max_size=1000))
def test_bytes_under_a_kek(shared: tuple[Arena, int], aad: bytes, plaintext: bytes) -> None:
    arena, kek = shared
    sealed = arena.seal_bytes(kek, aad, plaintext)
    assert reference.xaes_open(KEY, sealed[:24], aad, sealed[24:]) == plaintext
    assert arena.open_bytes(kek, aad, sealed) == plaintext
    with pytest.raises(InvalidTag):
        arena.open_bytes(kek, aad + b"x", sealed)


def test_limits_of_bytes_under_a_kek(arena: Arena, slot: int) -> None:
    aad, plaintext = bytes(1 << 18), bytes(ITEM_SIZE_MAX)
    sealed = arena.seal_bytes(slot, aad, plaintext)
    assert arena.open_bytes(slot, aad, sealed) == plaintext
    with pytest.raises(ValueError, match="over a limit"):
        arena.seal_bytes(slot, aad + b"x", b"")
    with pytest.raises(ValueError, match="over a limit"):
        arena.seal_bytes(slot, b"", plaintext + b"x")
    for short in range(OVERHEAD):
        with pytest.raises(InvalidTag):
            arena.open_bytes(slot, aad, sealed[:short])
    with pytest.raises(InvalidTag):
        arena.open_bytes(slot, aad, sealed + b"x")


def test_a_key_under_a_kek(arena: Arena, slot: int) -> None:
    inner = arena.generate()
    sealed = arena.seal_slot(slot, b"bound to", inner)
    key = reference.xaes_open(KEY, sealed[:24], b"bound to", sealed[24:])
    assert key is not None and len(key) == 32
    opened = arena.open_slot(slot, b"bound to", sealed)
    assert arena.hmac_sha256(opened, b"m") == arena.hmac_sha256(inner, b"m")
    before = arena.statistics()
    for aad, wrong in (
        (b"bound", sealed),
        (b"bound to", sealed[:-1]),
        (b"bound to", sealed + b"x"),
        (b"bound to", arena.seal_bytes(slot, b"bound to", b"not a key")),
    ):
        with pytest.raises(InvalidTag):
            arena.open_slot(slot, aad, wrong)
    assert arena.statistics() == before
    with pytest.raises(InvalidTag):
        arena.open_slot(inner, b"bound to", sealed)
