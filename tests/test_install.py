"""docs/install.md: what it shows fits together, and its steps lead to a gateway that serves.

The steps are really done, in a directory that stands in for the root of the file system, as this
user and with this tree's command. What changes the machine itself (packages, users, units) is read
only.
"""

import ctypes
import os
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from configparser import RawConfigParser
from contextlib import contextmanager
from pathlib import Path

import pytest

from hsmux_gateway.config import EXIT_CONFIGURATION, Config, parse_config
from hsmux_gateway.errors import EXIT_OPERATOR
from hsmux_protocol import __version__
from tests.documents.markdown import Block, blocks
from tests.documents.sections import ROOT
from tests.gateway.journals import requests_in
from tests.test_documents import parse

INSTALL = (ROOT / "docs" / "install.md").read_text()
BIN = Path(sys.executable).parent
EXPOSURE_MAX = "15"
"""Of `systemd-analyze security`, in tenths."""

DONE = frozenset({"install", "chown", "chmod", "openssl", "runuser"})
READ = frozenset(
    {
        *("apt-get", "hsmux", "ln", "python3", "systemctl", "tar", "useradd"),
        *(f"/opt/hsmux-{version}/bin/pip" for version in (__version__, "NEW")),
    }
)
"""The first words of all lines: what the test does, and what it only reads."""

PR_SET_MDWE = 65
"""prctl that does what MemoryDenyWriteExecute does; kernels before 6.3 do not know it."""


def block_of(text: str, mark: str) -> Block:
    """The one block under a comment."""
    (found,) = [block for block in blocks(text) if block.before.startswith(f"<!-- {mark}")]
    return found


def lines() -> list[str]:
    """Every command line, in order."""
    shown = "".join(block.text for block in blocks(INSTALL, "sh")).replace("\\\n", " ")
    return [line for line in shown.splitlines() if line]


def unit() -> RawConfigParser:
    """The unit; a setting that stands twice keeps its last value."""
    found = RawConfigParser(strict=False)
    found.optionxform = str  # type: ignore[assignment,method-assign]
    found.read_string(block_of(INSTALL, "unit hsmux.service").text)
    return found


@pytest.fixture
def config() -> Config:
    return parse_config(block_of(INSTALL, "configuration").text, {})


def test_the_version_is_this_one() -> None:
    assert set(re.findall(r"/opt/hsmux-(\d[\w.]*\w)", INSTALL)) == {__version__}


def test_every_line_is_known_and_every_verb_is_there() -> None:
    assert {line.split()[0] for line in lines()} == DONE | READ
    verbs = [line.partition("hsmux -- ")[2] for line in lines() if line.startswith("runuser")]
    for words in map(shlex.split, verbs):
        assert Path(words[0]).name == "hsmux"
        parse(words[1:])


def test_the_unit_runs_what_is_installed_with_what_is_configured(config: Config) -> None:
    service = unit()["Service"]
    program, *words = shlex.split(service["ExecStart"])
    assert program == "/opt/hsmux/bin/hsmux"
    assert any(line.endswith("/opt/hsmux") for line in lines())
    parse(words)
    assert words == ["serve", "--config", "/etc/hsmux/hsmux.toml"]
    assert config.instance_dir.startswith(f"/var/lib/{service['StateDirectory']}/")
    assert config.audit.directory == f"/var/log/{service['LogsDirectory']}"
    assert {service["StateDirectoryMode"], service["LogsDirectoryMode"]} == {"0700"}
    assert float(service["TimeoutStopSec"]) > config.server.drain_s
    unmended = {str(EXIT_CONFIGURATION), str(EXIT_OPERATOR)}
    assert set(service["RestartPreventExitStatus"].split()) == unmended
    users = {service["User"], *re.findall(r"runuser -u (\w+)", INSTALL)}
    assert users == {"hsmux"}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_unit_and_finds_it_little_exposed(tmp_path: Path) -> None:
    path = tmp_path / "hsmux.service"
    text = block_of(INSTALL, "unit hsmux.service").text
    path.write_text(text.replace("/opt/hsmux/bin/", f"{BIN}/"))
    for words in (["verify"], ["security", "--offline=true", f"--threshold={EXPOSURE_MAX}"]):
        done = subprocess.run(
            ["systemd-analyze", "--no-pager", *words, str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        assert str(path) not in done.stderr


def _deny_writable_code() -> None:
    ctypes.CDLL(None).prctl(PR_SET_MDWE, 1, 0, 0, 0)


class Place:
    """A directory that stands in for the root of the file system."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("etc", "var/lib", "var/log"):
            (root / name).mkdir(parents=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    def here(self, text: str) -> str:
        """A text with paths, user and ports of this place."""
        text = re.sub(r"(?<![\w/])/(etc|var/lib|var/log)/hsmux", rf"{self.root}/\1/hsmux", text)
        text = re.sub(r"-o \w+ -g hsmux |runuser -u hsmux -- ", "", text)
        text = re.sub(r"^chown root:hsmux", f"chown {os.geteuid()}:{os.getegid()}", text)
        return text.replace("0.0.0.0:7411", f"127.0.0.1:{self.port}").replace(":7412", ":0")

    @property
    def environment(self) -> dict[str, str]:
        home = str(self.root / "var/lib/hsmux")
        kept = {n: v for n, v in os.environ.items() if not n.startswith(("HSMUX", "XDG"))}
        return {**kept, "HOME": home, "PATH": f"{BIN}:{os.environ['PATH']}"}

    def write(self, name: str, mark: str) -> None:
        """A file of the document."""
        (self.root / name).write_text(self.here(block_of(INSTALL, mark).text))

    def run(self, line: str) -> None:
        """One line as a shell does it; it must succeed."""
        done = subprocess.run(
            ["sh", "-euc", self.here(line)],
            env=self.environment,
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, (line, done.stderr)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """The unit's command, and that it ends in order."""
        words = shlex.split(self.here(unit()["Service"]["ExecStart"]))
        process = subprocess.Popen(
            [str(BIN / "hsmux"), *words[1:]],
            env=self.environment,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_deny_writable_code,
        )
        assert process.stderr is not None
        try:
            assert any(line.startswith("hsmux: serving on ") for line in process.stderr)
            yield
            process.send_signal(signal.SIGTERM)
            process.stderr.read()
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait()
            process.stderr.close()


def test_the_steps_lead_to_a_gateway_that_serves(tmp_path: Path, config: Config) -> None:
    place = Place(tmp_path)
    steps = [line for line in lines() if line.split()[0] in DONE and "NEW" not in line]
    start = next(n for n, line in enumerate(steps) if line.endswith("administrator status"))
    written = False
    for line in steps[:start]:
        if line.startswith("chown"):
            place.write("etc/hsmux/softhsm2.conf", "softhsm")
            place.write("etc/hsmux/hsmux.toml", "configuration")
            written = True
        place.run(line)
    assert written
    with place.serving():
        for line in steps[start:]:
            place.run(line)
    modes = {
        path: stat.S_IMODE((tmp_path / path[1:]).stat().st_mode)
        for path in re.findall(r"^\| `(/[\w/]+)` \|", INSTALL, re.MULTILINE)
    }
    assert set(modes.values()) == {0o750, 0o700} and len(modes) == 4
    assert modes["/etc/hsmux"] == 0o750
    assert (tmp_path / "var/lib/hsmux/billing.key").stat().st_mode & 0o077 == 0
    assert len(requests_in(tmp_path / "var/log/hsmux")) == 3
    assert (tmp_path / "var/lib/hsmux/pin.officer").exists()
