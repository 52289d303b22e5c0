"""What survives: restarts, kills, two gateways on one directory."""

import os
import signal
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from hsmux_protocol import errors
from hsmux_protocol.references import format_key_id
from tests.gateway.raw_client import RawClient, client_context, connect
from tests.gateway.running import PROGRAM, running_gateway

ROUNDS = [
    pytest.param(3, id="few"),
    pytest.param(200, id="many", marks=pytest.mark.long),
]


def test_keys_made_before_a_restart_decrypt_after_it(own_config: Path) -> None:
    key: tuple[Any, ...] = (
        "AES_256",
        "ENCRYPT_DECRYPT",
        "software",
        None,
        "alias/kept",
        "",
        {},
    )
    with running_gateway(own_config) as running:
        with connect(running.address, client_context(running.administrator)) as client:
            client.call("create_key", *key)
            envelope = client.call("encrypt", "alias/kept", {}, b"kept")[0]
        assert running.stop() == 0
    with running_gateway(own_config) as running:
        with connect(running.address, client_context(running.administrator)) as client:
            assert client.call("decrypt", None, {}, envelope)[0] == b"kept"
            with pytest.raises(errors.Conflict):
                client.call("create_key", *key)


def test_a_second_gateway_on_the_same_directory_is_refused(
    own_config: Path, tmp_path: Path
) -> None:
    with running_gateway(own_config) as running:
        command = [sys.executable, "-c", PROGRAM, str(own_config), str(tmp_path / "second.log")]
        second = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert second.returncode != 0
        assert "belongs to a running gateway" in second.stderr
        assert str(running.process.pid) in second.stderr


def _make_keys(address: str, context: ssl.SSLContext, acknowledged: list[bytes]) -> None:
    """Create keys until the gateway is gone, noting each that was acknowledged."""
    key: tuple[Any, ...] = ("AES_256", "ENCRYPT_DECRYPT", "software", None, None, "", {})
    try:
        with connect(address, context) as client:
            while True:
                acknowledged.append(client.call("create_key", *key)[0].key_id)
    except (OSError, EOFError):
        return


def _assert_all_there(client: RawClient, acknowledged: list[bytes]) -> None:
    for key_id in acknowledged:
        name = format_key_id(key_id)
        envelope = client.call("encrypt", name, {}, b"x")[0]
        assert client.call("decrypt", name, {}, envelope)[0] == b"x"


@pytest.mark.parametrize("rounds", ROUNDS)
def test_kill_9_under_load_loses_no_acknowledged_key(own_config: Path, rounds: int) -> None:
    acknowledged: list[bytes] = []
    for number in range(rounds):
        with running_gateway(own_config) as running:
            context = client_context(running.administrator)
            with connect(running.address, context) as client:
                _assert_all_there(client, acknowledged[-200:])
            before = len(acknowledged)
            makers = [
                threading.Thread(target=_make_keys, args=(running.address, context, acknowledged))
                for _ in range(2)
            ]
            for maker in makers:
                maker.start()
            while len(acknowledged) < before + 5 + number % 7:
                makers[0].join(0.001)
            os.kill(running.process.pid, signal.SIGKILL)
            running.process.wait()
            for maker in makers:
                maker.join()
    with running_gateway(own_config) as running:
        with connect(running.address, client_context(running.administrator)) as client:
            _assert_all_there(client, acknowledged)
            records = (running.directory / "audit" / "requests.jsonl").read_text()
    assert records.count('"operation":"create_key","outcome":"done"') >= len(acknowledged)


def test_another_root_file_does_not_open_the_store(own_config: Path, tmp_path: Path) -> None:
    with running_gateway(own_config) as running:
        assert running.stop() == 0
    (tmp_path / "root.key").write_bytes(bytes(32))
    with (
        pytest.raises(RuntimeError, match="not the root of this store"),
        running_gateway(own_config, init=False),
    ):
        pass


def test_a_root_file_that_others_can_read_is_refused(own_config: Path, tmp_path: Path) -> None:
    with running_gateway(own_config) as running:
        assert running.stop() == 0
    (tmp_path / "root.key").chmod(0o644)
    with (
        pytest.raises(RuntimeError, match="chmod 600"),
        running_gateway(own_config, init=False),
    ):
        pass


def test_serving_without_init_says_so(own_config: Path) -> None:
    with pytest.raises(RuntimeError, match="hsmux init"), running_gateway(own_config, init=False):
        pass
