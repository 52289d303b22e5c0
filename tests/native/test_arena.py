"""Key memory: slots and their numbers, limits, guard pages, forks, core files, lost pages."""

import ctypes
import gc
import hashlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from typing import Any

import pytest

from hsmux_native import Arena, ArenaFull, InvalidSlot, InvalidTag, NativeError

from .columns import column
from .mappings import Mapping, new_mappings
from .scripts import output, run

# No other mapping of this process has this size.
SIZE = (1 << 20) + 4096 * 11
BLOBS = 32
BLOB_SIZE_MAX = 4096

# Every way to use a slot's number; `blob` and `free_blob` take numbers of blobs.
USES: dict[str, Callable[[Arena, int], Any]] = {
    "store": lambda arena, slot: arena.store(slot, bytearray(32)),
    "free": lambda arena, slot: arena.free(slot),
    "set_epoch": lambda arena, slot: arena.set_epoch(slot, 0, 0),
    "seal": lambda arena, slot: arena.seal(slot, b"", b"", b""),
    "open": lambda arena, slot: arena.open(slot, 0, b"", bytes(40)),
    "seal_batch": lambda arena, slot: arena.seal_batch(slot, b"", column([b""]), column([])),
    "open_batch": lambda arena, slot: arena.open_batch(slot, b"", column([b""]), column([])),
    "seal_bytes": lambda arena, slot: arena.seal_bytes(slot, b"", b""),
    "open_bytes": lambda arena, slot: arena.open_bytes(slot, b"", bytes(40)),
    "seal_slot": lambda arena, slot: arena.seal_slot(slot, b"", slot),
    "open_slot": lambda arena, slot: arena.open_slot(slot, b"", bytes(72)),
    "open_blob": lambda arena, slot: arena.open_blob(slot, b"", bytes(40)),
    "hmac_sha256": lambda arena, slot: arena.hmac_sha256(slot, b""),
    "blob": lambda arena, slot: arena.blob(slot),
    "free_blob": lambda arena, slot: arena.free_blob(slot),
}


def check_refused(arena: Arena, slot: int) -> None:
    """No use of a number finds a key."""
    for use in USES.values():
        with pytest.raises(InvalidSlot, match="no key under this slot number"):
            use(arena, slot)


def make(kind: str | None = None) -> tuple[Arena, Mapping]:
    """An arena, and the pages that hold its keys."""
    arena, found = new_mappings(lambda: Arena(SIZE, kind=kind))
    (region,) = [mapping for mapping in found if mapping.end - mapping.start == SIZE]
    return arena, region


# ---- Slots


def test_a_full_arena(arena: Arena) -> None:
    slots = [arena.generate() for _ in range(arena.statistics().slots)]
    assert len(set(slots)) == len(slots)
    one = arena.seal_slot(slots[0], b"", slots[1])
    for call in (arena.generate, lambda: arena.load(bytes(32)), lambda: arena.load_from(ZEROS)):
        with pytest.raises(ArenaFull, match="full"):
            call()
    with pytest.raises(ArenaFull):
        arena.open_slot(slots[0], b"", one)
    found = arena.statistics()
    assert found.slots_used == found.slots == len(slots)
    assert repr(arena) == f"Arena({found.kind}, {found.slots} of {found.slots} slots)"
    arena.free(slots[7])
    slots[7] = arena.open_slot(slots[0], b"", one)
    assert arena.hmac_sha256(slots[7], b"m") == arena.hmac_sha256(slots[1], b"m")


ZEROS = bytearray(32)


def test_a_number_never_means_the_next_key(arena: Arena) -> None:
    slot = arena.load(b"1" * 32)
    numbers = {slot}
    for _ in range(100):
        arena.free(slot)
        check_refused(arena, slot)
        following = arena.load(b"2" * 32)
        # The same place is used again, under another number.
        assert following & 0xFFFFFFFF == slot & 0xFFFFFFFF
        check_refused(arena, slot)
        slot = following
        numbers.add(slot)
    assert len(numbers) == 101


def test_numbers_that_name_nothing(arena: Arena) -> None:
    slot = arena.generate()
    slots = arena.statistics().slots
    check_refused(arena, 0)
    for number in (slot + 1, slot + slots, slot ^ 1 << 32, slot & 0xFFFFFFFF, slot | 1 << 63):
        check_refused(arena, number)
    for number in (-1, 2**64, 2**64 + slot, -slot):
        check_refused(arena, number)
    check_refused(Arena(1 << 20), slot)


def test_keys_come_and_go_as_they_are(arena: Arena) -> None:
    key = hashlib.sha256(b"key").digest()
    destination = bytearray(40)
    for slot in (arena.load(key), arena.load(bytearray(key)), arena.load_from(bytearray(key))):
        arena.store(slot, memoryview(destination))
        assert destination == key + bytes(8)
    words = memoryview(bytearray(32)).cast("I")
    arena.store(arena.load(memoryview(key)), words)
    assert bytes(words) == key


def test_sizes_of_keys(arena: Arena) -> None:
    for size in (0, 16, 31, 33, 64):
        with pytest.raises(ValueError, match=f"32 bytes, not {size}"):
            arena.load(bytes(size))
        with pytest.raises(ValueError, match=f"32 bytes, not {size}"):
            arena.load_from(bytearray(size))
    with pytest.raises(ValueError, match="at least 32 bytes"):
        arena.store(arena.generate(), bytearray(31))
    with pytest.raises(BufferError):
        arena.store(arena.generate(), memoryview(bytes(32)))


def test_generated_keys_differ(arena: Arena) -> None:
    macs = {arena.hmac_sha256(arena.generate(), b"") for _ in range(200)}
    assert len(macs) == 200


# ---- Blobs


def test_blobs(arena: Arena) -> None:
    kek = arena.generate()
    texts = [hashlib.shake_128(b"%d" % i).digest(BLOB_SIZE_MAX) for i in range(BLOBS)]
    sealed = [arena.seal_bytes(kek, b"aad", text) for text in texts]
    blobs = [arena.open_blob(kek, b"aad", data) for data in sealed]
    assert arena.statistics().blobs_used == BLOBS
    with pytest.raises(ArenaFull):
        arena.open_blob(kek, b"aad", sealed[0])
    for blob, text in zip(blobs, texts, strict=True):
        view = arena.blob(blob)
        assert view == text and view.readonly
    freed = arena.blob(blobs[5])
    arena.free_blob(blobs[5])
    assert freed == bytes(BLOB_SIZE_MAX)
    check_refused(arena, blobs[5])
    again = arena.open_blob(kek, b"aad", sealed[6])
    assert again != blobs[5] and arena.blob(again) == texts[6]
    check_refused(arena, blobs[5])


def test_blobs_that_do_not_open(arena: Arena) -> None:
    kek = arena.generate()
    largest = arena.seal_bytes(kek, b"", bytes(BLOB_SIZE_MAX))
    for aad, sealed in (
        (b"", arena.seal_bytes(kek, b"", bytes(BLOB_SIZE_MAX + 1))),
        (b"", largest[:-1]),
        (b"x", largest),
        (b"", bytes(39)),
        (b"", b""),
    ):
        with pytest.raises(InvalidTag):
            arena.open_blob(kek, aad, sealed)
    assert arena.statistics().blobs_used == 0
    assert arena.blob(arena.open_blob(kek, b"", largest)) == bytes(BLOB_SIZE_MAX)


def test_a_view_keeps_the_memory(kind: str) -> None:
    arena, region = make(kind)
    kek = arena.generate()
    view = arena.blob(arena.open_blob(kek, b"", arena.seal_bytes(kek, b"", b"a private key")))
    del arena
    gc.collect()
    assert bytes(view) == b"a private key"
    part = view[2:9]
    del view
    gc.collect()
    assert bytes(part) == b"private"
    del part
    gc.collect()
    _, found = new_mappings(lambda: None)
    assert found == []
    (again,) = [m for m in new_mappings(lambda: make(kind))[1] if m.end - m.start == SIZE]
    assert again.end - again.start == region.end - region.start


# ---- The memory


def test_sizes_of_arenas() -> None:
    for size in (0, -1, (1 << 30) + 1, 2**64):
        with pytest.raises(ValueError, match="at most 1073741824 bytes"):
            Arena(size)
    for size in (1, 4096, 100_000):
        with pytest.raises(ValueError, match="over a limit"):
            Arena(size)
    with pytest.raises(ValueError, match="kind: one of memfd_secret, mlock"):
        Arena(kind="paper")
    assert 300 <= Arena(1 << 20).statistics().slots < 400


def test_pages_are_kept_from_others(kind: str) -> None:
    _, region = make(kind)
    # lo: never swapped out; dd: not in core files; dc: not there after a fork; wf: zeroed by it.
    expected = {"lo", "dd", "dc"} if kind == "memfd_secret" else {"lo", "dd", "wf"}
    assert expected <= region.flags
    assert ("secretmem" in region.name) == (kind == "memfd_secret")


def test_no_other_process_can_read_secret_memory(kind: str) -> None:
    """Not even the process itself, through the kernel: what root and debuggers would use."""
    arena, region = make(kind)
    key = hashlib.sha256(b"secret").digest()
    arena.load(key)
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    try:
        if kind == "memfd_secret":
            with pytest.raises(OSError):
                os.pread(memory, 4096, region.start)
        else:
            assert key in os.pread(memory, SIZE, region.start)
    finally:
        os.close(memory)


def test_pages_without_access_stand_around(kind: str) -> None:
    arena, found = new_mappings(lambda: Arena(SIZE, kind=kind))
    (place,) = [i for i, m in enumerate(found) if m.end - m.start == SIZE]
    before, region, behind = found[place - 1 : place + 2]
    assert before.end == region.start and region.end == behind.start
    assert before.permissions[:3] == behind.permissions[:3] == "---"
    del arena


@pytest.mark.parametrize("offset", [-1, SIZE])
def test_a_step_too_far_ends_the_process(kind: str, offset: int) -> None:
    script = f"""
        arena, found = new_mappings(lambda: Arena({SIZE}, kind={kind!r}))
        (region,) = [m for m in found if m.end - m.start == {SIZE}]
        ctypes.string_at(region.start, 1)
        say("inside")
        ctypes.string_at(region.start + {offset}, 1)
        say("outside")
    """
    done = run(script)
    assert (done.returncode, done.stdout) == (-signal.SIGSEGV, "inside\n")


def test_lost_memory_holds_no_key(kind: str) -> None:
    arena, region = make(kind)
    slot = arena.generate()
    kek = arena.generate()
    blob = arena.open_blob(kek, b"", arena.seal_bytes(kek, b"", b"text"))
    ctypes.memset(region.start, 0, SIZE)
    for number in (slot, kek, blob):
        check_refused(arena, number)
    for call in (arena.generate, lambda: arena.load(bytes(32))):
        with pytest.raises(InvalidSlot):
            call()


def test_any_lost_page_takes_its_keys_with_it(kind: str) -> None:
    arena, region = make(kind)
    slots = [arena.generate() for _ in range(arena.statistics().slots)]
    page = os.sysconf("SC_PAGESIZE")
    for start in range(region.start + page, region.end - BLOBS * 4200, page):
        ctypes.memset(start, 0, page)
    for slot in slots[1:-2]:
        with pytest.raises(InvalidSlot):
            arena.seal(slot, b"", b"", b"")


def test_what_cannot_be_locked_is_said() -> None:
    script = """
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
        if os.getuid() == 0:
            os.setgroups([])
            os.setuid(65534)
        for kind in ("memfd_secret", "mlock", None):
            say(outcome(Arena, 1 << 20, kind=kind))
        for kind in ("memfd_secret", "memfd", None):
            say(outcome(SecretPage, None, 1 << 20, kind=kind))
        say(len(os.listdir("/proc/self/fd")))
    """
    *said, descriptors = output(script)
    for line in said[:3]:
        assert line == (
            "NativeError: cannot lock 1048576 bytes of memory (RLIMIT_MEMLOCK is 65536); raise it "
            "(`ulimit -l`, LimitMEMLOCK= in systemd) or make native.arena_size_bytes smaller"
        )
    for line in said[3:]:
        assert line.startswith("NativeError: ") and "memory" in line
    # Nothing that failed left a descriptor open: three are the script's, one lists them.
    assert int(descriptors) == 4


# ---- Forks


def test_a_forked_child_has_no_keys(kind: str) -> None:
    script = f"""
        from tests.native.test_arena import USES
        arena, found = new_mappings(lambda: Arena({SIZE}, kind={kind!r}))
        (region,) = [m for m in found if m.end - m.start == {SIZE}]
        slot = arena.load(b"a key that must not be inherited")
        def use():
            say(*{{outcome(use, arena, slot) for use in USES.values()}})
            say(outcome(arena.generate), outcome(arena.load, bytes(32)))
            say(repr(arena))
        def look():
            say(set(ctypes.string_at(region.start, {SIZE})) == {{0}})
        say(in_child(use), in_child(look))
        say(len(arena.seal(slot, b"", b"", b"")))
    """
    refusal = "NativeError: the arena belongs to another process"
    lines = output(script)
    assert lines[0] == refusal
    assert lines[1] == f"{refusal} {refusal}"
    assert lines[2].startswith(f"Arena({kind}, 1 of ")
    if kind == "memfd_secret":
        assert lines[3:] == [f"0 {-signal.SIGSEGV}", "40"]
    else:
        assert lines[3:] == ["True", "0 0", "40"]


def test_a_child_with_its_parents_pid_is_refused(kind: str) -> None:
    """In a pid namespace of its own the child of a container's first process is the first too."""
    script = f"""
        CLONE_NEWPID = 0x20000000
        arena = Arena(1 << 20, kind={kind!r})
        slot = arena.generate()
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.unshare(CLONE_NEWPID) == 0, os.strerror(ctypes.get_errno())
        def child():
            say(os.getpid())
            say(outcome(arena.hmac_sha256, slot, b""))
        say(os.getpid())
        say(in_child(child))
    """
    before = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*before, "true"], capture_output=True).returncode != 0:
        pytest.skip("this kernel gives no user and pid namespaces")
    assert output(script, *before) == [
        "1",
        "1",
        "NativeError: the arena belongs to another process",
        "0",
    ]


# ---- Threads


def test_threads_share_an_arena(arena: Arena) -> None:
    """Slots come, work and go in four threads at once, and nobody sees another's key."""
    failures: list[BaseException] = []
    ready = threading.Barrier(4)

    def work(number: int) -> None:
        ready.wait()
        try:
            for i in range(300):
                key = hashlib.sha256(b"%d %d" % (number, i)).digest()
                slot = arena.load(key)
                envelope = arena.seal(slot, b"", b"", key)
                assert arena.open(slot, 0, b"", envelope) == key
                sealed = arena.seal_bytes(slot, b"", key)
                blob = arena.open_blob(slot, b"", sealed)
                assert arena.blob(blob) == key
                arena.free_blob(blob)
                arena.free(slot)
                check_refused(arena, slot)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert arena.statistics().slots_used == arena.statistics().blobs_used == 0


def test_an_error_says_what_it_is(arena: Arena) -> None:
    for error in (ArenaFull, InvalidSlot, InvalidTag):
        assert issubclass(error, NativeError)
    slot = arena.generate()
    with pytest.raises(InvalidTag) as caught:
        arena.open(slot, 0, b"", bytes(50))
    assert str(caught.value) == "does not open"
