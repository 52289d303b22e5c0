"""`hsmux dev`, `init`, `serve` and `check-config`."""

import os
import shlex
from pathlib import Path
from typing import Any, Final

import click

from ..output import show_record, talk
from ..settings import Settings, verb
from .border import gateway_command
from .profiles import refuse_taken, replace_option

__all__ = ["check_config", "dev", "init", "serve"]

ADMINISTRATOR: Final = "administrator"
"""The profile that `init` saves where none is named."""

LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}
"""Where to connect to a gateway that listens on every address."""

_config = click.option(
    "--config",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The configuration, TOML.",
)


@verb("dev", "hsmux dev", "hsmux dev --state ~/hsmux-dev --port 7411")
@click.option(
    "--state",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep tokens, keys and store here (default: a temporary directory).",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    metavar="PORT",
    help="On 127.0.0.1 (default: a free one).",
)
def dev(state: Path | None, port: int) -> None:
    """Run a development gateway on this machine.

    A whole gateway with a SoftHSM token, a CA and a client key of its own, on loopback; saves the
    profile `dev` and says what to type next. Ctrl-C stops it.
    """
    with gateway_command() as command:
        command.dev(state, port)


@verb(
    "init", "hsmux init --config /etc/hsmux/hsmux.toml", "hsmux init --config gw.toml --profile ops"
)
@_config
@replace_option
@click.option(
    "--restore-administrator",
    "restored",
    is_flag=True,
    help="Give the first administrator back its state and its policy: break the glass.",
)
@click.pass_obj
def init(settings: Settings, config: Path, replace: bool, restored: bool) -> None:
    """Initialise the deployment a configuration describes.

    Makes the root key, the CA and the first administrator's client key, and saves a profile with
    it: `administrator`, or the one that --profile names. May be repeated: what is there stays,
    what is missing is made. A profile of another deployment is not replaced.
    """
    profile = settings.profile or ADMINISTRATOR
    with gateway_command() as command:
        server, certificate = command.administrator(config)
        refuse_taken(profile, replace=replace, own=os.path.abspath(certificate))
        made = command.init(config, restored=restored)
        _save_administrator(server, profile, made)
    talk(f"made {', '.join(made.made)}" if made.made else "all was there already; nothing was made")
    talk(f"saved profile {profile}; next:")
    for line in (
        f"hsmux serve --config {shlex.quote(str(config))}",
        f"hsmux --profile {profile} status    # in another terminal",
        f"hsmux --profile {profile} access-point create NAME",
    ):
        talk(f"  {line}")
    paths = {name: str(getattr(made, name)) for name in ("certificate", "private_key", "ca")}
    show_record({"profile": profile, **paths}, settings)


def _save_administrator(server: Any, name: str, made: Any) -> None:
    from hsmux.profiles import Profile, save_profile

    addresses = []
    for address in server.listen:
        host, _, port = address.rpartition(":")
        addresses.append(f"{LOOPBACK.get(host, host)}:{port}")
    profile = Profile(
        tuple(addresses),
        str(made.certificate),
        str(made.private_key),
        str(made.ca),
        server.names[0],
    )
    save_profile(name, profile)


@verb("serve", "hsmux serve --config /etc/hsmux/hsmux.toml")
@_config
@click.option(
    "--accept-rollback",
    is_flag=True,
    help="Go on with a store that is older than its anchor; this once, after restoring a backup.",
)
def serve(config: Path, accept_rollback: bool) -> None:
    """Serve until SIGTERM.

    Logs JSON lines to standard error. SIGTERM finishes open requests first.
    """
    with gateway_command() as command:
        command.serve(config, accept_rollback=accept_rollback)


@verb("check-config", "hsmux check-config --config /etc/hsmux/hsmux.toml")
@_config
def check_config(config: Path) -> None:
    """Check a configuration file.

    Looks at the file and at what it names: files, directories, owners and modes. Names the place
    and the remedy. No token, store or other machine is asked; `hsmux hsm probe` asks the token.
    """
    with gateway_command() as command:
        tokens = command.check_config(config)
    talk(f"{config} is in order, as far as that shows without asking a token or the store")
    for name in tokens:
        talk(f"  hsmux hsm probe --config {shlex.quote(str(config))} --token {name}")
