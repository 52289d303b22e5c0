"""Errors become one line and an exit code, whatever fails."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from hsmux_gateway import errors
from hsmux_gateway.config import EXIT_CONFIGURATION
from hsmux_gateway.errors import OperatorError
from hsmux_protocol.errors import ERRORS, Busy, HsmuxError
from hsmux_tools.failure import (
    EXIT_CODES,
    EXIT_CONFLICT,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OPERATOR,
    EXIT_USAGE,
    visible,
)

from .conftest import Run
from .twin import Deployment

FAMILIES = {
    **{"argument": 2, "not-found": 3, "denied": 4, "unauthenticated": 4, "busy": 5, "deadline": 5},
    **{"unavailable": 5, "conflict": 6, "state": 6, "integrity": 7, "protocol": 1},
    **{"outcome-unknown": 1, "internal": 1},
}
"""By family, as the help says it."""


@pytest.mark.parametrize("error_type", ERRORS, ids=lambda error_type: error_type.__name__)
def test_a_typed_error_is_one_line_and_its_exit_code(
    error_type: type[HsmuxError], deployment: Deployment, run: Run
) -> None:
    deployment.failure = error_type("what it is (do this)", reference="req-7")
    result = run("key", "list")
    assert result.exit_code == FAMILIES[error_type.family]
    assert result.stdout == ""
    assert result.stderr == "hsmux: what it is (do this) (reference req-7)\n"


def test_every_exit_code_is_in_the_one_table(run: Run) -> None:
    named = {
        *(error_type.exit_code for error_type in ERRORS),
        *(value for name, value in vars(errors).items() if name.startswith("EXIT_")),
        EXIT_CONFIGURATION,
        *(EXIT_FAILED, EXIT_USAGE, EXIT_CONFLICT, EXIT_OPERATOR, EXIT_INTERRUPTED),
    }
    shown = " ".join(run("--help").stdout.split())
    for number, code in EXIT_CODES.items():
        assert f"{number} {code.short}" in shown
    assert {0, *named} == EXIT_CODES.keys()


def test_an_error_in_connecting_is_told_alike(
    deployment: Deployment, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(**arguments: object) -> None:
        raise Busy("come back later")

    monkeypatch.setattr(deployment, "connect", connect)
    result = run("status")
    assert (result.exit_code, result.stderr) == (5, "hsmux: come back later\n")


@pytest.mark.parametrize(
    "words",
    [
        ("nonsense",),
        ("key", "nonsense"),
        ("key", "create"),
        ("key", "create", "--spec", "DES"),
        ("encrypt",),
        ("encrypt", "alias/a", "-c", "novalue"),
        ("encrypt", "alias/a", "-c", "a=1", "-c", "a=2"),
        ("random", "0"),
        ("random", "5000"),
        ("random", "16", "--hex", "--base64"),
        ("key", "list", "--timeout", "0"),
        ("key", "list", "--timeout", "soon"),
        ("key", "list", "-o", "xml"),
        ("key", "list", "--profile"),
        ("--nonsense", "key", "list"),
        ("verify", "alias/a", "--algorithm", "ECDSA_SHA_256", "--signature", "-"),
        ("sign", "alias/a"),
        ("access-point", "update", "billing"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_line_and_2(
    words: tuple[str, ...], deployment: Deployment, run: Run
) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("hsmux: ") and result.stderr.count("\n") == 1
    assert "\\" not in result.stderr and "  " not in result.stderr
    assert deployment.calls == []


MEANT = [
    (("crypt",), "did you mean 'encrypt'?"),
    (("keys", "list"), "did you mean 'key'?"),
    (("acces-point", "list"), "did you mean 'access-point'?"),
    (("key", "crate"), "did you mean 'create'?"),
    (("key", "frobnicate"), "there are create, list, show, public."),
    (("migrate",), "there is `hsmux store migrate`."),
    (("xyzzy",), "No such command 'xyzzy'."),
]


@pytest.mark.parametrize(("words", "expected"), MEANT)
def test_a_misspelt_word_says_what_was_meant(
    words: tuple[str, ...], expected: str, run: Run
) -> None:
    result = run(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert expected in result.stderr and result.stderr.count("\n") == 1


def test_a_missing_word_shows_the_help_of_the_group(run: Run) -> None:
    result = run("key")
    assert result.exit_code == 2
    assert result.stdout == "" and "create" in result.stderr


def test_a_file_that_is_not_there_is_named(deployment: Deployment, run: Run) -> None:
    result = run("encrypt", "alias/a", "nowhere")
    assert (result.exit_code, result.stderr) == (2, "hsmux: nowhere: No such file or directory\n")


def test_a_fault_of_the_machine_is_1(deployment: Deployment, run: Run) -> None:
    deployment.failure = OSError(5, "Input/output error")
    result = run("key", "list")
    assert (result.exit_code, result.stderr) == (1, "hsmux: Input/output error\n")


def test_an_operator_must_act(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(config: object, *, accept_rollback: bool) -> None:
        raise OperatorError("PIN refused (run `hsmux hsm clear-pin`)")

    monkeypatch.setattr("hsmux_gateway.command.serve", serve)
    result = run("serve", "--config", "gw.toml")
    assert (result.exit_code, result.stdout) == (8, "")
    assert result.stderr == "hsmux: PIN refused (run `hsmux hsm clear-pin`)\n"


def test_a_rollback_is_accepted_only_when_asked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    accepted: list[bool] = []

    def serve(config: object, *, accept_rollback: bool) -> None:
        accepted.append(accept_rollback)

    monkeypatch.setattr("hsmux_gateway.command.serve", serve)
    assert run("serve", "--config", "gw.toml").exit_code == 0
    assert run("serve", "--config", "gw.toml", "--accept-rollback").exit_code == 0
    assert accepted == [False, True]


def test_interrupted(deployment: Deployment, run: Run) -> None:
    deployment.failure = KeyboardInterrupt()
    result = run("key", "list")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "\n")


def test_a_programming_error_is_not_hidden(deployment: Deployment, run: Run) -> None:
    deployment.failure = ZeroDivisionError()
    assert isinstance(run("key", "list").exception, ZeroDivisionError)


def test_a_reader_that_went_away_is_no_error() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    line = [sys.executable, "-m", "hsmux_tools.main", "profile", "list"]
    try:
        done = subprocess.run(line, stdout=theirs, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(theirs)
    assert (done.returncode, done.stderr) == (1, b"")


def test_no_control_character_reaches_the_terminal(deployment: Deployment, run: Run) -> None:
    deployment.failure = HsmuxError("a\x1b[2Jb\nc\udc80")
    assert run("key", "list").stderr == "hsmux: a\\x1b[2Jb\\nc\\udc80\n"
    assert visible("Grüße, 世界") == "Grüße, 世界"


@pytest.mark.parametrize(
    "words",
    [
        ("dev",),
        ("init", "--config", "gw.toml"),
        ("serve", "--config", "gw.toml"),
        ("check-config", "--config", "gw.toml"),
        ("hsm", "probe", "--config", "gw.toml"),
        ("hsm", "init-token", "--config", "gw.toml"),
        ("hsm", "clear-pin", "--config", "gw.toml"),
    ],
    ids=" ".join,
)
def test_without_the_gateway_its_verbs_say_what_to_install(
    words: tuple[str, ...], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "hsmux_gateway", None)
    result = run(*words)
    assert result.exit_code == 8
    assert result.stderr.startswith("hsmux: ") and "pip install hsmux-gateway" in result.stderr


def test_global_options_stand_before_or_behind_the_verb(deployment: Deployment, run: Run) -> None:
    before = run("--profile", "a", "--timeout", "2.5", "-o", "json", "key", "list")
    behind = run("key", "list", "--profile", "a", "--timeout", "2.5", "-o", "json")
    both = run("--profile", "b", "-o", "yaml", "key", "list", "--profile", "a", "-o", "json")
    assert before.stdout == behind.stdout == both.stdout == "[]\n"
    assert [connection["profile"] for connection in deployment.connections] == ["a", "a", "a"]
    assert deployment.connections[0]["timeout_s"] == 2.5
    assert deployment.calls == [("list_keys", 2.5), ("list_keys", 2.5), ("list_keys", None)]


def test_the_version(program: Callable[..., subprocess.CompletedProcess[bytes]]) -> None:
    done = program("--version")
    assert done.returncode == 0
    assert done.stdout.startswith(b"hsmux ") and done.stderr == b""
