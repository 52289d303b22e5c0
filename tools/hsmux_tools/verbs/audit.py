"""`hsmux audit tail|verify|export|match`: over a directory or a copy of it, without the gateway."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ..failure import Failure
from ..output import show_record, talk
from ..settings import Settings, verb
from .border import gateway_command

__all__ = ["export", "match", "tail", "verify"]

EXIT_INTEGRITY = 7
"""The log is not what was written."""

_directory = click.argument("directory", metavar="DIRECTORY", type=click.Path(path_type=Path))


def _print(function: str, *arguments: Any) -> None:
    with gateway_command() as command:
        lines: Iterator[bytes] = getattr(command, function)(*arguments)
        for line in lines:
            click.echo(line, nl=False)


@verb("tail", "hsmux audit tail /var/log/hsmux", "hsmux audit tail audit --count 100")
@_directory
@click.option("--count", metavar="N", type=click.IntRange(min=1), default=10, show_default=True)
def tail(directory: Path, count: int) -> None:
    """Print the newest audit records, as JSON lines."""
    _print("audit_tail", directory, count)


@verb("export", "hsmux audit export /var/log/hsmux > records.jsonl")
@_directory
def export(directory: Path) -> None:
    """Print all audit records as JSON lines.

    Chain by chain, each in its own order.
    """
    _print("audit_export", directory)


@verb("match", "hsmux audit match /var/log/hsmux r5f3a91c07b2e-1")
@_directory
@click.argument("reference", metavar="REFERENCE")
def match(directory: Path, reference: str) -> None:
    """Print the audit records of a reference.

    An answer, an error or a log line names it; a run has those of all its requests.
    """
    _print("audit_match", directory, reference)


@verb(
    "verify",
    "hsmux audit verify audit --public-key audit.pem",
    "hsmux audit verify copy --public-key audit.pem --checkpoint put-aside.txt -o json",
)
@_directory
@click.option(
    "--public-key",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path),
    help="The key of the checkpoints, PEM, kept apart from the log.",
)
@click.option(
    "--checkpoint",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="An older checkpoint that was put aside, to compare.",
)
@click.option(
    "--chain", "chains", metavar="CHAIN", multiple=True, help="A chain that must be there."
)
@click.pass_obj
def verify(
    settings: Settings,
    directory: Path,
    public_key: Path,
    checkpoint: Path | None,
    chains: tuple[str, ...],
) -> None:
    """Verify an audit log, offline.

    A copy of it and the public key are enough. Names the first bad record, a missing chain or a
    shortened one, and says what only a checkpoint from outside could tell. Exit code 7 if anything
    is wrong.
    """
    with gateway_command() as command:
        report, lines = command.audit_verify(directory, public_key, checkpoint, chains)
    for line in lines[:-1]:
        talk(line)
    if settings.output_format != "table" or settings.field is not None:
        show_record(report, settings)
    if not report["ok"]:
        raise Failure(lines[-1], EXIT_INTEGRITY)
    talk(lines[-1])
