"""`hsmux key create|list|show|public`."""

import click

from hsmux_protocol.keys import KEY_SPECS, PROTECTIONS, STORAGES, USAGES

from ..failure import EXIT_USAGE, Failure
from ..output import record_of, refuse_terminal, show_bytes, show_list, show_record
from ..settings import FILE, Settings, verb
from ..source import pairs_of
from .connection import connect

__all__ = ["create", "list_keys", "public", "show"]

LIST_COLUMNS = ("key_id", "aliases", "spec", "protection", "state", "version", "created_at")


@verb(
    "create",
    "hsmux key create --spec AES_256 --alias alias/first",
    "hsmux key create --spec EC_P256 --storage hsm --alias alias/release --tag team=build",
)
@click.option(
    "--spec",
    required=True,
    type=click.Choice(tuple(KEY_SPECS)),
    metavar="SPEC",
    help=f"One of {', '.join(KEY_SPECS)}.",
)
@click.option("--usage", type=click.Choice(USAGES), help="Default: what the spec is for.")
@click.option(
    "--protection",
    type=click.Choice(PROTECTIONS),
    help="Default: software, and hardware with --storage.",
)
@click.option("--storage", type=click.Choice(STORAGES), help="Where a hardware key lives.")
@click.option("--alias", metavar="alias/NAME", help="A name for it.")
@click.option("--description", default="", metavar="TEXT")
@click.option("--tag", "tags", multiple=True, metavar="NAME=VALUE", help="May be repeated.")
@click.pass_obj
def create(
    settings: Settings,
    spec: str,
    usage: str | None,
    protection: str | None,
    storage: str | None,
    alias: str | None,
    description: str,
    tags: tuple[str, ...],
) -> None:
    """Make a key."""
    pairs = pairs_of("--tag", tags)
    with connect(settings) as client:
        key = client.create_key(
            spec=spec,
            usage=usage or KEY_SPECS[spec].usage,
            protection=protection or ("hardware" if storage else "software"),
            storage=storage,
            alias=alias,
            description=description,
            tags=pairs,
            timeout_s=settings.timeout_s,
        )
    show_record(record_of(key), settings)


@verb("list", "hsmux key list", "hsmux key list --field key_id", "hsmux key list -o json")
@click.pass_obj
def list_keys(settings: Settings) -> None:
    """List keys."""
    with connect(settings) as client:
        records = [record_of(key) for key in client.list_keys(timeout_s=settings.timeout_s)]
    show_list(records, LIST_COLUMNS, settings)


@verb("show", "hsmux key show alias/first", "hsmux key show alias/first --field key_id")
@click.argument("key", metavar="KEY")
@click.pass_obj
def show(settings: Settings, key: str) -> None:
    """Show one key, without its material."""
    with connect(settings) as client:
        found = client.show_key(key, timeout_s=settings.timeout_s)
    show_record(record_of(found), settings)


@verb(
    "public",
    "hsmux key public alias/release --out release.pem",
    "hsmux key public alias/release --der --out release.der",
    "hsmux key public alias/release --der --base64",
)
@click.argument("key", metavar="KEY")
@click.option("--der", "as_der", is_flag=True, help="SubjectPublicKeyInfo in DER instead of PEM.")
@click.option("--out", type=FILE, metavar="FILE", help="Write here instead of standard output.")
@click.option("--base64", "as_base64", is_flag=True, help="With --der: print base64.")
@click.pass_obj
def public(settings: Settings, key: str, as_der: bool, out: str | None, as_base64: bool) -> None:
    """Print the public key of a signing key.

    PEM, or DER with --der; a format or a field has both.
    """
    if as_base64 and not as_der:
        raise Failure("--base64 goes with --der; PEM is text already", EXIT_USAGE)
    if as_der:
        refuse_terminal(settings, out=out, as_base64=as_base64)
    with connect(settings) as client:
        found = client.public_key(key, timeout_s=settings.timeout_s)
    show_bytes(
        found.der if as_der else found.pem.encode(),
        lambda: {**record_of(found), "pem": found.pem},
        settings,
        out=out,
        as_base64=as_base64,
    )
