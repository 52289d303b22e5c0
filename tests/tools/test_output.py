"""The documented forms of results, on terminals, in pipes and in files."""

import dataclasses
import datetime
import json
import os
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from hsmux.profiles import Profile, profiles_path, save_profile
from hsmux_tools.output import record_of, show_list, show_record, write_file
from hsmux_tools.settings import Settings

from .conftest import Run
from .twin import Deployment

KEY_FIELDS = (
    *("key_id", "spec", "usage", "protection", "storage", "token", "state", "version"),
    *("aliases", "description", "tags", "created_at"),
)


@pytest.fixture
def key_id(deployment: Deployment) -> str:
    """A key with everything that is hard to print."""
    client = deployment.connect()
    key = client.create_key(
        spec="AES_256",
        usage="ENCRYPT_DECRYPT",
        alias="alias/first",
        description="tab\t, line\n, escape \x1b[1m, ä",
        tags={"team": "build"},
    )
    return key.key_id


def test_json_has_every_field_of_the_record(key_id: str, run: Run) -> None:
    shown = json.loads(run("key", "show", key_id, "-o", "json").stdout)
    assert tuple(shown) == KEY_FIELDS
    assert shown["key_id"] == key_id
    assert shown["aliases"] == ["alias/first"]
    assert shown["tags"] == {"team": "build"}
    assert shown["created_at"] == "2026-01-02T03:04:05Z"
    assert shown["description"] == "tab\t, line\n, escape \x1b[1m, ä"


def test_yaml_says_the_same_as_json(key_id: str, run: Run) -> None:
    as_json = json.loads(run("key", "list", "-o", "json").stdout)
    assert yaml.safe_load(run("key", "list", "-o", "yaml").stdout) == as_json
    assert len(as_json) == 1


def test_yaml_names_what_it_needs(key_id: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    result = run("key", "list", "-o", "yaml")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "hsmux-tools[yaml]" in result.stderr


def test_a_table_in_a_pipe_is_tab_separated_lines(key_id: str, run: Run) -> None:
    header, line = run("key", "list").stdout.splitlines()
    assert dict(zip(header.split("\t"), line.split("\t"), strict=True))["key_id"] == key_id


def test_a_record_in_a_pipe_is_a_line_a_field(key_id: str, run: Run) -> None:
    cells = dict(line.split("\t") for line in run("key", "show", key_id).stdout.splitlines())
    assert tuple(cells) == KEY_FIELDS
    assert cells["tags"] == "team=build"
    assert cells["description"] == "tab\\t, line\\n, escape \\x1b[1m, ä"


def test_a_list_in_a_pipe_has_a_header_even_when_empty(deployment: Deployment, run: Run) -> None:
    columns = "key_id\taliases\tspec\tprotection\tstate\tversion\tcreated_at\n"
    assert run("key", "list").stdout == columns


def test_a_field_is_a_line_each(key_id: str, deployment: Deployment, run: Run) -> None:
    assert run("key", "show", key_id, "--field", "aliases").stdout == "alias/first\n"
    assert run("key", "show", key_id, "--field", "key_id").stdout == f"{key_id}\n"
    deployment.keys *= 2
    assert run("key", "list", "--field", "key_id").stdout == f"{key_id}\n" * 2
    assert json.loads(run("key", "list", "--field", "version", "-o", "json").stdout) == [1, 1]


def test_a_field_that_is_not_there_names_those_that_are(key_id: str, run: Run) -> None:
    result = run("key", "show", key_id, "--field", "nonsense")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "nonsense" in result.stderr and "key_id, spec" in result.stderr


def test_truth_is_spelt_as_in_json(run: Run) -> None:
    for name in ("one", "two"):
        save_profile(name, Profile(("gw:7411",), "a.pem", "a.key", "ca.pem"))
    assert run("profile", "list", "--field", "default").stdout == "true\nfalse\n"
    lines = run("profile", "list").stdout.splitlines()
    assert [line.split("\t")[1] for line in lines] == ["default", "true", "false"]


def test_an_error_of_the_system_has_no_number(run: Run) -> None:
    profiles_path().mkdir(parents=True)
    result = run("profile", "list")
    assert result.exit_code == 2
    assert result.stderr == f"hsmux: {profiles_path()}: Is a directory; mend it or remove it\n"


def test_records_in_records(deployment: Deployment, run: Run) -> None:
    shown = json.loads(run("status", "-o", "json").stdout)
    assert shown["tokens"][0]["name"] == "main"
    result = run("status")
    assert "name=main,state=up,workers=2" in result.stdout
    assert result.stderr == "hsmux: warning: one root only\n"


def test_bytes_in_records(deployment: Deployment, run: Run) -> None:
    deployment.connect().create_client_key("billing")
    assert run("client-key", "list", "--field", "spki_sha256").stdout == "00" * 32 + "\n"
    random = json.loads(run("random", "3", "-o", "json").stdout)
    assert len(random["random"]) == 4


def test_times_are_in_utc() -> None:
    elsewhere = datetime.timezone(datetime.timedelta(hours=2))
    made = Deployment().connect().create_access_point("a")
    moved = record_of(
        dataclasses.replace(made, created_at=datetime.datetime(2026, 1, 2, 3, tzinfo=elsewhere))
    )
    assert moved["created_at"] == "2026-01-02T01:00:00Z"


def test_a_terminal_shows_a_table_that_cuts_nothing(
    on_terminal: Callable[..., tuple[int, str]],
) -> None:
    path = "/" + "/".join(["long"] * 40) + "/client.pem"
    save_profile("ops", Profile(("gw.example:7411",), path, path, path))
    code, shown = on_terminal("profile", "show", "ops")
    assert code == 0
    assert "field" in shown and "gw.example:7411" in shown and "\t" not in shown
    folded = "".join(line.split()[-1] for line in shown.splitlines() if "long" in line)
    assert folded.count("long") == 3 * 40


@pytest.mark.parametrize("columns", [40, 80, 100, 200])
def test_an_identifier_on_a_terminal_is_never_broken(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("hsmux_tools.output.is_terminal", lambda: True)
    key_id, digest = "key-" + "a" * 26, "0" * 64
    record = {
        "key_id": key_id,
        "aliases": ["alias/first", "alias/" + "s" * 40],
        "description": "some words that may stand below each other",
        "created_at": "2026-01-02T03:04:05Z",
        "spki_sha256": digest,
    }
    show_list([record, record], list(record), Settings())
    shown = capsys.readouterr().out
    assert shown.count(key_id) == shown.count(digest) == shown.count("2026-01-02T03:04:05Z") == 2
    show_record(record, Settings())
    shown = capsys.readouterr().out
    assert key_id in shown and digest in shown


@pytest.mark.parametrize(
    "words",
    [
        ("encrypt", "alias/a", "input"),
        ("sign", "alias/a", "input", "--algorithm", "ECDSA_SHA_256"),
        ("random", "16"),
        ("key", "public", "alias/a", "--der"),
    ],
    ids=lambda words: words[0],
)
def test_binary_is_not_written_onto_a_terminal(
    words: tuple[str, ...], tmp_path: Path, on_terminal: Callable[..., tuple[int, str]]
) -> None:
    (tmp_path / "input").write_bytes(b"x")
    code, shown = on_terminal(*words)
    # No profile is there: it is refused before anything is asked of a gateway.
    assert code == 2
    assert "--base64" in shown and "--out FILE" in shown
    assert ("--hex" in shown) == (words[0] == "random")
    help_of = " ".join(on_terminal(*words[: 2 if words[0] == "key" else 1], "--help")[1].split())
    assert all(option in help_of for option in re.findall(r"--[a-z0-9]+", shown))


def test_a_file_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(source: object, target: object) -> None:
        assert path.read_bytes() == b"old"
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="No space"):
            write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    write_file(path, b"new")
    assert path.read_bytes() == b"new"


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_permissions_of_files(tmp_path: Path) -> None:
    path = tmp_path / "file"
    mask = os.umask(0o027)
    try:
        write_file(path, b"")
        assert mode_of(path) == 0o640
        path.chmod(0o604)
        write_file(path, b"again")
        assert mode_of(path) == 0o604
        write_file(path, b"secret", secret=True)
        assert mode_of(path) == 0o600
    finally:
        os.umask(mask)


def test_a_link_stays_one_and_a_device_is_written_to(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("file")
    write_file(link, b"data")
    assert link.is_symlink() and (tmp_path / "file").read_bytes() == b"data"
    write_file(Path("/dev/null"), b"data")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_an_output_that_cannot_be_written_is_named(deployment: Deployment, run: Run) -> None:
    result = run("random", "8", "--out", "nowhere/file")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "hsmux: nowhere/file: No such file or directory\n"


@pytest.mark.parametrize("character", ["\u009b", "\u202e", "\u2028", "\u200b", "\x7f", "\x1b"])
def test_json_steers_no_terminal(run: Run, deployment: Deployment, character: str) -> None:
    description = f"a{character}b\u00e9"
    run("key", "create", "--spec", "AES_256", "--description", description)
    shown = run("key", "list", "-o", "json").stdout
    assert character not in shown and "\u00e9" in shown
    assert json.loads(shown)[0]["description"] == description
