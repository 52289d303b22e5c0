"""A gateway with a SoftHSM token, both clients behind one face, and a proxy that misbehaves."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from hsmux import Client
from hsmux.trio_client import TrioClient
from tests.client.peer import Certificates
from tests.gateway.hsm.conftest import softhsm_settings
from tests.gateway.running import Running, running_gateway


def write_config(directory: Path) -> Path:
    """A configuration with a SoftHSM token for root and hardware keys."""
    token = softhsm_settings(directory)
    config = directory / "hsmux.toml"
    config.write_text(
        f'instance_dir = "{directory}/instance"\n[server]\nlisten = ["127.0.0.1:0"]\n'
        f'[health]\nlisten = "127.0.0.1:0"\n[root]\ntoken = "test"\n'
        f'[hsm.test]\nmodule = "{token.module}"\ntoken_label = "{token.token_label}"\n'
        f'pin_file = "{token.pin_file}"\nworkers = 2\n'
        f'environment = {{ SOFTHSM2_CONF = "{token.environment["SOFTHSM2_CONF"]}" }}\n'
    )
    return config


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A gateway that tests share and must not stop."""
    with running_gateway(write_config(tmp_path_factory.mktemp("gateway"))) as running:
        yield running


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Certificates of scripted gateways and their clients."""
    return Certificates(tmp_path_factory.mktemp("certificates"))


def arguments_of(gateway: Running, **others: Any) -> dict[str, Any]:
    """What `connect` needs to reach a gateway as its administrator."""
    directory = gateway.administrator
    return {
        "addresses": gateway.address,
        "certificate": directory / "administrator.pem",
        "private_key": directory / "administrator.key",
        "ca": directory / "ca.pem",
        "server_name": "localhost",
        **others,
    }


class TrioFace:
    """A `TrioClient` in an event loop of its own thread, with the face of `Client`."""

    def __init__(self, **arguments: Any) -> None:
        self._arguments = arguments
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:
            self._failure = error
            self._ready.set()

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._ending = trio.Event()
        async with TrioClient.connect(**self._arguments) as self.client:
            self._ready.set()
            await self._ending.wait()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.client, name)

        def call(*arguments: Any, **others: Any) -> Any:
            work = partial(method, *arguments, **others)
            return trio.from_thread.run(work, trio_token=self._token)

        return call

    def close(self) -> None:
        """End the loop."""
        trio.from_thread.run_sync(self._ending.set, trio_token=self._token)
        self._thread.join()


@contextmanager
def connected(kind: str, **arguments: Any) -> Iterator[Any]:
    """A client of either kind."""
    client: Any = Client.connect(**arguments) if kind == "blocking" else TrioFace(**arguments)
    try:
        yield client
    finally:
        client.close()


@pytest.fixture(scope="module", params=["blocking", "trio"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which client."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def client(gateway: Running, kind: str) -> Iterator[Any]:
    """A connected client."""
    with connected(kind, **arguments_of(gateway)) as made:
        yield made
