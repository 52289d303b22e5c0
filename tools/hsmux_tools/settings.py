"""The global options: accepted before the verb and after it, and the class of every verb."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import click

__all__ = ["FILE", "FORMATS", "Settings", "Verb", "complete_profile", "global_options", "verb"]

FORMATS: Final = ("table", "json", "yaml")
FILE: Final = click.Path()
"""A file's name, which shells can complete; `-` where the verb says so."""


@dataclass(slots=True)
class Settings:
    """What the global options said.

    Attributes:
        profile: Name of the profile to connect with; None: `HSMUX_PROFILE`, else the default.
        output_format: One of `FORMATS`.
        field: Print this field alone.
        timeout_s: Seconds for connecting and for each request; None: the client's defaults.
    """

    profile: str | None = None
    output_format: str = "table"
    field: str | None = None
    timeout_s: float | None = None


def complete_profile(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[str]:
    """Names of saved profiles, for shells; none where the file cannot be read."""
    from hsmux.profiles import list_profiles
    from hsmux_protocol.errors import HsmuxError

    try:
        return [name for name in list_profiles() if name.startswith(incomplete)]
    except HsmuxError:
        return []


def _remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Keep an option's value; one that stands after the verb comes later, and so wins."""
    settings = context.find_root().ensure_object(Settings)
    if value is not None and parameter.name is not None:
        setattr(settings, parameter.name, value)


def _option(*declarations: str, hidden: bool, **attributes: Any) -> click.Option:
    return click.Option(
        declarations, callback=_remember, expose_value=False, hidden=hidden, **attributes
    )


def global_options(*, hidden: bool) -> list[click.Parameter]:
    """The global options anew, for one command.

    Args:
        hidden: Leave them out of the command's help.
    """
    return [
        _option(
            "--profile",
            metavar="NAME",
            help="Connect with this profile (default: HSMUX_PROFILE, else the default profile).",
            shell_complete=complete_profile,
            hidden=hidden,
        ),
        _option(
            "-o",
            "--output-format",
            type=click.Choice(FORMATS),
            help="table: drawn on a terminal, tab-separated elsewhere.",
            hidden=hidden,
        ),
        _option("--field", metavar="NAME", help="Print this field alone.", hidden=hidden),
        _option(
            "--timeout",
            "timeout_s",
            type=click.FloatRange(min=0, min_open=True),
            metavar="SECONDS",
            help="For connecting and for each request (default: 10, or as long as it may need).",
            hidden=hidden,
        ),
    ]


class Verb(click.Command):
    """One verb: a command that takes the global options too and whose help ends with examples.

    Args:
        examples: Command lines as they are typed.
    """

    def __init__(self, *arguments: Any, examples: Sequence[str] = (), **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.examples = tuple(examples)
        own = {parameter.name for parameter in self.params}
        self.params += [o for o in global_options(hidden=True) if o.name not in own]

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Examples"):
            for example in self.examples:
                formatter.write(f"{'':>{formatter.current_indent}}{example}\n")
        formatter.write_paragraph()
        formatter.write_text("--profile, -o, --field and --timeout: see hsmux --help.")


def verb(name: str, *examples: str) -> Callable[[Callable[..., Any]], Verb]:
    """A decorator that makes a function one verb.

    Args:
        name: The last word of the verb.
        examples: Command lines for its help.
    """
    return click.command(name, cls=Verb, examples=examples)
