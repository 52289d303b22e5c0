"""Many items as batches: what goes into which, and where each result belongs; no gateway."""

import array
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsmux import (
    Conflict,
    Decrypted,
    Denied,
    Encrypted,
    HsmuxError,
    InvalidArgument,
    InvalidCiphertext,
    NotFound,
    ProtocolError,
    TooLarge,
    Unauthenticated,
    Unavailable,
    WrongState,
)
from hsmux._batches import BATCH_SIZE_MAX, Batch, Batches, decrypt_many, encrypt_many
from hsmux_protocol.columns import (
    pack_column,
    pack_u16_column,
    pack_u32_column,
    unpack_column,
)
from hsmux_protocol.context import EMPTY_CONTEXT, encode_context
from hsmux_protocol.envelope import SUITE_XAES_256_GCM, make_header
from hsmux_protocol.frames import Request, Result, encode_frame
from hsmux_protocol.limits import BATCH_ITEMS_MAX, FRAME_SIZE_MAX, ITEM_SIZE_MAX
from hsmux_protocol.operations import OPERATIONS
from hsmux_protocol.references import format_key_id

KEYS = [bytes([number]) * 16 for number in range(3)]
NAMES = [format_key_id(key) for key in KEYS]
OVERHEAD = SUITE_XAES_256_GCM.overhead_size


def sealed(key: bytes, context: bytes, plaintext: bytes) -> bytes:
    """What a gateway would make of a plaintext, but readable; as long as a real envelope."""
    nonce = (len(context).to_bytes(2, "big") + context)[:24].ljust(24, b"\0")
    return make_header(SUITE_XAES_256_GCM, key, 1) + nonce + plaintext + bytes(16)


def contexts_of(batch: Batch[Any]) -> list[bytes]:
    """The context of each item, as the request says it."""
    _, context, contexts, column = batch.call.arguments
    count = len(unpack_column(column))
    return [encode_context(context)] * count if contexts is None else unpack_column(contexts)


def encrypted(batch: Batch[Any], key: bytes = KEYS[0]) -> list[Any]:
    """The answer of a gateway that encrypts everything."""
    items = unpack_column(batch.call.arguments[3])
    made = [sealed(key, own, item) for own, item in zip(contexts_of(batch), items, strict=True)]
    return [pack_u16_column([0] * len(items)), pack_column(made), key, 1]


def decrypted(batch: Batch[Any], statuses: list[int] | None = None) -> list[Any]:
    """The answer of a gateway that decrypts everything, but where a status says otherwise."""
    items = unpack_column(batch.call.arguments[3])
    key = items[0][4:20]
    return [
        pack_u16_column(statuses or [0] * len(items)),
        pack_column([item[48:-16] for item in items]),
        key,
        pack_u32_column([1] * len(items)),
    ]


def check_size(batch: Batch[Any], answer: list[Any]) -> None:
    """Request and answer fit a frame, and are not larger than batches should be."""
    operation, arguments = batch.call.operation, batch.call.arguments
    request = encode_frame(
        Request(2**64 - 1, operation.number, 2**32 - 1, arguments, {}), size_max=FRAME_SIZE_MAX
    )
    result = encode_frame(Result(2**64 - 1, answer), size_max=FRAME_SIZE_MAX)
    assert len(batch.places) <= BATCH_ITEMS_MAX
    if len(batch.places) > 1:
        assert max(len(request), len(result)) <= BATCH_SIZE_MAX + 8192


def run(batches: Batches[Any], answer: Callable[[Batch[Any]], Any]) -> list[Any]:
    """Do all batches; an answer that is an error fails its batch."""
    for batch in batches.pending():
        made = answer(batch)
        if isinstance(made, HsmuxError):
            batches.failed(batch, made)
        else:
            check_size(batch, made)
            batches.done(batch, batch.call.result(made))
    return batches.results()


small_contexts = st.none() | st.dictionaries(st.sampled_from("abc"), st.text(max_size=5))
items_and_contexts = st.lists(st.tuples(st.binary(max_size=50), small_contexts), max_size=40)


@settings(max_examples=40, deadline=None)
@given(items_and_contexts, st.integers(1, 12000))
def test_every_item_comes_back_in_its_place(
    items: list[tuple[bytes, dict[str, str] | None]], padding: int
) -> None:
    plaintexts = [item.ljust(len(item) * padding % ITEM_SIZE_MAX, b".") for item, _ in items]
    contexts = [context for _, context in items]
    results = run(encrypt_many(NAMES[0], plaintexts, None, contexts), encrypted)
    expected = [
        Encrypted(sealed(KEYS[0], encode_context(context), plaintext), NAMES[0], 1)
        for plaintext, context in zip(plaintexts, contexts, strict=True)
    ]
    assert results == expected
    ciphertexts = [result.ciphertext for result in results]
    opened = run(decrypt_many(ciphertexts, {"a": "b"}, None, None), decrypted)
    assert opened == [Decrypted(plaintext, NAMES[0], 1) for plaintext in plaintexts]


@pytest.mark.parametrize("size", [0, 1, 4096, ITEM_SIZE_MAX])
@pytest.mark.parametrize("own", [False, True])
def test_batches_are_as_large_as_they_should_be_and_no_larger(size: int, own: bool) -> None:
    count = BATCH_ITEMS_MAX + 100 if size <= 1 else 100
    context = {"k": "v" * 4000} if own and size > 1 else {}
    contexts = [context] * count if own else None
    lengths: list[int] = []

    def answer(batch: Batch[Any]) -> list[Any]:
        lengths.append(len(batch.places))
        return encrypted(batch)

    results = run(encrypt_many(NAMES[0], [bytes(size)] * count, None, contexts), answer)
    assert all(isinstance(result, Encrypted) for result in results)
    each = size + max(OVERHEAD + 6, len(encode_context(context)) + 8 if own else 0)
    assert lengths[0] == min(BATCH_ITEMS_MAX, max(1, BATCH_SIZE_MAX // each))
    ciphertexts = [result.ciphertext for result in results]
    opened = run(decrypt_many(ciphertexts, None, contexts, None), decrypted)
    assert [one.plaintext for one in opened] == [bytes(size)] * count


def test_items_of_several_keys_are_grouped_and_come_back_in_order() -> None:
    order = [0, 1, 2, 1, 0, 2, 2, 0]
    ciphertexts = [
        sealed(KEYS[key], EMPTY_CONTEXT, b"%d" % place) for place, key in enumerate(order)
    ]
    asked: list[str] = []

    def answer(batch: Batch[Any]) -> list[Any]:
        asked.append(batch.call.arguments[0])
        return decrypted(batch)

    opened = run(decrypt_many(ciphertexts, None, None, None), answer)
    expected = [Decrypted(b"%d" % place, NAMES[key], 1) for place, key in enumerate(order)]
    assert opened == expected and asked == NAMES


def test_what_can_be_refused_here_costs_no_request() -> None:
    def answer(batch: Batch[Any]) -> list[Any]:
        raise AssertionError("nothing is asked")

    large = bytes(ITEM_SIZE_MAX + 1)
    results = run(encrypt_many(NAMES[0], [large, b""], None, [None, {"hsmux:a": "b"}]), answer)
    assert [type(result) for result in results] == [TooLarge, InvalidArgument]
    assert "reserved" in str(results[1])
    results = run(
        decrypt_many([bytes(ITEM_SIZE_MAX + 2000), b"", b"hX" * 30], None, None, None), answer
    )
    assert [type(result) for result in results] == [TooLarge, InvalidArgument, InvalidArgument]
    assert run(encrypt_many(NAMES[0], [], None, None), answer) == []
    assert run(decrypt_many([], None, [], None), answer) == []


@pytest.mark.parametrize(
    "bad",
    [{"a": 1}, {1: "a"}, {"a": "\ud800"}, {"a": "x" * 5000}, {str(n): "" for n in range(17)}, 5],
)
def test_a_context_that_is_none_fails_its_item_alone(bad: Any) -> None:
    results = run(
        encrypt_many(NAMES[0], [b"1", b"2", b"3"], None, [{"a": "b"}, bad, None]), encrypted
    )
    assert [type(result) for result in results] == [Encrypted, InvalidArgument, Encrypted]
    assert "context" in str(results[1])
    with pytest.raises(InvalidArgument, match="context"):
        encrypt_many(NAMES[0], [], bad, None)


def test_the_status_of_an_item_is_its_error() -> None:
    ciphertexts = [sealed(KEYS[0], EMPTY_CONTEXT, b"x")] * 4
    statuses = [0, InvalidCiphertext.number, Unavailable.number, 9999]
    opened = run(
        decrypt_many(ciphertexts, None, None, None), lambda batch: decrypted(batch, statuses)
    )
    kinds = [type(one) for one in opened[:3]]
    assert kinds == [Decrypted, InvalidCiphertext, Unavailable]
    assert "9999" in str(opened[3])
    assert all(len(str(one)) > 10 for one in opened[1:])


@pytest.mark.parametrize(
    "change",
    [
        lambda values: [pack_u16_column([0]), *values[1:]],
        lambda values: [values[0], pack_column([b""]), *values[2:]],
        lambda values: [pack_u16_column([0]), pack_column([b""]), *values[2:]],
        lambda values: [pack_u16_column([0] * 3), pack_column([b""] * 3), *values[2:]],
        lambda values: [values[0][:-1], *values[1:]],
        lambda values: [values[0], values[1] + b"x", *values[2:]],
    ],
)
def test_an_answer_of_another_shape_is_a_protocol_error(change: Callable[[Any], Any]) -> None:
    batches = encrypt_many(NAMES[0], [b"1", b"2"], None, None)
    batch = next(batches.pending())
    with pytest.raises(ProtocolError, match="encrypt_batch"):
        batch.call.result(change(encrypted(batch)))


SEVERAL = [sealed(key, EMPTY_CONTEXT, b"x") for key in KEYS]
ABOUT_A_KEY = [NotFound, WrongState, Denied]
ABOUT_ALL = [Unavailable, Unauthenticated, Conflict]


@pytest.mark.parametrize("kind", [*ABOUT_A_KEY, *ABOUT_ALL])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_batch_that_fails_spoils_only_what_shares_its_reason(
    kind: type[HsmuxError], place: int
) -> None:
    asked: list[int] = []

    def answer(batch: Batch[Any]) -> Any:
        asked.extend(batch.places)
        return kind("no") if place in batch.places else decrypted(batch)

    batches = decrypt_many(SEVERAL, None, None, None)
    if kind in ABOUT_ALL and place == 0:
        with pytest.raises(kind):
            run(batches, answer)
        assert asked == [0]
        return
    kinds = [type(result) for result in run(batches, answer)]
    failed = {place} if kind in ABOUT_A_KEY else set(range(place, 3))
    assert kinds == [kind if each in failed else Decrypted for each in range(3)]
    assert asked == list(range(3 if kind in ABOUT_A_KEY else place + 1))


def test_one_key_that_fails_is_asked_once_and_raised() -> None:
    asked: list[int] = []

    def answer(batch: Batch[Any]) -> Any:
        asked.append(len(batch.places))
        return NotFound("no such key")

    with pytest.raises(NotFound):
        run(encrypt_many(NAMES[0], [bytes(60000)] * 50, None, None), answer)
    assert len(asked) == 1


def test_bytes_of_every_kind_are_taken_and_not_seen_to_change() -> None:
    changing = bytearray(b"before")
    numbers = array.array("I", [1, 2, 3])
    context = {"a": "before"}
    items: list[Any] = [changing, memoryview(numbers), b"x"]
    batches = encrypt_many(NAMES[0], items, context, None)
    changing[:] = b"after!"
    context["a"] = "after"
    batch = next(batches.pending())
    sent = unpack_column(batch.call.arguments[3])
    assert sent == [b"before", numbers.tobytes(), b"x"]
    assert batch.call.arguments[1] == {"a": "before"}


@pytest.mark.parametrize("wrong", ["text", 5, None, [b"x"]])
def test_an_item_that_is_not_bytes_is_a_mistake_and_raised(wrong: Any) -> None:
    for plan in (
        lambda: encrypt_many(NAMES[0], [b"", wrong], None, None),
        lambda: decrypt_many([b"", wrong], None, None, None),
    ):
        with pytest.raises(InvalidArgument, match=f"item 1 is {type(wrong).__name__}"):
            plan()
    with pytest.raises(InvalidArgument, match="item 0 is int"):
        encrypt_many(NAMES[0], b"one plaintext, not many", None, None)  # type: ignore[arg-type]


def test_no_repr_shows_an_item() -> None:
    batches = encrypt_many(NAMES[0], [b"very secret"], {"who": "secret too"}, None)
    batch = next(batches.pending())
    for shown in map(repr, (batch, batch.call, batches)):
        assert "secret" not in shown
    assert repr(batch) == "Batch(Call(encrypt_batch), 1 items)"
    assert OPERATIONS["encrypt_batch"] is batch.call.operation
