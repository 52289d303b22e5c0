"""SoftHSM never calls fsync: what a worker makes is durable all the same when it says so."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gateway.hsm.conftest import PIN, softhsm_settings
from tests.gateway.hsm.rig import Rig
from tests.gateway.hsm.test_faults_identity import object_files

CHANGES = """
import json, os, sys, time
import hsmux_native
from hsmux_gateway.hsm.application import Application
from hsmux_gateway.hsm.operations import Operations
from hsmux_gateway.hsm.progress import Progress
from hsmux_native.pkcs11 import SecretPage

label, pin, spec = sys.argv[1:]
application = Application(hsmux_native.adapter_path(faults=True), label)
application.log_in(pin, is_single=False)
operations = Operations(application, SecretPage(), Progress(), 1)
fsync, synced, far = os.fsync, [], time.monotonic_ns() + 10**12

def sync(fd):
    synced.append(os.readlink(f"/proc/self/fd/{fd}"))
    fsync(fd)

os.fsync = sync
for operation, arguments in (("generate", [spec, bytes(16), "key"]), ("destroy", [bytes(16)])):
    number, kind, *rest = operations.do(1, operation, far, arguments)
    print(json.dumps([kind, synced]), flush=True)
    synced.clear()
    sys.stdin.readline()
"""


@pytest.mark.parametrize("spec", ["AES_256", "EC_P256"])
def test_a_new_key_and_a_destroyed_one_are_durable_when_it_is_told(
    tmp_path: Path, spec: str
) -> None:
    rig = Rig(softhsm_settings(tmp_path), tmp_path)
    settings = rig.settings
    with subprocess.Popen(
        [sys.executable, "-c", CHANGES, settings.token_label, PIN, spec],
        env={**os.environ, **settings.environment, "HSMUX_ADAPTER_MODULE": settings.module},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        kind, synced = json.loads(process.stdout.readline())
        objects = object_files(rig)
        assert kind == "done" and objects
        # The files, and behind them the directory that names them.
        assert {str(path) for path in objects} <= set(synced)
        assert synced[-1] == str(objects[0].parent)
        process.stdin.write("\n")
        process.stdin.flush()
        kind, synced = json.loads(process.stdout.readline())
        assert kind == "done" and not object_files(rig)
        assert synced[-1] == str(objects[0].parent)
        process.stdin.close()
        assert process.wait(30) == 0
