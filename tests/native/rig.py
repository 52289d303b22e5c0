"""Tokens behind the fault-injecting adapter, and scripts that use them in processes of their own.

A module is initialised once in a process and is never forked, so a test that needs one runs a
script and compares the lines that it says.
"""

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hsmux_native
from hsmux_native.faults import Counters, write_rules

SOFTHSM = "/usr/lib/softhsm/libsofthsm2.so"
SOFTOKN = "/usr/lib/x86_64-linux-gnu/libsoftokn3.so"
PIN = "1234"
TIMEOUT_S = 60

# What every script starts with. `outcome` names how a call ended.
PRELUDE = """
import os, sys, threading, time
import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass
from hsmux_native.faults import Counters, write_rules

RULES, ADAPTER = os.environ.get("HSMUX_ADAPTER_RULES"), os.environ["ADAPTER"]
TOKEN, PIN = os.environ["TOKEN"], os.environ["PIN"]
counters = Counters(os.environ.get("HSMUX_ADAPTER_COUNTERS", ""))

def say(*words):
    print(*words, flush=True)

def outcome(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except pkcs11.PKCS11Error as error:
        return type(error).__name__
    return "ok"

def load():
    return pkcs11.lib(ADAPTER)

def open_session():
    return load().get_token(token_label=TOKEN).open(user_pin=PIN, rw=True)

def make_key(session, label="k", value=bytes(32), token=False):
    return session.create_object({
        Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.KEY_TYPE: KeyType.AES,
        Attribute.VALUE: value, Attribute.LABEL: label, Attribute.ID: label.encode(),
        Attribute.TOKEN: token, Attribute.ENCRYPT: True, Attribute.DECRYPT: True,
    })

def ecb(key, size=16):
    return key.encrypt(bytes(size), mechanism=Mechanism.AES_ECB)
"""


class Rig:
    """A token, rules, and counters, for processes that go through the adapter.

    Args:
        directory: For the rules and the counters.
        token: The token's label.
        environment: What the module needs.
    """

    def __init__(self, directory: Path, token: str, environment: dict[str, str]) -> None:
        self.rules = directory / "rules"
        self.counters = Counters(directory / "counters")
        inherited = {n: v for n, v in os.environ.items() if not n.startswith("HSMUX_")}
        self.environment = {
            **inherited,
            **environment,
            "HSMUX_ADAPTER_RULES": str(self.rules),
            "HSMUX_ADAPTER_COUNTERS": str(directory / "counters"),
            "ADAPTER": hsmux_native.adapter_path(faults=True),
            "TOKEN": token,
            "PIN": PIN,
        }
        write_rules(self.rules)

    def command(self, script: str) -> list[str]:
        """What runs a script."""
        return [sys.executable, "-c", PRELUDE + textwrap.dedent(script)]

    def run(self, script: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        """Run a script to its end, whatever that is."""
        return subprocess.run(
            self.command(script),
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )

    def output(self, script: str, **environment: str) -> list[str]:
        """The lines of a script that ends well."""
        done = self.run(script, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    @contextmanager
    def running(
        self, script: str, *, pass_fds: tuple[int, ...] = ()
    ) -> Iterator["subprocess.Popen[str]"]:
        """A script that is ended with the block."""
        pipe = subprocess.PIPE
        command = self.command(script)
        with subprocess.Popen(
            command, env=self.environment, stdin=pipe, stdout=pipe, text=True, pass_fds=pass_fds
        ) as process:
            try:
                yield process
            finally:
                process.kill()


def said(process: "subprocess.Popen[str]") -> str:
    """The next line of a running script."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def make_softhsm(directory: Path) -> Rig:
    """A new SoftHSM token."""
    (directory / "tokens").mkdir()
    conf = directory / "softhsm2.conf"
    conf.write_text(f"directories.tokendir = {directory / 'tokens'}\nlog.level = ERROR\n")
    environment = {"SOFTHSM2_CONF": str(conf), "HSMUX_ADAPTER_MODULE": SOFTHSM}
    command = f"softhsm2-util --init-token --free --label t --pin {PIN} --so-pin {PIN}"
    subprocess.run(
        command.split(), env={**os.environ, **environment}, check=True, capture_output=True
    )
    return Rig(directory, "t", environment)


def make_softokn(directory: Path) -> Rig:
    """A new database of NSS softokn."""
    database, pin = directory / "nss", directory / "nss.pin"
    database.mkdir()
    pin.touch(mode=0o600)
    pin.write_text(PIN + "\n")
    command = ["certutil", "-N", "-d", f"sql:{database}", "-f", str(pin)]
    subprocess.run(command, check=True, capture_output=True)
    parameters = f"configdir='sql:{database}' certPrefix='' keyPrefix='' secmod='secmod.db' flags="
    environment = {"HSMUX_ADAPTER_MODULE": SOFTOKN, "HSMUX_ADAPTER_PARAMETERS": parameters}
    return Rig(directory, "NSS Certificate DB", environment)
