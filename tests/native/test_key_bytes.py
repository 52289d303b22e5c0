"""Key bytes in a process's memory: only in the arena while a key lives, nowhere after it is gone.

A script gets a key through a pipe, uses it in every way, and frees it; this process, its parent,
reads all memory that the script can write, as a debugger or a core file would. What is looked for
are the round keys of the key and of the keys that its envelopes were sealed with. The first two are
the key itself; some implementations keep the bytes of each word the other way round.
"""

import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from hsmux_native import Arena

from . import reference
from .mappings import mappings
from .scripts import command, environment

CHUNK = 1 << 20
OVERLAP = 32

SCRIPT = """
    from tests.native.columns import column
    key, sealed_blob = bytearray(32), bytearray(104)
    os.readv(0, [key])
    os.readv(0, [sealed_blob])
    arena = Arena(1 << 20, kind={kind!r})
    page = SecretPage(kind={page_kind!r})
    slot = arena.load(key)
    other = arena.load_from(key)
    key[:] = bytes(32)
    envelopes, _ = arena.seal_batch(slot, b"", column([b""]), column([b"text"] * 100))
    arena.open_batch(other, b"", column([b""]), envelopes)
    envelope = arena.seal(slot, b"", b"", b"text" * 1000)
    arena.open(slot, 0, b"", envelope)
    outcome(arena.open, slot, 0, b"", envelope[:-1] + bytes([envelope[-1] ^ 1]))
    arena.hmac_sha256(slot, b"message" * 100)
    row = arena.seal_bytes(slot, b"aad", b"text")
    arena.open_bytes(slot, b"aad", row)
    again = arena.open_slot(other, b"aad", arena.seal_slot(other, b"aad", slot))
    arena.store(slot, page.view)
    copied = arena.load_from(memoryview(page.view)[:32])
    page.wipe()
    blob = arena.open_blob(slot, b"", sealed_blob)
    hmac = sum(arena.blob(blob))
    say("alive", envelope[:12].hex(), row[:12].hex())
    os.read(0, 1)
    arena.free_blob(blob)
    for number in (slot, other, again, copied):
        arena.free(number)
    say("freed")
    os.read(0, 1)
    del arena
    say("gone")
    os.read(0, 1)
"""


def chunks_of(pid: int) -> Iterator[bytes]:
    """All memory that a process can write and that can be read, in pieces that overlap."""
    page = os.sysconf("SC_PAGESIZE")
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        for mapping in mappings(pid):
            at, tail = mapping.start, b""
            while mapping.permissions.startswith("rw") and at < mapping.end:
                try:
                    chunk = os.pread(memory, min(CHUNK, mapping.end - at), at)
                except OSError:
                    # Secret memory.
                    at, tail = at + page, b""
                    continue
                yield tail + chunk
                at, tail = at + len(chunk), chunk[-OVERLAP:]
    finally:
        os.close(memory)


def forms_of(name: str, key: bytes) -> dict[str, bytes]:
    """What is looked for, by what it is."""
    round_keys = reference.round_keys(key)
    forms = {f"{name}, round key {i}": round_key for i, round_key in enumerate(round_keys)}
    words = b"".join(key[i : i + 4][::-1] for i in range(0, 32, 4))
    return forms | {f"{name}, words": words[:16], f"{name}, other words": words[16:]}


def found_in(pid: int, forms: dict[str, bytes]) -> set[str]:
    """The names of what is in a process's memory."""
    found = set()
    for chunk in chunks_of(pid):
        # Most pages were never used.
        if chunk.strip(b"\0"):
            found |= {name for name, form in forms.items() if form in chunk}
    return found


@contextmanager
def running(script: str, **more: str) -> Iterator["subprocess.Popen[bytes]"]:
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command(script), env=environment(**more), stdin=pipe, stdout=pipe, bufsize=0
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def said(stream: IO[bytes] | None) -> list[str]:
    assert stream is not None
    return stream.readline().decode().split()


def test_no_copy_of_a_destroyed_key(backend: str, kind: str) -> None:
    key, blob = secrets.token_bytes(32), secrets.token_bytes(64)
    arena = Arena(1 << 20)
    sealed_blob = arena.seal_bytes(arena.load(key), b"", blob)
    page_kind = "memfd_secret" if kind == "memfd_secret" else "memfd"
    script = SCRIPT.format(kind=kind, page_kind=page_kind)
    with running(script, HSMUX_NATIVE_BACKEND=backend) as process:
        assert process.stdin is not None
        process.stdin.write(key)
        process.stdin.write(sealed_blob)
        word, *prefixes = said(process.stdout)
        assert word == "alive"
        forms = forms_of("the key", key) | forms_of("the blob", blob[:32])
        for prefix in prefixes:
            derived = reference.derived_key(key, bytes.fromhex(prefix))
            forms |= forms_of(f"the key of prefix {prefix}", derived)
        alive = found_in(process.pid, forms)
        if kind == "mlock":
            # So the search can find what is there.
            names = ("the key", "the blob", f"the key of prefix {prefixes[0]}")
            assert {f"{name}, round key 0" for name in names} <= alive
            assert "the key, round key 14" in alive
        else:
            assert alive == set()
        for state in ("freed", "gone"):
            process.stdin.write(b"\n")
            assert said(process.stdout) == [state]
            assert found_in(process.pid, forms) == set()
