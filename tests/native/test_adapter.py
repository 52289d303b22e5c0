"""The PKCS#11 adapter and its fault injection, before real modules in processes of their own."""

import re
import signal
import subprocess
import textwrap
from pathlib import Path

import pytest

import hsmux_native
from hsmux_native.faults import FUNCTIONS, write_rules

from .rig import Rig, make_softokn, said

SOURCES = Path(__file__).parents[2] / "native" / "adapter"


# ---- The plain adapter


def test_the_table_of_functions_is_that_of_the_header() -> None:
    header = (SOURCES / "pkcs11.h").read_text()
    assert tuple(re.findall(r"^    X\((C_\w+),", header, re.MULTILINE)) == FUNCTIONS


def test_every_key_and_action_is_documented() -> None:
    rules = (SOURCES / "rules.c").read_text()
    keys = re.findall(r"\[KEY_\w+\] = \{\"(\w+)\"", rules)
    actions = re.findall(r"\{\"(\w+)\", ACTION_", rules)
    assert "sessions_max" in keys and "flip" in actions
    document = (SOURCES.parents[1] / "docs" / "fault-injection.md").read_text()
    rows = [line for line in document.splitlines() if line.startswith("|")]
    assert {*keys, *actions} <= set(re.findall(r"`(\w+)", "".join(rows)))


@pytest.mark.parametrize("faults", [False, True])
def test_one_function_is_exported(faults: bool) -> None:
    path = hsmux_native.adapter_path(faults=faults)
    done = subprocess.run(
        ["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True
    )
    assert [line.split()[-1] for line in done.stdout.splitlines()] == ["C_GetFunctionList"]


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("", "HSMUX_ADAPTER_MODULE is not set"),
        ("/nonexistent/module.so", "HSMUX_ADAPTER_MODULE: /nonexistent/module.so: cannot open"),
        ("libc.so.6", "it is not a PKCS#11 module"),
        (hsmux_native.adapter_path(), "is the adapter"),
    ],
)
def test_a_module_that_cannot_be_loaded_is_named(plain: Rig, module: str, text: str) -> None:
    done = plain.run("say(outcome(load))", HSMUX_ADAPTER_MODULE=module)
    assert done.stdout == "GeneralError\n"
    (line,) = done.stderr.splitlines()
    assert line.startswith("hsmux adapter: ") and text in line


def test_two_threads_through_the_plain_adapter(plain: Rig) -> None:
    # The same without the adapter crashes or fails in most runs: C_Initialize(NULL).
    script = """
        session = open_session()
        done = []
        def work():
            with session.token.open(rw=True) as own:
                key = make_key(own)
                done.append({ecb(key) for _ in range(5000)})
        threads = [threading.Thread(target=work) for _ in range(2)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        say(len(done), len(set.union(*done)))
    """
    assert plain.output(script) == ["2 1"]


@pytest.mark.parametrize("faults", [False, True])
def test_a_forked_child_is_refused(rig: Rig, faults: bool) -> None:
    script = """
        session = open_session()
        child = os.fork()
        if child == 0:
            for call in (lambda: session.generate_random(64), session.token.open):
                try:
                    call()
                except pkcs11.PKCS11Error as error:
                    say("not initialized" in str(error))
            os._exit(0)
        os.waitpid(child, 0)
        say(outcome(session.generate_random, 64))
    """
    lines = rig.output(script, ADAPTER=hsmux_native.adapter_path(faults=faults))
    assert lines == ["True", "True", "ok"]


def test_a_fork_before_initialisation_is_harmless(plain: Rig) -> None:
    script = """
        import ctypes
        functions = ctypes.CDLL(ADAPTER)
        assert functions.C_GetFunctionList(ctypes.byref(ctypes.c_void_p())) == 0
        child = os.fork()
        if child:
            # One after the other: SoftHSM's C_Login rewrites the token's file in place.
            os.waitpid(child, 0)
        say(outcome(lambda: open_session().generate_random(64)))
    """
    assert plain.output(script) == ["ok", "ok"]


def test_the_module_can_be_initialised_again(plain: Rig) -> None:
    script = """
        library = load()
        for _ in range(3):
            say(outcome(lambda: open_session().generate_random(64)))
            library.reinitialize()
    """
    assert plain.output(script) == ["ok"] * 3


def test_nss_gets_its_parameters(tmp_path: Path) -> None:
    softokn = make_softokn(tmp_path)
    script = """
        library = load()
        say(sorted(token.label for token in library.get_tokens()))
        token = library.get_token(token_label=TOKEN)
        say(outcome(token.open, user_pin="wrong"))
        with token.open(user_pin=PIN) as session:
            say(len(session.generate_random(256)))
    """
    assert softokn.output(script, ADAPTER=hsmux_native.adapter_path()) == [
        "['NSS Certificate DB', 'NSS Generic Crypto Services']",
        "PinIncorrect",
        "32",
    ]


# ---- Rules

ENCRYPT_FIVE = """
    session = open_session()
    key = make_key(session)
    say(*[outcome(ecb, key) for _ in range(5)])
"""


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("", "ok ok ok ok ok"),
        ("# nothing", "ok ok ok ok ok"),
        ("function=C_EncryptInit action=return code=0x30", " ".join(["DeviceError"] * 5)),
        (
            "function=C_EncryptInit skip=1 count=2 action=return code=CKR_DEVICE_ERROR # twice",
            "ok DeviceError DeviceError ok ok",
        ),
        ("function=C_EncryptInit count=0 action=return code=CKR_DEVICE_ERROR", "ok ok ok ok ok"),
        (
            "function=C_EncryptInit skip=4 action=return code=CKR_FUNCTION_FAILED when=before",
            "ok ok ok ok FunctionFailed",
        ),
        (
            "function=C_EncryptInit skip=3 count=1 action=return code=CKR_HOST_MEMORY when=after",
            "ok ok ok HostMemory OperationActive",
        ),
        (
            "function=C_EncryptInit mechanism=CKM_AES_ECB count=1 action=return code=0x30",
            "DeviceError ok ok ok ok",
        ),
        (
            "function=C_Encrypt mechanism=0x1081 count=1 action=return code=0x30",
            "DeviceError OperationActive OperationActive OperationActive OperationActive",
        ),
        ("function=C_EncryptInit mechanism=CKM_AES_GCM action=return code=0x30", "ok " * 5),
        ("function=C_EncryptInit action=return code=0x30 min_size=1", "ok " * 5),
        ("function=C_Encrypt action=return code=0x30 min_size=17", "ok " * 5),
        ("function=C_Sign action=hang", "ok " * 5),
    ],
)
def test_which_calls_a_rule_meets(rig: Rig, rule: str, expected: str) -> None:
    write_rules(rig.rules, rule)
    assert rig.output(ENCRYPT_FIVE) == [expected.strip()]


def test_the_first_rule_that_is_due_wins(rig: Rig) -> None:
    write_rules(
        rig.rules,
        "function=C_EncryptInit count=1 action=return code=CKR_DEVICE_ERROR",
        "function=* mechanism=CKM_AES_ECB count=1 action=return code=CKR_DEVICE_MEMORY",
    )
    assert rig.output(ENCRYPT_FIVE) == ["DeviceError DeviceMemory ok ok ok"]


def test_min_size_is_of_the_input(rig: Rig) -> None:
    write_rules(rig.rules, "function=C_Encrypt min_size=32 action=return code=CKR_DEVICE_ERROR")
    script = """
        session = open_session()
        key = make_key(session)
        say(outcome(ecb, key, 16), outcome(ecb, key, 32))
    """
    assert rig.output(script) == ["ok DeviceError"]


def test_rules_are_read_again_and_count_anew(rig: Rig) -> None:
    script = """
        session = open_session()
        for code in ("CKR_DEVICE_ERROR", "CKR_DEVICE_MEMORY", "CKR_DEVICE_MEMORY"):
            rule = f"function=C_GenerateRandom count=1 action=return code={code}"
            write_rules(RULES, rule)
            say(*[outcome(session.generate_random, 64) for _ in range(2)])
        write_rules(RULES)
        say(outcome(session.generate_random, 64))
    """
    assert rig.output(script) == ["DeviceError ok", "DeviceMemory ok", "DeviceMemory ok", "ok"]


def test_an_answer_that_is_lost_leaves_what_was_done(rig: Rig) -> None:
    write_rules(rig.rules, "function=C_CreateObject when=after action=return code=CKR_DEVICE_ERROR")
    script = """
        session = open_session()
        say(outcome(make_key, session), len(list(session.get_objects())))
    """
    assert rig.output(script) == ["DeviceError 1"]
    write_rules(rig.rules, "function=C_CreateObject action=return code=CKR_DEVICE_ERROR")
    assert rig.output(script) == ["DeviceError 0"]


def test_flip_changes_one_bit_of_the_output(rig: Rig) -> None:
    script = """
        session = open_session()
        key = make_key(session)
        plain, sealed = bytes(16), ecb(key)
        write_rules(RULES, "function=C_Encrypt action=flip bit=9",
                    "function=C_Decrypt action=flip bit=127")
        flipped = ecb(key)
        opened = key.decrypt(sealed, mechanism=Mechanism.AES_ECB)
        for wrong, right in ((flipped, sealed), (opened, plain)):
            difference = [a ^ b for a, b in zip(wrong, right, strict=True)]
            say([(i, d) for i, d in enumerate(difference) if d])
        write_rules(RULES)
        say(ecb(key) == sealed)
    """
    assert rig.output(script) == ["[(1, 2)]", "[(15, 128)]", "True"]


def test_resize_changes_the_length_alone(rig: Rig) -> None:
    script = """
        session = open_session()
        key = make_key(session)
        sealed = ecb(key, 32)
        write_rules(RULES, "function=C_Encrypt skip=1 count=1 action=resize size=20")
        say(ecb(key, 32) == sealed, ecb(key, 32) == sealed[:20], ecb(key, 32) == sealed)
    """
    assert rig.output(script) == ["True True True"]


def test_flip_makes_a_signature_invalid(rig: Rig) -> None:
    script = """
        session = open_session()
        public, private = session.generate_keypair(KeyType.RSA, 2048)
        rights = [private.sign(b"message", mechanism=Mechanism.SHA256_RSA_PKCS)]
        write_rules(RULES, "function=C_Sign action=flip bit=0")
        rights.append(private.sign(b"message", mechanism=Mechanism.SHA256_RSA_PKCS))
        for signature in rights:
            say(public.verify(b"message", signature, mechanism=Mechanism.SHA256_RSA_PKCS))
    """
    assert rig.output(script) == ["True", "False"]


@pytest.mark.parametrize(
    "rule",
    ["function=C_GenerateRandom skip=4 action=sleep ms=200", "function=* action=latency ms=40"],
)
def test_time_is_taken(rig: Rig, rule: str) -> None:
    script = f"""
        session = open_session()
        write_rules(RULES, {rule!r})
        start = time.monotonic()
        for _ in range(5):
            session.generate_random(64)
        say(time.monotonic() - start >= 0.2)
    """
    assert rig.output(script) == ["True"]


def test_latency_adds_to_a_fault(rig: Rig) -> None:
    script = """
        session = open_session()
        write_rules(RULES, "function=C_GenerateRandom action=latency ms=100",
                    "function=C_GenerateRandom action=return code=CKR_DEVICE_ERROR")
        start = time.monotonic()
        say(outcome(session.generate_random, 64), time.monotonic() - start >= 0.1)
    """
    assert rig.output(script) == ["DeviceError True"]


@pytest.mark.parametrize(
    ("action", "status"), [("segv", -signal.SIGSEGV), ("exit status=42", 42), ("exit status=0", 0)]
)
def test_the_process_ends(rig: Rig, action: str, status: int) -> None:
    write_rules(rig.rules, f"function=C_Encrypt action={action}")
    done = rig.run(f"say('before')\n{textwrap.dedent(ENCRYPT_FIVE)}\nsay('behind')")
    assert (done.returncode, done.stdout) == (status, "before\n")
    assert rig.counters.faults("C_Encrypt") == 1


def test_hang_holds_the_call_and_nothing_else(rig: Rig) -> None:
    script = """
        session = open_session()
        key = make_key(session)
        other = session.token.open()
        threading.Thread(target=ecb, args=(key,), daemon=True).start()
        while not counters.faults("C_Encrypt"):
            time.sleep(0.001)
        say(outcome(other.generate_random, 64))
        ecb(key)
        say("behind")
    """
    write_rules(
        rig.rules,
        "function=C_Encrypt count=1 action=hang",
        "function=C_EncryptInit skip=1 action=hang",
    )
    with rig.running(script) as process:
        assert said(process) == "ok"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.3)
    assert rig.counters.faults("C_Encrypt") == 1


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("function=C_Encrypt", "function or action is missing"),
        ("action=hang", "function or action is missing"),
        ("function=C_Nothing action=hang", "bad value of function; write a PKCS#11 function"),
        ("function=0 action=hang", "bad value of function"),
        ("function=C_Encrypt action=explode", "bad value of action; write return, sleep"),
        ("function=C_Encrypt action=return", "the action needs code"),
        ("function=C_Encrypt action=return code=CKR_NOTHING", "bad value of code"),
        ("function=C_Encrypt action=return code=-1", "bad value of code"),
        ("function=C_Encrypt action=return code=0x100000000", "bad value of code"),
        ("function=C_Encrypt action=sleep ms=", "bad value of ms; write milliseconds"),
        ("function=C_Encrypt action=sleep ms=1.5", "bad value of ms"),
        ("function=C_Encrypt action=exit status=256", "bad value of status"),
        ("function=C_Encrypt action=hang ms=3", "a key that is not for this action"),
        ("function=C_Encrypt action=hang action=hang", "given twice: action"),
        ("function=C_Encrypt action=flip bit=0 when=before", "changes the output"),
        ("function=C_Encrypt action=resize size=0 when=before", "changes the output"),
        ("function=C_Encrypt action=resize", "the action needs size"),
        ("function=C_Encrypt action=hang when=never", "bad value of when; write before or after"),
        ("function=C_Encrypt action=hang renumber=on", "a key that is not for this action"),
        ("renumber=1", "bad value of renumber; write on or off"),
        ("renumber=on renumber=off", "given twice: renumber"),
        ("frobnicate=1", "unknown key frobnicate"),
        ("function", "no value in function; write key=value"),
        ("x" * 70000, "too long or binary"),
        ("\0", "too long or binary"),
    ],
)
def test_a_mistake_closes_everything(rig: Rig, line: str, text: str) -> None:
    write_rules(rig.rules, "sessions_max=9", line)
    done = rig.run("say(outcome(load), outcome(load))")
    assert done.stdout == "GeneralError GeneralError\n"
    (complaint,) = done.stderr.splitlines()
    assert str(rig.rules) in complaint and text in complaint and "; write " in complaint
    assert " line 2: " in complaint or "too long" in text


def test_a_mistake_can_be_mended_while_running(rig: Rig) -> None:
    script = """
        session = open_session()
        for line in ("nonsense", "", "nonsense"):
            write_rules(RULES, line)
            say(outcome(session.generate_random, 64))
        os.unlink(RULES)
        say(outcome(session.generate_random, 64), outcome(session.generate_random, 64))
        write_rules(RULES)
        say(outcome(session.generate_random, 64))
    """
    done = rig.run(script)
    expected = ["GeneralError", "ok", "GeneralError", "GeneralError GeneralError", "ok"]
    assert done.stdout.splitlines() == expected
    assert [line.split(" line ")[1][:12] for line in done.stderr.splitlines()] == [
        "1: no value ",
        "1: no value ",
        "1: cannot be",
    ]


# ---- Counters


def test_calls_are_counted_over_processes(rig: Rig) -> None:
    assert rig.counters.count("C_Login") == 0
    write_rules(rig.rules, "function=C_Login skip=2 count=1 action=return code=CKR_PIN_LOCKED")
    script = "say(outcome(open_session))"
    lines = [rig.output(script)[0] for _ in range(4)]
    assert lines == ["ok", "ok", "PinLocked", "ok"]
    assert (rig.counters.count("C_Login"), rig.counters.faults("C_Login")) == (4, 1)
    assert rig.counters.count("C_Initialize") == 4
    with pytest.raises(ValueError, match="not a function"):
        rig.counters.count("C_Nothing")


def test_without_counters_a_process_counts_alone(rig: Rig) -> None:
    del rig.environment["HSMUX_ADAPTER_COUNTERS"]
    write_rules(rig.rules, "function=C_Login skip=1 action=return code=CKR_PIN_LOCKED")
    script = """
        say(outcome(open_session))
        load().reinitialize()
        say(outcome(open_session))
    """
    assert rig.output(script) == ["ok", "PinLocked"]


def test_a_file_that_is_not_of_counters_closes_everything(rig: Rig, tmp_path: Path) -> None:
    path = tmp_path / "counters"
    # As it is for a moment when the adapter makes it.
    for size in (0, 20480):
        path.write_bytes(bytes(size))
        assert rig.counters.count("C_Login") == 0
    path.write_bytes(b"something else" * 2000)
    done = rig.run("say(outcome(load))")
    assert done.stdout == "GeneralError\n"
    assert "HSMUX_ADAPTER_COUNTERS" in done.stderr and len(done.stderr.splitlines()) == 1
    with pytest.raises(ValueError, match="not a file of the adapter"):
        rig.counters.count("C_Login")


# ---- Simulated devices


def test_sessions_are_limited_over_processes(rig: Rig) -> None:
    write_rules(rig.rules, "sessions_max=3")
    hold_two = """
        sessions = [open_session() for _ in range(1)]
        sessions.append(sessions[0].token.open())
        say("open")
        input()
    """
    count = """
        token = load().get_token(token_label=TOKEN)
        opened = []
        say(*[outcome(lambda: opened.append(token.open())) for _ in range(4)])
        opened.pop().close()
        say(outcome(token.open))
    """
    assert rig.output(count) == ["ok ok ok SessionCount", "ok"]
    with rig.running(hold_two) as process:
        assert said(process) == "open"
        assert rig.output(count) == ["ok SessionCount SessionCount SessionCount", "ok"]
    # The holder was killed; nobody closed its sessions.
    assert rig.output(count) == ["ok ok ok SessionCount", "ok"]


def test_all_sessions_are_given_back(rig: Rig) -> None:
    write_rules(rig.rules, "sessions_max=1")
    script = """
        library = load()
        for _ in range(3):
            token = library.get_token(token_label=TOKEN)
            say(outcome(token.open), outcome(token.open))
            library.reinitialize()
    """
    assert rig.output(script) == ["ok SessionCount"] * 3


def test_handles_name_other_objects_after_initialising_again(rig: Rig) -> None:
    # A key's value is its label's first letter 32 times, so what it encrypts tells which it is.
    script = """
        library = load()
        session = open_session()
        labels = ["a", "b", "c"]
        made = {
            label: make_key(session, label, label.encode() * 32, token=True) for label in labels
        }
        sealed = {label: ecb(made[label]) for label in labels}
        handles = [{label: made[label].handle for label in labels}]
        for _ in range(3):
            library.reinitialize()
            session = open_session()
            now = {}
            for label in labels:
                (key,) = session.get_objects({Attribute.LABEL: label})
                assert ecb(key) == sealed[label]
                now[label] = key.handle
            handles.append(now)
        for old, new in zip(handles, handles[1:]):
            say(sorted(old.values()) == sorted(new.values()),
                sum(old[label] == new[label] for label in labels))
    """
    write_rules(rig.rules, "renumber=on")
    assert rig.output(script) == ["True 0"] * 3


def test_a_number_of_a_destroyed_object_names_none(rig: Rig) -> None:
    script = """
        from hsmux_native.pkcs11 import Pkcs11Loop
        session = open_session()
        first, second = make_key(session, "a"), make_key(session, "b")
        loop = Pkcs11Loop(ADAPTER)
        column = (1).to_bytes(4, "big") + bytes(4) + (1).to_bytes(4, "big") + b"x"
        def encrypt(key):
            options = {"encrypting": True, "ivs": bytes(12)}
            return hex(loop.gcm(session.handle, key, column, column, **options)[1][0])
        numbers = first.handle, second.handle
        say(*map(encrypt, numbers))
        first.destroy()
        say(*map(encrypt, numbers), len(list(session.get_objects())))
    """
    write_rules(rig.rules, "renumber=on")
    assert rig.output(script) == ["0x0 0x0", "0x60 0x0 1"]


def test_a_lone_object_gets_a_new_number(rig: Rig) -> None:
    script = """
        library = load()
        session = open_session()
        old = make_key(session, token=True).handle
        library.reinitialize()
        (key,) = open_session().get_objects()
        say(key.handle != old, len(ecb(key)))
    """
    write_rules(rig.rules, "renumber=on")
    assert rig.output(script) == ["True 16"]


def test_a_removed_token_takes_its_sessions_with_it(rig: Rig) -> None:
    script = """
        library = load()
        session = open_session()
        token = session.token
        write_rules(RULES, "token_removed=on")
        say(outcome(session.generate_random, 64), outcome(token.open))
        say(len(library.get_slots(token_present=True)), len(library.get_slots()) > 0)
        write_rules(RULES)
        say(outcome(session.generate_random, 64), outcome(open_session))
    """
    assert rig.output(script) == [
        "DeviceRemoved TokenNotPresent",
        "0 True",
        "SessionHandleInvalid ok",
    ]


def test_idle_sessions_are_closed(rig: Rig) -> None:
    script = """
        session = open_session()
        write_rules(RULES, "idle_timeout_ms=600000")
        time.sleep(0.03)
        say(outcome(session.generate_random, 64))
        write_rules(RULES, "idle_timeout_ms=10")
        time.sleep(0.03)
        say(outcome(session.generate_random, 64))
        write_rules(RULES)
        say(outcome(session.generate_random, 64))
    """
    assert rig.output(script) == ["ok", "SessionHandleInvalid", "SessionHandleInvalid"]


def test_two_threads_at_once_are_detected(rig: Rig) -> None:
    script = """
        session = open_session()
        token = session.token
        other = token.open()
        say(outcome(other.generate_random, 64))
        write_rules(RULES, "single_thread=on", "function=C_SeedRandom count=1 action=hang")
        threading.Thread(target=session.seed_random, args=(b"seed",), daemon=True).start()
        while not counters.faults("C_SeedRandom"):
            time.sleep(0.001)
        say(outcome(other.generate_random, 64))
        os._exit(0)
    """
    write_rules(rig.rules, "single_thread=on")
    done = rig.run(script)
    assert (done.stdout, done.returncode) == ("ok\nGeneralError\n", 0)
    assert "C_GenerateRandom was called while C_SeedRandom runs" in done.stderr
    assert rig.counters.faults("C_GenerateRandom") == 1


def test_the_device_makes_its_own_ivs(rig: Rig) -> None:
    # The loop refuses an IV that the module changed, and says so with a code of its own.
    script = """
        from hsmux_native.pkcs11 import BAD_OUTPUT, Pkcs11Loop
        session = open_session()
        key = make_key(session)
        loop = Pkcs11Loop(ADAPTER)
        column = (1).to_bytes(4, "big") + bytes(4) + (1).to_bytes(4, "big") + b"x"
        for ivs in (b"i" * 12, bytes(12)):
            _, codes = loop.gcm(
                session.handle, key.handle, column, column, encrypting=True, ivs=ivs
            )
            say(*["changed" if code == BAD_OUTPUT else hex(code) for code in codes])
    """
    assert rig.output(script) == ["0x0", "0x0"]
    write_rules(rig.rules, "iv=written-back")
    assert rig.output(script) == ["0x71", "changed"]
