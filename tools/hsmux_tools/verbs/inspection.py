"""`hsmux inspect`: what an envelope says about itself."""

import click

from hsmux_protocol.envelope import FORMAT, SUITE_RSA_OAEP_SHA_256, parse_header
from hsmux_protocol.operations import ENVELOPE_SIZE_MAX
from hsmux_protocol.references import format_key_id

from ..output import show_record
from ..settings import FILE, Settings, verb
from ..source import read_envelope

__all__ = ["inspect"]


@verb("inspect", "hsmux inspect hello.hsmux", "hsmux inspect --field key_id < hello.hsmux")
@click.argument("source", type=FILE, metavar="[FILE|-]", default="-")
@click.pass_obj
def inspect(settings: Settings, source: str) -> None:
    """Explain an envelope, without key or gateway.

    Shows which key version opens it and how it is made; whether it does open only decrypt says.
    """
    envelope = read_envelope(source, ENVELOPE_SIZE_MAX)
    header = parse_header(envelope)
    # The length of an RSA-OAEP block tells nothing about the plaintext's.
    hidden = header.suite is SUITE_RSA_OAEP_SHA_256
    record = {
        "format": FORMAT,
        "suite": header.suite.name,
        "key_id": format_key_id(header.key_id),
        "key_version": header.key_version,
        "envelope_bytes": len(envelope),
        "plaintext_bytes": None if hidden else len(envelope) - header.suite.overhead_size,
    }
    show_record(record, settings)
