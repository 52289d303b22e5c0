"""What the `hsmux` command asks of the gateway: one function a verb, blocking.

Each raises `OperatorError`, whose text is one line for the operator and whose exit code is the
command's.
"""

import sys
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

from .audit.commands import explained as audit_explain
from .audit.commands import export_lines as audit_export
from .audit.commands import match_lines as audit_match
from .audit.commands import tail_lines as audit_tail
from .audit.commands import verified as audit_verify
from .config import Server, load_config
from .config_files import check_named, check_token
from .daemon import Addresses, log_to, run_init, run_serve
from .dev import dev_gateway
from .errors import OperatorError, first_of
from .foundation import token_failure, token_settings
from .hsm.errors import TokenError
from .hsm.settings import TokenSettings
from .initialise import FirstAdministrator, Initialised, administrator_files
from .instance import Instance
from .logs import structlog
from .store_commands import migrate as store_migrate
from .store_commands import status as store_status

__all__ = [
    "administrator",
    "audit_explain",
    "audit_export",
    "audit_match",
    "audit_tail",
    "audit_verify",
    "check_config",
    "dev",
    "hsm_clear_pin",
    "hsm_init_token",
    "hsm_probe",
    "init",
    "load_config",
    "serve",
    "store_migrate",
    "store_status",
]

STDERR: Final = 2
"""The descriptor of logs."""

T = TypeVar("T")


def _run(main: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """Run a Trio program; an OperatorError out of its depths comes out as itself.

    Nurseries wrap what they raise in groups; the first OperatorError in one is the reason.
    """
    failures: list[OperatorError] = []
    try:
        return trio.run(main, *arguments)
    except* OperatorError as group:
        failures.append(first_of(group))
    raise failures[0]


@contextmanager
def _told_at_the_end(*, level: str) -> Iterator[None]:
    """Inside, log lines of a level and above are kept, and told in words if all goes well.

    An error is one line, which says what they would: it is raised, and they are dropped.
    """
    kept: list[str] = []

    def keep(logger: object, method: str, event: MutableMapping[str, Any]) -> str:
        text = event.pop("event")
        facts = ", ".join(f"{name} {value}" for name, value in event.items())
        kept.append(f"{text} ({facts})" if facts else text)
        raise structlog.DropEvent

    wrapper = structlog.make_filtering_bound_logger(level)
    structlog.configure(processors=[keep], wrapper_class=wrapper, cache_logger_on_first_use=False)
    try:
        yield
    finally:
        structlog.reset_defaults()
    for line in kept:
        print(f"hsmux: {line}", file=sys.stderr)


def init(config: Path, *, restored: bool = False) -> Initialised:
    """Initialise the deployment that a configuration file describes; safe to repeat.

    Args:
        config: The file.
        restored: Give the first administrator back its state and policy.

    Returns:
        Where the first administrator's client key is.
    """
    with _told_at_the_end(level="warning"):
        return _run(run_init, load_config(config), FirstAdministrator(restored=restored))
    raise AssertionError("what is raised inside is not caught")


def administrator(config: Path) -> tuple[Server, Path]:
    """Where the gateway will listen, and where `init` puts the administrator's certificate."""
    checked = load_config(config)
    return checked.server, administrator_files(Instance(Path(checked.instance_dir))).certificate


def serve(config: Path, *, accept_rollback: bool = False) -> None:
    """Serve until SIGTERM or SIGINT, reload on SIGHUP; logs JSON lines to stderr.

    Args:
        config: The configuration file.
        accept_rollback: Go on with a store that is older than its anchor.
    """
    log = log_to(STDERR)
    checked = load_config(config)

    def ready(addresses: Addresses) -> None:
        print(f"hsmux: serving on {', '.join(addresses.server)}", file=sys.stderr, flush=True)
        if checked.root.file:
            print("hsmux: the root key is a file: for development only", file=sys.stderr)

    async def main() -> None:
        await run_serve(
            checked,
            ready=ready,
            reload=lambda: load_config(config),
            log_requests=log,
            accept_rollback=accept_rollback,
        )

    _run(main)


def check_config(config: Path) -> list[str]:
    """Check a configuration file, and that what it names can be used; nothing is changed.

    Returns:
        The names of its tokens, which were not asked.

    Raises:
        OperatorError: Something is wrong, with the exit code that `serve` would end with.
    """
    checked = load_config(config)
    check_named(checked)
    return sorted(checked.hsm)


def dev(state: Path | None, port: int) -> None:
    """Run a development gateway until a signal."""
    with dev_gateway(state, port) as main:
        _run(main)


def hsm_probe(config: Path, token: str | None) -> dict[str, Any]:
    """Try what a token can do, and show it; nothing is left behind in it."""
    from .hsm.probe import probe

    name, settings, instance = _token_of(config, token)
    try:
        # What a trial does to workers is among the facts.
        with _told_at_the_end(level="critical"):
            found = _run(probe, settings, instance)
    except* TokenError as group:
        failure = token_failure(f"token {name}", first_of(group))
        raise failure from None
    return {"token": name, **found}


def hsm_init_token(config: Path, token: str | None) -> str:
    """Make the token that the configuration names, with the PIN in its PIN file."""
    from .hsm.initialise_token import initialise_token

    name, settings, _ = _token_of(config, token)
    try:
        officer = initialise_token(settings)
    except TokenError as error:
        raise token_failure(f"token {name}", error) from None
    return f"token {name} is initialised; the security officer's PIN is in {officer}: keep it safe"


def hsm_clear_pin(config: Path, token: str | None) -> str:
    """Forget that a PIN was refused, so that the next start tries it once more."""
    from .hsm.pin import PinMarks

    name, _, instance = _token_of(config, token)
    with Instance(instance.parent):
        count = PinMarks(instance, name).clear()
    return f"token {name}: {count} PIN mark(s) cleared; the next start tries the PIN once"


def _token_of(config: Path, token: str | None) -> tuple[str, TokenSettings, Path]:
    """The token an operator means: the named one, or the only one; its PIN is nobody else's."""
    checked = load_config(config)
    name = token or (next(iter(checked.hsm)) if len(checked.hsm) == 1 else "")
    if name not in checked.hsm:
        known = ", ".join(sorted(checked.hsm)) or "none"
        raise OperatorError(f"name one of the configured tokens with --token: {known}", exit_code=2)
    check_token(name, checked.hsm[name])
    directory = Path(checked.instance_dir) / "hsm"
    return name, token_settings(name, checked.hsm[name]), directory
