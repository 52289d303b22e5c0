"""The `hsmux` command: verbs from the table, and one place where errors become a line and an exit
code.

Data goes to standard output, talk to standard error. An error is one line, `hsmux: <text>`, with
the reference that leads to the gateway's log; there is no traceback for anything a person can
mend. What an exit code means stands in `failure.EXIT_CODES`.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import click

from hsmux_protocol import __version__
from hsmux_protocol.errors import HsmuxError

from .failure import (
    EXIT_CODES,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    Failure,
    visible,
)
from .settings import Settings, global_options
from .table import LazyGroup

__all__ = ["command", "main"]

EPILOG: Final = f"Exit codes: {', '.join(f'{n} {e.short}' for n, e in EXIT_CODES.items())}."


class _Command(LazyGroup):
    """The outermost group."""

    def main(self, *arguments: Any, **extra: Any) -> NoReturn:
        """Run one command line and exit; the only place where errors are told."""
        extra["standalone_mode"] = False
        try:
            # Without standalone_mode click returns the exit code of --help and of Context.exit.
            code = super().main(*arguments, **extra)
            sys.stdout.flush()
            sys.exit(code if isinstance(code, int) else 0)
        except Exception as error:
            sys.exit(_tell(error))
        except KeyboardInterrupt:
            sys.exit(EXIT_INTERRUPTED)


def _tell(error: Exception) -> int:
    """Print one line about an error and return its exit code; what is no user's error goes on."""
    if isinstance(error, BrokenPipeError):
        # Nobody reads any more. What is still buffered has no reader either: the interpreter must
        # not try at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    if isinstance(error, click.Abort):
        return EXIT_INTERRUPTED
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return EXIT_USAGE
    if isinstance(error, click.ClickException):
        text, code = _usage(error), EXIT_USAGE
    elif isinstance(error, Failure):
        text, code = error.text, error.exit_code
    elif isinstance(error, HsmuxError):
        text, code = str(error), error.exit_code
    elif isinstance(error, OSError):
        # A file that was named on the command line, or else this machine.
        text, code = _system(error), EXIT_USAGE if error.filename else EXIT_FAILED
    else:
        raise error
    click.echo(f"hsmux: {visible(text)}", err=True)
    return code


def _usage(error: click.ClickException) -> str:
    text = " ".join(error.format_message().split())
    if isinstance(error, click.UsageError) and error.ctx is not None:
        text += "" if text[-1:] in ".?)" else "."
        return f"{text} Try `{error.ctx.command_path} --help`."
    return text


def _system(error: OSError) -> str:
    what = error.strerror or type(error).__name__
    return f"{error.filename}: {what}" if error.filename else what


def command() -> _Command:
    """The command anew, as click runs it."""
    made = _Command(
        "",
        help="Encrypt, sign and manage keys through an hsmux gateway.",
        epilog=EPILOG,
        params=global_options(hidden=False),
        callback=click.pass_context(lambda context: context.ensure_object(Settings) and None),
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    click.version_option(__version__, prog_name="hsmux", message="%(prog)s %(version)s")(made)
    return made


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command line and exit.

    Args:
        arguments: Without the program's name; None: of this process.
    """
    command().main(args=arguments, prog_name="hsmux")


if __name__ == "__main__":
    main()
