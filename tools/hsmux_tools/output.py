"""How results leave the command: tables, JSON, YAML, single fields, bytes and files.

Documented forms, the same for every verb:

* A record in JSON or YAML has the field names of the client's classes. Times are RFC 3339 in UTC,
  identifiers their text form, bytes base64 (`spki_sha256`: hexadecimal). Lists are arrays.
* A table is drawn on a terminal; elsewhere it is tab-separated lines, lists joined by commas,
  truth `true` or `false` as in JSON, control characters escaped: of a list a header and one line a
  record, of one record one line a field.
* On a terminal words are not broken, so that identifiers can be copied; very long ones are.
* `--field` prints one field, a line each for lists of records or values.
* Bytes are written as they are; onto a terminal only when they are text, or with `--out -`.
"""

import base64
import contextlib
import dataclasses
import datetime
import json
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from .failure import EXIT_USAGE, Failure, visible
from .settings import Settings

__all__ = [
    "is_terminal",
    "record_of",
    "refuse_terminal",
    "show_bytes",
    "show_list",
    "show_record",
    "talk",
    "write_file",
    "write_output",
]

HEXADECIMAL_FIELDS: Final = frozenset({"spki_sha256"})
"""Fields that other tools show in hexadecimal."""


WHOLE_WORD_MAX: Final = 64
"""Columns of the longest word that is never broken: a SHA-256 in hexadecimal."""


COLUMN_MARGIN: Final = 3
"""Columns of the terminal between two of a table."""


def talk(text: str) -> None:
    """Say something to the person, not to the next program."""
    click.echo(f"hsmux: {visible(text)}", err=True)


def is_terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout.isatty()


def record_of(value: Any) -> dict[str, Any]:
    """A result of the client as a record of plain values."""
    return {
        field.name: _plain(field.name, getattr(value, field.name))
        for field in dataclasses.fields(value)
    }


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex() if name in HEXADECIMAL_FIELDS else base64.b64encode(value).decode()
    if isinstance(value, datetime.datetime):
        return value.astimezone(datetime.UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, list | tuple):
        return [_plain(name, item) for item in value]
    return record_of(value) if dataclasses.is_dataclass(value) else value


def show_record(
    record: dict[str, Any], settings: Settings, *, out: str | None = None, secret: bool = False
) -> None:
    """Print one record; `out` and `secret` as for `show_bytes`."""
    if settings.field is not None:
        _show_field(_field(record, settings.field), settings, out, secret)
    elif settings.output_format != "table":
        write_output(_document(record, settings), out, secret=secret)
    elif is_terminal() and out is None:
        _draw(("field", "value"), [(name, _cell(value)) for name, value in record.items()])
    else:
        write_output(_rows(record.items()), out, secret=secret)


def show_list(
    records: Sequence[dict[str, Any]], columns: Sequence[str], settings: Settings
) -> None:
    """Print records; a table has only the columns named."""
    if settings.field is not None:
        values = [_field(record, settings.field) for record in records]
        _show_field(values, settings)
    elif settings.output_format != "table":
        write_output(_document(list(records), settings), None)
    elif is_terminal():
        _draw(columns, [[_cell(record[name]) for name in columns] for record in records])
    else:
        write_output(_lines(columns, records), None)


def _field(record: Mapping[str, Any], name: str) -> Any:
    if name not in record:
        raise Failure(f"--field {name}: there are {', '.join(record)}", EXIT_USAGE)
    return record[name]


def _show_field(
    value: Any, settings: Settings, out: str | None = None, secret: bool = False
) -> None:
    if settings.output_format != "table":
        write_output(_document(value, settings), out, secret=secret)
        return
    values = value if isinstance(value, list) else [value]
    write_output("".join(f"{_cell(item)}\n" for item in values).encode(), out, secret=secret)


def _document(value: Any, settings: Settings) -> bytes:
    if settings.output_format == "json":
        text = json.dumps(value, ensure_ascii=False, indent=2)
        return ("".join(map(_escaped, text)) + "\n").encode()
    return _yaml(value)


def _escaped(character: str) -> str:
    """A character of a JSON document that does a terminal no harm: JSON leaves C1 controls,
    directions of writing and invisible characters as they are.
    """
    if character.isprintable() or character == "\n":
        return character
    return json.dumps(character)[1:-1]


def _yaml(value: Any) -> bytes:
    try:
        import yaml  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        raise Failure(
            "-o yaml needs PyYAML: pip install 'hsmux-tools[yaml]', or use -o json", EXIT_USAGE
        ) from None
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    return text.encode()


def _cell(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return ",".join(f"{visible(str(k))}={_cell(v)}" for k, v in value.items())
    if isinstance(value, list):
        separator = "; " if any(isinstance(item, Mapping) for item in value) else ","
        return separator.join(_cell(item) for item in value)
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else visible(str(value))


def _lines(columns: Sequence[str], records: Iterable[Mapping[str, Any]]) -> bytes:
    return _rows([columns, *([record[name] for name in columns] for record in records)])


def _rows(rows: Iterable[Sequence[Any]]) -> bytes:
    return "".join("\t".join(map(_cell, row)) + "\n" for row in rows).encode()


def _draw(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [columns, *rows]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    needed = COLUMN_MARGIN
    for number, name in enumerate(columns):
        words = (word for row in cells for word in row[number].split())
        widths = (width for word in words if (width := cell_len(word)) <= WHOLE_WORD_MAX)
        least = max(widths, default=0)
        # Columns of words alone keep their width, so that texts give way first; nothing is cut.
        needed += least + COLUMN_MARGIN
        is_narrow = max(cell_len(row[number]) for row in cells) <= least
        table.add_column(name, overflow="fold", min_width=least, no_wrap=is_narrow)
    for row in cells[1:]:
        table.add_row(*(Text(cell) for cell in row))
    # Wider than the terminal rather than with broken words: the terminal's own folding is undone
    # when text is copied.
    console = Console()
    Console(width=max(console.width, needed)).print(table, crop=False)


def show_bytes(
    data: bytes,
    record: Callable[[], dict[str, Any]],
    settings: Settings,
    *,
    out: str | None,
    as_base64: bool,
    secret: bool = False,
) -> None:
    """Print bytes: as they are, in base64, or as a part of a record.

    Args:
        data: What to print.
        record: Makes the record that a format or a field asks for.
        settings: The global options.
        out: A file to write instead of standard output.
        as_base64: One line of base64 instead of the bytes.
        secret: The file is for its owner only.
    """
    if settings.field is not None or settings.output_format != "table":
        show_record(record(), settings, out=out, secret=secret)
    elif as_base64:
        write_output(base64.b64encode(data) + b"\n", out, secret=secret)
    else:
        if not _is_text(data):
            refuse_terminal(settings, out=out, as_base64=as_base64)
        write_output(data, out, secret=secret)


def refuse_terminal(
    settings: Settings, *, out: str | None, as_base64: bool, ways: str = "--base64"
) -> None:
    """Refuse to print bytes that are not text onto a terminal.

    Verbs whose bytes are never text ask before they do anything.

    Args:
        settings: The global options.
        out: A file to write instead of standard output.
        as_base64: Whether they are printed as text.
        ways: The verb's options that print them as text.

    Raises:
        Failure: They would be; says how to have them.
    """
    as_record = settings.field is not None or settings.output_format != "table"
    if out is None and is_terminal() and not as_base64 and not as_record:
        raise Failure(
            f"this is binary and standard output is a terminal; use {ways} or --out FILE",
            EXIT_USAGE,
        )


def _is_text(data: bytes) -> bool:
    """Whether bytes do a terminal no harm."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return False
    return all(c.isprintable() or c in "\n\r\t" for c in text)


def write_output(data: bytes, out: str | None, *, secret: bool = False) -> None:
    """Write to a file, or to standard output where none is named."""
    if out is not None and out != "-":
        write_file(Path(out), data, secret=secret)
        return
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def write_file(path: Path, data: bytes, *, secret: bool = False) -> None:
    """Write a file as a whole: readers see the old one or the new one, never a part.

    Args:
        path: The file; a link is followed, a device or pipe is written to.
        data: What it will hold.
        secret: For its owner only (0600); else as the file it replaces, or as the umask allows.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not stat.S_ISREG(target.stat().st_mode):
        target.write_bytes(data)
        return
    with _temporary(path, target) as (descriptor, name):
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600 if secret else _mode(target))
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.replace(name, target)


@contextlib.contextmanager
def _temporary(path: Path, target: Path) -> Iterator[tuple[int, str]]:
    try:
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".hsmux-")
    except OSError as error:
        # The name the person gave, not the temporary one.
        raise type(error)(error.errno, error.strerror, str(path)) from None
    try:
        yield descriptor, name
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def _mode(target: Path) -> int:
    """The permissions that a shell's `>` would leave."""
    if target.exists():
        return stat.S_IMODE(target.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
