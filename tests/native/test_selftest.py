"""The choice of a backend at import, and known-answer tests that can fail."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from hsmux_native import SelfTestFailed, self_test

from .conftest import BACKENDS

NAMES = self_test()


def start(program: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a program in a Python that has imported nothing."""
    inherited = {n: v for n, v in os.environ.items() if not n.startswith("HSMUX_")}
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


NAME_THE_BACKEND = "import hsmux_native; print(hsmux_native.backend())"


def last_line(done: "subprocess.CompletedProcess[str]") -> str:
    assert done.returncode == 1 and done.stdout == ""
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("wanted", BACKENDS)
def test_a_backend_can_be_demanded(wanted: str) -> None:
    done = start(NAME_THE_BACKEND, HSMUX_NATIVE_BACKEND=wanted)
    assert done.returncode == 0 and done.stdout.startswith(f"{wanted} ")


def test_the_fastest_is_chosen() -> None:
    fastest = "ipsec-mb" if platform.machine() == "x86_64" else "openssl"
    done = start(NAME_THE_BACKEND)
    assert done.stdout.startswith(f"{fastest} ")
    assert done.stdout == start(NAME_THE_BACKEND, HSMUX_NATIVE_BACKEND="").stdout


@pytest.mark.parametrize("wanted", ["nonsense", "OpenSSL", "ipsec-mb ", "\udcff"])
def test_an_unknown_backend_ends_the_start(wanted: str) -> None:
    line = last_line(start(NAME_THE_BACKEND, HSMUX_NATIVE_BACKEND=wanted))
    assert "SelfTestFailed" in line
    assert "HSMUX_NATIVE_BACKEND=" in line and "use openssl or ipsec-mb" in line


@pytest.mark.parametrize("wanted", ["", *BACKENDS])
@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_answer_ends_the_start(name: str, wanted: str) -> None:
    done = start(NAME_THE_BACKEND, HSMUX_NATIVE_BACKEND=wanted, HSMUX_NATIVE_CORRUPT_SELF_TEST=name)
    line = last_line(done)
    assert "SelfTestFailed" in line and f"({name})" in line


def run_command(*words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run the `hsmux` command."""
    return subprocess.run(
        [str(Path(sys.executable).with_name("hsmux")), *words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_answer_ends_the_start_of_a_gateway(name: str, tmp_path: Path) -> None:
    words = ("serve", "--config", str(tmp_path / "gateway.toml"))
    done = run_command(*words, HSMUX_NATIVE_CORRUPT_SELF_TEST=name)
    assert (done.returncode, done.stdout) == (8, "")
    (line,) = done.stderr.splitlines()
    assert "the gateway cannot be loaded" in line and f"({name})" in line


def test_a_test_that_there_is_not_cannot_be_corrupted() -> None:
    line = last_line(start(NAME_THE_BACKEND, HSMUX_NATIVE_CORRUPT_SELF_TEST="md5"))
    assert "HSMUX_NATIVE_CORRUPT_SELF_TEST=md5: one of " in line
    assert all(name in line for name in NAMES)
    assert start(NAME_THE_BACKEND, HSMUX_NATIVE_CORRUPT_SELF_TEST="").returncode == 0


def test_every_algorithm_has_its_test(backend: str) -> None:
    assert self_test() == NAMES
    assert set(NAMES) == {
        "aes-256",
        "aes-256-gcm-open",
        "aes-256-gcm-refuse",
        "aes-256-gcm-seal",
        "hmac-sha-256",
        "xaes-256-gcm",
    }


@pytest.mark.parametrize("name", NAMES)
def test_each_can_fail_and_is_named(backend: str, name: str) -> None:
    with pytest.raises(SelfTestFailed, match=f"known-answer test {name} failed on {backend} "):
        self_test(corrupt=name)
    assert self_test() == NAMES


def test_nothing_else_can_be_corrupted(backend: str) -> None:
    with pytest.raises(ValueError, match="md5: one of aes-256"):
        self_test(corrupt="md5")
