"""Two gateways on one PostgreSQL store, and a store that goes away."""

import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hsmux_protocol import errors
from hsmux_protocol.frames import Error
from tests.gateway.certificates import stranger
from tests.gateway.raw_client import RawClient, client_context, connect
from tests.gateway.running import Running, running_gateway, write_config
from tests.postgresql import postgresql_cluster, postgresql_url, private_cluster

__all__ = ["postgresql_cluster", "postgresql_url"]

TIMEOUT_S = 20.0
AES: tuple[Any, ...] = ("AES_256", "ENCRYPT_DECRYPT", "software", None)


def _config(directory: Path, url: str, extra: str = "") -> Path:
    directory.mkdir()
    config = write_config(directory, f'[store]\nurl = "{url}"\npoll_ms = 100\n{extra}')
    # The root file is what the gateways share beside the store.
    text = config.read_text().replace(f"{directory}/root.key", f"{directory.parent}/root.key")
    config.write_text(text)
    return config


@pytest.fixture
def pair(tmp_path: Path, postgresql_url: str) -> Iterator[tuple[Running, Running]]:
    """Two gateways, each with an administrator's client key of its own."""
    first, second = (_config(tmp_path / name, postgresql_url) for name in ("first", "second"))
    with running_gateway(first) as one, running_gateway(second) as two:
        yield one, two


def _connected(running: Running) -> Any:
    return connect(running.address, client_context(running.administrator))


def test_each_sees_what_the_other_does(pair: tuple[Running, Running], tmp_path: Path) -> None:
    one, two = pair
    with _connected(one) as first, _connected(two) as second:
        assert first.call("show_status")[1] == second.call("show_status")[1]
        first.call("create_key", *AES, "alias/shared", "", {})
        envelope = first.call("encrypt", "alias/shared", {}, b"shared")[0]
        _soon(second, "show_key", "alias/shared")
        assert second.call("decrypt", None, {}, envelope)[0] == b"shared"
        with pytest.raises(errors.Conflict):
            second.call("create_key", *AES, "alias/shared", "", {})
        token = b"0123456789abcdef"
        (made,) = first.call("create_key", *AES, None, "", {}, idempotency_token=token)
        (again,) = second.call("create_key", *AES, None, "", {}, idempotency_token=token)
        assert made.key_id == again.key_id
        # A client key that one issues is known to the other, and revoked by it.
        first.call("create_access_point", "app", "", ["administrator"], [], None)
        record, certificate, _, private_key = first.call("create_client_key", "app", None, 30)
        context = stranger(one.administrator / "ca.pem")
        pem = tmp_path / "app.pem"
        pem.write_bytes(ssl.DER_cert_to_PEM_cert(certificate).encode() + private_key)
        context.load_cert_chain(pem)
        with connect(two.address, context) as app, connect(one.address, context) as other:
            assert app.call("generate_random", 8)
            assert second.call("revoke_client_key", record.client_key_id)
            for victim in (app, other):
                frame = victim.receive()
                assert isinstance(frame, Error)
                assert (frame.id, frame.number) == (0, errors.Unauthenticated.number)
    _want_the_same_names(pair)


def _soon(client: RawClient, name: str, *arguments: Any) -> list[Any]:
    """Ask until the other gateway's change has come, a few polls at most."""
    pause = threading.Event()
    for _ in range(50):
        try:
            return client.call(name, *arguments)
        except errors.NotFound:
            pause.wait(0.02)
    raise AssertionError("the change never came")


def _want_the_same_names(pair: tuple[Running, Running]) -> None:
    """A name that both want goes to one."""
    outcomes: list[str] = []

    def want(running: Running) -> None:
        with _connected(running) as client:
            for number in range(20):
                try:
                    client.call("create_key", *AES, f"alias/wanted-{number}", "", {})
                    outcomes.append("made")
                except errors.Conflict:
                    outcomes.append("taken")

    threads = [threading.Thread(target=want, args=(running,)) for running in pair]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(outcomes) == ["made"] * 20 + ["taken"] * 20


def _ready(running: Running) -> str:
    try:
        with urllib.request.urlopen(f"http://{running.health}/readyz", timeout=TIMEOUT_S) as answer:
            text: str = answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.read().decode()
    return text


def test_a_store_that_goes_away_holds_for_a_while_and_comes_back(tmp_path: Path) -> None:
    with private_cluster() as cluster:
        config = _config(tmp_path / "one", cluster.address.url(), "stale_s = 1.0\n")
        with running_gateway(config) as running, _connected(running) as client:
            client.call("create_key", *AES, "alias/kept", "", {})
            cluster.stop()
            assert client.call("encrypt", "alias/kept", {}, b"from memory")
            with pytest.raises(errors.Unavailable) as refused:
                client.call("create_key", *AES, None, "", {}, budget_ms=60_000)
            assert refused.value.retryable
            with pytest.raises(errors.Unavailable, match="too old"):
                while True:
                    client.call("encrypt", "alias/kept", {}, b"x")
            assert _ready(running) == "store: away\n"
            cluster.start()
            envelope = _when_back(client)
            assert client.call("decrypt", None, {}, envelope)[0] == b"back"
            client.call("create_key", *AES, "alias/after", "", {})
            assert _ready(running) == "ready\n"
            assert running.stop() == 0
        assert "Traceback" not in running.log.read_text()


def _when_back(client: RawClient) -> bytes:
    pause = threading.Event()
    for _ in range(500):
        try:
            envelope: bytes = client.call("encrypt", "alias/kept", {}, b"back")[0]
            return envelope
        except errors.Unavailable:
            pause.wait(0.02)
    raise AssertionError("the store never came back")


def test_a_gateway_without_its_store_does_not_start_and_may_be_started_again(
    tmp_path: Path,
) -> None:
    config = _config(tmp_path / "one", "postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(RuntimeError, match="store: "), running_gateway(config):
        pass
