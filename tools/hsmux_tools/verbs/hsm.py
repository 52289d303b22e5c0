"""`hsmux hsm probe|init-token|clear-pin`: on the gateway's machine, without the gateway."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ..output import show_record, talk
from ..settings import Settings, verb
from .border import gateway_command

__all__ = ["clear_pin", "init_token", "probe"]

_config = click.option(
    "--config",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The configuration, TOML.",
)
_token = click.option(
    "--token", metavar="NAME", help="Name of its hsm section (default: the only one)."
)


def _run(settings: Settings, function: str, config: Path, token: str | None) -> None:
    with gateway_command() as command:
        answer: Any = getattr(command, function)(config, token)
    if isinstance(answer, Mapping):
        show_record(dict(answer), settings)
    elif answer is not None:
        talk(str(answer))


@verb(
    "probe",
    "hsmux hsm probe --config /etc/hsmux/hsmux.toml",
    "hsmux hsm probe --config gw.toml -o json",
)
@_config
@_token
@click.pass_obj
def probe(settings: Settings, config: Path, token: str | None) -> None:
    """Say what a token can do, and try it.

    Makes throw-away keys and destroys them again.
    """
    _run(settings, "hsm_probe", config, token)


@verb("init-token", "hsmux hsm init-token --config /etc/hsmux/hsmux.toml")
@_config
@_token
@click.pass_obj
def init_token(settings: Settings, config: Path, token: str | None) -> None:
    """Initialise an empty token.

    Sets its label and the user PIN that the configuration's pin_file holds. A token that is
    initialised already is left alone.
    """
    _run(settings, "hsm_init_token", config, token)


@verb("clear-pin", "hsmux hsm clear-pin --config /etc/hsmux/hsmux.toml")
@_config
@_token
@click.pass_obj
def clear_pin(settings: Settings, config: Path, token: str | None) -> None:
    """Allow logins again after a refused PIN.

    After one refused PIN no worker tries again, so that a wrong one cannot lock the token. Stop the
    gateway and correct the PIN file first.
    """
    _run(settings, "hsm_clear_pin", config, token)
