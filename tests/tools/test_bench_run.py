"""The bench as it is run: every measurement once and short, for its shape and not for its speed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hsmux_tools.bench.__main__ import run
from hsmux_tools.bench.generator import Flow, connect
from hsmux_tools.bench.measures import Measure, Pace
from hsmux_tools.bench.rows import (
    EXIT_GENERATOR,
    EXIT_MISSED,
    EXIT_WRONG,
    TARGETS,
    Row,
    WrongAnswer,
)
from hsmux_tools.bench.site import Site
from hsmux_tools.bench.work import SINGLES_OPEN, Work, check, single_work
from hsmux_tools.failure import EXIT_INTERRUPTED

BENCH = [sys.executable, "-m", "hsmux_tools.bench"]


def environment(directory: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(directory)}


def children(pid: int) -> set[int]:
    """Process ids of a process' children and theirs."""
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found |= {child, *children(child)}
    return found


def test_every_measurement(tmp_path: Path) -> None:
    done = subprocess.run(
        [*BENCH, "--rounds", "1", "--seconds", "0.01", "-o", "json"],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    # Which of them depends on how fast it was, and that is nothing to test.
    assert done.returncode in (0, EXIT_MISSED, EXIT_GENERATOR), done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    results = {result["name"]: result for result in found["results"]}
    assert results.keys() == TARGETS.keys()
    for result in results.values():
        assert len(result["values"]) == 1
        assert result["median"] > 0
    assert results["batches"]["details"]["loop_alone"] > 0
    counts = results["decision"]["details"]
    assert counts["policies"] == 10 * counts["access_points"] == counts["resources"] / 10
    assert counts["first_us"] > 0
    assert results["verify"]["details"]["records"] >= 1000
    assert found["versions"]["native"]
    assert list(tmp_path.iterdir()) == []


def _measure_wrongly(site: Site, pace: Pace) -> list[Row]:
    """Expects other records than were sent."""
    work, other = single_work(site.software_key), single_work(site.software_key)
    with connect(site.profile) as generator:
        flow = generator.run(work.groups, window=SINGLES_OPEN)
        check(generator, work, flow)
        with pytest.raises(WrongAnswer, match="a request has no answer"):
            check(generator, work, Flow(flow.groups, flow.frames[:-1], 1, 1))
        with pytest.raises(WrongAnswer, match="more answers than requests"):
            check(generator, work, Flow(flow.groups, [*flow.frames, flow.frames[0]], 1, 1))
        refused = generator.run(single_work("alias/nowhere").groups, window=SINGLES_OPEN)
        with pytest.raises(WrongAnswer, match="a request was refused: there is no alias/nowhere"):
            check(generator, work, refused)
        check(generator, Work(work.groups, other.columns), flow)
    return [Row(TARGETS["python-path"], (1.0,))]


def test_a_wrong_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = os.environ.get("XDG_CONFIG_HOME")
    code = run([Measure("wrong", True, _measure_wrongly)], Pace(1, 0.01), "table")
    shown = capsys.readouterr()
    assert (code, shown.out) == (EXIT_WRONG, "")
    assert "bench: wrong answer: what was encrypted decrypts to something else" in shown.err
    assert list(tmp_path.iterdir()) == []
    assert os.environ.get("XDG_CONFIG_HOME") == before


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, EXIT_INTERRUPTED), (signal.SIGTERM, 128 + signal.SIGTERM)]
)
def test_a_signal_ends_everything(tmp_path: Path, number: int, code: int) -> None:
    process = subprocess.Popen(
        [*BENCH, "--only", "batches", "--seconds", "60"],
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stderr is not None
        assert process.stderr.readline() == "bench: measuring batches\n"
        started = children(process.pid)
        assert len(started) >= 2
        process.send_signal(number)
        assert process.wait(60) == code
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("only", [[], ["--only", "verify"]])
def test_without_a_gateway_it_says_what_to_install(only: list[str]) -> None:
    program = (
        f"import sys, runpy; sys.modules['hsmux_gateway'] = None; sys.argv[1:] = {only}; "
        "runpy.run_module('hsmux_tools.bench', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "pip install hsmux-gateway" in done.stderr


def test_help() -> None:
    done = subprocess.run([*BENCH, "--help"], capture_output=True, text=True, check=True)
    for word in ("--rounds", "--only", "hardware-batches", "Exit codes"):
        assert word in done.stdout
