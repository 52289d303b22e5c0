"""The PKCS#11 loop over SoftHSM and NSS softokn, through the adapter that injects faults."""

import hashlib
import mmap
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import hsmux_native
from hsmux_native import Arena, NativeError
from hsmux_native.faults import write_rules
from hsmux_native.pkcs11 import BAD_OUTPUT, DEADLINE, NOT_STARTED, Pkcs11Loop, SecretPage

from .columns import MALFORMED, column, items_of
from .rig import Rig, said

ROOT = Path(__file__).parents[2]

# What every script here starts with: a key whose bytes are known, and the loop.
BEGIN = """
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hsmux_native.pkcs11 import BAD_OUTPUT, DEADLINE, NOT_STARTED, Pkcs11Loop, SecretPage
from tests.native.columns import MALFORMED, column, items_of

VALUE = bytes(range(32))
session = open_session()
key = make_key(session, value=VALUE)
loop = Pkcs11Loop(ADAPTER)

def ivs_for(items):
    return b"".join(b"%12d" % i for i in range(len(items)))

def encrypt(items, aads=(b"aad",), **options):
    sealed, codes = loop.gcm(
        session.handle, key.handle, column(items), column(aads), encrypting=True,
        ivs=ivs_for(items), **options)
    return items_of(sealed), codes

def decrypt(items, aads=(b"aad",), **options):
    opened, codes = loop.gcm(
        session.handle, key.handle, column(items), column(aads), encrypting=False, **options)
    return items_of(opened), codes

NAMES = {BAD_OUTPUT: "BAD_OUTPUT", DEADLINE: "DEADLINE", NOT_STARTED: "NOT_STARTED"}

def say_codes(codes):
    say(*[NAMES.get(code, hex(code)) for code in codes])
"""


def output(rig: Rig, script: str) -> list[str]:
    """The lines of a script that ends well."""
    return rig.output(BEGIN + script)


# ---- Columns


def test_many_records_in_a_call(token: Rig) -> None:
    """What the token makes is AES-GCM, and what somebody else made opens there."""
    script = """
items = [bytes([i % 256]) * (i * 37 % 2000) for i in range(2000)] + [b"x" * 65536]
aads = [b"aad %d" % i for i in range(len(items))]
sealed, codes = encrypt(items, aads)
say(set(codes), len(sealed))
cipher = AESGCM(VALUE)
say(all(
    text == iv + cipher.encrypt(iv, item, aad)
    for text, item, aad in zip(sealed, items, aads)
    for iv in [text[:12]]))
say(b"".join(text[:12] for text in sealed) == ivs_for(items))
opened, codes = decrypt(sealed, aads)
say(set(codes), opened == items)
iv = b"another's iv"
opened, codes = decrypt([iv + cipher.encrypt(iv, b"text", b"aad")])
say(codes, opened)
say(*map(len, encrypt([])), *map(len, decrypt([])))
"""
    assert output(token, script) == [
        "{0} 2001",
        "True",
        "True",
        "{0} True",
        "[0] [b'text']",
        "0 0 0 0",
    ]


def test_each_record_has_its_status(token: Rig) -> None:
    """A wrong tag, wrong associated data, and shorter than IV and tag: the others come through."""
    script = """
items = [b"text %d" % i for i in range(8)]
sealed, _ = encrypt(items)
sealed[1] = sealed[1][:-1] + bytes([sealed[1][-1] ^ 1])
sealed[3] = sealed[3][:27]
sealed[4] = b""
sealed[6] = bytes([sealed[6][0] ^ 1]) + sealed[6][1:]
opened, codes = decrypt(sealed)
say([code == 0 for code in codes])
say([found == item for found, item in zip(opened, items)], opened[1], opened[3])
opened, codes = decrypt(sealed[:1] + sealed[7:], [b"aad", b"another"])
say([code == 0 for code in codes], opened)
# The session goes on.
say(decrypt(encrypt(items)[0]) == (items, [0] * 8))
"""
    good = [True, False, True, False, False, True, False, True]
    assert output(token, script) == [
        str(good),
        f"{good} b'' b''",
        "[True, False] [b'text 0', b'']",
        "True",
    ]


def test_a_general_error_can_end_a_column(rig: Rig) -> None:
    """SoftHSM says CKR_GENERAL_ERROR to a wrong tag; whose fault that is, the caller decides."""
    script = """
sealed, _ = encrypt([b"a", b"b", b"c"])
sealed[1] = sealed[1][:-1] + bytes([sealed[1][-1] ^ 1])
for is_data in (True, False):
    opened, codes = decrypt(sealed, general_error_is_data=is_data)
    say_codes(codes)
    say(opened)
"""
    assert output(rig, script) == [
        "0x0 0x5 0x0",
        "[b'a', b'', b'c']",
        "0x0 0x5 NOT_STARTED",
        "[b'a', b'', b'']",
    ]


def test_arguments_that_are_refused(token: Rig) -> None:
    script = """
def refused(**changes):
    arguments = dict(items=column([b"a", b"b"]), associated_data=column([b""]), encrypting=True,
                     ivs=bytes(24)) | changes
    try:
        loop.gcm(session.handle, key.handle, **arguments)
    except ValueError:
        return True
say(refused())
for malformed in MALFORMED.values():
    say(refused(items=malformed, ivs=b""), refused(associated_data=malformed))
say(refused(associated_data=column([])), refused(associated_data=column([b""] * 3)))
say(refused(ivs=b""), refused(ivs=bytes(23)), refused(ivs=bytes(25)), refused(ivs=bytes(36)))
say(refused(deadline_ns=[0, 0, 0]), refused(progress=bytearray(3)))
say(refused(progress=memoryview(bytearray(9))[1:]))
"""
    lines = output(token, script)
    expected = ["None", *["True True"] * len(MALFORMED), "True True", "True True True True"]
    assert lines == [*expected, "True True", "True"]


def test_threads_have_the_loop_at_once(token: Rig) -> None:
    """The interpreter's lock is not held in it; each thread has its own session and columns."""
    script = """
done = []
def work(number):
    with session.token.open() as own:
        for i in range(20):
            items = [b"%d %d %d" % (number, i, j) for j in range(50)]
            sealed, codes = loop.gcm(
                own.handle, key.handle, column(items), column([b""]), encrypting=True,
                ivs=ivs_for(items))
            opened, more = loop.gcm(
                own.handle, key.handle, sealed, column([b""]), encrypting=False)
            done.append(items_of(opened) == items and codes == more == [0] * 50)
threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
say(done == [True] * 60)
"""
    assert output(token, script) == ["True"]


# ---- Faults

COLUMN = """
items = [b"text %d" % i for i in range(5)]
good, _ = encrypt(items)
write_rules(RULES, {rule!r})
{call}
say_codes(codes)
say(*[bool(output) for output in outputs])
write_rules(RULES)
say(decrypt(good)[0] == items)
"""
ENCRYPT, DECRYPT = "outputs, codes = encrypt(items)", "outputs, codes = decrypt(good)"
THIRD = "skip=2 count=1"


@pytest.mark.parametrize(
    ("call", "rule", "third"),
    [
        (ENCRYPT, f"function=C_Encrypt {THIRD} action=resize size=21", "BAD_OUTPUT"),
        (ENCRYPT, f"function=C_Encrypt {THIRD} action=resize size=23", "BAD_OUTPUT"),
        (ENCRYPT, f"function=C_Encrypt {THIRD} action=resize size=0", "BAD_OUTPUT"),
        (ENCRYPT, f"function=C_Encrypt {THIRD} action=resize size=4294967295", "BAD_OUTPUT"),
        (DECRYPT, f"function=C_Decrypt {THIRD} action=resize size=5", "BAD_OUTPUT"),
        (DECRYPT, f"function=C_Decrypt {THIRD} action=resize size=22", "BAD_OUTPUT"),
        (ENCRYPT, f"function=C_Encrypt {THIRD} action=return code=CKR_DEVICE_ERROR", "0x30"),
        (DECRYPT, f"function=C_Decrypt {THIRD} action=return code=CKR_DEVICE_ERROR", "0x30"),
        (ENCRYPT, f"function=C_EncryptInit {THIRD} action=return code=CKR_DEVICE_REMOVED", "0x32"),
        (
            DECRYPT,
            f"function=C_DecryptInit {THIRD} action=return code=CKR_TOKEN_NOT_PRESENT",
            "0xe0",
        ),
        (ENCRYPT, f"function=C_Encrypt {THIRD} action=return code=CKR_GENERAL_ERROR", "0x5"),
        (ENCRYPT, f"function=C_Encrypt {THIRD} action=return code=0x40 when=after", "0x40"),
        (DECRYPT, f"function=C_Decrypt {THIRD} action=return code=0x80000001", "0x80000001"),
    ],
)
def test_what_ends_a_column(token: Rig, call: str, rule: str, third: str) -> None:
    # After a fault before the module's own call its operation would still be active.
    fresh = "session = session.token.open(rw=True)\nkey = make_key(session, value=VALUE)"
    script = COLUMN.format(rule=rule, call=call).replace("write_rules(RULES)", fresh, 1)
    assert output(token, script + "\nwrite_rules(RULES)") == [
        f"0x0 0x0 {third} NOT_STARTED NOT_STARTED",
        "True True False False False",
        "True",
    ]


@pytest.mark.parametrize(
    ("call", "rule", "codes"),
    [
        (ENCRYPT, f"function=C_Encrypt {THIRD} action=return code=0x20 when=after", "0x20"),
        (ENCRYPT, f"function=C_Encrypt {THIRD} action=return code=0x21 when=after", "0x21"),
        (DECRYPT, f"function=C_Decrypt {THIRD} action=return code=0x40 when=after", "0x40"),
        (DECRYPT, f"function=C_Decrypt {THIRD} action=return code=0x41 when=after", "0x41"),
        (DECRYPT, f"function=C_Decrypt {THIRD} action=return code=0x5 when=after", "0x5"),
    ],
)
def test_what_speaks_of_one_item(token: Rig, call: str, rule: str, codes: str) -> None:
    assert output(token, COLUMN.format(rule=rule, call=call)) == [
        f"0x0 0x0 {codes} 0x0 0x0",
        "True True False True True",
        "True",
    ]


def test_a_flipped_bit_is_found_when_the_record_is_opened(token: Rig) -> None:
    """The loop cannot see it in a ciphertext; the tag does."""
    script = """
items = [b"text %d" % i for i in range(4)]
write_rules(RULES, "function=C_Encrypt skip=1 count=1 action=flip bit=3",
            "function=C_Encrypt skip=1 count=1 action=flip bit=170")
sealed, codes = encrypt(items)
say_codes(codes)
write_rules(RULES)
opened, codes = decrypt(sealed)
say([code == 0 for code in codes], opened)
"""
    assert output(token, script) == [
        "0x0 0x0 0x0 0x0",
        "[True, False, False, True] [b'text 0', b'', b'', b'text 3']",
    ]


def test_an_iv_that_the_module_changed(token: Rig) -> None:
    write_rules(token.rules, "iv=written-back")
    script = """
for ivs in (b"".join(b"%12d" % i for i in range(2)), bytes(24)):
    sealed, codes = loop.gcm(session.handle, key.handle, column([b"a", b"b"]), column([b""]),
                             encrypting=True, ivs=ivs)
    say_codes(codes)
    say(items_of(sealed))
"""
    assert output(token, script) == [
        "0x71 NOT_STARTED",
        "[b'', b'']",
        "BAD_OUTPUT NOT_STARTED",
        "[b'', b'']",
    ]


def test_handles_that_name_nothing(token: Rig) -> None:
    script = """
one = dict(items=column([b"a"] * 2), associated_data=column([b""]), encrypting=True, ivs=bytes(24))
for session_handle, key_handle in ((session.handle + 77, key.handle), (session.handle, 2**32 - 1)):
    _, codes = loop.gcm(session_handle, key_handle, **one)
    say_codes(codes)
for wrong in (-1, 2**64):
    say(outcome_of(loop.gcm, wrong, key.handle, **one))
"""
    # What there is no number for is refused before the module sees it.
    helper = """
def outcome_of(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except Exception as error:
        return type(error).__name__
"""
    session, key, *numbers = output(token, helper + script)
    assert session == "0xb3 NOT_STARTED"
    # SoftHSM says CKR_OBJECT_HANDLE_INVALID.
    assert key in ("0x60 NOT_STARTED", "0x82 NOT_STARTED")
    assert numbers == ["OverflowError"] * 2


# ---- Deadlines and progress


def test_deadlines_of_items(token: Rig) -> None:
    script = """
now, hour = time.monotonic_ns(), 3600 * 10**9
items = [b"a", b"b", b"c", b"d"]
sealed, codes = encrypt(items, deadline_ns=[now + hour, 1, 0, now])
say_codes(codes)
say([bool(text) for text in sealed])
for deadline_ns in (now, now + hour, 0, [now], []):
    say_codes(encrypt(items, deadline_ns=deadline_ns)[1])
say_codes(decrypt(encrypt(items)[0], deadline_ns=[1, 0, now + hour, 2])[1])
"""
    late, done = " ".join(["DEADLINE"] * 4), " ".join(["0x0"] * 4)
    assert output(token, script) == [
        "0x0 DEADLINE 0x0 DEADLINE",
        "[True, False, True, False]",
        late,
        done,
        done,
        late,
        done,
        "DEADLINE 0x0 0x0 DEADLINE",
    ]


def test_a_deadline_that_passes_during_a_column(token: Rig) -> None:
    """It is looked at before each item; what the module has, it keeps."""
    write_rules(token.rules, "function=C_Encrypt skip=1 count=1 action=sleep ms=150")
    script = """
items = [b"a", b"b", b"c"]
codes = encrypt(items, deadline_ns=time.monotonic_ns() + 100 * 10**6)[1]
say_codes(codes)
"""
    # The first item is quick on any machine that reaches the second one in 100 ms; where it is
    # not, the column is late from its beginning.
    (line,) = output(token, script)
    assert line.endswith("DEADLINE") and "NOT_STARTED" not in line


def test_progress_without_faults(token: Rig) -> None:
    script = """
word = bytearray(b"????more")
sealed, codes = encrypt([b"a", b"b"], progress=word)
say(codes, bytes(word))
decrypt(sealed, progress=memoryview(word)[4:])
say(bytes(word))
"""
    nothing = bytes(4)
    assert output(token, script) == [f"[0, 0] {nothing + b'more'!r}", repr(bytes(8))]


@pytest.mark.parametrize("action", ["hang", "segv"])
def test_progress_is_seen_by_another_process(token: Rig, action: str) -> None:
    """While the module hangs, and after it killed its process."""
    write_rules(token.rules, f"function=C_Encrypt skip=2 action={action}")
    memory = os.memfd_create("progress")
    os.ftruncate(memory, mmap.PAGESIZE)
    with mmap.mmap(memory, mmap.PAGESIZE) as word:
        script = (
            BEGIN
            + f"""
import mmap
word = mmap.mmap({memory}, mmap.PAGESIZE)
encrypt([b"text"] * 5, progress=word)
say("never")
"""
        )
        with token.running(script, pass_fds=(memory,)) as process:
            deadline_s = time.monotonic() + 60
            while not token.counters.faults("C_Encrypt") and time.monotonic() < deadline_s:
                time.sleep(0.001)
            assert int.from_bytes(word[:4], "little") == 3
            if action == "hang":
                process.kill()
            assert process.wait() == -(signal.SIGKILL if action == "hang" else signal.SIGSEGV)
            assert said(process) == ""
        assert int.from_bytes(word[:4], "little") == 3
    os.close(memory)


# ---- Secret pages


@pytest.fixture(params=["memfd_secret", "memfd"])
def page(request: pytest.FixtureRequest) -> SecretPage:
    """A page of each kind."""
    try:
        return SecretPage(kind=request.param)
    except NativeError:
        pytest.skip(f"this kernel has no {request.param}")


def test_a_key_crosses_to_a_worker_and_back(token: Rig, page: SecretPage) -> None:
    """From an arena to a token and back, without a Python object that holds it."""
    arena = Arena(1 << 20)
    secret = hashlib.sha256(b"a key-encryption key").digest()
    arena.store(arena.load(secret), memoryview(page.view))
    script = (
        BEGIN
        + f"""
page = SecretPage({page.fd})
code, sealed = loop.seal_page(session.handle, key.handle, b"i" * 12, b"aad",
                              memoryview(page.view)[:32])
say(code, sealed == b"i" * 12 + AESGCM(VALUE).encrypt(b"i" * 12, bytes(page.view[:32]), b"aad"))
page.wipe()
say("wiped")
input()
say(loop.open_page(session.handle, key.handle, sealed, b"aad", page.view))
input()
for wrong in (sealed[:-1] + bytes([sealed[-1] ^ 1]), b"j" + sealed[1:]):
    say(loop.open_page(session.handle, key.handle, wrong, b"aad", page.view) != 0,
        set(page.view[:48]) == {{0}})
say(loop.open_page(session.handle, key.handle, sealed, b"other", page.view) != 0)
for wrong in (b"", sealed[:27]):
    try:
        loop.open_page(session.handle, key.handle, wrong, b"aad", page.view)
    except ValueError as error:
        say(error)
try:
    loop.open_page(session.handle, key.handle, sealed, b"aad", memoryview(page.view)[:47])
except ValueError as error:
    say(error)
try:
    loop.seal_page(session.handle, key.handle, b"i" * 11, b"", page.view)
except ValueError as error:
    say(error)
"""
    )
    with token.running(script, pass_fds=(page.fd,)) as process:
        assert process.stdin is not None
        assert said(process) == "0 True"
        assert said(process) == "wiped" and bytes(page.view[:64]) == bytes(64)
        print(file=process.stdin, flush=True)
        assert said(process) == "0"
        assert bytes(page.view[:32]) == secret
        slot = arena.load_from(memoryview(page.view)[:32])
        assert arena.hmac_sha256(slot, b"m") == arena.hmac_sha256(arena.load(secret), b"m")
        print(file=process.stdin, flush=True)
        assert [said(process) for _ in range(7)] == [
            "True True",
            "True True",
            "True",
            "shorter than IV and tag",
            "shorter than IV and tag",
            "the destination is too small",
            "iv: 12 bytes",
        ]
        assert process.wait() == 0
    page.close()


def test_a_module_that_fails_gives_no_page(rig: Rig) -> None:
    script = """
page = SecretPage()
page.view[:32] = bytes(range(32))
write_rules(RULES, "function=C_Encrypt count=1 action=return code=CKR_DEVICE_ERROR when=after",
            "function=C_Encrypt count=1 action=resize size=47",
            "function=C_Decrypt count=1 action=resize size=31")
source = memoryview(page.view)[:32]
for _ in range(3):
    code, sealed = loop.seal_page(session.handle, key.handle, b"i" * 12, b"", source)
    say_codes([code])
    say(len(sealed))
say_codes([loop.open_page(session.handle, key.handle, sealed, b"", page.view)])
say(set(page.view[:48]) == {0})
"""
    assert output(rig, script) == [
        "0x30",
        "0",
        "BAD_OUTPUT",
        "0",
        "0x0",
        "60",
        "BAD_OUTPUT",
        "True",
    ]


def test_a_page_is_of_its_kind(page: SecretPage) -> None:
    page.view[:3] = b"abc"
    page.wipe()
    assert bytes(page.view) == bytes(mmap.PAGESIZE)
    # Whoever has the descriptor cannot take the memory from under the other.
    for size in (0, 2 * mmap.PAGESIZE):
        with pytest.raises(OSError):
            os.ftruncate(page.fd, size)
    with pytest.raises(ValueError, match="greater than file size"):
        SecretPage(os.dup(page.fd), 2 * mmap.PAGESIZE)
    descriptor = page.fd
    page.close()
    with pytest.raises(OSError):
        os.fstat(descriptor)


def test_sizes_of_pages() -> None:
    for size in (0, -1, 1 << 30):
        with pytest.raises(ValueError, match="less than 1 GiB"):
            SecretPage(size_bytes=size)
    with pytest.raises(ValueError, match="kind: memfd_secret or memfd"):
        SecretPage(kind="paper")  # type: ignore[arg-type]
    page = SecretPage(size_bytes=3 * mmap.PAGESIZE + 1)
    assert len(page.view) == 3 * mmap.PAGESIZE + 1
    page.close()


# ---- Modules


@pytest.mark.parametrize("path", ["/nonexistent.so", "libc.so.6", str(ROOT / "README.md")])
def test_what_is_no_module_is_named(path: str) -> None:
    with pytest.raises(ValueError, match=f"{path}: not a PKCS#11 module"):
        Pkcs11Loop(path)


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The module of the C tests, which misbehaves as FAKE_PKCS11 says."""
    path = tmp_path_factory.mktemp("fake") / "fake_pkcs11.so"
    native = ROOT / "native"
    flags = ["-D_GNU_SOURCE", "-shared", "-fPIC", f"-I{native / 'adapter'}"]
    source = str(native / "tests" / "fake_pkcs11.c")
    subprocess.run(["cc", *flags, "-o", str(path), source], check=True)
    return str(path)


@pytest.mark.parametrize("convert", [bytes, bytearray, memoryview])
def test_any_buffer_serves(fake: str, convert: Callable[[bytes], bytes]) -> None:
    loop = Pkcs11Loop(fake)
    sealed, _ = loop.gcm(
        1,
        2,
        convert(column([b"text"])),
        convert(column([b"aad"])),
        encrypting=True,
        ivs=convert(bytes(12)),
    )
    opened, codes = loop.gcm(1, 2, convert(sealed), column([b"aad"]), encrypting=False)
    assert (items_of(opened), codes) == ([b"text"], [0])


def test_codes_that_would_pass_for_the_loops_own(
    fake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Pkcs11Loop(fake)
    for code in (NOT_STARTED, BAD_OUTPUT, DEADLINE, 1 << 32):
        monkeypatch.setenv("FAKE_PKCS11", f"code={code:#x}:1 # {code}")
        _, codes = loop.gcm(
            1, 2, column([b"a", b"b"]), column([b""]), encrypting=True, ivs=bytes(24)
        )
        assert codes == [BAD_OUTPUT, NOT_STARTED]


def test_the_columns_largest_and_one_over(fake: str) -> None:
    loop = Pkcs11Loop(fake)
    items = column([b""] * 16384)
    sealed, codes = loop.gcm(1, 2, items, column([b""]), encrypting=True, ivs=bytes(12 * 16384))
    assert codes == [0] * 16384
    assert loop.gcm(1, 2, sealed, column([b""]), encrypting=False) == (items, codes)
    assert len(MALFORMED["one item over the limit"]) > 65536
    with pytest.raises(ValueError, match="at most 16384 items and 1 GiB"):
        loop.gcm(1, 2, MALFORMED["one item over the limit"], column([b""]), encrypting=False)


def test_the_adapter_has_its_place() -> None:
    for faults in (False, True):
        assert Path(hsmux_native.adapter_path(faults=faults)).exists()
