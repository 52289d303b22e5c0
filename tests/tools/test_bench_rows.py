"""The bench's figures, exit codes and table, with fixed numbers."""

import pytest

from hsmux_tools.bench.clocks import split_cores
from hsmux_tools.bench.measures import Pace
from hsmux_tools.bench.report import record, table
from hsmux_tools.bench.rows import (
    EXIT_GENERATOR,
    EXIT_MISSED,
    GENERATOR_SHARE_MAX,
    TARGETS,
    Row,
    Target,
    exit_code,
)

AT_LEAST = Target("speed", "one to another", "ratio", 0.5, at_least=True)
AT_MOST = Target("size", "how large it is", "MiB", 80)
A_SECOND = Target("rate", "how many", "records/s", 200_000, at_least=True)


@pytest.mark.parametrize(
    ("values", "median"),
    [((0.5,), 0.5), ((0.1, 0.9, 0.4), 0.4), ((1.0, 2.0), 1.5), ((3.0, 1.0, 2.0, 9.0), 2.5)],
)
def test_the_median_is_the_figure(values: tuple[float, ...], median: float) -> None:
    assert Row(AT_LEAST, values).median == median


@pytest.mark.parametrize(
    ("target", "value", "outcome"),
    [
        (AT_LEAST, 0.5, "ok"),
        (AT_LEAST, 0.4999, "missed"),
        (AT_LEAST, 2.0, "ok"),
        (AT_MOST, 80.0, "ok"),
        (AT_MOST, 80.01, "missed"),
        (AT_MOST, 1.0, "ok"),
    ],
)
def test_a_target_holds_at_its_limit(target: Target, value: float, outcome: str) -> None:
    assert Row(target, (value,)).outcome == outcome


@pytest.mark.parametrize("value", [0.1, 0.9])
def test_a_generator_that_was_the_limit_makes_a_row_invalid(value: float) -> None:
    assert Row(AT_LEAST, (value,), GENERATOR_SHARE_MAX + 0.01).outcome == "invalid"
    assert Row(AT_LEAST, (value,), GENERATOR_SHARE_MAX).outcome != "invalid"


OK = Row(AT_LEAST, (0.7,))
MISSED = Row(AT_LEAST, (0.3,))
INVALID = Row(AT_LEAST, (0.7,), 1.5)


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([], 0),
        ([OK, OK], 0),
        ([OK, MISSED], EXIT_MISSED),
        ([INVALID, OK], EXIT_GENERATOR),
        ([MISSED, INVALID], EXIT_GENERATOR),
    ],
)
def test_exit_codes(rows: list[Row], code: int) -> None:
    assert exit_code(rows) == code


def test_the_targets() -> None:
    limits = {target.name: (target.limit, target.at_least) for target in TARGETS.values()}
    assert limits == {
        "python-path": (0.60, True),
        "batches": (0.50, True),
        "hardware-batches": (0.85, True),
        "audit-singles": (0.85, True),
        "audit-batches": (0.90, True),
        "decision": (5, False),
        "verify": (200_000, True),
        "memory-gateway": (80, False),
        "memory-worker": (30, False),
        "help": (150, False),
    }


TABLE = """\
figure    median    lowest   highest       target
speed       0.30      0.20      0.35      >= 0.50  missed
size    74.6 MiB  74.5 MiB  74.6 MiB  <= 80.0 MiB  ok
speed       0.70      0.70      0.70      >= 0.50  invalid

speed: one to another: 3 to 10 requests a CPU second
size: how large it is
speed: one to another; invalid: the generator needed 150% of the gateway's time"""


def test_the_table() -> None:
    note = "3 to 10 requests a CPU second"
    rows = [Row(AT_LEAST, (0.35, 0.2, 0.3), note=note), Row(AT_MOST, (74.6, 74.61, 74.5)), INVALID]
    assert table(rows) == TABLE


def test_large_figures_are_grouped() -> None:
    words = table([Row(A_SECOND, (604_201.6,))]).splitlines()[1].split()
    assert words[1:3] == ["604,202", "records/s"]
    assert words[-4:] == [">=", "200,000", "records/s", "ok"]


def test_the_record_says_on_what_and_how_it_was_measured() -> None:
    rows = [Row(AT_LEAST, (0.7, 0.6, 0.8), 0.1234, {"gateway": 7})]
    found = record(rows, Pace(3, 0.5), ({0}, {1}), native="a backend")
    assert found["results"] == [
        {
            "name": "speed",
            "what": "one to another",
            "unit": "ratio",
            "median": 0.7,
            "values": [0.7, 0.6, 0.8],
            "target": 0.5,
            "at_least": True,
            "outcome": "ok",
            "generator_share": 0.123,
            "details": {"gateway": 7},
        }
    ]
    assert found["machine"].keys() == {"processor", "cores", "kernel", "load_average"}
    assert found["machine"]["cores"] >= 1
    assert found["versions"]["native"] == "a backend"
    assert {"hsmux", "python", "openssl", "trio", "cryptography"} <= found["versions"].keys()
    configuration = found["configuration"]
    assert (configuration["rounds"], configuration["seconds"]) == (3, 0.5)
    assert (configuration["generator_cores"], configuration["measured_cores"]) == ([0], [1])


def test_generator_and_gateway_have_a_core_each_where_there_are_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for cores, parts in (
        ({3}, ({3}, {3})),
        ({0, 1}, ({0}, {1})),
        ({2, 5, 7}, ({2}, {7})),
    ):
        monkeypatch.setattr("os.sched_getaffinity", lambda pid, cores=cores: set(cores))
        assert split_cores() == parts
