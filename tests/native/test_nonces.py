"""Why no nonce repeats: prefix 12 | r 8 | n 4, over epochs, threads, forks and broken machines."""

import subprocess
import threading
from pathlib import Path
from typing import NamedTuple

import pytest

from hsmux_native import Arena, InvalidSlot

from .columns import column, items_of
from .scripts import output

EPOCH_MESSAGES_MAX = 1 << 24
EPOCH_AGE_MAX_S = 3600
ONE = column([b""])


class Nonce(NamedTuple):
    """The parts of an envelope's nonce."""

    prefix: bytes
    random: bytes
    number: int


def nonce_of(envelope: bytes) -> Nonce:
    return Nonce(envelope[:12], envelope[12:20], int.from_bytes(envelope[20:24], "big"))


def seal(arena: Arena, slot: int) -> Nonce:
    return nonce_of(arena.seal(slot, b"", b"", b""))


def seal_many(arena: Arena, slot: int, count: int) -> list[Nonce]:
    sealed, _ = arena.seal_batch(slot, b"", ONE, column([b""] * count))
    return [nonce_of(envelope) for envelope in items_of(sealed)]


def test_in_an_epoch_the_number_counts_and_r_is_fresh(arena: Arena) -> None:
    slot = arena.generate()
    nonces = [seal(arena, slot) for _ in range(1000)]
    assert {nonce.prefix for nonce in nonces} == {nonces[0].prefix}
    assert [nonce.number for nonce in nonces] == list(range(1, 1001))
    assert len({nonce.random for nonce in nonces}) == 1000


def test_r_is_drawn_once_in_each_call(arena: Arena) -> None:
    slot = arena.generate()
    first, second = seal_many(arena, slot, 100), seal_many(arena, slot, 100)
    assert len({nonce.random for nonce in first}) == len({nonce.random for nonce in second}) == 1
    assert first[0].random != second[0].random
    assert [nonce.number for nonce in first + second] == list(range(1, 201))


def test_every_slot_has_its_own_prefix(arena: Arena) -> None:
    """The same key too: in two slots, and in one that was freed and loaded again."""
    prefixes = set()
    for _ in range(50):
        one, other = arena.load(bytes(32)), arena.load(bytes(32))
        prefixes |= {seal(arena, one).prefix, seal(arena, other).prefix}
        arena.free(one)
        arena.free(other)
    assert len(prefixes) == 100


def test_an_epoch_ends_after_its_last_message(arena: Arena) -> None:
    slot = arena.generate()
    first = seal(arena, slot)
    arena.set_epoch(slot, EPOCH_MESSAGES_MAX - 2, 0)
    nonces = [seal(arena, slot) for _ in range(3)]
    assert [nonce.number for nonce in nonces] == [EPOCH_MESSAGES_MAX - 1, EPOCH_MESSAGES_MAX, 1]
    assert [nonce.prefix == first.prefix for nonce in nonces] == [True, True, False]


def test_an_epoch_ends_inside_of_a_batch(arena: Arena) -> None:
    slot = arena.generate()
    first = seal(arena, slot)
    arena.set_epoch(slot, EPOCH_MESSAGES_MAX - 3, 0)
    sealed, statuses = arena.seal_batch(slot, b"", ONE, column([b"text"] * 5))
    nonces = [nonce_of(envelope) for envelope in items_of(sealed)]
    assert [nonce.prefix == first.prefix for nonce in nonces] == [True] * 3 + [False] * 2
    assert [nonce.number for nonce in nonces][3:] == [1, 2]
    assert arena.open_batch(slot, b"", ONE, sealed) == (column([b"text"] * 5), statuses)


def test_an_epoch_ends_after_an_hour(arena: Arena) -> None:
    slot = arena.generate()
    first = seal(arena, slot)
    arena.set_epoch(slot, 1, EPOCH_AGE_MAX_S // 2)
    assert seal(arena, slot).prefix == first.prefix
    arena.set_epoch(slot, 2, EPOCH_AGE_MAX_S // 2)
    last = seal(arena, slot)
    assert last.prefix != first.prefix and last.number == 1


def test_an_epoch_only_goes_forwards(arena: Arena) -> None:
    slot = arena.generate()
    with pytest.raises(InvalidSlot):
        arena.set_epoch(slot, 1, 0)
    seal_many(arena, slot, 10)
    for messages in (0, 9):
        with pytest.raises(InvalidSlot):
            arena.set_epoch(slot, messages, 0)
    for messages, age_s in ((-1, 0), (2**32, 0), (10, -1), (10, 2**32)):
        with pytest.raises(ValueError, match="u32"):
            arena.set_epoch(slot, messages, age_s)
    assert seal(arena, slot).number == 11


@pytest.mark.parametrize("batches", [8, pytest.param(600, marks=pytest.mark.long)])
def test_many_are_unique(arena: Arena, batches: int) -> None:
    slot = arena.generate()
    seen: set[Nonce] = set()
    for batch in range(batches):
        # Near enough to the end that some batches cross it.
        if batch % 4 == 3:
            seal(arena, slot)
            arena.set_epoch(slot, EPOCH_MESSAGES_MAX - 5000, 0)
        seen.update(seal_many(arena, slot, 16384))
    assert len(seen) == batches * 16384


def test_threads_share_an_epoch_and_no_nonce(arena: Arena) -> None:
    slot = arena.generate()
    found: list[list[Nonce]] = [[] for _ in range(4)]
    ready = threading.Barrier(4)

    def work(mine: list[Nonce]) -> None:
        ready.wait()
        for _ in range(50):
            mine.append(seal(arena, slot))
            mine.extend(seal_many(arena, slot, 100))

    threads = [threading.Thread(target=work, args=(mine,)) for mine in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    nonces = [nonce for mine in found for nonce in mine]
    assert len({nonce.prefix for nonce in nonces}) == 1
    assert sorted(nonce.number for nonce in nonces) == list(range(1, 4 * 50 * 101 + 1))


def test_processes_share_no_prefix(backend: str, kind: str) -> None:
    """Parent and forked child under one key; the child has no use of the parent's arena."""
    script = f"""
        key = bytes(range(32))
        def seal(arena, slot):
            return [arena.seal(slot, b"", b"", b"")[:24].hex() for _ in range(100)]
        arena = Arena(1 << 20, kind={kind!r})
        slot = arena.load(key)
        say(*seal(arena, slot))
        def child():
            say(outcome(seal, arena, slot))
            own = Arena(1 << 20, kind={kind!r})
            say(*seal(own, own.load(key)))
        in_child(child)
        say(*seal(arena, slot))
    """
    before, refusal, childs, after = output(script, HSMUX_NATIVE_BACKEND=backend)
    assert refusal == "NativeError: the arena belongs to another process"
    parents = [Nonce(*nonce_of(bytes.fromhex(word))) for word in (before + " " + after).split()]
    children = [nonce_of(bytes.fromhex(word)) for word in childs.split()]
    assert [nonce.number for nonce in parents] == list(range(1, 201))
    assert not {nonce.prefix for nonce in parents} & {nonce.prefix for nonce in children}
    assert not {nonce.random for nonce in parents} & {nonce.random for nonce in children}


@pytest.mark.parametrize(
    ("how", "text"), [("stuck", "or the same twice"), ("fails", "gives no random bytes")]
)
def test_a_machine_without_randomness_seals_nothing(how: str, text: str, tmp_path: Path) -> None:
    preload = tmp_path / "stuck_random.so"
    source = Path(__file__).with_name("stuck_random.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", preload, source], check=True)
    script = f"""
        arena = Arena(1 << 20)
        slot = arena.load(bytes(32))
        os.environ["HSMUX_TEST_RANDOM"] = {how!r}
        for call in (
            lambda: arena.seal(slot, b"", b"", b"text"),
            lambda: arena.seal_batch(slot, b"", {ONE!r}, {ONE!r}),
            lambda: (arena.seal_bytes(slot, b"", b"text"), arena.seal_bytes(slot, b"", b"text")),
            lambda: (arena.generate(), arena.generate()),
        ):
            say(outcome(call))
        os.environ["HSMUX_TEST_RANDOM"] = ""
        say(len(arena.seal(slot, b"", b"", b"text")))
    """
    *refusals, good = output(script, LD_PRELOAD=str(preload))
    assert len(refusals) == 4 and good == "44"
    for refusal in refusals:
        assert refusal.startswith("NativeError: the operating system") and text in refusal
