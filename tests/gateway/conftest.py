"""A gateway shared by the tests of a module, and one of its own for those that stop it."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.raw_client import RawClient, client_context, connect
from tests.gateway.running import Running, running_gateway, write_config

LIMITS = "[limits]\nframe_timeout_s = 1.0\nidle_timeout_s = 20.0\nhandshake_timeout_s = 2.0\n"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A running gateway with a root key file; tests share it and must not stop it."""
    directory = tmp_path_factory.mktemp("gateway")
    with running_gateway(write_config(directory, LIMITS)) as running:
        yield running
        # Whatever a peer sends is its own fault, and none of the gateway's.
        assert "Traceback" not in running.log.read_text()


@pytest.fixture(scope="module")
def context(gateway: Running) -> ssl.SSLContext:
    """TLS as the administrator."""
    return client_context(gateway.administrator)


@pytest.fixture
def client(gateway: Running, context: ssl.SSLContext) -> Iterator[RawClient]:
    """A connection to the shared gateway."""
    with connect(gateway.address, context) as raw:
        yield raw


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A gateway of the module, as it is configured by default, for those that change who may."""
    with running_gateway(write_config(tmp_path_factory.mktemp("running"))) as running:
        yield running
        assert "Traceback" not in running.log.read_text()


@pytest.fixture
def admin(running: Running) -> Iterator[RawClient]:
    """The first administrator of that gateway, who may do everything."""
    with connect(running.address, client_context(running.administrator)) as client:
        yield client


@pytest.fixture
def own_config(tmp_path: Path) -> Path:
    """The configuration of a gateway that a test may stop and start."""
    return write_config(tmp_path)
