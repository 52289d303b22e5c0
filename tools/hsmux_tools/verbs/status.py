"""`hsmux status`."""

import click

from ..output import record_of, show_record, talk
from ..settings import Settings, verb
from .connection import connect

__all__ = ["status"]


@verb("status", "hsmux status", "hsmux status -o json", "hsmux status --field store_revision")
@click.pass_obj
def status(settings: Settings) -> None:
    """Show what the gateway is and how it fares."""
    with connect(settings) as client:
        found = client.status(timeout_s=settings.timeout_s)
    show_record(record_of(found), settings)
    for warning in found.warnings:
        talk(f"warning: {warning}")
