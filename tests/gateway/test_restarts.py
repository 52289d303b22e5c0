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
        program = str(Path(sys.executable).parent / "hsmux")
        command = [program, "serve", "--config", str(own_config)]
        second = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert second.returncode == 8
        assert "belongs to a running gateway" in second.stderr
        assert str(running.process.pid) in second.stderr
        assert "Traceback" not in second.stderr


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
