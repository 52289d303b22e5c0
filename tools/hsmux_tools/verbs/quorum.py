"""`hsmux quorum set|show` and `hsmux request list|show|approve|withdraw`."""

import json
from typing import TYPE_CHECKING, Any, Final

import click

from hsmux_protocol.operations import APPROVALS_MAX

from ..output import record_of, show_list, show_record
from ..settings import Settings, verb
from .connection import connect

if TYPE_CHECKING:
    from hsmux import PendingRequest

__all__ = [
    "approve",
    "list_requests",
    "set_quorum",
    "show_quorum",
    "show_request",
    "withdraw",
]

COLUMNS: Final = ("request", "access_point", "operation", "touches", "missing", "expires_at")
EXAMPLE: Final = "c9a4e3b9a0f1d9f3f4bb8d0cbf0bdbf62bb0a1a04e5d7b2f1ef2f2b4a2c3d4e5"


@verb("set", "hsmux quorum set 2", "hsmux quorum set 0")
@click.argument("approvals", type=click.IntRange(0, APPROVALS_MAX), metavar="APPROVALS")
@click.pass_obj
def set_quorum(settings: Settings, approvals: int) -> None:
    """Set how many approvals are needed.

    So many others have to approve each change of administrators and approvers: their policies,
    network rules, states and client keys, and this setting. 0: nobody has to.
    """
    with connect(settings) as client:
        made = client.set_quorum(approvals, timeout_s=settings.timeout_s)
    show_record(record_of(made), settings)


@verb("show", "hsmux quorum show", "hsmux quorum show -o json")
@click.pass_obj
def show_quorum(settings: Settings) -> None:
    """Show how many approvals are needed."""
    with connect(settings) as client:
        found = client.show_quorum(timeout_s=settings.timeout_s)
    show_record(record_of(found), settings)


@verb("list", "hsmux request list", "hsmux request list --field request")
@click.pass_obj
def list_requests(settings: Settings) -> None:
    """List requests that wait for approvals."""
    with connect(settings) as client:
        found = client.list_requests(timeout_s=settings.timeout_s)
    records = [_without_arguments(request) for request in found]
    show_list(records, COLUMNS, settings)


@verb("show", f"hsmux request show {EXAMPLE}", f"hsmux request show {EXAMPLE} -o json")
@click.argument("request", metavar="REQUEST")
@click.pass_obj
def show_request(settings: Settings, request: str) -> None:
    """Show a request with its arguments."""
    with connect(settings) as client:
        found = client.show_request(request, timeout_s=settings.timeout_s)
    show_record({**record_of(found), "arguments": json.loads(found.arguments)}, settings)


@verb("approve", f"hsmux request approve {EXAMPLE}")
@click.argument("request", metavar="REQUEST")
@click.pass_obj
def approve(settings: Settings, request: str) -> None:
    """Approve a request of another access point.

    Look at it first: `hsmux request show REQUEST`. When enough have approved, the one who asked
    asks for the same again, and it is done.
    """
    with connect(settings) as client:
        approved = client.approve_request(request, timeout_s=settings.timeout_s)
    show_record(_without_arguments(approved), settings)


@verb("withdraw", f"hsmux request withdraw {EXAMPLE}")
@click.argument("request", metavar="REQUEST")
@click.pass_obj
def withdraw(settings: Settings, request: str) -> None:
    """Forget a request, and its approvals."""
    with connect(settings) as client:
        gone = client.withdraw_request(request, timeout_s=settings.timeout_s)
    show_record(_without_arguments(gone), settings)


def _without_arguments(request: "PendingRequest") -> dict[str, Any]:
    """A request as a record where its arguments are not told."""
    record = record_of(request)
    del record["arguments"]
    return record
