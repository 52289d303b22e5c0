"""`hsmux policy put|show|list|delete|test|explain`."""

import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from hsmux_protocol.operations import DOCUMENT_SIZE_MAX

from ..failure import EXIT_USAGE, Failure
from ..output import record_of, show_list, show_record
from ..settings import FILE, Settings, verb
from ..source import pairs_of, read_input
from .border import gateway_command
from .connection import connect

if TYPE_CHECKING:
    from hsmux import Policy

__all__ = ["delete", "explain", "list_policies", "put", "show", "test"]

COLUMNS: Final = ("name", "statements", "access_points", "updated_at", "description")
EXIT_DENIED: Final = 4
"""What `policy test` says of a request that would be denied, like the request itself."""


@verb(
    "put",
    "hsmux policy put orders orders.toml",
    "hsmux policy put orders - < orders.json",
)
@click.argument("name", metavar="NAME")
@click.argument("source", type=FILE, metavar="FILE|-")
@click.pass_obj
def put(settings: Settings, name: str, source: str) -> None:
    """Make a policy, or replace it.

    FILE is TOML or JSON, for example

    \b
        description = "uses the keys of orders"
        [[statements]]
        effect = "allow"
        role = "crypto-user"
        resources = ["alias/orders/*"]

    A new document holds at once, on open connections too, for every access point that has the
    policy.
    """
    data = read_input(source, DOCUMENT_SIZE_MAX, "a policy is at most 16 KiB")
    document = _json_of(data, source)
    with connect(settings) as client:
        made = client.put_policy(name, document, timeout_s=settings.timeout_s)
    show_record(_without_document(made), settings)


def _json_of(data: bytes, source: str) -> str:
    """A document as JSON, that was TOML or JSON already.

    Raises:
        Failure: It is neither.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise Failure(f"{source}: not text in UTF-8", EXIT_USAGE) from None
    if text.lstrip().startswith("{"):
        return text
    try:
        return json.dumps(tomllib.loads(text), default=str, allow_nan=False)
    except (tomllib.TOMLDecodeError, ValueError, RecursionError) as error:
        raise Failure(f"{source}: neither JSON nor TOML: {error}", EXIT_USAGE) from None


def _without_document(policy: "Policy") -> dict[str, Any]:
    """A policy as a record where its document is not told."""
    record = record_of(policy)
    del record["document"]
    return record


@verb("show", "hsmux policy show orders", "hsmux policy show orders --field document")
@click.argument("name", metavar="NAME")
@click.pass_obj
def show(settings: Settings, name: str) -> None:
    """Show one policy with its document."""
    with connect(settings) as client:
        found = client.show_policy(name, timeout_s=settings.timeout_s)
    show_record(record_of(found), settings)


@verb("list", "hsmux policy list", "hsmux policy list --field name")
@click.pass_obj
def list_policies(settings: Settings) -> None:
    """List policies."""
    with connect(settings) as client:
        found = client.list_policies(timeout_s=settings.timeout_s)
    records = [_without_document(policy) for policy in found]
    show_list(records, COLUMNS, settings)


@verb("delete", "hsmux policy delete orders")
@click.argument("name", metavar="NAME")
@click.pass_obj
def delete(settings: Settings, name: str) -> None:
    """Remove an unused policy.

    One that an access point has is refused.
    """
    with connect(settings) as client:
        gone = client.delete_policy(name, timeout_s=settings.timeout_s)
    show_record(_without_document(gone), settings)


@verb(
    "test",
    "hsmux policy test --access-point billing --operation encrypt --resource alias/orders/1",
    "hsmux policy test --access-point billing --operation decrypt --resource alias/orders/1 "
    "-c tenant=a --from 10.1.2.3",
)
@click.option("--access-point", required=True, metavar="NAME", help="Who would ask.")
@click.option("--operation", required=True, metavar="OPERATION", help="What for.")
@click.option("--resource", metavar="KEY", help="The key it would name.")
@click.option("-c", "--context", "context", multiple=True, metavar="NAME=VALUE", help="Sent with.")
@click.option("--from", "address", metavar="IP", help="Where it would come from.")
@click.option(
    "--size", type=click.IntRange(0), default=0, metavar="BYTES", help="Of the data it would send."
)
@click.pass_obj
def test(
    settings: Settings,
    access_point: str,
    operation: str,
    resource: str | None,
    context: tuple[str, ...],
    address: str | None,
    size: int,
) -> None:
    """Say what would be decided, and why.

    Exits with 4 if it would be denied; `missing` then says what each statement that could allow
    it wants.
    """
    pairs = pairs_of("-c", context)
    with connect(settings) as client:
        decision = client.test_policy(
            access_point,
            operation,
            resource=resource,
            context=pairs,
            address=address,
            size=size,
            timeout_s=settings.timeout_s,
        )
    show_record(record_of(decision), settings)
    if not decision.allowed:
        raise SystemExit(EXIT_DENIED)


@verb(
    "explain",
    "hsmux policy explain r5f3a91c07b2e-1",
    "hsmux policy explain r5f3a91c07b2e-1 --directory /var/log/hsmux",
)
@click.argument("reference", metavar="REFERENCE")
@click.option(
    "--directory",
    metavar="DIRECTORY",
    type=click.Path(path_type=Path),
    help="An audit log or a copy of it, instead of asking the gateway.",
)
@click.pass_obj
def explain(settings: Settings, reference: str, directory: Path | None) -> None:
    """Say why a request was decided so.

    A refusal names a REFERENCE. The gateway looks it up in its audit log: who asked what, which
    statement of which policy decided, how that statement reads now and whether its policy was
    put since (`since`), what would be decided now, and what is missing. Without a gateway, the
    audit log alone tells what was decided.
    """
    if directory is not None:
        with gateway_command() as command:
            found = command.audit_explain(directory, reference)
        show_record(found, settings)
        return
    with connect(settings) as client:
        explanation = client.explain_reference(reference, timeout_s=settings.timeout_s)
    show_record(record_of(explanation), settings)
