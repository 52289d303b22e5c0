"""`hsmux audit` over a directory: what is printed, and the exit codes."""

import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives import serialization

from hsmux_gateway.audit.checkpoints import split_notes
from hsmux_gateway.audit.layout import CHECKPOINTS, chain_directories, segment_paths
from hsmux_gateway.audit.reading import covers, json_line
from hsmux_tools.main import command

from .logs import PUBLIC_KEY, every_kind, make_log


def _run(*words: object) -> Result:
    return CliRunner().invoke(command(), [str(word) for word in words])


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of two chains of 400 records, which are three segments each."""
    make_log(tmp_path / "log", 400, chains=2, checkpoints=2)
    return tmp_path / "log"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """The public key as a file."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    path = tmp_path / "audit.pem"
    path.write_bytes(PUBLIC_KEY.public_bytes(serialization.Encoding.PEM, form))
    return path


def test_export_tail_match(log: Path) -> None:
    lines = [json.loads(line) for line in _run("audit", "export", log).stdout.splitlines()]
    assert [line["sequence"] for line in lines] == [*range(1, 401)] * 2
    assert [line["chain"] for line in lines[::400]] == [p.name for p in chain_directories(log)]
    for count in (1, 3, 300, 2000):
        shown = _run("audit", "tail", log, "--count", count).stdout.splitlines()
        moments = [json.loads(line)["at"] for line in shown]
        assert moments == sorted(line["at"] for line in lines)[-count:]
    matched = _run("audit", "match", log, "r5f3a91c07b2e-5")
    assert [json.loads(line)["sequence"] for line in matched.stdout.splitlines()] == [6, 6]
    assert _run("audit", "match", log, "r5f3a91c07b2e-fff").exit_code == 3


def test_a_run_covers_its_references() -> None:
    first, last = "r5f3a91c07b2e-1", "r5f3a91c07b2e-a"
    run = msgspec.structs.replace(every_kind()[3], first=first, last=last)
    assert all(covers(run, f"r5f3a91c07b2e-{number:x}") for number in range(1, 11))
    assert not covers(run, "r5f3a91c07b2e-b") and not covers(run, "r5f3a91c07b2f-2")


def test_verify(log: Path, key: Path, tmp_path: Path) -> None:
    whole = _run("audit", "verify", log, "--public-key", key)
    assert whole.exit_code == 0 and "the log is whole: 800 records in 2 chains" in whole.stderr
    *_, (_, note) = split_notes(log / CHECKPOINTS)
    (tmp_path / "note").write_bytes(note)
    words = ("audit", "verify", log, "--public-key", key, "--checkpoint", tmp_path / "note")
    assert _run(*words).exit_code == 0
    path = segment_paths(chain_directories(log)[0])[1]
    path.write_bytes(path.read_bytes().replace(b"alias/key-7", b"alias/key-8", 1))
    spoilt = _run(*words, "-o", "json")
    assert spoilt.exit_code == 7
    assert f"{path.parent.name}/{path.name}, record 8, byte " in spoilt.stderr
    assert json.loads(spoilt.stdout)["problems"][0]["sequence"] == 8
    assert _run("audit", "export", log).exit_code == 7


def test_wrong_arguments(log: Path, key: Path, tmp_path: Path) -> None:
    for words in (
        ("verify", tmp_path / "nowhere", "--public-key", key),
        ("verify", log, "--public-key", tmp_path / "nowhere"),
        ("verify", log, "--public-key", log / CHECKPOINTS),
        ("verify", log, "--public-key", key, "--chain", "12"),
        ("export", tmp_path / "nowhere"),
        # A directory that is none of a log is not an empty log.
        ("export", tmp_path),
        ("tail", tmp_path),
        ("match", tmp_path, "r5f3a91c07b2e-5"),
    ):
        result = _run("audit", *words)
        assert result.exit_code == 2, result.output
        assert result.stderr.count("\n") == 1


def test_a_line_has_its_own_place_whatever_the_record_tells() -> None:
    for record in every_kind():
        line = json.loads(json_line(("c" * 32, 4711, record)))
        assert (line["chain"], line["sequence"]) == ("c" * 32, 4711), record
