"""Records of a running gateway: none is lost or torn, and a start follows every stop."""

import re
import signal
import ssl
import subprocess
import threading
from pathlib import Path

import pytest

from hsmux_protocol.connection import ALPN
from hsmux_protocol.errors import NotFound
from tests.gateway.journals import records_in, requests_in
from tests.gateway.raw_client import client_context, connect
from tests.gateway.running import STOP_TIMEOUT_S, Running, running_gateway

CLIENTS = 3


class _Load(threading.Thread):
    """Asks one request after another until the gateway is gone, and counts the answers."""

    def __init__(self, gateway: Running, enough: threading.Semaphore) -> None:
        super().__init__()
        self._gateway, self._enough = gateway, enough
        self.answers = 0

    def run(self) -> None:
        with connect(self._gateway.address, client_context(self._gateway.administrator)) as client:
            while True:
                try:
                    client.call("generate_random", 8)
                except (EOFError, OSError):
                    return
                self.answers += 1
                self._enough.release()


@pytest.mark.parametrize("rounds", [2, pytest.param(30, marks=pytest.mark.long)])
def test_a_killed_gateway_has_recorded_what_it_answered(own_config: Path, rounds: int) -> None:
    answers = 0
    for _ in range(rounds):
        with running_gateway(own_config) as gateway:
            enough = threading.Semaphore(0)
            loads = [_Load(gateway, enough) for _ in range(CLIENTS)]
            for load in loads:
                load.start()
            for _ in range(100):
                enough.acquire()
            assert gateway.stop(signal.SIGKILL) == -signal.SIGKILL
            for load in loads:
                load.join()
            answers += sum(load.answers for load in loads)
    with running_gateway(own_config) as gateway:
        assert gateway.stop() == 0
    root = gateway.directory / "audit"
    kinds = [record["kind"] for record in records_in(root)]
    assert kinds.count("start") == rounds + 1 and kinds[-2:] == ["start", "stop"]
    asked = [r["reference"] for r in requests_in(root) if r["operation"] == "generate_random"]
    # The last request of each client may be on record without its answer.
    assert answers <= len(asked) <= answers + rounds * CLIENTS
    assert len(set(asked)) == len(asked)


def test_a_record_says_who_did_what_with_which_key_and_what_decided_it(own_config: Path) -> None:
    with running_gateway(own_config) as gateway:
        with connect(gateway.address, client_context(gateway.administrator)) as client:
            aes = ("AES_256", "ENCRYPT_DECRYPT", "software", None, "alias/told")
            client.call("create_key", *aes, "", {})
            for _ in range(2):
                client.call("encrypt", "alias/told@1", {"who": "me"}, bytes(100))
            with pytest.raises(NotFound):
                client.call("encrypt", "alias/nothing", {}, b"")
        assert gateway.stop() == 0
    made, *done, failed = requests_in(gateway.directory / "audit")
    assert (made["operation"], made["resource"]) == ("create_key", "alias/told")
    assert made["key_id"] == done[0]["key_id"] != ""
    for record in done:
        assert record["access_point"] == "administrator"
        assert (record["operation"], record["outcome"]) == ("encrypt", "done")
        assert (record["resource"], record["key_version"]) == ("alias/told@1", 1)
        assert record["statement"].startswith("allowed by")
        assert record["bytes_in"] > 100 and record["bytes_out"] > 100
    assert done[0]["context"] == done[1]["context"] != ""
    assert (failed["outcome"], failed["resource"]) == ("NotFound", "alias/nothing")
    assert failed["context"] == ""


def test_a_record_says_what_was_managed(own_config: Path) -> None:
    with running_gateway(own_config) as gateway:
        with connect(gateway.address, client_context(gateway.administrator)) as client:
            client.call("create_access_point", "billing", "", [], [], None)
            (key, *_) = client.call("create_client_key", "billing", None, 30)
            client.call("revoke_client_key", key.client_key_id)
            client.call("list_access_points", b"", 10)
        assert gateway.stop() == 0
    told = [(r["operation"], r["resource"]) for r in requests_in(gateway.directory / "audit")]
    assert told == [
        ("create_access_point", "billing"),
        ("create_client_key", "billing"),
        ("revoke_client_key", key.client_key_id.hex()),
        ("list_access_points", ""),
    ]


@pytest.mark.parametrize("sync", ["interval", "before-answer"])
def test_a_log_that_may_not_be_durable_ends_the_gateway(own_config: Path, sync: str) -> None:
    with own_config.open("a") as file:
        file.write(f'[audit]\nsync = "{sync}"\n')
    library, failing = own_config.with_name("failing_sync.so"), own_config.with_name("failing")
    source = Path(__file__).parent / "store" / "failing_sync.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    before = ("env", f"LD_PRELOAD={library}", f"FAILING_SYNC={failing}")
    with running_gateway(own_config, before=before) as gateway:
        failing.touch()
        with connect(gateway.address, client_context(gateway.administrator)) as client:
            if sync == "interval":
                client.call("generate_random", 8)
            else:
                # Nobody learns what may be forgotten.
                with pytest.raises((EOFError, OSError)):
                    client.call("generate_random", 8)
        assert gateway.process.wait(STOP_TIMEOUT_S) != 0
        assert gateway.process.stderr is not None
        # Whoever meets the disk first says what it said, and everybody after that it has failed.
        told = gateway.process.stderr.read()
        assert re.search(
            r"OperatorError: audit: the audit log (is not|could not be made) durable", told
        )
    failing.unlink()
    with running_gateway(own_config) as gateway:
        assert gateway.stop() == 0
    operations = [record["operation"] for record in requests_in(gateway.directory / "audit")]
    assert operations.count("generate_random") <= 1
    assert records_in(gateway.directory / "audit")[-1]["kind"] == "stop"


def test_strangers_are_counted_by_source_and_reason(own_config: Path) -> None:
    with running_gateway(own_config) as gateway:
        stranger = ssl.create_default_context(cafile=gateway.administrator / "ca.pem")
        stranger.set_alpn_protocols([ALPN])
        for _ in range(3):
            with pytest.raises((OSError, EOFError)), connect(gateway.address, stranger) as client:
                client.call("show_status")
        assert gateway.stop() == 0
    (flood,) = [r for r in records_in(gateway.directory / "audit") if r["kind"] == "flood"]
    assert (flood["source"], flood["reason"], flood["count"]) == (
        *("127.0.0.1", "handshake refused"),
        3,
    )
