"""Connections that are cut, stall, end and are replaced, seen by both clients."""

import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import hsmux
from hsmux import Client
from tests.client.conftest import arguments_of, connected, write_config
from tests.client.proxy import Proxy
from tests.client.test_conformance import new_name
from tests.gateway.running import Running, running_gateway

PATIENCE_S = 60


def test_a_cut_connection_is_replaced(gateway: Running, kind: str) -> None:
    with Proxy(gateway.address) as proxy:
        with connected(kind, **arguments_of(gateway, addresses=proxy.address)) as client:
            key = client.create_key(spec="AES_256")
            for _ in range(3):
                proxy.cut()
                sealed = client.encrypt(key, b"x", timeout_s=PATIENCE_S)
                assert client.decrypt(sealed.ciphertext).plaintext == b"x"
            assert proxy.accepted == 4


def test_a_change_whose_answer_is_lost_is_done_once(gateway: Running, kind: str) -> None:
    name = new_name()
    with Proxy(gateway.address) as proxy:
        with connected(kind, **arguments_of(gateway, addresses=proxy.address)) as client:
            client.status()
            proxy.swallow_answers = True
            found: list[Any] = []
            thread = threading.Thread(
                target=lambda: found.append(client.create_access_point(name, timeout_s=PATIENCE_S))
            )
            thread.start()
            with Client.connect(**arguments_of(gateway)) as other:
                while name not in [point.name for point in other.list_access_points()]:
                    time.sleep(0.01)
                # It is done and the answer is lost: the client cannot know it.
                proxy.swallow_answers = False
                proxy.cut()
                thread.join()
                points = [p for p in other.list_access_points() if p.name == name]
            assert points == found


def test_a_silent_gateway_costs_the_deadline_and_its_connection(
    gateway: Running, kind: str
) -> None:
    with Proxy(gateway.address) as proxy:
        with connected(kind, **arguments_of(gateway, addresses=proxy.address)) as client:
            client.status()
            proxy.stalled.set()
            with pytest.raises(hsmux.DeadlineExceeded):
                client.generate_random(1, timeout_s=1.0)
            with pytest.raises((hsmux.OutcomeUnknown, hsmux.Unavailable)):
                client.create_access_point(new_name(), timeout_s=1.5)
            proxy.stalled.clear()
            assert len(client.generate_random(1, timeout_s=PATIENCE_S)) == 1


def test_a_dead_address_is_passed_over(gateway: Running, kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        dead = f"127.0.0.1:{closed.getsockname()[1]}"
    for _ in range(4):
        arguments = arguments_of(gateway, addresses=[dead, gateway.address])
        with connected(kind, **arguments) as client:
            client.status()
    with pytest.raises(hsmux.Unavailable, match="check that the gateway runs"):
        with connected(kind, **arguments_of(gateway, addresses=dead)):
            pass


def test_what_does_not_answer_in_time_is_unavailable(gateway: Running, kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(hsmux.Unavailable):
            with connected(kind, **arguments_of(gateway, addresses=address, timeout_s=0.3)):
                pass


def test_what_is_no_gateway_is_named(gateway: Running, kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as plain:

        def answer() -> None:
            accepted, _ = plain.accept()
            with accepted:
                accepted.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                accepted.recv(4096)

        thread = threading.Thread(target=answer)
        thread.start()
        address = f"127.0.0.1:{plain.getsockname()[1]}"
        with pytest.raises(hsmux.Unauthenticated, match="check the address"):
            with connected(kind, **arguments_of(gateway, addresses=address)):
                pass
        thread.join()


def test_a_wrong_name_and_a_wrong_ca_are_refused(
    gateway: Running, kind: str, tmp_path: Path
) -> None:
    with pytest.raises(hsmux.Unauthenticated, match="server_name"):
        with connected(kind, **arguments_of(gateway, server_name="elsewhere.example")):
            pass
    own = gateway.administrator / "administrator.pem"
    with pytest.raises(hsmux.Unauthenticated, match="profile's ca"):
        with connected(kind, **arguments_of(gateway, ca=own)):
            pass
    with pytest.raises(hsmux.InvalidArgument, match="certificate, private_key"):
        with connected(kind, **arguments_of(gateway, private_key=own)):
            pass
    with pytest.raises(hsmux.InvalidArgument, match="nowhere"):
        with connected(kind, **arguments_of(gateway, ca=tmp_path / "nowhere.pem")):
            pass


def test_a_restart_fails_no_request(kind: str, tmp_path: Path) -> None:
    """SIGTERM and a new process at the same address, under the load of several threads."""
    config = write_config(tmp_path)
    with running_gateway(config) as first:
        address = first.address
        config.write_text(config.read_text().replace("127.0.0.1:0", address, 1))
        with connected(kind, **arguments_of(first)) as client:
            key = client.create_key(spec="AES_256", storage="hsm")
            stop = threading.Event()
            failures: list[BaseException] = []
            counts = [0] * 4

            def work(number: int) -> None:
                try:
                    while not stop.is_set():
                        sealed = client.encrypt(key, b"row", timeout_s=PATIENCE_S)
                        assert client.decrypt(sealed.ciphertext).plaintext == b"row"
                        counts[number] += 1
                except BaseException as error:
                    failures.append(error)

            threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
            for thread in threads:
                thread.start()
            while min(counts) < 20 and not failures:
                time.sleep(0.01)
            assert first.stop(signal.SIGTERM) == 0
            with running_gateway(config, init=False) as second:
                assert second.address == address
                before = list(counts)
                while any(now < then + 20 for now, then in zip(counts, before, strict=True)):
                    assert not failures
                    time.sleep(0.01)
                stop.set()
                for thread in threads:
                    thread.join()
    assert not failures


def test_closing_ends_whoever_waits(gateway: Running) -> None:
    with Proxy(gateway.address) as proxy:
        client = Client.connect(**arguments_of(gateway, addresses=proxy.address))
        proxy.stalled.set()
        failures: list[hsmux.HsmuxError] = []

        def work() -> None:
            try:
                client.generate_random(1, timeout_s=PATIENCE_S)
            except hsmux.HsmuxError as error:
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(5)]
        for thread in threads:
            thread.start()
        while client._link is None or len(client._link.link._slots) < 5:
            time.sleep(0.01)
        client.close()
        for thread in threads:
            thread.join()
        assert {type(error) for error in failures} == {hsmux.Unavailable}
        with pytest.raises(hsmux.Unavailable, match="closed"):
            client.status()


def test_many_threads_share_one_connection(gateway: Running) -> None:
    with Proxy(gateway.address) as proxy:
        with Client.connect(**arguments_of(gateway, addresses=proxy.address)) as client:
            key = client.create_key(spec="AES_256")
            wrong: list[object] = []

            def work(number: int) -> None:
                for step in range(40):
                    plaintext = f"{number}.{step}".encode()
                    sealed = client.encrypt(key, plaintext)
                    if client.decrypt(sealed.ciphertext).plaintext != plaintext:
                        wrong.append(plaintext)

            threads = [threading.Thread(target=work, args=(n,)) for n in range(64)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not wrong and proxy.accepted == 1
            assert client._link is not None and client._link.link.is_idle


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_makes_its_own_connection(gateway: Running) -> None:
    with Proxy(gateway.address) as proxy:
        with Client.connect(**arguments_of(gateway, addresses=proxy.address)) as client:
            key = client.create_key(spec="AES_256")
            child = os.fork()
            if child == 0:
                try:
                    sealed = client.encrypt(key, b"child", timeout_s=PATIENCE_S)
                    is_right = client.decrypt(sealed.ciphertext).plaintext == b"child"
                    os._exit(0 if is_right else 1)
                finally:
                    os._exit(2)
            for _ in range(50):
                sealed = client.encrypt(key, b"parent")
                assert client.decrypt(sealed.ciphertext).plaintext == b"parent"
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 0
            assert proxy.accepted == 2


def test_descriptors_do_not_leak(gateway: Running, kind: str) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    with Proxy(gateway.address) as proxy:
        with connected(kind, **arguments_of(gateway, addresses=proxy.address)) as client:
            client.status()
            before = count()
            for _ in range(10):
                proxy.cut()
                client.status(timeout_s=PATIENCE_S)
            # The proxy closes its ends in threads of its own.
            end = time.monotonic() + PATIENCE_S
            while count() > before + 2 and time.monotonic() < end:
                time.sleep(0.01)
            assert count() <= before + 2
