"""`hsmux network-rule put|show|list|delete`."""

from typing import Final

import click

from ..output import record_of, show_list, show_record
from ..settings import Settings, verb
from .connection import connect

__all__ = ["delete", "list_network_rules", "put", "show"]

COLUMNS: Final = ("name", "networks", "updated_at")


@verb("put", "hsmux network-rule put office 10.1.0.0/16 2001:db8::/32")
@click.argument("name", metavar="NAME")
@click.argument("networks", nargs=-1, required=True, metavar="NETWORK...")
@click.pass_obj
def put(settings: Settings, name: str, networks: tuple[str, ...]) -> None:
    """Make a network rule, or replace it.

    NETWORK is an IPv4 or IPv6 network as CIDR. Policies require a rule by its name, and an access
    point that has rules is accepted from inside one of them only.
    """
    with connect(settings) as client:
        made = client.put_network_rule(name, networks, timeout_s=settings.timeout_s)
    show_record(record_of(made), settings)


@verb("show", "hsmux network-rule show office")
@click.argument("name", metavar="NAME")
@click.pass_obj
def show(settings: Settings, name: str) -> None:
    """Show one network rule."""
    with connect(settings) as client:
        found = client.show_network_rule(name, timeout_s=settings.timeout_s)
    show_record(record_of(found), settings)


@verb("list", "hsmux network-rule list", "hsmux network-rule list -o json")
@click.pass_obj
def list_network_rules(settings: Settings) -> None:
    """List network rules."""
    with connect(settings) as client:
        records = [
            record_of(item) for item in client.list_network_rules(timeout_s=settings.timeout_s)
        ]
    show_list(records, COLUMNS, settings)


@verb("delete", "hsmux network-rule delete office")
@click.argument("name", metavar="NAME")
@click.pass_obj
def delete(settings: Settings, name: str) -> None:
    """Remove an unused network rule.

    One that a policy or access point requires is refused.
    """
    with connect(settings) as client:
        gone = client.delete_network_rule(name, timeout_s=settings.timeout_s)
    show_record(record_of(gone), settings)
