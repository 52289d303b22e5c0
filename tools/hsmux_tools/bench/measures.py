"""The measurements: what each does in a round, and how its answers are checked.

Where processor time decides, it is all that the serving process has had: receiving, TLS, decoding,
deciding, recording, sending. So a machine that others use too changes the figure little, and a
generator that is a little slow nothing. The hardware path is processes side by side, and whether
the worker is kept busy is the very question: there it is the worker's time, at work or idle, but
not the time that a process of the path could have run and others had its core.

What needs no gateway of the site is measured in a process of its own, in a directory of its own.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from hsmux import Client
from hsmux.profiles import Profile
from hsmux_protocol.columns import pack_column
from hsmux_protocol.frames import LENGTH_SIZE

from ..failure import Failure
from .clocks import cpu_ns, pin, private_mib, resident_mib, split_cores, waited_ns
from .generator import Flow, Generator, Group, connect
from .rows import TARGETS, Row, WrongAnswer
from .site import Site
from .work import (
    BATCH_ITEMS,
    BATCHES_OPEN,
    RECORD_SIZE,
    SINGLES_OPEN,
    Work,
    batch_work,
    check,
    single_work,
)
from .yardstick import yardstick

__all__ = [
    "MEASURES",
    "Measure",
    "Pace",
    "measure_audit_batches",
    "measure_audit_singles",
    "measure_batches",
    "measure_decision",
    "measure_hardware_batches",
    "measure_help",
    "measure_memory",
    "measure_python_path",
    "measure_verify",
]

STARTS: Final = 3
"""Starts of a program in one round."""

AUDIT_PARTS: Final = 4
"""Times that recording is turned off and on in a round."""

ACCESS_POINTS_MAX: Final = 1000
"""Access points that decisions are measured with: ten policies and a hundred keys for each."""

RECORDS_MAX: Final = 100_000
"""Records of the log that is verified."""

FULL_SECONDS: Final = 0.2
"""Seconds of a round from which on decisions and verification are measured with all of these; a
shorter one gets fewer in proportion, since they have to be made first.
"""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pace:
    """How long it is measured.

    Attributes:
        rounds: Of each measurement.
        seconds: Of each of the two things in a round.
    """

    rounds: int
    seconds: float


class _Sample(NamedTuple):
    """What one of two things did: units of work, and the nanoseconds that count for it."""

    units: int
    cost_ns: int
    wall_ns: int
    generator_share: float = 0.0

    @property
    def rate(self) -> float:
        """Units a second."""
        return self.units * 1e9 / self.cost_ns


def _in_turn(rounds: int, first: Callable[[], T], second: Callable[[], T]) -> Iterator[tuple[T, T]]:
    """Do both, again and again, now the one first and now the other; once before it counts."""
    first(), second()
    for number in range(rounds):
        if number % 2:
            other, one = second(), first()
        else:
            one, other = first(), second()
        yield one, other


def _row(name: str, pairs: Sequence[tuple[_Sample, _Sample]], items: int, unit: str) -> Row:
    """The ratio of the first to the second of each pair.

    Args:
        name: Of the target.
        pairs: A pair for each round: the gateway's and the yardstick's.
        items: Records in a unit of the samples.
        unit: What a rate is called.
    """
    gateway = round(items * statistics.median(one.rate for one, _ in pairs))
    other = round(items * statistics.median(other.rate for _, other in pairs))
    wall = round(items * statistics.median(one.units * 1e9 / one.wall_ns for one, _ in pairs))
    return Row(
        TARGETS[name],
        tuple(one.rate / other.rate for one, other in pairs),
        statistics.median(one.generator_share for one, _ in pairs),
        {"gateway": gateway, "yardstick": other, "gateway_by_the_clock": wall},
        f"{gateway:,} to {other:,} {unit}",
    )


def measure_python_path(site: Site, pace: Pace) -> list[Row]:
    """Single requests through the gateway and through an echo."""
    work = single_work(site.software_key)
    mine, others = site.cores
    with (
        yardstick("echo", site.config) as echo,
        connect(site.profile) as gateway_side,
        connect(site.profile, echo.facts["port"]) as echo_side,
    ):
        pin([os.getpid()], mine)
        pin([site.gateway_pid, echo.pid], others)

        pairs = _in_turn(
            pace.rounds,
            lambda: _served(gateway_side, site.gateway_pid, work, pace, SINGLES_OPEN, check),
            lambda: _served(echo_side, echo.pid, work, pace, SINGLES_OPEN, _check_echo),
        )
        return [_row("python-path", list(pairs), 1, "requests a CPU second")]


def _served(
    generator: Generator,
    pid: int,
    work: Work,
    pace: Pace,
    window: int,
    examine: Callable[[Generator, Work, Flow], None],
) -> _Sample:
    """Have work done by a serving process, at the price of its processor time; check it all."""
    before = cpu_ns(pid)
    flow = generator.run(work.groups, window=window, seconds=pace.seconds)
    cost_ns = cpu_ns(pid) - before
    examine(generator, work, flow)
    return _Sample(len(flow.frames), cost_ns, flow.wall_ns, flow.cpu_ns / cost_ns)


def _check_echo(generator: Generator, work: Work, flow: Flow) -> None:
    for number, results in enumerate(flow.results()):
        column = work.columns[number % len(work.columns)]
        records = [answer[:RECORD_SIZE] for answer, _, _ in results]
        if pack_column(records) != column:
            raise WrongAnswer("the echo answered something else")


def measure_batches(site: Site, pace: Pace) -> list[Row]:
    """Batches on a software key through the gateway and through the C module's loop.

    The yardstick that decides has the gateway's TLS stream before it: what decrypting and sending
    cost would be asked of any program. How the bare loop compares is told beside it.
    """
    work = batch_work(site.software_key)
    bare = Work([_bare(0, column) for column in work.columns], work.columns)
    mine, others = site.cores
    column = site.directory / "column"
    column.write_bytes(work.columns[0])
    with (
        yardstick("sealer", site.config) as sealer,
        yardstick("software", column) as loop,
        connect(site.profile) as gateway_side,
        connect(site.profile, sealer.facts["port"], greet=False) as sealer_side,
    ):
        pin([os.getpid()], mine)
        pin([site.gateway_pid, sealer.pid, loop.pid], others)
        loops: list[float] = []

        def through_sealer() -> _Sample:
            laps = loop.run(pace.seconds)
            loops.append(laps.calls * BATCH_ITEMS * 1e9 / laps.cpu_ns)
            return _served(sealer_side, sealer.pid, bare, pace, BATCHES_OPEN, _check_bare)

        pairs = _in_turn(
            pace.rounds,
            lambda: _served(gateway_side, site.gateway_pid, work, pace, BATCHES_OPEN, check),
            through_sealer,
        )
        row = _row("batches", list(pairs), BATCH_ITEMS, "records a CPU second")
    alone = round(statistics.median(loops))
    share = row.details["gateway"] / alone
    return [
        replace(
            row,
            details={**row.details, "loop_alone": alone, "to_loop_alone": round(share, 3)},
            note=f"{row.note}; the loop alone, without a stream: {alone:,}, of which {share:.0%}",
        )
    ]


def _bare(operation: int, column: bytes) -> Group:
    """A request to the sealer."""
    body = bytes([operation]) + column
    return Group("", (0,), len(body).to_bytes(LENGTH_SIZE, "big") + body)


def _check_bare(generator: Generator, work: Work, flow: Flow) -> None:
    opened = generator.run([_bare(1, sealed) for sealed in flow.frames], window=BATCHES_OPEN)
    for number, column in enumerate(opened.frames):
        if column != work.columns[number % len(work.columns)]:
            raise WrongAnswer("what the C module sealed opens to something else")


def measure_hardware_batches(site: Site, pace: Pace) -> list[Row]:
    """Batches on a hardware key through gateway and worker, and through one bare session."""
    work = batch_work(site.hardware_key)
    mine, others = site.cores
    column = site.directory / "column"
    column.write_bytes(work.columns[0])
    with (
        yardstick("hardware", column, site.config) as session,
        connect(site.profile) as generator,
    ):
        worker = site.worker_pid
        path = (os.getpid(), site.gateway_pid, worker)
        pin([os.getpid(), site.gateway_pid], mine)
        pin([worker, session.pid], others)

        def through_gateway() -> _Sample:
            busy, side = cpu_ns(worker), cpu_ns(site.gateway_pid)
            waited = sum(map(waited_ns, path))
            flow = generator.run(work.groups, window=BATCHES_OPEN, seconds=pace.seconds)
            busy, side = cpu_ns(worker) - busy, cpu_ns(site.gateway_pid) - side
            waited = sum(map(waited_ns, path)) - waited
            check(generator, work, flow)
            cost_ns = max(busy, flow.wall_ns - waited)
            return _Sample(len(flow.frames), cost_ns, flow.wall_ns, flow.cpu_ns / (busy + side))

        def through_session() -> _Sample:
            laps = session.run(pace.seconds)
            return _Sample(laps.calls, laps.cpu_ns, laps.wall_ns)

        pairs = list(_in_turn(pace.rounds, through_gateway, through_session))
        unit = "records a second of the worker and of the session"
        return [_row("hardware-batches", pairs, BATCH_ITEMS, unit)]


def measure_memory(site: Site, pace: Pace) -> list[Row]:
    """Memory of the gateway and of its worker, before anybody has asked them anything."""
    readings = [
        (resident_mib(site.gateway_pid), private_mib(site.worker_pid)) for _ in range(pace.rounds)
    ]
    gateway, worker = zip(*readings, strict=True)
    return [Row(TARGETS["memory-gateway"], gateway), Row(TARGETS["memory-worker"], worker)]


def measure_help(pace: Pace) -> list[Row]:
    """`hsmux --help`, beside an interpreter that starts and ends."""
    program = Path(sys.executable).with_name("hsmux")

    def start(*command: str) -> float:
        times_ms = []
        for _ in range(STARTS):
            began = time.perf_counter()
            done = subprocess.run(command, capture_output=True, check=False)
            times_ms.append((time.perf_counter() - began) * 1e3)
            if done.returncode:
                raise Failure(f"{' '.join(command)}: exit code {done.returncode}")
        return statistics.median(times_ms)

    pairs = list(
        _in_turn(
            pace.rounds,
            lambda: start(str(program), "--help"),
            lambda: start(sys.executable, "-c", "pass"),
        )
    )
    python_ms = statistics.median(other for _, other in pairs)
    to_python = statistics.median(one / other for one, other in pairs)
    return [
        Row(
            TARGETS["help"],
            tuple(one for one, _ in pairs),
            details={"python_ms": round(python_ms, 1), "to_python": round(to_python, 2)},
            note=f"{to_python:.1f} times `python -c pass`, {python_ms:.0f} ms",
        )
    ]


@contextmanager
def _own_directory() -> Iterator[Path]:
    """A directory for one measurement, without links."""
    with tempfile.TemporaryDirectory(prefix="hsmux-bench-") as directory:
        yield Path(directory).resolve()


def measure_audit_singles(pace: Pace) -> list[Row]:
    """Single requests on record, and the same off the record."""
    pairs = _audit_pairs(single_work, SINGLES_OPEN, pace)
    return [_row("audit-singles", pairs, 1, "requests a CPU second")]


def measure_audit_batches(pace: Pace) -> list[Row]:
    """Batches on record, and the same off the record."""
    pairs = _audit_pairs(batch_work, BATCHES_OPEN, pace)
    return [_row("audit-batches", pairs, BATCH_ITEMS, "records a CPU second")]


def _audit_pairs(
    make_work: Callable[[str], Work], window: int, pace: Pace
) -> list[tuple[_Sample, _Sample]]:
    """Have work done by one gateway, while it records and while it does not.

    The two differ by little, and other programs do not come and go as fast as they take turns.
    """
    mine, others = split_cores()
    with _own_directory() as directory, yardstick("audit", directory) as gateway:
        profile = _profile_of(**gateway.facts)
        work = make_work(_software_key(profile))
        part = replace(pace, seconds=pace.seconds / AUDIT_PARTS)
        pin([os.getpid()], mine)
        pin([gateway.pid], others)
        with connect(profile) as generator:

            def served(recording: str) -> _Sample:
                gateway.tell(recording)
                return _served(generator, gateway.pid, work, part, window, check)

            parts = list(
                _in_turn(AUDIT_PARTS * pace.rounds, lambda: served("on"), lambda: served("off"))
            )
    return [
        (_total([on for on, _ in some]), _total([off for _, off in some]))
        for some in (parts[n : n + AUDIT_PARTS] for n in range(0, len(parts), AUDIT_PARTS))
    ]


def _total(parts: Sequence[_Sample]) -> _Sample:
    """What one thing did in several parts of a round."""
    units, costs, walls, shares = zip(*parts, strict=True)
    return _Sample(sum(units), sum(costs), sum(walls), statistics.median(shares))


def _profile_of(port: int, **files: str) -> Profile:
    """Of the administrator of a gateway that says its port and files."""
    return Profile((f"127.0.0.1:{port}",), server_name="localhost", **files)


def _software_key(profile: Profile) -> str:
    with Client.connect(
        profile.addresses,
        certificate=profile.certificate,
        private_key=profile.private_key,
        ca=profile.ca,
        server_name=profile.server_name,
    ) as client:
        return client.create_key(spec="AES_256").key_id


def _scaled(full: int, least: int, pace: Pace) -> int:
    return max(least, min(full, round(full * pace.seconds / FULL_SECONDS)))


def measure_decision(pace: Pace) -> list[Row]:
    """Decisions with a full catalogue."""
    access_points = _scaled(ACCESS_POINTS_MAX, 10, pace)
    with yardstick("decision", access_points) as deciding:
        deciding.tell("")
        values = tuple(deciding.tell("")["cost_ns"] / 1e3 for _ in range(pace.rounds))
        first_us = round(deciding.facts["cost_ns"] / 1e3, 1)
        counts = {
            "access_points": access_points,
            "policies": deciding.facts["policies"],
            "resources": deciding.facts["resources"],
        }
    among = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items())
    note = f"among {among}; asked for the first time: {first_us} us"
    return [Row(TARGETS["decision"], values, details={**counts, "first_us": first_us}, note=note)]


def measure_verify(pace: Pace) -> list[Row]:
    """An audit log, verified."""
    records = _scaled(RECORDS_MAX, 1000, pace)
    with _own_directory() as directory, yardstick("verify", directory, records) as verifying:
        verifying.run(pace.seconds)
        laps = [verifying.run(pace.seconds) for _ in range(pace.rounds)]
    values = tuple(records * lap.calls * 1e9 / lap.cpu_ns for lap in laps)
    details: dict[str, float] = {"records": records}
    return [Row(TARGETS["verify"], values, details=details, note=f"a log of {records:,} records")]


class Measure(NamedTuple):
    """One measurement.

    Attributes:
        name: As `--only` names it.
        needs_gateway: Whether it takes a site.
        run: Measures; the rows of its targets.
    """

    name: str
    needs_gateway: bool
    run: Callable[..., list[Row]]


MEASURES: Final = (
    Measure("memory", True, measure_memory),
    Measure("python-path", True, measure_python_path),
    Measure("batches", True, measure_batches),
    Measure("hardware-batches", True, measure_hardware_batches),
    Measure("audit-singles", False, measure_audit_singles),
    Measure("audit-batches", False, measure_audit_batches),
    Measure("decision", False, measure_decision),
    Measure("verify", False, measure_verify),
    Measure("help", False, measure_help),
)
"""In the order they are run: memory first, while the gateway is still idle."""
