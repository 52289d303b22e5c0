"""`hsmux encrypt`, `decrypt` and `random`."""

import base64

import click

from hsmux_protocol.limits import ITEM_SIZE_MAX, RANDOM_SIZE_MAX
from hsmux_protocol.operations import ENVELOPE_SIZE_MAX

from ..failure import EXIT_USAGE, Failure
from ..output import record_of, refuse_terminal, show_bytes
from ..settings import FILE, Settings, verb
from ..source import about, pairs_of, read_envelope, read_input
from .connection import connect

__all__ = ["decrypt", "encrypt", "random"]

_context = click.option(
    "-c",
    "--context",
    "context",
    multiple=True,
    metavar="NAME=VALUE",
    help="Authenticated with the ciphertext and not secret; decrypting needs the same.",
)
_input = click.argument("source", type=FILE, metavar="[IN|-]", default="-")
_out = click.option(
    "--out", type=FILE, metavar="FILE", help="Write here instead of standard output."
)
_base64 = click.option("--base64", "as_base64", is_flag=True, help="Print base64.")


@verb(
    "encrypt",
    "echo hello | hsmux encrypt alias/first --out hello.hsmux",
    "hsmux encrypt alias/first -c table=users -c row=7 record.json --base64",
)
@click.argument("key", metavar="KEY")
@_input
@_context
@_out
@_base64
@click.pass_obj
def encrypt(
    settings: Settings,
    key: str,
    source: str,
    context: tuple[str, ...],
    out: str | None,
    as_base64: bool,
) -> None:
    """Encrypt a file or standard input.

    KEY is key-<identifier> or alias/<name>. At most 64 KiB. The output is an envelope that names
    its key, so nothing else need be kept to decrypt it but the context.
    """
    refuse_terminal(settings, out=out, as_base64=as_base64)
    pairs = pairs_of("-c", context)
    plaintext = read_input(
        source, ITEM_SIZE_MAX, "split it into records, many at once with Client.encrypt_many"
    )
    with connect(settings) as client:
        encrypted = client.encrypt(key, plaintext, context=pairs, timeout_s=settings.timeout_s)
    show_bytes(
        encrypted.ciphertext, lambda: record_of(encrypted), settings, out=out, as_base64=as_base64
    )


@verb(
    "decrypt",
    "hsmux decrypt hello.hsmux",
    "hsmux decrypt -c table=users -c row=7 --key alias/first --out record.json record.hsmux",
)
@_input
@_context
@click.option("--key", metavar="KEY", help="Refuse an envelope of any other key.")
@_out
@_base64
@click.pass_obj
def decrypt(
    settings: Settings,
    source: str,
    context: tuple[str, ...],
    key: str | None,
    out: str | None,
    as_base64: bool,
) -> None:
    """Decrypt what encrypt wrote.

    Takes an envelope as bytes or as base64. A file written with --out is for its owner only.
    """
    pairs = pairs_of("-c", context)
    envelope = read_envelope(source, ENVELOPE_SIZE_MAX)
    with about(source), connect(settings) as client:
        decrypted = client.decrypt(envelope, context=pairs, key=key, timeout_s=settings.timeout_s)
    show_bytes(
        decrypted.plaintext,
        lambda: record_of(decrypted),
        settings,
        out=out,
        as_base64=as_base64,
        secret=True,
    )


@verb("random", "hsmux random 32 --hex", "hsmux random 4096 --out seed")
@click.argument("length", type=click.IntRange(1, RANDOM_SIZE_MAX), metavar="LENGTH")
@click.option("--hex", "as_hex", is_flag=True, help="Print hexadecimal digits.")
@_out
@_base64
@click.pass_obj
def random(settings: Settings, length: int, as_hex: bool, out: str | None, as_base64: bool) -> None:
    """Print random bytes.

    LENGTH is 1 to 4096. They come from the gateway's operating system, mixed with the token's
    where there is one. A file written with --out is for its owner only.
    """
    if as_hex and as_base64:
        raise Failure("--hex or --base64, not both", EXIT_USAGE)
    refuse_terminal(settings, out=out, as_base64=as_base64 or as_hex, ways="--hex, --base64")
    with connect(settings) as client:
        data = client.generate_random(length, timeout_s=settings.timeout_s)
    show_bytes(
        f"{data.hex()}\n".encode() if as_hex else data,
        lambda: {"random": base64.b64encode(data).decode()},
        settings,
        out=out,
        as_base64=as_base64,
        secret=True,
    )
