"""Records of a running gateway: moved away under load, none is lost, torn or written twice."""

import json
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.gateway.raw_client import client_context, connect
from tests.gateway.running import Running, running_gateway

PATIENCE_S = 20.0
CLIENTS = 3


def _await_file(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} was not made"
        time.sleep(0.005)


class _Load(threading.Thread):
    """Asks one request after another until told to stop, and counts the answers."""

    def __init__(self, gateway: Running, stop: threading.Event) -> None:
        super().__init__()
        self._gateway, self._stop_asked = gateway, stop
        self.answers = 0

    def run(self) -> None:
        with connect(self._gateway.address, client_context(self._gateway.administrator)) as client:
            while not self._stop_asked.is_set():
                client.call("generate_random", 8)
                self.answers += 1


@pytest.mark.parametrize("rounds", [4, pytest.param(100, marks=pytest.mark.long)])
def test_records_are_moved_away_under_load(own_config: Path, rounds: int) -> None:
    stop = threading.Event()
    with running_gateway(own_config) as gateway:
        path = gateway.directory / "audit" / "requests.jsonl"
        loads = [_Load(gateway, stop) for _ in range(CLIENTS)]
        for load in loads:
            load.start()
        for number in range(rounds):
            path.rename(path.with_suffix(f".{number}"))
            gateway.process.send_signal(signal.SIGUSR1)
            _await_file(path)
        stop.set()
        for load in loads:
            load.join()
        assert gateway.stop() == 0
    texts = [file.read_text() for file in path.parent.iterdir()]
    assert len(texts) == rounds + 1 and all(text.endswith("\n") for text in texts if text)
    records = [json.loads(line) for text in texts for line in text.splitlines()]
    asked = [record for record in records if record["operation"] == "generate_random"]
    assert len(asked) == sum(load.answers for load in loads) > 0
    assert len({record["reference"] for record in records}) == len(records)


def test_a_gateway_that_cannot_make_the_new_file_goes_on_with_the_old(own_config: Path) -> None:
    with running_gateway(own_config) as gateway:
        path = gateway.directory / "audit" / "requests.jsonl"
        old = path.rename(path.with_suffix(".1"))
        path.mkdir()
        gateway.process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + PATIENCE_S
        while "cannot go on in a new file" not in gateway.log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with connect(gateway.address, client_context(gateway.administrator)) as client:
            client.call("generate_random", 8)
        assert gateway.stop() == 0
    assert "generate_random" in old.read_text()
