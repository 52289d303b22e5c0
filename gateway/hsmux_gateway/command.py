"""What the `hsmux` command asks of the gateway: one function a verb, blocking.

Each raises `OperatorError`, whose text is one line for the operator and whose exit code is the
command's.
"""

import os
import sys
from pathlib import Path

import trio

from .config import load_config
from .daemon import Addresses, log_to, run_init, run_serve
from .dev import run_dev
from .errors import OperatorError
from .initialise import Initialised

__all__ = ["check_config", "dev", "init", "serve"]


def init(config: Path) -> Initialised:
    """Initialise the deployment that a configuration file describes; safe to repeat.

    Returns:
        Where the first administrator's client key is.
    """
    log_to(sys.stderr)
    return trio.run(run_init, load_config(config))


def serve(config: Path) -> None:
    """Serve until SIGTERM or SIGINT; logs JSON lines to stderr."""
    log_to(sys.stderr)
    checked = load_config(config)

    def ready(addresses: Addresses) -> None:
        print(f"hsmux: serving on {', '.join(addresses.server)}", file=sys.stderr, flush=True)
        if checked.root.file:
            print("hsmux: the root key is a file: for development only", file=sys.stderr)

    async def main() -> None:
        await run_serve(checked, ready=ready, log_requests=sys.stderr.fileno())

    trio.run(main)


def check_config(config: Path) -> None:
    """Check a configuration file, and that the files it names can be read."""
    checked = load_config(config)
    named = [checked.tls.certificate, checked.tls.private_key]
    named += [hsm.module for hsm in checked.hsm.values()]
    named += [hsm.pin_file for hsm in checked.hsm.values()]
    for path in filter(None, named):
        if not os.access(path, os.R_OK):
            raise OperatorError(f"configuration: {path} is not there or cannot be read")


def dev(state: Path | None, port: int) -> None:
    """Run a development gateway until a signal."""
    run_dev(state, port)
