"""The table of verbs against the operations, the code and the help."""

import os
import re
import shlex
import subprocess
import sys

import click
import pytest

from hsmux.profiles import Profile, profiles_path, save_profile
from hsmux_protocol.operations import OPERATIONS
from hsmux_tools.main import command
from hsmux_tools.settings import Settings, Verb
from hsmux_tools.table import GROUPS, VERBS, Entry, LazyGroup

from .conftest import Run

STAGE = (
    *("init", "serve", "check-config", "dev", "status", "encrypt", "decrypt", "sign", "verify"),
    *("random", "inspect", "access-point create", "access-point list", "client-key create"),
    *("client-key list", "client-key revoke", "key create", "key list", "key show", "key public"),
    *("hsm probe", "hsm init-token", "hsm clear-pin", "profile add", "profile list"),
    *("profile use", "profile show", "completion bash", "completion zsh", "completion fish"),
    *("audit tail", "audit verify", "audit export", "audit match"),
)
"""What users and documents count on."""


def verb_of(entry: Entry) -> Verb:
    group: click.Group = command()
    context = click.Context(group)
    *names, last = entry.path.split()
    for name in names:
        found = group.get_command(context, name)
        assert isinstance(found, LazyGroup)
        group = found
    verb = group.get_command(context, last)
    assert isinstance(verb, Verb)
    return verb


def words_after_hsmux(example: str) -> list[str]:
    """The words of the command in an example line, without pipes, redirections and others."""
    parts = re.split(r"\||&&", example)
    (segment,) = [part for part in parts if part.strip().startswith("hsmux ")]
    words = shlex.split(segment.partition(" > ")[0].partition(" < ")[0])
    return words[1:]


def test_each_operation_with_a_verb_has_it() -> None:
    named = {operation.command for operation in OPERATIONS.values() if operation.command}
    assert named and named <= VERBS.keys()


def test_documented_verbs_are_there() -> None:
    assert set(STAGE) <= VERBS.keys()


@pytest.mark.parametrize("entry", VERBS.values(), ids=lambda entry: entry.path)
def test_a_verb_is_what_the_table_says(entry: Entry) -> None:
    verb = verb_of(entry)
    assert verb.name == entry.path.split()[-1]
    assert verb.help is not None
    assert verb.help.splitlines()[0] == entry.summary


@pytest.mark.parametrize("entry", VERBS.values(), ids=lambda entry: entry.path)
def test_help_has_examples_that_parse(entry: Entry, run: Run) -> None:
    path = entry.path.split()
    shown = run(*path, "--help")
    assert shown.exit_code == 0
    verb = verb_of(entry)
    assert verb.examples
    for example in verb.examples:
        assert f"  {example}\n" in shown.stdout
        words = words_after_hsmux(example)
        assert words[: len(path)] == path
        verb.make_context(entry.path, words[len(path) :], obj=Settings())


def test_each_group_is_used_and_described(run: Run) -> None:
    assert GROUPS.keys() == {path.split()[0] for path in VERBS if " " in path}
    for name, line in GROUPS.items():
        shown = run(name, "--help").stdout
        assert line in shown
        assert all(path.split()[1] in shown for path in VERBS if path.startswith(f"{name} "))


def test_help_imports_no_verb_and_nothing_heavy() -> None:
    program = (
        "import sys; from hsmux_tools.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print('\\n'.join(sys.modules), file=sys.stderr)"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    loaded = set(shown.stderr.split())
    assert "click" in loaded and "hsmux_tools.table" in loaded
    heavy = {"rich", "trio", "msgpack", "ssl", "asyncio", "cryptography", "cffi", "hsmux_gateway"}
    assert not {name for name in loaded if name.split(".")[0] in heavy | {"hsmux_native", "hsmux"}}
    assert not {name for name in loaded if name.startswith("hsmux_tools.verbs")}


@pytest.mark.parametrize(
    "typed, offered",
    [
        (("hsmux", ""), {path.split()[0] for path in VERBS}),
        (("hsmux", "ke"), {"key"}),
        (("hsmux", "key", ""), {path.split()[1] for path in VERBS if path.startswith("key ")}),
        (("hsmux", "key", "create", "--spec", "EC"), {"EC_P256", "EC_P384"}),
        (("hsmux", "--prof"), {"--profile"}),
    ],
)
def test_completion_offers(typed: tuple[str, ...], offered: set[str]) -> None:
    assert completions(typed) == offered


@pytest.mark.parametrize(
    "typed",
    [
        ("hsmux", "--profile", "bil"),
        ("hsmux", "key", "list", "--profile", "bil"),
        ("hsmux", "profile", "use", "bil"),
        ("hsmux", "profile", "show", "bil"),
    ],
    ids=" ".join,
)
def test_completion_offers_profiles(typed: tuple[str, ...]) -> None:
    assert completions(typed) == set()
    for name in ("billing", "billing-2", "other"):
        save_profile(name, Profile(("gw:7411",), "a.pem", "a.key", "ca.pem"))
    assert completions(typed) == {"billing", "billing-2"}
    profiles_path().write_text("nonsense")
    assert completions(typed) == set()


def completions(typed: tuple[str, ...]) -> set[str]:
    """What bash would offer."""
    environment = {
        **os.environ,
        "_HSMUX_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(typed),
        "COMP_CWORD": str(len(typed) - 1),
    }
    line = [sys.executable, "-m", "hsmux_tools.main"]
    shown = subprocess.run(line, capture_output=True, text=True, env=environment, check=True)
    return {item.removeprefix("plain,") for item in shown.stdout.split()}
