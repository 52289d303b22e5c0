"""Run the bench: `tools/dev bench`, or `python -m hsmux_tools.bench` where all is installed.

0    every target holds
1    it could not be measured
20   a target is missed
21   the generator was the limit: the run is invalid
22   an answer was wrong
"""

import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

import click

from hsmux import Client, HsmuxError

from ..failure import EXIT_FAILED, EXIT_INTERRUPTED, Failure
from .clocks import split_cores
from .measures import MEASURES, Measure, Pace
from .report import machine, record, table
from .rows import EXIT_WRONG, Row, WrongAnswer, exit_code
from .site import PROFILE, check_installed, open_site

__all__ = ["run", "run_measures"]

ROUNDS: Final = 7
SECONDS: Final = 0.4
"""Of each of the two things in a round: some thousand requests."""

EXIT_TERMINATED: Final = 128 + signal.SIGTERM


def run_measures(measures: Sequence[Measure], pace: Pace) -> tuple[list[Row], str]:
    """Measure, in a gateway of its own where one is needed.

    Returns:
        The rows, and the backend of the C module; empty without a gateway.

    Raises:
        Failure: Something is missing or does not start.
        WrongAnswer: An answer was not what it must be.
    """
    rows, native = list[Row](), ""
    allowed = os.sched_getaffinity(0)
    with ExitStack() as stack:
        sites = []
        if any(measure.needs_gateway for measure in measures):
            check_installed()
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="hsmux-bench-"))
            sites.append(stack.enter_context(open_site(Path(directory))))
        for measure in measures:
            print(f"bench: measuring {measure.name}", file=sys.stderr, flush=True)
            try:
                rows += measure.run(*(sites if measure.needs_gateway else ()), pace)
            finally:
                os.sched_setaffinity(0, allowed)
        if sites:
            with Client.connect(profile=PROFILE) as client:
                native = client.status().native_backend
    return rows, native


def _show(rows: Sequence[Row], pace: Pace, native: str, output_format: str) -> None:
    cores = split_cores()
    if output_format == "json":
        print(json.dumps(record(rows, pace, cores, native=native), indent=2))
        return
    here = machine()
    print(table(rows))
    print(
        f"\n{pace.rounds} rounds on {here['processor']}, {here['cores']} cores, load "
        f"{here['load_average']}; {_placement(*cores)}"
    )


def _placement(mine: set[int], others: set[int]) -> str:
    if mine == others:
        return "one core: generator and gateway share it"
    return f"generator on core {min(mine)}, what it measures on core {min(others)}"


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the bench as Ctrl-C does: what it started is ended first."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(EXIT_TERMINATED)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run(measures: Sequence[Measure], pace: Pace, output_format: str) -> int:
    """Measure, print, and say how it ended; the exit code."""
    try:
        with _ended_by_sigterm():
            rows, native = run_measures(measures, pace)
    except WrongAnswer as error:
        print(f"bench: wrong answer: {error}", file=sys.stderr)
        return EXIT_WRONG
    except (Failure, HsmuxError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    _show(rows, pace, native, output_format)
    return exit_code(rows)


@click.command(
    epilog="Exit codes: 0 every target holds, 20 one is missed, 21 the generator was the limit, "
    "22 an answer was wrong, 1 it could not be measured."
)
@click.option("--rounds", type=click.IntRange(1), default=ROUNDS, show_default=True)
@click.option(
    "--seconds",
    type=click.FloatRange(0, 60, min_open=True),
    default=SECONDS,
    show_default=True,
    help="For each of the two things in a round.",
)
@click.option(
    "--only",
    multiple=True,
    type=click.Choice([measure.name for measure in MEASURES]),
    help="Measure this alone; may be given more than once.",
)
@click.option(
    "-o",
    "--output-format",
    type=click.Choice(("table", "json")),
    default="table",
    show_default=True,
)
def command(rounds: int, seconds: float, only: tuple[str, ...], output_format: str) -> NoReturn:
    """Measure the gateway's speed as ratios of two things, each in one run."""
    measures = [measure for measure in MEASURES if not only or measure.name in only]
    sys.exit(run(measures, Pace(rounds, seconds), output_format))


if __name__ == "__main__":
    command(prog_name="tools/dev bench")
