"""SoftHSM never calls fsync: what a worker makes is durable all the same when it says so."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hsmux_gateway.hsm.pool import open_token
from hsmux_gateway.hsm.settings import TokenSettings
from hsmux_native import Arena
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
changes = (("generate", [spec, bytes(16), "key"]), ("destroy", [bytes(16)]))
if spec == "data object":
    changes = (("put_data", [spec, bytes(100)]), ("remove_data", [spec, bytes(100)]))
for operation, arguments in changes:
    number, kind, *rest = operations.do(1, operation, far, arguments)
    print(json.dumps([kind, synced]), flush=True)
    synced.clear()
    sys.stdin.readline()
"""


@pytest.mark.parametrize("spec", ["AES_256", "EC_P256", "data object"])
def test_a_new_object_and_a_destroyed_one_are_durable_when_it_is_told(
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


async def test_a_data_object_that_was_cut_short_hides_no_other(
    softhsm: TokenSettings, arena: Arena, tmp_path: Path
) -> None:
    """As a kill in the middle of making it leaves it."""

    def files() -> set[Path]:
        return set((tmp_path / "softhsm").rglob("*.object"))

    def deadline() -> float:
        return time.monotonic() + 30

    async with open_token(softhsm, arena, tmp_path / "hsm") as token:
        await token.put_data("kind", b"old", deadline=deadline())
        before = files()
        await token.put_data("kind", b"new", deadline=deadline())
        (made,) = files() - before
    whole = made.read_bytes()
    for size in (0, len(whole) // 2, len(whole) - 1):
        made.write_bytes(whole[:size])
        async with open_token(softhsm, arena, tmp_path / "hsm") as token:
            assert await token.list_data("kind", deadline=deadline()) == [b"old"]
            await token.put_data("kind", b"next", deadline=deadline())
            await token.remove_data("kind", b"next", deadline=deadline())
