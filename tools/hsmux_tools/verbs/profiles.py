"""`hsmux profile add|list|use|show`."""

import dataclasses
import os
from typing import Any

import click

from hsmux import profiles as saved
from hsmux.profiles import Profile

from ..failure import EXIT_CONFLICT, Failure
from ..output import show_list, show_record, talk
from ..settings import FILE, Settings, complete_profile, verb

__all__ = ["add", "list_profiles", "refuse_taken", "replace_option", "show", "use"]

replace_option = click.option(
    "--replace", is_flag=True, help="Replace a profile of that name, if there is one."
)


def refuse_taken(name: str, *, replace: bool, own: str | None = None) -> None:
    """Refuse to save a profile over another one; verbs ask before they do anything.

    Args:
        name: Of the profile to save.
        replace: The user wants it replaced.
        own: Path of a client certificate: a profile that uses it is replaced without asking.

    Raises:
        InvalidArgument: The name cannot be one.
        Failure: There is such a profile.
    """
    saved.check_profile_name(name)
    found = saved.list_profiles().get(name)
    if found is not None and not replace and found.certificate != own:
        raise Failure(
            f"there is a profile {name} already, for {', '.join(found.addresses)}; choose another "
            "name, or --replace it",
            EXIT_CONFLICT,
        )


def _record(name: str, profile: Profile) -> dict[str, Any]:
    values = dataclasses.asdict(profile)
    return {"name": name, **values, "addresses": list(profile.addresses)}


@verb(
    "add",
    "hsmux profile add billing --address gw1.example:7411 --certificate billing.pem "
    "--private-key billing.key --ca billing-ca.pem",
)
@click.argument("name", metavar="NAME")
@click.option(
    "--address",
    "addresses",
    multiple=True,
    required=True,
    metavar="HOST:PORT",
    help="May be repeated; connections spread over them.",
)
@click.option(
    "--certificate", required=True, type=FILE, metavar="FILE", help="PEM: the client certificate."
)
@click.option(
    "--private-key", required=True, type=FILE, metavar="FILE", help="PEM: its private key."
)
@click.option("--ca", required=True, type=FILE, metavar="FILE", help="PEM: the CA of the gateway.")
@click.option("--server-name", metavar="NAME", help="In the gateway's certificate, if not HOST.")
@click.option(
    "--renewal",
    type=click.Choice(saved.RENEWALS),
    default=saved.AUTO,
    show_default=True,
    help="How clients renew its client key; own-key: the private key is made here or not at all.",
)
@click.option("--default", "is_default", is_flag=True, help="Make it the default.")
@replace_option
def add(
    name: str,
    addresses: tuple[str, ...],
    certificate: str,
    private_key: str,
    ca: str,
    server_name: str | None,
    renewal: str,
    is_default: bool,
    replace: bool,
) -> None:
    """Save how to reach a gateway.

    It holds the paths of the files, not the keys. The files are looked at, the gateway is not
    asked.
    """
    refuse_taken(name, replace=replace)
    profile = Profile(addresses, certificate, private_key, ca, server_name, renewal)
    saved.check_profile_files(profile)
    saved.save_profile(name, profile, default=is_default)
    talk(f"saved profile {name}")


@verb("list", "hsmux profile list", "hsmux profile list --field name")
@click.pass_obj
def list_profiles(settings: Settings) -> None:
    """List profiles."""
    default = saved.default_profile()
    records = [
        {**_record(name, profile), "default": name == default}
        for name, profile in saved.list_profiles().items()
    ]
    show_list(records, ("name", "default", "addresses", "certificate"), settings)


@verb("use", "hsmux profile use billing")
@click.argument("name", metavar="NAME", shell_complete=complete_profile)
def use(name: str) -> None:
    """Make a profile the default.

    HSMUX_PROFILE and --profile come before it.
    """
    saved.use_profile(name)
    talk(f"profile {name} is the default")


@verb("show", "hsmux profile show", "hsmux profile show billing --field certificate")
@click.argument("name", metavar="[NAME]", required=False, shell_complete=complete_profile)
@click.pass_obj
def show(settings: Settings, name: str | None) -> None:
    """Show one profile.

    Without NAME the one that a verb would use now.
    """
    chosen = name or settings.profile or os.environ.get("HSMUX_PROFILE") or saved.default_profile()
    profile = saved.load_profile(chosen)
    show_record(_record(chosen or "", profile), settings)
