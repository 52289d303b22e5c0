"""The developer's script as far as it goes without installing anything."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tools" / "dev"


def run_script(*words: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the script, with a directory of programs before all others."""
    search = os.environ["PATH"] if path is None else f"{path}:{os.environ['PATH']}"
    return subprocess.run(
        [str(SCRIPT), *words],
        env={**os.environ, "PATH": search},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def write_program(directory: Path, name: str, body: str) -> None:
    directory.mkdir(exist_ok=True)
    program = directory / name
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)


@pytest.mark.parametrize("words", [(), ("help",), ("--help",)])
def test_help(words: tuple[str, ...]) -> None:
    done = run_script(*words)
    assert (done.returncode, done.stderr) == (0, "")
    for verb in ("demo", "test", "--long", "lint", "bench", "sanitize", "setup", "lock"):
        assert f" {verb} " in done.stdout


def test_an_unknown_verb() -> None:
    done = run_script("nonsense")
    assert (done.returncode, done.stdout) == (1, "")
    assert "unknown verb: nonsense" in done.stderr


def test_somebody_who_is_not_root_is_told_what_to_install(tmp_path: Path) -> None:
    write_program(tmp_path / "bin", "dpkg-query", "exit 1")
    write_program(tmp_path / "bin", "id", "echo 1000")
    done = run_script("test", path=tmp_path / "bin")
    assert (done.returncode, done.stdout) == (1, "")
    (command,) = [line for line in done.stderr.splitlines() if "apt-get" in line]
    assert "sudo apt-get update && sudo apt-get install -y --no-install-recommends" in command
    for package in ("softhsm2", "libnss3-tools", "libipsec-mb-dev", "libssl-dev", "postgresql"):
        assert f" {package}" in command


def test_what_apt_get_says_is_shown_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_program(
        tmp_path / "bin", "dpkg-query", '[ "$4" = softhsm2 ] || echo install ok installed'
    )
    write_program(tmp_path / "bin", "id", "echo 0")
    write_program(tmp_path / "bin", "apt-get", 'echo "E: no $1"; exit 100')
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = run_script("setup", path=tmp_path / "bin")
    assert done.returncode == 1
    assert "installing softhsm2\n" in done.stderr
    assert "E: no update" in done.stderr


def test_an_old_python_is_refused(tmp_path: Path) -> None:
    write_program(tmp_path / "bin", "python3", '[ "$1" = --version ] && echo Python 3.10.9; exit 1')
    done = run_script("setup", path=tmp_path / "bin")
    assert done.returncode == 1
    assert "Python 3.10.9; 3.11 or newer is needed" in done.stderr


def test_continuous_integration_is_the_same_run() -> None:
    run = ROOT / ".ci" / "run"
    assert os.access(run, os.X_OK)
    assert "exec tools/dev test" in run.read_text()
