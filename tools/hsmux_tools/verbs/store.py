"""`hsmux store status|migrate`: on the gateway's machine, without the gateway."""

from pathlib import Path

import click

from ..output import show_record, talk
from ..settings import Settings, verb
from .border import gateway_command

__all__ = ["migrate", "status"]

_config = click.option(
    "--config",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The configuration, TOML.",
)


@verb("status", "hsmux store status --config /etc/hsmux/hsmux.toml")
@_config
@click.pass_obj
def status(settings: Settings, config: Path) -> None:
    """Say which version the store's tables have.

    `state` is current, older, newer or empty. Neither token nor root is needed, and nothing is
    changed.
    """
    with gateway_command() as command:
        found = command.store_status(config)
    show_record(found, settings)


@verb("migrate", "hsmux store migrate --config /etc/hsmux/hsmux.toml")
@_config
@click.pass_obj
def migrate(settings: Settings, config: Path) -> None:
    """Bring an older store to this version.

    Make a copy of the store and stop every gateway that shares it first. One transaction: a crash
    leaves the store as it was. A store of this version stays as it is.
    """
    with gateway_command() as command:
        done = command.store_migrate(config)
    is_new = done["before"] != done["version"]
    talk("the store is migrated" if is_new else "the store is of this version already")
    show_record(done, settings)
