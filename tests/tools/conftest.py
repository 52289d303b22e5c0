"""The command in this process against an in-memory deployment, with a configuration of its own."""

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import hsmux
from hsmux_tools.main import command

from .twin import Deployment

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _own_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("HSMUX_PROFILE", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def deployment(monkeypatch: pytest.MonkeyPatch) -> Deployment:
    """What `Client.connect` connects to."""
    held = Deployment()
    monkeypatch.setattr(hsmux, "Client", held, raising=False)
    return held


@pytest.fixture(scope="session")
def made_identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate that is its own CA, and its private key."""
    directory = tmp_path_factory.mktemp("identity")
    line = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -subj /CN=x"
    files = ("-keyout", directory / "a.key", "-out", directory / "a.pem")
    subprocess.run([*line.split(), *files], check=True, capture_output=True)
    return directory


@pytest.fixture
def identity(made_identity: Path, tmp_path: Path) -> None:
    """Files of a client key, as a profile names them: `a.pem`, `a.key` and `ca.pem`."""
    for name, source in (("a.pem", "a.pem"), ("a.key", "a.key"), ("ca.pem", "a.pem")):
        (tmp_path / name).write_bytes((made_identity / source).read_bytes())
        (tmp_path / name).chmod(0o600)


@pytest.fixture
def run() -> Run:
    """Run the command in this process: `run("key", "list", input=b"")`."""

    def run_command(*words: object, input: bytes = b"") -> Result:
        return CliRunner().invoke(command(), [str(word) for word in words], input=input)

    return run_command


@pytest.fixture
def program() -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Run the command in a process of its own."""

    def run_program(*words: object) -> subprocess.CompletedProcess[bytes]:
        line = [sys.executable, "-m", "hsmux_tools.main", *map(str, words)]
        return subprocess.run(line, capture_output=True, check=False, stdin=subprocess.DEVNULL)

    return run_program


@pytest.fixture
def on_terminal() -> Callable[..., tuple[int, str]]:
    """Run the command with a terminal as standard output; its exit code and what is shown."""

    def run_on_terminal(*words: object) -> tuple[int, str]:
        ours, theirs = pty.openpty()
        line = [sys.executable, "-m", "hsmux_tools.main", *map(str, words)]
        with open(ours, "rb", buffering=0) as terminal:
            process = subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=theirs, stderr=subprocess.STDOUT
            )
            os.close(theirs)
            shown = b""
            while piece := _read(terminal.fileno()):
                shown += piece
            return process.wait(), shown.decode()

    return run_on_terminal


def _read(descriptor: int) -> bytes:
    """A terminal whose other side is closed answers EIO, not an empty read."""
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""
