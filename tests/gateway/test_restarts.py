"""What survives: restarts, kills, two gateways on one directory."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hsmux_protocol import errors
from tests.gateway.raw_client import client_context, connect
from tests.gateway.running import running_gateway


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


def test_a_second_gateway_on_the_same_directory_is_refused(own_config: Path) -> None:
    with running_gateway(own_config) as running:
        for verb in ("serve", "init"):
            command = [Path(sys.executable).parent / "hsmux", verb, "--config", own_config]
            second = subprocess.run(command, capture_output=True, text=True, timeout=30)
            assert second.returncode == 8
            assert "belongs to a running gateway" in second.stderr
            assert str(running.process.pid) in second.stderr
            assert "Traceback" not in second.stderr


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


PROTECTED = """
import ctypes, resource, sys, trio
from pathlib import Path
from hsmux_gateway.config import load_config
from hsmux_gateway.daemon import run_init

trio.run(run_init, load_config(Path(sys.argv[1])))
PR_GET_DUMPABLE = 3
is_dumpable = ctypes.CDLL(None).prctl(PR_GET_DUMPABLE, 0, 0, 0, 0)
print(is_dumpable, resource.getrlimit(resource.RLIMIT_CORE))
"""


def test_no_core_file_is_left_and_no_debugger_let_in(own_config: Path) -> None:
    command = [sys.executable, "-c", PROTECTED, str(own_config)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "0 (0, 0)\n"
