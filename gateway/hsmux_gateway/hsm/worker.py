"""A worker: one process, one thread, one PKCS#11 application.

Theory of operation
-------------------
The process waits for its turn on this host, initialises the vendor's module through our adapter,
says hello, waits to be told to log in, and then does what it is asked, one message after the other.
A module that hangs, crashes or is not thread-safe costs this process and nothing else; the daemon
kills and replaces it.

Its turn. Some modules rewrite their token's file in C_Login, and several wrong PINs at once would
lock the token. So from before C_Initialize until the daemon has noted what came of the login a lock
is held that all workers on this host share. If the worker dies, the kernel gives it free.

C_Login. A kill in the middle of it can cost the token. So in there the process does not die with
the daemon, but by an alarm of its own, and the daemon waits as long.

The end. The process ends when the daemon's end of the socket closes, when the daemon dies
(PR_SET_PDEATHSIG), and by itself when the token does not work any more: it says that it leaves,
answers for the last time, and goes. The module is not finalised: that can hang, and the process
ends anyway.
"""

import contextlib
import ctypes
import fcntl
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pkcs11

from hsmux_native.pkcs11 import SecretPage

from ..errors import in_words
from . import softhsm
from .application import Application
from .codes import UNKNOWN_CODE, code_of, name_of
from .failures import Failure
from .messages import MessageReader, encode_message
from .operations import Operations
from .progress import Progress

__all__ = ["main"]

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4

RECEIVE_SIZE: Final = 1 << 18

LOGIN_ALARM_S: Final = 30
"""Seconds in C_Login until the process ends itself, if nobody else does."""

_LIBC: Final = ctypes.CDLL(None)


class HungUp(Exception):
    """The daemon has closed the connection."""


class Connection:
    """The worker's end of the socket to the daemon."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        # One buffer for ever: a new one for each message would keep the heap's allocator busy.
        self._buffer = memoryview(bytearray(RECEIVE_SIZE))
        self._reader = MessageReader()
        self._messages: list[list[Any]] = []

    def say(self, *message: Any) -> None:
        """Send a message.

        Raises:
            HungUp: Nobody listens any more.
        """
        try:
            self._socket.sendall(encode_message(list(message)))
        except OSError:
            raise HungUp from None

    def hear(self) -> list[Any]:
        """The next message.

        Raises:
            HungUp: There will be none.
        """
        while not self._messages:
            size = self._socket.recv_into(self._buffer)
            if not size:
                raise HungUp
            self._messages = self._reader.feed(self._buffer[:size])
        return self._messages.pop(0)

    def expect(self, kind: str) -> list[Any]:
        """The next message, of a kind; what is behind the kind.

        Raises:
            HungUp: There is another, or none.
        """
        message = self.hear()
        if message[0] != kind:
            raise HungUp
        return message[1:]


def harden() -> None:
    """No core file, no debugger, and no life without the daemon."""
    _die_with(os.getppid())
    _LIBC.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _die_with(parent: int) -> None:
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


@contextlib.contextmanager
def unhurried() -> Iterator[None]:
    """Outlive the daemon for as long as this takes, but no longer than an alarm."""
    parent = os.getppid()
    _LIBC.prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0)
    signal.alarm(LOGIN_ALARM_S)
    try:
        yield
    finally:
        signal.alarm(0)
        _die_with(parent)


def read_pin(path: Path) -> str:
    """The PIN in a file, without the newline an editor leaves."""
    return path.read_text(encoding="utf-8").rstrip("\r\n")


@contextlib.contextmanager
def turn(directory: Path, *, is_softhsm: bool) -> Iterator[None]:
    """One worker at a time: of this instance directory, and of all that share SoftHSM's files."""
    with open(directory / "login.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with softhsm.alone(is_softhsm):
            yield


def log_in(
    connection: Connection, module: str, label: str, pin_file: Path, directory: Path
) -> tuple[Application, dict[str, Any]]:
    """Start: the application, logged in, and the daemon's options.

    Raises:
        HungUp: That is not to be, and the daemon knows why.
    """
    is_softhsm = softhsm.is_softhsm(os.environ.get("HSMUX_ADAPTER_MODULE", module))
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(turn(directory, is_softhsm=is_softhsm))
            connection.say("locked")
            restored = softhsm.restore(os.environ, directory) if is_softhsm else []
            application = Application(module, label)
            connection.say("hello", {**application.facts(), "restored": restored})
            (options,) = connection.expect("login")
            with unhurried():
                application.log_in(read_pin(pin_file), is_single=options["single"])
                if is_softhsm:
                    softhsm.make_durable(0)
            if is_softhsm:
                softhsm.keep_copies(os.environ, directory)
        except Failure as failure:
            if failure.kind == "auth":
                connection.say("refused", failure.code, failure.text)
            else:
                connection.say("failed", failure.kind, failure.code, failure.text)
            connection.expect("nothing")
        except pkcs11.exceptions.PKCS11Error as error:
            code = code_of(error)
            connection.say("failed", "token", code, _refusal(error, code))
            connection.expect("nothing")
        except OSError as error:
            connection.say("failed", "token", UNKNOWN_CODE, in_words(error))
            connection.expect("nothing")
        connection.say("ready")
        connection.expect("serve")
    return application, options


def _refusal(error: Exception, code: int) -> str:
    """What an operator is told of a module that does not start."""
    name = os.environ.get("HSMUX_ADAPTER_MODULE", "")
    answer = type(error).__name__ if code == UNKNOWN_CODE else name_of(code)
    return (
        f"the module {name} answers {answer} when it is initialised: check module, parameters and "
        f"environment of the token's section{softhsm.whereabouts(os.environ)}"
    )


def serve(connection: Connection, operations: Operations) -> None:
    """Answer until the daemon closes, or the token does not work any more."""
    while operations.ending is None:
        number, operation, deadline_ns, *arguments = connection.hear()
        answer = operations.do(number, operation, deadline_ns, arguments)
        if operations.ending is not None:
            ending = operations.ending
            connection.say("leaving", ending.kind, ending.code, ending.text)
        connection.say(*answer)


def main() -> None:
    """`python -m hsmux_gateway.hsm.worker FD PAGE PROGRESS MODULE LABEL PIN_FILE DIRECTORY`."""
    harden()
    fd, page_fd, progress_fd, module, label, pin_file, directory = sys.argv[1:]
    connection = Connection(int(fd))
    page, progress = SecretPage(int(page_fd)), Progress(int(progress_fd))
    with contextlib.suppress(HungUp):
        application, options = log_in(connection, module, label, Path(pin_file), Path(directory))
        serve(connection, Operations(application, page, progress, options["verify_every"]))
    os._exit(0)


if __name__ == "__main__":
    main()
