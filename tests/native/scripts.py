"""Python scripts in processes of their own, for what must not happen to the tests' process."""

import os
import subprocess
import sys
import textwrap

TIMEOUT_S = 60

PRELUDE = """
import ctypes, os, resource, sys
import hsmux_native
from hsmux_native import Arena, NativeError
from hsmux_native.pkcs11 import SecretPage
from tests.native.mappings import mappings, new_mappings

def say(*words):
    print(*words, flush=True)

def outcome(function, *arguments, **options):
    try:
        return function(*arguments, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def in_child(function):
    # How a forked child ends: its exit status, or minus the signal.
    child = os.fork()
    if child == 0:
        try:
            os._exit(function() or 0)
        finally:
            os._exit(70)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""


def command(script: str) -> list[str]:
    """What runs a script."""
    return [sys.executable, "-c", PRELUDE + textwrap.dedent(script)]


def environment(**more: str) -> dict[str, str]:
    """This process's environment without the product's variables, and more."""
    return {n: v for n, v in os.environ.items() if not n.startswith("HSMUX_")} | more


def run(script: str, *before: str, **more: str) -> "subprocess.CompletedProcess[str]":
    """Run a script to its end.

    Args:
        script: What follows the prelude.
        before: A program that runs the script, and its arguments.
        more: Environment variables.
    """
    return subprocess.run(
        [*before, *command(script)],
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


def output(script: str, *before: str, **more: str) -> list[str]:
    """The lines of a script that ends well."""
    done = run(script, *before, **more)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
