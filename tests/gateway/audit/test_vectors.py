"""The log format, byte by byte, against a log made without any code of the product."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hsmux_gateway.audit.chain import (
    HEADER_SIZE,
    Header,
    Place,
    extend,
    first_head,
    parse_header,
    walk,
    write_header,
)
from hsmux_gateway.audit.checkpoints import load_public_key
from hsmux_gateway.audit.records import read_record
from hsmux_gateway.audit.verify import verify

VECTOR = json.loads(Path(__file__).with_name("vectors").joinpath("log.json").read_text())


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The vector as files."""
    chain = tmp_path / VECTOR["chain"]
    chain.mkdir()
    (chain / "00000001.log").write_bytes(
        bytes.fromhex(VECTOR["segment"]).ljust(VECTOR["size"], b"\0")
    )
    (tmp_path / "checkpoints").write_text(VECTOR["checkpoint"])
    return tmp_path


def test_heads_and_frames_are_the_vector_s() -> None:
    deployment, chain = (bytes.fromhex(VECTOR[name]) for name in ("deployment", "chain"))
    first, *records = VECTOR["records"]
    head = first_head(deployment, chain)
    assert head.hex() == first["head"]
    header = Header(deployment, chain, 1, 1, VECTOR["size"], head)
    bodies = [bytes.fromhex(record["body"]) for record in records]
    frames, last = extend(head, 1, bodies)
    segment = write_header(header) + frames
    assert segment.hex() == VECTOR["segment"]
    assert last.hex() == records[-1]["head"]
    assert parse_header(segment) == header
    walked = list(walk(segment, Place(1, head, HEADER_SIZE)))
    assert [body for _, _, body, _ in walked] == bodies
    assert [head.hex() for _, _, _, head in walked] == [record["head"] for record in records]
    assert [read_record(body).kind for body in bodies] == ["start", "request", "flood", "stop"]


def test_the_vector_verifies(log: Path) -> None:
    report = verify(log, load_public_key(VECTOR["public_key"].encode()))
    assert report.ok, report.problems
    assert (report.records, report.behind, report.checkpoints) == (4, 0, 1)
    assert report.deployment == VECTOR["deployment"]


def test_openssl_verifies_a_checkpoint(tmp_path: Path) -> None:
    """What the documentation tells people to do by hand."""
    import base64

    text, _, signature = VECTOR["checkpoint"].partition("\n\n")
    files = {
        "text": (text + "\n").encode(),
        "signature": base64.b64decode(signature.split()[2])[4:],
        "key.pem": VECTOR["public_key"].encode(),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    command = "openssl dgst -sha256 -verify key.pem -signature signature text"
    done: Any = subprocess.run(command.split(), cwd=tmp_path, capture_output=True, check=True)
    assert done.stdout == b"Verified OK\n"
