"""What `hsmux audit` asks: a directory in, lines or a report out, errors for an operator.

Nothing here needs a configuration, a store, an HSM or a running gateway: a copy of the directory
is enough, and for `verify` the public key.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from ..errors import OperatorError
from ..private_files import open_regular
from .checkpoints import NOTE_SIZE_MAX, load_public_key
from .layout import chain_directories
from .lookup import decided_by, find_in_segment, is_reference, newest_segments
from .reading import Numbered, UnreadableLog, export, json_line, last_records, matching
from .records import export_record
from .verify import Report, verify

__all__ = [
    "EXIT_INTEGRITY",
    "EXIT_NOT_FOUND",
    "explained",
    "export_lines",
    "match_lines",
    "tail_lines",
    "verified",
]

EXIT_INTEGRITY: Final = 7
"""Exit code: the log is not what was written."""

EXIT_NOT_FOUND: Final = 3
"""Exit code: no record has this reference."""

_EXIT_USAGE: Final = 2

_EXPLAINED: Final = ("at", "access_point", "operation", "resource", "outcome", "statement")
"""Of a record, what explains a decision; a run has no outcome, since all of it was done."""


def _lines(records: Iterator[Numbered]) -> Iterator[bytes]:
    try:
        yield from map(json_line, records)
    except UnreadableLog as error:
        text = f"audit: {error}; `hsmux audit verify` tells more"
        raise OperatorError(text, exit_code=EXIT_INTEGRITY) from None


def _log_at(directory: Path) -> Path:
    if not directory.is_dir():
        raise OperatorError(f"audit: {directory} is no directory", exit_code=_EXIT_USAGE)
    if not chain_directories(directory):
        text = (
            f"audit: there is no log in {directory}; it is in the directory that audit.directory "
            "names, or else in audit in instance_dir"
        )
        raise OperatorError(text, exit_code=_EXIT_USAGE)
    return directory


def export_lines(directory: Path) -> Iterator[bytes]:
    """Every record as a line of JSON, chain by chain.

    Raises:
        OperatorError: The log cannot be read on.
    """
    return _lines(export(_log_at(directory)))


def tail_lines(directory: Path, count: int) -> Iterator[bytes]:
    """The newest records as lines of JSON, in the order of time.

    Raises:
        OperatorError: The log cannot be read.
    """

    def newest() -> Iterator[Numbered]:
        yield from last_records(_log_at(directory), count)

    return _lines(newest())


def match_lines(directory: Path, reference: str) -> Iterator[bytes]:
    """The records of a reference as lines of JSON.

    Raises:
        OperatorError: There is none, or the log cannot be read.
    """
    found = False
    for line in _lines(matching(_log_at(directory), reference)):
        found = True
        yield line
    if not found:
        text = f"audit: no record in {directory} has the reference {reference}"
        raise OperatorError(text, exit_code=EXIT_NOT_FOUND)


def explained(directory: Path, reference: str) -> dict[str, Any]:
    """What a log alone says of the decision on a request.

    Raises:
        OperatorError: There is no record of it, or the log cannot be read.
    """
    if not is_reference(reference):
        raise OperatorError(f"audit: {reference[:64]!r} is no reference", exit_code=_EXIT_USAGE)
    for path in newest_segments(_log_at(directory)):
        found = find_in_segment(path, reference)
        if found is not None:
            decided = decided_by(found.record)
            told = export_record(found.record)
            kept = {name: told.get(name, "done") for name in _EXPLAINED}
            policy = "" if decided is None else decided.policy
            place = {"chain": found.chain, "sequence": found.sequence}
            return {**kept, "policy": policy, **place}
    text = f"audit: no record in {directory} has the reference {reference}"
    raise OperatorError(text, exit_code=EXIT_NOT_FOUND)


def verified(
    directory: Path,
    public_key: Path,
    older_checkpoint: Path | None = None,
    expected_chains: Sequence[str] = (),
) -> tuple[dict[str, Any], list[str]]:
    """Verify a log.

    Returns:
        The report, and what to say about it: a line for each problem, then what was found.

    Raises:
        OperatorError: The arguments cannot be used.
    """
    try:
        with open_regular(public_key) as file:
            key = load_public_key(file.read(NOTE_SIZE_MAX))
        older = None
        if older_checkpoint is not None:
            with open_regular(older_checkpoint) as file:
                older = file.read(NOTE_SIZE_MAX + 1)
    except OSError as error:
        raise OperatorError(
            f"audit: {error.filename}: {error.strerror}", exit_code=_EXIT_USAGE
        ) from None
    except ValueError as error:
        text = f"audit: {public_key}: {error}: name the PEM file of the audit key"
        raise OperatorError(text, exit_code=_EXIT_USAGE) from None
    report = verify(
        _log_at(directory),
        key,
        older_checkpoint=older,
        expected_chains=[_chain(text) for text in expected_chains],
    )
    return report.to_json(), [*map(str, report.problems), _summary(report)]


def _chain(text: str) -> bytes:
    try:
        chain = bytes.fromhex(text)
    except ValueError:
        chain = b""
    if len(chain) != 16:
        text = f"audit: a chain is 32 hexadecimal digits, not {text[:64]!r}"
        raise OperatorError(text, exit_code=_EXIT_USAGE)
    return chain


def _summary(report: Report) -> str:
    verdict = "the log is whole" if report.ok else "the log is not what was written"
    text = (
        f"{verdict}: {report.records} records in {len(report.chains)} chains,"
        f" {report.checkpoints} checkpoints"
    )
    for one in report.chains:
        if report.ok and one.first > 1:
            text += f"; chain {one.chain} begins with record {one.first}, older ones were retired"
    if report.behind:
        text += f"; {report.behind} records behind the last checkpoint are held by their chain only"
    return text
