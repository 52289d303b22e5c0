"""A throw-away PostgreSQL cluster for tests: one for all workers of a test run.

The first worker that needs it starts a keeper (this file as a program), which makes a cluster,
runs the server, and serves a control socket. Each worker stays connected to that socket as long as
it wants the server; when the last one has gone, however it ended, the keeper stops the server and
removes everything. A worker that leaves waits until the keeper lets it go, so a finished test run
has left nothing behind. A test gets a database of its own.

The server runs with fsync on, as the user postgres when the tests are root (it refuses root). No
PostgreSQL on the machine is a failure, never a skip.
"""

import contextlib
import fcntl
import os
import secrets
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import psycopg
import pytest

__all__ = ["Address", "Cluster", "postgresql_cluster", "postgresql_url", "private_cluster"]

START_TRIES: Final = 600
TRY_INTERVAL_S: Final = 0.1
SERVER_USER: Final = "postgres"
SETTINGS: Final = {
    "fsync": "on",
    "synchronous_commit": "on",
    "listen_addresses": "127.0.0.1",
    "max_connections": "60",
    "shared_buffers": "16MB",
}


class Address(NamedTuple):
    """Where a server listens: a directory with its Unix socket, and a port, also of loopback."""

    directory: str
    port: int

    def url(self, database: str = "postgres") -> str:
        """The URL of a database, over the Unix socket."""
        host = f"host={self.directory}&port={self.port}"
        return f"postgresql://{SERVER_USER}@/{database}?{host}"

    def loopback_url(self, database: str = "postgres") -> str:
        """The URL of a database, over TCP."""
        return f"postgresql://{SERVER_USER}@127.0.0.1:{self.port}/{database}"


class Cluster:
    """A cluster in a directory of its own, and the server on it."""

    def __init__(self) -> None:
        self._programs = _programs()
        self._directory = Path(tempfile.mkdtemp(prefix="hsmux-pg-"))
        self._data = self._directory / "data"
        self._server: subprocess.Popen[bytes] | None = None
        self.address = Address(str(self._directory), _free_port())
        if os.geteuid() == 0:
            shutil.chown(self._directory, SERVER_USER, SERVER_USER)
        arguments = ["--no-sync", "--auth=trust", "--encoding=UTF8", "--locale=C"]
        made = subprocess.run(
            self._command("initdb", *arguments, f"-U{SERVER_USER}", f"-D{self._data}"),
            cwd="/",
            capture_output=True,
            check=False,
        )
        if made.returncode:
            self.remove()
            raise RuntimeError(f"initdb: {made.stderr.decode(errors='replace')}")

    def _command(self, program: str, *arguments: str) -> list[str]:
        command = [str(self._programs / program), *arguments]
        if os.geteuid() == 0:
            user = [f"--reuid={SERVER_USER}", f"--regid={SERVER_USER}", "--init-groups"]
            return ["setpriv", *user, "--", *command]
        return command

    def start(self) -> None:
        """Start the server and wait until it answers."""
        place = [f"-D{self._data}", f"-k{self.address.directory}", f"-p{self.address.port}"]
        settings = [f"--{name}={value}" for name, value in SETTINGS.items()]
        with (self._directory / "log").open("ab") as log:
            self._server = subprocess.Popen(
                self._command("postgres", *place, *settings),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        for _ in range(START_TRIES):
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(self.address.url()).close()
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._server.wait(TRY_INTERVAL_S)
                break
        self.stop()
        raise RuntimeError(f"postgres does not start: {(self._directory / 'log').read_text()}")

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server: SIGINT is orderly, SIGQUIT is a crash of all of its processes."""
        if self._server is not None:
            self._server.send_signal(how)
            self._server.wait()
            self._server = None

    def remove(self) -> None:
        """Stop the server and remove the directory."""
        self.stop()
        shutil.rmtree(self._directory)


def _programs() -> Path:
    found = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = max(found, key=lambda path: int(path.parts[-3]), default=None)
    if newest is None:
        raise RuntimeError("the tests need PostgreSQL: apt-get install postgresql")
    return newest.parent


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def private_cluster() -> Iterator[Cluster]:
    """A cluster of the caller's own, to be killed and started again."""
    cluster = Cluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.remove()


def _join(rendezvous: Path) -> tuple[socket.socket, Address]:
    """Connect to the keeper of this test run, after starting it if there is none."""
    with rendezvous.open("a+") as shared:
        fcntl.flock(shared, fcntl.LOCK_EX)
        shared.seek(0)
        joined = _connect(shared.read())
        if joined is None:
            program = [sys.executable, "-P", __file__]
            control = subprocess.run(program, stdout=subprocess.PIPE, check=True).stdout.decode()
            shared.truncate(0)
            shared.write(control)
            joined = _connect(control)
    if joined is None:
        raise RuntimeError("the keeper of the PostgreSQL cluster has gone")
    return joined


def _connect(control: str) -> tuple[socket.socket, Address] | None:
    user = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        user.connect(control)
        with user.makefile("r") as lines:
            directory, port = lines.readline().split()
    except (OSError, ValueError):
        # There was no keeper yet, or it was about to end and did not greet.
        user.close()
        return None
    return user, Address(directory, int(port))


def _leave(user: socket.socket) -> None:
    with user:
        user.shutdown(socket.SHUT_WR)
        # The keeper closes its end at once, or, for the last one, when all is cleaned up.
        user.recv(1)


def _keep(control: Path, ready: int) -> None:
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, control.parent)
        cluster = stack.enter_context(private_cluster())
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(control))
            listener.listen(64)
            os.write(ready, bytes(control))
            os.close(ready)
            greeting = f"{cluster.address.directory} {cluster.address.port}\n".encode()
            last = _serve_until_last(listener, greeting)
    last.close()


def _serve_until_last(listener: socket.socket, greeting: bytes) -> socket.socket:
    users = 0
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                assert isinstance(key.fileobj, socket.socket)
                if key.fileobj is listener:
                    user, _ = listener.accept()
                    user.sendall(greeting)
                    selector.register(user, selectors.EVENT_READ)
                    users += 1
                    continue
                selector.unregister(key.fileobj)
                users -= 1
                if not users:
                    return key.fileobj
                key.fileobj.close()


def _main() -> int:
    """Put the keeper into the background; prints its control socket once the server answers."""
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        with os.fdopen(reading) as lines:
            control = lines.read()
        sys.stdout.write(control)
        return 0 if control else 1
    os.close(reading)
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    _keep(Path(tempfile.mkdtemp(prefix="hsmux-pg-")) / "control", writing)
    return 0


@pytest.fixture(scope="session")
def postgresql_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """The server of this test run."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    user, address = _join(shared / "postgresql")
    try:
        yield address
    finally:
        _leave(user)


@pytest.fixture
def postgresql_url(postgresql_cluster: Address) -> Iterator[str]:
    """The URL of an empty database, dropped after the test."""
    name = f"test_{secrets.token_hex(8)}"
    with psycopg.connect(postgresql_cluster.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0".encode())
        try:
            yield postgresql_cluster.url(name)
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


if __name__ == "__main__":
    sys.exit(_main())
