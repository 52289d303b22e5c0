"""`hsmux dev`: a whole gateway on this machine in one command, thrown away at the end.

It is the production gateway with the production formats and rules: a configuration file, a token,
an initialised store, TLS with client keys. Only what an operator would choose is chosen here: a
SoftHSM token of its own (a root key file where SoftHSM is not installed), loopback, free ports,
a state directory that is removed at the end unless one is named. The profile `dev` is written so
that the next command just works.
"""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final, TextIO

from hsmux.profiles import Profile, save_profile

from .access.first_policies import EVERYTHING
from .config import Config, load_config
from .daemon import Addresses, log_to, run_serve
from .errors import OperatorError
from .foundation import Foundation
from .initialise import FirstAdministrator, initialise
from .instance import write_file
from .private_files import check_directory, open_log

__all__ = ["PROFILE", "dev_gateway", "find_softhsm"]

PROFILE: Final = "dev"
"""The profile that points to the development gateway."""

TOKEN_LABEL: Final = "hsmux-dev"
TOKEN_TIMEOUT_S: Final = 30
SEGMENT_BYTES: Final = 1 << 20
"""Bytes of a segment of the audit log: two of them should not fill a laptop's temporary files."""

SOFTHSM_MODULES: Final = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
)
"""Where distributions install SoftHSM."""


def find_softhsm() -> str | None:
    """SoftHSM's module, if it is installed with its tool."""
    if shutil.which("softhsm2-util") is None:
        return None
    return next((module for module in SOFTHSM_MODULES if Path(module).exists()), None)


@contextlib.contextmanager
def _state_directory(state: Path | None) -> Iterator[Path]:
    if state is not None:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Without links, so that what is checked is what is used.
        state = state.resolve()
        check_directory("--state", state)
        yield state
        return
    with tempfile.TemporaryDirectory(prefix="hsmux-dev-") as path:
        yield Path(path)


def _open_own_log(path: Path) -> TextIO:
    try:
        return open(open_log(path), "a", buffering=1)
    except OSError as error:
        raise OperatorError(
            f"{path} cannot be written: {error.strerror}; remove it, or name another --state"
        ) from None


def _make_token(state: Path, module: str) -> str:
    """A SoftHSM token in the state directory, and its part of the configuration."""
    tokens, conf = state / "softhsm", state / "softhsm2.conf"
    pin_file = state / "pin"
    if not pin_file.exists():
        shutil.rmtree(tokens, ignore_errors=True)
        tokens.mkdir(mode=0o700)
        write_file(conf, f"directories.tokendir = {tokens}\nlog.level = ERROR\n".encode())
        pin, so_pin = secrets.token_hex(16), secrets.token_hex(16)
        command = ["softhsm2-util", "--init-token", "--free", "--label", TOKEN_LABEL]
        _run_softhsm([*command, "--pin", pin, "--so-pin", so_pin], conf)
        # The PIN's file comes last: with it, the token is whole.
        write_file(pin_file, pin.encode())
    return (
        f'[root]\ntoken = "dev"\n\n[hsm.dev]\nmodule = "{module}"\n'
        f'token_label = "{TOKEN_LABEL}"\npin_file = "{pin_file}"\n'
        f'environment = {{ SOFTHSM2_CONF = "{conf}" }}\n'
    )


def _run_softhsm(command: list[str], conf: Path) -> None:
    environment = {**os.environ, "SOFTHSM2_CONF": str(conf)}
    try:
        subprocess.run(
            command, env=environment, check=True, capture_output=True, timeout=TOKEN_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise OperatorError(f"softhsm2-util cannot make a token: {error}") from None


def _make_config(state: Path, port: int) -> Config:
    """The configuration of a state directory, written anew at each start."""
    module = find_softhsm()
    if module is None:
        print(
            "hsmux: SoftHSM is not installed; the root key is a file and there are no hardware "
            "keys (apt-get install softhsm2)",
            file=sys.stderr,
        )
        root = f'[root]\nfile = "{state}/root.key"\n'
    else:
        root = _make_token(state, module)
    path = state / "hsmux.toml"
    text = (
        f'instance_dir = "{state}/instance"\n\n[server]\nlisten = ["127.0.0.1:{port}"]\n\n'
        f'[health]\nlisten = "127.0.0.1:0"\n\n[audit]\nsegment_bytes = {SEGMENT_BYTES}\n\n{root}'
    )
    write_file(path, text.encode())
    return load_config(path)


def _announce(state: Path, instance: Path, addresses: Addresses) -> None:
    directory = instance / "administrator"
    profile = Profile(
        addresses=tuple(addresses.server),
        certificate=str(directory / "administrator.pem"),
        private_key=str(directory / "administrator.key"),
        ca=str(directory / "ca.pem"),
        server_name="localhost",
    )
    save_profile(PROFILE, profile)
    print(
        f"hsmux dev listens on {addresses.server[0]}, health on http://{addresses.health}/readyz\n"
        f"state: {state}\nlog: {state}/gateway.log\n\n"
        "Paste into another terminal:\n\n"
        f"  export HSMUX_PROFILE={PROFILE}\n"
        "  hsmux status\n"
        "  hsmux key create --spec AES_256 --alias alias/first\n"
        "  echo hello | hsmux encrypt alias/first --out hello.hsmux\n"
        "  hsmux decrypt hello.hsmux\n\n"
        "Ctrl-C stops it.",
        flush=True,
    )


@contextlib.contextmanager
def dev_gateway(state: Path | None, port: int) -> Iterator[Callable[[], Awaitable[None]]]:
    """A development gateway's Trio program, and the state directory it needs around it.

    Args:
        state: Keep everything here and go on with it next time; None: a temporary directory.
        port: On 127.0.0.1; 0 lets the kernel choose.

    Raises:
        OperatorError: It cannot start; says what to do.
    """
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(_state_directory(state))
        log = stack.enter_context(_open_own_log(directory / "gateway.log"))
        sink = log_to(log.fileno())
        config = _make_config(directory, port)
        instance = Path(config.instance_dir)

        async def before(base: Foundation) -> None:
            await initialise(
                base.config,
                base.instance,
                base.arena,
                base.tokens,
                base.store,
                FirstAdministrator(EVERYTHING),
            )

        async def main() -> None:
            await run_serve(
                config,
                ready=lambda addresses: _announce(directory, instance, addresses),
                before=before,
                log_requests=sink,
            )

        yield main
