"""The gateway whose recording is turned off and on: what is on record then, and what is not."""

from pathlib import Path

from hsmux import Client
from hsmux_gateway.audit.records import Request, Run, Stop
from hsmux_tools.bench.yardstick import yardstick

from ..gateway.audit.logs import records_of


def _recorded(root: Path) -> int:
    """Requests on record."""
    records = records_of(root / "instance" / "audit")
    counts = [record.count for record in records if isinstance(record, Run)]
    return sum(counts) + sum(isinstance(record, Request) for record in records)


def _logged(root: Path) -> int:
    """Lines of the log that records of requests are."""
    lines = (root / "gateway.log").read_text().splitlines()
    return sum(line.startswith(('{"kind":"request"', '{"kind":"run"')) for line in lines)


def test_recording_is_turned_off_and_on(tmp_path: Path) -> None:
    with yardstick("audit", tmp_path) as gateway:
        address = f"127.0.0.1:{gateway.facts.pop('port')}"
        with Client.connect(address, server_name="localhost", **gateway.facts) as client:
            key = client.create_key(spec="AES_256").key_id
            before = _recorded(tmp_path)
            assert before == 1
            for recording, expected in (("off", 0), ("on", 2), ("off", 2), ("on", 4)):
                assert gateway.tell(recording) == {"recording": recording}
                sealed = client.encrypt(key, b"a record").ciphertext
                assert client.decrypt(sealed).plaintext == b"a record"
                assert _recorded(tmp_path) - before == expected
        assert gateway.end() == 0
    assert isinstance(records_of(tmp_path / "instance" / "audit")[-1], Stop)
    assert _logged(tmp_path) == _recorded(tmp_path) == before + 4
