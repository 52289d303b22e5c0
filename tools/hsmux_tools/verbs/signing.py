"""`hsmux sign` and `verify`."""

import hashlib
import sys
from pathlib import Path
from typing import IO, Final

import click

from hsmux_protocol.keys import ALGORITHMS
from hsmux_protocol.limits import ITEM_SIZE_MAX
from hsmux_protocol.operations import SIGNATURE_SIZE_MAX

from ..failure import EXIT_USAGE, Failure
from ..output import record_of, refuse_terminal, show_bytes, show_record, talk
from ..settings import FILE, Settings, verb
from ..source import about, read_input, read_limited, unpack_base64
from .connection import connect

__all__ = ["sign", "verify"]

BLOCK_SIZE: Final = 1 << 20

_algorithm = click.option(
    "--algorithm",
    required=True,
    type=click.Choice(tuple(ALGORITHMS)),
    metavar="ALGORITHM",
    help=f"One of {', '.join(ALGORITHMS)}.",
)
_digest = click.option(
    "--digest", is_flag=True, help="The input is the message's digest, in bytes."
)
_input = click.argument("source", type=FILE, metavar="[IN|-]", default="-")


def _read_message(source: str, algorithm: str, digest: bool) -> tuple[bytes, bool]:
    """The message, or its digest when it is too long to be sent; and whether it is a digest."""
    if digest:
        size = ALGORITHMS[algorithm].digest_size
        remedy = f"a digest for {algorithm} has {size}, without --digest the message is read"
        return read_input(source, size, remedy), True
    if source == "-":
        if sys.stdin.isatty():
            talk("reading from the terminal; Ctrl-D ends it")
        return _read_or_hash(sys.stdin.buffer, algorithm)
    with Path(source).open("rb") as file:
        return _read_or_hash(file, algorithm)


def _read_or_hash(stream: IO[bytes], algorithm: str) -> tuple[bytes, bool]:
    """Every algorithm signs a hash, so who computes it makes no difference to the signature."""
    data = read_limited(stream, ITEM_SIZE_MAX)
    if len(data) <= ITEM_SIZE_MAX:
        return data, False
    hashed = hashlib.new(ALGORITHMS[algorithm].hash_name, data)
    while data := stream.read(BLOCK_SIZE):
        hashed.update(data)
    return hashed.digest(), True


@verb(
    "sign",
    "hsmux sign alias/release --algorithm ECDSA_SHA_256 package.tar --out package.sig",
    "openssl dgst -sha256 -binary FILE | hsmux sign alias/release --algorithm ECDSA_SHA_256 "
    "--digest --base64",
)
@click.argument("key", metavar="KEY")
@_input
@_algorithm
@_digest
@click.option("--out", type=FILE, metavar="FILE", help="Write here instead of standard output.")
@click.option("--base64", "as_base64", is_flag=True, help="Print base64.")
@click.pass_obj
def sign(
    settings: Settings,
    key: str,
    source: str,
    algorithm: str,
    digest: bool,
    out: str | None,
    as_base64: bool,
) -> None:
    """Sign a file or standard input.

    Input of any size: what is longer than 64 KiB is hashed here, and its digest is signed, which
    gives the same kind of signature. ECDSA signatures are DER, with _RAW r and s.
    """
    refuse_terminal(settings, out=out, as_base64=as_base64)
    message, is_digest = _read_message(source, algorithm, digest)
    with connect(settings) as client:
        signature = client.sign(
            key, message, algorithm=algorithm, digest=is_digest, timeout_s=settings.timeout_s
        )
    show_bytes(
        signature.signature, lambda: record_of(signature), settings, out=out, as_base64=as_base64
    )


@verb(
    "verify",
    "hsmux verify alias/release --algorithm ECDSA_SHA_256 --signature package.sig package.tar",
)
@click.argument("key", metavar="KEY")
@_input
@_algorithm
@_digest
@click.option("--signature", required=True, type=FILE, metavar="FILE", help="What sign wrote.")
@click.option("--base64", "as_base64", is_flag=True, help="The signature is in base64.")
@click.pass_obj
def verify(
    settings: Settings,
    key: str,
    source: str,
    algorithm: str,
    digest: bool,
    signature: str,
    as_base64: bool,
) -> None:
    """Verify a signature.

    Prints `valid`; exit code 7 when it is not.
    """
    if source == signature == "-":
        raise Failure("standard input cannot be both message and signature", EXIT_USAGE)
    size_max = 2 * SIGNATURE_SIZE_MAX if as_base64 else SIGNATURE_SIZE_MAX
    signature_bytes = read_input(signature, size_max, "this is not a signature")
    if as_base64:
        signature_bytes = unpack_base64(signature, signature_bytes)
    message, is_digest = _read_message(source, algorithm, digest)
    with about(source), connect(settings) as client:
        client.verify(
            key,
            message,
            signature_bytes,
            algorithm=algorithm,
            digest=is_digest,
            timeout_s=settings.timeout_s,
        )
    if settings.field is None and settings.output_format == "table":
        click.echo("valid")
    else:
        show_record({"valid": True, "algorithm": algorithm}, settings)
